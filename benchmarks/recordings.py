"""Recordings in batch: `predict` over ten million readings of Parquet beside a bare loop, on one core, in turns."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.names import CHANNELS
from benchmarks.process import cores
from benchmarks.results import Results
from benchmarks.targets import COMMAND, DAEMON, ENVIRONMENT, PEERS

READINGS = 10_000_000
GROUP = 1 << 17
TURNS = 3
LOOP = "bare loop"

RATE = "batch, million readings per s, one core"
CPU = "batch, million readings per CPU s"
PEAK = "batch, peak memory MiB"


def measure(folder: Path, model: Path, results: Results, readings: int = READINGS) -> None:
    """Both, in turns."""
    folder = Path(tempfile.mkdtemp(prefix="batch-", dir=folder))
    source = _write(folder / "in.parquet", readings)
    predict = [*COMMAND, "predict", str(model), str(source), "-o", str(folder / "out.parquet"), "--workers", "1"]
    loop = [sys.executable, str(PEERS / "batch_loop.py"), str(model), str(source), str(folder / "loop.parquet")]
    for _ in range(TURNS):
        for name, command in ((DAEMON, predict), (LOOP, loop)):
            seconds, cpu_s, peak = _run(command, folder)
            results.add(RATE, name, readings / seconds / 1e6)
            results.add(CPU, name, readings / cpu_s / 1e6)
            results.add(PEAK, name, peak / 1024)


def _write(path: Path, readings: int) -> Path:
    import pyarrow as pa  # noqa: PLC0415 - only for this figure
    from pyarrow import parquet  # noqa: PLC0415

    generator = np.random.default_rng(1)
    schema = pa.schema([(name, pa.float32()) for name in CHANNELS])
    with parquet.ParquetWriter(path, schema) as writer:
        for start in range(0, readings, GROUP):
            rows = min(GROUP, readings - start)
            columns = generator.normal(size=(len(CHANNELS), rows)).astype(np.float32)
            writer.write_table(pa.table(list(columns), schema=schema))
    return path


def _run(command: list[str], folder: Path) -> tuple[float, float, float]:
    """Wall time, CPU time and peak memory in KiB of a command."""
    began = time.perf_counter()
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, **ENVIRONMENT},
        stderr=subprocess.PIPE,
        preexec_fn=lambda: os.sched_setaffinity(0, {cores()[1]}),  # noqa: PLW1509 - no thread is running
    )
    assert process.stderr is not None
    said = process.stderr.read()
    process.stderr.close()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{command[-1]}: ended with {process.returncode}: {said.decode(errors='replace')[-500:]}")
    return time.perf_counter() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss
