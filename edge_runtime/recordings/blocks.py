"""The result of every reader of recorded files: blocks of readings with the kept columns."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from edge_runtime.errors import CommandError
from edge_runtime.readings import Floats
from edge_runtime.stream.codecs import Members
from edge_runtime.stream.origin import TimeReader

MAX_LINE_BYTES = 1 << 24
ENDLESS = 1 << 62  # the end of a piece of unknown length
NO_TIME = "(no time)"  # the codecs need a name; no column has this one


class RecordingError(CommandError):
    """A file cannot be read, or has another content than expected."""


class MissingColumnsError(RecordingError):
    """A file lacks columns; `missing` are their names."""

    def __init__(self, message: str, missing: Sequence[str]) -> None:
        super().__init__(message)
        self.missing = tuple(missing)


@dataclass(frozen=True)
class Wanted:
    """The columns and settings for reading every file.

    Attributes:
        channels: the columns of the model, in its order; empty for whole frames.
        shape: of one window, as the model takes it; None where a file may hold readings alone.
        framed: each reading is a whole frame, of `shape`.
        key: the column that names the stream; None where each file is one stream.
        time: the column of the time of measurement; None where readings follow one another without gaps.
        columns: required columns beside the channels: kept ones, key, time and truth.
        delimiter: of CSV files; None goes by the suffix.
        format: `auto` goes by the suffix.
        decimal: between the whole part of a number in a CSV file and its fraction.
        encoding: of text files.
        time_unit: of times that are numbers, where no identities are wanted.
        index_column: the rows of a CSV file begin with a column that its header does not name.
        trailing_delimiter: the rows of a CSV file end with a delimiter that its header lacks.
        max_line_bytes: a longer line is `too_long`.
        categories: the texts of channels that hold text, in the order of their indexes.
        members: the members that identify readings, where identities are wanted; then the file's time is read too.
    """

    channels: tuple[str, ...]
    shape: tuple[int, ...] | None
    framed: bool = False
    key: str | None = None
    time: str | None = None
    columns: tuple[str, ...] = ()
    delimiter: str | None = None
    format: str = "auto"
    decimal: str = "."
    encoding: str = "utf-8"
    time_unit: str = "s"
    index_column: bool = False
    trailing_delimiter: bool = False
    max_line_bytes: int = MAX_LINE_BYTES
    categories: dict[str, tuple[str, ...]] = field(default_factory=dict)
    members: Members | None = None

    def roles(self, place: str) -> Members:
        """The roles of columns, for the codecs."""
        if self.members is not None:
            return self.members
        reader = TimeReader(unit=self.time_unit)
        return Members(
            self.channels,
            self.key,
            self.time or NO_TIME,
            place,
            reader=reader,
            categories=self.categories,
            any_key=True,
        )


class Columns(Protocol):
    """Columns beside readings, a value for each reading."""

    def take(self, rows: Sequence[int]) -> "Columns":
        """Those of some readings."""

    def values(self, name: str) -> list[Any]:
        """One column as Python values."""


class ListColumns:
    """Columns of a text file, with the values of the file."""

    def __init__(self, columns: dict[str, list[Any]]) -> None:
        self.columns = columns

    def take(self, rows: Sequence[int]) -> "ListColumns":
        """Those of some readings."""
        return ListColumns({name: [values[row] for row in rows] for name, values in self.columns.items()})

    def values(self, name: str) -> list[Any]:
        """One column as Python values."""
        return self.columns[name]


def _rows_of(batch: Any, rows: Sequence[int]) -> Any:
    """Some rows of a `pyarrow.RecordBatch`; neighbours are not copied."""
    if isinstance(rows, range) and rows.step == 1:
        return batch.slice(rows.start, len(rows))
    return batch.take(np.asarray(rows, np.int64))


class TextColumns:
    """Columns of a CSV file that pyarrow has read: text. `batch` is a `pyarrow.RecordBatch` of strings."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch

    def take(self, rows: Sequence[int]) -> "TextColumns":
        """Those of some readings."""
        return TextColumns(_rows_of(self.batch, rows))

    def values(self, name: str) -> list[Any]:
        """One column as Python text."""
        return list(self.batch.column(name).to_pylist())


class ArrowColumns:
    """Columns of a Parquet file, which keep their types. `batch` is a `pyarrow.RecordBatch`."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch

    def take(self, rows: Sequence[int]) -> "ArrowColumns":
        """Those of some readings."""
        return ArrowColumns(_rows_of(self.batch, rows))

    def values(self, name: str) -> list[Any]:
        """One column as Python values.

        A float32 is the shortest number that reads back to it; times and durations finer than Python's are text.
        """
        column = self.batch.column(name)
        kind = str(column.type)
        if kind == "float":
            return [None if value is None else float(str(np.float32(value))) for value in column.to_pylist()]
        if kind.startswith(("timestamp[ns", "time64[ns")):
            return [None if text is None else text.replace(" ", "T") for text in column.cast("string").to_pylist()]
        if kind.startswith("duration["):
            unit = _UNITS_A_SECOND[kind[len("duration[") : -1]]
            return [None if value is None else _duration(value, unit) for value in column.cast("int64").to_pylist()]
        return list(column.to_pylist())


_UNITS_A_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def _duration(value: int, unit: int) -> str:
    """ISO 8601, in seconds."""
    seconds, rest = divmod(abs(value), unit)
    digits = f".{rest:0{len(str(unit)) - 1}d}".rstrip("0") if rest else ""
    return f"{'-' if value < 0 else ''}PT{seconds}{digits}S"


@dataclass(slots=True, frozen=True)
class Fault:
    """An unused reading: its line or row (from 1), the reason, and its text."""

    row: int
    reason: str
    text: str
    why: str = ""


@dataclass(slots=True, eq=False)
class Block:
    """A bounded number of readings, in the order of the file.

    Attributes:
        values: `[n, channels]` float32, NaN where missing; `[n, *shape]` of frames and of windows that came whole.
        rows: the line or row of each reading, from 1.
        text: the text of a reading, for the list of unused ones.
        keys: the streams; None where there is one.
        times: Unix seconds; None where they are not known.
        identities: the identity of each reading; None where they are not wanted.
        columns: the kept columns.
        faults: lines that are no readings.
        done: the part's weight that has been read with this block.
        lines: the number of lines or rows of this block, good or bad.
    """

    values: Floats
    rows: Sequence[int]
    text: Callable[[int], str]
    keys: list[str | None] | None = None
    times: list[float | None] | None = None
    identities: list[str | None] | None = None
    columns: Columns = field(default_factory=lambda: ListColumns({}))
    faults: list[Fault] = field(default_factory=list)
    done: int = 0
    lines: int = 0

    def __len__(self) -> int:
        return len(self.values)

    def take(self, rows: list[int]) -> "Block":
        """Some of the readings."""
        return Block(
            self.values[rows],
            [self.rows[row] for row in rows],
            lambda row: self.text(rows[row]),
            None if self.keys is None else [self.keys[row] for row in rows],
            None if self.times is None else [self.times[row] for row in rows],
            None if self.identities is None else [self.identities[row] for row in rows],
            self.columns.take(rows),
        )

    def part(self, start: int, stop: int) -> "Block":
        """The readings from `start` up to `stop`."""
        piece = slice(start, stop)
        return Block(
            self.values[piece],
            self.rows[piece],
            lambda row: self.text(start + row),
            None if self.keys is None else self.keys[piece],
            None if self.times is None else self.times[piece],
            None if self.identities is None else self.identities[piece],
            self.columns.take(range(start, stop)),
        )


@dataclass(frozen=True)
class Piece:
    """A range of one file: bytes of text, row groups of Parquet, rows of NumPy; `weight` is its share of the work."""

    path: str
    start: int
    stop: int
    weight: int


class Recording(Protocol):
    """One file that can be read."""

    whole: bool
    """Its items are windows already, and not readings."""

    has_time: bool | None
    """Its readings bring their time; None where only reading on will tell."""

    counts_bytes: bool
    """The weight of its pieces is in bytes; else in rows."""

    names_columns: bool
    """The file names its columns once; else every reading names its members."""

    schema: Any
    """The types of the kept columns, where the file has types; else None. Anything that can be compared."""

    def pieces(self, size: int | None) -> list[Piece]:
        """The file in pieces of about `size` bytes; None for one piece.

        Raises:
            RecordingError: the file is gone.
        """

    def blocks(self, piece: Piece, most: int) -> Iterator[Block]:
        """The readings of a piece, at most `most` at a time.

        Raises:
            RecordingError: the rest of the file cannot be read.
        """
