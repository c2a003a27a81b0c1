"""Three days without a broker, and the drain after it, weighed in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.disk_faults import LONG, ROOT, report

ROWS = 259_200 if LONG else 20_000
MEGABYTE = 1 << 20

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600 if LONG else 280)]


def _outage(path: Path, rows: int, max_bytes: int) -> Any:
    program = ROOT / "tests" / "faults" / "core" / "outage_workload.py"
    done = subprocess.run(
        [sys.executable, str(program), str(path), str(rows), str(max_bytes)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        timeout=3600,
    )
    report(done.stdout)
    return json.loads(done.stdout)


def test_an_outage_of_days_drains_in_order_and_in_little_memory(tmp_path: Path) -> None:
    """Every row arrives, in the order of its stream, while live predictions go between them at once."""
    found = _outage(tmp_path / "outbox.db", ROWS, 1 << 30)
    assert found["stored"] == ROWS
    assert found["arrived"] == ROWS + found["live"]
    assert found["live"] > 50
    assert found["out_of_order"] == found["left"] == 0
    assert found["live_waited_for_most"] <= 20
    assert found["rss_growth_while_filling"] <= 20 * MEGABYTE
    assert found["rss_growth_while_draining"] <= 20 * MEGABYTE


def test_the_bound_of_the_disk_holds_with_everything_that_sqlite_keeps(tmp_path: Path) -> None:
    """The file and its log stay within five percent of `max_bytes`; every row that had to go is counted."""
    bound = 64_000_000 if LONG else 4_000_000
    found = _outage(tmp_path / "outbox.db", ROWS if not LONG else 2 * ROWS, bound)
    assert found["dropped"]["outbox_full"] > 0
    assert found["stored"] + found["dropped"]["outbox_full"] == found["offered"]
    assert found["arrived"] == found["stored"] + found["live"]
    assert found["out_of_order"] == found["left"] == 0
    assert found["largest_disk"] <= 1.05 * bound
