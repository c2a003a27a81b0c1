"""The benchmark: what the runtime costs beside what a user would write or pick instead. `--help` says the options.

One run measures everything that it compares, in turns, on pinned cores, and prints one table; only ratios within
one run mean something on another machine. See `docs/performance.md`.
"""

import argparse
import compileall
import datetime as dt
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path

from benchmarks import (
    alone,
    beside_dask,
    beside_polars,
    gateway,
    goals,
    growth,
    imports,
    instructions,
    model_time,
    on_demand,
    outage,
    paced_instructions,
    pipeline,
    process,
    recordings,
    serial_port,
    sessions,
    turns,
)
from benchmarks.models import write_bundle
from benchmarks.results import Results
from benchmarks.targets import NAMES, ROOT, targets

ROUNDS, SECONDS = 5, 30.0
QUICK_ROUNDS, QUICK_SECONDS = 2, 4.0
FIGURES = (
    "pipeline",
    "turns",
    "serial",
    "outage",
    "imports",
    "sessions",
    "gateway",
    "growth",
    "http",
    "batch",
    "polars",
    "dask",
    "instructions",
    "paced",
    "models",
)
QUICK_FIGURES = ("pipeline", "serial", "outage")

Work = tuple[str, Callable[[], None]]


def main() -> int:
    """Measure what was asked for, print the table, write the raw results."""
    arguments = _arguments()
    rounds, seconds = (QUICK_ROUNDS, QUICK_SECONDS) if arguments.quick else (ROUNDS, SECONDS)
    rounds, seconds = arguments.rounds or rounds, arguments.seconds or seconds
    os.sched_setaffinity(0, {process.cores()[0]})
    compileall.compile_dir(ROOT / "edge_runtime", quiet=1)  # as pip does for every package that the targets import
    results = Results(machine=_machine(rounds, seconds))
    if arguments.add and arguments.output.exists():
        results.read(arguments.output)
    with tempfile.TemporaryDirectory(prefix="edge-benchmark-") as temporary:
        folder = Path(temporary)
        model = write_bundle(folder / "mlp.onnx")
        for turn in range(rounds):
            for name, work in _turn(arguments, folder, model, seconds, results=results):
                print(f"round {turn + 1}/{rounds}: {name}", flush=True)
                _attempt(name, results, work)
            results.write(arguments.output)  # a run of an hour that is broken off keeps what it has
        for name, work in _once(arguments, folder, model, seconds, results=results):
            print(f"once: {name}", flush=True)
            _attempt(name, results, work)
            results.write(arguments.output)
    print("\n" + results.table(goals.GOALS))
    print(f"\nraw results: {arguments.output}")
    return 0


def _turn(
    arguments: argparse.Namespace, folder: Path, model: Path, seconds: float, *, results: Results
) -> Iterator[Work]:
    """What is done in every round, in this order."""
    if "pipeline" in arguments.figures:
        for target in targets(arguments.only):
            yield target.name, partial(pipeline.measure, target, folder, model, seconds, results=results)
        yield "bare process", partial(alone.bare_process, folder, model, results)
        yield "onnxruntime", partial(alone.onnx_loop, folder, model, seconds / 3, results)
    if "serial" in arguments.figures:
        yield "serial", partial(serial_port.measure, folder, seconds, results)
    if "outage" in arguments.figures:
        yield "outage", partial(outage.measure, folder, model, seconds, results)
    if "imports" in arguments.figures:
        yield "imports", partial(imports.measure, folder, model, results)
    if "sessions" in arguments.figures:
        yield "sessions", partial(sessions.measure, folder, results)


def _once(
    arguments: argparse.Namespace, folder: Path, model: Path, seconds: float, *, results: Results
) -> Iterator[Work]:
    """What takes too long for every round."""
    if "turns" in arguments.figures:
        yield "turns", partial(turns.measure, targets(arguments.only), folder, model, 5 * seconds, results=results)
    if "gateway" in arguments.figures:
        yield "gateway", partial(gateway.measure, folder, 2 * seconds, results)
    if "growth" in arguments.figures:
        yield "growth", partial(growth.growth, folder, seconds / 3, results)
    if "http" in arguments.figures:
        yield "http", partial(on_demand.measure, folder, model, 2 * seconds, results)
    if "batch" in arguments.figures:
        yield "batch", partial(recordings.measure, folder, model, results)
    if {"batch", "polars"}.intersection(arguments.figures):
        yield "beside polars", partial(beside_polars.measure, folder, results)
    if {"batch", "dask"}.intersection(arguments.figures):
        yield "beside Dask", partial(beside_dask.measure, folder, results)
    if "instructions" in arguments.figures:
        yield "instructions", partial(instructions.measure, folder, results)
    if "paced" in arguments.figures:
        yield "paced instructions", partial(paced_instructions.measure, folder, model, results)
    if "models" in arguments.figures:
        yield "models", partial(model_time.measure_all, arguments.peers, results)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, help=f"turns of every target (default {ROUNDS})")
    parser.add_argument("--seconds", type=float, help=f"length of a paced stretch (default {SECONDS:.0f})")
    parser.add_argument("--only", type=_words, help=f"targets to run, of {','.join(NAMES)}")
    parser.add_argument("--figures", type=_words, help=f"groups of figures, of {','.join(FIGURES)}")
    parser.add_argument("--peers", default=sys.executable, help="the Python that has treelite, tl2cgen and lleaves")
    parser.add_argument("--quick", action="store_true", help="a form of two minutes, for a look")
    parser.add_argument("--add", action="store_true", help="add to the results in --output, for a run in parts")
    parser.add_argument("--output", type=Path, default=Path("benchmark.json"), help="where the raw results go")
    arguments = parser.parse_args()
    for words, known in ((arguments.only, NAMES), (arguments.figures, FIGURES)):
        if words and not words <= set(known):
            parser.error(f"expected some of {','.join(known)}, found {','.join(sorted(words))}")
    if arguments.figures is None:
        arguments.figures = set(QUICK_FIGURES if arguments.quick else FIGURES)
    return arguments


def _words(text: str) -> set[str]:
    return set(text.split(","))


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
    """Do one turn; a target that fails is reported aloud, and the others go on."""
    try:
        work()
    except (OSError, RuntimeError, ValueError) as error:  # TimeoutError and ConnectionError are OSErrors
        results.note(f"{name}: {error}")


if __name__ == "__main__":
    sys.exit(main())
