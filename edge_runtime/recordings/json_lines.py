"""JSON Lines, read by the stream's codec, so that the same text gives the same number.

Guarantee: memory is bounded by one block of lines of at most 16 MiB each.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

import msgspec

from edge_runtime.errors import ConfigError
from edge_runtime.recordings.blocks import ENDLESS, Block, Fault, ListColumns, Piece, RecordingError, Wanted
from edge_runtime.recordings.byte_streams import is_plain, open_bytes, other_kind
from edge_runtime.recordings.locations import Place
from edge_runtime.registered import CODECS
from edge_runtime.stream.codecs import CodecTable, Decoded, Decoder
from edge_runtime.system.counters import Counters

BLOCK_BYTES = 1 << 22  # a block ends here, even with few lines
_MARK = b"\xef\xbb\xbf"  # the byte order mark that some programs write
HEAD_BYTES = 1 << 12  # bytes that decide the kind of a file

Keep = Callable[[Sequence[bytes], Decoded], ListColumns]


def open_json_lines(path: Place, wanted: Wanted) -> "JsonRecording":
    """A file with a JSON object, or an array of objects, on each line."""
    with open_bytes(path, wanted.encoding) as file:
        start = file.read(HEAD_BYTES)
    skip = len(_MARK) if start.startswith(_MARK) else 0
    if (other := other_kind(start)) is not None:
        raise RecordingError(f"{path}: expected {wanted.encoding}, found {other}")
    first, ended, _ = start[skip:].partition(b"\n")
    if ended and first.strip() in {b"[", b"{"}:
        raise RecordingError(
            f"{path}: expected an object, or an array of objects, on each line, found one over several lines: "
            "write each on a line of its own, such as by jq -c"
        )
    decoder = _decoder("json", path, wanted)

    def keep(frames: Sequence[bytes], decoded: Decoded) -> ListColumns:
        objects = _objects(frames, decoded, None if wanted.framed else decoder) if wanted.columns else []
        return ListColumns({name: [item.get(name) for item in objects] for name in wanted.columns})

    return JsonRecording(path, decoder, keep, wanted, skip=skip)


def first_lacks(path: Place, wanted: Wanted, names: Sequence[str | None]) -> tuple[str, ...]:
    """The names that are no members of the first reading."""
    with open_bytes(path, wanted.encoding) as file:
        line = file.readline(wanted.max_line_bytes).removeprefix(_MARK)
    try:
        document = msgspec.json.decode(line)
    except (msgspec.DecodeError, RecursionError):
        return ()
    first = document[0] if type(document) is list and document else document
    return tuple(name for name in names if name is not None and type(first) is dict and name not in first)


class JsonRecording:
    """A text file with a reading, or an array of readings, on each line."""

    whole = False
    counts_bytes = True
    names_columns = False
    schema = None

    def __init__(
        self,
        path: Place,
        decoder: Decoder,
        keep: Keep,
        wanted: Wanted,
        *,
        skip: int,
    ) -> None:
        self.has_time: bool | None = None
        self._encoding = wanted.encoding
        self._plain = is_plain(path, wanted.encoding)
        self._path = path
        self._decoder = decoder
        self._keep = keep
        self._most = wanted.max_line_bytes
        self._identified = wanted.members is not None
        self._skip = skip

    def pieces(self, size: int | None) -> list[Piece]:
        """The file in pieces of about `size` bytes; a line belongs to the piece in which it begins."""
        try:
            total = self._path.stat().st_size
        except OSError as error:
            raise RecordingError(f"{self._path}: cannot be read: {error.strerror or error}") from error
        if not self._plain:
            return [Piece(str(self._path), 0, ENDLESS, total)]
        starts = range(0, max(total, 1), size or max(total, 1))
        ends = [*starts[1:], total]
        return [Piece(str(self._path), start, end, end - start) for start, end in zip(starts, ends, strict=True)]

    def blocks(self, piece: Piece, most: int) -> Iterator[Block]:
        """The readings of a piece, at most `most` lines at a time."""
        try:
            with open_bytes(self._path, self._encoding) as file:
                line, position, left = 0, self._begin(file, piece), piece.weight
                while position < piece.stop:
                    frames, numbers, faults, size, count = self._lines(file, line, piece.stop - position, most)
                    if not size:
                        break
                    position += size
                    block = self._decoded(frames, numbers)
                    block.faults += faults
                    block.done, block.lines = min(left, size) if self._plain else 0, count
                    left -= block.done
                    line += count
                    yield block
                if not self._plain:
                    yield Block(self._decoded([], []).values, [], str, done=left)
        except OSError as error:
            raise RecordingError(f"{self._path}: cannot be read on: {error.strerror or error}") from error

    def _begin(self, file: IO[bytes], piece: Piece) -> int:
        """Seek to the first line of the piece; return its position."""
        if piece.start == 0:
            file.read(self._skip)
            return self._skip
        file.seek(piece.start - 1)
        _skip_line(file)
        return file.tell()

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
        """Decode each frame with a bad reading again alone, to name the reason beside its line."""
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


def _objects(frames: Sequence[bytes], decoded: Decoded, decoder: Decoder | None) -> list[dict[str, Any]]:
    """The object of each reading.

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
