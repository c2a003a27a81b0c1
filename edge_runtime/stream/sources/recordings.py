"""Recorded files -> blocks of readings: CSV with a header row, JSON Lines, Parquet.

`open_recording` looks at the head of a file and refuses what cannot be played, before anything is. Guarantee: a file
is read in pieces of bounded size, whatever its length; a bad row is counted as the codecs count it, and skipped.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from edge_runtime.errors import ConfigError, TransientError
from edge_runtime.stream.codecs import Decoded, Decoder, make_decoder
from edge_runtime.stream.codecs.columns import Members, Rows, judge
from edge_runtime.stream.codecs.kind import IGNORED
from edge_runtime.stream.codecs.rows_of_text import unquoted_columns
from edge_runtime.stream.framing import LineFramer
from edge_runtime.stream.origin import Origin
from edge_runtime.system.counters import Counters

if TYPE_CHECKING:
    from edge_runtime.stream.sources.replay import ReplaySourceTable

BLOCK_READINGS = 256
_CHUNK_BYTES = 16_384
_FORMATS = {
    ".csv": "csv",
    ".txt": "csv",
    ".tsv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
}


class RecordingError(TransientError):
    """A file that could be opened can no longer be read."""


class Recording(Protocol):
    """One file that can be played.

    Attributes:
        has_time: whether its readings bring their time; None where only reading on will tell.
    """

    has_time: bool | None

    def blocks(self, counters: Counters) -> Iterator[Decoded]:
        """The readings, a bounded number at a time; a block may be empty.

        Raises:
            RecordingError: the file cannot be read on.
        """


def open_recording(
    path: Path, config: "ReplaySourceTable", channels: tuple[str, ...], shape: tuple[int, ...] | None
) -> Recording:
    """Look at a file and make ready to play it.

    Raises:
        ConfigError: it is not there, of no format that we know, or without a column that is needed.
    """
    name = config.format if config.format != "auto" else _FORMATS.get(path.suffix.lower())
    if name is None:
        raise ConfigError(
            f"{path}: expected .csv, .jsonl or .parquet, found {path.suffix or 'no suffix'}: set `format`"
        )
    if shape is not None and name != "jsonl":
        raise ConfigError(f"{path}: expected JSON Lines for a model of whole frames, found {name}")
    members = Members(channels, config.key, config.time, str(path))
    try:
        if name == "parquet":
            return _ParquetRecording(path, members)
        if name == "csv":
            return _open_csv(path, config, members)
        return _LinesRecording(path, config.max_frame_bytes, _json_decoder(config, members, shape), has_time=None)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error


def _json_decoder(config: "ReplaySourceTable", members: Members, shape: tuple[int, ...] | None) -> Decoder:
    return make_decoder(
        "json", members.channels, shape=shape, key_field=config.key, time_field=config.time, place=members.place
    )


def _open_csv(path: Path, config: "ReplaySourceTable", members: Members) -> Recording:
    with path.open("rb") as file:
        head, row = file.readline(config.max_frame_bytes), file.readline(config.max_frame_bytes)
    columns = _header(head, config.delimiter)
    if len(_header(row, config.delimiter)) == len(columns) + 1:
        columns = [IGNORED, *columns]  # R writes a column of row names that its header does not name
    _check_columns(columns, members)
    decoder = make_decoder(
        "csv",
        members.channels,
        fields=[_wanted(column, members) for column in columns],
        key_field=config.key,
        time_field=config.time,
        delimiter=config.delimiter,
        place=members.place,
    )
    return _LinesRecording(path, config.max_frame_bytes, decoder, has_time=config.time in columns, header=True)


def _header(line: bytes, delimiter: str) -> list[str]:
    text = line.decode("utf-8-sig", "replace").rstrip("\r\n")
    return [column.strip() for column in unquoted_columns(text, delimiter)]


def _wanted(column: str, members: Members) -> str:
    """The column's name, if anybody wants it: what is ignored may have any name, and any twice."""
    return column if column in {*members.channels, *members.origin_names()} else IGNORED


def _check_columns(columns: list[str], members: Members) -> None:
    needed = [*members.channels, *([members.key] if members.key is not None else [])]
    missing = [name for name in needed if name not in columns]
    if missing:
        raise ConfigError(
            f"{members.place}: expected a column for each of {', '.join(needed)}, found none for {', '.join(missing)}; "
            f"its columns are {', '.join(columns)}"
        )


class _LinesRecording:
    """A text file with a reading, or an array of readings, on each line."""

    def __init__(
        self, path: Path, max_frame_bytes: int, decoder: Decoder, *, has_time: bool | None, header: bool = False
    ) -> None:
        self.has_time = has_time
        self._path = path
        self._max_frame_bytes = max_frame_bytes
        self._decoder = decoder
        self._header = header
        path.open("rb").close()

    def blocks(self, counters: Counters) -> Iterator[Decoded]:
        """The readings, a bounded number at a time; a block may be empty."""
        framer = LineFramer(self._max_frame_bytes, counters)
        if not self._header:
            framer.feed(b"\n")  # there is no half a line at the beginning of a file
        try:
            with self._path.open("rb") as file:
                while chunk := file.read(_CHUNK_BYTES):
                    counters.counts["bytes"] += len(chunk)
                    yield from self._decoded(framer.feed(chunk), counters)
                yield from self._decoded(framer.feed(b"\n"), counters)
        except OSError as error:
            raise RecordingError(f"{self._path}: cannot be read on: {error.strerror or error}") from error

    def _decoded(self, frames: list[bytes], counters: Counters) -> Iterator[Decoded]:
        for start in range(0, len(frames), BLOCK_READINGS):
            yield self._decoder.decode(frames[start : start + BLOCK_READINGS], counters)


class _ParquetRecording:
    """A Parquet file with a column a channel, read a part of a row group at a time."""

    def __init__(self, path: Path, members: Members) -> None:
        try:
            from pyarrow import ArrowException, parquet, types  # noqa: PLC0415 - an extra, and slow to load
        except ImportError as error:
            raise ConfigError(
                f"{path}: Parquet files need pyarrow, which is not installed: "
                "pip install 'edge-inference-runtime[batch]'"
            ) from error
        self._errors: tuple[type[Exception], ...] = (OSError, ArrowException)
        self._types: Any = types
        self._open: Callable[[], Any] = lambda: parquet.ParquetFile(path)
        self._members = members
        try:
            with self._open() as file:
                schema = file.schema_arrow
        except ArrowException as error:
            raise ConfigError(f"{path}: expected a Parquet file, found none: {error}") from error
        _check_columns(schema.names, members)
        for channel in members.channels:
            kind = schema.field(channel).type
            if not (types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind)):
                raise ConfigError(f"{path}: column {channel}: expected numbers, found {kind}")
        self._origin = [name if name in schema.names else None for name in members.origin_names()]
        self.has_time: bool | None = self._origin[0] is not None

    def blocks(self, counters: Counters) -> Iterator[Decoded]:
        """The readings, a bounded number at a time; a block may be empty."""
        columns = [*self._members.channels, *(name for name in self._origin if name is not None)]
        try:
            with self._open() as file:
                for batch in file.iter_batches(BLOCK_READINGS, columns=columns, use_threads=False):
                    yield self._decoded(batch, counters)
        except self._errors as error:
            raise RecordingError(f"{self._members.place}: cannot be read on: {error}") from error

    def _decoded(self, batch: Any, counters: Counters) -> Decoded:
        channels = [
            np.asarray(batch.column(name).to_numpy(zero_copy_only=False), dtype=np.float64)
            for name in self._members.channels
        ]
        origins = [self._values(batch, name) for name in self._origin]
        rows = Rows(
            list(range(batch.num_rows)),
            [Origin(*values) for values in zip(*origins, strict=True)],
            np.column_stack(channels),
        )
        return judge(rows, (len(channels),), counters, keyed=self._members.key is not None)

    def _values(self, batch: Any, name: str | None) -> list[Any]:
        if name is None:
            return [None] * int(batch.num_rows)
        column = batch.column(name)
        if self._types.is_timestamp(column.type):
            import pyarrow as pa  # noqa: PLC0415 - an extra, and slow to load

            moments = column.cast(pa.timestamp("us", column.type.tz), safe=False).to_pylist()
            return [None if moment is None else moment.isoformat() for moment in moments]
        return list(column.to_pylist())
