"""A gateway: 1,000 keys with sliding windows of their own in one daemon."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks import process
from benchmarks.broker import start_broker
from benchmarks.load import Load, wait_online
from benchmarks.models import write_bundle
from benchmarks.names import DAEMON
from benchmarks.pipeline import START_SECONDS
from benchmarks.process import Process
from benchmarks.results import Results
from benchmarks.targets import daemon_config, start_daemon

KEYS, RATE_HZ = 1000, 10_000.0
LENGTH, STRIDE = 128, 64
TICK_SECONDS = 0.005

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
    broker, running, load = start(
        folder,
        topics,
        config=lambda port: daemon_config(folder, port, model, topic="sensors/{key}/machine", name=model.stem),
    )
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


def start(folder: Path, topics: list[str], config: Callable[[int], str]) -> tuple[Process, Process, Load]:
    """A broker with room, a daemon that is online, and a load on these topics; `config` is given the broker's port."""
    generator_core, target_core = process.cores()
    broker, port = start_broker(folder, generator_core, extra=ROOM)
    running = start_daemon(folder, target_core, config(port))
    load = Load(port, topics, "edge/bench/+/+")
    wait_online(port, "bench", START_SECONDS)
    return broker, running, load


def _topics(keys: int) -> list[str]:
    return [f"sensors/{key:04d}/machine" for key in range(keys)]


def _windows(readings: int) -> int:
    return 0 if readings < LENGTH else (readings - LENGTH) // STRIDE + 1
