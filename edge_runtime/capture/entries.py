"""What a file of captures holds: entries of MessagePack, each with its length and checksum. Pure.

::

    file  = "edgecap1" entry*
    entry = length (u32, little-endian), CRC-32 of the body (u32), body

An entry is the facts of a bundle (`BundleFacts`), a captured window (`Captured`), or a label that came later
(`Labelled`). The facts stand once in each file, before the first window that refers to them, so that every file can be
read by itself. Guarantee: whatever a kill or a power cut leaves of the last entry is noticed by its length or its
checksum, and never read as a window.
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
    """The bundle that answered, and how the windows are to be read.

    Attributes:
        device: the id of the device.
        model: the model's name in the device file.
        name: the bundle's name.
        version: the bundle's version.
        digest: the bundle's SHA-256 in hex.
        task: the bundle's task.
        channels: of the captured windows, in order; none where a window is a whole frame.
        shape: of a captured window.
        labels: those of the bundle.
        targets: those of the bundle, where it is a regression.
        rate_hz: the bundle's.
        excluded: channels of the bundle that the device file leaves out.
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
        """Of the numbers that say what was right: targets, or labels that may be there together; else none."""
        return self.labels if self.task == "multilabel" else self.targets


class Captured(msgspec.Struct, frozen=True, kw_only=True, tag="window"):
    """One window, what the model said of it, and why it was kept.

    Attributes:
        bundle: the place of its facts among those of the file.
        id: the prediction's; of one that was withheld, the one that sinks and truth know it by.
        published: the prediction was.
        key: the stream; None where the source has one.
        time: of the last reading of the window, in Unix seconds.
        label: the window's own, before any smoothing; None where the task has none.
        answer: the model's numbers by the names of its outputs.
        reasons: why it was kept.
        values: the window as little-endian float32, row by row.
        clock_set: the clock of the device was set.
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
    """What was right for a prediction, learnt after its window was kept.

    Attributes:
        id: the prediction's.
        model: the model's name in the device file.
        label: what was right; None where numbers say it.
        values: what was right for a regression, by target; of several labels 1 for each that is there, else 0.
        time: when that was learnt, in Unix seconds.
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
    """What stands in a file.

    Attributes:
        entries: the whole ones, in order.
        whole: how many bytes of the file they take, with what stands before them.
    """

    entries: list[Entry]
    whole: int


def pack(entry: Entry) -> bytes:
    """The bytes of an entry as they stand in a file."""
    body = _encoder.encode(entry)
    return len(body).to_bytes(4, "little") + zlib.crc32(body).to_bytes(4, "little") + body


def read(data: bytes) -> ReadEntries:
    """Every whole entry up to the first that is not; none where the file is no file of captures."""
    if not data.startswith(MAGIC):
        return ReadEntries([], 0)
    entries: list[Entry] = []
    sizes: list[int] = []  # of a window, in bytes, by the facts that stand so far
    whole = len(MAGIC)
    for body, end in _bodies(data):
        try:
            entry = _decoder.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            break
        if isinstance(entry, BundleFacts):
            if any(extent < 1 for extent in entry.shape):
                break
            sizes.append(4 * math.prod(entry.shape))
        elif isinstance(entry, Captured) and not _fits(entry, sizes):
            break
        entries.append(entry)
        whole = end
    return ReadEntries(entries, whole)


def _bodies(data: bytes) -> Iterator[tuple[bytes, int]]:
    place = len(MAGIC)
    while len(data) - place >= HEAD_BYTES:
        length, checksum = (int.from_bytes(data[at : at + 4], "little") for at in (place, place + 4))
        body = data[place + HEAD_BYTES : place + HEAD_BYTES + length]
        if len(body) < length or zlib.crc32(body) != checksum:
            return
        place += HEAD_BYTES + length
        yield body, place


def _fits(entry: Captured, sizes: list[int]) -> bool:
    """A window refers to facts that stand before it, and has as many numbers as they say."""
    return 0 <= entry.bundle < len(sizes) and len(entry.values) == sizes[entry.bundle]
