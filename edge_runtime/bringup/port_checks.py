"""The checks of `doctor` for a serial port: existence, permission, the process that holds it, a stable name.

Guarantee: the port is not opened, so no board is reset and the daemon loses no byte. Weak point: the data is not
checked; `try` does that.
"""

import grp
import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path

from edge_runtime.bringup.finding import Finding

BY_ID = Path("/dev/serial/by-id")
_PROC = Path("/proc")
_SERVICE_GROUP = "dialout"  # SupplementaryGroups= of the unit


def stable_name(port: Path, by_id: Path = BY_ID) -> Path | None:
    """The stable name of a port, which is the same in every USB socket."""
    if not by_id.is_dir():
        return None
    real = port.resolve()
    return next((each for each in sorted(by_id.iterdir()) if each.resolve() == real), None)


def check_port(port: str, *, by_id: Path = BY_ID) -> Iterator[Finding]:
    """One port of a device file."""
    check, path = f"port {port}", Path(port)
    try:
        status = path.stat()
    except FileNotFoundError:
        present = sorted(str(each) for each in by_id.iterdir()) if by_id.is_dir() else []
        remedy = f"plug it in, or choose one of {', '.join(present)}" if present else "plug it in, and look at dmesg"
        yield Finding(check, "failure", "not there", remedy)
        return
    except OSError as error:
        yield Finding(check, "failure", f"cannot be looked at: {error.strerror}", "look at the path")
        return
    if not stat.S_ISCHR(status.st_mode):
        yield Finding(check, "failure", "no serial port, but another kind of file", "look at the path")
        return
    group, owner = _group(status.st_gid), _owner(status.st_uid)
    if not os.access(path, os.R_OK | os.W_OK):
        found = (
            f"{_owner(os.geteuid())} may not open it: it belongs to {owner}:{group}, {stat.filemode(status.st_mode)}"
        )
        yield Finding(check, "failure", found, f"sudo usermod -aG {group} {_owner(os.geteuid())}, and log in again")
        return
    holder = _holder(path)
    if holder is not None and "edge-runtime" not in holder:
        yield Finding(check, "failure", f"held by {holder}", "end it: a port has one reader")
        return
    held = f", held by {holder}" if holder else ""
    if status.st_gid != 0 and group != _SERVICE_GROUP:
        remedy = f"add SupplementaryGroups={group} with systemctl edit, for the service"
        yield Finding(check, "warning", f"belongs to the group {group}, which the service is not in{held}", remedy)
        return
    better = stable_name(path, by_id)
    if better is not None and path.parent != by_id:
        yield Finding(check, "warning", f"there{held}, under a name that changes with the socket", f"use {better}")
        return
    yield Finding(check, "ok", f"there, and may be opened{held}")


def _holder(path: Path, proc: Path = _PROC) -> str | None:
    """The process that has the device open, if this user may see it."""
    wanted = path.stat().st_rdev
    for process in sorted(proc.glob("[0-9]*")):
        if process.name == str(os.getpid()):
            continue
        try:
            descriptors = list((process / "fd").iterdir())
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # another user's, or gone
        for each in descriptors:
            try:
                status = each.stat()
            except OSError:
                continue
            if stat.S_ISCHR(status.st_mode) and status.st_rdev == wanted:
                return f"process {process.name} ({b' '.join(words).decode(errors='replace').strip()[:80]})"
    return None


def _group(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


def _owner(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)
