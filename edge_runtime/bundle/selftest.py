"""Run a bundle's golden vectors in a child process, which may crash, hang or run out of memory without harm.

`run_selftest` starts `python -m edge_runtime.bundle.selftest` with limits on memory, processor time, wall time and file
size (no byte may be written), and turns its result into a `Measured` or one sentence. The child is a fresh process and
no fork, so it has neither the daemon's descriptors nor its memory. It is not isolated from the network or from files:
no allowed operator can access them.

Latency is measured one window at a time, and its median compared with the budget: on a busy device a single slow run is
usually caused by other processes.
"""

import argparse
import contextlib
import json
import os
import platform
import resource
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from edge_runtime.bundle.measured import MIB, Measured
from edge_runtime.bundle.open import Bundle, one_line, open_bundle
from edge_runtime.errors import BundleError
from edge_runtime.system.child import module_command, start_child
from edge_runtime.system.memory import peak_bytes

_MAX_REPORT_BYTES = 64 * 1024
_WARM_UP, _RUNS, _RUNS_S = 5, 200, 2.0
# What Python, numpy and onnxruntime map before any model is there: 400 MiB on x86-64, mostly stacks and malloc's
# reserves of threads. The limit is on mapped memory, since Linux has none on resident memory.
MAPPED_BY_RUNTIME = 768 * MIB


@dataclass(frozen=True, slots=True)
class Budget:
    """The limits of a model in the self-test; None is no limit.

    Attributes:
        wall_s: time from start to report; a model that hangs is killed after it.
        cpu_s: processor time.
        model_bytes: memory that the model may map beyond the runtime itself.
        latency_ms: the median time of one window.
        memory_bytes: the peak resident memory of the child, runtime included.
    """

    wall_s: float = 120.0
    cpu_s: int = 60
    model_bytes: int = 1024 * MIB
    latency_ms: float | None = None
    memory_bytes: int | None = None


DEFAULT_BUDGET = Budget()


def run_selftest(bundle: Bundle, budget: Budget = DEFAULT_BUDGET, *, place: str | None = None) -> Measured:
    """Check in a child process that a bundle gives its golden answers on this device, within its budget.

    Args:
        bundle: the bundle, opened.
        budget: what it may cost.
        place: its name in messages.

    Raises:
        BundleError: it crashed, hung, ran out of memory, gave other answers, or exceeded the budget.
    """
    place = place or str(bundle.path)
    if bundle.manifest.selftest is None:
        raise BundleError(
            f"{place}: expected golden vectors, found none: convert it again, so that it can prove itself"
        )
    status, report = _run_child(bundle, budget)
    problem = _problem(status, report, budget)
    if problem is not None:
        raise BundleError(f"{place}: self-test: {problem}")
    assert report is not None
    measured = Measured(**report["measured"])
    if measured.digest != bundle.digest:
        raise BundleError(f"{place}: self-test: expected the file that was checked, found another: install it again")
    if budget.latency_ms is not None and measured.median_ms > budget.latency_ms:
        raise BundleError(
            f"{place}: self-test: expected at most {budget.latency_ms:g} ms a window, "
            f"found {measured.median_ms:.3g} ms: use a smaller model or a faster device"
        )
    if budget.memory_bytes is not None and measured.peak_rss_bytes > budget.memory_bytes:
        raise BundleError(
            f"{place}: self-test: expected at most {budget.memory_bytes / MIB:.0f} MiB of memory, "
            f"found {measured.peak_rss_bytes / MIB:.0f} MiB: use a smaller model"
        )
    return measured


# -- the parent ----------------------------------------------------------------------------------------------------


def _run_child(bundle: Bundle, budget: Budget) -> tuple[int | None, dict[str, Any] | None]:
    """Start the child and wait; the status is None if it was killed, the report None if there is none."""
    ours, theirs = os.pipe()
    try:
        with contextlib.closing(os.fdopen(ours, "rb", buffering=0)) as reader:
            child = start_child(_command(bundle, budget, theirs), pass_fds=(theirs,))
            os.close(theirs)
            theirs = -1
            try:
                return _await(child, reader.fileno(), budget.wall_s)
            finally:
                child.kill()
                child.wait()
    finally:
        if theirs >= 0:
            os.close(theirs)


def _command(bundle: Bundle, budget: Budget, pipe: int) -> list[str]:
    mapped = MAPPED_BY_RUNTIME + budget.model_bytes + 8 * bundle.size
    return module_command(
        "edge_runtime.bundle.selftest", str(bundle.path.absolute()),
        "--report-fd", str(pipe), "--cpu-s", str(budget.cpu_s), "--wall-s", str(budget.wall_s),
        "--mapped-bytes", str(mapped),
    )  # fmt: skip


def _await(child: subprocess.Popen[bytes], pipe: int, wall_s: float) -> tuple[int | None, dict[str, Any] | None]:
    deadline = time.monotonic() + wall_s
    text = bytearray()
    while (left := deadline - time.monotonic()) > 0 and len(text) <= _MAX_REPORT_BYTES:
        if not select.select([pipe], [], [], left)[0]:
            continue
        piece = os.read(pipe, 4096)
        if not piece:
            break
        text += piece
    if len(text) > _MAX_REPORT_BYTES:
        return 1, None
    try:
        status = child.wait(max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return None, None
    with contextlib.suppress(ValueError):
        report = json.loads(text)
        if isinstance(report, dict):
            return status, report
    return status, None


def _problem(status: int | None, report: dict[str, Any] | None, budget: Budget) -> str | None:
    """The fault in words, or None."""
    if status is None:
        return f"expected an answer within {budget.wall_s:g} s, found none: the model hangs; convert it again"
    if status in {-signal.SIGXCPU, -signal.SIGALRM}:
        return (
            f"expected an answer within {budget.cpu_s} s of processor time, found none: the model hangs or is too large"
        )
    if status == -signal.SIGKILL:
        return "the child was killed, most likely for want of memory: use a smaller model"
    if status < 0:
        return f"the model crashed onnxruntime ({signal.Signals(-status).name}): convert it again with another opset"
    if report is None:
        return f"the child ended without a report (exit {status}): try again, then report it"
    problem = report.get("problem")
    return one_line(str(problem)) if problem is not None or "measured" not in report else None


# -- the child -----------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    """The child: set the limits, run the bundle, report as JSON on a pipe."""
    parser = argparse.ArgumentParser(prog="python -m edge_runtime.bundle.selftest")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--report-fd", type=int, default=1)
    parser.add_argument("--cpu-s", type=int, default=DEFAULT_BUDGET.cpu_s)
    parser.add_argument("--wall-s", type=float, default=DEFAULT_BUDGET.wall_s)
    parser.add_argument("--mapped-bytes", type=int, default=MAPPED_BY_RUNTIME + DEFAULT_BUDGET.model_bytes)
    args = parser.parse_args(argv)
    _limit(args.cpu_s, args.wall_s, args.mapped_bytes)
    try:
        report: dict[str, Any] = {"measured": msgspec.structs.asdict(_measure(args.bundle))}
    except MemoryError:
        report = {"problem": _out_of_memory(args.mapped_bytes)}
    except Exception as error:  # noqa: BLE001 - the edge of the process: whatever it is becomes the report
        text = " ".join(str(error).split())[:500].removeprefix(f"{args.bundle}: ") or type(error).__name__
        wanting = any(words in text for words in ("bad_alloc", "Failed to allocate", "bad allocation"))
        report = {"problem": _out_of_memory(args.mapped_bytes) if wanting else text}
    with os.fdopen(args.report_fd, "wb") as pipe:
        pipe.write(json.dumps(report).encode())
    return 0


def _limit(cpu_s: int, wall_s: float, mapped_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
    resource.setrlimit(resource.RLIMIT_AS, (mapped_bytes, mapped_bytes))
    signal.setitimer(signal.ITIMER_REAL, wall_s + 1)  # ends this process even if the parent is gone


def _out_of_memory(mapped_bytes: int) -> str:
    spare = (mapped_bytes - MAPPED_BY_RUNTIME) // MIB
    return f"expected to need at most {spare} MiB of memory, found more: use a smaller model"


def _measure(path: Path) -> Measured:
    # Late, so that the limits are in place before the native libraries are.
    import numpy as np  # noqa: PLC0415
    import onnxruntime  # noqa: PLC0415

    from edge_runtime.bundle.golden import check_golden, golden_windows  # noqa: PLC0415
    from edge_runtime.bundle.model import Model  # noqa: PLC0415

    bundle = open_bundle(path)
    golden = bundle.manifest.selftest
    assert golden is not None
    windows = golden_windows(golden)
    started = time.perf_counter()
    model = Model(bundle)
    load_ms = (time.perf_counter() - started) * 1e3
    check_golden(model)
    times: list[float] = []
    until = time.perf_counter() + _RUNS_S
    one = np.ascontiguousarray(windows[:1])
    while not times or (len(times) < _WARM_UP + _RUNS and time.perf_counter() < until):
        began = time.perf_counter()
        model.run(one)
        times.append((time.perf_counter() - began) * 1e3)
    steady = np.array(times[_WARM_UP:] or times[-1:])
    return Measured(
        name=bundle.manifest.name,
        version=bundle.manifest.version,
        digest=bundle.digest,
        rows=len(windows),
        load_ms=round(load_ms, 3),
        median_ms=round(float(np.median(steady)), 4),
        p99_ms=round(float(np.percentile(steady, 99)), 4),
        runs=len(steady),
        peak_rss_bytes=peak_bytes(),
        machine=f"{platform.machine()} {platform.system()} {platform.release()}",
        onnxruntime=str(onnxruntime.__version__),
    )


if __name__ == "__main__":
    sys.exit(main())
