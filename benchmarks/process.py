"""Start, watch and end the processes of a benchmark, each on the core that it was given.

The CPU time is the scheduler's own count in nanoseconds: `/proc/PID/task/*/schedstat` sums up to the same number,
but forgets threads that have ended, which the process's CPU clock does not. Ticks (`/proc/PID/stat`) are too
coarse for a target that sleeps most of the time.
"""

import functools
import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

STOP_SECONDS = 10.0


@functools.cache
def cores() -> tuple[int, int]:
    """The core of load generator and broker, and the core of the target; the same one where there is only one.

    As the machine gave them at the first call: the benchmark then stays on its own core, and would see no other.
    """
    available = sorted(os.sched_getaffinity(0))
    return available[0], available[-1]


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process had used at one moment; the difference of two is a measurement.

    Attributes:
        wall_s: the moment, on the monotonic clock.
        cpu_s: user and system time of all threads, those that have ended included.
        wakeups: voluntary context switches of all living threads: how often it went to sleep, and so was woken.
        written_bytes: what it caused to be written to a disk.
    """

    wall_s: float
    cpu_s: float
    wakeups: int
    written_bytes: int

    def __sub__(self, before: "Usage") -> "Usage":
        return Usage(
            self.wall_s - before.wall_s,
            self.cpu_s - before.cpu_s,
            self.wakeups - before.wakeups,
            self.written_bytes - before.written_bytes,
        )


class Process:
    """A child on one core, with its output in a file; leaving the `with` block ends it."""

    def __init__(self, command: Sequence[str], *, core: int, log: Path, env: Mapping[str, str] | None = None) -> None:
        self.log = log
        with _on(core), log.open("wb") as output:  # a child inherits the affinity, so its threads all have it
            self.started = time.perf_counter()
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
            )
        self.pid = self._child.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def usage(self) -> Usage:
        """What it has used up to now."""
        return Usage(time.monotonic(), _cpu_seconds(self.pid), _wakeups(self.pid), _written_bytes(self.pid))

    def rss_bytes(self) -> int:
        """Resident memory."""
        return int(_status(Path(f"/proc/{self.pid}/status"))["VmRSS"].split()[0]) * 1024

    def check(self) -> None:
        """Raise when it has ended by itself, with the end of its output."""
        code = self._child.poll()
        if code is not None:
            raise RuntimeError(f"{self.log.stem} ended by itself with {code}:\n{self.output()[-2000:]}")

    def wait(self, seconds: float) -> int:
        """Wait for it to end by itself and return its exit code."""
        return self._child.wait(timeout=seconds)

    def output(self) -> str:
        """Everything that it wrote to its output."""
        return self.log.read_text(errors="replace")

    def wait_for(self, text: str, seconds: float) -> float:
        """Wait until its output holds `text`; return the seconds since it was started."""
        deadline = time.perf_counter() + seconds
        while text not in self.output():
            self.check()
            if time.perf_counter() > deadline:
                raise TimeoutError(f"{self.log.stem} did not say {text!r} in {seconds:.0f} s:\n{self.output()[-2000:]}")
            time.sleep(0.002)
        return time.perf_counter() - self.started

    def stop(self) -> None:
        """End it: politely, then at once."""
        if self._child.poll() is None:
            self._child.terminate()
            try:
                self._child.wait(timeout=STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait(timeout=STOP_SECONDS)


@contextmanager
def _on(core: int) -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _cpu_seconds(pid: int) -> float:
    return time.clock_gettime((~pid << 3) | 2)  # the kernel's clock id of another process: clock_getcpuclockid(3)


def _wakeups(pid: int) -> int:
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended since
            total += int(_status(task / "status")["voluntary_ctxt_switches"])
    return total


def _written_bytes(pid: int) -> int:
    return int(_status(Path(f"/proc/{pid}/io"))["write_bytes"])


def _status(path: Path) -> dict[str, str]:
    lines = (line.partition(":") for line in path.read_text().splitlines())
    return {key: value.strip() for key, _, value in lines}
