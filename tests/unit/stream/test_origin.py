"""Times as sensors write them: units, zones, and what is no time of measurement."""

from datetime import UTC, datetime
from typing import Any

import pytest

from edge_runtime.stream.codecs import make_decoder
from edge_runtime.stream.origin import DAY_S, EARLIEST, RejectedError, TimeReader, zone_of
from edge_runtime.system.counters import Counters

NOW = 1795432744.0  # 2026-11-23T11:19:04Z


def _reader(**given: Any) -> TimeReader:
    return TimeReader(earliest=EARLIEST, max_ahead=lambda: DAY_S, wall=lambda: NOW, **given)


@pytest.mark.parametrize(
    ("unit", "value"), [("s", NOW), ("ms", NOW * 1e3), ("us", int(NOW * 1e6)), ("ns", int(NOW) * 10**9)]
)
def test_a_number_is_read_in_the_unit_of_the_source(unit: str, value: float) -> None:
    """Seconds, milliseconds, microseconds, nanoseconds."""
    assert _reader(unit=unit).read(value) == pytest.approx(NOW, abs=1e-3)


@pytest.mark.parametrize(("scale", "unit", "word"), [(1e3, "ms", "milliseconds"), (1e9, "ns", "nanoseconds")])
def test_a_wrong_unit_is_named_in_the_message(scale: float, unit: str, word: str) -> None:
    """Milliseconds that were taken for seconds are called by their name, with the key that reads them."""
    with pytest.raises(RejectedError) as caught:
        _reader().read(int(NOW * scale))
    assert caught.value.reason == "bad_time"
    assert f"{word} taken for seconds" in caught.value.why
    assert f'time_unit = "{unit}"' in caught.value.why


@pytest.mark.parametrize(
    "value",
    [0, 12.5, -1, EARLIEST - 1, NOW + DAY_S + 1, float("nan"), float("inf"), 10**400, "1999-12-31T23:59:59Z", "nine"],
)
def test_what_is_no_time_of_measurement_is_rejected_with_its_reason(value: Any) -> None:
    """A year before 2000, too far ahead, or nothing that can be read: the message shows what was found."""
    with pytest.raises(RejectedError) as caught:
        _reader().read(value)
    assert caught.value.reason == "bad_time"
    assert "expected" in caught.value.why
    assert str(value)[:40] in caught.value.why


def test_a_recording_may_hold_any_time_from_1970_on() -> None:
    """Plausibility is for what is measured now."""
    assert TimeReader().read(0.5) == 0.5


@pytest.mark.parametrize(
    ("text", "offset_hours"),
    [("2026-07-01T12:00:00", 2), ("2026-01-01T12:00:00", 1), ("2026-07-01T12:00:00Z", 0)],
)
def test_a_local_time_is_read_in_the_zone_of_the_source(text: str, offset_hours: int) -> None:
    """Summer and winter; a time with an offset of its own keeps it."""
    noon = datetime.fromisoformat(text.rstrip("Z")).replace(tzinfo=UTC).timestamp()
    assert TimeReader(zone=zone_of("Europe/Berlin")).read(text) == noon - 3600 * offset_hours


@pytest.mark.parametrize("name", ["Europe/Atlantis", "", "../../etc/passwd", "/etc/passwd", "Europe"])
def test_an_unknown_zone_is_no_zone(name: str) -> None:
    """Nothing outside the database of zones is read."""
    with pytest.raises(ValueError, match=r".*"):
        zone_of(name)


@pytest.mark.parametrize(
    ("identity", "expected"), [(None, "7"), ("frame", "a-1"), ("time", "1795432744"), ("none", None), ("gone", None)]
)
@pytest.mark.parametrize("format_", ["json", "csv"])
def test_the_identity_is_the_member_that_the_source_names(
    format_: str, identity: str | None, expected: str | None
) -> None:
    """`id`, else `seq`, else the time when left out; `none` gives no reading one."""
    columns: dict[str, Any] = {"fields": ("time", "seq", "frame", "t", "gone")} if format_ == "csv" else {}
    decoder = make_decoder(format_, ("t",), identity=identity, **columns)
    frame = b'{"time":1795432744,"seq":7,"frame":"a-1","t":1}' if format_ == "json" else b"1795432744,7,a-1,1,"
    assert decoder.decode([frame], Counters()).identities == [expected]
