"""A gateway: 1,000 keys with sliding windows of their own in one daemon, and how costs grow with keys and models."""

import tempfile
from pathlib import Path

from benchmarks import process
from benchmarks.broker import start_broker
from benchmarks.load import Answers, Load, wait_online
from benchmarks.models import write_bundle
from benchmarks.pipeline import START_SECONDS
from benchmarks.process import Process, Usage
from benchmarks.results import Results
from benchmarks.targets import DAEMON, start_daemon

KEYS, RATE_HZ = 1000, 10_000.0
LENGTH, STRIDE = 128, 64
TICK_SECONDS = 0.005
GROWTH_RATE_HZ = 200.0

# mosquitto's own choice, 1,000 messages waiting and 20 under way a client, is a tenth of a second at this rate: it
# may drop what comes during any longer pause. `docs/performance.md` says the same to users.
ROOM = "max_queued_messages 200000\nmax_inflight_messages 1000"

CPU = "gateway 1,000 keys 10,000/s, CPU % of a core"
LOST = "gateway, predictions missing"
RSS = "gateway, RSS MiB"
PER_KEY = "gateway, KiB per key"


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


def growth(folder: Path, seconds: float, results: Results) -> None:
    """CPU a reading at a fixed rate, from 1 to 1,000 keys and from 1 to 8 models."""
    folder = Path(tempfile.mkdtemp(prefix="growth-", dir=folder))
    models = [write_bundle(folder / f"mlp{i}.onnx", name=f"mlp{i}") for i in range(8)]
    keys = [{"keys": float(count), **_point(folder, count, models[:1], seconds)} for count in (1, 10, 100, 1000)]
    several = [{"models": float(count), **_point(folder, 1, models[:count], seconds)} for count in (1, 2, 4, 8)]
    results.curves["growth with keys, window of one, paced 200/s"] = keys
    results.curves["growth with models on one source, paced 200/s"] = several


def _point(folder: Path, keys: int, models: list[Path], seconds: float) -> dict[str, float]:
    folder = Path(tempfile.mkdtemp(dir=folder))
    broker, running, load = _start(folder, _topics(keys), models)
    with broker, running:
        load.first_answer(running)
        load.stream(1000.0, 2.0, TICK_SECONDS)  # every key is known before the clock starts
        load.drain()
        before = running.usage()
        answers = load.stream(GROWTH_RATE_HZ, seconds, 0.0)
        used = running.usage() - before
        answers.answered += load.drain()
        rss = running.rss_bytes()
        load.close()
    return _costs(used, answers, rss)


def _costs(used: Usage, answers: Answers, rss: int) -> dict[str, float]:
    return {
        "µs CPU per reading": used.cpu_s / answers.sent * 1e6,
        "µs CPU per prediction": used.cpu_s / max(1, answers.answered) * 1e6,
        "predictions per reading": answers.answered / answers.sent,
        "RSS MiB": rss / 2**20,
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
