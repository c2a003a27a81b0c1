"""The daemon on a slow device, simulated: 20 % of a core and 96 MB without swap.

    python -m benchmarks.slow_device [--data ../shared/data | --bundles FOLDER] [--seconds 60] [--page]

It needs root, mosquitto, and a machine whose control groups (version 1 or 2) limit CPU and memory. The daemon and its
child processes are in one group with a quota of the kernel's scheduler (20 ms in 100) and a limit of memory, beyond
which the kernel ends them; broker and sensors are outside, as they would be elsewhere in the network. Three models of
the recordings, as `edge-convert` makes them: keywords from spectrograms of one second, motions from features of ten
seconds of six axes, and a random forest over single readings; a sensor sends each by MQTT at QoS 1, by itself and all
three together. Latency is from the sender's call to the arrival of the prediction.

Memory carries over to a board with so much of it. CPU does not: a fifth of a core of this machine is no Cortex-A53.

Longer than 500 lines, on purpose: the device, its load and the reading of its figures are one experiment.
"""

import argparse
import compileall
import importlib.util
import os
import platform
import select
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks import wire
from benchmarks.broker import start_broker
from benchmarks.device_bench import PAGE, SIMULATED
from benchmarks.load import wait_online
from benchmarks.process import Process, cores
from benchmarks.targets import COMMAND, ROOT

CPU_SHARE, MEMORY_BYTES = 0.2, 96 << 20
PERIOD_US = 100_000
START_SECONDS, STALL_SECONDS, LATE_SECONDS = 60.0, 10.0, 5.0
WATCHDOG_SECONDS = 30  # as in systemd/edge-runtime@.service
PACKAGES = ("numpy", "onnxruntime", "msgspec", "paho", "serial", "edge_runtime")
ROOT_V1, ROOT_V2 = Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/cgroup.controllers")


class ControlGroup:
    """A group of the kernel's with so much CPU and memory, and what became of the processes in it."""

    def __init__(self, cpu_share: float, memory_bytes: int) -> None:
        name = f"edge-slow-device-{os.getpid()}"
        self.version = 2 if ROOT_V2.exists() and "memory" in ROOT_V2.read_text().split() else 1
        quota = int(PERIOD_US * cpu_share)
        if self.version == 2:
            self._cpu = self._memory = ROOT_V1 / name
            wanted = {"cpu.max": f"{quota} {PERIOD_US}", "memory.max": memory_bytes, "memory.swap.max": 0}
        else:
            self._cpu, self._memory = ROOT_V1 / "cpu" / name, ROOT_V1 / "memory" / name
            wanted = {"cpu.cfs_period_us": PERIOD_US, "cpu.cfs_quota_us": quota, "memory.limit_in_bytes": memory_bytes}
            wanted["memory.memsw.limit_in_bytes"] = memory_bytes
        for folder in self.folders:
            folder.mkdir()
        for key, value in wanted.items():
            path = (self._cpu if key.startswith("cpu") else self._memory) / key
            if path.exists():  # no swap is accounted for where the kernel has none
                path.write_text(str(value))

    @property
    def folders(self) -> set[Path]:
        """One with version 2, two with version 1."""
        return {self._cpu, self._memory}

    @property
    def within(self) -> list[str]:
        """Words before a command that make it, and what it starts, members of the group."""
        join = "".join(f"echo $$ > {folder}/cgroup.procs; " for folder in self.folders)
        return ["sh", "-c", f'{join}exec "$@"', "sh"]

    @property
    def peak_mib(self) -> float:
        """The most memory of all processes together, the files that the kernel kept for them included."""
        name = "memory.peak" if self.version == 2 else "memory.max_usage_in_bytes"
        return int((self._memory / name).read_text()) / 2**20

    @property
    def throttled(self) -> tuple[int, int]:
        """In how many periods the quota ran out, and how many there were."""
        return self._stat("nr_throttled"), self._stat("nr_periods")

    @property
    def killed(self) -> int:
        """How often the kernel ended a process for want of memory."""
        name = "memory.events" if self.version == 2 else "memory.oom_control"
        lines = dict(line.split() for line in (self._memory / name).read_text().splitlines())
        return int(lines.get("oom_kill", 0))

    def _stat(self, name: str) -> int:
        lines = dict(line.split() for line in (self._cpu / "cpu.stat").read_text().splitlines())
        return int(lines[name])

    def remove(self) -> None:
        """When its processes have ended."""
        until = time.monotonic() + 10.0
        for folder in self.folders:
            while True:
                try:
                    folder.rmdir()
                except OSError:
                    if time.monotonic() > until:
                        raise
                    time.sleep(0.1)
                else:
                    break


@dataclass(frozen=True, slots=True)
class Sensor:
    """What sends readings to a model, and how it is configured."""

    name: str
    bundle: str  # its file
    about: str
    rate_hz: float
    source: str
    model: str
    first: int  # readings before the first prediction
    payload: Callable[[np.random.Generator], bytes]


def _spectrogram(random: np.random.Generator) -> bytes:
    return random.integers(-128, 128, 490).astype(np.int8).tobytes()


def _numbers(names: Sequence[str], centres: Sequence[float], spreads: Sequence[float]) -> Callable[..., bytes]:
    def payload(random: np.random.Generator) -> bytes:
        values = random.normal(centres, spreads)
        pairs = (f'"{name}":{value:.3f}' for name, value in zip(names, values, strict=True))
        return ("{" + ",".join(pairs) + "}").encode()

    return payload


SENSORS = [
    Sensor(
        "keywords",
        "keywords-int8-TFLite.onnx",
        "keywords, int8, a spectrogram of 490 bytes",
        10.0,
        'format = "raw"\nlayout = ["int8"]\n',
        "",
        1,
        _spectrogram,
    ),
    Sensor(
        "motions",
        "motions-features-and-network.onnx",
        "motions, features of 100 x 6 and a network, a window each reading",
        10.0,
        "",
        "stride = 1\n",
        100,
        _numbers(("ax", "ay", "az", "gx", "gy", "gz"), [0.0] * 6, [1.0] * 6),
    ),
    Sensor(
        "room",
        "room-random-forest.onnx",
        "room, a random forest of five channels",
        10.0,
        "",
        "",
        1,
        _numbers(
            ("temperature", "humidity", "light", "co2", "ratio"),
            [20.6, 25.7, 120.0, 606.0, 0.0038],
            [0.5, 2.0, 10.0, 50.0, 0.0002],
        ),
    ),
]


@dataclass
class Row:
    """What was found for one daemon."""

    about: str
    rate: str
    start_s: float = 0.0
    first_s: float = 0.0
    latencies_s: list[float] = field(default_factory=list)
    sent: int = 0
    lost: int = 0
    cpu_percent: float = 0.0
    throttled: str = ""
    rss_mib: float = 0.0
    peak_mib: float = 0.0
    longest_silence_s: float = 0.0
    killed: int = 0

    def cells(self) -> list[str]:
        """As the page shows it."""
        late = sorted(1000.0 * each for each in self.latencies_s)
        return [
            self.about,
            self.rate,
            f"{self.start_s:.1f} / {self.first_s:.1f}",
            f"{statistics.median(late):.1f} / {late[int(0.99 * len(late))]:.0f} ({len(late):,})",
            f"{self.lost} of {self.sent:,}",
            f"{self.cpu_percent:.1f}",
            self.throttled,
            f"{self.rss_mib:.0f} / {self.peak_mib:.0f}",
            f"{self.longest_silence_s:.1f}",
        ]


END = "<!-- end of what is measured by one command -->"
HEADS = (
    "Models", "Readings", "READY / first prediction, s", "Latency p50 / p99, ms", "Lost", "CPU, % of a core",
    "Periods without CPU left", "Memory of the daemon / peak of the group, MiB", "Longest pause of the watchdog, s",
)  # fmt: skip


class _Watch:
    """Stands in for systemd: when the daemon was ready, and the longest time between two of its signs of life."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ready_at: float | None = None
        self.longest_s = 0.0
        self._last: float | None = None
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        threading.Thread(target=self._hear, daemon=True).start()

    def _hear(self) -> None:
        while True:
            predicted = self._socket.recv(4096)
            now = time.monotonic()
            if b"READY=1" in predicted and self.ready_at is None:
                self.ready_at = self._last = now
            if b"WATCHDOG=1" in predicted:
                if self._last is not None:
                    self.longest_s = max(self.longest_s, now - self._last)
                self._last = now


class _Line:
    """Sensors and a subscriber: two connections to the broker, and when each reading was sent."""

    def __init__(self, port: int, sensors: Sequence[Sensor]) -> None:
        self._port = port
        self._sensors = sensors
        self._random = np.random.default_rng(3)
        self._sender = self._connect(port, wire.connect("slow-sensors"))
        self._hearer = self._connect(port, wire.connect("slow-subscriber") + wire.subscribe("edge/slow/+/-", qos=0))
        self._tails = {self._sender: b"", self._hearer: b""}
        self._under_way: dict[str, deque[float]] = defaultdict(deque)
        self._skip = {each.name: each.first - 1 for each in sensors}
        self._packet_id = 0
        self.latencies_s: list[float] = []
        self.sent = 0

    @staticmethod
    def _connect(port: int, greeting: bytes) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", port), timeout=10.0)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(greeting)
        return connection

    def wait_online(self) -> None:
        """Until the daemon has subscribed; a broker keeps nothing for a client that it does not know."""
        wait_online(self._port, "slow", START_SECONDS)

    def run(self, seconds: float, *, until_first: bool = False) -> None:
        """Send each sensor's readings at its rate; with `until_first` only until each has had a prediction."""
        began = time.perf_counter()
        due = [(began + index / 7 / each.rate_hz, each) for index, each in enumerate(self._sensors)]
        answered: set[str] = set()
        while True:
            now = time.perf_counter()
            if now - began > seconds or (until_first and len(answered) == len(self._sensors)):
                return
            for index, (moment, sensor) in enumerate(due):
                if moment <= now:
                    self._send(sensor)
                    due[index] = moment + 1.0 / sensor.rate_hz, sensor
            answered |= self.hear(max(0.0, min(moment for moment, _ in due) - time.perf_counter()))

    def settle(self) -> int:
        """Wait for what is under way; how many predictions are missing after that."""
        until = time.perf_counter() + LATE_SECONDS
        while any(self._under_way.values()) and time.perf_counter() < until:
            self.hear(0.1)
        return sum(map(len, self._under_way.values()))

    def _send(self, sensor: Sensor) -> None:
        self._packet_id = self._packet_id % 65_000 + 1
        packet = wire.publish(f"slow/{sensor.name}", sensor.payload(self._random), self._packet_id)
        now = time.perf_counter()
        self._sender.sendall(packet)
        self.sent += 1
        if self._skip[sensor.name]:
            self._skip[sensor.name] -= 1
        else:
            self._under_way[sensor.name].append(now)

    def hear(self, seconds: float) -> set[str]:
        """The models that answered within so long."""
        answered = set()
        readable, _, _ = select.select(list(self._tails), [], [], seconds)
        for connection in readable:
            data = self._tails[connection] + connection.recv(1 << 18)
            found, used = wire.packets(data)
            self._tails[connection] = data[used:]
            for first, begin, _ in found:
                if first & 0xF0 == wire.PUBLISH:
                    size = int.from_bytes(data[begin : begin + 2], "big")
                    name = data[begin + 2 : begin + 2 + size].decode().split("/")[2]
                    answered.add(name)
                    if self._under_way[name]:
                        self.latencies_s.append(time.perf_counter() - self._under_way[name].popleft())
        return answered

    def forget(self) -> None:
        """What was measured so far."""
        self.latencies_s.clear()
        self.sent = 0

    def close(self) -> None:
        """Leave the broker."""
        self._sender.close()
        self._hearer.close()


def _config(folder: Path, port: int, bundles: Path, sensors: Sequence[Sensor]) -> str:
    tables = "".join(
        f'[[source]]\nname = "{each.name}"\ntype = "mqtt"\ntopics = ["slow/{each.name}"]\n{each.source}'
        f'[[model]]\nname = "{each.name}"\nbundle = "{bundles / each.bundle}"\nsource = "{each.name}"\n{each.model}'
        for each in sensors
    )
    return (
        f'[device]\nid = "slow"\n{tables}[upstream]\nurl = "mqtt://127.0.0.1:{port}"\n'
        f'[outbox]\npath = "{folder / "outbox.db"}"\n'
    )


def measure(bundles: Path, sensors: Sequence[Sensor], seconds: float) -> Row:
    """One daemon with these sensors."""
    rates = " + ".join(f"{each.rate_hz:g}/s" for each in sensors)
    row = Row("; ".join(each.about for each in sensors) if len(sensors) == 1 else "all three", rates)
    with _started(bundles, sensors) as (group, running, watch, line, began):
        row.start_s = _wait(lambda: watch.ready_at, running) - began
        line.wait_online()
        line.run(START_SECONDS, until_first=True)
        row.first_s = time.monotonic() - began
        line.settle()
        line.forget()
        cpu, throttled = running.usage(), group.throttled
        line.run(seconds)
        used = running.usage() - cpu
        row.lost = line.settle()
        row.latencies_s, row.sent = list(line.latencies_s), line.sent
        row.cpu_percent = 100.0 * used.cpu_s / used.wall_s
        row.throttled = f"{group.throttled[0] - throttled[0]} of {group.throttled[1] - throttled[1]}"
        row.rss_mib, row.peak_mib = running.rss_bytes() / 2**20, group.peak_mib
        running.check()
        row.longest_silence_s, row.killed = watch.longest_s, group.killed
    return row


@contextmanager
def _started(bundles: Path, sensors: Sequence[Sensor]) -> Iterator[tuple[ControlGroup, Process, _Watch, _Line, float]]:
    generator_core, target_core = cores()
    group = ControlGroup(CPU_SHARE, MEMORY_BYTES)
    try:
        with tempfile.TemporaryDirectory(prefix="edge-slow-") as temporary:
            folder = Path(temporary)
            broker, port = start_broker(folder, generator_core, nodelay=False)
            device = folder / "device.toml"
            device.write_text(_config(folder, port, bundles, sensors))
            watch = _Watch(folder / "notify")
            own_packages(packages := folder / "packages")
            environment = {"PYTHONPATH": str(packages), "NOTIFY_SOCKET": str(watch.path)}
            environment["WATCHDOG_USEC"] = str(WATCHDOG_SECONDS * 1_000_000)
            with broker:
                line = _Line(port, sensors)
                began = time.monotonic()
                command = [*group.within, *COMMAND, "run", str(device)]
                with Process(command, core=target_core, log=folder / "daemon.log", env=environment) as running:
                    yield group, running, watch, line, began
                line.close()
    finally:
        group.remove()


def own_packages(folder: Path) -> None:
    """A copy of what a device has installed, on disk and in no cache.

    The kernel charges a page of a file to the group that reads it first: of the files of this environment, which other
    processes use too, the group would be charged for none.
    """
    for name in PACKAGES:
        found = importlib.util.find_spec(name)
        assert found is not None, name
        origin = found.origin if found.submodule_search_locations is None else found.submodule_search_locations[0]
        assert origin is not None, name
        for path in (Path(origin), Path(f"{origin}.libs")):
            if path.is_dir():
                shutil.copytree(path, folder / path.name, ignore=shutil.ignore_patterns("tests", "*.pyi"))
    compileall.compile_dir(folder, quiet=1)
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _wait(found: Callable[[], float | None], running: Process) -> float:
    until = time.monotonic() + START_SECONDS
    while (moment := found()) is None:
        running.check()
        if time.monotonic() > until:
            raise TimeoutError(f"the daemon is not ready after {START_SECONDS:.0f} s:\n{running.output()[-2000:]}")
        time.sleep(0.01)
    return moment


def exchange(bundles: Path, turns: int = 5) -> tuple[int, float, float]:
    """All three models, each exchanged several times by a reload: predictions lost, slowest reload, peak in MiB."""
    with tempfile.TemporaryDirectory(prefix="edge-slow-bundles-") as temporary:
        own = Path(temporary)
        contents = {each.bundle: (bundles / each.bundle).read_bytes() for each in SENSORS}
        for name, content in contents.items():
            (own / name).write_bytes(content)
        with _started(own, SENSORS) as (group, running, watch, line, _):
            _wait(lambda: watch.ready_at, running)
            line.wait_online()
            line.run(START_SECONDS, until_first=True)
            line.settle()
            slowest = 0.0
            for turn in range(turns):
                for name, content in contents.items():
                    changed = own / f"{name}.new"
                    changed.write_bytes(_changed(content, turn))
                    changed.replace(own / name)
                began = time.monotonic()
                os.kill(running.pid, signal.SIGHUP)
                while running.output().count("reloaded: ") < len(SENSORS) * (turn + 1):
                    line.run(0.2)
                    running.check()
                    if time.monotonic() - began > START_SECONDS:
                        raise TimeoutError(f"no reload in {START_SECONDS:.0f} s:\n{running.output()[-2000:]}")
                slowest = max(slowest, time.monotonic() - began)
            lost = line.settle()
            return lost, slowest, group.peak_mib


def _changed(content: bytes, turn: int) -> bytes:
    """The same model with another text about it, and so another digest."""
    import onnx  # noqa: PLC0415 - no part of the measurement

    model = onnx.load_from_string(content)
    model.doc_string = f"turn {turn}"
    changed: bytes = model.SerializeToString()
    return changed


def page(rows: Sequence[Row], exchanged: str, version: int, seconds: float) -> str:
    """The part of `docs/boards.md`."""
    machine = f"{CPU_SHARE:.0%} of a core of {_processor()} and {MEMORY_BYTES >> 20} MiB without swap"
    about = [
        f"No board: a control group (version {version}) of {machine}, files of the packages included.",
        "Memory carries over to a Zero 2 W and the like. CPU does not: a fifth of this core is no Cortex-A53.",
        "The broker is mosquitto as Debian ships it, outside of the group.",
        "The processor time is the limit at the start alone; a reload, which loads three models, takes its share too.",
        f"`python -m benchmarks.slow_device --page`, {time.strftime('%Y-%m-%d', time.gmtime())}, {seconds:.0f} s each.",
    ]
    end = (
        f"The kernel ended {sum(row.killed for row in rows)} processes for want of memory. systemd's watchdog would "
        f"end the daemon after a pause of {WATCHDOG_SECONDS} s."
    )
    table = [HEADS, ["---"] * len(HEADS), *(row.cells() for row in rows)]
    listed = [f"| {' | '.join(cells)} |" for cells in table]
    lines = [SIMULATED, "", "## A slow device, simulated", "", *about, "", *listed, "", exchanged, end, END]
    return "\n".join(lines)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{line.partition(':')[2].strip()} (virtual machine)"
    return platform.machine()


def main() -> int:
    """Measure every row, print them, and write the page where that is asked for."""
    parser = argparse.ArgumentParser(prog="benchmarks.slow_device", description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT / ".." / "shared" / "data", help="the recordings")
    parser.add_argument("--bundles", type=Path, help="bundles of `benchmarks.converted --keep`, instead of making them")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each row (default 60)")
    parser.add_argument("--page", action="store_true", help=f"write the table into {PAGE.name}")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edge-slow-made-") as made:
        bundles = (arguments.bundles or _make(arguments.data, Path(made))).absolute()
        os.sched_setaffinity(0, {cores()[0]})
        rows = []
        for sensors in ([SENSORS[0]], [SENSORS[1]], [SENSORS[2]], SENSORS):
            rows.append(measure(bundles, sensors, arguments.seconds))
            print(" | ".join(rows[-1].cells()), flush=True)
        lost, slowest, peak = exchange(bundles)
    exchanged = (
        f"All three models, exchanged five times each by a reload while readings come: {lost} predictions lost, at "
        f"most {slowest:.1f} s from SIGHUP to the new bundles, {peak:.0f} MiB at the peak."
    )
    print(exchanged)
    text = page(rows, exchanged, 2 if ROOT_V2.exists() else 1, arguments.seconds)
    if arguments.page:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(SIMULATED)
        _, _, after = rest.partition(END)
        PAGE.write_text(f"{before}{text}{after}", encoding="utf-8")
    return int(any(row.lost or row.killed for row in rows) or lost > 0)


def _make(data: Path, folder: Path) -> Path:
    names = ["keywords, int8 TFLite", "motions, features and network", "room, random forest"]
    command = [sys.executable, "-m", "benchmarks.converted", "--data", str(data), "--keep", str(folder), *names]
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return folder


if __name__ == "__main__":
    sys.exit(main())
