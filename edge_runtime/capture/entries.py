"""The format of a capture file: entries of MessagePack, each with its length and checksum. Pure.

::

    file  = "edgecap1" entry*
    entry = length (u32, little-endian), CRC-32 of the body (u32), body

An entry is the facts of a bundle (`BundleFacts`), a captured window (`Captured`), or a label that arrived later
(`Labelled`). Each file has the facts once, before the first window that refers to them, so that every file can be read
by itself. Guarantee: an entry that a kill or a power cut left incomplete is detected by its length or its checksum, and
never read as a window. An entry with a wrong checksum between good ones is left out; those behind it are read, up to
the next facts of a bundle, whose number would then be uncertain. Weak point: nothing is read behind a damaged length.
"""

import math
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import msgspec
import numpy as np

from edge_runtime.readings import Floats

MAGIC = b"edgecap1"
HEAD_BYTES = 8
PATTERN = "part-*.captures"
SUFFIX = ".captures"


class CapturedChannel(msgspec.Struct, frozen=True):
    """A channel of the captured windows."""

    name: str
    unit: str = ""


class BundleFacts(msgspec.Struct, frozen=True, kw_only=True, tag="bundle"):
    """The bundle that gave the answers, and the layout of the windows.

    Attributes:
        device: the id of the device.
        model: the model's name in the device file.
        name: the bundle's name.
        version: the bundle's version.
        digest: the bundle's SHA-256 in hex.
        task: the bundle's task.
        channels: of the captured windows, in order; empty if a window is a whole frame.
        shape: of a captured window.
        labels: the bundle's labels.
        targets: the bundle's targets, for a regression.
        rate_hz: the bundle's rate.
        excluded: channels of the bundle that the device file excludes.
    """

    device: str
    model: str
    name: str
    version: str
    digest: str
    task: str
    channels: tuple[CapturedChannel, ...]
    shape: tuple[int, ...]
    labels: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    rate_hz: float | None = None
    excluded: tuple[str, ...] = ()

    @property
    def value_names(self) -> tuple[str, ...]:
        """The names of a truth's numbers: targets, or the labels of a multi-label model; else empty."""
        return self.labels if self.task == "multilabel" else self.targets


class Captured(msgspec.Struct, frozen=True, kw_only=True, tag="window"):
    """One window, the model's answer to it, and the reasons for its capture.

    Attributes:
        bundle: the index of its facts among those of the file.
        id: the prediction's id; for a withheld prediction, the id that sinks and truth use.
        published: whether the prediction was published.
        key: of the stream; None if the source has a single stream.
        time: of the last reading of the window, in Unix seconds.
        label: of this window alone, before any smoothing; None if the task has no labels.
        answer: the model's numbers by the names of its outputs.
        reasons: for the capture.
        values: the window as little-endian float32, row by row.
        clock_set: whether the clock of the device was set.
    """

    bundle: int
    id: str
    published: bool
    key: str | None
    time: float
    label: str | None
    answer: dict[str, list[float]]
    reasons: tuple[str, ...]
    values: bytes
    clock_set: bool = True

    def window(self, facts: BundleFacts) -> Floats:
        """The numbers, in the shape of the window."""
        return np.frombuffer(self.values, "<f4").reshape(facts.shape)


class Labelled(msgspec.Struct, frozen=True, kw_only=True, tag="label"):
    """The truth of a prediction that arrived after the capture of its window.

    Attributes:
        id: the prediction's id.
        model: the model's name in the device file.
        label: the right label; None for a regression and for several labels.
        values: the right values of a regression, by target; for several labels 1 if present, else 0.
        time: of the truth's arrival, in Unix seconds.
    """

    id: str
    model: str
    label: str | None
    time: float
    values: dict[str, float] = {}


Entry = BundleFacts | Captured | Labelled

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Entry)


class ReadEntries(NamedTuple):
    """The contents of a file.

    Attributes:
        entries: the complete ones, in order.
        whole: the size in bytes of the file up to the last complete entry.
        damaged: bytes before that which are no entry.
    """

    entries: list[Entry]
    whole: int
    damaged: int = 0


def pack(entry: Entry) -> bytes:
    """The bytes of an entry in a file."""
    body = _encoder.encode(entry)
    return len(body).to_bytes(4, "little") + zlib.crc32(body).to_bytes(4, "little") + body


def read(data: bytes) -> ReadEntries:
    """Every complete entry but those behind a damaged length; none if this is no capture file."""
    if not data.startswith(MAGIC):
        return ReadEntries([], 0)
    entries: list[Entry] = []
    sizes: list[int] = []  # of a window in bytes, for each of the facts so far
    whole, damaged = len(MAGIC), 0
    for body, end in _bodies(data):
        if body is None:
            damaged += end - whole
            whole = end
            continue
        try:
            entry = _decoder.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            break
        if isinstance(entry, BundleFacts):
            if damaged or any(extent < 1 for extent in entry.shape):
                break
            sizes.append(4 * math.prod(entry.shape))
        elif isinstance(entry, Captured) and not _fits(entry, sizes):
            break
        entries.append(entry)
        whole = end
    return ReadEntries(entries, whole, damaged)


def _bodies(data: bytes) -> Iterator[tuple[bytes | None, int]]:
    """The body of each entry, and the end of it; None for a damaged one with a good one behind it."""
    place, skipped = len(MAGIC), 0
    while len(data) - place >= HEAD_BYTES:
        length, checksum = (int.from_bytes(data[at : at + 4], "little") for at in (place, place + 4))
        body = data[place + HEAD_BYTES : place + HEAD_BYTES + length]
        if not length or len(body) < length:  # an empty entry is a place that was never written
            return
        start, place = place, place + HEAD_BYTES + length
        if zlib.crc32(body) != checksum:
            skipped = skipped or start
            continue
        if skipped:
            yield None, start
            skipped = 0
        yield body, place


def _fits(entry: Captured, sizes: list[int]) -> bool:
    """Whether a window refers to facts before it, and has their size."""
    return 0 <= entry.bundle < len(sizes) and len(entry.values) == sizes[entry.bundle]
