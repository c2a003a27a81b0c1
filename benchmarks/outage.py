"""Bytes written to disk for a prediction while the upstream broker is gone: the price of keeping it."""

import tempfile
import time
from pathlib import Path

from benchmarks import process
from benchmarks.broker import start_broker
from benchmarks.load import Load
from benchmarks.names import TOPIC_IN, TOPIC_OUT
from benchmarks.pipeline import RATE_HZ
from benchmarks.results import Results
from benchmarks.targets import DAEMON, daemon_config, start_daemon

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
        before = running.usage()
        sent = load.stream(RATE_HZ, seconds, 0.0).sent
        time.sleep(SETTLE_SECONDS)
        used = running.usage() - before
        running.check()
        load.close()
    results.add(WRITTEN, DAEMON, used.written_bytes / sent)
    results.add(PAYLOADS, DAEMON, used.written_bytes / sent / payload_bytes)
    results.add(CPU, DAEMON, used.cpu_s / sent * 10_000)
