"""`predict` beside polars with onnxruntime by hand, on one core, in turns: CPU time of each shape of recordings.

Both write the same columns with the same bits, which is checked. The hand-written script checks nothing and keeps
everything in memory. `predict` gives a model whose last bits change with the batch size one window at a time, as the
stream does; so does the script then, since it would get other numbers else. What that saves is stated beside
(`SCRIPT_BATCHED`). Our modules are compiled first, as `pip install` leaves them, and like those of polars.
"""

import compileall
import csv
import importlib.util
import sys
from pathlib import Path
from typing import NamedTuple

from benchmarks.models import write_bundle
from benchmarks.names import CHANNELS, DAEMON
from benchmarks.recordings import WINDOW, WINDOW_STRIDE, run_on_core, write_recording
from benchmarks.results import Results
from benchmarks.targets import COMMAND, PEERS, ROOT

READINGS = 4_000_000
SMALL_FILES, SMALL_READINGS = 1_000, 500
TURNS = 3
ROWS = 4_096  # windows of one call of the script
POLARS, SCRIPT_BATCHED = "polars", f"polars, {ROWS} a call"
ALONE = "one a call"
CPU = "batch, {}, CPU s"
GOALS = {
    "csv 1/1": 1.2,
    "parquet 1/1": 1.0,
    "csv 128/64": 1.2,
    "parquet 128/64": 1.0,
    f"csv 128/64, {ALONE}": 1.2,
    f"parquet 128/64, {ALONE}": 1.0,
    "1000 small csv": 1.0,
    "1000 small parquet": 1.0,
}
MEMORY = "batch, {}, peak memory MiB"


class _Shape(NamedTuple):
    """A model, and the files that it is to score, as the script and as `predict` are given them."""

    model: Path
    window: tuple[int, int]
    files: list[Path]
    given: Path
    rows: int = ROWS


def measure(folder: Path, results: Results, readings: int = READINGS) -> None:
    """Every shape, in turns."""
    if importlib.util.find_spec("polars") is None:
        print("beside polars: SKIPPED: pip install polars, at the release of tests/constraints.txt")
        return
    compileall.compile_dir(ROOT / "edge_runtime", quiet=1)
    folder = folder / "polars"
    folder.mkdir()
    shapes = _shapes(folder, readings)
    for turn in range(TURNS):
        for name, shape in shapes.items():
            ours, theirs = folder / "out.parquet", folder / "script.parquet"
            predict = [*COMMAND, "predict", str(shape.model), str(shape.given), "-o", str(ours)]
            commands = {
                DAEMON: [*predict, "--workers", "1", "--threads", "1"],
                POLARS: _script(shape, theirs, shape.rows),
            }
            if shape.rows != ROWS:
                commands[SCRIPT_BATCHED] = _script(shape, folder / "batched.parquet", ROWS)
            for who, command in commands.items():
                _, cpu_s, peak = run_on_core(command, folder)
                results.add(CPU.format(name), who, cpu_s)
                results.add(MEMORY.format(name), who, peak / 1024)
            if not turn:
                check_equal(ours, theirs, name)


def check_equal(ours: Path, theirs: Path, name: str) -> None:
    """Both files hold the same columns, to the last bit.

    Raises:
        RuntimeError: they do not, so their times cannot be compared.
    """
    from pyarrow import parquet  # noqa: PLC0415 - only for this figure

    here, there = parquet.read_table(ours), parquet.read_table(theirs)
    if here.column_names != there.column_names:
        raise RuntimeError(f"{name}: expected equal columns, found {here.column_names} and {there.column_names}")
    for column in here.column_names:
        if not here[column].cast(there[column].type).equals(there[column]):
            raise RuntimeError(f"{name}: expected equal outputs, found other values in {column}")


def _shapes(folder: Path, readings: int) -> dict[str, _Shape]:
    single, window = (1, 1), (WINDOW, WINDOW_STRIDE)
    alone = write_bundle(folder / "single.onnx")
    free, bound = (
        write_bundle(folder / f"{name}.onnx", length=WINDOW, stride=WINDOW_STRIDE, any_batch=any_batch)
        for name, any_batch in (("free", True), ("bound", False))
    )
    parquet = write_recording(folder / "in.parquet", readings)
    shapes: dict[str, _Shape] = {}
    for file in (_as_csv(parquet, folder / "in.csv"), parquet):
        kind = file.suffix[1:]
        shapes[f"{kind} 1/1"] = _Shape(alone, single, [file], file)
        shapes[f"{kind} 128/64"] = _Shape(free, window, [file], file)
        shapes[f"{kind} 128/64, {ALONE}"] = _Shape(bound, window, [file], file, 1)
        small = folder / f"small-{kind}"
        small.mkdir()
        shapes[f"{SMALL_FILES} small {kind}"] = _Shape(alone, single, _small(small, kind), small)
    return shapes


def _script(shape: _Shape, out: Path, rows: int) -> list[str]:
    arguments = [str(shape.model), str(out), *map(str, (*shape.window, rows, *shape.files))]
    return [sys.executable, str(PEERS / "batch_polars.py"), *arguments]


def _as_csv(source: Path, target: Path) -> Path:
    from pyarrow import csv as arrow_csv  # noqa: PLC0415 - only for this figure
    from pyarrow import parquet  # noqa: PLC0415

    with parquet.ParquetFile(source) as file, arrow_csv.CSVWriter(target, file.schema_arrow) as writer:
        for batch in file.iter_batches(1 << 17):
            writer.write_batch(batch)
    return target


def _small(folder: Path, suffix: str) -> list[Path]:
    files = [folder / f"{number:04}.{suffix}" for number in range(SMALL_FILES)]
    for number, file in enumerate(files):
        if suffix == "parquet":
            write_recording(file, SMALL_READINGS, seed=number)
            continue
        with file.open("w", newline="") as rows:
            writer = csv.writer(rows)
            writer.writerow(CHANNELS)
            writer.writerows([number % 7 + row / 8] * len(CHANNELS) for row in range(SMALL_READINGS))
    return files
