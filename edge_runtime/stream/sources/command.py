"""A program of the user whose standard output is frames: started, supervised, and ended with its children.

Guarantee: the program is started without a shell, in its own session, with only PATH, HOME and LANG; when it ends, or
cannot be started, it is restarted after a pause that doubles up to `restart_max`; its stderr is logged, at most 20
lines in 10 s; a stop ends its whole process group. While a later stage is full its pipe is not read, so that further
output waits in the pipe. Weak points: output is lost during a restart; a child that leaves the process group is ended
only by the service's unit.
"""

import contextlib
import fcntl
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from edge_runtime.config.rules import Finding, rule
from edge_runtime.config.tables import MAX_PACKET_BYTES, Bytes, SomeSeconds, Text, tag_of
from edge_runtime.stream.byte_framing import FixedFramer, LengthFramer
from edge_runtime.stream.codecs import CodecTable
from edge_runtime.stream.codecs.json_codec import JsonTable
from edge_runtime.stream.framing import Framer, LineEnd, make_framer
from edge_runtime.stream.rejections import shortened
from edge_runtime.stream.sources.frame_intake import FrameIntake
from edge_runtime.stream.sources.kind import FramedSourceTable, Wiring
from edge_runtime.stream.sources.silence import SilenceWatch
from edge_runtime.system import log
from edge_runtime.system.child import start_command
from edge_runtime.system.loop import Timer

_READ_BYTES = 65_536  # a pipe's usual size, pipe(7)
_PIPE_BYTES = 1_048_576  # /proc/sys/fs/pipe-max-size as shipped
_MOST_READS = 4
_FIRST_PAUSE = 0.5
_RAN_WELL_S = 10.0  # a program that ran this long is restarted after the first pause
_PAUSED_POLL_S = 0.05
_TO_END_S = 0.5  # between SIGTERM and SIGKILL
_LOG_LINES, _LOG_SPAN_S = 20, 10.0
_MOST_LINE = 500

_logger = log.get_logger("command")


class CommandSourceTable(FramedSourceTable, frozen=True, kw_only=True, tag="command"):
    """`[[source]]` with `type = "command"`: a program that writes frames to its standard output.

    Attributes:
        argv: The program and its arguments, one item each: `["arecord", "-t", "raw"]`. No shell is used.
        framing: The end of a frame: a line end (`lines`), a size of `frame_bytes` (`fixed`), the length before the
            frame (`length`), or the zero byte of COBS; `auto` is `lines` for text and `fixed` for bytes.
        frame_bytes (B): The size of a frame with `framing = "fixed"`. A `raw` frame may hold many readings one after
            another.
        length_bytes (B): The width of the length before a frame, high byte first.
        checksum: As of a serial port.
        line_end: As of a serial port.
        max_frame_bytes (B): A longer frame is skipped and counted as `too_long`.
        restart_max (s): The longest pause before a program that has ended is restarted.
    """

    own_keys: ClassVar[tuple[str, ...]] = ()
    many_readings: ClassVar[bool] = True

    codec: CodecTable = JsonTable()
    argv: tuple[Text, ...]
    framing: Literal["auto", "lines", "fixed", "length", "cobs"] = "auto"
    frame_bytes: Bytes | None = None
    length_bytes: Literal[1, 2, 4] = 4
    checksum: Literal["crc16", "none"] = "none"
    line_end: LineEnd = "lf"
    max_frame_bytes: Annotated[int, Meta(ge=16, le=MAX_PACKET_BYTES)] = 1_048_576
    restart_max: SomeSeconds = 30.0

    @property
    def frame_end(self) -> str:
        """The framing in use."""
        return self.framing if self.framing != "auto" else "lines" if self.codec.is_text else "fixed"

    def describe(self) -> str:
        """The program, for the log."""
        return f"command {self.argv[0]}, {self.frame_end}, {tag_of(self.codec)}"

    def make(self, wiring: Wiring) -> "CommandSource":
        """Make the source; it is not started yet."""
        return CommandSource(self, wiring)


@rule(CommandSourceTable, keys=("argv",))
def _a_program(source: CommandSourceTable) -> Iterator[Finding]:
    if not source.argv:
        yield "argv", "expected a program and its arguments, found an array of 0"


@rule(CommandSourceTable, keys=("framing", "frame_bytes", "format"))
def _size_of_a_frame(source: CommandSourceTable) -> Iterator[Finding]:
    if source.frame_end == "fixed" and source.frame_bytes is None:
        yield "frame_bytes", 'expected the size of a frame, because framing = "fixed", but the key is missing'
    if source.frame_end != "fixed" and source.frame_bytes is not None:
        yield "frame_bytes", f'expected it only with framing = "fixed", found "{source.frame_end}": take it out'
    if source.framing == "lines" and not source.codec.is_text:
        yield "framing", f'expected "fixed", "length" or "cobs", found "lines": "{tag_of(source.codec)}" is no text'


class CommandSource:
    """One `[[source]]` of type `command`.

    Attributes:
        is_open: whether the program runs.
        state: one line for people.
    """

    def __init__(self, config: CommandSourceTable, wiring: Wiring) -> None:
        self.is_open = False
        self.state = f"{config.argv[0]}: not started"
        self._config = config
        self._wiring = wiring
        self._loop = wiring.loop
        self._counters = wiring.counters
        self._framer = _framer(config, wiring)
        self._process: subprocess.Popen[bytes] | None = None
        self._timer: Timer | None = None
        self._pause = min(_FIRST_PAUSE, config.restart_max)
        self._started = 0.0
        self._fault = ""
        self._log = _ErrorLines(config.name)
        self._silence = SilenceWatch(
            self._loop,
            config.silent_after,
            wiring.counters,
            source=config.name,
            where=config.argv[0],
            remedy="look at the program, and at framing and format",
            changed=self._silence_changed,
        )
        self._intake = FrameIntake(
            config,
            config.argv[0],
            config.decoder_for(wiring),
            counters=wiring.counters,
            silence=self._silence,
            sink=wiring.sink,
            logger=_logger,
        )

    def start(self) -> None:
        """Start the program."""
        self._timer = None
        try:
            process = start_command(self._config.argv)
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or str(error)
            self._report("not_started", f"{self._config.argv[0]}: cannot be started ({why}): look at argv")
            self._again()
            return
        self._process = process
        self._started = time.monotonic()
        self._framer.reset()
        if hasattr(self._framer, "begin"):
            self._framer.begin()
        self._wiring.interrupted()
        assert process.stdout is not None
        assert process.stderr is not None
        with contextlib.suppress(OSError):  # the default pipe size works too, with less room for a burst
            fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        for pipe in (process.stdout, process.stderr):
            os.set_blocking(pipe.fileno(), False)
        self._loop.add_reader(process.stdout.fileno(), self._read)
        self._loop.add_reader(process.stderr.fileno(), self._read_errors)
        self._silence.start()
        _logger.info("command started", extra=log.fields(source=self._config.name, command=self._config.argv[0]))
        self._show(f"{self._config.argv[0]}: running", is_open=True)

    def stop(self) -> None:
        """End the program and its children without a restart."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._end()
        self._show(f"{self._config.argv[0]}: stopped", is_open=False)

    def _read(self) -> None:
        process = self._process
        if process is None or process.stdout is None:
            return
        if self._wiring.paused():
            self._loop.remove_reader(process.stdout.fileno())
            self._timer = self._loop.call_later(_PAUSED_POLL_S, self._resume)
            return
        arrived, now = time.perf_counter(), time.time()
        frames: list[bytes] = []
        ended = False
        for _ in range(_MOST_READS):
            try:
                chunk = os.read(process.stdout.fileno(), _READ_BYTES)
            except BlockingIOError:
                break
            if not chunk:
                ended = True
                break
            self._counters.counts["bytes"] += len(chunk)
            frames += self._framer.feed(chunk)
            if len(chunk) < _READ_BYTES:
                break
        self._intake.report_framing()
        if frames:
            self._intake.deliver(frames, arrived, now)
        if ended or getattr(self._framer, "is_lost", False):
            self._ended()

    def _resume(self) -> None:
        self._timer = None
        if self._process is not None and self._process.stdout is not None:
            self._loop.add_reader(self._process.stdout.fileno(), self._read)

    def _read_errors(self) -> None:
        process = self._process
        if process is None or process.stderr is None:
            return
        try:
            chunk = os.read(process.stderr.fileno(), _READ_BYTES)
        except BlockingIOError:
            return
        if not chunk:
            self._loop.remove_reader(process.stderr.fileno())
        self._log.take(chunk)

    def _ended(self) -> None:
        code = self._end()
        if time.monotonic() - self._started >= _RAN_WELL_S:
            self._pause = min(_FIRST_PAUSE, self._config.restart_max)
        self._fault = ""
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        self._report("ended", f"{self._config.argv[0]}: ended with {how}: started again in {self._pause:g} s")
        self._again()

    def _end(self) -> int:
        """Close the pipes, end the process group, and return the exit code."""
        process, self._process = self._process, None
        if process is None:
            return 0
        self._silence.stop()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for pipe in (process.stdout, process.stderr):
            assert pipe is not None
            self._loop.remove_reader(pipe.fileno())
        if process.stderr is not None:
            with contextlib.suppress(BlockingIOError):
                self._log.take(os.read(process.stderr.fileno(), _READ_BYTES), last=True)
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
        code = _wait(process, _TO_END_S / 5)
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, PermissionError):  # the group has ended
                os.killpg(process.pid, number)
            code = code if code is not None else _wait(process, _TO_END_S)
        return code if code is not None else -int(signal.SIGKILL)

    def _again(self) -> None:
        self._timer = self._loop.call_later(self._pause * random.uniform(0.5, 1.0), self.start)  # noqa: S311 - jitter
        self._pause = min(self._pause * 2, self._config.restart_max)

    def _report(self, reason: str, text: str) -> None:
        """Count, log and show a fault when it begins."""
        self._show(text, is_open=False)
        self._counters.errors[reason] += 1
        if reason != self._fault:
            self._fault = reason
            _logger.warning(text, extra=log.fields(source=self._config.name))

    def _silence_changed(self) -> None:
        text = self._silence.text if self._silence.is_silent else f"{self._config.argv[0]}: running"
        self._show(text, is_open=True)

    def _show(self, state: str, *, is_open: bool) -> None:
        self.state, self.is_open = state, is_open
        self._wiring.on_state()


class _ErrorLines:
    """Writes the stderr of a program to the log, with a bounded number of lines."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._tail = b""
        self._since = 0.0
        self._count = 0

    def take(self, chunk: bytes, *, last: bool = False) -> None:
        """Log the lines that a chunk completes; the last chunk is logged completely."""
        *lines, self._tail = (self._tail + chunk).split(b"\n")
        if last or len(self._tail) > _MOST_LINE:
            lines, self._tail = [*lines, self._tail], b""
        for line in lines:
            if line.strip():
                self._write(line)

    def _write(self, line: bytes) -> None:
        now = time.monotonic()
        if now - self._since >= _LOG_SPAN_S:
            if self._count > _LOG_LINES:
                left = self._count - _LOG_LINES
                _logger.warning("stderr: %s lines left out", left, extra=log.fields(source=self._source))
            self._since, self._count = now, 0
        self._count += 1
        if self._count <= _LOG_LINES:
            _logger.info("stderr: %s", shortened(line[:_MOST_LINE]), extra=log.fields(source=self._source))


def _framer(config: CommandSourceTable, wiring: Wiring) -> Framer:
    match config.frame_end:
        case "fixed":
            return FixedFramer(config.frame_bytes or 1)
        case "length":
            return LengthFramer(config.length_bytes, config.max_frame_bytes, wiring.counters)
        case _:
            return make_framer(
                "lines" if config.frame_end == "lines" else "cobs",
                config.max_frame_bytes,
                wiring.counters,
                checksum=config.checksum == "crc16",
                line_end=config.line_end,
            )


def _wait(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
