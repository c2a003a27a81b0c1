"""The lock by which an outbox belongs to one daemon, and the name of its holder.

Guarantee: while a daemon runs, no other on this machine opens the same outbox; the kernel releases the lock when the
process ends in any way. Weak points: a folder that cannot be written has no lock, but then the outbox does not work
either, which health reports; file systems over a network may not share locks.
"""

import contextlib
import fcntl
import os
from pathlib import Path

from edge_runtime.errors import ConfigError

_MOST_BYTES = 500


class Claim:
    """The lock on one outbox, from its making to `release`.

    Args:
        outbox: the database file; the lock file is beside it and is never removed.
        device: whose daemon this is.

    Raises:
        ConfigError: another process holds it.
    """

    def __init__(self, outbox: Path, device: str) -> None:
        self.outbox = outbox
        self._handle: int | None = None
        path = outbox.with_name(f"{outbox.name}.lock")
        try:
            outbox.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError:
            return  # the outbox reports this itself, and retries
        self._handle = handle
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = _holder(handle)
            self.release()
            raise ConfigError(
                f"outbox.path: expected an outbox of its own, found {outbox} in use by {holder}: stop that daemon, or "
                "give this one another path"
            ) from error
        with contextlib.suppress(OSError):  # a full disk: the lock is held, but without a name
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()}, device {device}".encode()[:_MOST_BYTES], 0)

    def release(self) -> None:
        """Release the lock."""
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)


def _holder(handle: int) -> str:
    """The text that the holder of the lock wrote into it."""
    found = ""
    with contextlib.suppress(OSError):
        found = os.pread(handle, _MOST_BYTES, 0).decode(errors="replace")
    return found if found and found.isprintable() else "another process"
