"""CSV with a header row, and JSON Lines: the codecs of the stream read them, so that the same text is the same number.

Guarantee: memory is bounded by one block of lines of at most 16 MiB each. Weak point: a line break inside the quotes
of a CSV column is taken for the end of the row, and counted as `malformed`.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

import msgspec

from edge_runtime.errors import ConfigError
from edge_runtime.recordings.blocks import MAX_LINE_BYTES, Block, Fault, ListColumns, Piece, RecordingError, Wanted
from edge_runtime.recordings.locations import Place
from edge_runtime.registered import CODECS
from edge_runtime.stream.codecs import CodecTable, Decoded, Decoder
from edge_runtime.stream.codecs.kind import IGNORED
from edge_runtime.stream.codecs.rows_of_text import SPACES, row_columns, split_columns, unquoted_columns
from edge_runtime.system.counters import Counters

BLOCK_BYTES = 1 << 22  # a block ends here, however few lines it holds
_MARK = b"\xef\xbb\xbf"  # the byte order mark that some programs write

Keep = Callable[[Sequence[bytes], Decoded], ListColumns]


def open_csv(path: Place, wanted: Wanted) -> "TextRecording":
    """A CSV file with a header row.

    Raises:
        RecordingError: it has no header, lacks a column, or its rows have another number of columns than its header.
    """
    delimiter = wanted.delimiter or ("\t" if path.suffix.lower() == ".tsv" else ",")
    if wanted.framed:
        raise RecordingError(f"{path}: expected JSON Lines or NumPy for a model of whole frames, found csv")
    with path.open("rb") as file:
        head, row = file.readline(MAX_LINE_BYTES), b""
        for row in iter(lambda: file.readline(MAX_LINE_BYTES), b""):
            if row.strip():
                break
    columns = _names(head, delimiter)
    if not any(columns):
        raise RecordingError(f"{path}: expected a header row that names the columns, found none")
    needed = tuple(dict.fromkeys([*wanted.channels, *([wanted.key] if wanted.key else []), *wanted.columns]))
    missing = [name for name in needed if name not in columns]
    if missing:
        raise RecordingError(
            f"{path}: expected a column for each of {', '.join(needed)}, found none for {', '.join(missing)}; "
            f"its columns are {', '.join(columns)}"
        )
    if row.strip():
        _check_width(path, columns, _names(row, delimiter), index_column=wanted.index_column)
    has_time = wanted.roles("").time in columns
    if wanted.index_column:
        columns = [IGNORED, *columns]
    roles = wanted.roles(str(path))
    taken = {*roles.channels, *roles.origin_names()}
    decoder = _decoder(
        "csv", path, wanted, fields=tuple(name if name in taken else IGNORED for name in columns), delimiter=delimiter
    )
    places = {name: columns.index(name) for name in wanted.columns}

    def keep(frames: Sequence[bytes], decoded: Decoded) -> ListColumns:
        rows = [row_columns(frames[index], delimiter, len(columns)) for index in decoded.rows]
        return ListColumns({name: [row[place].strip() for row in rows] for name, place in places.items()})

    return TextRecording(path, decoder, keep, wanted, skip=len(head), header_lines=1, has_time=has_time)


def _check_width(path: Place, header: list[str], row: list[str], *, index_column: bool) -> None:
    """Refuse a file whose first row has not the columns that it should have; later rows are judged one by one."""
    found, names = len(row), len(header)
    if not index_column and found == names + 1:
        ends = not row[-1].strip()
        where = "ends with a delimiter" if ends else f"begins with {row[0][:40]!r}"
        raise RecordingError(
            f"{path}: expected the {names} columns that its header names, found {found} in the first row, which "
            f"{where}: "
            + ("take the delimiter off" if ends else "if the first column holds row names, add --index-column")
            + ", or name every column in the header"
        )
    if found == names - 1 and not header[-1]:
        raise RecordingError(
            f"{path}: expected the {names} columns of its header, which ends with a delimiter, found {found} in the "
            "first row: take the delimiter off the header"
        )
    if index_column and found == names:
        raise RecordingError(
            f"{path}: expected a first column that the header does not name (--index-column), found a name for each of "
            f"the {names} columns: leave --index-column out"
        )


def open_json_lines(path: Place, wanted: Wanted) -> "TextRecording":
    """A file with a JSON object, or an array of objects, on each line."""
    with path.open("rb") as file:
        skip = len(_MARK) if file.read(len(_MARK)) == _MARK else 0
    decoder = _decoder("json", path, wanted)

    def keep(frames: Sequence[bytes], decoded: Decoded) -> ListColumns:
        objects = _objects(frames, decoded, None if wanted.framed else decoder) if wanted.columns else []
        return ListColumns({name: [item.get(name) for item in objects] for name in wanted.columns})

    return TextRecording(path, decoder, keep, wanted, skip=skip, header_lines=0, has_time=None)


class TextRecording:
    """A text file with a reading, or an array of readings, on each line."""

    whole = False
    counts_bytes = True
    schema = None

    def __init__(
        self,
        path: Place,
        decoder: Decoder,
        keep: Keep,
        wanted: Wanted,
        *,
        skip: int,
        header_lines: int,
        has_time: bool | None,
    ) -> None:
        self.has_time = has_time
        self._path = path
        self._decoder = decoder
        self._keep = keep
        self._most = wanted.max_line_bytes
        self._identified = wanted.members is not None
        self._skip = skip
        self._header_lines = header_lines

    def pieces(self, size: int | None) -> list[Piece]:
        """The file in pieces of about `size` bytes; a line belongs to the piece in which it begins."""
        try:
            total = self._path.stat().st_size
        except OSError as error:
            raise RecordingError(f"{self._path}: cannot be read: {error.strerror or error}") from error
        starts = range(0, max(total, 1), size or max(total, 1))
        ends = [*starts[1:], total]
        return [Piece(str(self._path), start, end, end - start) for start, end in zip(starts, ends, strict=True)]

    def blocks(self, piece: Piece, most: int) -> Iterator[Block]:
        """The readings of a piece, at most `most` lines at a time."""
        try:
            with self._path.open("rb") as file:
                line = header = self._begin(file, piece)
                position = file.tell()
                while position < piece.stop:
                    frames, numbers, faults, size, count = self._lines(file, line, piece.stop - position, most)
                    position += size
                    block = self._decoded(frames, numbers)
                    block.faults += faults
                    block.done, block.lines = size, count + header  # the header is a line too
                    line, header = line + count, 0
                    yield block
        except OSError as error:
            raise RecordingError(f"{self._path}: cannot be read on: {error.strerror or error}") from error

    def _begin(self, file: IO[bytes], piece: Piece) -> int:
        """Go to the first line of the piece; returns the number of the line before it, counted in the piece."""
        if piece.start == 0:
            file.seek(self._skip)
            return self._header_lines
        file.seek(piece.start - 1)
        _skip_line(file)
        return 0

    def _lines(
        self, file: IO[bytes], line: int, left: int, most: int
    ) -> tuple[list[bytes], list[int], list[Fault], int, int]:
        frames: list[bytes] = []
        numbers: list[int] = []
        faults: list[Fault] = []
        size = count = 0
        while size < left and len(frames) < most and size < BLOCK_BYTES:
            frame = file.readline(self._most + 2)
            if not frame:
                break
            size += len(frame)
            count += 1
            whole = frame[-1:] == b"\n"
            frame = frame.rstrip(b"\r\n")
            if len(frame) > self._most:
                size += 0 if whole else _skip_line(file)
                faults.append(Fault(line + count, "too_long", _shown(frame)))
            elif frame:
                frames.append(frame)
                numbers.append(line + count)
        return frames, numbers, faults, size, count

    def _decoded(self, frames: list[bytes], numbers: list[int]) -> Block:
        counters = Counters()
        decoded = self._decoder.decode(frames, counters)
        faults = self._faults(frames, numbers, decoded) if counters.rejected else []
        rows = decoded.rows
        return Block(
            decoded.values,
            [numbers[index] for index in rows],
            lambda row: _shown(frames[rows[row]]),
            decoded.keys,
            decoded.times,
            decoded.identities if self._identified else None,
            self._keep(frames, decoded),
            faults,
        )

    def _faults(self, frames: list[bytes], numbers: list[int], decoded: Decoded) -> list[Fault]:
        """Decode each frame that lost a reading once more by itself, to name the reason beside its line."""
        good = set(decoded.rows)
        faults = []
        for index, frame in enumerate(frames):
            if index in good and not frame.lstrip().startswith(b"["):
                continue
            counters = Counters()
            self._decoder.decode([frame], counters)
            for reason in Counter(counters.rejected).elements():
                faults.append(Fault(numbers[index], reason, _shown(frame), _why(counters, reason)))
        return faults


def _decoder(name: str, path: Place, wanted: Wanted, **keys: Any) -> Decoder:
    codec: CodecTable = CODECS.load(name)(**keys)
    try:
        return codec.decoder(wanted.roles(str(path)), wanted.shape if wanted.framed else None)
    except ConfigError as error:
        raise RecordingError(str(error)) from error


def _names(line: bytes, delimiter: str) -> list[str]:
    text = line.decode("utf-8-sig", "replace").rstrip("\r\n")
    if delimiter == SPACES:  # names may stand in quotes here as well
        return [column.strip('"') for column in split_columns(text, delimiter)]
    return [column.strip() for column in unquoted_columns(text, delimiter)]


def _objects(frames: Sequence[bytes], decoded: Decoded, decoder: Decoder | None) -> list[dict[str, Any]]:
    """The object that each reading was.

    Of an array that holds bad readings, each item is decoded alone to find the good ones. Without a decoder each line
    is one whole frame, and an array is no list of readings.
    """
    counts = Counter(decoded.rows)
    found: list[dict[str, Any]] = []
    for index in dict.fromkeys(decoded.rows):
        document = msgspec.json.decode(frames[index])
        items = document if decoder is not None and type(document) is list else [document]
        if decoder is not None and len(items) != counts[index]:
            items = [item for item in items if _is_reading(item, decoder)]
        found += [item if type(item) is dict else {} for item in items]
    return found


def _is_reading(item: Any, decoder: Decoder) -> bool:
    return len(decoder.decode([msgspec.json.encode(item)], Counters())) == 1


def _why(counters: Counters, reason: str) -> str:
    note = counters.notes.get(reason)
    return "" if note is None else note.why


def _skip_line(file: IO[bytes]) -> int:
    size = 0
    while chunk := file.readline(65_536):
        size += len(chunk)
        if chunk.endswith(b"\n"):
            break
    return size


def _shown(frame: bytes) -> str:
    text = frame[:300].decode("utf-8", "replace")
    return text if len(frame) <= 300 else text + "..."
