"""The server's listening sockets: an address of its own, a Unix socket, or one passed by systemd.

Guarantee: a socket that systemd (or `processes.py`) also holds is never shut down, so clients that connect while no
process accepts wait in its queue instead of being refused. The Unix socket of a dead process is replaced; one that is
in use, and a file that is no socket, are left alone.
"""

import contextlib
import os
import socket
from collections.abc import MutableMapping
from pathlib import Path

from edge_runtime.config.addresses import is_loopback, unix_path
from edge_runtime.errors import CommandError, TransientError

BACKLOG = 128
FIRST_FD = 3  # SD_LISTEN_FDS_START of sd_listen_fds(3)
UNIX_MODE = 0o660


class ListenError(TransientError):
    """The address cannot be listened on at the moment."""


def bind(listen: str, *, shared: bool = False) -> socket.socket:
    """Listen.

    Args:
        listen: HOST:PORT, where a host in brackets is IPv6 and port 0 any free one, or unix:PATH.
        shared: several sockets of this user may listen on the same port, and the kernel shares connections out.

    Raises:
        ListenError: the address is in use, or does not belong to this machine.
    """
    path = unix_path(listen)
    try:
        listener = _bound_path(Path(path)) if path is not None else _bound_port(listen, shared=shared)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ListenError(f"{listen}: cannot be listened on: {reason}") from error
    return listener


def listen_on(listen: str, count: int = 1) -> list[socket.socket]:
    """Sockets for so many processes: one each on the same port, or the same Unix socket for all.

    Raises:
        CommandError: the address is in use, or does not belong to this machine.
    """
    try:
        first = bind(listen, shared=count > 1)
        if first.family == socket.AF_UNIX:
            return [first] * count
        return [first, *(bind(address_of(first), shared=True) for _ in range(count - 1))]
    except ListenError as error:
        raise CommandError(str(error)) from error


def inherited(environ: MutableMapping[str, str] = os.environ) -> socket.socket | None:
    """The socket that systemd listens on for this process; None if it was not started through a socket.

    The variables are removed from the environment, so that no child process uses them.

    Raises:
        CommandError: there are several, or it is not a listening stream socket.
    """
    pid, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdigit() or count == "0":
        return None
    if count != "1":
        raise CommandError(
            f"LISTEN_FDS: expected one socket, found {count}: leave one ListenStream= in the socket unit"
        )
    try:
        listener = socket.socket(fileno=FIRST_FD)
        listens = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise CommandError(f"LISTEN_FDS: expected a socket as descriptor {FIRST_FD}: {error.strerror}") from error
    if listener.type != socket.SOCK_STREAM or not listens:
        raise CommandError("LISTEN_FDS: expected a stream socket that listens: use ListenStream= and Accept=no")
    os.set_inheritable(FIRST_FD, False)
    listener.setblocking(False)
    return listener


def is_local(listener: socket.socket) -> bool:
    """Whether only this machine can reach it."""
    if listener.family == socket.AF_UNIX:
        return True
    return is_loopback(str(listener.getsockname()[0]))


def address_of(listener: socket.socket) -> str:
    """The address of a listening socket, in the form of `--listen`."""
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"unix:{name}"
    return f"[{name[0]}]:{name[1]}" if listener.family == socket.AF_INET6 else f"{name[0]}:{name[1]}"


def forget(path: str) -> None:
    """Remove the file of a Unix socket, unless a successor listens there."""
    with contextlib.suppress(OSError):
        if Path(path).is_socket() and not _is_listened_on(path):
            Path(path).unlink()


def _bound_port(listen: str, *, shared: bool) -> socket.socket:
    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((host, int(port)))
    except BaseException:
        listener.close()
        raise
    return listener


def _bound_path(path: Path) -> socket.socket:
    """A new socket file, whose group may connect."""
    if path.exists() or path.is_symlink():
        if not path.is_socket():
            raise OSError(None, "there is a file of that name, and it is no socket")
        if _is_listened_on(str(path)):
            raise OSError(None, "another process listens on it")
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        path.chmod(UNIX_MODE)
    except BaseException:
        listener.close()
        raise
    return listener


def _is_listened_on(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:  # its queue is full, or access is denied: in use by another process
            return True
    return True
