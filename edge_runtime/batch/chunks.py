"""Scored windows on disk: the file of one part, which a worker writes and the writer of the output reads once.

A part is a row of records, each a length and a MessagePack body, so that neither side holds more than one record. It
needs no pyarrow, except where columns of a Parquet file are kept, which travel as Arrow so that they keep their types.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_runtime.bundle.model import Scores
from edge_runtime.recordings.blocks import ArrowColumns, Columns, ListColumns, TextColumns

_LENGTH_BYTES = 8
_ARRAYS: dict[str, Any] = {"label": np.int64, "scores": np.float32, "value": np.float32, "score": np.float32}


class Sink(Protocol):
    """What is written to."""

    def write(self, data: bytes, /) -> object:
        """Append."""


class Chunk:
    """Some scored windows, in order, and the kept columns of each."""

    def __init__(self, count: int, scores: Scores, columns: Columns) -> None:
        self.count = count
        self.scores = scores
        self.columns = columns


class _Record(msgspec.Struct, array_like=True):
    count: int
    arrays: dict[str, bytes]
    lists: dict[str, list[Any]] | None
    arrow: bytes | None
    ports: dict[str, tuple[str, tuple[int, ...]]] | None = None  # type and shape of each array of `Scores.tensors`
    typed: bool = True  # whether the Arrow columns have types; else they are the text of a CSV file


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Record).decode


def write_chunk(file: Sink, chunk: Chunk) -> None:
    """Append one record."""
    arrays = chunk.scores.arrays()
    present = {name: array.tobytes() for name, array in arrays.items()}
    ports = {name: (str(array.dtype), array.shape[1:]) for name, array in arrays.items()}
    named = ports if chunk.scores.is_named else None
    columns = chunk.columns
    if isinstance(columns, ArrowColumns | TextColumns):
        typed = isinstance(columns, ArrowColumns)
        record = _Record(chunk.count, present, None, _arrow_bytes(columns.batch), named, typed)
    else:
        assert isinstance(columns, ListColumns)
        record = _Record(chunk.count, present, columns.columns, None, named)
    body = _encode(record)
    file.write(len(body).to_bytes(_LENGTH_BYTES, "little"))
    file.write(body)


def read_chunks(path: Path) -> Iterator[Chunk]:
    """The records of a complete part."""
    with path.open("rb") as file:
        while length := file.read(_LENGTH_BYTES):
            record = _decode(file.read(int.from_bytes(length, "little")))
            arrays = {name: _array(record, name) for name in record.arrays}
            columns: Columns = ListColumns(record.lists or {})
            if record.arrow is not None:
                import pyarrow as pa  # noqa: PLC0415 - it was there when the part was written

                batch = pa.ipc.open_stream(record.arrow).read_next_batch()
                columns = ArrowColumns(batch) if record.typed else TextColumns(batch)
            yield Chunk(record.count, Scores.of(arrays, named=record.ports is not None), columns)


def _array(record: _Record, name: str) -> NDArray[Any]:
    if record.ports is not None:
        kind, shape = record.ports[name]
        return np.frombuffer(record.arrays[name], kind).reshape(record.count, *shape)
    found = np.frombuffer(record.arrays[name], _ARRAYS[name])
    return found.reshape(record.count, -1) if name in {"scores", "value"} else found


def _arrow_bytes(batch: Any) -> bytes:
    import pyarrow as pa  # noqa: PLC0415 - the columns came from it

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    return bytes(sink.getvalue())
