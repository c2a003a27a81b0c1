"""What a reading says about itself: when it was taken, which stream it belongs to, and how to know it again.

Codecs hand the raw members over; what cannot be read is a `RejectedError` with the reason that is counted.
The identity is made of the reading's own text only, so that a reading that is delivered twice has it twice.
"""

import hashlib
import math
import re
from datetime import UTC, datetime
from typing import Any, NamedTuple

MAX_KEY_CHARACTERS = 200
MAX_IDENTITY_CHARACTERS = 128
# 2201-01-01T00:00:00Z. A time behind it is a mistake, most often milliseconds taken for seconds.
_END_OF_TIME = 7_289_654_400.0
# What a broker refuses inside one level of a topic (MQTT 5, 1.5.4 and 4.7; mosquitto closes the connection on the
# control characters and non-characters as well).
_UNFIT_FOR_A_TOPIC = re.compile("[/+#\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


class RejectedError(ValueError):
    """A reading is out of the contract; `reason` is the word that is counted."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Origin(NamedTuple):
    """The members that are no channels, as they were sent; None where the reading has none."""

    time: Any = None
    id: Any = None
    seq: Any = None
    key: Any = None


NO_ORIGIN = Origin()


def read_time(value: Any) -> float | None:
    """Seconds since the Unix epoch, of Unix seconds, ISO 8601 or a timestamp.

    Without an offset a time is UTC; what is finer than microseconds is cut off.

    Raises:
        RejectedError: `bad_time`.
    """
    if value is None:
        return None
    if type(value) is float or type(value) is int:
        return _in_range(value)
    if type(value) is str and len(value) <= 64:
        return _in_range(_iso_seconds(value))
    if type(value) is datetime:
        return _in_range(_seconds(value))
    raise RejectedError("bad_time")


def read_time_text(value: Any) -> float | None:
    """The same for a text column, where Unix seconds may be text; an empty one is None.

    Raises:
        RejectedError: `bad_time`.
    """
    if type(value) is not str:
        return read_time(value)
    text = value.strip()
    if not text:
        return None
    if "_" in text:  # Python would read 1_0 as ten
        raise RejectedError("bad_time")
    try:
        return read_time(float(text))
    except RejectedError:
        raise
    except ValueError:
        return read_time(text)


def read_key(value: Any) -> str:
    """The stream of a reading: text or a whole number that can stand as one level of an MQTT topic.

    Raises:
        RejectedError: `bad_key`.
    """
    if type(value) is int:
        value = _int_text(value, "bad_key")
    if type(value) is not str or not 0 < len(value) <= MAX_KEY_CHARACTERS or _UNFIT_FOR_A_TOPIC.search(value):
        raise RejectedError("bad_key")
    return value


def read_identity(origin: Origin) -> str | None:
    """The reading's `id`, else its `seq`, else its `time`, as text; a long one is replaced by its digest.

    Raises:
        RejectedError: `wrong_type`, where it is neither text nor a number.
    """
    for value in (origin.id, origin.seq, origin.time):
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


def _in_range(seconds: float) -> float:
    if not 0 <= seconds < _END_OF_TIME:  # false for NaN too
        raise RejectedError("bad_time")
    return float(seconds)


def _iso_seconds(text: str) -> float:
    try:
        moment = datetime.fromisoformat(text.upper())  # upper: RFC 3339 allows a small t and z
    except ValueError:
        return math.nan
    return _seconds(moment)


def _seconds(moment: datetime) -> float:
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - _EPOCH).total_seconds()


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _int_text(value: int, reason: str) -> str:
    if value.bit_length() > 1024:  # far beyond any sensor, and str() of a huge number is slow
        raise RejectedError(reason)
    return str(value)
