"""`edge-convert build` as a waiting user sees it: it prints what it does, and can be stopped."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import skops.io
from sklearn.neural_network import MLPClassifier

from tests.support.waiting import patient

ROOT = Path(__file__).resolve().parents[3]

# The program, with a bundle's trial in a fresh process that takes its time where `trial` is asked for. A background
# shell lets its children ignore SIGINT; a user's terminal does not.
SLOW_TRIAL = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from converter import cli, package
honest = package._try
def slow(part):
    print(f"trial of {part.name}", flush=True)
    time.sleep(60)
    return honest(part)
if sys.argv.pop(1) == "trial":
    package._try = slow
sys.exit(cli.main())
"""


@pytest.fixture
def inputs(tmp_path: Path) -> list[str]:
    """A network, and rows to calibrate and to judge with."""
    x = np.random.default_rng(0).normal(size=(400, 8)).astype(np.float32)
    y = (x[:, 0] > 0).astype(int)
    skops.io.dump(MLPClassifier((32, 32), max_iter=5, random_state=0).fit(x, y), tmp_path / "m.skops")
    np.savez(tmp_path / "d.npz", x=x, y=y)
    return [str(tmp_path / "m.skops"), "--data", str(tmp_path / "d.npz")]


@pytest.mark.parametrize(("line", "where"), [("trying int8 static", "search"), ("trial of", "trial")])
def test_work_is_told_as_it_is_done_and_an_interrupt_leaves_no_file(
    line: str, where: str, inputs: list[str], tmp_path: Path
) -> None:
    """Ctrl-C while it calibrates, and while the file is tried: the one of before stays, and nothing beside it."""
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "m.onnx").write_bytes(b"the one of before")
    started = subprocess.Popen(
        [sys.executable, "-c", SLOW_TRIAL, where, "build", *inputs, "-o", str(folder / "m.onnx"), "--max-drop", "1",
         "--report", str(folder / "r.html")],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert started.stdout is not None
    collected = []
    for each in started.stdout:
        collected.append(each)
        if each.startswith(line):
            break
    started.send_signal(signal.SIGINT)
    _, wrong = started.communicate(timeout=patient(60))
    assert started.returncode == 130
    # Each step was printed as it began, and the last one has not ended; no line waited in a buffer.
    steps = [
        "loading",
        "reading",
        "converting",
        "trying float16",
        "trying int8 dynamic",
        "trying int8 static",
        "trial of",
    ]
    places = [
        next((place for place, each in enumerate(collected) if each.startswith(step)), len(collected)) for step in steps
    ]
    assert places == sorted(places)
    assert len(collected) - 1 in places
    assert wrong.strip().endswith("interrupted; nothing was written")
    assert "Traceback" not in wrong
    assert [path.name for path in folder.iterdir()] == ["m.onnx"]
    assert (folder / "m.onnx").read_bytes() == b"the one of before"
