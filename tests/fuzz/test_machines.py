"""Sequences and documents of strangers, made at random: short on every run, long with EDGE_TORTURE=long.

`EDGE_FUZZ_INPUTS=N` sets how many inputs the long form gives each machine; an input is one request, packet, document
or manifest. The corpus (`corpus.toml`) keeps, for each machine, the seeds that reached something first; a seed that
found a fault is added by hand, with the fault beside it.
"""

import gc
import logging
import os
import resource
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from edge_runtime.system.memory import resident_bytes
from tests.fuzz.document_machines import ManifestMachine, OtaMachine
from tests.fuzz.http_machine import HttpMachine
from tests.fuzz.mqtt_machine import MqttMachine
from tests.support.disk_faults import LONG

INPUTS = int(os.environ.get("EDGE_FUZZ_INPUTS", "500000" if LONG else "0"))
FROM = int(os.environ.get("EDGE_SEED", "1000000"))
SHORT_SEEDS = 60
CORPUS = tomllib.loads((Path(__file__).parent / "corpus.toml").read_text(encoding="utf-8"))
MIB = 1 << 20


class Machine(Protocol):
    """Makes a course of a seed, runs it, and fails where a promise is broken."""

    name: str

    def run(self, seed: int) -> tuple[int, set[str]]:
        """How many inputs it held, and what it has reached."""


MACHINES: dict[str, type[Machine]] = {
    each.__name__: each for each in (HttpMachine, MqttMachine, OtaMachine, ManifestMachine)
}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Thousands of warnings that belong to the courses."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("name", list(MACHINES))
def test_courses_at_random_break_no_promise(name: str) -> None:
    """Some courses of fixed seeds, and those that reached something first."""
    machine = MACHINES[name]()
    reached: set[str] = set()
    for seed in [*range(SHORT_SEEDS), *CORPUS[name]["seeds"]]:
        reached |= machine.run(seed)[1]
    missing = set(CORPUS[name]["reaches"]) - reached
    assert not missing, "the courses are as strange as they were"


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.skipif(not INPUTS, reason="long form: EDGE_TORTURE=long, or EDGE_FUZZ_INPUTS=N")
@pytest.mark.parametrize("name", list(MACHINES))
def test_half_a_million_inputs_of_each_kind_leave_no_memory_behind(name: str) -> None:
    """Two million together: no promise broken, nothing slow, and as much memory at the end as at a tenth of the way."""
    machine = MACHINES[name]()
    count = courses = 0
    slowest, baseline, begin = 0.0, 0, time.process_time()
    first: dict[str, int] = {}
    while count < INPUTS:
        started = time.process_time()
        taken, reached = machine.run(FROM + courses)
        slowest = max(slowest, time.process_time() - started)
        for each in reached:
            first.setdefault(each, FROM + courses)
        if (count + taken) * 10 // INPUTS != count * 10 // INPUTS:  # a run that is ended early has shown this much
            print(f"{machine.name}: {count + taken} inputs, {resident_bytes() / MIB:.1f} MiB", flush=True)  # noqa: T201
        count, courses = count + taken, courses + 1
        if not baseline and count > INPUTS // 10:
            gc.collect()
            baseline = resident_bytes()
    gc.collect()
    growth = (resident_bytes() - baseline) / MIB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    spent = time.process_time() - begin
    print(  # noqa: T201
        f"\nFIGURE {machine.name}: {count} inputs in {courses} courses from seed {FROM}, {spent:.0f} s CPU, slowest "
        f"course {slowest * 1e3:.0f} ms, growth {growth:+.1f} MiB (peak {peak:.0f}), {len(first)} things reached"
    )
    print(f"CORPUS {name}: seeds = {sorted(set(first.values()))} reaches = {sorted(first)}")  # noqa: T201
    assert growth < 8
