"""Whole frames (an image, a spectrogram) as rows of numbers, row-major. Not optimised: each frame is one reading."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from edge_runtime.stream.codecs.columns import Decoded, Members, Rows, judge
from edge_runtime.stream.codecs.object_codec import plain_json
from edge_runtime.stream.codecs.rows_of_text import number, row_columns
from edge_runtime.stream.origin import NO_ORIGIN, Origin, RejectedError
from edge_runtime.system.counters import Counters


class JsonFrameDecoder:
    """Decodes a whole frame (an image, a spectrogram) from nested or flat rows: bare, or as the member `frame`."""

    def __init__(self, shape: tuple[int, ...], members: Members) -> None:
        self._shape = shape
        self._members = members

    def decode(self, frames: Sequence[bytes], counters: Counters) -> Decoded:
        """Every reading of the frames; the others are counted in `counters.rejected`."""
        found = Rows()
        for index, frame in enumerate(frames):
            document, reason = plain_json(frame)
            if reason:
                counters.reject(reason, "expected rows of numbers in JSON", frame=index)
                continue
            try:
                origin, values = self._read(document)
            except RejectedError as error:
                counters.reject(error.reason, error.why, frame=index)
                continue
            found.frames.append(index)
            found.origins.append(origin)
            found.values.append(values)
        return judge(found, self._shape, counters, self._members)

    def _read(self, document: Any) -> tuple[Origin, list[float]]:
        origin = NO_ORIGIN
        if type(document) is dict:
            names = self._members.origin_names()
            origin = Origin(*(None if name is None else document.get(name) for name in names))
            document = document.get("frame")
            if document is None:
                raise RejectedError("missing_channel", "no `frame`")
        if type(document) is not list:
            raise RejectedError("malformed", "expected rows of numbers, bare or as the member `frame`")
        return origin, _flat_numbers(document, math.prod(self._shape))


class CsvFrameDecoder:
    """Decodes a whole frame from one row of numbers, row-major."""

    def __init__(self, shape: tuple[int, ...], delimiter: str) -> None:
        self._shape = shape
        self._size = math.prod(shape)
        self._delimiter = delimiter

    def decode(self, frames: Sequence[bytes], counters: Counters) -> Decoded:
        """Every reading of the frames; the others are counted in `counters.rejected`."""
        found = Rows()
        for index, frame in enumerate(frames):
            try:
                values = [number(column) for column in row_columns(frame, self._delimiter, self._size)]
            except RejectedError as error:
                counters.reject(error.reason, error.why, frame=index)
                continue
            found.frames.append(index)
            found.origins.append(NO_ORIGIN)
            found.values.append(values)
        return judge(found, self._shape, counters, Members(()))


def _flat_numbers(document: list[Any], size: int) -> list[float]:
    """The numbers of nested lists of equal lengths, row-major."""
    level: list[Any] = document
    while level and all(type(item) is list for item in level):
        if len({len(item) for item in level}) != 1:
            raise RejectedError("malformed", "expected rows of one length, found different ones")
        level = list(itertools.chain.from_iterable(level))
    if any(type(item) is list for item in level) or len(level) != size:
        raise RejectedError("malformed", f"expected {size} numbers, found {len(level)}")
    if any(type(item) is not float and type(item) is not int for item in level):
        raise RejectedError("wrong_type")
    try:
        return list(map(float, level))
    except OverflowError:
        raise RejectedError("not_finite") from None


def refuse_sizes(frames: Sequence[bytes], good: Sequence[int], size: int, counters: Counters) -> None:
    """Count the frames whose length in bytes differs from that of their structure."""
    kept = set(good)
    bad = [index for index in range(len(frames)) if index not in kept]
    why = f"expected frames of {size} bytes, found one of {len(frames[bad[-1]])}"
    counters.reject("malformed", why, frame=bad[-1], count=len(bad))


class RawFrameDecoder:
    """Decodes a whole frame from packed numbers of one type, row-major: the bytes of a camera or a spectrum."""

    def __init__(self, shape: tuple[int, ...], kind: str, *, scale: float = 1.0, big_endian: bool = False) -> None:
        self._shape = shape
        self._type = np.dtype((">" if big_endian else "<") + np.dtype(kind).str[1:])
        self._scale = scale

    def decode(self, frames: Sequence[bytes], counters: Counters) -> Decoded:
        """Every reading of the frames; the others are counted in `counters.rejected`."""
        size = self._type.itemsize * math.prod(self._shape)
        rows = [index for index, frame in enumerate(frames) if len(frame) == size]
        if len(rows) < len(frames):
            refuse_sizes(frames, rows, size, counters)
        packed = np.frombuffer(b"".join(frames[index] for index in rows), dtype=self._type)
        with np.errstate(over="ignore", invalid="ignore"):  # no warning about a signalling NaN
            values = packed.astype(np.float64) * self._scale
        values[np.isnan(values)] = math.inf  # in rows for `judge`, NaN means a missing channel
        return judge(Rows(rows, [NO_ORIGIN] * len(rows), values), self._shape, counters, Members(()))
