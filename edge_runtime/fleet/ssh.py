"""One command on one device, over the system's ssh: the user's keys, agent, jump hosts and known hosts are used.

Host keys are always checked: an unknown or changed host is refused, for any `~/.ssh/config`, with one line and its
remedy. No password is ever requested. A silent device is given up after `stall_timeout`; the command on it may or may
not have finished.
"""

import contextlib
import os
import shlex
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, NamedTuple, TypeVar

from edge_runtime.errors import CommandError, TransientError
from edge_runtime.fleet.errors import AwayError, RefusedError
from edge_runtime.fleet.inventory import FleetDevice

SSH_FAILED = 255  # ssh(1): the connection, and not the command, failed
# Of what is repeated when a connection breaks: a transfer to a device, or captures from one.
TRIES = 3
RETRY_SECONDS = 3.0
CHUNK_BYTES = 65_536

Result = TypeVar("Result")

# Runs "$@" as an account of the device: directly if it is the login account, else through runuser or sudo.
_AS_ACCOUNT = """account=$1; shift
[ "$(id -un)" = "$account" ] && exec "$@"
id -u "$account" >/dev/null 2>&1 || { echo "there is no user $account: provision the device first" >&2; exit 69; }
[ "$(id -u)" = 0 ] && exec runuser -u "$account" -- "$@"
exec sudo -n -u "$account" -- "$@"
"""

# (what ssh says, what it means)
_MEANINGS = (
    (
        "REMOTE HOST IDENTIFICATION HAS CHANGED",
        (
            "its host key has changed: another machine may stand in between; where it was installed anew, "
            "`ssh-keygen -R {host}`"
        ),
    ),
    ("Host key verification failed", "its host key is unknown: connect once by hand with `ssh {host}` and compare it"),
    ("Permission denied", "the login was refused: try `ssh {host}` by hand"),
    ("Too many authentication failures", "the login was refused: try `ssh {host}` by hand"),
    ("Could not resolve hostname", "its name cannot be resolved: correct the address in the inventory"),
    ("Connection timed out", "it does not answer"),
    ("timed out", "it does not answer"),
    ("No route to host", "there is no way to it"),
    ("Network is unreachable", "there is no way to it"),
    ("Connection refused", "it refuses the connection: no ssh server listens there"),
    ("Bad configuration option", "ssh's own configuration is wrong: {line}"),
    ("Can't open user config file", "ssh's own configuration cannot be read: {line}"),
    ("Connection reset", "the connection broke"),
    ("Broken pipe", "the connection broke"),
    ("closed by remote host", "the connection broke"),
)


# Faults that a repetition cannot change.
_BY_HAND = frozenset(
    {
        "REMOTE HOST IDENTIFICATION HAS CHANGED",
        "Host key verification failed",
        "Permission denied",
        "Too many authentication failures",
        "Bad configuration option",
        "Can't open user config file",
    }
)


class RemoteResult(NamedTuple):
    """The result of a command on a device."""

    code: int
    out: str
    err: str

    @property
    def reason(self) -> str:
        """The last line of stderr: the one that says why."""
        lines = [line.strip() for line in self.err.splitlines() if line.strip()]
        return lines[-1] if lines else f"exit code {self.code}"


class UnreachableError(AwayError):
    """The connection failed; the text says why."""


def repeat(
    act: Callable[[], Result], waits: Mapping[type[TransientError], float], pause: Callable[[float], None]
) -> Result:
    """Call `act`, at most `TRIES` times, and return its result.

    Args:
        act: what may fail.
        waits: the errors after which it is called again, each with the seconds of the pause before.
        pause: waits so many seconds.

    Raises:
        TransientError: that of the last try.
    """
    for _ in range(TRIES - 1):
        try:
            return act()
        except tuple(waits) as error:
            pause(next(seconds for kind, seconds in waits.items() if isinstance(error, kind)))
    return act()


def as_account(account: str, words: Sequence[str]) -> list[str]:
    """A command line that runs `words` as an account of the device, independent of the login account."""
    return ["sh", "-c", _AS_ACCOUNT, "sh", account, *words]


def as_root(words: Sequence[str]) -> list[str]:
    """Words that run `words` as root: directly, or through sudo without a password."""
    return ["sh", "-c", '[ "$(id -u)" = 0 ] && exec "$@"; exec sudo -n -- "$@"', "sh", *words]


def script(text: str, *arguments: str) -> list[str]:
    """Words that run a shell script with arguments."""
    return ["sh", "-c", text, "sh", *arguments]


def require_ssh() -> None:
    """Raises CommandError where this machine has no ssh."""
    if shutil.which("ssh") is None:
        raise CommandError("ssh: expected the OpenSSH client on this machine, found none: install openssh-client")


def run(target: FleetDevice, words: Sequence[str], *, stdin: bytes = b"", timeout: float | None = None) -> RemoteResult:
    """Runs one command and waits for its end.

    Raises:
        UnreachableError: the connection failed, or there was no answer within `timeout` seconds.
    """
    with start(target, words) as process:
        try:
            out, err = process.communicate(stdin, timeout)
        except subprocess.TimeoutExpired as error:
            process.kill()
            process.communicate()
            raise UnreachableError(f"no answer within {timeout:g} s") from error
    answer = RemoteResult(process.returncode, out.decode(errors="replace"), err.decode(errors="replace"))
    raise_if_unreachable(target, answer)
    return answer


@contextlib.contextmanager
def start(target: FleetDevice, words: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A command on a device with open pipes; it is ended when the block is left."""
    if target.transport != "ssh":
        raise RefusedError("it is reached over MQTT only, and this needs ssh")
    process = subprocess.Popen(
        [*command(target), target.address, "--", shlex.join(words)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "LC_ALL": "C"},  # we read what ssh says
        start_new_session=True,  # Ctrl-C reaches only this process, so that an install on the device is not interrupted
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            with contextlib.suppress(OSError, ValueError):
                if pipe is not None:
                    pipe.close()


def command(target: FleetDevice) -> list[str]:
    """The words of ssh with its options, up to the address."""
    alive = max(1, round(target.stall_timeout / 3))
    words = ["ssh"]
    if target.ssh_config is not None:
        words += ["-F", target.ssh_config]
    options = {
        "BatchMode": "yes",
        "StrictHostKeyChecking": "yes",
        "ConnectTimeout": str(max(1, round(target.connect_timeout))),
        "ServerAliveInterval": str(alive),
        "ServerAliveCountMax": "3",
        "LogLevel": "ERROR",  # ssh's warnings would mix with the command's own output
        "ClearAllForwardings": "yes",
    }
    words += [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
    return [*words, "-T", *(["-p", str(target.port)] if target.port is not None else [])]


def raise_if_unreachable(target: FleetDevice, answer: RemoteResult) -> None:
    """Raise UnreachableError or RefusedError, with what it means in one line, where ssh itself failed."""
    if answer.code != SSH_FAILED:
        return
    for sign, meaning in _MEANINGS:
        if sign in answer.err:
            line = next(line for line in answer.err.splitlines() if sign in line).strip()
            host = target.address.rpartition("@")[2]
            text = meaning.format(host=host, line=line)
            raise RefusedError(text) if sign in _BY_HAND else UnreachableError(text)
    raise UnreachableError(f"the connection broke: {answer.reason}" if answer.err.strip() else "the connection broke")


class Collected:
    """Reads a pipe to its end in the background, and keeps the last of it."""

    _MOST = 65_536

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe = pipe
        self._content = b""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            while chunk := self._pipe.read1(8192) if hasattr(self._pipe, "read1") else self._pipe.read(8192):
                self._content = (self._content + chunk)[-self._MOST :]

    def text(self, timeout: float = 5.0) -> str:
        """What was read; waits for the end of the pipe, `timeout` seconds at most."""
        self._thread.join(timeout)
        return self._content.decode(errors="replace")
