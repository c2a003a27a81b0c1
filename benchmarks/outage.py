"""Bytes written to disk for a prediction while the upstream broker is gone: the price of keeping it."""

import sys
import tempfile
import time
from pathlib import Path

from benchmarks import process
from benchmarks.broker import start_broker
from benchmarks.load import Load
from benchmarks.names import DAEMON, TOPIC_IN, TOPIC_OUT
from benchmarks.pipeline import RATE_HZ
from benchmarks.results import Results
from benchmarks.targets import daemon_config, start_daemon

WRITTEN = "bytes written per prediction, outage"
PAYLOADS = "the same, in payloads"
CPU = "CPU s/10k, paced 100/s, outage"
SETTLE_SECONDS = 2.0  # the last grouped commit: `outbox.commit_interval` is 1 s by default


def measure(folder: Path, model: Path, seconds: float, results: Results) -> None:
    """Readings keep coming from one broker while the other one, for predictions, is gone."""
    generator_core, target_core = process.cores()
    folder = Path(tempfile.mkdtemp(prefix="outage-", dir=folder))
    sensors, sensors_port = start_broker(folder, generator_core)
    upstream, upstream_port = start_broker(folder, generator_core)
    config = daemon_config(folder, upstream_port, model).replace(
        f'topics = ["{TOPIC_IN}"]', f'topics = ["{TOPIC_IN}"]\nurl = "mqtt://127.0.0.1:{sensors_port}"'
    )
    with sensors, upstream, start_daemon(folder, target_core, config) as running:
        load = Load(sensors_port, [TOPIC_IN], TOPIC_OUT, answers_port=upstream_port)
        load.first_answer(running)
        load.heard_bytes = 0
        healthy = load.paced(RATE_HZ, 2.0)
        payload_bytes = load.heard_bytes / max(1, healthy.answered)
        load.stop_hearing()
        upstream.stop()
        load.stream(RATE_HZ, SETTLE_SECONDS, 0.0)  # it notices, opens the outbox, and has its first commit behind it
        before, owed = running.usage(), _owed_bytes(folder / "outbox.db")
        sent = load.stream(RATE_HZ, seconds, 0.0).sent
        time.sleep(SETTLE_SECONDS)
        used = running.usage() - before
        written = used.written_bytes + _owed_bytes(folder / "outbox.db") - owed
        running.check()
        load.close()
    results.add(WRITTEN, DAEMON, written / sent)
    results.add(PAYLOADS, DAEMON, written / sent / payload_bytes)
    results.add(CPU, DAEMON, used.cpu_s / sent * 10_000)


def _owed_bytes(path: Path) -> int:
    """What SQLite has yet to copy from its log into the file: each page once, however often it stands in the log.

    A log is copied every 30 s or so: without this a short stretch would look cheaper or dearer than outages are.
    """
    log, index = path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")
    if not log.exists() or not log.stat().st_size:
        return 0
    state = index.read_bytes()[:100]  # https://sqlite.org/walformat.html, in the byte order of the machine
    frames, copied = int.from_bytes(state[16:20], sys.byteorder), int.from_bytes(state[96:100], sys.byteorder)
    data = log.read_bytes()
    page_bytes = int.from_bytes(data[8:12], "big")
    starts = (32 + number * (24 + page_bytes) for number in range(copied, frames))
    return page_bytes * len({data[start : start + 4] for start in starts})
