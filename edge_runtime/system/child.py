"""Child processes, for work that may crash, hang or take much memory: how they start, and their limits.

A new program and no fork, so that it has neither our descriptors nor our memory. Of our environment it gets the path
alone; it leads a session of its own, and writes no bytecode. Weak point: it may read whatever we may.
"""

import contextlib
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def module_command(module: str, *words: str) -> list[str]:
    """What runs a module of the runtime, whatever folder it is called from."""
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


def start_command(argv: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start a program of the user, whose stdout and stderr are ours to read; of our environment it gets little.

    Raises:
        OSError: it cannot be started.
        ValueError: an argument holds a zero byte.
    """
    kept = ("PATH", "HOME", "LANG", "LC_ALL", "TZ")
    environment = {"PATH": os.defpath} | {name: os.environ[name] for name in kept if name in os.environ}
    return subprocess.Popen(
        list(argv), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=environment, cwd="/", start_new_session=True, bufsize=0,
    )  # fmt: skip


def step_back(mapped_bytes: int) -> None:
    """In the child: preferred by the OOM killer, lowest priority, no core dump, and no more than this mapped."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (mapped_bytes, mapped_bytes))
    with contextlib.suppress(OSError):  # the service's unit does not let it
        os.setpriority(os.PRIO_PROCESS, 0, 19)
