"""Files that survive a power cut: written beside, synchronised, renamed, and the folder synchronised too.

After `replace_file` returns, the new content is on disk, if the disk reports its syncs correctly; a power cut before
that leaves the old content. Names of partial files begin with `.new-`, one for each target, so leftovers do not
accumulate. Files written by root get the owner of the folder, so that the daemon, which is not root, can use them.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from edge_runtime.errors import CommandError

_NEW = ".new-"
_BUFFER = 1 << 16


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """Create a folder durably (its parent exists); an existing folder is not changed."""
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o755)
        _give_away(folder)
        sync_folder(folder.parent)


def write_file(path: Path, data: bytes | Iterable[bytes], *, mode: int = 0o644) -> None:
    """Create or overwrite a file and make its content durable, but not yet its name.

    Content in parts is written as they come, and need not fit into memory as a whole.
    """
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        for part in [data] if isinstance(data, bytes) else _gathered(data):
            rest = memoryview(part)
            while rest:
                rest = rest[os.write(handle, rest) :]
        _give_away(handle)
        os.fsync(handle)
    finally:
        os.close(handle)


def half_written(name: str) -> str:
    """The name of what `replace_file` leaves beside a file when it is killed."""
    return _NEW + name


def _gathered(parts: Iterable[bytes]) -> Iterator[bytes | bytearray]:
    """Small parts put together, so that each write is a large one."""
    buffer = bytearray()
    for part in parts:
        buffer += part
        if len(buffer) >= _BUFFER:
            yield buffer
            buffer = bytearray()
    yield buffer


def replace_file(path: Path, data: bytes | Iterable[bytes], *, mode: int = 0o644) -> None:
    """Replace the content of `path` by `data` atomically, for readers and for power cuts."""
    new = path.with_name(half_written(path.name))
    try:
        write_file(new, data, mode=mode)
        new.replace(path)
    except OSError:
        with contextlib.suppress(OSError):  # half a file would only keep the disk full
            new.unlink()
        raise
    sync_folder(path.parent)


def remove(path: Path) -> None:
    """Remove a file, or a folder with its content; a missing one is no error."""
    if path.is_dir() and not path.is_symlink():
        import shutil  # noqa: PLC0415 - drags in the archive formats, which a start does not need

        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path, busy: str, wait_s: float) -> Iterator[None]:
    """Hold an exclusive lock on a file for the block. The kernel releases it at any end of the process.

    Args:
        path: the lock file, created if missing and never removed.
        busy: the message when another process holds it.
        wait_s: how long to wait for it.

    Raises:
        CommandError: another process holds it.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        _give_away(handle)
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= deadline:
                    raise CommandError(busy) from error
                time.sleep(0.02)
        yield
    finally:
        os.close(handle)


def _give_away(target: Path | int) -> None:
    """Give a file of root to the owner of its folder."""
    if os.geteuid() != 0:
        return
    path = Path(f"/proc/self/fd/{target}").readlink() if isinstance(target, int) else target
    owner = path.parent.stat()
    if (owner.st_uid, owner.st_gid) != (0, 0):
        os.chown(target, owner.st_uid, owner.st_gid)
