"""CSV with a header row: pyarrow reads it where it is installed, and the codec of the stream where it is not.

::

    bytes ──> csv_rows.py ──> arrow_csv.py   blocks in which every row is good
              whole rows  └─> csv_codec.py   every other row: by itself, with its reason

Both give the same readings: pyarrow reads numbers as float64 and converts them to float32, as the codec does. A block
with other content is halved until only the rows for the codec are left. Memory is bounded by a block of text and one
row of at most 16 MiB. Weak points: a file with many bad rows is read at the codec's speed; a compressed, recoded or
remote file is one piece.
"""

import itertools
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from edge_runtime.readings import Floats
from edge_runtime.recordings.arrow_csv import arrow_reader
from edge_runtime.recordings.blocks import (
    ENDLESS,
    Block,
    Fault,
    ListColumns,
    MissingColumnsError,
    Piece,
    RecordingError,
    Wanted,
)
from edge_runtime.recordings.byte_streams import is_plain, open_bytes, other_kind, plain_suffix
from edge_runtime.recordings.csv_rows import count_lines, last_row_end, longest_line, rows
from edge_runtime.recordings.folder import end_of_lines, is_part
from edge_runtime.recordings.locations import Place
from edge_runtime.stream.codecs.csv_codec import CsvDecoder, delimiter_mistakes
from edge_runtime.stream.codecs.kind import IGNORED, column_mistakes
from edge_runtime.stream.codecs.rows_of_text import SPACES, row_columns, split_columns, unquoted_columns
from edge_runtime.system.counters import Counters

BLOCK_BYTES = 1 << 20
LEAST_BLOCK_BYTES = 1 << 16
FEW_BYTES = 1 << 13  # the codec reads a smaller block with a bad row


def open_csv(path: Place, wanted: Wanted) -> "CsvRecording":
    """A CSV file with a header row.

    Raises:
        RecordingError: it has no header, lacks a column, or the header has another number of columns than the rows.
    """
    delimiter = wanted.delimiter or ("\t" if plain_suffix(path) == ".tsv" else ",")
    if wanted.framed:
        raise RecordingError(f"{path}: expected JSON Lines or NumPy for a model of whole frames, found csv")
    if wanted.decimal == delimiter:
        raise RecordingError(
            f"{path}: expected another delimiter than the decimal {wanted.decimal!r}: add --delimiter, such as ';'"
        )
    with open_bytes(path, wanted.encoding) as file:
        head, header, first = _head(file, path, delimiter, wanted)
    needed = tuple(dict.fromkeys([*wanted.channels, *([wanted.key] if wanted.key else []), *wanted.columns]))
    _check_names(path, header, needed, delimiter)
    roles = wanted.roles(str(path))
    used = {*needed, *(name for name in roles.origin_names() if name is not None)}
    doubled = [name for name, count in Counter(header).items() if count > 1 and name in used]
    if doubled:
        places = [str(index + 1) for index, name in enumerate(header) if name == doubled[0]]
        raise RecordingError(
            f"{path}: expected one column {doubled[0]}, found {len(places)}: columns {' and '.join(places)}: "
            "rename one of them in the header"
        )
    end = end_of_lines(path) if isinstance(path, Path) and is_part(path) else None
    if first is not None and (end is None or end > head):
        _check_width(path, header, first, wanted)
    columns = [IGNORED] * wanted.index_column + header + [IGNORED] * wanted.trailing_delimiter
    return CsvRecording(path, wanted, columns, delimiter=delimiter, skip=head, end=end)


def _head(file: IO[bytes], path: Place, delimiter: str, wanted: Wanted) -> tuple[int, list[str], list[str] | None]:
    """The length of the header in bytes, its names, and the columns of the first row behind it."""
    buffer = file.read(LEAST_BLOCK_BYTES)
    if (other := other_kind(buffer)) is not None:
        raise RecordingError(f"{path}: expected {wanted.encoding}, found {other}")
    while True:
        more = file.read(LEAST_BLOCK_BYTES)
        found = []
        for start, end in rows(buffer, delimiter, -1 if not buffer else _width_of(buffer, delimiter), final=not more):
            found.append((start, end))
            if len(found) > 1 and buffer[start:end].strip():
                break
        if not more or (len(found) > 1 and buffer[found[-1][0] : found[-1][1]].strip()):
            break
        if len(buffer) + len(more) > wanted.max_line_bytes:
            break
        buffer += more
    if b"\r" in buffer and b"\n" not in buffer:
        raise RecordingError(
            f"{path}: expected lines that end with LF, or CR and LF, found CR alone: convert them, such as by tr"
        )
    if not found:
        return 0, [], None
    line = buffer[: found[0][1]]
    try:
        line.decode()
    except UnicodeDecodeError as error:
        raise RecordingError(
            f"{path}: expected a header in UTF-8, found byte {line[error.start]:#x}: add --encoding, such as latin-1"
        ) from error
    row = buffer[found[-1][0] : found[-1][1]] if len(found) > 1 else b""
    return found[0][1], _names(line, delimiter), _names(row, delimiter) if row.strip() else None


def _width_of(buffer: bytes, delimiter: str) -> int:
    """The number of columns in the first line of the header."""
    return len(_names(buffer.partition(b"\n")[0], delimiter))


def _names(line: bytes, delimiter: str) -> list[str]:
    text = line.decode("utf-8-sig", "replace").rstrip("\r\n")
    if delimiter == SPACES:  # names may be quoted here too
        return [column.strip('"') for column in split_columns(text, delimiter)]
    return [column.strip() for column in unquoted_columns(text, delimiter)]


def _check_names(path: Place, header: list[str], needed: Sequence[str], delimiter: str) -> None:
    if not any(header):
        raise RecordingError(f"{path}: expected a header row that names the columns, found none")
    missing = [name for name in needed if name not in header]
    if not missing:
        return
    hint = ""
    lower = {name.lower() for name in header}
    if header[0].startswith("#") or header[0].lower().startswith("sep="):
        hint = f": take the lines above the header away, of which the first begins with {header[0][:40]!r}"
    elif all(name.lower() in lower for name in missing):
        hint = ": names differ by upper and lower case: write them as the bundle does"
    elif len(header) == 1:
        other = [mark for mark in ";\t,|" if mark != delimiter and len(header[0].split(mark)) > 1]
        hint = f": is its delimiter {other[0]!r}? add --delimiter '{other[0]}'" if other else ""
    raise MissingColumnsError(
        f"{path}: expected a column for each of {', '.join(needed)}, found none for {', '.join(missing)}; "
        f"its columns are {', '.join(header)}{hint}",
        missing,
    )


def _check_width(path: Place, header: list[str], row: list[str], wanted: Wanted) -> None:
    """Refuse a file whose first row has a wrong number of columns; later rows are checked one by one."""
    found, names = len(row), len(header)
    if wanted.trailing_delimiter and found == names + wanted.index_column:
        raise RecordingError(
            f"{path}: expected rows that end with a delimiter (--trailing-delimiter), found a first row that does "
            "not: leave --trailing-delimiter out"
        )
    if wanted.index_column and found == names:
        raise RecordingError(
            f"{path}: expected a first column that the header does not name (--index-column), found a name for each of "
            f"the {names} columns: leave --index-column out"
        )
    if not wanted.index_column and not wanted.trailing_delimiter and found == names + 1:
        ends = not row[-1].strip()
        where = "ends with a delimiter" if ends else f"begins with {row[0][:40]!r}"
        raise RecordingError(
            f"{path}: expected the {names} columns that its header names, found {found} in the first row, which "
            f"{where}: "
            + (
                "take the delimiter off, or allow it (trailing delimiter)"
                if ends
                else "if the first column holds row names, add --index-column"
            )
            + ", or name every column in the header"
        )
    if found == names - 1 and not header[-1]:
        raise RecordingError(
            f"{path}: expected the {names} columns of its header, which ends with a delimiter, found {found} in the "
            "first row: take the delimiter off the header"
        )


class CsvRecording:
    """A CSV file with a known header."""

    whole = False
    counts_bytes = True
    names_columns = True
    schema = None

    def __init__(
        self, path: Place, wanted: Wanted, columns: list[str], *, delimiter: str, skip: int, end: int | None = None
    ) -> None:
        self._path = path
        self._end = end  # of what is read of it; None: all
        self._wanted = wanted
        self._delimiter = delimiter
        self._width = len(columns)
        self._skip = skip
        self._plain = is_plain(path, wanted.encoding)
        roles = wanted.roles(str(path))
        taken = {*roles.channels, *(name for name in roles.origin_names() if name is not None)}
        self.has_time: bool | None = roles.time in columns
        self._places = {name: columns.index(name) for name in wanted.columns}
        fields = tuple(name if name in taken else IGNORED for name in columns)
        mistakes = [*delimiter_mistakes(delimiter, str(path)), *column_mistakes(fields, roles)]
        if mistakes:
            raise RecordingError("\n".join(mistakes))
        self._decoder = CsvDecoder(fields, roles, delimiter, decimal=wanted.decimal)
        self._arrow = arrow_reader(columns, wanted, roles, delimiter)

    def pieces(self, size: int | None) -> list[Piece]:
        """The file in pieces of about `size` bytes, each of whole rows."""
        try:
            total = self._path.stat().st_size if self._end is None else self._end
            bounds = [0, total]
            if self._plain and size and total > size and isinstance(self._path, Path):
                bounds = self._bounds(total, size)
        except OSError as error:
            raise RecordingError(f"{self._path}: cannot be read: {error.strerror or error}") from error
        if not self._plain:
            return [Piece(str(self._path), 0, ENDLESS, total)]
        return [Piece(str(self._path), a, b, b - a) for a, b in itertools.pairwise(bounds)]

    def _bounds(self, total: int, size: int) -> list[int]:
        """The starts of pieces. In a file with quotes, rows must be followed from its start."""
        bounds = [0]
        with self._path.open("rb") as file:
            if self._delimiter == SPACES or not any(b'"' in data for data in iter(lambda: file.read(BLOCK_BYTES), b"")):
                for start in range(size, total, size):
                    file.seek(start - 1)
                    while (data := file.readline(BLOCK_BYTES)) and not data.endswith(b"\n"):
                        pass
                    bounds.append(file.tell())
            else:
                file.seek(self._skip)
                for position, _ in self._texts(file, self._skip, ENDLESS, BLOCK_BYTES):
                    if position - bounds[-1] >= size:
                        bounds.append(position)
        return [*dict.fromkeys(bound for bound in bounds if bound < total), total]

    def blocks(self, piece: Piece, most: int) -> Iterator[Block]:
        """The readings of a piece, at most `most` at a time."""
        begin = piece.start or self._skip
        line = 0 if piece.start else 1
        header = line  # it counts as a line
        left = piece.weight
        try:
            with open_bytes(self._path, self._wanted.encoding) as file:
                if self._plain:
                    file.seek(begin)
                else:
                    file.read(begin)
                for position, text in self._texts(file, begin, piece.stop, BLOCK_BYTES):
                    done = min(left, position - begin) if self._plain else 0
                    begin, left = position, left - done
                    if isinstance(text, Fault):
                        block, lines = Block(self._nothing(), [], str), 1
                        block.faults = [Fault(line + 1, text.reason, text.text, text.why)]
                        blocks = iter([block])
                    else:
                        lines = count_lines(text)
                        blocks = (part for block in self._blocks_of(text, line, lines) for part in _parts(block, most))
                    held = next(blocks, Block(self._nothing(), [], str))
                    for following in blocks:
                        yield held
                        held = following
                    held.done, held.lines = done, lines + header
                    line, header = line + lines, 0
                    yield held
                if left and not self._plain:
                    yield Block(self._nothing(), [], str, done=left)
        except OSError as error:
            raise RecordingError(f"{self._path}: cannot be read on: {error.strerror or error}") from error

    def _nothing(self) -> Floats:
        return np.empty((0, len(self._wanted.channels)), np.float32)

    def _texts(self, file: IO[bytes], position: int, stop: int, size: int) -> Iterator[tuple[int, bytes | Fault]]:
        """Whole rows, about `size` bytes at a time, with the position after them; or a line that is too long."""
        buffer = b""
        most = self._wanted.max_line_bytes
        while position + len(buffer) < stop or buffer:
            data = file.read(min(size, stop - position - len(buffer)))
            final = not data or position + len(buffer) + len(data) >= stop
            cut = data.rfind(b"\n") + 1
            if cut and not final and b'"' not in buffer and b'"' not in data:  # the usual case, with one copy less
                text, buffer = b"".join((buffer, memoryview(data)[:cut])), data[cut:]
                position += len(text)
                yield position, text
                continue
            buffer += data
            if not buffer:
                return
            end = len(buffer) if final and b'"' not in buffer else last_row_end(buffer, self._delimiter)
            if end < 0 or (end == 0 and final):
                for _, end in rows(buffer, self._delimiter, self._width, final=final):  # noqa: B007 - the last one counts
                    pass
                end = max(end, 0)
            if end:
                text, buffer = buffer[:end], buffer[end:]
                position += end
                yield position, text
            elif len(buffer) > most:
                size_of = len(buffer)
                shown = _shown(buffer)
                while data and (cut := data.find(b"\n")) < 0:
                    data = file.read(min(size, max(stop - position - size_of, 0)))
                    size_of += len(data)
                rest = data[cut + 1 :] if data else b""
                position += size_of - len(rest)
                buffer = rest
                yield position, Fault(1, "too_long", shown, f"expected lines of at most {most} bytes")

    def _blocks_of(self, text: bytes, line: int, lines: int) -> Iterator[Block]:
        """The readings of some whole rows on so many lines, the first of which is line `line + 1`."""
        short = len(text) <= self._wanted.max_line_bytes or longest_line(text) <= self._wanted.max_line_bytes
        found = self._arrow.read(text) if self._arrow is not None and short else None
        if found is not None:
            if lines == len(found):
                found.rows, found.text = range(line + 1, line + 1 + lines), _Rows(text)
            else:
                frames, numbers, _ = self._frames(text, line)
                found.rows, found.text = numbers, lambda row: _shown(frames[row])
            yield found
            return
        half = 0
        if self._arrow is not None and len(text) > FEW_BYTES:
            half = max(0, last_row_end(text[: len(text) // 2], self._delimiter))
        if not half:
            yield self._by_codec(text, line)
            return
        first = text[:half]
        before = first.count(b"\n")
        yield from self._blocks_of(first, line, before)
        yield from self._blocks_of(text[half:], line + before, lines - before)

    def _frames(self, text: bytes, line: int) -> tuple[list[bytes], list[int], list[Fault]]:
        """Each row that is not empty, with its number."""
        frames: list[bytes] = []
        numbers: list[int] = []
        faults: list[Fault] = []
        at = 0
        for start, end in rows(text, self._delimiter, self._width, final=True):
            line += text.count(b"\n", at, start)
            at = start
            frame = text[start:end].rstrip(b"\r\n")
            if len(frame) > self._wanted.max_line_bytes:
                faults.append(Fault(line + 1, "too_long", _shown(frame)))
            elif frame:
                frames.append(frame)
                numbers.append(line + 1)
        return frames, numbers, faults

    def _by_codec(self, text: bytes, line: int) -> Block:
        frames, numbers, faults = self._frames(text, line)
        whole = list(map(on_one_line, frames))
        counters = Counters()
        decoded = self._decoder.decode(whole, counters)
        if counters.rejected:
            good = set(decoded.rows)
            for index in range(len(whole)):
                if index not in good:
                    faults.append(self._fault(whole[index], frames[index], numbers[index]))
        found = decoded.rows
        kept = [row_columns(whole[index], self._delimiter, self._width) for index in found] if self._places else []
        return Block(
            decoded.values,
            [numbers[index] for index in found],
            lambda row: _shown(frames[found[row]]),
            decoded.keys,
            decoded.times,
            decoded.identities if self._wanted.members is not None else None,
            ListColumns({name: [row[place].strip() for row in kept] for name, place in self._places.items()}),
            sorted(faults, key=lambda fault: fault.row),
        )

    def _fault(self, whole: bytes, frame: bytes, number: int) -> Fault:
        """Decode a bad row again alone, to name its reason beside its line."""
        counters = Counters()
        self._decoder.decode([whole], counters)
        reason = next(iter(counters.rejected))
        note = counters.notes.get(reason)
        return Fault(number, reason, _shown(frame), note.why if note else "")


class _Rows:
    """The text of each row of a block whose rows have no line breaks."""

    def __init__(self, text: bytes) -> None:
        self._text = text
        self._rows: list[bytes] = []

    def __call__(self, row: int) -> str:
        if not self._rows:
            self._rows = self._text.split(b"\n")
        return _shown(self._rows[row].rstrip(b"\r"))


def on_one_line(frame: bytes) -> bytes:
    """A row as a frame for the codec."""
    if b"\n" not in frame and b"\r" not in frame:
        return frame
    return frame.replace(b"\r\n", b" ").replace(b"\n", b" ").replace(b"\r", b" ")


def _parts(block: Block, most: int) -> Iterator[Block]:
    """Split a block into blocks of at most `most` readings, each with the faults up to its end."""
    if len(block) <= most:
        yield block
        return
    faults = block.faults
    for start in range(0, len(block), most):
        part = block.part(start, min(start + most, len(block)))
        last = start + most >= len(block)
        end = len(faults) if last else bisect_left(faults, block.rows[start + most], key=lambda fault: fault.row)
        part.faults, faults = faults[:end], faults[end:]
        yield part


def _shown(frame: bytes) -> str:
    text = frame[:300].decode("utf-8", "replace")
    return text if len(frame) <= 300 else text + "..."
