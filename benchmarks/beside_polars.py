"""`predict` beside polars with onnxruntime by hand, on one core, in turns: CPU time of each shape of recordings.

The hand-written script checks nothing, keeps everything in memory, and gives the model as many windows a call as it
likes; `predict` gives one at a time to a model whose last bits change with the batch size.
"""

import csv
import importlib.util
import sys
from pathlib import Path

from benchmarks.models import write_bundle
from benchmarks.names import CHANNELS, DAEMON
from benchmarks.recordings import WINDOW, WINDOW_STRIDE, run_on_core, write_recording
from benchmarks.results import Results
from benchmarks.targets import COMMAND, PEERS

READINGS = 4_000_000
SMALL_FILES, SMALL_READINGS = 1_000, 500
TURNS = 3
POLARS = "polars"
CPU = "batch, {}, CPU s"
GOALS = {
    "csv 1/1": 1.2,
    "parquet 1/1": 1.0,
    "csv 128/64": 1.2,
    "parquet 128/64": 1.0,
    "1000 small csv": 1.0,
    "1000 small parquet": 1.0,
}
MEMORY = "batch, {}, peak memory MiB"


def measure(folder: Path, results: Results, readings: int = READINGS) -> None:
    """Every shape, in turns."""
    if importlib.util.find_spec("polars") is None:
        print("beside polars: SKIPPED: pip install polars, at the release of tests/constraints.txt")
        return
    folder = folder / "polars"
    folder.mkdir()
    models = {
        (1, 1): write_bundle(folder / "single.onnx"),
        (WINDOW, WINDOW_STRIDE): write_bundle(folder / "windows.onnx", length=WINDOW, stride=WINDOW_STRIDE),
    }
    parquet = write_recording(folder / "in.parquet", readings)
    text = _as_csv(parquet, folder / "in.csv")
    shapes: dict[str, tuple[tuple[int, int], list[Path], Path]] = {}
    for window in models:
        for file in (text, parquet):
            shapes[f"{file.suffix[1:]} {window[0]}/{window[1]}"] = window, [file], file
    for suffix in ("csv", "parquet"):
        small = folder / f"small-{suffix}"
        small.mkdir()
        shapes[f"{SMALL_FILES} small {suffix}"] = (1, 1), _small(small, suffix), small
    for _ in range(TURNS):
        for name, (window, files, given) in shapes.items():
            model, out = str(models[window]), str(folder / "out.parquet")
            ours = [*COMMAND, "predict", model, str(given), "-o", out, "--workers", "1", "--threads", "1"]
            peer = [sys.executable, str(PEERS / "batch_polars.py"), model, out, *map(str, (*window, *files))]
            for who, command in ((DAEMON, ours), (POLARS, peer)):
                _, cpu_s, peak = run_on_core(command, folder)
                results.add(CPU.format(name), who, cpu_s)
                results.add(MEMORY.format(name), who, peak / 1024)


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
