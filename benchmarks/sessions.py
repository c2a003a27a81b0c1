"""Loading large models: from the bundle and from its optimised copy (`edge_runtime/optimised.py`), in turns.

CPU time of the process, since a start waits for nothing else; each load is a process of its own.
"""

from pathlib import Path

from benchmarks import process
from benchmarks.large_models import write_large
from benchmarks.results import Results
from benchmarks.targets import script

SECONDS = 60.0
TURNS = 5
BUNDLE, COPY = "from the bundle", "from its copy"
LOAD = "{}, loading, CPU ms"
START = "{}, start to first answer, CPU ms"
RSS = "{}, memory taken, MiB"


def measure(folder: Path, results: Results) -> None:
    """Every model both ways, after its copy was made."""
    core = process.cores()[1]
    for name, bundle in write_large(folder):
        _run(folder, core, bundle, "make")
        for _ in range(TURNS):
            for target, way in ((BUNDLE, "never"), (COPY, "always")):
                load_s, start_s, taken = _run(folder, core, bundle, way)
                results.add(LOAD.format(name), target, load_s * 1e3)
                results.add(START.format(name), target, start_s * 1e3)
                results.add(RSS.format(name), target, taken / 2**20)


def _run(folder: Path, core: int, bundle: Path, way: str) -> tuple[float, float, float]:
    with script("load_model", str(bundle), way, folder=folder, core=core) as running:
        if running.wait(SECONDS):
            running.check()
        load_s, start_s, taken = map(float, running.said().split()[-3:])
        return load_s, start_s, taken
