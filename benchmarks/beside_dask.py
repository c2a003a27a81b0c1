"""`predict --engine dask` beside `map_partitions` by hand, and beside the local engine, on the same cores, in turns.

A scheduler and a worker a core run all the time, as a cluster does. What counts is the CPU time of the command, the
scheduler and the workers together. All three outputs are the same to the last bit, which is checked; the script's is a
folder with a file for each partition, which its workers write, and ours is one file. Needs the environment of the tests
with Dask (`make clients`).
"""

import contextlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.models import write_bundle
from benchmarks.names import DAEMON
from benchmarks.process import cores
from benchmarks.recordings import run_on_core, write_recording
from benchmarks.results import Results
from benchmarks.targets import COMMAND, ENVIRONMENT, PEERS, ROOT

FILES, READINGS = 8, 16_000_000
TURNS = 3
LOCAL, BY_HAND = "local engine", "map_partitions"
RATE = "batch on Dask, million readings per CPU s"
_START_S = 60


def measure(folder: Path, results: Results, readings: int = READINGS) -> None:
    """All three, in turns."""
    python = os.environ.get("EDGE_DASK_PYTHON", str(ROOT / ".venv" / "dask" / "bin" / "python"))
    if not Path(python).exists():
        print("beside Dask: SKIPPED: make clients, or set EDGE_DASK_PYTHON")
        return
    folder = folder / "dask"
    folder.mkdir()
    model = write_bundle(folder / "single.onnx")
    source = folder / "in"
    source.mkdir()
    files = [
        str(write_recording(source / f"{number:02}.parquet", readings // FILES, seed=number)) for number in range(FILES)
    ]
    out, by_hand, local = folder / "out.parquet", folder / "by_hand", folder / "local.parquet"
    count = str(len(cores()))
    with _cluster(python, folder) as (scheduler, processes):
        predict = [python, *COMMAND[1:], "predict", str(model), str(source), "-o"]
        commands = {
            DAEMON: [*predict, str(out), "--engine", "dask", "--scheduler", scheduler],
            BY_HAND: [python, str(PEERS / "batch_dask.py"), str(model), str(by_hand), scheduler, *files],
            LOCAL: [*predict, str(local), "--workers", count, "--threads", "1"],
        }
        for turn in range(TURNS + 1):
            for who, command in commands.items():
                shutil.rmtree(by_hand, ignore_errors=True)
                before = sum(map(_cpu_s, processes))
                _, cpu_s, _ = run_on_core(command, folder, set(cores()))
                cpu_s += sum(map(_cpu_s, processes)) - before
                if turn:  # the first one imports what the workers need
                    results.add(RATE, who, readings / cpu_s / 1e6)
                if who == BY_HAND and not turn:
                    check_equal(out, by_hand)
    if out.read_bytes() != local.read_bytes():
        raise RuntimeError("expected the same file of both engines, found two")


def check_equal(ours: Path, theirs: Path) -> None:
    """One file and the files of a folder hold the same columns, to the last bit.

    Raises:
        RuntimeError: they do not, so their times cannot be compared.
    """
    import pyarrow as pa  # noqa: PLC0415 - only for this figure
    from pyarrow import parquet  # noqa: PLC0415

    here = parquet.read_table(ours)
    parts = sorted(theirs.glob("*.parquet"), key=lambda file: int(file.name.split(".")[1]))
    there = pa.concat_tables([parquet.read_table(file) for file in parts])
    for column in here.column_names:
        if not here[column].cast(there[column].type).equals(there[column]):
            raise RuntimeError(f"expected equal outputs, found other values in {column}")


@contextlib.contextmanager
def _cluster(python: str, folder: Path) -> Iterator[tuple[str, list[int]]]:
    """A scheduler and a worker a core; its address and their processes."""
    environment = {**os.environ, **ENVIRONMENT}
    log = folder / "scheduler.log"
    processes: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str) -> None:
        with log.open("ab") as file:
            processes.append(
                subprocess.Popen([python, "-m", *arguments], cwd=folder, env=environment, stdout=file, stderr=file)
            )

    try:
        start("distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard")
        until = time.monotonic() + _START_S
        while not (found := re.search(r"tcp://127\.0\.0\.1:\d+", log.read_text())):
            if time.monotonic() > until or processes[0].poll() is not None:
                raise RuntimeError(f"no Dask scheduler: {log.read_text()[-500:]}")
            time.sleep(0.1)
        for _ in cores():
            start("distributed.cli.dask_worker", found[0], "--nthreads", "1", "--no-nanny", "--no-dashboard")
        yield found[0], [process.pid for process in processes]
    finally:
        for process in processes[::-1]:
            process.terminate()
            process.wait(_START_S)


def _cpu_s(process: int) -> float:
    """Seconds of CPU time that a process has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
