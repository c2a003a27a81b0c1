"""What a failed run, a power cut or a damaged part costs: never an output that was good."""

import fcntl
import os
import shutil
from pathlib import Path
from typing import Any

import fsspec
import msgspec
import numpy as np
import pytest

from edge_runtime.batch import outputs
from edge_runtime.batch.chunks import read_chunks
from edge_runtime.batch.run import PredictOptions, PredictSummary, predict
from edge_runtime.batch.score import InterruptedPartError, score_part
from edge_runtime.errors import CommandError
from edge_runtime.recordings.locations import place
from tests.support import builders

ROWS = 3_000


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a bundle, a good recording, and one in which nothing is usable."""
    monkeypatch.chdir(tmp_path)
    builders.classification().save(tmp_path / "comfort.onnx")
    values = np.random.default_rng(3).normal(size=(ROWS, 2)).astype(np.float32)
    text = "temperature,humidity,truth\n" + "".join(f"{a},{b},strange\n" for a, b in values)
    (tmp_path / "good.csv").write_text(text)
    (tmp_path / "bad.csv").write_text("temperature,humidity,truth\nx,1,low\ny,1,low\n")
    return tmp_path


def run(source: str, output: str, **options: Any) -> PredictSummary:
    """The command."""
    return predict(PredictOptions(Path("comfort.onnx"), [source], place(output), workers=1, **options))


@pytest.mark.parametrize("suffix", outputs.SUFFIXES)
def test_a_run_without_a_usable_reading_keeps_the_old_output(folder: Path, suffix: str) -> None:
    """Nothing but rejected readings is a failed run: the output of the run before stays, and no half of one either."""
    run("good.csv", f"out{suffix}")
    good = (folder / f"out{suffix}").read_bytes()
    with pytest.raises(CommandError, match=r"^none of 2 readings could be used: wrong_type 2, listed in out"):
        run("bad.csv", f"out{suffix}")
    assert (folder / f"out{suffix}").read_bytes() == good
    assert "bad.csv,3,wrong_type" in (folder / f"out{suffix}.rejected.csv").read_text()
    assert sorted(path.name for path in folder.glob("out*")) == [f"out{suffix}", f"out{suffix}.rejected.csv"]


def test_a_run_without_a_usable_reading_keeps_the_old_object(folder: Path) -> None:
    """The same behind a URL."""
    system = fsspec.filesystem("memory")
    system.pipe("/kept/out.csv", b"good\n")
    with pytest.raises(CommandError, match=r"none of 2 readings .* listed in memory://kept/out\.csv\.rejected\.csv"):
        run("bad.csv", "memory://kept/out.csv")
    assert system.cat("/kept/out.csv") == b"good\n"
    assert b"wrong_type" in system.cat("/kept/out.csv.rejected.csv")
    assert not (folder / "out.csv.parts").exists()


def test_an_evaluation_that_fails_keeps_the_old_output(folder: Path) -> None:
    """Truth of other labels than the bundle's ends the run with exit 1, before the output is touched."""
    (folder / "out.csv").write_text("good\n")
    with pytest.raises(CommandError, match="found 'strange'"):
        run("good.csv", "out.csv", truth=("truth",))
    assert (folder / "out.csv").read_text() == "good\n"


def test_a_list_that_cannot_be_written_keeps_the_old_output(folder: Path) -> None:
    """A fault behind the scoring leaves the old output and the finished parts; the same command goes on."""
    (folder / "out.csv").write_text("good\n")
    (folder / "mixed.csv").write_text("temperature,humidity\n1,2\nx,1\n")
    (folder / "out.csv.rejected.csv.new").mkdir()
    with pytest.raises(CommandError, match=r"rejected\.csv\.new: cannot be written: Is a directory"):
        run("mixed.csv", "out.csv")
    assert (folder / "out.csv").read_text() == "good\n"
    assert not (folder / "out.csv.new").exists()
    (folder / "out.csv.rejected.csv.new").rmdir()
    assert run("mixed.csv", "out.csv").resumed_parts == 1


def test_the_output_is_on_the_disk_before_the_parts_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """The content is synchronised, then renamed, then the folder is synchronised, and only then are parts removed."""
    events: list[str] = []
    fsync, replace, rmtree = os.fsync, Path.replace, shutil.rmtree

    def synced(handle: int) -> None:
        events.append(f"sync {Path(f'/proc/self/fd/{handle}').readlink().name}")
        fsync(handle)

    def replaced(path: Path, target: Path) -> Path:
        events.append(f"rename {path.name}")
        return replace(path, target)

    def removed(path: Path, **options: Any) -> None:
        events.append(f"remove {Path(path).name}")
        rmtree(path, **options)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    monkeypatch.setattr(shutil, "rmtree", removed)
    run("good.csv", "out.csv")
    events = [event for event in events if "out" in event or event.startswith("sync")]
    assert events == ["sync out.csv.new", "rename out.csv.new", f"sync {Path.cwd().name}", "remove out.csv.parts"]


@pytest.fixture
def interrupted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of two files that was interrupted behind the first; its part."""
    shutil.copy(folder / "good.csv", folder / "good-2.csv")

    def once(*arguments: Any, **more: Any) -> Any:
        if arguments[2].name.startswith("000001"):
            raise InterruptedPartError("interrupted")
        return score_part(*arguments, **more)

    monkeypatch.setattr("edge_runtime.batch.local_engine.score_part", once)
    with pytest.raises(InterruptedPartError):
        run("good*.csv", "out.csv")
    monkeypatch.setattr("edge_runtime.batch.local_engine.score_part", score_part)
    (part,) = (folder / "out.csv.parts").glob("*.part")
    return part


def cut(part: Path) -> None:
    """Lose the last records, as a file system may whose journal was replayed."""
    data, at, kept = part.read_bytes(), 0, 0
    while at < len(data) // 2:
        kept, at = at, at + 8 + int.from_bytes(data[at : at + 8], "little")
    part.write_bytes(data[:kept])


def fill_with_zeros(part: Path) -> None:
    """Keep the length and lose the content."""
    size = part.stat().st_size
    part.write_bytes(bytes(size))


def flip(part: Path) -> None:
    """Change one bit of one score."""
    data = bytearray(part.read_bytes())
    data[-3] ^= 1
    part.write_bytes(data)


@pytest.mark.parametrize("damage", [cut, fill_with_zeros, flip, Path.unlink])
def test_a_damaged_part_is_scored_again(interrupted: Path, folder: Path, damage: Any) -> None:
    """A part counts by the digest of its content: not when whole records, or one bit, of it are lost."""
    damage(interrupted)
    outcome = run("good*.csv", "out.csv")
    assert outcome.resumed_parts == 0
    run("good*.csv", "whole.csv")
    assert (folder / "out.csv").read_bytes() == (folder / "whole.csv").read_bytes()


def test_a_damaged_list_of_faults_is_made_again(interrupted: Path) -> None:
    """The list of what was not used is a file of the part, and is judged as it is."""
    interrupted.with_suffix(".faults").write_bytes(b'[0,7,"wrong_type","x"]\n')
    assert run("good*.csv", "out.csv").resumed_parts == 0


def test_an_undamaged_part_is_kept(interrupted: Path) -> None:
    """The control of the two above."""
    del interrupted
    assert run("good*.csv", "out.csv").resumed_parts == 1


def test_two_runs_at_once_do_not_write_one_output(interrupted: Path) -> None:
    """The second is refused, and takes no part of the first; it goes on once that has ended."""
    with (interrupted.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as a run holds it
        with pytest.raises(CommandError, match="another run is writing this output"):
            run("good*.csv", "out.csv")
        fcntl.flock(lock, fcntl.LOCK_SH)  # and a run takes it for itself alone
        with pytest.raises(CommandError, match="another run is writing this output"):
            run("good*.csv", "out.csv")
    assert run("good*.csv", "out.csv").resumed_parts == 1


def test_a_part_of_another_run_is_never_taken(interrupted: Path, folder: Path) -> None:
    """A removal that a power cut has undone brings back parts of other options: their name is that of their run."""
    kept = {path.name: path.read_bytes() for path in interrupted.parent.iterdir()}
    with pytest.raises(CommandError, match="none for absent"):
        run("good*.csv", "out.csv", keep=("absent",))
    plan = interrupted.parent / "run.json"
    (folder / "out.csv.parts").mkdir(exist_ok=True)
    for name, data in kept.items():
        (interrupted.parent / name).write_bytes(data)
    document = msgspec.json.decode(plan.read_bytes())
    document["job"]["stride"] = 7
    plan.write_bytes(msgspec.json.encode(document))
    assert run("good*.csv", "out.csv", stride=7).resumed_parts == 0


def test_a_part_that_loses_rows_during_the_run_ends_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that do not add up are a failed run, and no shorter output."""
    (folder / "out.csv").write_text("good\n")

    def fewer(path: Path) -> Any:
        yield from list(read_chunks(path))[:-1]

    monkeypatch.setattr("edge_runtime.batch.run.read_chunks", fewer)
    with pytest.raises(CommandError, match="it is damaged: run the same command again"):
        run("good.csv", "out.csv")
    assert (folder / "out.csv").read_text() == "good\n"
