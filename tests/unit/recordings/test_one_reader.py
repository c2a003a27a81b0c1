"""Recorded files are read once: `predict` and the source `replay` take the same files and refuse the same ones."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_runtime.batch.run import PredictOptions, PredictSummary, predict
from edge_runtime.errors import ConfigError, EdgeError
from edge_runtime.readings import Batch, Floats
from edge_runtime.recordings.files import FORMATS
from edge_runtime.stream.sources.replay import ReplaySource, ReplaySourceTable
from edge_runtime.system.counters import Counters
from edge_runtime.system.loop import Loop
from tests.support import builders
from tests.support.tables import table

CHANNELS = ("temperature", "humidity")
READINGS = np.array([[21.5, 48.25], [22.0, 47.0], [-1.5, 99.0]], np.float32)


def by_replay(*files: Path, counters: Counters | None = None, **keys: Any) -> Floats:
    """What a source of type `replay` delivers."""
    loop, batches = Loop(), list[Batch]()
    config = table(ReplaySourceTable, name="tape", files=list(map(str, files)), speed="full", **keys)
    source = ReplaySource(config, CHANNELS, None, loop, sink=batches.append, counters=counters or Counters())
    source.start()
    while not source.finished:
        loop.run_once(0.1)
    loop.close()
    return np.concatenate([batch.values for batch in batches])


MODEL = builders.regression(channels=CHANNELS, targets=CHANNELS)
ANSWERS = MODEL.run({"window": READINGS[:, None, :]})["value"]


def by_predict(folder: Path, *files: Path, **options: Any) -> tuple[Floats, PredictSummary]:
    """What a regression makes of the files."""
    bundle = MODEL.save(folder / "model.onnx")
    output = folder / "out.csv"
    outcome = predict(PredictOptions(bundle, list(map(str, files)), output, workers=1, **options))
    with output.open(newline="") as file:
        rows = [[float(row[name]) for name in CHANNELS] for row in csv.DictReader(file)]
    return np.array(rows, np.float32), outcome


def text(delimiter: str, *, end: str = "\n", mark: bytes = b"") -> Callable[[Path], None]:
    """A writer of columns."""

    def write(path: Path) -> None:
        rows = [CHANNELS, *READINGS.tolist()]
        path.write_bytes(mark + "".join(delimiter.join(map(str, row)) + end for row in rows).encode())

    return write


def json_lines(mark: bytes = b"") -> Callable[[Path], None]:
    """A writer of objects."""

    def write(path: Path) -> None:
        lines = [f'{{"temperature": {t}, "humidity": {h}}}\n' for t, h in READINGS.tolist()]
        path.write_bytes(mark + "".join(lines).encode())

    return write


def parquet(path: Path) -> None:
    """A writer of columns with types."""
    import pyarrow as pa  # noqa: PLC0415
    from pyarrow.parquet import write_table  # noqa: PLC0415

    write_table(pa.table(dict(zip(CHANNELS, READINGS.T, strict=True))), path)


MARK = b"\xef\xbb\xbf"
KINDS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "csv": ("a.csv", text(",")),
    "csv-windows": ("a.csv", text(",", end="\r\n", mark=MARK)),
    "txt": ("a.txt", text(",")),
    "tsv": ("a.tsv", text("\t")),
    "jsonl": ("a.jsonl", json_lines()),
    "ndjson-mark": ("a.ndjson", json_lines(MARK)),
    "json": ("a.json", json_lines()),
    "parquet": ("a.parquet", parquet),
    "npy": ("a.npy", lambda path: np.save(path, READINGS)),
    "npz": ("a.npz", lambda path: np.savez(path, x=READINGS)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_both_read_every_kind_of_file(kind: str, tmp_path: Path) -> None:
    """A file that one of them reads the other one reads, to the same float32, by its suffix alone."""
    name, write = KINDS[kind]
    write(tmp_path / name)
    np.testing.assert_array_equal(by_replay(tmp_path / name), READINGS)
    np.testing.assert_array_equal(by_predict(tmp_path, tmp_path / name)[0], ANSWERS)


def test_every_suffix_is_tried() -> None:
    """The list above has every suffix that the readers know."""
    assert {Path(name).suffix for name, _ in KINDS.values()} == set(FORMATS)


def refused(tmp_path: Path, content: str, *, answered: bool) -> tuple[str, str]:
    """What `predict` and `replay` say of a CSV file that they refuse."""
    path = tmp_path / "in.csv"
    path.write_text(content)
    with pytest.raises(EdgeError) as by_batch:
        by_predict(tmp_path, path, index_column=answered)
    with pytest.raises(ConfigError) as by_stream:
        by_replay(path, index_column=answered)
    return str(by_batch.value), str(by_stream.value)


def test_a_delimiter_at_the_end_of_each_row_is_refused(tmp_path: Path) -> None:
    """Rows that end in a comma have a column more than the header: neither reader shifts the columns by a guess."""
    batch, stream = refused(tmp_path, "temperature,humidity\n21.5,48,\n22,47,\n", answered=False)
    assert (
        "expected the 2 columns that its header names, found 3 in the first row, which ends with a delimiter" in batch
    )
    assert "take the delimiter off" in batch
    assert stream.endswith(batch.partition(": ")[2])


def test_row_names_are_refused_unless_they_are_told_of(tmp_path: Path) -> None:
    """R's column of row names is skipped where the user says that there is one, for every row, and refused else."""
    content = 'temperature,humidity\n"1",21.5,48.25\n"2",22.0,47.0\n23.0,46.0\n"3",-1.5,99.0\n'
    batch, stream = refused(tmp_path, content, answered=False)
    assert "found 3 in the first row, which begins with '1': if the first column holds row names" in batch
    assert "add --index-column" in batch
    assert "add index_column = true" in stream
    path, counters = tmp_path / "in.csv", Counters()
    np.testing.assert_array_equal(by_replay(path, index_column=True, counters=counters), READINGS)
    assert counters.rejected == {"malformed": 1}
    rows, outcome = by_predict(tmp_path, path, index_column=True)
    np.testing.assert_array_equal(rows, ANSWERS)
    assert outcome.rejected == {"malformed": 1}


def test_row_names_that_are_not_there_are_refused_too(tmp_path: Path) -> None:
    """A file whose header names every column has no column to skip."""
    batch, stream = refused(tmp_path, "temperature,humidity\n21.5,48\n", answered=True)
    assert "expected a first column that the header does not name (--index-column)" in batch
    assert "leave index_column = true out" in stream


def test_a_delimiter_at_the_end_of_the_header_alone_is_refused(tmp_path: Path) -> None:
    """A header with an empty last name and rows without it."""
    batch, _ = refused(tmp_path, "temperature,humidity,\n21.5,48\n", answered=False)
    assert "found 2 in the first row: take the delimiter off the header" in batch


def test_a_later_row_of_another_width_is_malformed(tmp_path: Path) -> None:
    """The rule holds for the whole file and not for its first row: a later row is counted and never shifted."""
    path, counters = tmp_path / "in.csv", Counters()
    path.write_text("temperature,humidity\n21.5,48.25\n7,8,\n1,2,3\n9\n22,47\n-1.5,99\n")
    np.testing.assert_array_equal(by_replay(path, counters=counters), READINGS)
    assert counters.rejected == {"malformed": 3}
    rows, outcome = by_predict(tmp_path, path)
    np.testing.assert_array_equal(rows, ANSWERS)
    assert outcome.rejected == {"malformed": 3}


def test_an_evaluation_is_not_turned_around_by_a_trailing_delimiter(tmp_path: Path) -> None:
    """`a,b,truth` with rows that end in a comma gave inverted labels and exit 0."""
    bundle = builders.classification().save(tmp_path / "comfort.onnx")
    path = tmp_path / "in.csv"
    path.write_text("temperature,humidity,truth\n1,2,low,\n3,4,high,\n")
    with pytest.raises(EdgeError, match="which ends with a delimiter"):
        predict(PredictOptions(bundle, [str(path)], None, truth=("truth",), workers=1))
