"""What outlives a start: the number of the start, and the windows that were not complete at a clean stop.

Both are small files in the state folder, replaced by an atomic rename. A missing or damaged one is no fault: windows
begin anew, and the start's number comes from the clock. Without a folder nothing is kept.
"""

import contextlib
import os
import time
from pathlib import Path

import msgspec

from edge_runtime.stream.windows import SavedStream

WINDOWS_FORMAT = 1
_given: dict[str, int] = {}  # the last number of each device in this process, for those without a folder


class SavedWindows(msgspec.Struct):
    """The incomplete windows of a device, by model; `digest` is of the bundle that they were made for."""

    format: int
    saved: float
    models: dict[str, tuple[str, list[SavedStream]]]


class StateFolder:
    """The device's folder for small files, or none."""

    def __init__(self, folder: Path | None, device: str) -> None:
        self._folder = folder
        self._device = device

    def next_start(self) -> int:
        """The number of this start: Unix seconds, but always above that of every earlier start."""
        path = self._path("start")
        last = _given.get(self._device, 0)  # a reload is a start too, and may come within a second
        if path is not None:
            with contextlib.suppress(OSError, ValueError):
                last = max(last, int(path.read_text()))
        start = _given[self._device] = max(int(time.time()), last + 1)
        if path is not None:
            with contextlib.suppress(OSError):  # a read-only folder: the clock has to do
                _replace(path, str(start).encode())
        return start

    def save_windows(self, models: dict[str, tuple[str, list[SavedStream]]]) -> None:
        """Keep the incomplete windows.

        Raises:
            OSError: the folder cannot be written.
        """
        path = self._path("windows")
        if path is not None:
            _replace(path, msgspec.msgpack.encode(SavedWindows(WINDOWS_FORMAT, time.time(), models)))

    def take_windows(self) -> SavedWindows | None:
        """The windows of the last clean stop, once: a crash after this leaves none to be taken twice."""
        path = self._path("windows")
        if path is None:
            return None
        try:
            found = msgspec.msgpack.decode(path.read_bytes(), type=SavedWindows)
            path.unlink()
        except (OSError, msgspec.MsgspecError):
            return None
        return found if found.format == WINDOWS_FORMAT else None

    def _path(self, what: str) -> Path | None:
        return None if self._folder is None else self._folder / f"{self._device}.{what}"


def _replace(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
        _sync_folder(path.parent)
    except OSError:
        with contextlib.suppress(OSError):
            new.unlink()
        raise


def _sync_folder(folder: Path) -> None:
    """Make the new name outlast a power cut: a device without a clock has nothing else to tell its starts apart."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
