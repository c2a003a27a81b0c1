"""A serial port that streams frames: reads the available bytes, frames and decodes them; one batch per wake-up.

Guarantee: a port that is absent, unplugged, busy or broken never ends the process: it is closed, counted, and reopened
under the same path, which is looked up each time, at most `reopen_max` seconds after it has returned. While no reading
can complete a window the port is not read, for at most `max_rest` seconds and never so long that the kernel's buffer
could fill at the port's speed; the arrival time of a reading is the moment when it is read. The work of one wake-up is
bounded, so that a device that sends too much cannot starve the other sources. Weak points: a serial reading cannot be
requested again (it has no receipt), and the first frame after each opening is dropped, since its beginning may be lost.
"""

import math
import os
import random
import termios
import time
from collections.abc import Callable, Iterator
from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from edge_runtime.config.rules import Finding, rule
from edge_runtime.config.tables import MAX_PACKET_BYTES, SomeSeconds, Text, tag_of
from edge_runtime.readings import Batch
from edge_runtime.stream.codecs import NO_CATEGORIES, NO_UNITS, Categories, CodecTable, Decoder, Units
from edge_runtime.stream.codecs.csv_codec import CsvTable
from edge_runtime.stream.framing import LineEnd, make_framer
from edge_runtime.stream.sources.frame_intake import FrameIntake
from edge_runtime.stream.sources.kind import AnySource, FramedSourceTable, Wiring
from edge_runtime.stream.sources.port import PortError, close_port, open_port
from edge_runtime.stream.sources.silence import SilenceWatch
from edge_runtime.system import log
from edge_runtime.system.counters import Counters
from edge_runtime.system.loop import Loop, Timer

_READ_BYTES = 65_536
# A terminal holds 4095 bytes for its reader (N_TTY_BUF_SIZE of the kernel). A read of half of that means that more
# bytes are waiting; sixteen reads are 64 KiB, about 10 ms of work for a flood of short CSV lines.
_FULL_READ = 2048
_MOST_READS = 16
_FIRST_PAUSE = 0.5
_BITS_A_BYTE = 10  # with start and stop bit
_LEAST_RESTING = 3  # a pause for fewer readings saves no wake-up
_REST_SHARE = 0.5  # of the time until a window may be complete: a sensor may send delayed readings faster
GAP_SHARE = 0.05  # of `max_gap`: the longest delay of arrival times with which gaps are still found correctly
_LOOP_TICK_S = 0.001  # the loop rounds timers up to the next whole millisecond

_logger = log.get_logger("serial")


class SerialSourceTable(FramedSourceTable, frozen=True, kw_only=True, tag="serial"):
    r"""`[[source]]` with `type = "serial"`: a port that streams frames.

    Attributes:
        port: The device node. `/dev/serial/by-id/...` stays the same in every USB socket. The daemon waits for a port
            that is absent.
        baudrate (bit/s): The speed of the line.
        bytesize (bit): Data bits of a character.
        parity: The parity bit.
        stopbits: Stop bits after a character.
        flow_control: How the receiver pauses the sender.
        framing: The end of a frame: a line end, or the zero byte of COBS; `auto` is `lines` for text (`csv`, `json`)
            and `cobs` for bytes (`msgpack`, `raw`).
        checksum: The checksum at the end of a COBS frame: a CRC-16 (CCITT-FALSE, high byte first), or none.
        line_end: The end of a line: a line feed (with or without a carriage return before it), a carriage return, or
            either of them.
        dtr: The state of the line DTR after opening; left out, it is set, the default of the operating system. Many
            boards restart when it changes.
        rts: The same for the line RTS.
        on_open: The text that is sent after each opening of the port, such as `"START\r\n"`.
        poll: The text that is sent at each `poll_interval` to a sensor that answers only on request, such as `"?\r\n"`.
        poll_interval (s): How often `poll` is sent.
        max_frame_bytes (B): A longer line is skipped and counted as `too_long`.
        reopen_max (s): The longest pause before an absent port is tried again.
        max_rest (s): How long readings that cannot complete a window yet may wait to be read together, which saves most
            of the wake-ups of a fast sensor; the reading that completes a window does not wait. The arrival time of a
            waiting reading is delayed by up to this time. 0 reads each at once.
    """

    own_keys: ClassVar[tuple[str, ...]] = ("port",)

    codec: CodecTable = CsvTable()
    port: Text
    baudrate: Annotated[int, Meta(ge=50, le=12_000_000)] = 115200
    bytesize: Literal[5, 6, 7, 8] = 8
    parity: Literal["none", "even", "odd", "mark", "space"] = "none"
    stopbits: Literal[1, 2] = 1
    flow_control: Literal["none", "rtscts", "xonxoff"] = "none"
    framing: Literal["auto", "lines", "cobs"] = "auto"
    checksum: Literal["crc16", "none"] = "crc16"
    line_end: LineEnd = "lf"
    dtr: bool | None = None
    rts: bool | None = None
    on_open: Text | None = None
    poll: Text | None = None
    poll_interval: SomeSeconds = 1.0
    max_frame_bytes: Annotated[int, Meta(ge=16, le=MAX_PACKET_BYTES)] = 4096
    reopen_max: SomeSeconds = 5.0
    max_rest: Annotated[float, Meta(ge=0, le=1)] = 0.02

    def describe(self) -> str:
        """The port and its speed."""
        return f"serial {self.port}, {self.baudrate} baud, {tag_of(self.codec)}"

    def make(self, wiring: Wiring) -> "SerialSource":
        """Make the source; if arrival times are used to find gaps, readings wait only for a small share of a gap."""
        rests = [self.max_rest] + ([] if wiring.max_gap is None else [GAP_SHARE * wiring.max_gap])
        return SerialSource(
            self,
            wiring.channels,
            wiring.shape,
            wiring.loop,
            sink=wiring.sink,
            counters=wiring.counters,
            on_state=wiring.on_state,
            needed=wiring.needed,
            max_rest=min(rests),
            is_clock_set=wiring.is_clock_set,
            categories=wiring.categories,
            units=wiring.units,
            interrupted=wiring.interrupted,
        )

    def rewire(self, source: AnySource, wiring: Wiring) -> bool:
        """Change the decoder for other channels and the rest for other gaps; the port stays open."""
        assert isinstance(source, SerialSource)
        rests = [self.max_rest] + ([] if wiring.max_gap is None else [GAP_SHARE * wiring.max_gap])
        source.decode_with(
            self.decoder_for(wiring),
            max_rest=min(rests),
        )
        return True


@rule(SerialSourceTable, keys=("format", "framing", "line_end"))
def _line_ends(source: SerialSourceTable) -> Iterator[Finding]:
    lines = source.framing == "lines" or (source.framing == "auto" and source.codec.is_text)
    if source.line_end != "lf" and not lines:
        yield "line_end", f'expected it only where frames are lines, found "{source.line_end}": take it out'


@rule(SerialSourceTable, keys=("flow_control", "rts"))
def _who_holds_rts(source: SerialSourceTable) -> Iterator[Finding]:
    if source.rts is not None and source.flow_control == "rtscts":
        yield "rts", 'expected no fixed state with flow_control = "rtscts", which moves that line itself: take it out'


@rule(SerialSourceTable, keys=("format", "framing"))
def _frame_ends(source: SerialSourceTable) -> Iterator[Finding]:
    if source.framing == "lines" and not source.codec.is_text:
        yield (
            "framing",
            f'expected "cobs", found "lines": format = "{tag_of(source.codec)}" has line ends among its bytes',
        )


class SerialSource:
    """One `[[source]]` of type `serial`.

    Attributes:
        is_open: whether the port is open now.
        state: the state of the port, one line for people.
        on_state: called when either changes.
    """

    def __init__(
        self,
        config: SerialSourceTable,
        channels: tuple[str, ...],
        shape: tuple[int, ...] | None,
        loop: Loop,
        *,
        sink: Callable[[Batch], None],
        counters: Counters,
        on_state: Callable[[], None] | None = None,
        needed: Callable[[], int] = lambda: 1,
        max_rest: float = 0.0,
        is_clock_set: Callable[[], bool] = lambda: True,
        categories: Categories = NO_CATEGORIES,
        units: Units = NO_UNITS,
        interrupted: Callable[[], None] = lambda: None,
        rng: random.Random | None = None,
    ) -> None:
        self.is_open = False
        self.state = f"{config.port}: not started"
        self.on_state = on_state
        self._config = config
        self._loop = loop
        self._counters = counters
        self._rng = rng or random.Random()  # noqa: S311 - jitter
        framing = config.framing
        if framing == "auto":
            framing = "lines" if config.codec.is_text else "cobs"
        checksum = config.checksum == "crc16"
        self._framer = make_framer(
            framing, config.max_frame_bytes, counters, checksum=checksum, line_end=config.line_end
        )
        self._needed = needed
        self._max_rest = self._bounded(max_rest)
        self._interrupted = interrupted
        self._rest: Timer | None = None
        self._read_at = 0.0
        self._interval = math.inf  # seconds from one reading to the next, lately
        self._fd: int | None = None
        self._reopen: Timer | None = None
        self._poll: Timer | None = None
        self._silence = SilenceWatch(
            loop,
            config.silent_after,
            counters,
            source=config.name,
            where=config.port,
            remedy="look at the sensor, its cable and its speed",
            changed=self._silence_changed,
        )
        self._intake = FrameIntake(
            config,
            config.port,
            config.decoder(channels, shape, is_clock_set=is_clock_set, categories=categories, units=units),
            counters=counters,
            silence=self._silence,
            sink=sink,
            logger=_logger,
        )
        self._first_pause = min(_FIRST_PAUSE, config.reopen_max)
        self._pause = self._first_pause
        self._fault = ""

    def start(self) -> None:
        """Open the port, or start waiting for it."""
        self._open()

    def decode_with(self, decoder: Decoder, *, max_rest: float) -> None:
        """Use another decoder from now on; a partly read frame is kept."""
        self._intake.decoder = decoder
        self._max_rest = self._bounded(max_rest)

    def _bounded(self, max_rest: float) -> float:
        """Shorten a rest during which the kernel's buffer could fill at the port's speed."""
        return min(max_rest, _FULL_READ * _BITS_A_BYTE / self._config.baudrate)

    def stop(self) -> None:
        """Close the port for good."""
        if self._reopen is not None:
            self._reopen.cancel()
            self._reopen = None
        self._close()
        self._show(f"{self._config.port}: stopped", is_open=False)

    def _open(self) -> None:
        self._reopen = None
        try:
            fd = open_port(self._config)
        except PortError as error:
            self._report(error.reason, str(error))
            self._wait()
            return
        self._fd = fd
        self._fault = ""
        self._framer.reset()
        self._interrupted()  # readings sent while the port was closed are lost
        self._loop.add_reader(fd, self._read)
        self._silence.start()
        _logger.info("port open", extra=log.fields(source=self._config.name, port=self._config.port))
        self._show(f"{self._config.port}: open", is_open=True)
        if self._config.on_open is not None:
            self._send(self._config.on_open)
        if self._config.poll is not None:
            self._ask()

    def _ask(self) -> None:
        """Send `poll`, and again after its interval, as long as the port is open."""
        if self._fd is not None and self._config.poll is not None:
            self._poll = self._loop.call_later(self._config.poll_interval, self._ask)
            self._send(self._config.poll)

    def _send(self, text: str) -> None:
        """Write to the device without waiting: bytes that it does not take at once are lost, and counted."""
        assert self._fd is not None
        data = text.encode()
        try:
            written = os.write(self._fd, data)
        except BlockingIOError:
            written = 0
        except (OSError, termios.error) as error:
            self._lose(str(error))
            return
        if written < len(data):
            self._counters.errors["not_sent"] += 1
            text = f"{self._config.port}: the device takes no bytes: look at flow_control and its cable"
            _logger.warning(text, extra=log.fields(source=self._config.name, sent=written, of=len(data)))

    def _read(self) -> None:
        fd = self._fd
        if fd is None:
            return
        arrived, now = time.perf_counter(), time.time()
        frames: list[bytes] = []
        lost = ""
        for _ in range(_MOST_READS):
            try:
                chunk = os.read(fd, _READ_BYTES)
            except BlockingIOError:
                break
            except (OSError, termios.error) as error:
                lost = str(error)
                break
            if not chunk:
                lost = "hang-up"
                break
            self._counters.counts["bytes"] += len(chunk)
            frames += self._framer.feed(chunk)
            if len(chunk) < _FULL_READ:
                break
        self._intake.report_framing()
        if frames:
            self._pause = self._first_pause  # only data proves that a port works; some open and hang up again
            self._intake.deliver(frames, arrived, now)
        if lost:
            self._lose(lost)
        elif self._max_rest:
            self._rest_or_listen(len(frames), arrived)

    def _rest_or_listen(self, readings: int, now: float) -> None:
        """Stop reading until shortly before a window may be complete; otherwise wake up at the next byte."""
        fd = self._fd
        if fd is None:  # the sink has stopped us
            return
        was_resting, self._rest = self._rest is not None, None
        rest = 0.0
        if readings:
            self._interval, self._read_at = (now - self._read_at) / readings, now
            ahead = self._needed() - 1
            if ahead >= _LEAST_RESTING:
                rest = min(self._max_rest, _REST_SHARE * ahead * self._interval - _LOOP_TICK_S)
        if rest >= _LEAST_RESTING * self._interval and rest > 0.0:
            if not was_resting:
                self._loop.remove_reader(fd)
            self._rest = self._loop.call_later(rest, self._read)
        elif was_resting:
            self._loop.add_reader(fd, self._read)

    def _silence_changed(self) -> None:
        self._show(self._silence.text if self._silence.is_silent else f"{self._config.port}: open", is_open=True)

    def _lose(self, why: str) -> None:
        if self._fd is None:  # the sink has stopped us
            return
        self._close()
        self._report("disconnected", f"{self._config.port}: lost ({why}): waiting until it is back")
        self._wait()

    def _close(self) -> None:
        if self._rest is not None:
            self._rest.cancel()
            self._rest = None
        if self._fd is not None:
            self._loop.remove_reader(self._fd)
            self._silence.stop()
            if self._poll is not None:
                self._poll.cancel()
                self._poll = None
            close_port(self._fd)
            self._fd = None

    def _wait(self) -> None:
        self._reopen = self._loop.call_later(self._pause * self._rng.uniform(0.5, 1.0), self._open)
        self._pause = min(self._pause * 2, self._config.reopen_max)

    def _report(self, reason: str, text: str, *, is_open: bool = False) -> None:
        """Count, log and show a fault when it begins, but not at each attempt that fails again."""
        if reason == self._fault:
            return
        self._fault = reason
        self._counters.errors[reason] += 1
        _logger.warning(text, extra=log.fields(source=self._config.name))
        self._show(text, is_open=is_open)

    def _show(self, state: str, *, is_open: bool) -> None:
        self.state, self.is_open = state, is_open
        if self.on_state is not None:
            self.on_state()
