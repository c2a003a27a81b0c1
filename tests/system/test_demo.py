"""`edge-runtime demo` from the installed wheel: it ends by itself, says its figures, and leaves nothing running."""

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support.installed import ROOT, Installed, clean_environment
from tests.support.waiting import patient, wait_until

pytestmark = pytest.mark.system


@pytest.fixture
def options(tmp_path: Path) -> list[str | Path]:
    """Where the files go; and the shared recordings where they are, else they are fetched as a newcomer's are."""
    shared = ROOT.parent / "shared" / "data" / "basic-motions"
    folder: list[str | Path] = ["--folder", tmp_path / "demo output"]
    return [*folder, "--data", shared] if shared.is_dir() else folder


@pytest.mark.slow
def test_the_demonstration_ends_with_its_figures(
    installed: Installed, tmp_path: Path, options: list[str | Path]
) -> None:
    """It exits 0 and closes with accuracy, latency and sizes, with units. The folder may have a space in its name."""
    done = installed.run(installed.edge_runtime, "demo", *options, cwd=tmp_path, timeout=240)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    assert "int8" in done.stdout, "the converter's table is shown"
    assert done.stdout.count(" ms") >= 120, "every live prediction is shown"
    closing = "\n".join(done.stdout.splitlines()[-9:])
    accuracy = re.search(r"accuracy (\d\.\d{3})", closing)
    assert accuracy, closing
    assert 0.90 <= float(accuracy[1]) <= 1.0
    assert re.search(r"latency +\d+\.\d ms", closing)
    assert re.search(r"source [\d.]+ kB, float ONNX [\d.]+ kB, int8 bundle [\d.]+ kB", closing)
    assert (tmp_path / "demo output" / "activity.onnx").is_file()
    replay = tmp_path / "demo output" / "replay.toml"
    assert f"edge-runtime try '{replay}'" in closing or f"edge-runtime try {replay}" in closing
    assert "edge-runtime init --bundle" in closing
    tried = installed.run(installed.edge_runtime, "try", replay, "--seconds", "12", cwd=tmp_path)
    assert tried.returncode == 0, tried.stdout[-2000:] + tried.stderr
    assert "activity: " in tried.stdout, "what it leaves runs by itself: readings become predictions"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demonstration_leaves_nothing_running(
    installed: Installed, tmp_path: Path, options: list[str | Path], number: signal.Signals
) -> None:
    """Ctrl-C or a request to end, amid the live part: one line, and every process that it started is gone."""
    output = tmp_path / "output"
    marked = clean_environment() | {"DEMO_TEST_MARK": str(tmp_path)}
    with output.open("wb") as file:
        process = subprocess.Popen(
            # a test run in the background of a shell hands down that Ctrl-C is ignored; a terminal would not
            ["env", "--default-signal=INT", installed.edge_runtime, "demo", *options],
            cwd=tmp_path,
            env=marked,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        wait_until(lambda: "recording  2 at" in output.read_text(), output.read_text, deadline=120)
        assert len(_processes_with(str(tmp_path))) >= 3, "the demonstration, its broker and its daemon"
        # as a terminal does it: the whole foreground group gets Ctrl-C
        os.killpg(process.pid, number)
        assert process.wait(patient(30)) == 130
    finally:
        process.kill()
        process.wait(patient(10))
    assert output.read_text().endswith("demo: stopped\n")
    assert "Traceback" not in output.read_text()
    wait_until(
        lambda: not _processes_with(str(tmp_path)), lambda: f"an end of {_processes_with(str(tmp_path))}", deadline=10
    )


def test_recordings_that_are_missing_are_one_line(installed: Installed, tmp_path: Path) -> None:
    """A folder without the recordings is an exit code of 1 and a line that names the file."""
    done = installed.run(installed.edge_runtime, "demo", "--data", tmp_path / "nowhere", cwd=tmp_path, timeout=60)
    assert done.returncode == 1
    assert "BasicMotions_TRAIN.ts" in done.stderr


def _processes_with(mark: str) -> list[str]:
    """The command lines of living processes that inherited the mark."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if f"DEMO_TEST_MARK={mark}".encode() in (entry / "environ").read_bytes():
                found.append((entry / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found
