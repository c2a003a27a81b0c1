"""NumPy: `.npy` with readings or windows; `.npz` with `x` and columns of one value for each row, such as `y`.

Pickles are refused. Arrays are read a bounded number of rows at a time, inside an archive too.
"""

import contextlib
import zipfile
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from edge_runtime.recordings.blocks import Block, Fault, ListColumns, Piece, RecordingError, Wanted
from edge_runtime.recordings.locations import Place
from edge_runtime.recordings.origins import identities
from edge_runtime.stream.origin import Origin, RejectedError

READINGS = "x"


class _Rows:
    """The rows of one array, in order, from a file or from inside an archive."""

    def __init__(self, file: IO[bytes], place: str) -> None:
        self._file = file
        self._place = place
        try:
            version = npy.read_magic(file)
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            self.shape, fortran, self.dtype = read(file)
        except (ValueError, EOFError, OSError) as error:
            raise RecordingError(f"{place}: expected a NumPy array, found none: {error}") from error
        if self.dtype.hasobject:
            raise RecordingError(f"{place}: expected numbers or text, found Python objects, which are never loaded")
        if not self.shape or (fortran and len(self.shape) > 1):
            raise RecordingError(f"{place}: expected rows one after the other (order C), found {self.shape}")
        self._row_bytes = self.dtype.itemsize * int(np.prod(self.shape[1:]))

    def read(self, count: int) -> NDArray[Any]:
        """The next `count` rows."""
        wanted = count * self._row_bytes
        parts = []
        while wanted and (part := self._file.read(min(wanted, 1 << 22))):
            parts.append(part)
            wanted -= len(part)
        if wanted:
            raise RecordingError(f"{self._place}: expected {self.shape[0]} rows, found an end before")
        return np.frombuffer(b"".join(parts), self.dtype).reshape(count, *self.shape[1:])


class NumpyRecording:
    """A NumPy file of readings `[n, channels]`, or of windows `[n, length, channels]`, or of frames."""

    counts_bytes = False
    names_columns = True
    schema = None

    def __init__(self, path: Place, wanted: Wanted) -> None:
        self._path = path
        self._wanted = wanted
        self._roles = wanted.roles(str(path))
        self._origins: list[str | None] = [None] * 4
        with contextlib.ExitStack() as stack:
            rows = self._open(stack)
            shape, kind = rows[READINGS].shape, rows[READINGS].dtype
            for name in wanted.columns:
                if rows[name].shape != shape[:1]:
                    raise RecordingError(
                        f"{path}: {name}: expected one value for each of {shape[0]} rows, found {rows[name].shape}"
                    )
        if kind.kind not in "fiub":
            raise RecordingError(f"{path}: expected numbers, found {kind}")
        self.whole = shape[1:] == wanted.shape
        if not self.whole and (wanted.framed or shape[1:] != (len(wanted.channels),)):
            kinds = [] if wanted.shape is None else [f"windows [n, {', '.join(map(str, wanted.shape))}]"]
            kinds += [] if wanted.framed else [f"readings [n, {len(wanted.channels)}]"]
            raise RecordingError(f"{path}: expected {' or '.join(kinds)}, found {list(shape)}")
        self._count = shape[0]
        self.has_time: bool | None = self._origins[0] is not None

    def pieces(self, size: int | None) -> list[Piece]:
        """The file is one piece: reading an archive cannot begin in the middle."""
        del size
        return [Piece(str(self._path), 0, self._count, self._count)]

    def blocks(self, piece: Piece, most: int) -> Iterator[Block]:
        """The readings, at most `most` at a time."""
        with contextlib.ExitStack() as stack:
            rows = self._open(stack)
            try:
                for start in range(0, piece.stop, most):
                    count = min(most, piece.stop - start)
                    yield self._block({name: each.read(count) for name, each in rows.items()}, start + 1)
            except (OSError, zipfile.BadZipFile, EOFError) as error:
                raise RecordingError(f"{self._path}: cannot be read on: {error}") from error

    def _open(self, stack: contextlib.ExitStack) -> dict[str, _Rows]:
        wanted = self._wanted
        if self._path.suffix.lower() == ".npy":
            needed = tuple(dict.fromkeys([*([wanted.key] if wanted.key else []), *wanted.columns]))
            if needed:
                raise RecordingError(f"{self._path}: an .npy file has no columns, so no {', '.join(needed)}")
            return {READINGS: _Rows(stack.enter_context(self._path.open("rb")), str(self._path))}
        try:
            archive = stack.enter_context(zipfile.ZipFile(stack.enter_context(self._path.open("rb"))))
        except zipfile.BadZipFile as error:
            raise RecordingError(f"{self._path}: expected an .npz archive, found none: {error}") from error
        names = {name.removesuffix(".npy") for name in archive.namelist()}
        needed = (READINGS, *([wanted.key] if wanted.key else []), *wanted.columns)
        missing = [name for name in needed if name not in names]
        if missing:
            raise RecordingError(
                f"{self._path}: expected an array called {' and '.join(missing)}, found {', '.join(sorted(names))}"
            )
        self._origins = [name if name in names else None for name in self._roles.origin_names()]
        return {
            name: _Rows(stack.enter_context(archive.open(f"{name}.npy")), f"{self._path}: {name}")
            for name in dict.fromkeys((*needed, *(name for name in self._origins if name is not None)))
        }

    def _block(self, arrays: dict[str, NDArray[Any]], row: int) -> Block:
        found, wanted = arrays.pop(READINGS), self._wanted
        with np.errstate(over="ignore"):
            values = found.astype(np.float32)
        columns = {name: array.tolist() for name, array in arrays.items()}
        count = len(values)
        numbers = range(row, row + count)

        def text(index: int) -> str:
            return " ".join(map(str, found[index].ravel()[:32].tolist()))

        block = Block(values, numbers, text, columns=ListColumns(columns))
        reasons: dict[int, str] = {}
        time, id_, seq, key = self._origins
        if key is not None:
            block.keys = [
                _origin(self._roles.read_key, value, index, reasons) for index, value in enumerate(columns[key])
            ]
        if time is not None:
            block.times = [
                _origin(self._roles.reader.read_text, value, index, reasons)
                for index, value in enumerate(columns[time])
            ]
        if wanted.members is not None:
            nothing = [None] * count
            parts = [nothing if name is None else columns[name] for name in (time, id_, seq)]
            block.identities = identities([Origin(*values) for values in zip(*parts, strict=True)], reasons)
        if reasons:
            faults = [Fault(numbers[index], reason, text(index)) for index, reason in sorted(reasons.items())]
            block = block.take([index for index in range(count) if index not in reasons])
            block.faults = faults
        block.done = block.lines = count
        return block


def _origin(read: Any, value: Any, index: int, reasons: dict[int, str]) -> Any:
    try:
        return read(value)
    except RejectedError as error:
        reasons.setdefault(index, error.reason)
        return None
