"""The counts of several processes on one port, so that a scrape of any of them returns the sum.

A shared memory, inherited by fork, has a place for each process. A process writes its counts to its place, once a
second and before a scrape, and reads the places of the others.

Guarantee: a reader gets a complete document or none. Counts never fall, also after the restart of a process, since it
continues from the counts of its predecessor. Weak point: the counts of a process's last second are lost with it.
"""

import mmap
import struct
import zlib

PLACE_BYTES = 1 << 18
_HEAD = struct.Struct("<II")  # length and checksum


class SharedCounts:
    """Places for so many processes; made before the fork, and then used by each of them with its `number`."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.number = 0
        self._memory = mmap.mmap(-1, count * PLACE_BYTES)

    def write(self, document: bytes) -> None:
        """Replace the document of this process; one that is too long is ignored."""
        if len(document) > PLACE_BYTES - _HEAD.size:
            return
        at = self.number * PLACE_BYTES
        head = _HEAD.pack(len(document), zlib.crc32(document))
        self._memory[at : at + _HEAD.size + len(document)] = head + document

    def read(self, number: int) -> bytes:
        """The document of a process; empty before its first, or during a write."""
        at = number * PLACE_BYTES
        length, checksum = _HEAD.unpack_from(self._memory, at)
        for _ in range(_TRIES):
            document = self._memory[at + _HEAD.size : at + _HEAD.size + min(length, PLACE_BYTES - _HEAD.size)]
            if zlib.crc32(document) == checksum:
                return document
            length, checksum = _HEAD.unpack_from(self._memory, at)
        return b""

    def others(self) -> list[bytes]:
        """The documents of the other processes."""
        found = [self.read(number) for number in range(self.count) if number != self.number]
        return [document for document in found if document]


_TRIES = 100  # a write takes microseconds
