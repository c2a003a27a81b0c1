"""Instructions of a whole process for one paced reading: the daemon, the tutorial's script, and the bare floor.

    python -m benchmarks.paced_instructions [--readings 1000] [--identity] [TARGET...]

Each runs under valgrind's callgrind against a broker that stands here: one reading at a time, the next one after the
prediction came; the start is not counted. The readings, the model and the broker's packets are the same for all; the
daemon runs with its defaults. A count hardly depends on what else the machine does: counts of one program are up to two
percent apart, more on a busy machine, where the daemon's work by the clock is divided over fewer readings. It says
nothing of caches, which are cold when a paced process wakes up, nor of the kernel.
"""

import argparse
import itertools
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from benchmarks import wire
from benchmarks.load import reading
from benchmarks.models import write_bundle
from benchmarks.names import DAEMON, TOPIC_IN, TOPIC_OUT
from benchmarks.results import Results
from benchmarks.targets import COMMAND, ENVIRONMENT, PEERS, daemon_config

FIGURE = "instructions of the process per paced reading"
READINGS, QUICK_READINGS = 1_000, 60
WARM_READINGS = 60
START_SECONDS, ANSWER_SECONDS = 900.0, 120.0  # of a program that valgrind slows down fiftyfold
RECEIVE_BYTES = 65536
CONNECT, SUBSCRIBE, PINGREQ = 0x10, 0x80, 0xC0
CONNACK, PINGRESP = b"\x20\x02\x00\x00", b"\xd0\x00"

Command = Callable[[Path, int, Path], list[str]]


class Broker:
    """The other end of one client's connection: grants everything, and acknowledges with the next packet.

    Args:
        connection: accepted.
        is_prediction: whether messages on a topic are predictions.
    """

    def __init__(
        self,
        connection: socket.socket,
        is_prediction: Callable[[bytes], bool] = lambda topic: topic == TOPIC_OUT.encode(),
    ) -> None:
        self._is_prediction = is_prediction
        self._connection = connection
        self._connection.settimeout(ANSWER_SECONDS)
        self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._data = b""
        self._unsent = b""
        self._number = 0
        self.has_subscribed = False

    def send_reading(self, payload: bytes, topic: str = TOPIC_IN) -> None:
        """One reading at QoS 1, behind the acknowledgement of the prediction before."""
        self._number = self._number % 65535 + 1
        self._connection.sendall(self._unsent + wire.publish(topic, payload, self._number))
        self._unsent = b""

    def take(self) -> int:
        """Wait for packets, and answer them; how many predictions there were.

        Raises:
            ConnectionError: the client has gone.
        """
        found = self._connection.recv(RECEIVE_BYTES)
        if not found:
            raise ConnectionError("the target closed its connection")
        self._data += found
        packets, used = wire.packets(self._data)
        predictions = sum(self._answer(first, self._data[start:end]) for first, start, end in packets)
        self._data = self._data[used:]
        return predictions

    def ask(self, payloads: Iterator[bytes], count: int) -> None:
        """Send so many readings, each after the prediction of the one before."""
        for payload in itertools.islice(payloads, count):
            self.send_reading(payload)
            while not self.take():
                pass

    def _answer(self, first: int, body: bytes) -> int:
        kind = first & 0xF0
        if kind == CONNECT:
            self._connection.sendall(CONNACK)
        elif kind == SUBSCRIBE:
            self._connection.sendall(wire.suback(body))
            self.has_subscribed = True
        elif kind == PINGREQ:
            self._connection.sendall(PINGRESP)
        elif kind == wire.PUBLISH:
            topic_end = 2 + int.from_bytes(body[:2], "big")
            if first & 6:
                self._unsent += b"\x40\x02" + body[topic_end : topic_end + 2]
            return int(self._is_prediction(body[2:topic_end]))
        return 0


def _daemon(folder: Path, port: int, model: Path) -> list[str]:
    path = folder / "device.toml"
    path.write_text(daemon_config(folder, port, model))
    return [*COMMAND, "run", str(path)]


def _script(name: str) -> Command:
    return lambda _, port, model: [
        sys.executable,
        str(PEERS / f"{name}.py"),
        str(port),
        str(model),
        TOPIC_IN,
        TOPIC_OUT,
    ]


TARGETS: dict[str, Command] = {DAEMON: _daemon, "tutorial": _script("tutorial"), "floor": _script("floor")}


def per_reading(target: str, folder: Path, model: Path, readings: int = READINGS, *, identity: bool = False) -> float:
    """Instructions for one reading; with `identity` each reading has a `seq`.

    Raises:
        RuntimeError: the target ended, or valgrind printed no count.
    """
    own = Path(tempfile.mkdtemp(prefix=f"{target}-", dir=folder))
    with socket.create_server(("127.0.0.1", 0)) as listener, (own / "log").open("wb") as log:
        listener.settimeout(START_SECONDS)
        command = TARGETS[target](own, listener.getsockname()[1], model)
        watched = [
            "valgrind",
            "--tool=callgrind",
            "--instr-atstart=no",
            f"--callgrind-out-file={own / 'callgrind.out'}",
        ]
        environment = {**os.environ, **ENVIRONMENT, "PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1"}
        environment["RUNTIME_DIRECTORY"] = str(own)
        process = subprocess.Popen([*watched, *command], env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            connection, _ = listener.accept()
            with connection:
                broker = Broker(connection)
                while not broker.has_subscribed:
                    broker.take()
                payloads = _payloads(identity=identity)
                broker.ask(payloads, WARM_READINGS)
                _switch("on", process.pid)
                broker.ask(payloads, readings)
                _switch("off", process.pid)
                process.terminate()
                with suppress(OSError):
                    while True:
                        broker.take()
            process.wait(ANSWER_SECONDS)
        finally:
            process.kill()
            process.wait()
    output = (own / "log").read_text(errors="replace")
    found = re.search(r"Collected\s*:\s*(\d+)", output)
    if found is None:
        raise RuntimeError(f"valgrind: expected a count, found:\n{output[-1000:]}")
    return int(found.group(1)) / readings


def _payloads(*, identity: bool) -> Iterator[bytes]:
    generator = random.Random(11)
    for number in itertools.count(1):
        payload = reading(generator)
        yield payload[:-1] + b',"seq":%d}' % number if identity else payload


def _switch(state: str, pid: int) -> None:
    """Begin or end to count; returns when the process has confirmed it."""
    done = subprocess.run(
        ["callgrind_control", "-i", state, str(pid)], check=True, capture_output=True, text=True, timeout=ANSWER_SECONDS
    )
    if "OK" not in done.stdout:
        raise RuntimeError(f"callgrind_control: expected OK, found {done.stdout}{done.stderr}")


def measure(folder: Path, model: Path, results: Results) -> None:
    """Count every target."""
    if shutil.which("valgrind") is None:
        results.note("SKIPPED instruction counts: expected the program valgrind, found none: apt install valgrind")
        return
    for target in TARGETS:
        results.add(FIGURE, target, per_reading(target, folder, model))


def main() -> int:
    """Print the counts."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.paced_instructions", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; all without any")
    parser.add_argument("--readings", type=int, default=READINGS, help=f"that are counted; {READINGS} without it")
    parser.add_argument("--identity", action="store_true", help="each reading has a `seq`")
    parser.add_argument("--quick", action="store_true", help="few readings, for a look")
    arguments = parser.parse_args()
    strange = set(arguments.targets) - set(TARGETS)
    if strange:
        parser.error(f"expected some of {', '.join(TARGETS)}, found {', '.join(sorted(strange))}")
    if shutil.which("valgrind") is None:
        sys.exit("expected the program valgrind, found none: apt install valgrind")
    readings = QUICK_READINGS if arguments.quick else arguments.readings
    with tempfile.TemporaryDirectory(prefix="edge-paced-") as temporary:
        folder = Path(temporary)
        model = write_bundle(folder / "mlp.onnx")
        for target in arguments.targets or TARGETS:
            found = per_reading(target, folder, model, readings, identity=arguments.identity)
            print(f"{target}: {found:,.0f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
