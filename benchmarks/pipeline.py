"""The main figures: CPU, latency, memory, start, idle cost and writes of MQTT -> model -> MQTT, target by target."""

import statistics
import tempfile
import time
from pathlib import Path

from benchmarks import process
from benchmarks.broker import start_broker
from benchmarks.load import Answers, Load
from benchmarks.names import TOPIC_IN, TOPIC_OUT
from benchmarks.process import Process, Usage
from benchmarks.results import Results
from benchmarks.targets import Target

RATE_HZ = 100.0
OUTSTANDING = 200  # below mosquitto's default queue of 1,000 messages, so that the broker drops nothing
START_SECONDS = 30.0
SETTLE_SECONDS = 2.0  # the last acknowledgements, and whatever a target still does for the stretch before

PACED = "CPU s/10k, paced 100/s"
SATURATED = "CPU s/10k, saturated"
PER_CPU_SECOND = "predictions per CPU s, saturated"
RATE = "predictions/s, saturated"
P50, P99 = "latency p50 µs", "latency p99 µs"
WAKEUPS = "wake-ups per prediction, paced"
RSS = "RSS MiB"
FIRST = "start to first prediction s"
IDLE = "idle CPU %"
IDLE_WAKEUPS = "idle wake-ups/s"
WRITTEN = "bytes written per prediction"


def measure(target: Target, folder: Path, model: Path, seconds: float, *, results: Results) -> None:
    """One turn of one target: start it with a broker of its own, measure everything, stop it."""
    generator_core, target_core = process.cores()
    folder = Path(tempfile.mkdtemp(prefix=f"{target.name}-", dir=folder))
    broker, port = start_broker(folder, generator_core)
    with broker:
        load = Load(port, [TOPIC_IN], TOPIC_OUT)
        with target.start(folder, target_core, port, model) as running:
            results.add(FIRST, target.name, load.first_answer(running))
            load.saturated(0.5, OUTSTANDING)  # warm: allocations, caches, a compiler in time where there is one
            load.drain()
            _paced(target, running, load, seconds, results=results)
            _idle(target, running, seconds / 3, results)
            _saturated(target, running, load, seconds / 3, results=results)
            results.add(RSS, target.name, running.rss_bytes() / 2**20)
        load.close()


def _paced(target: Target, running: Process, load: Load, seconds: float, *, results: Results) -> None:
    before = running.usage()
    answers = load.paced(RATE_HZ, seconds)
    used = running.usage() - before
    account(target.name, answers, results)
    results.add(PACED, target.name, per_10k(used, answers))
    results.add(WAKEUPS, target.name, used.wakeups / max(1, answers.answered))
    results.add(WRITTEN, target.name, used.written_bytes / max(1, answers.answered))
    percentiles = statistics.quantiles(answers.latencies_s, n=100)
    results.add(P50, target.name, percentiles[49] * 1e6)
    results.add(P99, target.name, percentiles[98] * 1e6)


def _idle(target: Target, running: Process, seconds: float, results: Results) -> None:
    time.sleep(SETTLE_SECONDS)
    before = running.usage()
    time.sleep(seconds)
    used = running.usage() - before
    results.add(IDLE, target.name, 100.0 * used.cpu_s / used.wall_s)
    results.add(IDLE_WAKEUPS, target.name, used.wakeups / used.wall_s)


def _saturated(target: Target, running: Process, load: Load, seconds: float, *, results: Results) -> None:
    before = running.usage()
    answers = load.saturated(seconds, OUTSTANDING)
    used = running.usage() - before
    results.add(SATURATED, target.name, per_10k(used, answers))
    results.add(PER_CPU_SECOND, target.name, answers.answered / used.cpu_s)
    results.add(RATE, target.name, answers.answered / answers.seconds)
    missing = OUTSTANDING - load.drain()
    if missing:
        results.note(f"{target.name}: {missing:+d} predictions missing after the saturated stretch")


def per_10k(used: Usage, answers: Answers) -> float:
    """CPU seconds for 10,000 predictions."""
    return used.cpu_s / max(1, answers.answered) * 10_000


def account(name: str, answers: Answers, results: Results) -> None:
    """Say aloud what was lost, or came twice."""
    if answers.answered != answers.sent:
        results.note(f"{name}: {answers.sent} readings sent, {answers.answered} predictions received")
