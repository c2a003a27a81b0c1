"""A folder that `edge-runtime record` has made: `recording.json`, and numbered CSV parts of whole lines.

Guarantee: lines that were synchronised before a power cut are read completely; a torn line is left out, never read as a
shorter number. The writer and all readers of such a folder share this definition.
"""

import csv
import io
import os
from pathlib import Path
from typing import Literal

import msgspec

from edge_runtime.errors import CommandError
from edge_runtime.system.durable import half_written, replace_file

FORMAT = 1
ABOUT = "recording.json"
UNFINISHED = half_written(ABOUT)  # all that a kill in the first moment leaves in the folder
PARTS = "part-*.csv"
_LOOKED_AT = 65_536  # bytes at a time, from the end
TIME, KEY, LABEL = "time", "key", "label"

ClockState = Literal["synchronised", "unsynchronised"]


class RecordedChannel(msgspec.Struct, frozen=True):
    """One column of numbers, with its unit where that is known."""

    name: str
    unit: str = ""


class About(msgspec.Struct, kw_only=True):
    """`recording.json`. Times are Unix seconds.

    Attributes:
        format: 1.
        device: the id of the device.
        source: the name of the source.
        channels: the columns of numbers, in the order of the file.
        key: the column that names the stream; None where the source has one stream.
        label: the column of the label; None where none was given.
        rate_hz: readings of a stream in a second, the median over the streams; None before it is known.
        clock: whether the clock of the device was set when the recording began.
        own_times: the times are those of the readings; else those of their arrival.
        started: the start of the recording.
        ended: its end; None while it runs, or after a crash.
        readings: their number in all parts, at the last write of this file.
        sessions: the number of the first part of each run of `record`; no window crosses two sessions.
    """

    format: int = FORMAT
    device: str
    source: str
    channels: list[RecordedChannel]
    key: str | None = None
    label: str | None = None
    rate_hz: float | None = None
    clock: ClockState = "synchronised"
    own_times: bool = False
    started: float = 0.0
    ended: float | None = None
    readings: int = 0
    sessions: list[int] = []

    @property
    def columns(self) -> list[str]:
        """The columns of each part, in order."""
        names = [TIME, *([self.key] if self.key else []), *(each.name for each in self.channels)]
        return [*names, *([self.label] if self.label else [])]

    @property
    def header(self) -> bytes:
        """The first line of each part. A name with a comma or quotes is quoted, as in the rows."""
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(self.columns)
        return line.getvalue().encode()


def is_recording(folder: Path) -> bool:
    """Whether this is such a folder."""
    return (folder / ABOUT).is_file()


def read_about(folder: Path) -> About:
    """The description in the folder.

    Raises:
        CommandError: it is no such folder, or of a later format.
    """
    path = folder / ABOUT
    try:
        found = msgspec.json.decode(path.read_bytes(), type=About)
    except FileNotFoundError as error:
        raise CommandError(f"{folder}: expected a recording, found no {ABOUT} in it") from error
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CommandError(f"{path}: expected the description of a recording, found: {error}") from error
    if found.format != FORMAT:
        raise CommandError(f"{path}: expected format {FORMAT}, found {found.format}: update this program")
    return found


def write_about(folder: Path, about: About) -> None:
    """Replace the description, durably."""
    replace_file(folder / ABOUT, msgspec.json.format(msgspec.json.encode(about), indent=2) + b"\n")


def parts_of(folder: Path) -> list[Path]:
    """The parts, in their order. One whose header is torn holds nothing: a kill came before its first reading."""
    return [part for part in sorted(folder.glob(PARTS)) if has_header(part)]


def has_header(part: Path) -> bool:
    """Its first line is whole."""
    with part.open("rb") as file:
        return file.readline().endswith(b"\n")


def is_part(path: Path) -> bool:
    """Whether a file is a part of such a folder."""
    return path.match(PARTS) and is_recording(path.parent)


def end_of_lines(part: Path) -> int:
    """Where the last whole line of a part ends, in bytes: what stands behind it is torn, or is still being written."""
    with part.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - _LOOKED_AT)
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            end = start
    return 0


def whole_lines(part: Path) -> bytes:
    """The content of a part up to its last whole line."""
    data = part.read_bytes()
    return data[: data.rfind(b"\n") + 1]


def number_of(part: Path) -> int:
    """The number in the name of a part."""
    return int(part.stem.rpartition("-")[2])


def joined(folder: Path) -> tuple[bytes, list[int]]:
    """All parts as one CSV file, and the number of rows of each session."""
    about = read_about(folder)
    bodies: list[bytes] = []
    rows: list[int] = []
    for part in parts_of(folder):
        body = whole_lines(part).partition(b"\n")[2]
        if not rows or number_of(part) in about.sessions:
            rows.append(0)
        rows[-1] += body.count(b"\n")
        bodies.append(body)
    return about.header + b"".join(bodies), rows
