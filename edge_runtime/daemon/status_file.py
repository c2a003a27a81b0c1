"""The file that `edge-runtime status` reads: in systemd's folder of the service, else in a memory folder of the user.

A daemon that runs in the foreground has no folder from systemd. Its file is then in `XDG_RUNTIME_DIR` or `/dev/shm`, in
a folder that only its user can read or write, within which each process has a folder. Both are memory, so that nothing
is written to flash. An existing folder that is open to others is not used, which is logged. A clean stop removes the
file; a killed daemon leaves it, and the next start of the same device removes it.
"""

import contextlib
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from edge_runtime.system.log import fields, get_logger

SERVICE_FOLDER = Path("/run/edge-runtime")
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - a folder of our own in it, which is checked
_SUFFIX = ".status.json"

_log = get_logger("daemon")


class StatusFile:
    """One daemon's file.

    Args:
        device: its id.
        environ: the variables, for RUNTIME_DIRECTORY and XDG_RUNTIME_DIR.
    """

    def __init__(self, device: str, environ: Mapping[str, str] = os.environ) -> None:
        self._device = device
        self._path: Path | None = None
        given = environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
        if given:
            self._path = Path(given) / f"{device}{_SUFFIX}"
            return
        try:
            folder = _make_private(own_folder(environ))
            _sweep(folder, device)
            mine = folder / str(os.getpid())
            mine.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            _log.warning("no status file is kept", extra=fields(why=error))
            return
        self._path = mine / f"{device}{_SUFFIX}"

    def write(self, document: Mapping[str, Any]) -> None:
        """Replace the file; a full or missing folder is logged."""
        if self._path is None:
            return
        beside = self._path.with_suffix(".new")
        try:
            beside.write_bytes(msgspec.json.encode(document))
            beside.replace(self._path)
        except OSError as error:
            _log.warning("the status file cannot be written", extra=fields(path=self._path, why=error.strerror))

    def remove(self) -> None:
        """Remove the file at a clean stop."""
        if self._path is not None:
            _remove(self._path)


def status_files(folder: Path, device: str | None) -> Iterator[Path]:
    """The files of one device, or of all devices, below a folder."""
    yield from sorted(path for path in folder.glob(f"**/*{_SUFFIX}") if device in {None, path.name[: -len(_SUFFIX)]})


def own_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """The folder of the files of this user's daemons in the foreground."""
    given = environ.get("XDG_RUNTIME_DIR", "")
    if given.startswith("/") and Path(given).is_dir():
        return Path(given) / "edge-runtime"
    return _SHARED_MEMORY / f"edge-runtime-{os.getuid()}"


def is_running(pid: object) -> bool:
    """Whether a process with this number exists, of any user."""
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def all_folders(environ: Mapping[str, str] = os.environ) -> list[Path]:
    """The folders that `status` searches: of services and of this user, whether XDG_RUNTIME_DIR was set or not."""
    session = {"XDG_RUNTIME_DIR": f"/run/user/{os.getuid()}"}
    return list(dict.fromkeys([SERVICE_FOLDER, own_folder(environ), own_folder(session), own_folder({})]))


def _make_private(folder: Path) -> Path:
    """Return the folder, and make it if it does not exist.

    Raises:
        OSError: it is not a folder that only this user can use.
    """
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise OSError(f"expected {folder} to be a folder of user {os.getuid()} with mode 700, found another: remove it")
    return folder


def _sweep(folder: Path, device: str) -> None:
    """Remove the files of killed daemons of this device."""
    for path in status_files(folder, device):
        name = path.parent.name
        if name.isdigit() and not is_running(int(name)):
            _remove(path)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # the file is gone already, or its folder holds that of another device
        path.unlink()
        if path.parent.name == str(os.getpid()) or path.parent.name.isdigit():
            path.parent.rmdir()
