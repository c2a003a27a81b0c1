"""What several processes on one port have counted, so that whichever of them is scraped answers for all.

A piece of memory is shared by fork, with a place for each process. A process writes its counts into its place, once a
second and before it is scraped, and reads the places of the others.

Guarantee: a reader sees a whole document or none. Counts never fall, also when a process is started again, since it
goes on from what its predecessor has written. Weak point: what a process counted in its last second is lost with it.
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
        """Take the place of what this process has written; one that is too long is left out."""
        if len(document) > PLACE_BYTES - _HEAD.size:
            return
        at = self.number * PLACE_BYTES
        head = _HEAD.pack(len(document), zlib.crc32(document))
        self._memory[at : at + _HEAD.size + len(document)] = head + document

    def read(self, number: int) -> bytes:
        """What a process has written; empty where it has not, or is just doing so."""
        at = number * PLACE_BYTES
        length, checksum = _HEAD.unpack_from(self._memory, at)
        for _ in range(_TRIES):
            document = self._memory[at + _HEAD.size : at + _HEAD.size + min(length, PLACE_BYTES - _HEAD.size)]
            if zlib.crc32(document) == checksum:
                return document
            length, checksum = _HEAD.unpack_from(self._memory, at)
        return b""

    def others(self) -> list[bytes]:
        """What the other processes have written."""
        found = [self.read(number) for number in range(self.count) if number != self.number]
        return [document for document in found if document]


_TRIES = 100  # a write takes microseconds
