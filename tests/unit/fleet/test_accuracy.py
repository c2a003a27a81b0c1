"""`devices --accuracy`: the figures of devices, each and in sum, from documents that may be anything."""

from typing import Any

import pytest

from edge_runtime.fleet.accuracy import confusion_lines, in_sum, lines_of
from edge_runtime.fleet.overview import OverviewRow, fill_figures
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
    [None, [], "x", {"n": "many"}, {"confusion": {"a": 3}}, {"errors": {"t": {}}}, {"interval": [1]}, {"labels": []}],
)
def test_a_document_that_is_none_of_ours_is_left_out(strange: Any) -> None:
    """Whoever may publish on the topic must not end the command."""
    assert in_sum([OverviewRow(name="a", accuracy={"m": strange})]) == []


@pytest.mark.parametrize("models", [None, [], {"m": None}, {"m": {"drift": 3}}, {"m": {"drift": None, "version": 1}}])
def test_health_without_drift_says_nothing_of_it(models: Any) -> None:
    """Of a runtime of an earlier release, or of none."""
    row = OverviewRow(name="a")
    fill_figures(row, {"models": models}, None)
    assert (row.drift, row.accuracy) == ({}, {})
