"""Paced CPU and latency once more, with every target alive and in turns of seconds.

A stretch of half a minute for one target after the other lets the machine change its mind in between: on a virtual
machine the same program took half as long again a minute later. In turns of two seconds it hits all of them alike,
and what is set beside each other is of the same dozen seconds.
"""

import statistics
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks import process
from benchmarks.broker import start_broker
from benchmarks.load import Load
from benchmarks.names import TOPIC_IN, TOPIC_OUT
from benchmarks.pipeline import OUTSTANDING, RATE_HZ, account, per_10k
from benchmarks.process import Process
from benchmarks.results import Results
from benchmarks.targets import Target

CPU = "CPU s/10k, paced, in turns"
P50 = "latency p50 µs, in turns"
TURN_SECONDS, WARM_SECONDS = 2.0, 0.3
CALM_SECONDS = 2.0  # what a target still does for the stretch at full speed


@dataclass(frozen=True, slots=True)
class _Alive:
    name: str
    running: Process
    load: Load

    def turn(self, results: Results) -> None:
        self.load.paced(RATE_HZ, WARM_SECONDS)  # the one before has left its own code in the caches
        before = self.running.usage()
        answers = self.load.paced(RATE_HZ, TURN_SECONDS)
        used = self.running.usage() - before
        results.add(CPU, self.name, per_10k(used, answers))
        results.add(P50, self.name, statistics.median(answers.latencies_s) * 1e6)
        account(self.name, answers, results)


def measure(targets: list[Target], folder: Path, model: Path, seconds: float, *, results: Results) -> None:
    """So many turns of each target that each comes to `seconds`."""
    with ExitStack() as stack:
        alive = [_start(target, folder, model, stack) for target in targets]
        for each in alive:
            each.load.paced(RATE_HZ, CALM_SECONDS)
        for _ in range(max(3, round(seconds / TURN_SECONDS))):
            for each in alive:
                each.turn(results)
        for each in alive:
            each.load.close()


def _start(target: Target, folder: Path, model: Path, stack: ExitStack) -> _Alive:
    generator_core, target_core = process.cores()
    own = Path(tempfile.mkdtemp(prefix=f"{target.name}-turns-", dir=folder))
    broker, port = start_broker(own, generator_core)
    stack.enter_context(broker)
    load = Load(port, [TOPIC_IN], TOPIC_OUT)
    running = stack.enter_context(target.start(own, target_core, port, model))
    load.first_answer(running)
    load.saturated(0.5, OUTSTANDING)
    load.drain()
    return _Alive(target.name, running, load)
