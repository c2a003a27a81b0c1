"""`make device-bench`: one file with the figures of whatever it runs on, and a page made of such files."""

import json
from pathlib import Path

import pytest

from benchmarks.device_bench import BOARDS, PAGE, page
from tests.support.installed import ROOT, Installed

pytestmark = pytest.mark.system


def test_it_measures_this_machine_with_the_runtime_alone(installed: Installed, tmp_path: Path) -> None:
    """The file runs beside an installed wheel, away from the source folder; every figure is there and above zero."""
    script = tmp_path / "device_bench.py"
    script.write_bytes((ROOT / "benchmarks" / "device_bench.py").read_bytes())
    done = installed.run(
        installed.python, script, "--seconds", "1", "--name", "x", "-o", "x.json", cwd=tmp_path, timeout=200
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "x.json").read_text())
    assert (found["board"], found["format"]) == ("x", 1)
    figures = [found["model_us"], found["idle_rss_mib"], found["start_cpu_s"], *found["saturated"].values()]
    assert all(figure > 0 for figure in figures)
    assert found["paced"]["hz"] == 100
    text = page([tmp_path / "x.json"])
    assert "| x" in text


def test_the_page_is_made_of_the_files() -> None:
    """`python -m benchmarks.device_bench --page` writes it anew."""
    assert PAGE.read_text(encoding="utf-8") == page(sorted(BOARDS.glob("*.json")))
