"""The paths in the folder of the model store, and the messages for errors of the disk.

::

    models/
      .install.lock  .lock        one install at a time; one change of state at a time (milliseconds)
      .staging/                   the files of the present install; the next install empties it
      .class                      the device's class, as the daemon last ran with it
      .incoming/                  parts of a transfer over MQTT (`ota_parts.py`)
      .floors/NAME.json           `floors.py`
      NAME/state.json             `records.py`
      NAME/DIGEST.onnx (.sig)     the bundles that state.json names; never changed, only added and pruned
      NAME/DIGEST.measured.json   the measured cost of such a bundle here, after `selftest --measure`
      NAME/DIGEST.onnx.optimised  onnxruntime's optimised form of it (`bundle/optimised_copy.py`)
"""

import contextlib
import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, unquote

from edge_runtime.errors import CommandError
from edge_runtime.system.durable import locked, make_folder, replace_file

STATE_FILE = "state.json"
_LOCK_WAIT_S = 10.0
_MAX_NAME_BYTES = 230  # with `.new-` before and `.json` behind it, still a file name (255)

_DISK_ERRORS: dict[int | None, str] = {
    errno.ENOSPC: "the disk is full: remove something, then try again",
    errno.EDQUOT: "the quota is used up: remove something, then try again",
    errno.EROFS: "the file system is read-only: mount it writable, then try again",
    errno.EACCES: "permission denied: run this as the owner of the store, or as root",
    errno.EPERM: "permission denied: run this as the owner of the store, or as root",
    errno.EIO: "the disk reports an error: check it, then try again",
}


class StoreFolder:
    """The paths below one store.

    Args:
        root: the folder; made when the first bundle is installed.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.staging = root / ".staging"
        self.incoming = root / ".incoming"

    def names(self) -> list[str]:
        """The names that have a state, in order.

        Raises:
            CommandError: the folder cannot be read.
        """
        try:
            folders = sorted(path for path in self.root.iterdir() if not path.name.startswith("."))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise CommandError(f"{self.root}: cannot be read: {error.strerror}") from error
        return [unquote(folder.name) for folder in folders if (folder / STATE_FILE).exists()]

    def make(self) -> None:
        """Make the folder, durably."""
        self.root.parent.mkdir(parents=True, exist_ok=True)
        make_folder(self.root)
        make_folder(self.root / ".floors")

    def of(self, name: str) -> Path:
        """The folder of one name."""
        return self.root / quoted(name)

    def state(self, name: str) -> Path:
        """The file with the decision for a name."""
        return self.of(name) / STATE_FILE

    def bundle(self, name: str, digest: str) -> Path:
        """The file of one bundle."""
        return self.of(name) / f"{digest}.onnx"

    def floor(self, name: str) -> Path:
        """The file with the version floor of a name."""
        return self.root / ".floors" / f"{quoted(name)}.json"

    def device_class(self) -> str | None:
        """The class that the daemon noted here; None if it has not."""
        try:
            return (self.root / ".class").read_text(encoding="utf-8").strip() or None
        except (OSError, ValueError):
            return None

    def note_device_class(self, device_class: str | None) -> None:
        """Keep the `[device] class` for installs by hand, by ssh and from a stick; only if there is a store."""
        if device_class != self.device_class():
            with contextlib.suppress(OSError):  # there is no store, or a read-only one, which takes no bundles either
                replace_file(self.root / ".class", (device_class or "").encode())

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Turn an error of the disk into a CommandError with a message."""
        try:
            yield
        except OSError as error:
            words = _DISK_ERRORS.get(error.errno, f"{error.strerror or error}")
            raise CommandError(f"{self.root}: cannot be written: {words}") from error

    @contextmanager
    def changing(self, name: str) -> Iterator[None]:
        """Hold the lock of the state, which is only held briefly.

        Raises:
            CommandError: there is no store, the lock stays held, or the disk fails.
        """
        with self.writing():
            if not self.root.is_dir():
                raise CommandError(f"{self.root}: expected a model named {name}, found no store: install it first")
            busy = f"{self.root}: expected its lock to be free, found it held"
            with locked(self.root / ".lock", busy, _LOCK_WAIT_S):
                yield


def is_valid_name(name: str) -> bool:
    """Whether a name can be a folder here."""
    return name.isprintable() and len(quoted(name)) <= _MAX_NAME_BYTES


def quoted(name: str) -> str:
    """A name as a name of a folder: the name itself if it is plain, else with %XX for other characters."""
    text = quote(name, safe="")
    return "%2E" + text[1:] if text.startswith(".") else text
