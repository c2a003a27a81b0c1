"""Instructions a reading of the two pure paths, counted by valgrind: the same on every run, whatever else runs.

The count of a short run is taken from that of a long one, so that the start of the interpreter cancels out.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.names import DAEMON
from benchmarks.results import Results
from benchmarks.targets import ENVIRONMENT, PEERS

FIGURE = "instructions per reading, {}, batch {}"
READINGS = (2_000, 12_000)  # in the short run and in the long one
BATCHES = (1, 32)
SECONDS = 300.0


def measure(folder: Path, results: Results) -> None:
    """Count both paths, for one reading a wake-up and for 32."""
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        results.note("SKIPPED instruction counts: expected the program valgrind, found none: apt install valgrind")
        return
    for path in ("decode", "encode"):
        for batch in BATCHES:
            rounds = [readings // batch for readings in READINGS]
            short, long = (_count(valgrind, folder, path, batch, rounds=count) for count in rounds)
            per_reading = (long - short) / (rounds[1] - rounds[0]) / batch
            results.add(FIGURE.format(path, batch), DAEMON, per_reading)


def _count(valgrind: str, folder: Path, path: str, batch: int, *, rounds: int) -> int:
    program = [sys.executable, str(PEERS / "paths.py"), path, str(batch)]
    environment = {**os.environ, **ENVIRONMENT, "PYTHONHASHSEED": "0"}
    subprocess.run([*program, "1"], env=environment, check=True, timeout=SECONDS)  # compiles what is not compiled yet
    watched = [valgrind, "--tool=callgrind", f"--callgrind-out-file={folder / 'callgrind.out'}"]
    done = subprocess.run(
        [*watched, *program, str(rounds)], env=environment, check=True, capture_output=True, text=True, timeout=SECONDS
    )
    found = re.search(r"Collected\s*:\s*(\d+)", done.stderr)
    if found is None:
        raise RuntimeError(f"valgrind: expected a count, found:\n{done.stderr[-1000:]}")
    return int(found.group(1))
