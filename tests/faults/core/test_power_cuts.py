"""The files that a power cut leaves: what was synced is there, of the rest any part."""

import random
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from edge_runtime.delivery.outbox_file import OutboxFile
from tests.support.disk_faults import LONG, STRACE, Act, cut, judge, memory_folder, record, record_takeover, report
from tests.support.older_outbox import OLDER_ROWS, copy_older_file

IMAGES = 10_000 if LONG else 1_000
SEEDS = range(1, 41) if LONG else range(1, 6)

pytestmark = [pytest.mark.skipif(STRACE is None, reason="strace is not installed"), pytest.mark.slow]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder of one test."""
    with memory_folder() as path:
        yield path


def _violations(folder: Path, recordings: list[list[Act]], count: int, rng: random.Random) -> tuple[list[str], int]:
    found: list[str] = []
    promised = 0
    for turn in range(count):
        acts = recordings[turn % len(recordings)]
        image = folder / "image"
        at = rng.randint(1, len(acts))
        answered = cut(acts, at, rng, image)
        promised += len(answered.kept - answered.going)
        found += [f"recording {turn % len(recordings)} cut after {at} calls: {p}" for p in judge(image, answered)]
        shutil.rmtree(image)
    return found, promised


@pytest.mark.timeout(3600 if LONG else 280)
def test_a_power_cut_at_any_moment_keeps_what_was_acknowledged(folder: Path) -> None:
    """Unsynced writes dropped, reordered, torn at 512 bytes: what was acknowledged is there, in a sound file."""
    (folder / "record").mkdir()
    recordings = [record(folder / "record", seed) for seed in SEEDS]
    assert all(sum(act.kind == "sync" for act in acts) > 20 for acts in recordings)
    found, promised = _violations(folder, recordings, IMAGES, random.Random(20261123))
    assert promised > IMAGES  # there was something to lose
    report(f"{IMAGES} power-cut images, {promised} acknowledged rows in them, {len(found)} violations")
    assert not found, found[:5]


def test_missing_syncs_are_noticed(folder: Path) -> None:
    """Negative control: with `synchronous=OFF` the same images lose acknowledged rows, or the whole file."""
    (folder / "record").mkdir()
    acts = record(folder / "record", 1, "--no-sync")
    found, _ = _violations(folder, [acts], 60, random.Random(1))
    assert len(found) > 10


def test_a_power_cut_while_an_older_file_is_taken_over_loses_no_row(folder: Path) -> None:
    """After a cut at any call the next start finds every row, in a file that was never set aside."""
    acts = record_takeover(copy_older_file(folder))
    before = 6  # what stood on the disk when the process began
    assert len(acts) > before + 5
    rng = random.Random(20261127)
    versions = set()
    for turn in range(20 * (len(acts) - before + 1)):
        image = folder / "image"
        at = before + turn % (len(acts) - before + 1)
        cut(acts, at, rng, image)
        with closing(sqlite3.connect(f"{(image / 'outbox.db').as_uri()}?mode=ro", uri=True)) as connection:
            versions.add(connection.execute("PRAGMA user_version").fetchone()[0])
        store = OutboxFile(image / "outbox.db", 1 << 30, 1e12)
        opened = store.open()
        found = {row.id: row.payload for row in store.fetch(0, 1000) if row.is_sound}
        store.close()
        assert (opened.damaged_file, found) == (None, OLDER_ROWS), f"cut after {at} calls"
        shutil.rmtree(image)
    assert versions == {1, 2}  # cuts before and behind the moment at which it became a file of today
