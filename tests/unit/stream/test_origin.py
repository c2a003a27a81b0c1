"""Times as sensors write them: units, zones, and what is no time of measurement."""

import hashlib
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edge_runtime.stream.codecs import make_decoder
from edge_runtime.stream.origin import (
    DAY_S,
    EARLIEST,
    TEN_YEARS_S,
    Origin,
    RejectedError,
    TimeReader,
    identity_text,
    is_fit_key,
    read_any_key,
    read_identity,
    read_key,
    zone_of,
)
from edge_runtime.system.counters import Counters

NOW = 1795432744.0  # 2026-11-23T11:19:04Z
EARLIEST_MS = 946_684_800_000


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
    assert str(caught.value) == caught.value.reason == "bad_time"
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


@given(moment=st.integers(EARLIEST_MS, 7_289_654_399_999), unit=st.sampled_from(["s", "ms", "us", "ns"]))
@example(moment=1_801_011_231_200, unit="ms")
@example(moment=1_790_110_281_747, unit="ns")
def test_a_number_as_text_is_the_number_and_never_a_date(moment: int, unit: str) -> None:
    """Also where its digits could be those of a day: 1801011231200 is a moment of 2027 in milliseconds."""
    number = moment * {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}[unit] // 1000
    reader = TimeReader(unit=unit)
    assert reader.read(str(number)) == pytest.approx(moment / 1000, abs=1.0 if unit == "s" else 0.001)
    assert reader.read_text(f" {number} ") == reader.read(str(number))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-23T11:19:04Z", NOW),
        ("2026-11-23t11:19:04z", NOW),
        ("2026-11-23 11:19:04", NOW),
        ("20261123T111904Z", NOW),
        ("2026-11-23T12:19:04+01:00", NOW),
        ("2026-11-23T11:19:04.123456789Z", NOW + 0.123456),
        ("1795432744", NOW),
        ("1795432744.25", NOW + 0.25),
    ],
)
def test_a_text_is_iso_8601_or_unix_seconds(text: str, expected: float) -> None:
    """With a small t and z, with an offset, without signs, and finer than microseconds."""
    assert _reader().read(text) == pytest.approx(expected, abs=1e-6)
    assert _reader().read_text(text) == pytest.approx(expected, abs=1e-6)


def test_a_moment_of_a_message_pack_is_a_time() -> None:
    """With its zone, and without one in that of the source."""
    moment = datetime(2026, 11, 23, 11, 19, 4, tzinfo=UTC)
    assert _reader().read(moment) == NOW
    assert _reader().read(moment.astimezone(timezone(timedelta(hours=5)))) == NOW
    assert _reader(zone=timezone(timedelta(hours=1))).read(moment.replace(tzinfo=None)) == NOW - 3600


def test_no_time_is_none_and_an_empty_text_only_in_a_column() -> None:
    """What is neither number, text nor moment is refused by its kind."""
    assert _reader().read(None) is None
    assert _reader().read_text(None) is None
    assert _reader().read_text("  ") is None
    assert _reader().read_text(NOW) == NOW
    others: list[Any] = [True, [], {}, b"1795432744"]
    for value in others:
        with pytest.raises(RejectedError, match="bad_time") as caught:
            _reader().read(value)
        assert caught.value.why == f"expected a number or a text as time, found {type(value).__name__}"
    for text in ("", "1_795_432_744", "x" * 65, "1795432744" + " " * 60):
        with pytest.raises(RejectedError, match="bad_time"):
            _reader().read(text)
    with pytest.raises(RejectedError) as caught:
        _reader().read_text(" 1_795_432_744 ")
    assert caught.value.why == "expected a time, found '1_795_432_744'"


@pytest.mark.parametrize(
    ("value", "is_read"),
    [
        (EARLIEST, True),
        (EARLIEST - 0.5, False),
        ("2000-01-01T00:00:00Z", True),
        (NOW + DAY_S, True),
        (NOW + DAY_S + 0.5, False),
        ("2026-11-24T11:19:04Z", True),
        ("2026-11-24T11:19:05Z", False),
    ],
)
def test_a_time_of_measurement_lies_between_2000_and_a_day_ahead(value: Any, is_read: bool) -> None:
    """Both ends are inside."""
    if is_read:
        assert _reader().read(value) is not None
        return
    with pytest.raises(RejectedError):
        _reader().read(value)


def test_a_recordings_times_end_with_the_year_2200() -> None:
    """From 1970 on, that included."""
    assert TimeReader().read(0) == 0.0
    assert TimeReader().read("2200-12-31T23:59:59Z") == 7_289_654_399.0
    for value in (
        -0.001,
        7_289_654_400,
        "2201-01-01T00:00:00Z",
        "0001-01-01T00:00:00+14:00",
        "9999-12-31T23:59:59-14:00",
    ):
        with pytest.raises(RejectedError):
            TimeReader().read(value)


def test_the_bounds_are_those_of_the_calendar() -> None:
    """As `datetime` counts them."""
    assert datetime(2000, 1, 1, tzinfo=UTC).timestamp() == EARLIEST
    assert timedelta(days=1).total_seconds() == DAY_S
    assert timedelta(days=3652).total_seconds() == TEN_YEARS_S


@pytest.mark.parametrize(
    ("unit", "value", "why"),
    [
        ("s", "soon", "expected a time such as 2026-11-23T11:19:04Z or Unix seconds, found 'soon'"),
        ("ms", "soon", "expected a time such as 2026-11-23T11:19:04Z or Unix milliseconds, found 'soon'"),
        ("s", 5, "expected a time from 2000 to 2200, found 5: set the clock of the sender"),
        ("s", "1999-12-31", "expected a time from 2000 to 2200, found '1999-12-31': set the clock of the sender"),
        ("s", datetime(1999, 1, 1, tzinfo=UTC), "expected a time from 2000 to 2200, found datetime.datetime(1999, "),
        ("s", 1795432744000,
         'expected Unix seconds, found 1795432744000, milliseconds taken for seconds: set time_unit = "ms"'),
        ("ms", 1795432744,
         'expected Unix milliseconds, found 1795432744, seconds taken for milliseconds: set time_unit = "s"'),
        ("ns", 1795432744000000,
         'expected Unix nanoseconds, found 1795432744000000, microseconds taken for nanoseconds: set time_unit = "us"'),
        ("s", int((NOW + DAY_S) * 1000),
         'expected Unix seconds, found 1795519144000, milliseconds taken for seconds: set time_unit = "ms"'),
        ("s", int((NOW + DAY_S) * 1000) + 1,
         "expected a time from 2000 to 2200, found 1795519144001: set the clock of the sender"),
        ("s", int(EARLIEST * 1000),
         'expected Unix seconds, found 946684800000, milliseconds taken for seconds: set time_unit = "ms"'),
        ("s", int(EARLIEST * 1000) - 1,
         "expected a time from 2000 to 2200, found 946684799999: set the clock of the sender"),
        ("s", NOW + DAY_S + 60,
         "expected a time at most 86400 s ahead of this device's clock, found 1795519204.0: look at both clocks"),
        ("s", "2026-12-23T11:19:04Z",
         "expected a time at most 86400 s ahead of this device's clock, found '2026-12-23T11:19:04Z': look at"),
    ],
)  # fmt: skip
def test_a_time_that_is_refused_says_what_to_do(unit: str, value: Any, why: str) -> None:
    """What was expected in the unit of the source, what was found, and the unit or the clock to set."""
    with pytest.raises(RejectedError, match="bad_time") as caught:
        _reader(unit=unit).read(value)
    assert caught.value.why.startswith(why)


def test_how_far_ahead_a_time_may_be_is_asked_only_for_one_that_is_ahead() -> None:
    """It may change with the clock's state; without a bound the year 2200 is one."""
    asked = []

    def most() -> float:
        asked.append(1)
        return 0.5

    reader = TimeReader(max_ahead=most, wall=lambda: NOW)
    assert reader.read(NOW) == NOW
    assert reader.read(NOW - 1) == NOW - 1
    assert not asked
    assert reader.read(NOW + 0.5) == NOW + 0.5
    with pytest.raises(RejectedError):
        reader.read(NOW + 0.75)
    assert len(asked) == 2
    assert TimeReader(wall=lambda: NOW).read(NOW + 10 * TEN_YEARS_S) is not None


def test_a_time_just_ahead_is_a_matter_of_clocks_and_not_of_units() -> None:
    """An hour ahead, where half a second is allowed: no unit would make it right, the source's own least of all."""
    reader = TimeReader(earliest=EARLIEST, max_ahead=lambda: 0.5, wall=lambda: NOW)
    with pytest.raises(RejectedError) as caught:
        reader.read(NOW + 3600)
    assert caught.value.why.startswith("expected a time at most 0.5 s ahead of this device's clock, found 1795436344.0")


def test_a_number_in_a_text_column_is_refused_as_the_number_that_it_is() -> None:
    """A counter in the column of the time is no time, and is not silently none."""
    for text in ("5", " 1795432744000 ", "nan"):
        with pytest.raises(RejectedError, match="bad_time") as of_text:
            _reader().read_text(text)
        with pytest.raises(RejectedError) as of_number:
            _reader().read(float(text))
        assert of_text.value.why == of_number.value.why


def test_a_text_that_is_long_is_shown_by_its_first_64_characters() -> None:
    """A line of a log stays a line."""
    for text in ("x" * 64, "2026-11-23T11:19:04Z" + "0" * 44):
        with pytest.raises(RejectedError) as caught:
            _reader().read(text)
        assert caught.value.why.endswith(f"found '{text[:63]}")
    with pytest.raises(RejectedError) as caught:
        _reader().read("x" * 65)
    assert "found str" in caught.value.why


def test_without_a_zone_a_source_has_utc() -> None:
    """And with one the database's."""
    assert zone_of(None) is UTC
    assert datetime(2026, 7, 1, tzinfo=zone_of("Europe/Berlin")).utcoffset() == timedelta(hours=2)


@pytest.mark.parametrize("key", ["a", "hall-3", "ä b", "x" * 200, 0, 7, -5, 2**1024 - 1])
def test_a_key_is_one_level_of_a_topic(key: Any) -> None:
    """Text of up to 200 characters, or a whole number as text."""
    if type(key) is int and key > 2**64:
        with pytest.raises(RejectedError, match="bad_key"):
            read_key(key)
        assert read_any_key(key) == str(key)
        return
    assert read_key(key) == str(key)
    assert is_fit_key(str(key))
    assert read_any_key(key) == str(key)


@pytest.mark.parametrize(
    "key", ["", "a/b", "+", "#", "a\x00", "a\n", "\x7f", "\ufffe", "x" * 201, 1.5, None, True, [], {}]
)
def test_what_is_no_level_of_a_topic_is_no_key(key: Any) -> None:
    """The message shows its beginning."""
    with pytest.raises(RejectedError, match="bad_key") as caught:
        read_key(key)
    assert caught.value.why == f"expected a key that can be a level of a topic, found {str(key)[:60]!r}"
    if isinstance(key, str):
        assert not is_fit_key(key)


@pytest.mark.parametrize(
    ("value", "expected"),
    [("a/b", "a/b"), (1.5, "1.5"), (True, "True"), (0, "0"), (date(2026, 1, 2), "2026-01-02"), ("x" * 300, "x" * 300),
     (datetime(2026, 1, 2, 3, tzinfo=UTC), "2026-01-02T03:00:00+00:00")],
)  # fmt: skip
def test_a_recording_may_have_any_key(value: Any, expected: str) -> None:
    """It becomes a column of the answers, and no topic."""
    assert read_any_key(value) == expected


@pytest.mark.parametrize(
    ("value", "found"),
    [(None, "'none'"), ("", "''"), (float("nan"), "'nan'"), ({"a": 1}, "\"{'a': 1}\""), ([1], "'[1]'")],
)
def test_nothing_and_a_part_of_a_document_is_no_key(value: Any, found: str) -> None:
    """Readings of no key would be one stream with others."""
    with pytest.raises(RejectedError, match="bad_key") as caught:
        read_any_key(value)
    assert caught.value.why == f"expected a key, found {found}"


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ((None, None, None), None),
        (("", None, ""), None),
        (("a", 7, 1.5), "a"),
        ((None, 7, 1.5), "7"),
        (("", 0, 1.5), "0"),
        ((None, None, 1.5), "1.5"),
        ((None, None, datetime(2026, 1, 2, tzinfo=UTC)), "2026-01-02T00:00:00+00:00"),
        (("x" * 128, None, None), "x" * 128),
        (("x" * 129, None, None), "sha256-" + hashlib.sha256(b"x" * 129).hexdigest()),
        ((2**400, None, None), str(2**400)),
        ((2**1023, None, None), "sha256-" + hashlib.sha256(str(2**1023).encode()).hexdigest()),
    ],
)
def test_the_identity_is_the_first_member_that_is_there(members: tuple[Any, Any, Any], expected: str | None) -> None:
    """`id`, `seq`, `time`; a long one is replaced by its digest, so that it fits."""
    identifier, seq, moment = members
    assert read_identity(Origin(time=moment, id=identifier, seq=seq)) == expected
    assert identity_text(*members) == expected


@pytest.mark.parametrize("value", [True, [], {}, b"a", 2**1024, -(2**1024)])
def test_what_is_neither_text_nor_a_number_identifies_nothing(value: Any) -> None:
    """Nor a number that no counter reaches."""
    with pytest.raises(RejectedError, match="wrong_type"):
        identity_text(value)
    with pytest.raises(RejectedError, match="bad_key"):
        read_key(value)
    assert identity_text(2**1024 - 1) is not None
