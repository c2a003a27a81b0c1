"""docs/tutorial.md: its commands, taken from the page and run as they stand, on what the demonstration leaves."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.support.installed import ROOT, Installed, clean_environment

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


@pytest.mark.slow
def test_every_command_of_the_tutorial_runs_as_it_stands(installed: Installed, tmp_path: Path) -> None:
    """All but the first two (`make demo`, and its environment), whose files are made here by the same steps."""
    if not DATA.is_dir():
        pytest.skip(f"no recordings in {DATA}")
    commands = [
        line for block in BLOCK.findall((ROOT / "docs" / "tutorial.md").read_text()) for line in block.split("\n")
    ]
    commands = [line for line in commands if line]
    assert commands[:2] == ["make demo", ". .venv/bin/activate"]
    assert len(commands) <= 15
    binaries = installed.edge_runtime.parent
    environment = clean_environment() | {"PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}"}
    folder = "demo-output"
    steps = [
        ["python", "-m", "converter.demo", folder, "--data", str(DATA)],
        [
            *("edge-convert", "build", f"{folder}/activity.skops", "--spec", f"{folder}/activity.toml"),
            *("--calibration", f"{folder}/calibration.npz", "--evaluation", f"{folder}/held-out.npz"),
            *("-o", f"{folder}/activity.onnx"),
        ],
        ["python", "-c", LEAVE],
        *(["bash", "-o", "pipefail", "-ec", line] for line in commands[2:]),
    ]
    (tmp_path / folder).mkdir()
    shown = ""
    for step in steps:
        done = subprocess.run(
            step, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, f"{step}: {done.stdout[-2000:]}{done.stderr}"
        shown += done.stdout
    assert re.search(r"prediction activity: \w+ \(", shown), "`try` shows a prediction"
    assert "Standing" in (tmp_path / folder / "scored.csv").read_text().splitlines()[1].split(",")
    assert "probation" in shown.splitlines()[-1], "the list ends with the model that was installed"
