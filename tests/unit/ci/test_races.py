"""What CI may try again, and how often."""

import re
import subprocess
import sys
from pathlib import Path

from tests.support.waiting import patient

ROOT = Path(__file__).resolve().parents[3]


def _races(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ".ci/races.py", "--list", str(path), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=patient(60),
    )


def test_a_test_that_races_twice_in_a_row_fails_the_next_run(tmp_path: Path) -> None:
    """Once is noted, twice is a fault; it stays one until the line is taken out."""
    path = tmp_path / "races.txt"
    assert _races(path, "check").returncode == 0
    _races(path, "record", "tests/a.py::test_a", "tests/b.py::test_b[x y]")
    assert _races(path, "check").returncode == 0
    _races(path, "record", "tests/a.py::test_a")
    failed = _races(path, "check")
    assert failed.returncode == 1
    assert "tests/a.py::test_a: failed at first and passed alone in 2 runs in a row" in failed.stderr
    assert "test_b" not in path.read_text()
    _races(path, "record")
    assert _races(path, "check").returncode == 1


def test_a_race_that_is_not_seen_again_is_forgotten(tmp_path: Path) -> None:
    """Once now and once much later are not twice in a row."""
    path = tmp_path / "races.txt"
    for seen in ([], ["tests/a.py::test_a"], [], ["tests/a.py::test_a"]):
        _races(path, "record", *seen)
        assert _races(path, "check").returncode == 0


def test_the_list_of_the_repository_can_be_read_and_allows_the_run() -> None:
    """A name that came twice is for a person to look into, before anything else."""
    done = _races(ROOT / ".ci" / "races.txt", "check")
    assert done.returncode == 0, done.stderr


def test_the_run_looks_at_the_list_before_the_tests_and_writes_it_behind_them() -> None:
    """Else a race would be noted and never asked about, or the other way round; git keeps the list."""
    steps = (ROOT / ".ci" / "run").read_text()
    places = [steps.index(each) for each in ("races.py check", "if ! make test ", "races.py record")]
    assert places == sorted(places)
    kept = subprocess.run(["git", "ls-files", ".ci/races.txt"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert kept.stdout == ".ci/races.txt\n"


def test_the_names_of_what_has_failed_are_taken_whole_from_the_report(tmp_path: Path) -> None:
    """Also those of cases with spaces: else two cases of one test would be one name."""
    (command,) = re.findall(r"races=\$\((.*)\)$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    report = tmp_path / "report"
    report.write_text(
        "tests/a.py::test_a FAILED\n"
        "FAILED tests/a.py::test_a[x y] - assert 1 == 2 [3]\n"
        "FAILED tests/a.py::test_a[x z]\n"
        "ERROR tests/b.py::test_b - Failed: x - y\n"
        "FAILED tests/a.py::test_a[x y] - assert 1 == 2 [3]\n"
    )
    done = subprocess.run(
        ["bash", "-c", f"report={report}; {command}"], capture_output=True, text=True, check=True, timeout=patient(60)
    )
    assert done.stdout.splitlines() == ["tests/a.py::test_a[x y]", "tests/a.py::test_a[x z]", "tests/b.py::test_b"]
