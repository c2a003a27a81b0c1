"""A gateway: 1,000 keys with sliding windows of their own in one daemon, and how costs grow with keys and models."""

import statistics
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from benchmarks import process
from benchmarks.broker import start_broker
from benchmarks.load import Load, wait_online
from benchmarks.models import write_bundle
from benchmarks.names import DAEMON
from benchmarks.pipeline import START_SECONDS
from benchmarks.process import Process
from benchmarks.results import Results
from benchmarks.targets import start_daemon

KEYS, RATE_HZ = 1000, 10_000.0
LENGTH, STRIDE = 128, 64
TICK_SECONDS = 0.005
GROWTH_RATE_HZ = 200.0
TURN_SECONDS = 2.0

# mosquitto's own choice, 1,000 messages waiting and 20 under way a client, is a tenth of a second at this rate: it
# may drop what comes during any longer pause. `docs/performance.md` says the same to users.
ROOM = "max_queued_messages 200000\nmax_inflight_messages 1000"

CPU = "gateway 1,000 keys 10,000/s, CPU % of a core"
LOST = "gateway, predictions missing"
RSS = "gateway, RSS MiB"
PER_KEY = "gateway, KiB per key"
GROWTH = "growth, µs CPU per reading"
PER_PREDICTION = "growth, µs CPU per prediction"


def measure(folder: Path, seconds: float, results: Results) -> None:
    """10,000 readings a second for `seconds` after the windows have filled; no prediction may be missing."""
    folder = Path(tempfile.mkdtemp(prefix="gateway-", dir=folder))
    model = write_bundle(folder / "window.onnx", length=LENGTH, stride=STRIDE)
    topics = _topics(KEYS)
    broker, running, load = _start(folder, topics, [model])
    with broker, running:
        load.stream(100.0, 1.0, 0.0)
        small = running.rss_bytes()
        filling = load.stream(RATE_HZ, KEYS * LENGTH / RATE_HZ, TICK_SECONDS)
        before = running.usage()
        answers = load.stream(RATE_HZ, seconds, TICK_SECONDS)
        used = running.usage() - before
        answered = filling.answered + answers.answered + load.drain()
        rss = running.rss_bytes()
        running.check()
        load.close()
    sent = 100 + filling.sent + answers.sent
    expected = sum(_windows(sent // KEYS + (1 if key < sent % KEYS else 0)) for key in range(KEYS))
    results.add(CPU, DAEMON, 100.0 * used.cpu_s / used.wall_s)
    results.add(LOST, DAEMON, float(expected - answered))
    results.add(RSS, DAEMON, rss / 2**20)
    results.add(PER_KEY, DAEMON, (rss - small) / 1024 / KEYS)
    if expected != answered:
        results.note(f"gateway: {expected} predictions expected, {answered} received")


class Size(NamedTuple):
    """How large a daemon is: keys of each source, models, and sources that the models share out among themselves."""

    keys: int = 1
    models: int = 1
    sources: int = 1

    def __str__(self) -> str:
        return f"{self.keys} keys, {self.models} models, {self.sources} sources"


ONE = Size()
BY_KEYS = [ONE, *(Size(keys=keys) for keys in (10, 100, 1000))]
ON_ONE_SOURCE = [ONE, *(Size(models=models) for models in (2, 4, 8))]
ON_THEIR_OWN = [ONE, *(Size(models=models, sources=models) for models in (2, 4, 8))]
CURVES = {
    "growth with keys, window of one, paced 200/s": BY_KEYS,
    "growth with models on one source, paced 200/s": ON_ONE_SOURCE,
    "growth with models on sources of their own, paced 200/s in all": ON_THEIR_OWN,
}


@dataclass
class _Grown:
    """One size of the daemon, alive beside the others, and what each of its turns cost."""

    size: Size
    broker: Process
    running: Process
    load: Load
    cpu_us: list[float] = field(default_factory=list)  # a reading
    predictions: float = 0.0  # a reading

    def turn(self) -> None:
        """One stretch of readings."""
        before = self.running.usage()
        answers = self.load.stream(GROWTH_RATE_HZ, TURN_SECONDS, 0.0)
        used = self.running.usage() - before
        answers.answered += self.load.drain()
        if not answers.answered:
            raise RuntimeError(f"{self.size}: no prediction in {TURN_SECONDS:.0f} s")
        self.cpu_us.append(used.cpu_s / answers.sent * 1e6)
        self.predictions = answers.answered / answers.sent


def growth(folder: Path, seconds: float, results: Results) -> None:
    """CPU at a fixed rate of readings, from 1 to 1,000 keys and from 1 to 8 models, all alive and in turns.

    Measured one after the other the drift of the machine shows as growth. Models with sources of their own are met
    by readings in turn, so that each reading makes one prediction whatever their number: its cost has to be flat.
    Where models share a source a reading makes a prediction in each, and it is the cost of a prediction that counts.
    """
    folder = Path(tempfile.mkdtemp(prefix="growth-", dir=folder))
    models = [write_bundle(folder / f"mlp{i}.onnx", name=f"mlp{i}") for i in range(8)]
    with ExitStack() as stack:
        sizes = dict.fromkeys(size for sizes in CURVES.values() for size in sizes)
        grown = {size: _grow(Path(tempfile.mkdtemp(dir=folder)), size, models, stack) for size in sizes}
        for _ in range(max(3, round(seconds / TURN_SECONDS))):
            for each in grown.values():
                each.turn()
        rss = {size: each.running.rss_bytes() / 2**20 for size, each in grown.items()}
        for each in grown.values():
            each.load.close()
    for size, each in grown.items():
        for cpu_us in each.cpu_us:
            results.add(GROWTH, str(size), cpu_us)
            results.add(PER_PREDICTION, str(size), cpu_us / each.predictions)
    for name, along in CURVES.items():
        results.curves[name] = [{**_row(grown[size], grown[ONE]), "RSS MiB": rss[size]} for size in along]


def _grow(folder: Path, size: Size, bundles: list[Path], stack: ExitStack) -> _Grown:
    broker, running, load = _start(folder, _topics(size.keys, size.sources), bundles[: size.models], size.sources)
    stack.enter_context(broker)
    stack.enter_context(running)
    load.first_answer(running)
    load.stream(1000.0, 2.0, TICK_SECONDS)  # every key is known before the clock starts
    load.drain()
    return _Grown(size, broker, running, load)


def _row(each: _Grown, one: _Grown) -> dict[str, float]:
    ratio = statistics.median(mine / theirs for mine, theirs in zip(each.cpu_us, one.cpu_us, strict=True))
    return {
        "keys": float(each.size.keys),
        "models": float(each.size.models),
        "µs CPU per reading": statistics.median(each.cpu_us),
        "beside 1 key, 1 model": ratio,
        "predictions per reading": each.predictions,
        "µs CPU per prediction": statistics.median(each.cpu_us) / each.predictions,
        "beside 1": ratio / each.predictions,
    }


def _start(folder: Path, topics: list[str], models: list[Path], sources: int = 1) -> tuple[Process, Process, Load]:
    generator_core, target_core = process.cores()
    broker, port = start_broker(folder, generator_core, extra=ROOM)
    running = start_daemon(folder, target_core, _config(folder, port, models, sources))
    load = Load(port, topics, "edge/bench/+/+")
    wait_online(port, "bench", START_SECONDS)
    return broker, running, load


def _topics(keys: int, sources: int = 1) -> list[str]:
    return [f"sensors/{key:04d}/machine{source}" for key in range(keys) for source in range(sources)]


def _windows(readings: int) -> int:
    return 0 if readings < LENGTH else (readings - LENGTH) // STRIDE + 1


def _config(folder: Path, port: int, models: list[Path], sources: int) -> str:
    tables = "\n".join(
        f'[[source]]\nname = "machine{number}"\ntype = "mqtt"\ntopics = ["sensors/{{key}}/machine{number}"]\n'
        for number in range(sources)
    )
    tables += "\n".join(
        f'[[model]]\nname = "{model.stem}"\nbundle = "{model}"\nsource = "machine{number % sources}"\n'
        for number, model in enumerate(models)
    )
    return f"""
[device]
id = "bench"

{tables}
[upstream]
url = "mqtt://127.0.0.1:{port}"

[outbox]
path = "{folder / "outbox.db"}"
"""
