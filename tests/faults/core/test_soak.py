"""Readings without end through the installed daemon: it grows neither in memory nor in descriptors nor in threads.

`EDGE_TORTURE=long` takes five million readings; `EDGE_SOAK_READINGS=N` as many as you like. The load is made and
counted by mosquitto's own clients, so that the test is not what is measured. One reading in ten comes over a serial
port, the others over MQTT, on a hundred keys; every one must be answered.

The resident memory of a short run tells nothing finer than a hundred bytes a reading. So the daemon also writes down,
twice a second, how many blocks Python's allocator has given out. With nothing on its way, behind the warm-up and at
the end, one object that every other reading has left behind is seen in the short form too.
"""

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import MakeDaemon
from tests.support import builders
from tests.support.broker import Mosquitto
from tests.support.daemon import Daemon
from tests.support.disk_faults import LONG, report
from tests.support.ports import VirtualPort
from tests.support.waiting import patient, wait_until

READINGS = int(os.environ.get("EDGE_SOAK_READINGS", "5000000" if LONG else "50000"))
BLOCK = 500  # readings that are written at once
AHEAD = 4_000  # readings that may be unanswered, so that the broker's queue stays short
KEYS = 100
SAMPLES = 50
WARM_SHARE = 0.2
MOST_MB_A_MILLION = 1.0
MOST_MB_IN_SHORT = 4.0  # what the allocator may round a short run up to
MOST_BLOCKS_A_READING = (
    0.5  # the figure varies by 0.2 from run to run; what is left behind by each reading is 1 at least
)
LOOK = """
import gc
import sys
import edge_runtime.daemon.assembly as assembly
import edge_runtime.daemon.process as process
process.HOUSEKEEPING_S = 0.5
housekeeping = assembly.Assembly.housekeeping
def looking(self):
    gc.collect()
    with open({path!r}, "a") as file:
        file.write(f"{{sys.getallocatedblocks()}}\\n")
    return housekeeping(self)
assembly.Assembly.housekeeping = looking
"""
PAGE = os.sysconf("SC_PAGE_SIZE")

pytestmark = [
    pytest.mark.system,
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("mosquitto_pub") is None, reason="mosquitto's clients are not installed"),
]

DEVICE = """
[device]
id = "soak"
health_interval = 1.0

[[source]]
name = "climate"
type = "mqtt"
topics = ["sensors/all"]
key = "k"

[[source]]
name = "line"
type = "serial"
port = "{port}"
fields = ["temperature", "humidity"]

[[model]]
name = "comfort"
bundle = "{bundle}"
source = "climate"

[[model]]
name = "line"
bundle = "{bundle}"
source = "line"

[upstream]
url = "{url}"

[outbox]
path = "soak.db"
"""


@dataclass
class Counted:
    """Messages that mosquitto_sub has heard; the first of them, which only showed that it hears, are `probes`."""

    messages: int = 0
    probes: int = 0

    @property
    def answers(self) -> int:
        """Predictions."""
        return self.messages - self.probes


@dataclass(frozen=True)
class Sample:
    """The process after so many readings."""

    readings: int
    rss_mb: float
    descriptors: int
    threads: int


@contextmanager
def _listening(port: int, topic: str) -> Iterator[Counted]:
    """Count what arrives, a line a message."""
    counted = Counted()
    command = ["stdbuf", "-oL", "mosquitto_sub", "-p", str(port), "-q", "1", "-t", topic, "-t", "probe", "-F", "x"]
    with ExitStack() as stack:
        process = stack.enter_context(_ended(subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0)))
        pipe = process.stdout
        assert pipe is not None

        def count() -> None:
            while block := pipe.read(65536):
                counted.messages += block.count(b"x")

        threading.Thread(target=count, name="count", daemon=True).start()
        probe = ["mosquitto_pub", "-p", str(port), "-t", "probe", "-m", "", "-q", "1"]
        wait_until(
            lambda: counted.messages or subprocess.run(probe, check=True, timeout=patient(30)).returncode,
            "mosquitto_sub to hear something",
            30.0,
        )
        counted.probes = counted.messages
        yield counted


@contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Whatever happens, the process does not outlive the test."""
    try:
        yield process
    finally:
        process.kill()
        with process:
            pass  # waits, and closes the pipes


def _sample(pid: int, readings: int) -> Sample:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return Sample(readings, pages * PAGE / 1e6, _fewest(pid, "fd"), _fewest(pid, "task"))


def _fewest(pid: int, what: str) -> int:
    """How many there are, beside a file that is being written: that is open for a moment only."""
    counts = []
    for _ in range(8):
        counts.append(len(list(Path(f"/proc/{pid}/{what}").iterdir())))
        time.sleep(0.015)
    return min(counts)


def _blocks(written: Path) -> int:
    """What is given out now that nothing is on its way: the least of the next five."""
    before = len(written.read_text().splitlines())
    wait_until(lambda: len(written.read_text().splitlines()) > before + 6, "the daemon to look at itself", 60.0)
    return min(int(line) for line in written.read_text().splitlines()[before + 1 : before + 6])


def _block(first: int, size: int) -> bytes:
    """Numbered readings, an object a line."""
    lines = (f'{{"temperature": {n % 50}, "humidity": 40.5, "k": "k{n % KEYS}"}}\n' for n in range(first, first + size))
    return "".join(lines).encode()


@dataclass
class Load:
    """Who sends, who listens, and what is between them."""

    daemon: Daemon
    pipe: subprocess.Popen[bytes]
    line: VirtualPort
    heard: Counted
    sent: int = 0

    def send(self) -> None:
        """One block, nine readings in ten over MQTT."""
        assert self.pipe.stdin is not None
        size = min(BLOCK, READINGS - self.sent)
        over_mqtt = size * 9 // 10
        self.pipe.stdin.write(_block(self.sent, over_mqtt))
        self.line.write(b"21.5,40.5\n" * (size - over_mqtt))
        self.sent += size

    def wait(self, ahead: int) -> None:
        """Return when no more than so many readings are unanswered."""
        wait_until(
            lambda: self.sent - self.heard.answers <= ahead,
            lambda: f"{self.heard.answers} answers to {self.sent} readings\n{self.daemon.log[-2000:]}",
            120.0,
        )


def _soak(load: Load, written: Path) -> tuple[list[Sample], float]:
    """Send everything, never too far ahead of the answers, and look at the process now and then.

    Returns:
        The process at so many moments, and by how many blocks a reading it has grown.
    """
    samples: list[Sample] = []
    warm, blocks = 0, 0
    while load.sent < READINGS:
        load.send()
        load.wait(AHEAD)
        if load.sent >= READINGS * (len(samples) + 1) / SAMPLES:
            samples.append(_sample(load.daemon.pid, load.sent))
        if not warm and load.sent >= WARM_SHARE * READINGS:
            load.wait(0)
            warm, blocks = load.sent, _blocks(written)
    load.wait(0)
    return samples, (_blocks(written) - blocks) / (load.sent - warm)


@pytest.mark.timeout(21_600 if LONG else 250)
def test_readings_without_end_leave_nothing_behind(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, virtual_port: VirtualPort, tmp_path: Path
) -> None:
    """Every reading is answered once; after the warm-up memory is level, and descriptors and threads stay as many."""
    bundle = builders.classification(name="comfort").save(tmp_path / "comfort.onnx")
    blocks = tmp_path / "blocks"
    (tmp_path / "look").mkdir()
    (tmp_path / "look" / "sitecustomize.py").write_text(LOOK.format(path=str(blocks)))
    text = DEVICE.format(port=virtual_port.path, bundle=bundle, url=mosquitto.url)
    daemon = make_daemon(text, PYTHONPATH=str(tmp_path / "look")).start()
    daemon.wait_for_log("online")
    virtual_port.write(b"\n")
    command = ["mosquitto_pub", "-p", str(mosquitto.port), "-q", "1", "-t", "sensors/all", "-l"]
    with (
        _listening(mosquitto.port, "edge/soak/+/+") as heard,
        _ended(subprocess.Popen(command, stdin=subprocess.PIPE, bufsize=0)) as pipe,
    ):
        samples, growth = _soak(Load(daemon, pipe, virtual_port, heard), blocks)
        assert heard.answers == READINGS
    assert daemon.stop() == 0
    settled = [each for each in samples if each.readings >= WARM_SHARE * READINGS]
    first, last = settled[0], settled[-1]
    slope, _ = np.polyfit([each.readings / 1e6 for each in settled], [each.rss_mb for each in settled], 1)
    report(
        f"{READINGS} readings, all answered; RSS {first.rss_mb:.1f} MB after the warm-up, {last.rss_mb:.1f} MB at the "
        f"end, slope {slope:+.2f} MB a million; {last.descriptors} descriptors and {last.threads} threads, throughout; "
        f"{growth:+.4f} blocks of Python's allocator a reading"
    )
    assert len({each.descriptors for each in settled}) == 1, settled
    assert len({each.threads for each in settled}) == 1, settled
    assert growth <= MOST_BLOCKS_A_READING, settled
    if READINGS < 1_000_000:
        assert last.rss_mb - first.rss_mb < MOST_MB_IN_SHORT, settled
    else:
        assert slope <= MOST_MB_A_MILLION, settled
