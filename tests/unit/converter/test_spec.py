"""The specification: typed, and every mistake at once."""

from pathlib import Path
from typing import Any

import pytest

from converter.spec import Spec, load_spec, parse_spec
from edge_runtime.errors import CommandError

FULL = """
name = "activity"
version = "1.2.3-rc.1"
task = "classification"
labels = ["walking", "running"]
target_device = "pi4"
[window]
length = 100
stride = 50
rate_hz = 10.0
[[channel]]
name = "accel_x"
unit = "m/s2"
range = [-80.0, 80]
[model]
input = "input"
layout = "channel_first"
[[state]]
input = "state"
output = "stateN"
batch_axis = 1
[constants]
sr = 16000
[data]
label = "activity"
group = "recording"
time = "timestamp"
"""


def mistakes(raw: dict[str, Any]) -> list[str]:
    """The lines of a refusal."""
    with pytest.raises(CommandError) as refusal:
        parse_spec(raw, "s.toml")
    return str(refusal.value).splitlines()


def test_a_whole_specification_is_read(tmp_path: Path) -> None:
    """Every table of the documentation is known."""
    (tmp_path / "s.toml").write_text(FULL)
    spec = load_spec(tmp_path / "s.toml")
    assert (spec.length, spec.stride, spec.version) == (100, 50, "1.2.3-rc.1")
    assert spec.channel[0].range == (-80.0, 80.0)
    assert spec.constants == {"sr": 16000}
    assert spec.state[0].batch_axis == 1
    assert spec.data.group == "recording"


def test_an_empty_specification_is_one_reading_at_a_time() -> None:
    """What the model itself tells need not be repeated."""
    assert parse_spec({}, "s.toml") == Spec()
    assert (Spec().length, Spec().stride) == (1, 1)
    assert parse_spec({"window": {"length": 7}}, "s.toml").stride == 7


def test_unknown_keys_come_with_the_nearest_known_one() -> None:
    """In every table, and without any near one, with all of them."""
    found = mistakes({"taks": "anomaly", "channel": [{"name": "a", "unti": "C"}], "data": {"zzz": 1}})
    assert found == [
        "s.toml: taks: unknown key; did you mean `task`?",
        "s.toml: channel[0].unti: unknown key; did you mean `unit`?",
        "s.toml: data.zzz: unknown key; known are label, group, time",
    ]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (
            {"task": "guess"},
            "task: expected 'classification' or 'regression' or 'anomaly' or 'multilabel' or 'tensor' or ",
        ),
        ({"version": "1.0"}, "version: expected a semantic version such as 1.0.0, found '1.0'"),
        ({"name": "a/b"}, "name: expected a word without / + #, found 'a/b'"),
        ({"labels": ["a"]}, "labels: expected two or more, found one"),
        ({"labels": "a"}, "labels: expected a list, each a text, found 'a'"),
        ({"labels": ["a", "b", "a"]}, "labels: expected different names, found 'a' more than once"),
        ({"labels": ["a", "b"], "task": "anomaly"}, "labels: expected none with task 'anomaly', found 2"),
        ({"window": {"length": 0}}, "window.length: expected 1 or more, found 0"),
        ({"window": {"length": 4, "stride": -1}}, "window.stride: expected 1 or more, found -1"),
        ({"window": {"length": 4, "rate_hz": 0.0}}, "window.rate_hz: expected a positive rate, found 0.0"),
        ({"window": 4}, "window: expected a table, found 4"),
        ({"channel": {"name": "a"}}, "channel: expected tables ([[channel]]), found {'name': 'a'}"),
        ({"channel": [{"name": "a", "range": [2, 1]}]}, "channel a: range: expected low < high, found [2.0, 1.0]"),
        ({"channel": [{"unit": "C"}]}, "channel[0].name: expected a text, found nothing"),
        ({"channel": [{"name": "a"}, {"name": "a"}]}, "channel: expected different names, found 'a' more than once"),
        ({"threshold": 1, "threshold_quantile": 0.9}, "threshold: expected either threshold or threshold_quantile"),
        ({"threshold_quantile": 2}, "threshold_quantile: expected more than 0 and at most 1, found 2.0"),
        ({"frame": {"shape": [8, 8]}, "window": {"length": 2}}, "frame: expected no [window] and no [[channel]]"),
        ({"frame": {"shape": [0]}}, "frame.shape: expected positive sizes, found [0]"),
        ({"targets": ["a"], "target": [{"name": "b"}]}, "targets: expected either targets or [[target]], found both"),
    ],
)
def test_each_mistake_is_one_line(raw: dict[str, Any], message: str) -> None:
    """Place, expectation, finding."""
    found = mistakes(raw)
    assert len(found) == 1
    assert found[0].startswith(f"s.toml: {message}")


def test_a_file_that_is_no_toml_is_told(tmp_path: Path) -> None:
    """With the line that cannot be read."""
    (tmp_path / "s.toml").write_text("name = \n")
    with pytest.raises(CommandError, match=r"expected TOML.*line 1"):
        load_spec(tmp_path / "s.toml")
    (tmp_path / "s.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(CommandError, match="expected a specification in TOML"):
        load_spec(tmp_path / "s.toml")
