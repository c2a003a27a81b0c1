"""Child processes, for work that may crash, hang or take much memory: how they start, and their limits.

A new program and no fork, so that it has neither this process's descriptors nor its memory. Of the environment it gets
only the path; it has its own session, and writes no bytecode. Weak point: it may read every file that this process may
read.
"""

import contextlib
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

_MOST_LINE = 500
_LOOK_S = 0.05
_TO_END_S = 0.5  # between SIGTERM and SIGKILL


def module_command(module: str, *words: str) -> list[str]:
    """The command that runs a module of the runtime, from any folder."""
    return [sys.executable, "-P", "-s", "-m", module, *words]


def start_child(
    command: Sequence[str],
    *,
    stdin: int = subprocess.DEVNULL,
    stdout: int = subprocess.DEVNULL,
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start it; stderr is discarded.

    Raises:
        OSError: it cannot be started.
    """
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return subprocess.Popen(
        command, stdin=stdin, stdout=stdout, stderr=subprocess.DEVNULL,
        pass_fds=pass_fds, env=environment, cwd="/", start_new_session=True,
    )  # fmt: skip


class CommandEnd(NamedTuple):
    """The end of a program: its exit code (or minus the signal), why it was ended, and the last line of its stderr."""

    code: int
    last_line: str = ""
    timed_out: bool = False
    was_stopped: bool = False


def run_command(argv: Sequence[str], given: bytes, timeout: float, end_now: threading.Event) -> CommandEnd:
    """Run a program of the user with `given` on its stdin, until it ends, takes too long, or `end_now` is set.

    Blocks. Its process group is always ended. Its stdout is discarded; not reading stdin, or closing it, is no fault.

    Raises:
        OSError: it cannot be started.
        ValueError: an argument holds a zero byte.
    """
    process = start_command(argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert process.stdin is not None
    assert process.stderr is not None
    for pipe in (process.stdin, process.stderr):
        os.set_blocking(pipe.fileno(), False)
    rest, tail = memoryview(given), b""
    until = time.monotonic() + timeout
    code: int | None = None
    while code is None and time.monotonic() < until and not end_now.is_set():
        rest = _feed(process, rest)
        tail = (tail + _read_some(process.stderr.fileno()))[-_MOST_LINE:]
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = process.wait(_LOOK_S)
    ended_by_itself = code is not None
    tail = (tail + _read_some(process.stderr.fileno()))[-_MOST_LINE:]
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):  # ends the rest of the group
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = process.wait(0 if ended_by_itself else _TO_END_S) if code is None else code
    for pipe in (process.stdin, process.stderr):
        with contextlib.suppress(OSError):  # the unread rest
            pipe.close()
    lines = [line for line in tail.decode(errors="replace").splitlines() if line.strip()]
    shown = "".join(each if each.isprintable() else " " for each in lines[-1]) if lines else ""
    timed_out = not ended_by_itself and not end_now.is_set()
    return CommandEnd(
        -signal.SIGKILL if code is None else code, shown, timed_out, not ended_by_itself and not timed_out
    )


def _feed(process: "subprocess.Popen[bytes]", rest: memoryview) -> memoryview:
    """Write as much as the pipe accepts, and close it after the last byte."""
    assert process.stdin is not None
    if process.stdin.closed:
        return rest
    try:
        while rest:
            rest = rest[os.write(process.stdin.fileno(), rest) :]
    except BlockingIOError:
        return rest
    except BrokenPipeError:
        rest = rest[:0]
    process.stdin.close()
    return rest


def _read_some(handle: int) -> bytes:
    """The last bytes in a pipe."""
    tail = b""
    for _ in range(64):  # a program that writes without end is ended by its timeout
        try:
            chunk = os.read(handle, 65_536)
        except BlockingIOError:
            break
        if not chunk:
            break
        tail = (tail + chunk)[-_MOST_LINE:]
    return tail


def start_command(
    argv: Sequence[str], *, stdin: int = subprocess.DEVNULL, stdout: int = subprocess.PIPE
) -> subprocess.Popen[bytes]:
    """Start a program of the user with pipes for stdout and stderr, and with little of the environment.

    Raises:
        OSError: it cannot be started.
        ValueError: an argument holds a zero byte.
    """
    environment = _kept("PATH", "HOME", "LANG", "LC_ALL", "TZ")
    return subprocess.Popen(
        list(argv), stdin=stdin, stdout=stdout, stderr=subprocess.PIPE,
        env=environment, cwd="/", start_new_session=True, bufsize=0,
    )  # fmt: skip


def collect_output(argv: Sequence[str], *, most_bytes: int, seconds: float) -> tuple[int, bytes]:
    """Run a short program of the user; its exit code, and the beginning of what it wrote. Its stderr is discarded.

    It can read systemd's credentials of this service. When this returns, its process group has ended.

    Raises:
        OSError: it cannot be started; TimeoutError where it has not ended in time.
        ValueError: an argument holds a zero byte.
    """
    environment = _kept("PATH", "HOME", "LANG", "LC_ALL", "TZ", "CREDENTIALS_DIRECTORY")
    process = subprocess.Popen(
        list(argv), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env=environment, cwd="/", start_new_session=True, bufsize=0,
    )  # fmt: skip
    assert process.stdout is not None
    until = time.monotonic() + seconds
    found = b""
    try:
        while len(found) < most_bytes:
            ready, _, _ = select.select([process.stdout], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                raise TimeoutError
            chunk = os.read(process.stdout.fileno(), most_bytes - len(found))
            if not chunk:
                break
            found += chunk
        else:
            return 0, found  # more output than allowed, for any exit code
        try:
            return process.wait(max(0.0, until - time.monotonic())), found
        except subprocess.TimeoutExpired:
            raise TimeoutError from None
    finally:
        process.stdout.close()
        with contextlib.suppress(ProcessLookupError, PermissionError):  # ends the rest of the group
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _kept(*names: str) -> dict[str, str]:
    """The environment for a program of the user."""
    return {"PATH": os.defpath} | {name: os.environ[name] for name in names if name in os.environ}


def step_back(mapped_bytes: int) -> None:
    """In the child: preferred by the OOM killer, lowest priority, no core dump, and no more than this mapped."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (mapped_bytes, mapped_bytes))
    with contextlib.suppress(OSError):  # not permitted by the service's unit
        os.setpriority(os.PRIO_PROCESS, 0, 19)
