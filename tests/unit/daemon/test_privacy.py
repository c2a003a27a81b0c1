"""What the program does not do behind its owner's back."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.waiting import patient


@pytest.mark.parametrize("package", ["edge_runtime", "converter"])
def test_onnxruntime_reports_its_use_to_nobody(package: str, tmp_path: Path) -> None:
    """Importing either half keeps onnxruntime's usage database from being made, and its reports from being sent."""
    script = f"import {package}, onnxruntime, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    environment = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(Path.cwd())}
    found = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=patient(60), check=True
    )
    assert found.stdout.strip() == "1"
    assert not [path for path in tmp_path.rglob("*") if path.is_file()], "onnxruntime wrote into the home folder"
