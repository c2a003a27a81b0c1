"""A serial source on real pseudo-terminals: bytes in any shape, plugs pulled, ports held by others."""

import contextlib
import errno
import fcntl
import gc
import logging
import os
import random
import shutil
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edge_runtime.readings import Batch
from edge_runtime.stream.framing import cobs_encode, crc16
from edge_runtime.stream.sources import port as port_module
from edge_runtime.stream.sources.serial import SerialSource, SerialSourceTable
from edge_runtime.system.counters import Counters
from edge_runtime.system.loop import Loop, Timer
from tests.support.ports import VirtualPort
from tests.support.tables import table
from tests.support.waiting import Deadline

CHANNELS = ("x", "y")


class Bench:
    """A loop, a port under a stable path, and what the source made of it."""

    def __init__(self, folder: Path) -> None:
        self.loop = Loop()
        self.port = VirtualPort(folder / "imu")
        self.counters = Counters()
        self.batches: list[Batch] = []
        self.states: list[tuple[bool, str]] = []
        self.sources: list[SerialSource] = []

    def source(self, *, needed: Callable[[], int] = lambda: 1, **options: Any) -> SerialSource:
        """A source on the port; it tries an absent port every few milliseconds, to keep tests short."""
        config = table(
            SerialSourceTable, **{"name": "imu", "port": str(self.port.path), "reopen_max": 0.005, **options}
        )
        source = SerialSource(
            config,
            CHANNELS,
            None,
            self.loop,
            sink=self.batches.append,
            counters=self.counters,
            needed=needed,
            max_rest=config.max_rest,
        )
        source.on_state = lambda: self.states.append((source.is_open, source.state))
        self.sources.append(source)
        return source

    def started(self, **options: Any) -> SerialSource:
        """A source that is open, with its first line end behind it."""
        self.port.plug()
        source = self.source(**options)
        source.start()
        assert source.is_open, source.state
        self.port.write(b"\n")
        return source

    def run_until(self, condition: Callable[[], object], deadline: float = 20.0) -> None:
        """Run the loop until something is true."""
        until = Deadline(deadline)
        while not condition():
            assert not until.over, f"in vain: {self.states} {len(self)} {self.counters.rejected}"
            self.loop.run_once(0.05)

    def send(self, data: bytes) -> None:
        """Write while the loop reads, however much it is."""
        rest = memoryview(data)
        os.set_blocking(self.port._master, False)
        while rest:
            with contextlib.suppress(BlockingIOError):
                rest = rest[os.write(self.port._master, rest[:4096]) :]
            self.loop.run_once(0.0)

    def __len__(self) -> int:
        return sum(map(len, self.batches))

    @property
    def rows(self) -> list[list[float]]:
        """Every reading so far."""
        return [row for batch in self.batches for row in batch.values.tolist()]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A bench of its own for each test; everything on it is closed at the end."""
    made = Bench(tmp_path)
    yield made
    for source in made.sources:
        source.stop()
    made.port.unplug()
    made.loop.close()


def open_fds() -> int:
    """How many descriptors this process has."""
    return len(list(Path("/proc/self/fd").iterdir()))


def test_what_cannot_complete_a_window_is_read_together(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The port is left alone for a while, no longer than allowed, and listened to again when a window is near."""
    rests: list[tuple[float, Callable[[], object]]] = []
    call_later = bench.loop.call_later

    def note(delay: float, callback: Callable[[], object]) -> Timer:
        rests.append((delay, callback))
        return call_later(600.0, callback)

    needed = [1000]
    bench.started(max_rest=0.02, needed=lambda: needed[0])
    monkeypatch.setattr(bench.loop, "call_later", note)
    for number in range(3):  # the second tells how fast they come
        if not rests:
            bench.port.write(b"%d,0\n" % number)
            bench.run_until(lambda wanted=number + 1: len(bench) == wanted)  # type: ignore[misc]
    read = len(bench)
    (delay, wake) = rests.pop()
    assert 0.0 < delay <= 0.02
    lines = [b"%d,0\n" % number for number in range(read, read + 5)]
    for line in lines:
        bench.port.write(line)
        bench.loop.run_once(0.01)
    bench.run_until(lambda: bench.port.unread == len(b"".join(lines)))  # the kernel passes them on in its own time
    assert len(bench) == read
    needed[0] = 2
    wake()
    assert [row[0] for row in bench.rows] == list(range(read + 5))
    assert len(bench.batches[-1]) == 5
    assert rests == []
    bench.port.write(b"7,7\n")
    bench.run_until(lambda: len(bench) == read + 6)


def test_a_port_that_fell_silent_during_a_rest_is_listened_to_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rest that brings nothing is the last one, and what comes then is read at once."""
    source = bench.started(max_rest=1.0, needed=lambda: 1000)
    call_later, rests = bench.loop.call_later, []

    def note(delay: float, callback: Callable[[], object]) -> Timer:
        rests.append(callback)
        return call_later(600.0, callback)

    monkeypatch.setattr(bench.loop, "call_later", note)
    sent = 0
    while not rests:
        bench.port.write(b"1,2\n")
        sent += 1
        bench.run_until(lambda wanted=sent: len(bench) == wanted)  # type: ignore[misc]
    rests.pop()()
    assert rests == []
    bench.port.write(b"3,4\n")
    bench.run_until(lambda: len(bench) == sent + 1)
    source.stop()


def test_lines_become_one_batch_a_wake_up(bench: Bench) -> None:
    """Everything that has arrived travels as one batch, in order, with its arrival as time."""
    bench.started()
    before = time.time()
    bench.port.write(b"1,2\r\n3,4\n5,")
    bench.run_until(lambda: len(bench) == 2)
    (batch,) = bench.batches
    np.testing.assert_array_equal(batch.values, np.array([[1, 2], [3, 4]], np.float32))
    assert batch.source == "imu"
    assert batch.keys == batch.identities == [None, None]
    assert batch.receipts == [None, None]
    assert all(before <= moment <= time.time() for moment in batch.times)
    assert 0 < batch.arrived <= time.perf_counter()
    bench.port.write(b"6\n")
    bench.run_until(lambda: len(bench) == 3)
    assert bench.rows[-1] == [5, 6]
    assert bench.counters.counts["readings"] == 3
    assert bench.counters.counts["bytes"] == 14


def test_json_lines_bring_their_own_time_identity_and_key(bench: Bench) -> None:
    """A reading's own time, identity and key go with it."""
    bench.started(format="json", key="node")
    bench.port.write(b'{"y": 2, "x": 1, "time": "2026-11-23T11:19:04Z", "seq": 7, "node": "n1"}\n')
    bench.run_until(lambda: bench.batches)
    (batch,) = bench.batches
    assert (batch.values.tolist(), batch.times, batch.identities, batch.keys) == (
        [[1, 2]],
        [1795432744.0],
        ["7"],
        ["n1"],
    )


def test_bytes_one_at_a_time_make_the_same_readings(bench: Bench) -> None:
    """However late and slowly bytes come, a line is a line."""
    bench.started()
    for i in b"1,2\r\n3,4\n":
        bench.port.write(bytes([i]))
        bench.loop.run_once(0.01)
    bench.run_until(lambda: len(bench) == 2)
    assert bench.rows == [[1, 2], [3, 4]]


@pytest.mark.parametrize("kind", ["raw", "msgpack"])
def test_bytes_come_in_cobs_frames_with_a_sum(bench: Bench, kind: str) -> None:
    """Packed structures and MessagePack come in COBS frames; a flipped bit costs its frame and nothing else."""
    if kind == "raw":
        bench.started(format="raw", fields=("seq", "x", "y"), layout=("uint8", "int16", "float32"), scale=(1, 0.5, 1))
        readings = [struct.pack("<Bhf", i, i * 2, i * 10) for i in range(5)]
    else:
        bench.started(format="msgpack")
        readings = [msgspec.msgpack.encode({"x": i, "y": i * 10.0, "seq": i}) for i in range(5)]
    frames = [bytearray(cobs_encode(data + crc16(data))) for data in readings]
    frames[2][1] ^= 0x40  # in the data, and no zero
    bench.port.write(b"\0" + b"\0".join(frames) + b"\0")
    bench.run_until(lambda: len(bench) == 4)
    assert bench.rows == [[i, i * 10] for i in (0, 1, 3, 4)]
    assert [identity for batch in bench.batches for identity in batch.identities] == ["0", "1", "3", "4"]
    assert bench.counters.rejected == {"bad_checksum": 1}


def test_noise_is_counted_and_the_next_line_is_read(bench: Bench) -> None:
    """Bytes that are no text, in front of a line or between lines, cost only the line that they hit."""
    bench.started()
    bench.port.write(b"\x00\xff\xfe1,2\n3,4\n\x80\x81\n5,6\nhello\n")
    bench.run_until(lambda: len(bench) == 2 and bench.counters.rejected.total() == 3)
    assert bench.rows == [[3, 4], [5, 6]]
    assert bench.counters.rejected == {"noise": 2, "malformed": 1}


def test_a_line_that_crashes_its_codec_is_set_aside(bench: Bench) -> None:
    """It is logged and counted, not tried for ever, and the next one is read: a sensor repeats itself."""
    source = bench.started()
    decode = source._intake.decoder.decode

    def crash(frames: Any, counters: Counters) -> Any:
        if b"9,9" in frames:
            raise RuntimeError("a fault of ours")
        return decode(frames, counters)

    source._intake.decoder.decode = crash  # type: ignore[method-assign]
    bench.port.write(b"9,9\n")
    bench.run_until(lambda: bench.counters.errors["crashed"] == 1)
    bench.port.write(b"1,2\n")
    bench.run_until(lambda: len(bench) == 1)
    assert bench.rows == [[1, 2]]
    assert source.is_open


def uart(data: bytes, sent: int, read: int) -> bytes:
    """What a receiver at `read` baud makes of bytes that are sent at `sent` baud, 8 data bits, no parity, 1 stop bit.

    It waits for the edge of a start bit and looks at the line in the middle of each of its own bits; without a stop bit
    the driver of a terminal gives a zero byte (termios(3): neither IGNPAR nor PARMRK).
    """
    line = "1" * 10 + "".join("0" + f"{byte:08b}"[::-1] + "1" for byte in data) + "1" * 10
    ratio = sent / read  # bits of the line for a bit of the receiver

    def level(at: float) -> bool:
        return at >= len(line) or line[int(at)] == "1"

    made, at = bytearray(), 0.0
    while (at := line.find("0", int(at))) >= 0:
        bits = [level(at + (bit + 1.5) * ratio) for bit in range(8)]
        framed = level(at + 9.5 * ratio)
        made.append(sum(bit << place for place, bit in enumerate(bits)) if framed else 0)
        at += 9.5 * ratio
        while at < len(line) and not level(at):
            at += 1  # a break lasts until the line is high again
    return bytes(made)


@pytest.mark.parametrize("read", [1200, 9600, 19200, 57600, 230400, 921600])
def test_a_wrong_baud_rate_makes_no_reading(bench: Bench, read: int) -> None:
    """What a port at another speed hears is counted, or nothing at all, and is no reading; then it is reported."""
    lines = b"".join(b"%d.25,%d.5\r\n" % (n, -n) for n in range(300))
    assert uart(lines, 115200, 115200) == lines
    source = bench.started(silent_after=0.05)
    bench.send(uart(lines, 115200, read) + b"\n")
    bench.run_until(lambda: "look at the sensor, its cable and its speed" in source.state)
    assert len(bench) == 0
    assert source.is_open
    bench.send(lines)
    bench.run_until(lambda: len(bench) == 300)


def test_the_first_line_after_opening_may_be_half_a_line_and_is_dropped(bench: Bench) -> None:
    """What stands before the first line end after opening is no reading; the line after it always is."""
    bench.port.plug()
    bench.port.write(b"3.5,2\n1,2\n")  # may have been 13.5
    bench.source().start()
    bench.run_until(lambda: len(bench) == 1)
    assert bench.rows == [[1, 2]]
    assert not bench.counters.rejected


def test_a_line_of_ten_megabytes_is_skipped_and_counted_once(bench: Bench) -> None:
    """A line over `max_frame_bytes` is counted as `too_long`, and the one after it is read."""
    source = bench.started()
    bench.send(b"7" * 10_000_000)
    assert source._framer.pending_bytes <= 4097
    bench.send(b"\n1,2\n")
    bench.run_until(lambda: len(bench) == 1)
    assert bench.counters.rejected == {"too_long": 1}


def test_a_flood_leaves_room_for_others(bench: Bench) -> None:
    """A device that never stops sending takes no more than 64 KiB of a pass of the loop."""
    source = bench.started()
    bench.run_until(lambda: bench.counters.counts["bytes"])
    bench.send(b"1,2\n" * 50_000)
    bench.run_until(lambda: len(bench) == 50_000)
    assert max(map(len, bench.batches)) <= 16 * 4096 // 4
    assert source.is_open


def test_a_device_that_never_stops_sending_ends_a_pass_all_the_same(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However fast it is: a pass of the loop reads so much and no more, and whatever else waits has its turn."""
    bench.started()
    bench.run_until(lambda: bench.counters.counts["bytes"])
    real, reads, turns = os.read, [0], [0]

    def flood(fd: int, size: int) -> bytes:
        if not os.isatty(fd):
            return real(fd, size)
        reads[0] += 1
        if reads[0] > 1000:
            raise BlockingIOError
        return b"1,2\n" * 1024

    def other() -> None:
        turns[0] += 1
        bench.loop.call_later(0.0, other)

    bench.loop.call_later(0.0, other)
    monkeypatch.setattr(os, "read", flood)
    bench.port.write(b"1,2\n")
    bench.run_until(lambda: reads[0] >= 200)
    monkeypatch.undo()
    assert max(map(len, bench.batches)) <= 16 * 1024
    assert turns[0] >= 200 // 16


def test_an_absent_port_is_waited_for(bench: Bench) -> None:
    """A port that is not there is no exit: the source says so once, and opens it when it comes."""
    source = bench.source()
    source.start()
    bench.run_until(lambda: bench.loop.progress > 20)
    assert not source.is_open
    assert bench.states == [(False, f"{bench.port.path}: no such port: waiting until it is plugged in")]
    bench.port.plug()
    bench.run_until(lambda: source.is_open)
    bench.port.write(b"\n1,2\n")
    bench.run_until(lambda: len(bench) == 1)
    assert bench.counters.errors == {"absent": 1}
    assert bench.states[-1] == (True, f"{bench.port.path}: open")


def test_an_unplugged_port_is_opened_again_under_the_same_path(bench: Bench) -> None:
    """After unplugging, the path is looked up anew, and half a line of before is not glued to the next."""
    source = bench.started()
    terminals = {bench.port.path.readlink()}
    for round_ in range(3):
        bench.port.write(b"%d,0\n9,9" % round_)
        bench.run_until(lambda round_=round_: len(bench) == round_ + 1)  # type: ignore[misc]
        old = bench.port
        bench.port = VirtualPort(old.path).plug()  # while the old one lives, so that it is another terminal
        for fd in (old._master, old._slave):
            os.close(fd)
        bench.run_until(lambda round_=round_: bench.counters.errors["disconnected"] == round_ + 1)  # type: ignore[misc]
        bench.run_until(lambda: source.is_open)
        terminals.add(bench.port.path.readlink())
        bench.port.write(b"9\n")
    assert len(terminals) > 1
    assert bench.rows == [[0, 0], [1, 0], [2, 0]]
    assert "waiting until it is back" in next(state for is_open, state in bench.states if not is_open)


@pytest.mark.skipif(shutil.which("socat") is None, reason="socat is not installed: apt install socat")
def test_a_port_of_socat_is_unplugged_and_plugged_in_again(bench: Bench) -> None:
    """The same with a pair of ports that another program makes, as a USB adaptor driver would."""
    far = bench.port.path.with_name("far")

    @contextlib.contextmanager
    def cable() -> Iterator[None]:
        command = ["socat", f"pty,raw,echo=0,link={bench.port.path}", f"pty,raw,echo=0,link={far}"]
        with subprocess.Popen(command) as process:
            try:
                yield
            finally:
                process.send_signal(signal.SIGTERM)

    source = bench.source()
    source.start()
    for round_ in (1, 2):
        with cable():
            bench.run_until(lambda: source.is_open and far.exists())
            with far.open("wb", buffering=0) as device:
                device.write(b"half a li\n%d,2\n" % round_)
                bench.run_until(lambda round_=round_: len(bench) == round_)  # type: ignore[misc]
        bench.run_until(lambda: not source.is_open)
    assert bench.rows == [[1, 2], [2, 2]]


@pytest.mark.parametrize("fault", [OSError(errno.EIO, "Input/output error"), OSError(errno.ENXIO, "gone"), b""])
def test_every_guise_of_a_lost_port_is_one_loss(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, fault: OSError | bytes
) -> None:
    """An input error, a vanished device and a hang-up are the same: close, count, open again."""
    source = bench.started()
    bench.run_until(lambda: bench.counters.counts["bytes"])
    real, fired = os.read, list[int]()

    def read(fd: int, most: int) -> bytes:
        if fd != source._fd or fired:
            return real(fd, most)
        fired.append(fd)
        if isinstance(fault, OSError):
            raise fault
        return fault

    monkeypatch.setattr(os, "read", read)
    bench.port.write(b"1,2\n")
    bench.run_until(lambda: fired and source.is_open)
    bench.port.write(b"\n3,4\n")
    bench.run_until(lambda: bench.rows[-1:] == [[3, 4]])
    assert bench.counters.errors == {"disconnected": 1}


def test_a_port_that_another_process_holds_is_refused_with_a_message(bench: Bench, caplog: Any) -> None:
    """Two readers of one port would each get half of the bytes, so that the second one refuses, and waits."""
    bench.port.plug()
    other = os.open(bench.port.path, os.O_RDWR | os.O_NOCTTY)
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    source = bench.source()
    with caplog.at_level(logging.INFO, "edge_runtime"):
        source.start()
        bench.run_until(lambda: bench.loop.progress > 20)
        assert "another process holds the port: stop it" in source.state
        os.close(other)
        bench.run_until(lambda: source.is_open)
    assert bench.counters.errors == {"busy": 1}
    assert len(caplog.records) == 2  # one line a change, not one an attempt


def test_a_real_port_is_claimed_and_keeps_its_reset_line_up(
    virtual_port: VirtualPort, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TIOCEXCL keeps out those who ask for no lock; without HUPCL a close does not reset a board that hangs on DTR."""
    asked: list[int] = []
    real = fcntl.ioctl

    def ioctl(fd: int, request: int, *arguments: Any) -> Any:
        asked.append(request)
        if request in {termios.TIOCEXCL, termios.TIOCNXCL}:
            return 0  # the pseudo-terminal stays free for the other tests
        return real(fd, request, *arguments)

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    monkeypatch.setattr(port_module, "_PSEUDO_TERMINALS", ())
    before = termios.tcgetattr(virtual_port._slave)
    before[2] |= termios.HUPCL
    termios.tcsetattr(virtual_port._slave, termios.TCSANOW, before)
    fd = port_module.open_port(table(SerialSourceTable, name="imu", port=str(virtual_port.path)))
    try:
        assert termios.TIOCEXCL in asked
        assert not termios.tcgetattr(fd)[2] & termios.HUPCL
        assert termios.TIOCNXCL not in asked
    finally:
        port_module.close_port(fd)
    assert asked[-1] == termios.TIOCNXCL


def test_a_port_that_cannot_be_claimed_leaves_no_descriptor(
    virtual_port: VirtualPort, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The source tries again every few seconds, for years."""

    def refuse(fd: int) -> None:
        assert os.fstat(fd)
        raise OSError(errno.EIO, "no")

    monkeypatch.setattr(port_module, "_claim", refuse)
    before = sum(1 for _ in Path("/proc/self/fd").iterdir())
    for _ in range(3):
        with pytest.raises(port_module.PortError):
            port_module.open_port(table(SerialSourceTable, name="imu", port=str(virtual_port.path)))
    assert sum(1 for _ in Path("/proc/self/fd").iterdir()) == before


def test_two_sources_on_one_port_do_not_share_it(bench: Bench) -> None:
    """The second of two daemons on one port never gets it while the first lives."""
    bench.started()
    second = bench.source()
    second.start()
    assert not second.is_open
    assert "another process holds the port" in second.state


@pytest.mark.parametrize(("kind", "text"), [("file", "cannot be opened as a serial port"), ("folder", "cannot be")])
def test_a_path_that_is_no_port_is_said_so(bench: Bench, kind: str, text: str) -> None:
    """A file or a folder is no port; the source says so and goes on trying, in case it becomes one."""
    if kind == "file":
        bench.port.path.write_text("x")
    else:
        bench.port.path.mkdir()
    before = open_fds()
    source = bench.source()
    source.start()
    bench.run_until(lambda: bench.loop.progress > 20)
    assert text in source.state
    assert bench.counters.errors == {"open_failed": 1}
    assert open_fds() == before


@pytest.mark.parametrize(
    ("fault", "reason", "text"),
    [
        (OSError(errno.ENXIO, "No such device or address"), "absent", "no such port: waiting until it is plugged in"),
        (
            OSError(errno.EACCES, "Permission denied"),
            "not_permitted",
            "add the user of this service to the port's group",
        ),
        (OSError(errno.EBUSY, "DeviceTable or resource busy"), "busy", "another process holds the port"),
        (OSError(errno.EIO, "Input/output error"), "open_failed", "cannot be opened as a serial port"),
        (termios.error(errno.EINVAL, "Invalid argument"), "open_failed", "cannot be opened as a serial port"),
        (ValueError("Invalid baud rate"), "open_failed", "Invalid baud rate"),
    ],
)
@pytest.mark.parametrize("call", ["open", "tcsetattr"])
def test_every_reason_not_to_open_has_its_word_and_its_sentence(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, call: str, fault: Exception, reason: str, text: str
) -> None:
    """Whatever keeps a port shut is counted by reason and reported with what to do; no descriptor is left behind."""

    def refuse(*_: Any) -> int:
        raise fault

    bench.port.plug()
    source = bench.source()
    before = open_fds()
    with monkeypatch.context() as patch:
        patch.setattr(os if call == "open" else termios, call, refuse)
        source.start()
        after = len(bench.states)
    assert text in source.state
    assert bench.counters.errors == {reason: 1}
    assert after == 1
    assert open_fds() == before
    bench.run_until(lambda: source.is_open)


def test_a_silent_sensor_is_reported_once_and_again_when_it_speaks(bench: Bench) -> None:
    """An open port that brings no good reading for `silent_after` seconds is reported to be silent, until it speaks."""
    source = bench.started(silent_after=0.05)
    bench.port.write(b"1,2\n")
    bench.run_until(lambda: len(bench) == 1)
    bench.run_until(lambda: "no reading for 0.05 s" in source.state)
    bench.port.write(b"noise\n")
    bench.run_until(lambda: bench.counters.rejected["malformed"] == 1)
    since = bench.loop.progress
    bench.run_until(lambda: bench.loop.progress > since + 5)
    assert source.is_open
    assert bench.counters.errors == {"silent": 1}
    bench.port.write(b"3,4\n")
    bench.run_until(lambda: len(bench) == 2)
    assert source.state == f"{bench.port.path}: open"
    assert [is_open for is_open, _ in bench.states] == [True, True, True]
    bench.run_until(lambda: bench.counters.errors["silent"] == 2)


def test_a_port_that_is_gone_is_not_silent_as_well(bench: Bench) -> None:
    """Silence is of open ports; one that is unplugged is just that."""
    source = bench.started(silent_after=0.02)
    bench.port.unplug()
    bench.run_until(lambda: not source.is_open and bench.counters.errors["absent"])
    since = bench.loop.progress
    bench.run_until(lambda: bench.loop.progress > since + 20)
    assert "no such port" in source.state
    assert bench.counters.errors["silent"] == 0
    assert source._silence._timer is None


def test_stopping_gives_the_port_back_at_once(bench: Bench) -> None:
    """After `stop` the port is free, the descriptor is closed, and nothing opens it again."""
    bench.port.plug()
    before = open_fds()
    source = bench.source()
    source.start()
    assert open_fds() == before + 1
    source.stop()
    assert open_fds() == before
    assert (source.is_open, source.state) == (False, f"{bench.port.path}: stopped")
    bench.loop.run_once(0.02)
    bench.loop.run_once(0.02)
    assert not source.is_open


def test_a_sink_may_stop_the_source(bench: Bench) -> None:
    """A source that is stopped while it delivers closes its port and is quiet."""
    source = bench.started()
    source._intake._sink = lambda _: source.stop()
    bench.port.write(b"1,2\n")
    bench.run_until(lambda: not source.is_open)
    assert source._fd is None


def replug(bench: Bench, cycles: int) -> set[int]:
    """Unplug and plug in again, read a line each time, and count the descriptors at the end of each cycle."""
    gc.collect()  # what an earlier test of this process has left is not closed in between
    source = bench.started()
    counts = set()
    for cycle in range(cycles):
        bench.port.unplug()
        bench.run_until(lambda: not source.is_open)
        bench.port.plug()
        bench.run_until(lambda: source.is_open)
        bench.port.write(b"\n%d,1\n" % cycle)
        bench.run_until(lambda cycle=cycle: len(bench) == cycle + 1)  # type: ignore[misc]
        counts.add(open_fds())
    assert [int(row[0]) for row in bench.rows] == list(range(cycles))
    assert bench.counters.errors["disconnected"] == cycles
    return counts


def test_replugging_leaves_no_descriptor_behind(bench: Bench) -> None:
    """After fifty replugs, each with a line read, there are as many descriptors as after one."""
    assert len(replug(bench, 50)) == 1


@pytest.mark.slow
def test_a_thousand_replugs_leave_no_descriptor_behind(bench: Bench) -> None:
    """A thousand replugs lose no line that was sent while the port was there, and no descriptor."""
    assert len(replug(bench, 1000)) == 1


def test_pauses_between_attempts_grow_with_jitter_up_to_the_limit(tmp_path: Path) -> None:
    """Attempts begin half a second apart at most and grow to `reopen_max`, never beyond it."""
    pauses: list[float] = []

    class Clock(Loop):
        def call_later(self, delay: float, callback: Callable[[], object]) -> Any:
            pauses.append(delay)
            return super().call_later(delay, callback)

    loop, config = Clock(), table(SerialSourceTable, name="imu", port=str(tmp_path / "none"), reopen_max=5.0)
    source = SerialSource(config, CHANNELS, None, loop, sink=lambda _: None, counters=Counters(), rng=random.Random(1))
    for _ in range(10):
        source._open()
    loop.close()
    assert 0.25 <= pauses[0] <= 0.5
    assert all(pause <= 5.0 for pause in pauses)
    assert max(pauses) > 2.5
    assert len(set(pauses)) == 10


def test_a_sender_of_bare_carriage_returns_is_counted_and_named(bench: Bench) -> None:
    """Its lines are no frames by default; that is a rejection with a remedy, and not silence."""
    bench.port.plug()
    source = bench.source()
    source.start()
    bench.port.write(b"".join(b"21.%d,48\r" % number for number in range(10)))
    bench.run_until(lambda: bench.counters.rejected["wrong_line_end"] >= 10)
    assert 'set line_end = "cr" or "any"' in bench.counters.last_rejected["wrong_line_end"]["why"]
    assert len(bench) == 0


@pytest.mark.parametrize("line_end", ["cr", "any"])
def test_lines_that_end_with_a_carriage_return_are_read_where_that_is_set(bench: Bench, line_end: str) -> None:
    """With `line_end` a sender of bare carriage returns is a sender like any other."""
    bench.port.plug()
    bench.source(line_end=line_end).start()
    bench.port.write(b"half\r1,2\r3,4\r")
    bench.run_until(lambda: len(bench) == 2)
    assert bench.rows == [[1.0, 2.0], [3.0, 4.0]]
    assert not bench.counters.rejected


def test_a_byte_order_mark_is_no_part_of_a_reading(bench: Bench) -> None:
    """Some programs write one in front of what they send, also in the middle of a stream."""
    bench.started()
    bench.port.write(b"\xef\xbb\xbf1,2\n3,4\n")
    bench.run_until(lambda: len(bench) == 2)
    assert not bench.counters.rejected


def test_columns_may_stand_apart_by_any_blanks_and_tabs(bench: Bench) -> None:
    """With `delimiter = "space"` a run of blanks and tabs is one border, and none at the ends of a line."""
    bench.started(delimiter="space")
    bench.port.write(b"  1   2\n3\t \t4  \n5 6 7\n")
    bench.run_until(lambda: len(bench) == 2 and bench.counters.rejected["malformed"] == 1)
    assert bench.rows == [[1.0, 2.0], [3.0, 4.0]]


def test_a_sensor_is_woken_at_each_opening_and_asked_again_and_again(bench: Bench) -> None:
    """`on_open` is sent once for each opening, `poll` at its interval; the answers are readings."""
    bench.port.plug()
    source = bench.source(on_open="START\r\n", poll="?", poll_interval=0.01)
    source.start()
    sent = bytearray()

    def asked() -> bool:
        sent.extend(bench.port.take())
        return sent.count(b"?") >= 3

    bench.run_until(asked)
    assert sent.startswith(b"START\r\n?")
    bench.port.write(b"\n1,2\n")
    bench.run_until(lambda: len(bench) == 1)
    source.stop()
    assert sent.count(b"START") == 1


def test_the_lines_of_a_port_are_set_before_it_is_opened(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A board that restarts when DTR changes is left alone with `dtr = false`; without the key nothing changes."""
    import serial  # noqa: PLC0415

    states: list[tuple[bool, bool]] = []
    opened = serial.Serial.open

    def spy(port: Any) -> None:
        states.append((port.dtr, port.rts))
        opened(port)

    monkeypatch.setattr(serial.Serial, "open", spy)
    bench.port.plug()
    settings: list[dict[str, Any]] = [{}, {"dtr": False}, {"dtr": False, "rts": False}]
    for keys in settings:
        source = bench.source(**keys)
        source.start()
        source.stop()
    assert states == [(True, True), (False, True), (False, False)]
