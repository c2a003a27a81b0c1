"""Parquet: columns of numbers, read a bounded number of rows at a time. Needs pyarrow, the extra `batch`."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.recordings.blocks import (
    ArrowColumns,
    Block,
    Fault,
    ListColumns,
    MissingColumnsError,
    Piece,
    RecordingError,
    Wanted,
)
from edge_runtime.recordings.columns_of_arrow import key_names, numbers_of
from edge_runtime.recordings.locations import Place
from edge_runtime.recordings.origins import identities
from edge_runtime.stream.codecs.columns import CategoryIndex
from edge_runtime.stream.origin import Origin, RejectedError, read_time_text

NEEDS_PYARROW = "Parquet needs pyarrow, which is not installed: pip install 'edge-inference-runtime[batch]'"


class ParquetRecording:
    """A Parquet file with a column for each channel."""

    whole = False
    counts_bytes = False
    names_columns = True

    def __init__(self, path: Place, wanted: Wanted) -> None:
        try:
            import pyarrow as pa  # noqa: PLC0415 - an extra, and slow to load
            from pyarrow import parquet  # noqa: PLC0415
        except ImportError as error:
            raise RecordingError(f"{path}: {NEEDS_PYARROW}") from error
        self._pa: Any = pa
        self._errors: tuple[type[Exception], ...] = (OSError, pa.ArrowException)
        remote = not isinstance(path, Path)
        self._whys: dict[str, str] = {}
        self._meta: Any = None  # read once
        self._open: Any = lambda: parquet.ParquetFile(
            path.open("rb") if remote else pa.OSFile(str(path)),
            metadata=self._meta,
            memory_map=False,
            pre_buffer=remote,
        )
        self._path = path
        self._wanted = wanted
        if wanted.framed:
            raise RecordingError(f"{path}: expected JSON Lines or NumPy for a model of whole frames, found Parquet")
        try:
            with self._open() as file:
                schema, meta = file.schema_arrow, file.metadata
                self._meta = meta
                self._groups = [
                    (meta.row_group(i).num_rows, meta.row_group(i).total_byte_size) for i in range(meta.num_row_groups)
                ]
        except pa.ArrowException as error:
            raise RecordingError(f"{path}: expected a Parquet file, found none: {_first_line(error)}") from error
        self._check(schema)
        self._roles = wanted.roles(str(path))
        self._time, self._id, self._seq, self._key = (
            name if name in schema.names else None for name in self._roles.origin_names()
        )
        self.has_time: bool | None = self._time is not None
        self.schema: Any = None
        if wanted.columns:
            self.schema = pa.schema([schema.field(name).remove_metadata() for name in wanted.columns])

    def pieces(self, size: int | None) -> list[Piece]:
        """Whole row groups of about `size` bytes together; the weight is in rows."""
        found: list[Piece] = []
        start = rows = held = 0
        for index, (count, length) in enumerate(self._groups):
            rows, held = rows + count, held + length
            if index + 1 == len(self._groups) or (size is not None and held >= size):
                found.append(Piece(str(self._path), start, index + 1, rows))
                start, rows, held = index + 1, 0, 0
        return found or [Piece(str(self._path), 0, 0, 0)]

    def blocks(self, piece: Piece, most: int) -> Iterator[Block]:
        """The readings of a piece, at most `most` at a time."""
        origins = [name for name in (self._time, self._id, self._seq, self._key) if name is not None]
        columns = list(dict.fromkeys([*self._wanted.channels, *self._wanted.columns, *origins]))
        groups = list(range(piece.start, piece.stop))
        try:
            with self._open() as file:
                row = 1
                for batch in file.iter_batches(most, row_groups=groups, columns=columns, use_threads=False):
                    yield self._block(batch, row)
                    row += batch.num_rows
        except self._errors as error:
            raise RecordingError(f"{self._path}: cannot be read on: {_first_line(error)}") from error

    def _check(self, schema: Any) -> None:
        wanted, types = self._wanted, self._pa.types
        needed = tuple(dict.fromkeys([*wanted.channels, *([wanted.key] if wanted.key else []), *wanted.columns]))
        missing = [name for name in needed if name not in schema.names]
        if missing:
            raise MissingColumnsError(
                f"{self._path}: expected a column for each of {', '.join(needed)}, found none for "
                f"{', '.join(missing)}; its columns are {', '.join(schema.names)}",
                missing,
            )
        used = {*needed, *(name for name in wanted.roles(str(self._path)).origin_names() if name is not None)}
        doubled = [name for name, count in Counter(schema.names).items() if count > 1 and name in used]
        if doubled:
            raise RecordingError(
                f"{self._path}: expected one column {doubled[0]}, found {schema.names.count(doubled[0])}: "
                "rename one of them"
            )
        for channel in wanted.channels:
            kind = schema.field(channel).type
            if channel in wanted.categories and _holds_text(types, kind):
                continue
            if not (types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind)):
                raise RecordingError(f"{self._path}: column {channel}: expected numbers, found {kind}")

    def _block(self, batch: Any, row: int) -> Block:
        wanted, count = self._wanted, batch.num_rows
        values = np.empty((count, len(wanted.channels)), np.float32)
        for place, name in enumerate(wanted.channels):
            if name in wanted.categories:
                _fill_categories(values[:, place], batch.column(name), wanted.categories[name])
            else:
                _fill(values[:, place], batch.column(name))
        numbers = range(row, row + count)

        def text(index: int) -> str:
            return str({name: batch.column(name)[index].as_py() for name in wanted.channels})

        kept = ArrowColumns(batch.select(list(wanted.columns))) if wanted.columns else ListColumns({})
        block = Block(values, numbers, text, columns=kept)
        reasons: dict[int, str] = {}
        if self._time is not None:
            block.times = self._times(batch.column(self._time), reasons)
        if self._key is not None:
            block.keys = key_names(batch.column(self._key), reasons, self._roles.read_key)
        if wanted.members is not None:
            block.identities = self._identities(batch, reasons)
        if reasons:
            faults = [
                Fault(numbers[index], reason, text(index), self._whys.get(reason, ""))
                for index, reason in sorted(reasons.items())
            ]
            block = block.take([index for index in range(count) if index not in reasons])
            block.faults = faults
        block.done = block.lines = count
        return block

    def _times(self, column: Any, reasons: dict[int, str]) -> list[float | None]:
        """Unix seconds, of timestamps, durations, numbers or text."""
        pa = self._pa
        if pa.types.is_timestamp(column.type):
            micros = column.cast(pa.timestamp("us", column.type.tz), safe=False).cast(pa.int64()).to_pylist()
            raw: list[Any] = [None if moment is None else moment / 1e6 for moment in micros]
        elif pa.types.is_duration(column.type):  # since the start of the recording
            micros = column.cast(pa.duration("us"), safe=False).cast(pa.int64()).to_pylist()
            raw = [None if moment is None else moment / 1e6 for moment in micros]
        elif pa.types.is_date(column.type):
            millis = column.cast(pa.timestamp("ms")).cast(pa.int64()).to_pylist()
            raw = [None if moment is None else moment / 1e3 for moment in millis]
        else:
            return self._read_times(column.to_pylist(), self._roles.reader.read_text, reasons)
        return self._read_times(raw, read_time_text, reasons)

    def _read_times(self, raw: list[Any], read: Any, reasons: dict[int, str]) -> list[float | None]:
        times: list[float | None] = []
        for index, value in enumerate(raw):
            try:
                times.append(read(value))
            except RejectedError as error:
                times.append(None)
                reasons[index] = error.reason
                self._whys.setdefault(error.reason, error.why)
        return times

    def _identities(self, batch: Any, reasons: dict[int, str]) -> list[str | None]:
        """The identity of each reading."""
        parts = [self._plain(batch, name) for name in (self._time, self._id, self._seq)]
        return identities([Origin(*values) for values in zip(*parts, strict=True)], reasons)

    def _plain(self, batch: Any, name: str | None) -> list[Any]:
        if name is None:
            return [None] * int(batch.num_rows)
        column = batch.column(name)
        if self._pa.types.is_timestamp(column.type):
            moments = column.cast(self._pa.timestamp("us", column.type.tz), safe=False).to_pylist()
            return [None if moment is None else moment.isoformat() for moment in moments]
        return ArrowColumns(batch.select([name])).values(name)


def _fill(into: NDArray[np.float32], column: Any) -> None:
    """A column as float32, through float64 unless it is float32 already, as in the codecs; null is NaN."""
    found = numbers_of(column)
    if found.dtype != np.float32:
        found = found.astype(np.float64, copy=False)
    with np.errstate(over="ignore"):
        into[:] = found


def _holds_text(types: Any, kind: Any) -> bool:
    """Whether a column may hold categories: text, whole numbers, true and false."""
    if types.is_dictionary(kind):
        kind = kind.value_type
    return bool(
        types.is_string(kind) or types.is_large_string(kind) or types.is_boolean(kind) or types.is_integer(kind)
    )


def _fill_categories(into: NDArray[np.float32], column: Any, categories: tuple[str, ...]) -> None:
    """The indexes of categories; each distinct value is looked up once."""
    encoded = column.dictionary_encode() if not hasattr(column, "dictionary") else column
    index = CategoryIndex(categories)
    places = [index(value) for value in encoded.dictionary.to_pylist()]
    into[:] = [
        np.nan if place is None or places[place] is None else places[place] for place in encoded.indices.to_pylist()
    ]


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300]
