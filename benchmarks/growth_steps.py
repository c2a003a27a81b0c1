"""The steps of a paced reading, by the size of a daemon, counted in bytecode: `python -m benchmarks.growth_steps`.

A busy machine hides a growth of a tenth in its times; the interpreter's steps are the same on every machine. Each
daemon runs by itself with its defaults against the broker of `paced_instructions`: one reading at a time, its sources,
keys and topics in turn, after each had one. It traces itself between two signals. Steps of C code are not seen, and
neither are caches, which are colder in a larger daemon.
"""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

from benchmarks.growth import ONE, Size, config
from benchmarks.load import reading
from benchmarks.models import write_bundle
from benchmarks.paced_instructions import START_SECONDS, Broker
from benchmarks.targets import ENVIRONMENT

SIZES = (ONE, Size(keys=10_000), Size(topics=1_000), *(Size(models=count, sources=count) for count in (10, 50, 100)))
READINGS = 500
HEALTH_SECONDS = 60.0  # the default: work by the clock is not divided over readings here
CALM_SECONDS = 3.0  # until the documents of a start are published
SETTLE_SECONDS = 0.2  # until a signal is taken
TRACED = """
import json, os, signal, sys
steps = 0

def trace(frame, event, _):
    global steps
    frame.f_trace_opcodes, frame.f_trace_lines = True, False
    steps += event == "opcode"
    return trace

def end(*_):
    sys.settrace(None)
    with open("steps.new", "w") as file:
        json.dump(steps, file)
    os.rename("steps.new", "steps.json")

signal.signal(signal.SIGUSR1, lambda *_: sys.settrace(trace))
signal.signal(signal.SIGUSR2, end)
from edge_runtime.cli import main
sys.exit(main())
"""


def steps(folder: Path, size: Size, readings: int = READINGS) -> float:
    """Steps of bytecode for one reading of a daemon of this size."""
    bundles = [write_bundle(folder / f"mlp{number}.onnx", name=f"mlp{number}") for number in range(size.models)]
    counted = folder / "steps.json"
    with socket.create_server(("127.0.0.1", 0)) as listener, (folder / "log").open("wb") as log:
        listener.settimeout(START_SECONDS)
        text = config(folder, listener.getsockname()[1], size, bundles, health_interval=HEALTH_SECONDS)
        (folder / "device.toml").write_text(text)
        command = [sys.executable, "-c", TRACED, "run", "device.toml"]
        environment = {**os.environ, **ENVIRONMENT, "RUNTIME_DIRECTORY": str(folder)}
        with subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log) as daemon:
            try:
                connection, _ = listener.accept()
                with connection:
                    broker = Broker(connection, _is_prediction)
                    while not broker.has_subscribed:
                        broker.take()
                    messages = _messages(size)
                    _ask(broker, messages, len(size.names))
                    time.sleep(CALM_SECONDS)
                    daemon.send_signal(signal.SIGUSR1)
                    time.sleep(SETTLE_SECONDS)
                    _ask(broker, messages, readings)
                    daemon.send_signal(signal.SIGUSR2)
                    while not counted.exists():
                        time.sleep(SETTLE_SECONDS)
            finally:
                daemon.kill()
    return float(json.loads(counted.read_text())) / readings


def _is_prediction(topic: bytes) -> bool:
    """Whether it is `edge/bench/MODEL/KEY`."""
    return topic.count(b"/") == 3 and b"/mlp" in topic


def _messages(size: Size) -> Iterator[tuple[str, bytes]]:
    generator = random.Random(11)
    return ((name, reading(generator)) for name in cycle(size.names))


def _ask(broker: Broker, messages: Iterator[tuple[str, bytes]], count: int) -> None:
    for topic, payload in islice(messages, count):
        broker.send_reading(payload, topic)
        while not broker.take():
            pass


def main() -> int:
    """Print the steps of every size, and its ratio to the smallest."""
    first = None
    for size in SIZES:
        with tempfile.TemporaryDirectory(prefix="edge-steps-") as folder:
            found = steps(Path(folder), size)
        first = first or found
        print(f"{size}: {found:,.0f} steps a reading, {found / first:.3f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
