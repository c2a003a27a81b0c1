"""Recordings and outputs behind URLs, by fsspec: the same bytes as from files of this machine."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from edge_runtime.batch.run import PredictOptions, PredictSummary, predict
from edge_runtime.errors import CommandError
from edge_runtime.recordings.locations import Remote, place
from tests.support import builders

ROWS = 3_000


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An object storage that is empty, and a current folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    yield system
    system.store.clear()


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A classifier of single readings."""
    return builders.classification().save(tmp_path / "comfort.onnx")


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """The same readings in files of every kind; one line of text is bad."""
    folder = tmp_path / "recordings"
    (folder / "columns").mkdir(parents=True)
    values = np.random.default_rng(1).normal(size=(ROWS, 2)).astype(np.float32)
    names = ("temperature", "humidity")
    parquet.write_table(
        pa.table(dict(zip(names, values.T, strict=True))), folder / "columns/c.parquet", row_group_size=500
    )
    np.save(folder / "d.npy", values)
    np.savez(folder / "e.npz", x=values)
    (folder / "a.csv").write_text("temperature,humidity\n" + "".join(f"{a},{b}\n" for a, b in values) + "x,1\n")
    (folder / "b.jsonl").write_text("".join(f'{{"temperature":{a},"humidity":{b}}}\n' for a, b in values))
    return folder


def run(bundle: Path, files: list[str], output: str, workers: int = 1) -> PredictSummary:
    """The command."""
    return predict(PredictOptions(bundle, files, place(output), workers=workers))


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet", "npz"])
def test_a_url_gives_the_bytes_of_a_file(bundle: Path, recordings: Path, memory: Any, suffix: str) -> None:
    """Texts and arrays from a folder in an object storage, every kind of output to it, and the side file."""
    (recordings / "columns/c.parquet").unlink()
    expected = run(bundle, [str(recordings)], f"out.{suffix}")
    memory.put(str(recordings), "/year/march", recursive=True)
    found = run(bundle, ["memory://year/march"], f"memory://results/out.{suffix}")
    assert (found.windows, found.files, dict(found.rejected)) == (4 * ROWS, 4, {"wrong_type": 1})
    if suffix != "npz":  # an archive holds the time at which it was made
        assert memory.cat(f"/results/out.{suffix}") == Path(f"out.{suffix}").read_bytes()
    assert expected.windows == found.windows
    assert str(found.rejected_file) == f"memory://results/out.{suffix}.rejected.csv"
    assert b"/year/march/a.csv,3002,wrong_type" in memory.cat(f"/results/out.{suffix}.rejected.csv")
    assert not list(Path().glob("*.parts"))


def test_parquet_by_url_gives_the_bytes_of_a_file(bundle: Path, recordings: Path, memory: Any) -> None:
    """Columns from an object storage to it."""
    run(bundle, [str(recordings / "columns")], "out.parquet")
    memory.put(str(recordings / "columns"), "/columns", recursive=True)
    found = run(bundle, ["memory://columns"], "memory://out.parquet")
    assert (found.windows, found.rejected_file) == (ROWS, None)
    assert memory.cat("/out.parquet") == Path("out.parquet").read_bytes()


def test_patterns_and_names_are_found(bundle: Path, recordings: Path, memory: Any) -> None:
    """A pattern and a single name stand for what they stand for on this machine."""
    memory.put(str(recordings), "/year", recursive=True)
    assert run(bundle, ["memory://year/*/*.parquet"], "one.csv").files == 1
    assert run(bundle, ["memory://year/a.csv", "memory://year/b.jsonl"], "two.csv").files == 2
    assert run(bundle, [f"file://{recordings}/a.csv"], "three.csv").files == 1
    with pytest.raises(CommandError, match="nothing of that name"):
        run(bundle, ["memory://year/absent-*.csv"], "four.csv")


def test_several_processes_read_by_url(bundle: Path, recordings: Path, memory: Any) -> None:
    """Each worker opens the storage for itself."""
    del memory
    expected = run(bundle, [str(recordings / "a.csv"), str(recordings / "d.npy")], "here.csv", workers=2)
    found = run(bundle, [f"local://{recordings}/a.csv", f"local://{recordings}/d.npy"], "there.csv", workers=2)
    assert found.windows == expected.windows
    assert Path("here.csv").read_bytes() == Path("there.csv").read_bytes()


def test_an_output_that_fails_halfway_leaves_the_old_one(
    bundle: Path, recordings: Path, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An upload that breaks changes nothing; the same command goes on with what is scored already."""
    memory.pipe("/out.csv", b"old")

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("the line is down")

    monkeypatch.setattr("shutil.copyfileobj", broken)
    with pytest.raises(CommandError, match=r"memory://out\.csv: cannot be written: the line is down"):
        run(bundle, [str(recordings / "b.jsonl")], "memory://out.csv")
    assert memory.cat("/out.csv") == b"old"
    monkeypatch.undo()
    monkeypatch.chdir(recordings.parent)
    assert run(bundle, [str(recordings / "b.jsonl")], "memory://out.csv").resumed_parts == 1
    assert memory.cat("/out.csv").count(b"\n") == ROWS + 1


def test_another_version_of_an_object_starts_anew(bundle: Path, recordings: Path, memory: Any) -> None:
    """A part that was scored from an object that has changed since is scored again."""
    memory.put(str(recordings / "b.jsonl"), "/b.jsonl")
    before = Remote("memory://b.jsonl").stat()
    memory.put(str(recordings / "b.jsonl"), "/b.jsonl")
    assert Remote("memory://b.jsonl").stat().mark != before.mark
    assert before.mark


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without fsspec, or its part for a storage, one line says what to install; an unknown kind of URL is named."""
    with pytest.raises(CommandError, match="nosuch://x/y: cannot be reached: Protocol not known: nosuch"):
        place("nosuch://x/y")
    with pytest.raises(CommandError, match=r"s3://x/y\.csv: Install s3fs"):
        place("s3://x/y.csv")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(CommandError, match=r"y\.csv: needs fsspec.*pip install 'edge-inference-runtime\[batch\]'"):
        place("s3://x/y.csv")
