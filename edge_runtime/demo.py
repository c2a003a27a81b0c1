"""The whole path in a minute, on any machine: train, convert, run on a live port, subscribe, and compare.

Everything is real except the sensor: the daemon reads a pseudo-terminal as it would a serial port, an MQTT broker from
a wheel stands for the site's own, and recordings that the training never saw play the part of the wearer. Training
and conversion run as processes of their own, so this module, like all of `edge_runtime`, needs no converter to import.
Every process that is started here is ended here, also when the demonstration fails or is interrupted.
"""

import contextlib
import importlib.util
import json
import os
import queue
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import tty
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from edge_runtime.bundle.open import Bundle, open_bundle
from edge_runtime.errors import CommandError

LOWEST_ACCURACY = 0.90
NEEDED = ("iotcore", "onnx", "skl2onnx", "sklearn", "skops")
SPEED = 50.0  # times faster than the watch recorded: 40 recordings of 10 s are shown in some 10 s
PAUSE_BETWEEN_RECORDINGS = 60.0  # in the readings' own time; the device file calls more than 1 s a gap
PATIENCE = 30.0  # for anything that takes well under a second on the slowest device

Say = Callable[[str], None]
Process = subprocess.Popen[bytes]


@dataclass
class _Outcome:
    """What the subscriber has seen so far."""

    right: int = 0
    total: int = 0
    latencies_ms: list[float] = field(default_factory=list)


class _Table:
    """One table on a terminal, drawn over itself: a row for each activity, with its latest prediction.

    Args:
        labels: the activities.
        outcome: what has been seen so far.
    """

    def __init__(self, labels: Sequence[str], outcome: _Outcome) -> None:
        self._last = dict.fromkeys(labels, "")
        self._outcome = outcome
        self._drawn = False

    def show(self, line: str) -> None:
        """Take the line of a prediction, and draw."""
        truth = next(label for label in self._last if f" {label} " in line)
        self._last[truth] = line.strip()
        lines = [self._last[label] or f"{'':24s} {label}" for label in self._last]
        right, total = self._outcome.right, self._outcome.total
        lines.append(f"{right} of {total} right, median latency {np.median(self._outcome.latencies_ms):.1f} ms")
        if self._drawn:
            sys.stdout.write(f"\033[{len(lines)}A")
        self._drawn = True
        sys.stdout.write("".join(f"\033[K   {each}\n" for each in lines))
        sys.stdout.flush()


@dataclass(frozen=True)
class _Played:
    """One recording that has gone into the port: when it began, and when each reading, by its own time, was written."""

    number: int
    truth: str
    start: float
    written: dict[float, float]


@dataclass(frozen=True)
class Arrival:
    """One message as the subscriber got it; `when` is on the clock of `written`."""

    topic: str
    payload: bytes
    when: float


@dataclass(frozen=True)
class Audience:
    """The subscriber's side: what arrived, and the daemon that it comes from, whose end ends every wait."""

    arrivals: "queue.Queue[Arrival]"
    daemon: Process
    log: Path

    def wait_until_online(self) -> None:
        """Return when the daemon says that its port is open and its broker knows it."""
        deadline = time.monotonic() + PATIENCE
        while True:
            arrival = self._next(deadline, "the status `online`")
            if (arrival.topic, arrival.payload) == ("edge/demo/status", b"online"):
                return

    def predictions(self, topic: str, count: int) -> Iterator[Arrival]:
        """The next `count` messages whose topic begins so, each as soon as it is there."""
        while count:
            deadline = time.monotonic() + PATIENCE
            arrival = self._next(deadline, f"{count} more predictions")
            while not arrival.topic.startswith(topic):
                arrival = self._next(deadline, f"{count} more predictions")
            count -= 1
            yield arrival

    def _next(self, deadline: float, what: str) -> Arrival:
        while time.monotonic() < deadline:
            with contextlib.suppress(queue.Empty):
                return self.arrivals.get(timeout=0.2)
            if self.daemon.poll() is not None:
                code, log_line = self.daemon.returncode, last_line(self.log)
                raise CommandError(f"demo: the daemon ended with {code}; its last line: {log_line}")
        raise CommandError(
            f"demo: waited {PATIENCE:g} s in vain for {what}; the last line of the daemon: {last_line(self.log)}"
        )


def demonstrate(folder: Path, data: Path | None, say: Say) -> None:
    """Run the demonstration; files go to `folder`, progress and the closing figures to `say`.

    Args:
        folder: where the model, the bundle, the device file and the log are written.
        data: a folder with the BasicMotions recordings; without it they are fetched once and kept in `folder`.
        say: takes one line of text.

    Raises:
        CommandError: a step failed, or the accuracy is below 0.90.
    """
    _check_packages()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(
            f"{folder}: expected a folder to write to: {error.strerror}: name one with --folder"
        ) from error
    say("\n1. Train an activity classifier on recordings of a watch (six axes, four activities)\n")
    run_step([sys.executable, "-m", "converter.demo", str(folder), *(["--data", str(data)] if data else [])])
    say("\n2. Convert it to one small int8 file, and prove that it still gives the right answers\n")
    bundle = _convert(folder, say)
    say("\n3. Run it: broker, serial port, daemon, and a subscriber that knows the truth\n")
    outcome = _run_live(folder, bundle, say)
    _close(folder, bundle, outcome, say)


def _check_packages() -> None:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise CommandError(
            f"demo: expected the packages of the extra `demo`, found no {', '.join(missing)}: "
            "pip install 'edge-inference-runtime[demo]'"
        )


def _convert(folder: Path, say: Say) -> Bundle:
    arguments = [
        *("build", str(folder / "activity.skops"), "--spec", str(folder / "activity.toml")),
        *("--calibration", str(folder / "calibration.npz"), "--evaluation", str(folder / "held-out.npz")),
        *("--quantize", "int8", "-o", str(folder / "activity.onnx")),
    ]
    say(f"$ edge-convert {shlex.join(arguments)}\n")
    run_step([sys.executable, "-c", "import sys; from converter.cli import main; sys.exit(main())", *arguments])
    return open_bundle(folder / "activity.onnx")


def _run_live(folder: Path, bundle: Bundle, say: Say) -> _Outcome:
    recordings, labels = _read_held_out(folder / "held-out-recordings.npz")
    with contextlib.ExitStack() as stack:
        broker_port = stack.enter_context(embedded_broker())
        say(f"broker      mqtt://127.0.0.1:{broker_port}  (embedded, for the demonstration only)")
        master, port = stack.enter_context(_serial_port())
        say(f"serial port {port}")
        device_file = folder / "device.toml"
        device_file.write_text(_device_file(bundle, port, broker_port))
        arrivals = stack.enter_context(subscription(broker_port, "edge/#"))
        daemon = stack.enter_context(running_daemon(device_file, folder / "daemon.log"))
        say(f"daemon      edge-runtime run {device_file}")
        audience = Audience(arrivals, daemon, folder / "daemon.log")
        audience.wait_until_online()
        say("subscriber  edge/demo/activity/-\n")
        outcome = _Outcome()
        show = _Table(sorted(set(map(str, labels))), outcome).show if sys.stdout.isatty() else say
        if show is say:
            say("   time in the recordings   truth       prediction   score   latency")
        _write(master, b"\n")  # a reader drops what stands before the first line end: it may have come in midway
        begin = float(int(time.time()) - int(PAUSE_BETWEEN_RECORDINGS) * (len(recordings) + 1))
        for number, (recording, label) in enumerate(zip(recordings, labels, strict=True)):
            start = begin + number * PAUSE_BETWEEN_RECORDINGS
            played = _Played(number, str(label), start, _play(master, recording, start, _rate(bundle)))
            for arrival in audience.predictions("edge/demo/activity/", _windows(bundle, len(recording))):
                show(_judge(arrival, played, outcome))
        return outcome


def _read_held_out(path: Path) -> tuple[Any, Any]:
    with np.load(path, allow_pickle=False) as file:
        return file["x"], file["y"]


def _rate(bundle: Bundle) -> float:
    rate = bundle.manifest.input.window.rate_hz
    assert rate is not None, "the specification of the demonstration names a rate"
    return rate


def _windows(bundle: Bundle, readings: int) -> int:
    window = bundle.manifest.input.window
    return (readings - window.length) // window.stride + 1


def _device_file(bundle: Bundle, port: str, broker_port: int) -> str:
    fields = ", ".join(f'"{name}"' for name in ("time", *bundle.manifest.channel_names))
    return f"""# Written by the demonstration. A real device differs in two lines: the port and the broker.
[device]
id = "demo"

[[source]]
name = "watch"
type = "serial"
port = "{port}"
format = "csv"
fields = [{fields}]

[[model]]
name = "activity"
bundle = "activity.onnx"
source = "watch"
max_gap = 1.0                        # seconds: no window runs over a pause in the recordings

[upstream]
url = "mqtt://127.0.0.1:{broker_port}"
"""


def _play(master: int, recording: Any, start: float, rate_hz: float) -> dict[float, float]:
    """Write one recording as CSV lines; the result is when each reading, by its own time, went into the port."""
    written = {}
    due = time.perf_counter()
    for number, reading in enumerate(recording):
        moment = round(start + number / rate_hz, 3)
        line = f"{moment:.3f},{','.join(f'{value:.6g}' for value in reading)}\n".encode()
        written[moment] = time.perf_counter()
        _write(master, line)
        due += 1.0 / (rate_hz * SPEED)
        time.sleep(max(0.0, due - time.perf_counter()))
    return written


def _write(master: int, data: bytes) -> None:
    while data:
        if not select.select([], [master], [], PATIENCE)[1]:
            raise CommandError(f"demo: nothing has read from the serial port for {PATIENCE:g} s")
        with contextlib.suppress(BlockingIOError):
            data = data[os.write(master, data) :]


def _judge(arrival: Arrival, played: _Played, outcome: _Outcome) -> str:
    """Compare one prediction with the truth, count it, and say so in one line."""
    prediction = json.loads(arrival.payload)
    moment = round(datetime.fromisoformat(prediction["time"]).timestamp(), 3)
    if moment not in played.written:
        raise CommandError(f"demo: prediction {prediction['id']} speaks of {prediction['time']}, when nothing was sent")
    latency_ms = (arrival.when - played.written[moment]) * 1000
    label, truth, score = prediction["label"], played.truth, prediction["score"]
    outcome.total += 1
    outcome.right += label == truth
    outcome.latencies_ms.append(latency_ms)
    place = f"recording {played.number + 1:2d} at {moment - played.start:4.1f} s"
    mark = "" if label == truth else "   wrong"
    return f"   {place:24s} {truth:11s} {label:11s}  {score:.3f}  {latency_ms:5.1f} ms{mark}"


def _close(folder: Path, bundle: Bundle, outcome: _Outcome, say: Say) -> None:
    accuracy = outcome.right / outcome.total
    median, late = np.percentile(outcome.latencies_ms, [50, 99])
    say(f"\naccuracy {accuracy:.3f}   {outcome.right} of {outcome.total} live predictions agree with the truth")
    say(f"latency  {median:.1f} ms   median, {late:.1f} ms at the 99th percentile: from the port to the subscriber")
    say(f"sizes    {_sizes(folder, bundle)}")
    if accuracy < LOWEST_ACCURACY:
        raise CommandError(f"demo: expected an accuracy of {LOWEST_ACCURACY:.2f} or more, found {accuracy:.3f}")
    replay = _leave_recordings(folder, bundle)
    say(f"\nNow yours, in {folder}:")
    command = _command()
    say(f"  {command} try {shlex.quote(str(replay))}   each reading of the recordings, and what the model says")
    say(f"  {command} run {shlex.quote(str(replay))}   the daemon, with its page on http://127.0.0.1:8080")
    say(f"  {command} init --bundle {shlex.quote(str(folder / 'activity.onnx'))}   a device file for your own sensor")


def _command() -> str:
    """How the user types our name here: `make demo` leaves it in an environment that no shell looks into."""
    if shutil.which("edge-runtime") is not None:
        return "edge-runtime"
    beside = Path(sys.executable).with_name("edge-runtime")
    shown = beside.relative_to(Path.cwd()) if beside.is_relative_to(Path.cwd()) else beside
    return shlex.quote(str(shown))


def _leave_recordings(folder: Path, bundle: Bundle) -> Path:
    """Write the held-out recordings as CSV, and a device file that plays them; the broker need not be there."""
    names, rate = bundle.manifest.channel_names, _rate(bundle)
    recordings, labels = _read_held_out(folder / "held-out-recordings.npz")
    (folder / "recordings").mkdir(exist_ok=True)
    files = []
    for number, (recording, label) in enumerate(zip(recordings, labels, strict=True)):
        start = number * (len(recording) / rate + 2.0)  # a pause of more than max_gap
        rows = [
            f"{start + row / rate:.3f},{','.join(f'{value:.6g}' for value in reading)}\n"
            for row, reading in enumerate(recording)
        ]
        files.append(f"recordings/{number + 1:02d}-{label}.csv")
        (folder / files[-1]).write_text(f"time,{','.join(names)}\n{''.join(rows)}")
    listed = ", ".join(f'"{name}"' for name in files)
    replay = folder / "replay.toml"
    replay.write_text(f"""# Written by the demonstration: its recordings, over and over, as if a sensor sent them now.
[device]
id = "demo"

[[source]]
name = "watch"
type = "replay"
files = [{listed}]
loop = true

[[model]]
name = "activity"
bundle = "activity.onnx"
source = "watch"
max_gap = 1.0                        # seconds: no window runs over a pause in the recordings

[upstream]
url = "mqtt://127.0.0.1:1883"        # where there is no broker, predictions wait; the page shows them all the same

[http]
listen = "127.0.0.1:8080"
""")
    return replay


def _sizes(folder: Path, bundle: Bundle) -> str:
    source = (folder / "activity.skops").stat().st_size
    parts = [f"source {_kilobytes(source)}"]
    float_bytes = bundle.manifest.quantization.get("bytes_float")
    if float_bytes:
        parts.append(f"float ONNX {_kilobytes(int(float_bytes))}")
    return ", ".join([*parts, f"int8 bundle {_kilobytes(bundle.size)}"])


def _kilobytes(size: int) -> str:
    return f"{size / 1000:.1f} kB"


def run_step(command: Sequence[str]) -> None:
    """Run a step to its end; what it prints, the user sees.

    Raises:
        CommandError: it failed.
    """
    with _child(command) as process:
        code = process.wait()
    if code != 0:
        raise CommandError(f"demo: the step above failed with exit code {code}")


@contextlib.contextmanager
def _child(command: Sequence[str], output: Any = None) -> Iterator[Process]:
    """A process in a session of its own, so that Ctrl-C reaches us alone and we end the others in order."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=output, stderr=output and subprocess.STDOUT, start_new_session=True
    )
    try:
        yield process
    finally:
        _end(process)


def _end(process: Process) -> None:
    """Ask the process and its children to go; insist after ten seconds."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)


@contextlib.contextmanager
def embedded_broker() -> Iterator[int]:
    """A broker on the loopback address, for as long as the context lasts; the value is its port."""
    import iotcore  # noqa: PLC0415 - the embedded broker belongs to an extra; nothing else of the runtime imports it

    port = _free_port()
    broker = iotcore.Broker(port=port, listen="127.0.0.1")
    # The broker's process inherits that it ignores Ctrl-C; it goes when we stop it, or when our end of its pipe closes.
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        broker.start(timeout=PATIENCE)
    except (OSError, RuntimeError) as error:
        raise CommandError(f"demo: the embedded broker did not start: {error}") from error
    finally:
        signal.signal(signal.SIGINT, previous)
    try:
        yield port
    finally:
        broker.stop()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _serial_port() -> Iterator[tuple[int, str]]:
    """A pseudo-terminal: the end that we write to, and the path that the daemon opens as its port."""
    master, slave = os.openpty()
    tty.setraw(slave)
    os.set_blocking(master, False)
    try:
        yield master, os.ttyname(slave)
    finally:
        os.close(slave)
        os.close(master)


@contextlib.contextmanager
def subscription(port: int, topic: str) -> "Iterator[queue.Queue[Arrival]]":
    """A client of the broker on the loopback address; what it hears, in order of arrival."""
    messages: queue.Queue[Arrival] = queue.Queue()
    client = mqtt.Client(CallbackAPIVersion.VERSION2)
    client.on_message = lambda _client, _data, message: messages.put(
        Arrival(message.topic, bytes(message.payload), time.perf_counter())
    )
    client.connect("127.0.0.1", port)
    client.subscribe(topic, qos=1)
    client.loop_start()
    try:
        yield messages
    finally:
        client.disconnect()
        client.loop_stop()


@contextlib.contextmanager
def running_daemon(device_file: Path, log: Path) -> Iterator[Process]:
    """`edge-runtime run` on a device file, for as long as the context lasts; what it says goes to `log`."""
    program = "import sys; from edge_runtime.cli import main; sys.exit(main())"
    with log.open("wb") as output, _child([sys.executable, "-c", program, "run", str(device_file)], output) as process:
        yield process


def last_line(log: Path) -> str:
    """The last warning or error of a log, else its last line: for messages."""
    lines = log.read_text(errors="replace").splitlines()
    grave = [line for line in lines if " WARNING " in line or " ERROR " in line]
    return (grave or lines or ["nothing"])[-1]
