"""Columns from the names of a file's folders, such as `room=kitchen/`, as text beside those of the file."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from edge_runtime.recordings.blocks import (
    ArrowColumns,
    Block,
    Columns,
    ListColumns,
    Piece,
    Recording,
    TextColumns,
    Wanted,
)
from edge_runtime.stream.origin import RejectedError


class HiveRecording:
    """A file, and the columns from its folders."""

    def __init__(self, recording: Recording, wanted: Wanted, given: dict[str, str | None], path: str) -> None:
        self._recording = recording
        self._given = {name: given[name] for name in wanted.columns if name in given}
        self._key: str | None = None
        self._bad_key = False
        if wanted.key in given:
            try:
                self._key = wanted.roles(path).read_key(given[wanted.key])
            except RejectedError:
                self._bad_key = True
        self.names_columns = recording.names_columns
        self.whole = recording.whole
        self.has_time = recording.has_time
        self.counts_bytes = recording.counts_bytes
        self.schema: Any = recording.schema if recording.schema is None else (recording.schema, tuple(self._given))

    @staticmethod
    def without(wanted: Wanted, given: dict[str, str | None]) -> Wanted:
        """The columns to read from the file itself."""
        columns = tuple(name for name in wanted.columns if name not in given)
        return replace(wanted, columns=columns, key=None if wanted.key in given else wanted.key)

    def pieces(self, size: int | None) -> list[Piece]:
        """Those of the file."""
        return self._recording.pieces(size)

    def blocks(self, piece: Piece, most: int) -> Iterator[Block]:
        """The columns of the file with those of its folders."""
        for block in self._recording.blocks(piece, most):
            count = len(block)
            if self._given and count:
                block.columns = _with(block.columns, self._given, count)
            if self._key is not None:
                block.keys = [self._key] * count
            yield block


def _with(columns: Columns, given: dict[str, str | None], count: int) -> Columns:
    if isinstance(columns, ListColumns):
        return ListColumns(columns.columns | {name: [value] * count for name, value in given.items()})
    assert isinstance(columns, ArrowColumns | TextColumns)
    import pyarrow as pa  # noqa: PLC0415 - the columns came from it

    batch = columns.batch
    for name, value in given.items():
        batch = batch.append_column(name, pa.array([value] * count, pa.string()))
    return type(columns)(batch)
