"""The time, key and identity of a reading: when it was taken, which stream it belongs to, and what identifies it.

Codecs pass the raw members; an unreadable one raises `RejectedError` with the reason that is counted. The identity is
made only of the reading's own text, so that a reading delivered twice has the same one twice. A live source reads times
with `TimeReader`, which applies the source's unit, zone and plausible range; recordings may hold any time from 1970 on.
"""

import hashlib
import math
import re
import time
from collections.abc import Callable
from datetime import UTC, date, datetime, tzinfo
from typing import Any, NamedTuple

from edge_runtime.config.topics import UNFIT_CHARACTERS

MAX_KEY_CHARACTERS = 200
MAX_IDENTITY_CHARACTERS = 128
NO_IDENTITY = "none"  # of `identity` in the configuration
TIME_UNITS = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
_UNIT_NAMES = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
# 2201-01-01T00:00:00Z. A later time is a mistake, most often milliseconds read as seconds.
END_OF_TIME = 7_289_654_400.0
# 2000-01-01T00:00:00Z. An earlier time is no measurement: an unset clock counts from 1970 or 1980, a counter from 0.
EARLIEST = 946_684_800.0
DAY_S = 86_400.0
TEN_YEARS_S = 3_652 * DAY_S
_NUMBER_AS_TEXT = re.compile(r"[0-9]{9,20}(\.[0-9]{1,20})?", re.ASCII)
_UNFIT_FOR_A_TOPIC = re.compile(f"[/+#{UNFIT_CHARACTERS}]")  # not allowed inside one level


class RejectedError(ValueError):
    """A reading breaks the contract; `reason` is the counted word, `why` the expected and the found value."""

    def __init__(self, reason: str, why: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.why = why


class Origin(NamedTuple):
    """The members that are not channels, as sent; None for an absent one."""

    time: Any = None
    id: Any = None
    seq: Any = None
    key: Any = None


NO_ORIGIN = Origin()


class TimeReader:
    """Reads the times of one source.

    Args:
        unit: of times that are numbers.
        zone: of times that are text without an offset.
        earliest: Unix seconds; an earlier time is refused.
        max_ahead: gives the seconds by which a time may be ahead of `wall`; None for no such check.
        wall: the wall clock.
    """

    def __init__(
        self,
        *,
        unit: str = "s",
        zone: tzinfo = UTC,
        earliest: float = 0.0,
        max_ahead: Callable[[], float] | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._unit = unit
        self._divisor = TIME_UNITS[unit]
        self._zone = zone
        self._earliest = earliest
        self._max_ahead = max_ahead
        self._wall = wall

    def read(self, value: Any) -> float | None:
        """Seconds since the Unix epoch, of a number in the source's unit, ISO 8601 or a timestamp; None for None.

        A text of nine or more digits is read as a number: no ISO 8601 date has so many without a separator.

        Fractions of a microsecond in a text are cut off.

        Raises:
            RejectedError: `bad_time`.
        """
        if value is None:
            return None
        if type(value) is float or type(value) is int:
            return self._in_range(value if self._divisor == 1 else _divided(value, self._divisor), value)
        if type(value) is str and len(value) <= 64:
            # Python would read 1801011231200 as a day in 1801, with the 3 as the separator of date and time.
            if "-" not in value and _NUMBER_AS_TEXT.fullmatch(value):
                return self.read(float(value))
            return self._in_range(_iso_seconds(value, self._zone), value)
        if type(value) is datetime:
            return self._in_range(_seconds(value, self._zone), value)
        raise RejectedError("bad_time", f"expected a number or a text as time, found {type(value).__name__}")

    def read_text(self, value: Any) -> float | None:
        """As `read`, for a text column, where numbers are text; an empty text is None.

        Raises:
            RejectedError: `bad_time`.
        """
        if type(value) is not str:
            return self.read(value)
        text = value.strip()
        if not text:
            return None
        if "_" in text:  # Python would read 1_0 as ten
            raise RejectedError("bad_time", f"expected a time, found {text[:64]!r}")
        try:
            return self.read(float(text))
        except RejectedError:
            raise
        except ValueError:
            return self.read(text)

    def _in_range(self, seconds: float, value: Any) -> float:
        if not self._earliest <= seconds < END_OF_TIME:  # false for NaN too
            raise RejectedError("bad_time", self._explain(value))
        if self._max_ahead is not None:
            ahead = seconds - self._wall()
            if ahead > 0 and ahead > (most := self._max_ahead()):
                raise RejectedError("bad_time", self._explain(value, most))
        return float(seconds)

    def _explain(self, value: Any, most_ahead: float = math.inf) -> str:
        """What is wrong with a time, and whether another unit would correct it."""
        shown = f"{value!r}"[:64]
        if type(value) is str or type(value) is datetime:
            if math.isnan(_iso_seconds(str(value), self._zone)):
                return f"expected a time such as 2026-11-23T11:19:04Z or Unix {_UNIT_NAMES[self._unit]}, found {shown}"
        else:
            for unit, divisor in TIME_UNITS.items():
                if unit != self._unit and EARLIEST <= _divided(value, divisor) <= self._wall() + DAY_S:
                    taken = f"{_UNIT_NAMES[unit]} taken for {_UNIT_NAMES[self._unit]}"
                    return f'expected Unix {_UNIT_NAMES[self._unit]}, found {shown}, {taken}: set time_unit = "{unit}"'
        if most_ahead < math.inf:
            return (
                f"expected a time at most {most_ahead:g} s ahead of this device's clock, found {shown}: "
                "look at both clocks, or raise max_ahead"
            )
        year = datetime.fromtimestamp(self._earliest, UTC).year
        return f"expected a time from {year} to 2200, found {shown}: set the clock of the sender"


def zone_of(name: str | None) -> tzinfo:
    """The time zone of an IANA name; UTC for None.

    Raises:
        ValueError: this machine has no zone of that name.
    """
    if name is None:
        return UTC
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError  # noqa: PLC0415 - only where a source has local times

    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, OSError, ValueError) as error:  # a folder, a path outside, a damaged file
        raise ValueError(name) from error


_PLAIN = TimeReader()
read_time = _PLAIN.read
read_time_text = _PLAIN.read_text


def read_key(value: Any) -> str:
    """The key of a reading: text or a whole number that is fit as one level of an MQTT topic.

    Raises:
        RejectedError: `bad_key`.
    """
    if type(value) is int:
        value = _int_text(value, "bad_key")
    if type(value) is not str or not is_fit_key(value):
        raise RejectedError("bad_key", f"expected a key that can be a level of a topic, found {str(value)[:60]!r}")
    return value


def read_any_key(value: Any) -> str:
    """The key of a recorded reading, as text: any non-empty text, number, Boolean, date or time.

    Raises:
        RejectedError: `bad_key`.
    """
    if type(value) is int:
        return _int_text(value, "bad_key")
    if value is None or isinstance(value, dict | list) or value != value or str(value) == "":  # noqa: PLR0124 - NaN
        raise RejectedError("bad_key", f"expected a key, found {'none' if value is None else str(value)[:60]!r}")
    return value.isoformat() if isinstance(value, date) else str(value)


def is_fit_key(text: str) -> bool:
    """Whether a key is fit as one level of an MQTT topic, whatever its origin."""
    return 0 < len(text) <= MAX_KEY_CHARACTERS and _UNFIT_FOR_A_TOPIC.search(text) is None


def read_identity(origin: Origin) -> str | None:
    """The reading's `id`, else its `seq`, else its `time`, as text; a long one is replaced by its digest.

    Raises:
        RejectedError: `wrong_type`, where it is neither text nor a number.
    """
    return identity_text(origin.id, origin.seq, origin.time)


def identity_text(*members: Any) -> str | None:
    """The first member that is not None, as text; a long one is replaced by its digest.

    Raises:
        RejectedError: `wrong_type`, where it is neither text nor a number.
    """
    for value in members:
        if value is None or value == "":
            continue
        if type(value) is str:
            text = value
        elif type(value) is int:
            text = _int_text(value, "wrong_type")
        elif type(value) is float:
            text = repr(value)
        elif type(value) is datetime:
            text = value.isoformat()
        else:
            raise RejectedError("wrong_type")
        if len(text) <= MAX_IDENTITY_CHARACTERS:
            return text
        return "sha256-" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return None


def _divided(value: float, divisor: int) -> float:
    try:
        return value / divisor
    except OverflowError:  # an integer beyond float64
        return math.inf


def _iso_seconds(text: str, zone: tzinfo) -> float:
    try:
        moment = datetime.fromisoformat(text.upper())  # upper: RFC 3339 allows a small t and z
    except ValueError:
        return math.nan
    return _seconds(moment, zone)


def _seconds(moment: datetime, zone: tzinfo) -> float:
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=zone)
    try:
        return (moment - _EPOCH).total_seconds()
    except OverflowError:  # year 1 or 9999, in a zone whose offset leads outside
        return math.nan


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _int_text(value: int, reason: str) -> str:
    if value.bit_length() > 1024:  # far beyond any sensor, and str() of a huge number is slow
        raise RejectedError(reason)
    return str(value)
