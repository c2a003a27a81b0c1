"""Where the start goes: import times by library, from `python -X importtime` up to the first prediction."""

import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from benchmarks import process
from benchmarks.broker import start_broker
from benchmarks.load import Load
from benchmarks.names import DAEMON, TOPIC_IN, TOPIC_OUT
from benchmarks.process import Process
from benchmarks.results import Results
from benchmarks.targets import COMMAND, ENVIRONMENT, daemon_config

SHARE = "import time of the runtime itself, beside numpy and onnxruntime"
LIBRARIES = ("numpy", "onnxruntime", "paho", "msgspec", "serial", "sqlite3", "edge_runtime")


def measure(folder: Path, model: Path, results: Results) -> None:
    """Start the daemon once with import times in its log, and add them up by top-level package."""
    generator_core, target_core = process.cores()
    folder = Path(tempfile.mkdtemp(prefix="imports-", dir=folder))
    broker, port = start_broker(folder, generator_core)
    config = folder / "device.toml"
    config.write_text(daemon_config(folder, port, model))
    command = [sys.executable, "-X", "importtime", *COMMAND[1:], "run", str(config)]
    with broker, Process(command, core=target_core, log=folder / "daemon.log", env=ENVIRONMENT) as running:
        load = Load(port, [TOPIC_IN], TOPIC_OUT)
        load.first_answer(running)
        load.close()
    by_package = _own_times(running.output())
    for package in (*LIBRARIES, "the rest"):
        results.add(f"import ms, {package}", DAEMON, by_package.get(package, 0.0))
    results.add(SHARE, DAEMON, by_package["edge_runtime"] / (by_package["numpy"] + by_package["onnxruntime"]))


def _own_times(log: str) -> dict[str, float]:
    """Milliseconds by package; the time of a module is its own, without what it imports."""
    times: dict[str, float] = defaultdict(float)
    for line in log.splitlines():
        if not line.startswith("import time:") or "self" in line:
            continue
        own_us, _, module = line.removeprefix("import time:").split("|")
        package = module.strip().split(".")[0].lstrip("_")
        times[package if package in LIBRARIES else "the rest"] += float(own_us) / 1000
    return times
