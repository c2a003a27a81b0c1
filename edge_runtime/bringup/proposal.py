"""Observed frames and the channels of a bundle -> the keys of a source. Pure.

Guarantee: facts that the frames do not show are listed as doubts and never guessed: a column without a name is `_`,
which is not read.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

import msgspec

from edge_runtime.config.convert import nearest
from edge_runtime.stream.codecs.kind import IGNORED
from edge_runtime.stream.origin import EARLIEST, TIME_UNITS, RejectedError, TimeReader
from edge_runtime.stream.rejections import shortened

_TIME_NAMES = ("time", "timestamp", "ts", "datetime", "date", "t")
_KEY_NAMES = ("key", "sensor", "sensor_id", "device", "device_id", "machine", "node", "room")
_DELIMITERS = (",", ";", "\t", "|", " ")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_MOST_NAMED = 8


class Proposal(msgspec.Struct):
    """The keys of a source that reads such frames.

    Attributes:
        format: the word of the format; None where the frames are of none that was recognised.
        fields: the columns of a CSV line.
        delimiter: between them, where it is no comma.
        time: the field of the time of measurement.
        time_unit: of times that are numbers.
        key: the field that distinguishes streams.
        doubts: a sentence for each fact that the user has to check.
    """

    format: str | None = None
    fields: tuple[str, ...] = ()
    delimiter: str = ","
    time: str | None = None
    time_unit: str = "s"
    key: str | None = None
    doubts: list[str] = msgspec.field(default_factory=list)


def propose(frames: Sequence[bytes], channels: Sequence[str]) -> Proposal:
    """The keys for a source with such frames.

    Args:
        frames: complete frames.
        channels: of the model; empty without a model.
    """
    objects = [found for frame in frames if (found := _members(frame)) is not None]
    if len(objects) * 2 > len(frames):
        return _of_objects(objects, channels)
    rows = _rows(frames)
    if rows is not None:
        return _of_rows(*rows, channels)
    shown = f": {shortened(frames[0])}" if frames else ""
    return Proposal(doubts=[f"the frames are neither JSON objects nor lines of numbers{shown}"])


def _members(frame: bytes) -> dict[str, object] | None:
    try:
        found = msgspec.json.decode(frame)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if isinstance(found, list) and found:
        found = found[0]
    return found if isinstance(found, dict) else None


def _of_objects(objects: Sequence[dict[str, object]], channels: Sequence[str]) -> Proposal:
    seen = Counter(name for each in objects for name in each)
    last = {name: value for each in objects for name, value in each.items()}
    made = Proposal("json")
    made.time = _first(_TIME_NAMES, [name for name in seen if name not in channels])
    if made.time is not None:
        made.time_unit = _unit(last[made.time], made.doubts)
    made.key = _first(_KEY_NAMES, [name for name in seen if isinstance(last[name], str) and name not in channels])
    found = list(seen)[:_MOST_NAMED]
    for channel in channels:
        if channel not in seen:
            near = nearest(channel, list(seen))
            hint = f"; {near} is near: rename it at the sender" if near else ""
            made.doubts.append(f"no member {channel}, found {', '.join(found)}{hint}")
        elif isinstance(last[channel], str | bool | list | dict):
            made.doubts.append(f"{channel}: expected a number, found {str(last[channel])[:40]!r}")
    return made


def _rows(frames: Sequence[bytes]) -> tuple[str, list[list[str]], list[str] | None] | None:
    """Delimiter, cells, and the header where there is one; None where the frames are no lines of numbers."""
    lines = [frame.decode("utf-8", "replace").strip("\r\n") for frame in frames]
    best: tuple[int, str, list[list[str]], list[str] | None] | None = None
    for delimiter in _DELIMITERS:
        cells = [[cell.strip() for cell in line.strip().split(delimiter)] for line in lines if line.strip()]
        numeric = [row for row in cells if any(_NUMBER.fullmatch(cell) for cell in row)]
        if len(numeric) * 2 < len(cells) or not numeric:
            continue
        width = Counter(len(row) for row in numeric).most_common(1)[0][0]
        whole = [row for row in numeric if len(row) == width]
        if len(whole) * 2 < len(cells):
            continue
        header = next((row for row in cells if len(row) == width and not any(map(_NUMBER.fullmatch, row))), None)
        if best is None or width > best[0]:
            best = (width, delimiter, whole, header)
    return None if best is None else best[1:]


def _of_rows(delimiter: str, rows: list[list[str]], header: list[str] | None, channels: Sequence[str]) -> Proposal:
    made = Proposal("csv", delimiter=delimiter)
    width, last = len(rows[0]), rows[-1]
    if header is not None:
        names = header
    elif width == len(channels):
        names = list(channels)
    elif width == len(channels) + 1 and channels and _is_time(last[0]):
        names = ["time", *channels]
    elif not channels:
        names = [f"channel_{number + 1}" for number in range(width)]
        if _is_time(last[0]):
            names[0] = "time"
        made.doubts.append(f"{width} columns without names: name them in `fields`")
    else:
        names = [IGNORED] * width
        made.doubts.append(
            f"expected {len(channels)} columns ({', '.join(channels)}), found {width}, such as "
            f"{delimiter.join(last)}: name them in `fields`, and those that are not needed {IGNORED}"
        )
    made.fields = tuple(_once(names))
    made.time = _first(_TIME_NAMES, [name for name in made.fields if name not in channels])
    if made.time is not None:
        made.time_unit = _unit(last[made.fields.index(made.time)], made.doubts)
    missing = [channel for channel in channels if channel not in made.fields]
    if missing and header is not None:
        made.doubts.append(f"the header has no {', '.join(missing)}, found {', '.join(header)}")
    return made


def _once(names: list[str]) -> list[str]:
    """A name that occurs twice is read from its first column."""
    return [IGNORED if name in names[:place] or not name else name for place, name in enumerate(names)]


def _first(wanted: Sequence[str], names: Sequence[str]) -> str | None:
    lower = {name.lower(): name for name in names}
    return next((lower[name] for name in wanted if name in lower), None)


def _is_time(cell: str) -> bool:
    try:
        seconds = TimeReader(earliest=EARLIEST).read_text(cell)
    except RejectedError:
        return _NUMBER.fullmatch(cell) is not None and _unit(cell, []) != "s"
    return seconds is not None


def _unit(value: object, doubts: list[str]) -> str:
    """The unit in which a number is a time in this century; `s` for text."""
    if isinstance(value, str) and not _NUMBER.fullmatch(value.strip()):
        return "s"
    number = float(value) if isinstance(value, str | int | float) else math.nan
    for unit, divisor in TIME_UNITS.items():
        if EARLIEST <= number / divisor < EARLIEST + 3_155_760_000:
            return unit
    doubts.append(f"the time {value!r} is no Unix time: it counts from elsewhere, so leave `time` out or set it")
    return "s"
