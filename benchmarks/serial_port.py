"""A six-axis sensor at 1 kHz on a serial port: CPU, and the latency from a window's last byte to its prediction.

The port is a pseudo-terminal. One line a millisecond is written, as a USB port without a latency timer hands them
over; this is the dearest case, since every line may wake the reader.
"""

import os
import random
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks import process
from benchmarks.broker import start_broker
from benchmarks.load import Load
from benchmarks.models import write_bundle
from benchmarks.names import CHANNELS, DAEMON, TOPIC_IN, TOPIC_OUT
from benchmarks.pipeline import START_SECONDS
from benchmarks.process import Process
from benchmarks.results import Results
from benchmarks.targets import start_daemon

RATE_HZ = 1000.0
LENGTH, STRIDE = 128, 64
PHASE_SECONDS = 0.02

CPU = "serial 1 kHz, CPU % of a core"
P50, P99 = "serial, byte to prediction p50 µs", "serial, byte to prediction p99 µs"
WAKEUPS = "serial, wake-ups per reading"


def measure(folder: Path, seconds: float, results: Results) -> None:
    """Feed the port and listen to the broker, in one thread."""
    generator_core, target_core = process.cores()
    folder = Path(tempfile.mkdtemp(prefix="serial-", dir=folder))
    model = write_bundle(folder / "window.onnx", length=LENGTH, stride=STRIDE)
    broker, port = start_broker(folder, generator_core)
    master, slave = os.openpty()
    config = _config(folder, port, model, os.ttyname(slave))
    try:
        with broker, start_daemon(folder, target_core, config) as running:
            load = Load(port, [TOPIC_IN], TOPIC_OUT)
            _feed(master, load, running, seconds, results=results)
            load.close()
    finally:
        os.close(slave)
        os.close(master)


def _feed(master: int, load: Load, running: Process, seconds: float, *, results: Results) -> None:
    generator = random.Random(5)
    lines = [",".join(f"{generator.gauss(0.0, 1.0):.4f}" for _ in CHANNELS).encode() + b"\n" for _ in range(1000)]
    _until_answer(master, load, running, lines, pause=0.001, seconds=START_SECONDS)
    load.drain()  # what was written before the port was open may have completed several windows
    # Slowly, to learn which line completes a window; from then on it is every 64th.
    _until_answer(master, load, running, lines, pause=PHASE_SECONDS, seconds=2 * STRIDE * PHASE_SECONDS + 5.0)
    before = running.usage()
    latencies = _paced(master, load, lines, int(seconds * RATE_HZ))
    used = running.usage() - before
    expected = int(seconds * RATE_HZ) // STRIDE
    if len(latencies) != expected:
        results.note(f"serial: {expected} windows sent, {len(latencies)} predictions received")
    percentiles = statistics.quantiles(latencies, n=100)
    results.add(CPU, DAEMON, 100.0 * used.cpu_s / used.wall_s)
    results.add(P50, DAEMON, percentiles[49] * 1e6)
    results.add(P99, DAEMON, percentiles[98] * 1e6)
    results.add(WAKEUPS, DAEMON, used.wakeups / (seconds * RATE_HZ))


def _until_answer(
    master: int, load: Load, running: Process, lines: list[bytes], *, pause: float, seconds: float
) -> None:
    deadline = time.perf_counter() + seconds
    sent = 0
    while time.perf_counter() < deadline:
        os.write(master, lines[sent % len(lines)])
        sent += 1
        if load.answers(pause):
            return
        running.check()
    raise TimeoutError(f"serial: no prediction in {seconds:.0f} s")


def _paced(master: int, load: Load, lines: list[bytes], total: int) -> list[float]:
    latencies: list[float] = []
    completed: list[float] = []
    start = time.perf_counter()
    for sent in range(1, total + 1):
        os.write(master, lines[sent % len(lines)])
        if sent % STRIDE == 0:
            completed.append(time.perf_counter())
        due = start + sent / RATE_HZ
        while True:
            _match(load.answers(max(0.0, due - time.perf_counter())), completed, latencies)
            if time.perf_counter() >= due:
                break
    deadline = time.perf_counter() + 2.0
    while len(latencies) < len(completed) and time.perf_counter() < deadline:
        _match(load.answers(0.1), completed, latencies)
    return latencies


def _match(found: int, completed: list[float], latencies: list[float]) -> None:
    now = time.perf_counter()
    for _ in range(found):
        if len(latencies) < len(completed):
            latencies.append(now - completed[len(latencies)])


def _config(folder: Path, port: int, model: Path, tty: str) -> str:
    return f"""
[device]
id = "bench"

[[source]]
name = "imu"
type = "serial"
port = "{tty}"
baudrate = 921600
format = "csv"
fields = {list(CHANNELS)}

[[model]]
name = "mlp"
bundle = "{model}"
source = "imu"

[upstream]
url = "mqtt://127.0.0.1:{port}"

[outbox]
path = "{folder / "outbox.db"}"
"""
