"""The state that is kept over a restart: the start's number, incomplete windows of a clean stop, the outbox's place.

The first two are small files in the state folder, replaced by an atomic rename. A missing or damaged one is not a
fault: windows start empty, and the start's number comes from the clock. Without a folder nothing is kept.
"""

import contextlib
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from edge_runtime.config.tables import Config
from edge_runtime.delivery.outbox_file import OutboxFile
from edge_runtime.delivery.outbox_thread import OutboxThread
from edge_runtime.stream.holding import OwedReceipts
from edge_runtime.stream.pipeline import Pipeline
from edge_runtime.stream.seen import SavedSeen
from edge_runtime.stream.sources.kind import Remembering
from edge_runtime.stream.windows import SavedStream
from edge_runtime.system.durable import replace_file
from edge_runtime.system.log import fields, get_logger
from edge_runtime.system.loop import Loop

WINDOWS_FORMAT = 1
_ARRAY, _MAP = 0xDD, 0xDF
OWNER_ONLY = 0o600  # the windows contain readings

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_log = get_logger("daemon")


def state_folder(config: Config) -> Path | None:
    """The folder of the outbox, else systemd's state folder, else None."""
    if config.outbox.path is not None:
        return Path(config.outbox.path).parent
    folder = os.environ.get("STATE_DIRECTORY", "").split(":")[0]
    return Path(folder) if folder else None


class SavedWindows(msgspec.Struct):
    """The incomplete windows of a device, by model, with the digest of the bundle that they were made for.

    The sources' memories are saved with them, since a broker may send a reading in a window again.
    """

    format: int
    saved: float
    models: dict[str, tuple[str, list[SavedStream]]]
    sources: dict[str, SavedSeen] = {}
    boot: str = ""
    saved_uptime: float = 0.0

    def age(self) -> float:
        """Seconds since they were saved, by the machine's uptime; after a reboot by the wall clock."""
        if self.boot and self.boot == _boot_id():
            return max(0.0, _uptime() - self.saved_uptime)
        return max(0.0, time.time() - self.saved)


class StateFolder:
    """The device's folder for small files, or none."""

    def __init__(self, folder: Path | None, device: str) -> None:
        self._folder = folder
        self._device = device

    def next_start(self, above: int = 0) -> int:
        """The number of this start: Unix seconds, but always above that of every earlier start.

        Args:
            above: the last number of this process, for a device without a folder: a reload may come within a second.
        """
        path = self._path("start")
        last = above
        if path is not None:
            with contextlib.suppress(OSError, ValueError):
                last = max(last, int(path.read_text()))
        start = max(int(time.time()), last + 1)
        if path is not None:
            with contextlib.suppress(OSError):  # a read-only folder: only the clock is used
                self._replace(path, str(start).encode())
        return start

    def save_windows(
        self, models: dict[str, tuple[str, list[SavedStream]]], sources: dict[str, SavedSeen] | None = None
    ) -> None:
        """Save the incomplete windows, and the memories of the sources.

        Raises:
            OSError: the folder cannot be written.
        """
        path = self._path("windows")
        if path is not None:
            saved = SavedWindows(WINDOWS_FORMAT, time.time(), models, sources or {}, _boot_id(), _uptime())
            self._replace(path, _in_parts(saved))

    def take_windows(self) -> SavedWindows | None:
        """Take the windows of the last clean stop; their file is removed, so that no later start uses them again."""
        path = self._path("windows")
        if path is None:
            return None
        try:
            found = msgspec.msgpack.decode(path.read_bytes(), type=SavedWindows)
            path.unlink()
        except (OSError, msgspec.MsgspecError):
            return None
        return found if found.format == WINDOWS_FORMAT else None

    def read(self, what: str) -> bytes | None:
        """The content of a small file of another part; None if there is none."""
        path = self._path(what)
        try:
            return None if path is None else path.read_bytes()
        except OSError:
            return None

    def write(self, what: str, data: bytes) -> None:
        """Replace a small file of another part.

        Raises:
            OSError: the folder cannot be written.
        """
        path = self._path(what)
        if path is not None:
            self._replace(path, data)

    def _path(self, what: str) -> Path | None:
        return None if self._folder is None else self._folder / f"{self._device}.{what}"

    def _replace(self, path: Path, data: bytes | Iterable[bytes]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, data, mode=OWNER_ONLY)


def _in_parts(saved: SavedWindows) -> Iterator[bytes]:
    """Encode one stream at a time, as valid MessagePack of the whole, since windows may take most of the memory."""
    encode = msgspec.msgpack.encode
    others = {name: getattr(saved, name) for name in SavedWindows.__struct_fields__ if name != "models"}
    yield _head(_MAP, len(others) + 1)
    for name, value in others.items():
        yield encode(name) + encode(value)
    yield encode("models") + _head(_MAP, len(saved.models))
    for name, (digest, streams) in saved.models.items():
        yield encode(name) + _head(_ARRAY, 2) + encode(digest) + _head(_ARRAY, len(streams))
        for stream in streams:
            yield encode(stream)


def _head(kind: int, count: int) -> bytes:
    """The header of an array or a map: the formats array 32 and map 32 of msgpack's specification."""
    return bytes([kind]) + count.to_bytes(4, "big")


def _boot_id() -> str:
    """The kernel's identifier of this boot; empty if it cannot be read."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def _uptime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def save_windows(folder: StateFolder, pipelines: Sequence[Pipeline], sources: Mapping[str, Remembering]) -> None:
    """Save the incomplete windows of a clean stop, and the memories of its sources."""
    owed = OwedReceipts()
    saved = {each.config.name: (each.model.bundle.digest, each.save_windows(owed)) for each in pipelines}
    try:
        folder.save_windows(
            {name: item for name, item in saved.items() if item[1]},
            {name: source.save(owed) for name, source in sources.items()},
        )
    except OSError as error:
        _log.warning("incomplete windows are not kept", extra=fields(why=error.strerror))


def restore_windows(
    folder: StateFolder, pipelines: Sequence[Pipeline], sources: Mapping[str, Remembering], now: float
) -> None:
    """Restore the windows that the last clean stop saved, if bundle and age allow it.

    Args:
        folder: where they are.
        pipelines: their windows are restored.
        sources: their memories are restored.
        now: the loop's time.
    """
    found = folder.take_windows()
    if found is None:
        return
    age, owed = found.age(), OwedReceipts()
    for each in pipelines:
        digest, streams = found.models.get(each.config.name, ("", []))
        if digest == each.model.bundle.digest and age <= each.config.key_expiry:  # a gap is judged by the next reading
            restored = each.restore_windows(streams, owed, now - age)
            _log.info("windows restored", extra=fields(model=each.config.name, keys=restored, age_s=round(age)))
    for name, seen in found.sources.items():
        if name in sources:
            sources[name].restore(seen, owed)


def outbox_path(config: Config) -> Path | None:
    """The database file; None if predictions wait only in memory."""
    if config.outbox.path is not None:
        return Path(config.outbox.path)
    folder = state_folder(config)
    return None if folder is None else folder / "outbox.db"


def outbox_thread(config: Config, loop: Loop) -> OutboxThread | None:
    """The outbox's file with its thread; None if predictions wait only in memory."""
    path = outbox_path(config)
    if path is None:
        return None
    return OutboxThread(OutboxFile(path, config.outbox.max_bytes, config.outbox.max_age), loop.call_soon_threadsafe)
