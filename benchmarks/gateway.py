"""A gateway: 1,000 keys with sliding windows of their own in one daemon, and how costs grow with keys and models."""

import statistics
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import process
from benchmarks.broker import start_broker
from benchmarks.load import Load, wait_online
from benchmarks.models import write_bundle
from benchmarks.pipeline import START_SECONDS
from benchmarks.process import Process
from benchmarks.results import Results
from benchmarks.targets import DAEMON, start_daemon

KEYS, RATE_HZ = 1000, 10_000.0
LENGTH, STRIDE = 128, 64
TICK_SECONDS = 0.005
GROWTH_RATE_HZ = 200.0
TURN_SECONDS = 2.0
SIZES = ((1, 1), (10, 1), (100, 1), (1000, 1), (1, 2), (1, 4), (1, 8))  # keys, models

# mosquitto's own choice, 1,000 messages waiting and 20 under way a client, is a tenth of a second at this rate: it
# may drop what comes during any longer pause. `docs/performance.md` says the same to users.
ROOM = "max_queued_messages 200000\nmax_inflight_messages 1000"

CPU = "gateway 1,000 keys 10,000/s, CPU % of a core"
LOST = "gateway, predictions missing"
RSS = "gateway, RSS MiB"
PER_KEY = "gateway, KiB per key"
GROWTH = "growth, µs CPU per reading"
MARGINAL = "growth, µs CPU per further model"
KEYED, SEVERAL = "{} keys", "{} models"


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


@dataclass
class _Grown:
    """One size of the daemon, alive beside the others, and what each of its turns cost."""

    name: str
    keys: int
    models: int
    broker: Process
    running: Process
    load: Load
    cpu_us: list[float] = field(default_factory=list)  # a reading
    predictions: float = 0.0

    def turn(self) -> None:
        """One stretch of readings."""
        before = self.running.usage()
        answers = self.load.stream(GROWTH_RATE_HZ, TURN_SECONDS, 0.0)
        used = self.running.usage() - before
        answers.answered += self.load.drain()
        self.cpu_us.append(used.cpu_s / answers.sent * 1e6)
        self.predictions = answers.answered / answers.sent


def growth(folder: Path, seconds: float, results: Results) -> None:
    """CPU a reading at a fixed rate, from 1 to 1,000 keys and from 1 to 8 models, all alive and in turns.

    Measured one after the other the drift of the machine shows as growth. A reading makes a prediction in each model,
    so that its cost is `a + b * models`; what has to be flat is `b`, the cost of one further model.
    """
    folder = Path(tempfile.mkdtemp(prefix="growth-", dir=folder))
    models = [write_bundle(folder / f"mlp{i}.onnx", name=f"mlp{i}") for i in range(8)]
    with ExitStack() as stack:
        grown = [_grow(Path(tempfile.mkdtemp(dir=folder)), *size, models, stack) for size in SIZES]
        for _ in range(max(3, round(seconds / TURN_SECONDS))):
            for each in grown:
                each.turn()
        rss = [each.running.rss_bytes() / 2**20 for each in grown]
        for each in grown:
            each.load.close()
    one = grown[0]
    for each in grown:
        for cpu_us, alone_us in zip(each.cpu_us, one.cpu_us, strict=True):
            results.add(GROWTH, each.name, cpu_us)
            if each.models > 1:
                results.add(MARGINAL, each.name, (cpu_us - alone_us) / (each.models - 1))
    rows = [{**_row(each, one), "RSS MiB": size} for each, size in zip(grown, rss, strict=True)]
    by_keys = [row for row, each in zip(rows, grown, strict=True) if each.models == 1]
    by_models = [row for row, each in zip(rows, grown, strict=True) if each.keys == 1]
    results.curves["growth with keys, window of one, paced 200/s"] = by_keys
    results.curves["growth with models on one source, paced 200/s"] = by_models


def _grow(folder: Path, keys: int, models: int, bundles: list[Path], stack: ExitStack) -> _Grown:
    broker, running, load = _start(folder, _topics(keys), bundles[:models])
    stack.enter_context(broker)
    stack.enter_context(running)
    load.first_answer(running)
    load.stream(1000.0, 2.0, TICK_SECONDS)  # every key is known before the clock starts
    load.drain()
    name = KEYED.format(keys) if models == 1 else SEVERAL.format(models)
    return _Grown(name, keys, models, broker, running, load)


def _row(each: _Grown, one: _Grown) -> dict[str, float]:
    ratios = [mine / theirs for mine, theirs in zip(each.cpu_us, one.cpu_us, strict=True)]
    further = [(mine - theirs) / max(1, each.models - 1) for mine, theirs in zip(each.cpu_us, one.cpu_us, strict=True)]
    return {
        "keys": float(each.keys),
        "models": float(each.models),
        "µs CPU per reading": statistics.median(each.cpu_us),
        "beside 1 key, 1 model": statistics.median(ratios),
        "µs per further model": statistics.median(further) if each.models > 1 else 0.0,
        "predictions per reading": each.predictions,
    }


def _start(folder: Path, topics: list[str], models: list[Path]) -> tuple[Process, Process, Load]:
    generator_core, target_core = process.cores()
    broker, port = start_broker(folder, generator_core, extra=ROOM)
    running = start_daemon(folder, target_core, _config(folder, port, models))
    load = Load(port, topics, "edge/bench/+/+")
    wait_online(port, "bench", START_SECONDS)
    return broker, running, load


def _topics(keys: int) -> list[str]:
    return [f"sensors/{key:04d}/machine" for key in range(keys)]


def _windows(readings: int) -> int:
    return 0 if readings < LENGTH else (readings - LENGTH) // STRIDE + 1


def _config(folder: Path, port: int, models: list[Path]) -> str:
    tables = "\n".join(
        f'[[model]]\nname = "{model.stem}"\nbundle = "{model}"\nsource = "machines"\n' for model in models
    )
    return f"""
[device]
id = "bench"

[[source]]
name = "machines"
type = "mqtt"
topics = ["sensors/{{key}}/machine"]

{tables}
[upstream]
url = "mqtt://127.0.0.1:{port}"

[outbox]
path = "{folder / "outbox.db"}"
"""
