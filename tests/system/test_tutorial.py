"""docs/tutorial.md: its commands, taken from the page and run as they stand, on what the demonstration leaves."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.support.installed import ROOT, Installed, clean_environment
from tests.support.waiting import patient

pytestmark = pytest.mark.system

DATA = ROOT.parent / "shared" / "data" / "basic-motions"
BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
LEAVE = """
from pathlib import Path
from edge_runtime.bundle.open import open_bundle
from edge_runtime.demo import _leave_recordings
folder = Path("demo-output")
_leave_recordings(folder, open_bundle(folder / "activity.onnx"))
"""


@pytest.fixture(scope="module")
def demonstrated(installed: Installed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `demo-output`, made by the steps of the demonstration."""
    if not DATA.is_dir():
        pytest.skip(f"no recordings in {DATA}")
    folder, out = tmp_path_factory.mktemp("clone"), "demo-output"
    (folder / out).mkdir()
    build = ["edge-convert", "build", f"{out}/activity.skops", "--spec", f"{out}/activity.toml"]
    build += ["--calibration", f"{out}/calibration.npz", "--evaluation", f"{out}/held-out.npz"]
    for step in (
        ["python", "-m", "converter.demo", out, "--data", str(DATA)],
        [*build, "-o", f"{out}/activity.onnx"],
        ["python", "-c", LEAVE],
    ):
        typed(installed, folder, step)
    return folder


def typed(installed: Installed, folder: Path, step: list[str]) -> str:
    """What a command shows that has to succeed."""
    path = f"{installed.edge_runtime.parent}{os.pathsep}{os.environ['PATH']}"
    environment = clean_environment() | {"PATH": path}
    done = subprocess.run(
        step, cwd=folder, env=environment, capture_output=True, text=True, timeout=patient(120), check=False
    )
    assert done.returncode == 0, f"{step}: {done.stdout[-2000:]}{done.stderr}"
    return done.stdout


def commands_of(text: str) -> list[str]:
    """Each line of the blocks of a page; the first two, `make demo` and its environment, are checked and left out."""
    commands = [line for block in BLOCK.findall(text) for line in block.split("\n") if line]
    assert commands[:2] == ["make demo", ". .venv/bin/activate"]
    assert len(commands) <= 15
    return commands[2:]


@pytest.mark.slow
def test_every_command_of_the_tutorial_runs_as_it_stands(installed: Installed, demonstrated: Path) -> None:
    """All but the first two (`make demo`, and its environment), whose files are made here by the same steps."""
    shown = ""
    for line in commands_of((ROOT / "docs" / "tutorial.md").read_text()):
        shown += typed(installed, demonstrated, ["bash", "-o", "pipefail", "-ec", line])
    assert re.search(r"prediction activity: \w+ \(", shown), "`try` shows a prediction"
    scored = (demonstrated / "demo-output" / "scored.csv").read_text()
    assert "Standing" in scored.splitlines()[1].split(",")
    assert "probation" in shown.splitlines()[-1], "the list ends with the model that was installed"


@pytest.mark.slow
def test_the_readme_reaches_an_own_prediction_in_fifteen_commands(installed: Installed, demonstrated: Path) -> None:
    """The block under "Your own prediction", as it stands: a recording scored by an own bundle, and the sensor live."""
    section = (ROOT / "README.md").read_text().split("## Your own prediction in ten minutes", 1)[1].split("\n## ", 1)[0]
    shown = ""
    for line in commands_of(section):
        shown += typed(installed, demonstrated, ["bash", "-o", "pipefail", "-ec", line])
    assert re.search(r"^[^\n]*,Standing,", shown, re.MULTILINE), "`tail` shows a scored window"
    assert re.search(r"prediction activity: \w+ \(", shown), "`try` shows a prediction of the own bundle"
    assert 'bundle = "own.onnx"' in (demonstrated / "demo-output" / "own.toml").read_text()
    assert "Good enough: " in (demonstrated / "demo-output" / "own.html").read_text()
