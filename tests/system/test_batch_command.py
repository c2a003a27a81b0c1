"""`edge-runtime predict` as a user runs it: output, side file, exit codes, interruption and memory."""

import csv
import os
import signal
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.support import builders
from tests.support.installed import Installed, clean_environment
from tests.support.waiting import patient, wait_until

pytestmark = pytest.mark.system


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle and two small recordings."""
    builders.classification().save(tmp_path / "comfort.onnx")
    (tmp_path / "a.csv").write_text("temperature,humidity,room,truth\n21.5,40,k,low\n22.5,x,k,low\n20.25,41,k,high\n")
    (tmp_path / "b.csv").write_text("temperature,humidity,room,truth\n23.5,45,k,low\n")
    return tmp_path


def test_a_run_says_what_it_came_to(installed: Installed, folder: Path) -> None:
    """The output has its rows, the summary goes to stderr, and bad rows are listed beside the output."""
    done = installed.run(
        installed.edge_runtime, "predict", "comfort.onnx", "*.csv", "-o", "out.csv", "--key", "room", cwd=folder
    )
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.splitlines() == [
        "3 predictions of 4 readings in 2 files to out.csv",
        "1 readings were not used: wrong_type 1, listed in out.csv.rejected.csv",
    ]
    with (folder / "out.csv").open() as file:
        assert [row["room"] for row in csv.DictReader(file)] == ["k", "k", "k"]
    assert "a.csv,3,wrong_type," in (folder / "out.csv.rejected.csv").read_text()


def test_evaluation_is_printed(installed: Installed, folder: Path) -> None:
    """With `--label` the metrics and the confusion matrix go to stdout, without any output file."""
    done = installed.run(installed.edge_runtime, "predict", "comfort.onnx", "a.csv", "--label", "truth", cwd=folder)
    assert done.returncode == 0
    assert done.stdout.startswith("evaluation over 2 windows\naccuracy ")
    assert "confusion (a row is the truth, a column the prediction)" in done.stdout


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (["comfort.onnx", "a.csv"], 1, "expected an output (-o OUT)"),
        (["absent.onnx", "a.csv", "-o", "out.csv"], 1, "absent.onnx: expected a bundle, found no such file"),
        (["comfort.onnx", "absent-*.csv", "-o", "out.csv"], 1, "absent-*.csv: expected recorded files, found nothing"),
        (["comfort.onnx", "a.csv", "-o", "absent/out.csv"], 1, "absent/out.csv: cannot be written"),
        (["comfort.onnx", "a.csv", "-o", "out.csv", "--key", "rom"], 1, "found none for rom"),
        (["comfort.onnx", "a.csv", "-o", "out.csv", "--scheduler", "tcp://x:1"], 1, "add --engine dask"),
        (["comfort.onnx", "a.csv", "-o", "out.csv", "--workers", "0"], 2, "--workers"),
        (["comfort.onnx", "bad.csv", "-o", "out.csv"], 1, "none of 2 readings could be used: wrong_type 2"),
    ],
)
def test_a_mistake_is_one_line(installed: Installed, folder: Path, words: list[str], code: int, error: str) -> None:
    """What a user can get wrong ends in a line that names it, and writes no output."""
    (folder / "bad.csv").write_text("temperature,humidity\nx,1\ny,1\n")
    done = installed.run(installed.edge_runtime, "predict", *words, cwd=folder)
    assert done.returncode == code
    assert error in done.stderr
    if code == 1:
        assert done.stderr.count("\n") == 1


def test_a_folder_that_cannot_be_written_is_named(installed: Installed, folder: Path) -> None:
    """A disk that refuses is exit 1 and one line."""
    done = installed.run(installed.edge_runtime, "predict", "comfort.onnx", "a.csv", "-o", "/proc/out.csv", cwd=folder)
    assert done.returncode == 1
    assert done.stderr.startswith("/proc/out.csv.parts: cannot be written")


PARTS = 24  # many enough that a signal behind the first part comes before the last


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_goes_on(installed: Installed, folder: Path, number: signal.Signals) -> None:
    """After Ctrl-C, or a kill, the same command goes on with the parts that are missing; no worker is left behind."""
    rng = np.random.default_rng(2)
    for part in range(PARTS):
        values = rng.normal(size=(20_000, 2)).astype(np.float32)
        rows = "".join(f"{a},{b}\n" for a, b in values)
        (folder / f"part-{part:02}.csv").write_text("temperature,humidity\n" + rows)
    arguments = ["predict", "comfort.onnx", "part-*.csv", "-o", "out.csv", "--workers", "2"]
    process = subprocess.Popen(
        # a test run in the background of a shell hands down that Ctrl-C is ignored; a terminal would not
        ["env", "--default-signal=INT", str(installed.edge_runtime), *arguments],
        cwd=folder,
        env=clean_environment(),
        stderr=subprocess.PIPE,
    )
    try:
        wait_until(lambda: list((folder / "out.csv.parts").glob("0*.json")), "the first part", 60)
        process.send_signal(number)
        _, error = process.communicate(timeout=patient(60))
    finally:
        process.kill()
    assert b"Traceback" not in error
    assert not (folder / "out.csv").exists()
    complete = len(list((folder / "out.csv.parts").glob("0*.json")))
    done = installed.run(installed.edge_runtime, *arguments, cwd=folder)
    assert done.returncode == 0
    assert f"{PARTS * 20_000} predictions" in done.stderr
    found = int(done.stderr.split("; ")[1].split()[0])
    assert complete <= found <= PARTS  # a worker may have ended its part after we counted
    with (folder / "out.csv").open("rb") as file:
        assert sum(1 for _ in file) == PARTS * 20_000 + 1


def test_memory_does_not_grow_with_the_recording(installed: Installed, folder: Path) -> None:
    """Ten times the readings take about the same memory: recordings are read, scored and written piece by piece."""
    peaks = []
    for rows in (200_000, 2_000_000):
        table = {name: np.zeros(rows, np.float32) for name in ("temperature", "humidity")}
        parquet.write_table(pa.table(table), folder / "in.parquet", row_group_size=100_000)
        command = [str(installed.edge_runtime), "predict", "comfort.onnx", "in.parquet", "-o", "out.parquet"]
        process = subprocess.Popen(
            [*command, "--workers", "1"], cwd=folder, env=clean_environment(), stderr=subprocess.DEVNULL
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        peaks.append(usage.ru_maxrss)
    assert peaks[1] < peaks[0] + 60_000  # kB
