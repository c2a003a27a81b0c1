"""`devices --accuracy`: the figures of devices, each and in sum, from documents that may be anything."""

from typing import Any

import pytest

from edge_runtime.commands.devices import _show_accuracy
from edge_runtime.fleet.accuracy import confusion_lines, in_sum, lines_of
from edge_runtime.fleet.overview import OverviewRow, fill_figures
from edge_runtime.fleet.same_drift import drift_lines
from edge_runtime.truth.figures import wilson


def document(confusion: dict[str, dict[str, int]], **more: Any) -> dict[str, Any]:
    """What a device publishes."""
    n = sum(sum(row.values()) for row in confusion.values())
    right = sum(row.get(name, 0) for name, row in confusion.items())
    figures = {"n": n, "accuracy": right / n, "interval": list(wilson(right, n)), "confusion": confusion}
    return {"version": "1.0.0", **figures, "estimated": None, "unmatched": {"unknown": 1, "late": 0}, **more}


ROWS = [
    OverviewRow(
        name="hall",
        accuracy={"m": document({"a": {"a": 8, "b": 2}, "b": {"b": 5}}, estimated=0.9, estimated_over=100)},
        drift={"m": {"state": "ok", "why": None, "version": "1.0.0"}},
    ),
    OverviewRow(
        name="roof",
        accuracy={"m": document({"a": {"a": 1}, "b": {"a": 4}}, estimated=0.7, estimated_over=300)},
        drift={"m": {"state": "alarm", "why": "temperature is stuck", "version": "1.0.0"}},
    ),
    OverviewRow(name="shed", accuracy={"m": document({"a": {"a": 9}}, version="2.0.0")}),
    OverviewRow(name="gone", why="it is offline, says the broker"),
]


def test_confusions_are_summed_by_model_and_version() -> None:
    """Accuracy and interval are those of all judged windows; estimates count by their windows; drift by state."""
    first, second = in_sum(ROWS)
    assert (first["model"], first["version"], first["devices"], first["n"]) == ("m", "1.0.0", 2, 20)
    assert first["confusion"] == {"a": {"a": 9, "b": 2}, "b": {"b": 5, "a": 4}}
    assert first["accuracy"] == pytest.approx(14 / 20)
    assert first["interval"] == pytest.approx(wilson(14, 20), rel=1e-5)
    assert (first["estimated"], first["estimated_over"]) == (0.75, 400)
    assert first["unmatched"] == {"unknown": 2, "late": 0}
    assert first["drift"] == {"ok": ["hall"], "alarm": ["roof"]}
    assert (second["version"], second["n"], second["accuracy"], second["estimated"]) == ("2.0.0", 9, 1.0, None)


def test_the_table_has_a_line_for_each_device_and_one_for_all() -> None:
    """A device that tells nothing has its line, too."""
    lines = [" | ".join(line) for line in lines_of(ROWS)]
    assert lines[0] == "hall | m | 1.0.0 | 15 | 86.7 % | 62.1 to 96.3 | 90.0 % | 1 unknown | ok"
    assert lines[1].endswith("alarm: temperature is stuck")
    assert lines[3].endswith("it is offline, says the broker")
    assert lines[4] == "2 devices | m | 1.0.0 | 20 | 70.0 % | 48.1 to 85.5 | 75.0 % | 2 unknown | 1 alarm, 1 ok"
    assert confusion_lines(in_sum(ROWS)[0]) == [
        "m 1.0.0: a row is the truth, a column the prediction",
        "         a        b",
        "a        9        2",
        "b        4        5",
    ]


def test_errors_of_regressions_count_by_what_was_judged() -> None:
    """The mean of 1.0 over ten and 4.0 over thirty is 3.25."""
    rows = [
        OverviewRow(name=name, accuracy={"m": {"n": n, "version": "1", "errors": {"t": {"mae": mae, "bias": -mae}}}})
        for name, n, mae in (("a", 10, 1.0), ("b", 30, 4.0))
    ]
    total = in_sum(rows)[0]
    assert (total["n"], total["accuracy"], total["errors"]) == (40, None, {"t": {"mae": 3.25, "bias": -3.25}})
    assert lines_of(rows)[-1][4] == "MAE t 3.25"


def test_several_labels_have_their_four_cells_each() -> None:
    """And the share of wrong ones among all; right are the windows of which every label was."""
    cells = {"hit": 3, "missed": 1, "false": 0, "rest": 6}
    rows = [
        OverviewRow(
            name=name, accuracy={"m": {"n": 10, "version": "1", "labels": {"hot": cells}, "right": 9, "withheld": 4}}
        )
        for name in ("a", "b")
    ]
    total = in_sum(rows)[0]
    assert (total["n"], total["accuracy"], total["right"], total["withheld"]) == (20, 0.9, 18, 8)
    assert total["labels"] == {"hot": {"hit": 6, "missed": 2, "false": 0, "rest": 12}}
    assert confusion_lines(total) == [
        "m 1: 10.0 % of all labels are wrong",
        "         hit   missed    false     rest",
        "hot        6        2        0       12",
    ]


@pytest.mark.parametrize(
    "strange",
    [
        *(None, [], "x", {"n": "many"}, {"confusion": {"a": 3}}, {"errors": {"t": {}}}, {"interval": [1]}),
        *({"labels": []}, {"n": -1}, {"confusion": {"a": {"a": 5, "b": -3}}}, {"estimated": 1e308}),
        {"n": 1, "right": 2, "labels": {"a": {"hit": 1}}},
    ],
)
def test_a_document_that_is_none_of_ours_is_left_out(strange: Any) -> None:
    """Whoever may publish on the topic must not end the command."""
    assert in_sum([OverviewRow(name="a", accuracy={"m": strange})]) == []


def test_labels_that_were_never_judged_have_no_share() -> None:
    """A device may publish a label without any count: there is nothing to show."""
    (total,) = in_sum([OverviewRow(name="a", accuracy={"m": {"n": 0, "labels": {"hot": {}}}})])
    assert (total["hamming"], confusion_lines(total)) == (None, [])


@pytest.mark.parametrize("models", [None, [], {"m": None}, {"m": {"drift": 3}}, {"m": {"drift": None, "version": 1}}])
def test_health_without_drift_says_nothing_of_it(models: Any) -> None:
    """Of a runtime of an earlier release, or of none."""
    row = OverviewRow(name="a")
    fill_figures(row, {"models": models}, None)
    assert (row.drift, row.accuracy) == ({}, {})


def drifting(name: str, *causes: Any, state: str = "alarm", version: str = "1.0.0") -> OverviewRow:
    """A device that reports these causes, as its drift topic and its health have them."""
    row = OverviewRow(name=name)
    document = {"state": state, "why": "?", "since": "?", "causes": list(causes)}
    fill_figures(row, {"models": {"m": {"version": version, "drift": document}}}, None)
    return row


def cause(at: str, kind: str, state: str = "alarm") -> dict[str, str]:
    """One cause."""
    return {"at": at, "cause": kind, "state": state}


def test_the_same_drift_is_counted_over_devices_by_model_and_version() -> None:
    """The most frequent first; a cause is the same where channel and kind are, however bad it is on each device."""
    rows = [
        drifting("hall", cause("temperature", "above"), cause("rate", "slow", "watch")),
        drifting("roof", cause("temperature", "above", "watch"), state="watch"),
        drifting("shed", cause("temperature", "stuck")),
        drifting("yard", state="ok"),
        drifting("barn", cause("temperature", "above"), version="2.0.0"),
    ]
    first, second = in_sum(rows)
    assert first["same_drift"] == [
        {"at": "temperature", "cause": "above", "state": "alarm", "devices": ["hall", "roof"], "of": 4},
        {"at": "temperature", "cause": "stuck", "state": "alarm", "devices": ["shed"], "of": 4},
        {"at": "rate", "cause": "slow", "state": "watch", "devices": ["hall"], "of": 4},
    ]
    assert drift_lines(first) == [
        "m 1.0.0: where the same drift shows",
        "AT           DRIFT  STATE  DEVICES  WHICH",
        "temperature  above  alarm  2 of 4   hall, roof",
        "temperature  stuck  alarm  1 of 4   shed",
        "rate         slow   watch  1 of 4   hall",
    ]
    assert [each["devices"] for each in second["same_drift"]] == [["barn"]]


def test_a_line_names_some_devices_and_counts_the_others() -> None:
    """A fleet of hundreds fits on a screen; a fleet without drift has no such part."""
    names = [f"{letter}-{number}" for letter in "abcdefgh" for number in (1, 3, 7)]
    (total,) = in_sum([drifting(name, cause("a", "stuck")) for name in names])
    assert drift_lines(total)[2].endswith(
        "24 of 24  a-1, a-3, a-7, b-1, b-3, b-7, c-1, c-3, c-7, d-1, d-3, d-7 and 12 more"
    )
    assert len(total["same_drift"][0]["devices"]) == 24
    assert drift_lines(in_sum([drifting("calm", state="ok")])[0]) == []


@pytest.mark.parametrize("strange", [None, "x", 3, [None], [{"at": 1, "cause": "a"}], [{"at": "a"}], {"at": "a"}])
def test_causes_that_are_none_of_ours_are_left_out(strange: Any) -> None:
    """Of a runtime of an earlier release, and of whoever may publish on the topic; the state counts all the same."""
    row = OverviewRow(name="a")
    fill_figures(row, {}, None, {"m": {"state": "alarm", "version": "1.0.0", "causes": strange}})
    (total,) = in_sum([row])
    assert (total["same_drift"], total["drift"], total["version"]) == ([], {"alarm": ["a"]}, "1.0.0")


def test_drift_counts_beside_an_accuracy_that_is_none_of_ours() -> None:
    """One document that cannot be read hides no other one."""
    row = drifting("a", cause("x", "stuck"))
    row.accuracy = {"m": {"n": "many"}}
    assert [each["devices"] for each in in_sum([row])[0]["same_drift"]] == [["a"]]


def test_what_a_broker_says_moves_no_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever may publish on the topics writes no control character to the terminal, by a cause or by a label."""
    row = drifting("a", cause("\x1b[2Jx", "stuck"))
    row.accuracy = {"m": document({"\x1b[31mred": {"\x1b[31mred": 3}})}
    _show_accuracy([row], as_json=False)
    shown = capsys.readouterr().out
    assert "?[2Jx" in shown
    assert "?[31mred" in shown
    assert "\x1b" not in shown
