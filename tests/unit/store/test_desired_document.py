"""The signed document of a rollout and the device's report: which values are refused, and when a window is open."""

from typing import Any

import msgspec
import pytest

from edge_runtime.bundle.onnx_file import DEFAULT_LIMITS
from edge_runtime.store.desired_document import (
    FINAL,
    MOST_BYTES,
    Desired,
    Envelope,
    Report,
    check_window,
    is_open,
    report,
)

GOOD: dict[str, Any] = {
    "type": "desired", "device": "room", "rollout": "r5", "serial": 5, "model": "comfort", "version": "1.1.0",
    "digest": "0f" * 32, "size": 1000,
}  # fmt: skip
DESIRED = msgspec.json.decode(msgspec.json.encode(GOOD), type=Desired)


def test_what_a_document_leaves_out_is_no_condition() -> None:
    """Any class, at once, at any time, from a depot; what a later release adds is ignored."""
    found = msgspec.json.decode(msgspec.json.encode(GOOD | {"later": 1}), type=Desired)
    assert found == DESIRED
    assert (found.device_class, found.not_before, found.expires, found.window, found.url) == (None,) * 5
    assert found.files == {}
    assert msgspec.json.decode(msgspec.json.encode(GOOD | {"class": "pi5"}), type=Desired).device_class == "pi5"


@pytest.mark.parametrize(
    "changes",
    [
        {"type": "rollback"}, {"serial": -1}, {"serial": 1.5}, {"size": -1}, {"size": DEFAULT_LIMITS.max_bytes + 1},
        {"digest": "../../x"}, {"digest": "0F" * 32}, {"digest": "0f" * 31}, {"window": ["22:00"]},
        {"window": ["22:00", "23:00", "24:00"]}, {"expires": "tomorrow"}, {"expires": 1e30},
    ],
)  # fmt: skip
def test_a_document_with_a_value_out_of_range_is_none(changes: dict[str, Any]) -> None:
    """Whoever signed it: a digest names a file, and a size is kept free on the disk."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(msgspec.json.encode(GOOD | changes), type=Desired)


@pytest.mark.parametrize("size", [0, DEFAULT_LIMITS.max_bytes])
def test_a_size_from_nothing_to_the_largest_bundle_is_one(size: int) -> None:
    """A return to the previous bundle has the size 0, since nothing is fetched."""
    assert msgspec.json.decode(msgspec.json.encode(GOOD | {"size": size}), type=Desired).size == size


def test_an_envelope_has_the_signatures_that_are_there() -> None:
    """One or two; an empty one is none."""
    assert Envelope(document="d", signature="a").signatures == ["a"]
    assert Envelope(document="d", signature="a", signature2="b").signatures == ["a", "b"]
    assert Envelope(document="d", signature="", signature2="b").signatures == ["b"]
    assert MOST_BYTES == 65_536


def test_a_report_repeats_what_the_document_asks_for() -> None:
    """So that a rollout can be judged by the reports alone."""
    before = {"version": "1.0.0", "digest": "aa" * 32}
    found = report(DESIRED, "receiving", "why", received=7, before=before)
    assert found == Report(
        rollout="r5", serial=5, state="receiving", model="comfort", version="1.1.0", digest="0f" * 32, why="why",
        received=7, size=1000, before=before,
    )  # fmt: skip
    plain = report(DESIRED, "pending")
    assert (plain.why, plain.received, plain.before) == (None, 0, None)
    assert msgspec.to_builtins(plain)["why"] is None  # every member is written, also an empty one
    bare = Report(rollout="", serial=0, state="failed", model="", version="", digest="")
    assert (bare.received, bare.size) == (0, 0)


@pytest.mark.parametrize("state", ["pending", "receiving", "probation", "confirmed", "failed"])
def test_confirmed_and_failed_are_final(state: Any) -> None:
    """The other states go on."""
    assert report(DESIRED, state).is_final == (state in {"confirmed", "failed"})
    assert frozenset({"confirmed", "failed"}) == FINAL


def _minutes(begin: int, end: int) -> list[int]:
    """The open minutes of a day, counted one by one from the beginning to the end, over midnight if need be."""
    found, minute = [], begin
    while minute != end:
        found.append(minute)
        minute = (minute + 1) % 1440
    return sorted(found)


@pytest.mark.parametrize(
    ("window", "begin", "end"),
    [
        (("02:00", "04:30"), 120, 270),
        (("22:15", "03:05"), 1335, 185),
        (("00:00", "23:59"), 0, 1439),
        (("23:59", "00:01"), 1439, 1),
        (("00:01", "00:00"), 1, 0),
        (("10:00", "10:00"), 600, 600),  # no minute: it never opens
    ],
)
def test_a_window_is_open_from_its_beginning_to_its_end(window: tuple[str, str], begin: int, end: int) -> None:
    """The first minute belongs to it and the last does not; one that ends before it begins spans midnight."""
    assert [minute for minute in range(1440) if is_open(window, minute)] == _minutes(begin, end)


def test_without_a_window_every_minute_is_open() -> None:
    """The whole day."""
    assert all(is_open(None, minute) for minute in range(1440))


@pytest.mark.parametrize(
    "text",
    [
        "24:00",
        "12:60",
        "-1:00",
        "12:-1",
        "1:00",
        "012:00",
        "12.00",
        "",
        "ab:cd",
        "12:0 ",
        "+9:00",
        "1_2:5",
        "12:00\n",
        "\u0661\u0662:00",
    ],
)
@pytest.mark.parametrize("place", [0, 1])
def test_a_window_without_two_times_of_day_is_refused(text: str, place: int) -> None:
    """Checked when the document arrives, whichever end it is; signs, spaces and digits of other scripts are none."""
    window = ["10:00", "11:00"]
    window[place] = text
    with pytest.raises(ValueError, match="expected HH:MM, found"):
        check_window((window[0], window[1]))


@pytest.mark.parametrize("window", [None, ("00:00", "23:59"), ("23:59", "00:00")])
def test_two_times_of_day_are_a_window(window: tuple[str, str] | None) -> None:
    """From midnight to the last minute of the day."""
    check_window(window)
