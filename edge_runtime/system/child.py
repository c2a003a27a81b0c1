"""A process of ours beside the daemon, for what may crash, hang or eat memory: how it starts, and how it steps back.

It is fresh and no fork, so that it holds neither our descriptors nor our memory; it gets nothing of our environment
but the path, leads a session of its own, and writes no bytecode. Weak point: it may read whatever we may.
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
    """Start it; what it says of itself on its standard error is nobody's.

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


def step_back(mapped_bytes: int) -> None:
    """In the child: be the first to go when memory runs out, map no more than this, and give way to everybody else."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (mapped_bytes, mapped_bytes))
    with contextlib.suppress(OSError):  # the service's unit does not let it
        os.setpriority(os.PRIO_PROCESS, 0, 19)
