"""Recordings in batch: `predict` over ten million readings of Parquet beside a bare loop, on one core, in turns.

Then all cores, by processes, by models side by side in threads, and by onnxruntime's own intra-op threads, for a
small model and for one that has something to do;
and the memory of a recording beside that of one four times as long.
"""

import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from benchmarks.models import write_convolution
from benchmarks.names import CHANNELS, DAEMON
from benchmarks.process import cores
from benchmarks.results import Results
from benchmarks.targets import COMMAND, ENVIRONMENT, PEERS

READINGS = 10_000_000
GROUP = 1 << 17
TURNS = 3
LOOP = "bare loop"

RATE = "batch, million readings per s, one core"
CPU = "batch, million readings per CPU s"
PEAK = "batch, peak memory MiB"

SMALL, HEAVY, HEAVY_ALONE = "MLP", "convolution, 4 files", "convolution, 1 file"
WINDOW, WINDOW_STRIDE = 128, 64
WINDOW_READINGS, FILES = 3_000_000, 4
ONE_CORE, PROCESSES, THREADS, INTRA_OP, DEFAULT = "one core", "processes", "threads", "intra-op", "default"
ALL_RATE = "batch, {}, thousand readings per s"
ALL_CPU = "batch, {}, µs CPU per reading"
LENGTH_PEAK = "batch, peak memory MiB by length"
SHORT, LONG = "2.5 million readings", "10 million readings"


def measure(folder: Path, model: Path, results: Results, readings: int = READINGS) -> None:
    """Both, in turns."""
    folder = Path(tempfile.mkdtemp(prefix="batch-", dir=folder))
    source = write_recording(folder / "in.parquet", readings)
    predict = [*COMMAND, "predict", str(model), str(source), "-o", str(folder / "out.parquet"), "--workers", "1"]
    loop = [sys.executable, str(PEERS / "batch_loop.py"), str(model), str(source), str(folder / "loop.parquet")]
    for _ in range(TURNS):
        for name, command in ((DAEMON, predict), (LOOP, loop)):
            seconds, cpu_s, peak = run_on_core(command, folder)
            results.add(RATE, name, readings / seconds / 1e6)
            results.add(CPU, name, readings / cpu_s / 1e6)
            results.add(PEAK, name, peak / 1024)
    short = write_recording(folder / "short.parquet", readings // 4)
    for _ in range(TURNS):
        for name, file in ((SHORT, short), (LONG, source)):
            command = [*COMMAND, "predict", str(model), str(file), "-o", str(folder / "out.parquet"), "--workers", "1"]
            results.add(LENGTH_PEAK, name, run_on_core(command, folder)[2] / 1024)
    _all_cores(folder, model, source, readings, results=results)


def _all_cores(folder: Path, model: Path, source: Path, readings: int, *, results: Results) -> None:
    """The same work on one core, by a process a core, and by one process with a thread a core, of either kind."""
    heavy = write_convolution(folder / "convolution.onnx", length=WINDOW, stride=WINDOW_STRIDE)
    several = [write_recording(folder / f"part{i}.parquet", WINDOW_READINGS // FILES) for i in range(FILES)]
    whole = write_recording(folder / "whole.parquet", WINDOW_READINGS)
    everything = set(cores())
    count = str(len(everything))
    intra_op = [sys.executable, str(PEERS / "batch_intra_op.py"), count]
    ways = {
        ONE_CORE: (COMMAND, ["--workers", "1", "--threads", "1"], {cores()[1]}),
        PROCESSES: (COMMAND, ["--workers", count, "--threads", "1"], everything),
        THREADS: (COMMAND, ["--workers", "1", "--threads", count], everything),
        INTRA_OP: (intra_op, ["--workers", "1", "--threads", "1"], everything),
        DEFAULT: (COMMAND, [], everything),
    }
    for _ in range(TURNS):
        for name, (program, options, on) in ways.items():
            out = ["-o", str(folder / "out.parquet"), *options]
            for what, bundle, files, total in (
                (SMALL, model, [source], readings),
                (HEAVY, heavy, several, WINDOW_READINGS),
                (HEAVY_ALONE, heavy, [whole], WINDOW_READINGS),
            ):
                seconds, cpu_s, _ = run_on_core([*program, "predict", str(bundle), *map(str, files), *out], folder, on)
                results.add(ALL_RATE.format(what), name, total / seconds / 1e3)
                results.add(ALL_CPU.format(what), name, cpu_s / total * 1e6)


def write_recording(path: Path, readings: int, *, seed: int = 1) -> Path:
    """Parquet of random readings."""
    import pyarrow as pa  # noqa: PLC0415 - only for this figure
    from pyarrow import parquet  # noqa: PLC0415

    generator = np.random.default_rng(seed)
    schema = pa.schema([(name, pa.float32()) for name in CHANNELS])
    with parquet.ParquetWriter(path, schema) as writer:
        for start in range(0, readings, GROUP):
            rows = min(GROUP, readings - start)
            columns = generator.normal(size=(len(CHANNELS), rows)).astype(np.float32)
            writer.write_table(pa.table(list(columns), schema=schema))
    return path


def run_on_core(command: list[str], folder: Path, on: set[int] | None = None) -> tuple[float, float, float]:
    """Wall time, CPU time and peak memory in KiB (of its largest process) of a command, by default on one core."""
    allowed = on or {cores()[1]}
    began = time.perf_counter()
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, **ENVIRONMENT},
        stderr=subprocess.PIPE,
        preexec_fn=lambda: os.sched_setaffinity(0, allowed),  # noqa: PLW1509 - no thread is running
    )
    assert process.stderr is not None
    peak_kib = [0]
    watch = threading.Thread(target=_watch_peak, args=(process.pid, peak_kib), daemon=True)
    watch.start()
    message = process.stderr.read()
    process.stderr.close()
    _, status, usage = os.wait4(process.pid, 0)
    watch.join()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{command[-1]}: ended with {process.returncode}: {message.decode(errors='replace')[-500:]}")
    return time.perf_counter() - began, usage.ru_utime + usage.ru_stime, peak_kib[0]


def _watch_peak(process: int, peak_kib: list[int]) -> None:
    """The high-water mark of a process and of its largest child, looked at until it ends.

    `ru_maxrss` is no use: a child begins with the mark of the process that forked it, this one.
    """
    while True:
        try:
            children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
            marks = [_high_water_kib(each) for each in (str(process), *children)]
        except OSError:
            return
        if not marks[0]:  # it has ended, and waits to be collected
            return
        peak_kib[0] = max(peak_kib[0], *marks)
        time.sleep(0.01)


def _high_water_kib(process: str) -> int:
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:  # a child that has just ended
        return 0
    found = re.search(r"VmHWM:\s+(\d+)", status)
    return int(found[1]) if found else 0
