"""SIGKILL and errors at file-system calls of the outbox, one call after the other."""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.disk_faults import (
    CALLS,
    LONG,
    STRACE,
    count_calls,
    judge,
    memory_folder,
    read_said,
    report,
    run_workload,
)

SEEDS = [1, 2, 3, 4, 5, 6]
KILLS = 15_000 if LONG else 500
ERRORS = 2_000 if LONG else 200

pytestmark = [pytest.mark.skipif(STRACE is None, reason="strace is not installed"), pytest.mark.slow]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder of one test."""
    with memory_folder() as path:
        yield path


def _points(folder: Path, count: int) -> Iterator[tuple[str, int, int]]:
    """Calls and their numbers: every call is met, early and late ones, in an order that a seed fixes."""
    numbers = count_calls(folder, SEEDS)
    assert len(numbers["pwrite64"]) > 100
    assert len(numbers["fdatasync"]) > 20
    rng = random.Random(20261123)
    made = [call for call in CALLS if numbers[call]]
    assert len(made) >= 6, numbers
    for turn in range(count):
        call = made[turn % len(made)]
        yield call, (first := rng.choice(numbers[call])), rng.randint(numbers[call].start, first)


@pytest.mark.timeout(7200 if LONG else 280)
def test_a_kill_at_any_call_loses_nothing_that_was_acknowledged(folder: Path) -> None:
    """Killed at a call and killed while it recovers: every acknowledged row is there, in order, in a sound file."""
    fired = planned = 0
    for call, number, second in _points(folder, KILLS):
        if fired >= KILLS:
            break
        place = folder / "work"
        ended = run_workload(place, SEEDS, inject=f"{call}:signal=KILL:when={number}")
        assert ended == [-9] * len(SEEDS), f"{call} number {number} did not fire: {ended}"
        again = run_workload(place, SEEDS, inject=f"{call}:signal=KILL:when={second}")
        planned += 2 * len(SEEDS)
        fired += ended.count(-9) + again.count(-9)
        for seed in SEEDS:
            problems = judge(place / str(seed), read_said(place / str(seed)))
            assert not problems, f"{call} number {number}, seed {seed}: {problems}"
        shutil.rmtree(place)
    report(f"{planned} kills planned, {fired} fired, 0 acknowledged rows lost, 0 failed starts")
    assert fired >= KILLS


@pytest.mark.timeout(7200 if LONG else 280)
def test_an_error_at_any_call_is_no_promise_and_no_end(folder: Path) -> None:
    """EIO, ENOSPC and EROFS, once or from then on: what was promised holds, and the program ends in good order."""
    log = folder / "errors.strace"
    met = 0
    for turn, (call, number, _) in enumerate(_points(folder, ERRORS)):
        if met >= ERRORS:
            break
        if call == "fcntl":
            continue  # a lock, and no matter of the disk; SQLite waits ten seconds for one that fails
        error = ("EIO", "ENOSPC", "EROFS")[turn % 3]
        forever = "+" if turn % 2 else ""
        place = folder / "work"
        ended = run_workload(place, SEEDS, inject=f"{call}:error={error}:when={number}{forever}", log=log)
        assert ended == [0] * len(SEEDS), f"{call} number {number}: {error}{forever}: {ended}"
        lines = [line for line in log.read_text(errors="replace").splitlines() if "(INJECTED)" in line]
        hit = {line.split()[0] for line in lines}
        assert len(hit) >= len(SEEDS), f"{call} number {number}: {error}{forever} fired in {len(hit)} children only"
        met += len(hit)
        for seed in SEEDS:
            problems = judge(place / str(seed), read_said(place / str(seed)))
            assert not problems, f"{call} number {number}: {error}{forever}, seed {seed}: {problems}"
        shutil.rmtree(place)
    report(f"{met} errors met, 0 acknowledged rows lost, 0 failed starts")
    assert met >= ERRORS


def test_a_promise_before_the_commit_is_noticed(folder: Path) -> None:
    """Negative control: a program that acknowledges too early is caught by the kills."""
    caught = 0
    for number in (40, 90, 140):
        place = folder / str(number)
        run_workload(place, SEEDS, "--early", inject=f"pwrite64:signal=KILL:when={number}")
        caught += sum(bool(judge(place / str(seed), read_said(place / str(seed)))) for seed in SEEDS)
    assert caught > 0
