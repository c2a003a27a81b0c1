"""The benchmark: what the runtime costs beside what a user would write or pick instead. `--help` says the options.

One run measures everything that it compares, in turns, on pinned cores, and prints one table; only ratios within
one run mean something on another machine. See `docs/performance.md`.
"""

import argparse
import datetime as dt
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

from benchmarks import alone, goals, pipeline, process
from benchmarks.models import write_bundle
from benchmarks.results import Results
from benchmarks.targets import targets

ROUNDS, SECONDS = 5, 30.0
QUICK_ROUNDS, QUICK_SECONDS = 2, 4.0


def main() -> int:
    """Measure what was asked for, print the table, write the raw results."""
    arguments = _arguments()
    rounds, seconds = (QUICK_ROUNDS, QUICK_SECONDS) if arguments.quick else (ROUNDS, SECONDS)
    rounds, seconds = arguments.rounds or rounds, arguments.seconds or seconds
    only = set(arguments.only.split(",")) if arguments.only else None
    os.sched_setaffinity(0, {process.cores()[0]})
    results = Results(machine=_machine(rounds, seconds))
    wanted = targets(only)
    with tempfile.TemporaryDirectory(prefix="edge-benchmark-") as name:
        folder = Path(name)
        model = write_bundle(folder / "mlp.onnx")
        for turn in range(rounds):
            for target in wanted:
                print(f"round {turn + 1}/{rounds}: {target.name}", flush=True)
                _attempt(target.name, results, partial(pipeline.measure, target, folder, model, seconds, results))
            _attempt("bare process", results, partial(alone.bare_process, folder, model, results))
            _attempt("onnxruntime", results, partial(alone.onnx_loop, folder, model, seconds / 3, results))
    print("\n" + results.table(goals.GOALS))
    results.write(arguments.output)
    print(f"\nraw results: {arguments.output}")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, help=f"turns of every target (default {ROUNDS})")
    parser.add_argument("--seconds", type=float, help=f"length of a paced stretch (default {SECONDS:.0f})")
    parser.add_argument("--only", help="targets to run, separated by commas: daemon,tutorial,floor,echo,node-red")
    parser.add_argument("--quick", action="store_true", help="a form of two minutes, for a look")
    parser.add_argument("--output", type=Path, default=Path("benchmark.json"), help="where the raw results go")
    return parser.parse_args()


def _machine(rounds: int, seconds: float) -> dict[str, object]:
    packages = ("numpy", "onnxruntime", "paho-mqtt", "msgspec")
    return {
        "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "rounds": rounds,
        "seconds": seconds,
    }


def _attempt(name: str, results: Results, work: Callable[[], None]) -> None:
    """Do one turn; a target that fails is said aloud, and the others go on."""
    try:
        work()
    except (OSError, RuntimeError, ValueError) as error:  # TimeoutError and ConnectionError are OSErrors
        results.note(f"{name}: {error}")


if __name__ == "__main__":
    sys.exit(main())
