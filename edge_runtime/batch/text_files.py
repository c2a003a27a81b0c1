"""CSV with a header row, and JSON Lines: the codecs of the stream read them, so that the same text is the same number.

Guarantee: memory is bounded by one block of lines of at most 16 MiB each. Weak point: a line break inside the quotes
of a CSV column is taken for the end of the row, and counted as `malformed`.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

import msgspec

from edge_runtime.batch.locations import Place
from edge_runtime.batch.recording import Block, Fault, ListColumns, Piece, RecordingError, Wanted
from edge_runtime.errors import ConfigError
from edge_runtime.stream.codecs import Decoded, Decoder, make_decoder
from edge_runtime.stream.codecs.kind import IGNORED
from edge_runtime.stream.codecs.rows_of_text import row_columns, unquoted_columns
from edge_runtime.system.counters import Counters

MAX_LINE_BYTES = 1 << 24
BLOCK_BYTES = 1 << 22  # a block ends here, however few lines it holds
_NO_TIME = "(no time)"  # the codecs want a name, and no column is called that

Keep = Callable[[Sequence[bytes], Decoded], ListColumns]


def open_csv(path: Place, wanted: Wanted) -> "TextRecording":
    """A CSV file with a header row.

    Raises:
        RecordingError: it has no header, or lacks a column.
    """
    delimiter = wanted.delimiter or ("\t" if path.suffix.lower() == ".tsv" else ",")
    with path.open("rb") as file:
        head, row = file.readline(MAX_LINE_BYTES), file.readline(MAX_LINE_BYTES)
    if wanted.framed:
        raise RecordingError(f"{path}: expected JSON Lines or NumPy for a model of whole frames, found CSV")
    columns = _names(head, delimiter)
    if not any(columns):
        raise RecordingError(f"{path}: expected a header row that names the columns, found none")
    if len(_names(row, delimiter)) == len(columns) + 1:
        columns = [IGNORED, *columns]  # R writes a column of row names that its header does not name
    needed = tuple(dict.fromkeys([*wanted.channels, *wanted.columns]))
    missing = [name for name in needed if name not in columns]
    if missing:
        raise RecordingError(
            f"{path}: expected a column for each of {', '.join(needed)}, found none for {', '.join(missing)}; "
            f"its columns are {', '.join(columns)}"
        )
    taken = {*wanted.channels, wanted.key, wanted.time}
    decoder = _decoder(
        "csv", path, wanted, fields=[name if name in taken else IGNORED for name in columns], delimiter=delimiter
    )
    places = {name: columns.index(name) for name in wanted.columns}

    def keep(frames: Sequence[bytes], decoded: Decoded) -> ListColumns:
        rows = [row_columns(frames[index], delimiter, len(columns)) for index in decoded.rows]
        return ListColumns({name: [row[place].strip() for row in rows] for name, place in places.items()})

    return TextRecording(path, decoder, keep, header=len(head))


def open_json_lines(path: Place, wanted: Wanted) -> "TextRecording":
    """A file with a JSON object, or an array of objects, on each line."""
    decoder = _decoder("json", path, wanted)

    def keep(frames: Sequence[bytes], decoded: Decoded) -> ListColumns:
        objects = _objects(frames, decoded, None if wanted.framed else decoder) if wanted.columns else []
        return ListColumns({name: [item.get(name) for item in objects] for name in wanted.columns})

    return TextRecording(path, decoder, keep, header=0)


class TextRecording:
    """A text file with a reading, or an array of readings, on each line."""

    whole = False
    schema = None

    def __init__(self, path: Place, decoder: Decoder, keep: Keep, *, header: int) -> None:
        self._path = path
        self._decoder = decoder
        self._keep = keep
        self._header = header

    def pieces(self, size: int | None) -> list[Piece]:
        """The file in pieces of about `size` bytes; a line belongs to the piece in which it begins."""
        total = self._path.stat().st_size
        starts = range(0, max(total, 1), size or max(total, 1))
        ends = [*starts[1:], total]
        return [Piece(str(self._path), start, end, end - start) for start, end in zip(starts, ends, strict=True)]

    def blocks(self, piece: Piece, most: int) -> Iterator[Block]:
        """The readings of a piece, at most `most` lines at a time."""
        try:
            with self._path.open("rb") as file:
                line = self._begin(file, piece)
                position = file.tell()
                while position < piece.stop:
                    frames, numbers, faults, size, count = self._lines(file, line, piece.stop - position, most)
                    position += size
                    block = self._decoded(frames, numbers)
                    block.faults += faults
                    block.done, block.lines = size, count + (line if line == 1 else 0)  # the header is a line too
                    line += count
                    yield block
        except OSError as error:
            raise RecordingError(f"{self._path}: cannot be read on: {error.strerror or error}") from error

    def _begin(self, file: IO[bytes], piece: Piece) -> int:
        """Go to the first line of the piece; returns the number of the line before it, counted in the piece."""
        if piece.start == 0:
            file.seek(self._header)
            return 1 if self._header else 0
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
            frame = file.readline(MAX_LINE_BYTES + 2)
            if not frame:
                break
            size += len(frame)
            count += 1
            if frame[-1:] != b"\n" and len(frame) > MAX_LINE_BYTES:
                size += _skip_line(file)
                faults.append(Fault(line + count, "too_long", _shown(frame)))
                continue
            frame = frame.rstrip(b"\r\n")
            if frame:
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
                faults.append(Fault(numbers[index], reason, _shown(frame)))
        return faults


def _decoder(name: str, path: Place, wanted: Wanted, **keys: Any) -> Decoder:
    try:
        return make_decoder(
            name,
            wanted.channels,
            shape=wanted.shape if wanted.framed else None,
            key_field=wanted.key,
            time_field=wanted.time or _NO_TIME,
            place=str(path),
            **keys,
        )
    except ConfigError as error:
        raise RecordingError(str(error)) from error


def _names(line: bytes, delimiter: str) -> list[str]:
    text = line.decode("utf-8-sig", "replace").rstrip("\r\n")
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
