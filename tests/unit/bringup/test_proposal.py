"""What `init` makes of the frames that it saw: frames as sensors send them, with what a person would write."""

import tomllib
from typing import Any

import pytest

from edge_runtime.bringup.device_file import DeviceFile
from edge_runtime.bringup.listening import lines_of, share_of_text, topic_patterns
from edge_runtime.bringup.proposal import Proposal, propose

CHANNELS = ("temperature", "humidity")


@pytest.mark.parametrize(
    ("frames", "format_", "fields", "keys"),
    [
        (["21.5,48", "21.6,47"], "csv", ("temperature", "humidity"), {}),
        (["21.5;48"] * 3, "csv", ("temperature", "humidity"), {"delimiter": ";"}),
        (["21.5\t48"] * 3, "csv", ("temperature", "humidity"), {"delimiter": "\t"}),
        (["1764331200,21.5,48"] * 3, "csv", ("time", *CHANNELS), {"time": "time", "time_unit": "s"}),
        (["1764331200123,21.5,48"] * 3, "csv", ("time", *CHANNELS), {"time": "time", "time_unit": "ms"}),
        (["2026-11-28T12:00:00Z,21.5,48"] * 3, "csv", ("time", *CHANNELS), {"time": "time", "time_unit": "s"}),
        (["humidity,temperature", "48,21.5"], "csv", ("humidity", "temperature"), {}),
        (['{"temperature": 21.5, "humidity": 48}'] * 2, "json", (), {"time": None, "key": None}),
        (
            ['{"ts": 1764331200123, "sensor": "a", "temperature": 21.5, "humidity": 48}'] * 2,
            "json",
            (),
            {"time": "ts", "time_unit": "ms", "key": "sensor"},
        ),
        (['[{"temperature": 21.5, "humidity": 48}]'], "json", (), {}),
        (["garbage", "21.5,48", "21.4,48", "21.4,48"], "csv", CHANNELS, {}),
    ],
)
def test_frames_that_fit_leave_no_doubt(
    frames: list[str], format_: str, fields: tuple[str, ...], keys: dict[str, Any]
) -> None:
    """Format, columns, time and key, as a user would write them by hand."""
    found = propose([each.encode() for each in frames], CHANNELS)
    assert (found.format, found.fields, found.doubts) == (format_, fields, [])
    assert {name: getattr(found, name) for name in keys} == keys


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        (["21.5,48,1013"] * 3, ["expected 2 columns (temperature, humidity), found 3, such as 21.5,48,1013"]),
        (['{"Temperature": 21.5, "humidity": 48}'], ["no member temperature", "Temperature is near"]),
        (['{"temperature": "21.5", "humidity": 48}'], ["temperature: expected a number"]),
        (["t,humidity", "21.5,48"], ["the header has no temperature"]),
        (["\x01\x02\x03", "\x04\x05"], ["neither JSON objects nor lines of numbers"]),
        (['{"time": 123.4, "temperature": 21.5, "humidity": 48}'], ["the time 123.4 is no Unix time"]),
    ],
)
def test_what_cannot_be_told_is_a_doubt_and_no_guess(frames: list[str], words: list[str]) -> None:
    """Three columns for two channels are not shifted into place; a name that is near is not taken."""
    found = propose([each.encode("latin-1") for each in frames], CHANNELS)
    for word in words:
        assert any(word in doubt for doubt in found.doubts), found.doubts
    assert not set(found.fields) & set(CHANNELS) or "header" in words[0]


def test_without_a_model_columns_get_names_that_can_be_changed() -> None:
    """For a first recording."""
    found = propose([b"1764331200,21.5,48"] * 3, ())
    assert found.fields == ("time", "channel_2", "channel_3")
    assert found.doubts == ["3 columns without names: name them in `fields`"]


def test_topics_that_differ_in_one_level_become_one_with_a_key() -> None:
    """Three rooms and a lamp."""
    heard = {f"home/{room}/climate": [b"{}"] for room in ("hall", "attic", "cellar")} | {
        "home/hall/light": [b"on"],
        "$SYS/uptime": [b"5"],
    }
    assert dict(topic_patterns(heard)) == {"home/{key}/climate": [b"{}"] * 3, "home/hall/light": [b"on"]}


def test_first_and_last_line_may_be_torn() -> None:
    """Listening begins and ends in the middle of a line."""
    assert lines_of(b"5,3\n1,2\r\n3,4\n5,") == [b"1,2", b"3,4"]
    assert share_of_text(b"21.5,48\r\n") == 1.0
    assert share_of_text(bytes(range(128, 256))) == 0.0


def test_the_file_says_the_same_as_the_proposal() -> None:
    """Read by the standard library: every key, with what was proposed; quotes and umlauts survive."""
    made = DeviceFile(
        id='Gerät "7"',
        source={"type": "serial", "port": "/dev/ttyUSB0", "baudrate": 9600},
        proposal=Proposal("csv", ("ts", "a\tb"), ";", time="ts", time_unit="ms", key="a\tb", doubts=["why?"]),
        bundle="m.onnx",
        model="m",
        upstream="mqtts://broker",
    )
    found = tomllib.loads(made.text())
    assert found == {
        "device": {"id": 'Gerät "7"'},
        "source": [
            {
                "name": "sensor",
                "type": "serial",
                "port": "/dev/ttyUSB0",
                "baudrate": 9600,
                "format": "csv",
                "fields": ["ts", "a\tb"],
                "delimiter": ";",
                "time": "ts",
                "time_unit": "ms",
                "key": "a\tb",
            }
        ],
        "model": [{"name": "m", "bundle": "m.onnx", "source": "sensor"}],
        "upstream": {"url": "mqtts://broker"},
    }
    assert "# LOOK AT THIS: why?" in made.text()
