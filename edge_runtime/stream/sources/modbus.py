"""Registers of Modbus devices, polled over a serial line (RTU) or TCP: a reading for each unit at each interval.

All requests run in one thread, one after the other, as a Modbus line requires. Guarantee: a unit that does not answer
delays the others by one `timeout` at each attempt; the pause between its attempts grows from a first one up to
`retry_max`, and units that answer are polled first. A register that does not exist is a missing channel, logged once,
and is retried with the same pauses. Weak points: a reading combines several requests if its registers are not adjacent;
a unit that returns continues the windows of its key, unless `max_gap` of the model ends them.
"""

import random
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import msgspec
import numpy as np
from msgspec import Meta

from edge_runtime.config.convert import quote
from edge_runtime.config.rules import Finding, first_repeated, rule
from edge_runtime.config.tables import SomeSeconds, Text
from edge_runtime.errors import ConfigError
from edge_runtime.readings import Batch
from edge_runtime.stream.codecs import NO_CATEGORIES, NO_UNITS, Categories, Units
from edge_runtime.stream.origin import RejectedError
from edge_runtime.stream.rejections import Rejections
from edge_runtime.stream.sources.kind import SourceKindTable, Wiring
from edge_runtime.stream.sources.modbus_registers import RegisterTable
from edge_runtime.stream.sources.placed_channels import check_places, to_bundle
from edge_runtime.stream.sources.silence import SilenceWatch
from edge_runtime.system import log
from edge_runtime.system.background import BackgroundThread
from edge_runtime.system.loop import Timer

if TYPE_CHECKING:
    from edge_runtime.stream.sources.modbus_link import ModbusLink
    from edge_runtime.stream.sources.modbus_unit import UnitAnswer

_URL = re.compile(r"tcp://(?P<host>\[[0-9A-Fa-f:.]+\]|[^\s/@:\[\]]+)(:(?P<port>[0-9]{1,5}))?/?")
_PORT = 502  # as registered with IANA
_UNITS_OF_A_LINE = range(1, 248)  # MODBUS over Serial Line V1.02, section 2.2
_LINE_KEYS = ("baudrate", "bytesize", "parity", "stopbits")
_FIRST_PAUSE = 0.5
_NAME_S = 240.0  # the longest time of a resolver, beside all timeouts
_MOST_SHOWN = 3

_logger = log.get_logger("modbus")


class ModbusSourceTable(SourceKindTable, frozen=True, kw_only=True, tag="modbus"):
    """`[[source]]` with `type = "modbus"`: registers of devices on a Modbus line. Needs the extra `modbus`.

    Attributes:
        port: The device node of a serial line (RTU). Either this or `url`.
        url: A device or gateway in the network, as `tcp://HOST:PORT`. The default port is 502.
        units: The numbers of the devices on the line. The number is the key of a unit's readings.
        register: The place of each channel of the model; the same in every unit.
        interval (s): How often each unit is read.
        timeout (s): The longest time to wait for an answer.
        retry_max (s): The longest pause before a unit that does not answer, a register that does not exist, or a lost
            line is retried.
        baudrate (bit/s): The speed of the serial line.
        bytesize (bit): Data bits of a character.
        parity: The parity bit.
        stopbits: Stop bits after a character.
    """

    own_keys: ClassVar[tuple[str, ...]] = ("port",)
    extra: ClassVar[str] = "modbus"

    port: Text | None = None
    url: Text | None = None
    units: tuple[Annotated[int, Meta(ge=0, le=255)], ...] = (1,)
    register: tuple[RegisterTable, ...]
    interval: SomeSeconds = 1.0
    timeout: Annotated[float, Meta(gt=0, le=60)] = 1.0
    retry_max: SomeSeconds = 60.0
    baudrate: Annotated[int, Meta(ge=50, le=12_000_000)] = 9600
    bytesize: Literal[7, 8] = 8
    parity: Literal["none", "even", "odd"] = "none"
    stopbits: Literal[1, 2] = 1

    @property
    def named_channels(self) -> tuple[str, ...]:
        """The channels with a register."""
        return tuple(each.channel for each in self.register)

    @property
    def compares_units(self) -> bool:
        """True: a register may have a unit."""
        return True

    @property
    def where(self) -> str:
        """The line, for messages."""
        return self.port or self.url or ""

    def describe(self) -> str:
        """The line and the number of units and registers, for the log."""
        return f"modbus {self.where}, {len(self.units)} units, {len(self.register)} registers every {self.interval:g} s"

    def check_channels_of(
        self,
        channels: tuple[str, ...],
        shape: tuple[int, ...] | None,
        *,
        categories: Categories = NO_CATEGORIES,
        units: Units = NO_UNITS,
    ) -> None:
        """Check that each channel has a register, in a unit that fits the bundle, and that pymodbus is installed."""
        self._check_library()
        check_places(
            channels,
            shape,
            {each.channel: each for each in self.register},
            place=f'source "{self.name}".register',
            categories=categories,
            units=units,
            remedy=lambda name: f'add a [[source.register]] with channel = "{name}"',
        )

    def _check_library(self) -> None:
        place = f'source "{self.name}".type'
        try:
            from edge_runtime.stream.sources.modbus_link import library_fault  # noqa: PLC0415 - the extra `modbus`
        except ImportError as error:
            if error.name is None or error.name.partition(".")[0] not in {"pymodbus", "serial"}:
                raise
            raise ConfigError(
                f'{place}: expected the package pymodbus for "modbus", found none: '
                'pip install "edge-inference-runtime[modbus]"'
            ) from error
        fault = library_fault()
        if fault is not None:
            raise ConfigError(f'{place}: {fault}: pip install "edge-inference-runtime[modbus]"')

    def make(self, wiring: Wiring) -> "ModbusSource":
        """Make the source; it is not started yet."""
        self._check_library()
        return ModbusSource(self, wiring)

    def link(self) -> "ModbusLink":
        """Make the line; it is not open yet."""
        from edge_runtime.stream.sources import modbus_link  # noqa: PLC0415 - the extra `modbus`

        if self.url is None:
            return modbus_link.SerialLink(self.port or "", self, timeout=self.timeout)
        host, port = parse_url(self.url)
        return modbus_link.TcpLink(host, port, where=self.url, timeout=self.timeout)


def parse_url(url: str) -> tuple[str, int]:
    """Host and port.

    Raises:
        ValueError: it is not such an address.
    """
    found = _URL.fullmatch(url)
    port = _PORT if found is None or found["port"] is None else int(found["port"])
    if found is None or not 0 < port <= 65_535:
        raise ValueError(url)
    return found["host"].strip("[]"), port


@rule(ModbusSourceTable, keys=("port", "url"))
def _one_line(source: ModbusSourceTable) -> Iterator[Finding]:
    if (source.port is None) == (source.url is None):
        found = "neither" if source.port is None else "both"
        yield "port", f'expected either port or url = "tcp://HOST:502", found {found}'
    elif source.url is not None:
        try:
            parse_url(source.url)
        except ValueError:
            yield "url", f"expected tcp://HOST or tcp://HOST:PORT, found {quote(source.url)}"


@rule(ModbusSourceTable, keys=("url", *_LINE_KEYS))
def _line_of_a_port(source: ModbusSourceTable) -> Iterator[Finding]:
    for field in msgspec.structs.fields(source) if source.url is not None and source.port is None else ():
        if field.name in _LINE_KEYS and getattr(source, field.name) != field.default:
            yield field.name, "expected it only with port, found it with url: take it out"


@rule(ModbusSourceTable, keys=("units", "port"))
def _units(source: ModbusSourceTable) -> Iterator[Finding]:
    if not source.units:
        yield "units", "expected the number of at least one unit, found an array of 0"
    twice = first_repeated(source.units)
    if twice is not None:
        yield "units", f"expected every unit once, found {twice} twice"
    for unit in source.units:
        if source.port is not None and unit not in _UNITS_OF_A_LINE:
            yield "units", f"expected 1 to 247 on a serial line, found {unit}: nothing answers to that number"


@rule(ModbusSourceTable, keys=("register",))
def _registers(source: ModbusSourceTable) -> Iterator[Finding]:
    if not source.register:
        yield "register", "expected at least one [[source.register]], found an array of 0"
    twice = first_repeated([each.channel for each in source.register])
    if twice is not None:
        yield "register", f"expected every channel once, found {quote(twice)} twice"


class _Unit:
    """The state of one unit in the event loop.

    Attributes:
        number: of the unit.
        due: when it may be polled again, monotonic seconds.
        pause: before the next attempt, after one that failed.
        faults: its faults, by the part that they concern; empty if there are none.
        answers: whether it answered at the last attempt.
    """

    def __init__(self, number: int, pause: float) -> None:
        self.number = number
        self.due = 0.0
        self.pause = pause
        self.faults: dict[str, str] = {}
        self.answers = False


class ModbusSource:
    """One `[[source]]` of type `modbus`.

    Attributes:
        is_open: whether a unit answered at its last attempt.
        state: one line for people.
    """

    def __init__(self, config: ModbusSourceTable, wiring: Wiring, *, rng: random.Random | None = None) -> None:
        from edge_runtime.stream.sources.modbus_unit import UnitReader  # noqa: PLC0415 - the extra `modbus`

        self.is_open = False
        self.state = f"{config.where}: not started"
        self._config = config
        self._wiring = wiring
        self._loop = wiring.loop
        self._counters = wiring.counters
        self._rng = rng or random.Random()  # noqa: S311 - jitter
        by_channel = {each.channel: each for each in config.register}
        registers = [by_channel[name] for name in wiring.channels]
        place = f'source "{config.name}".register'
        self._factors = [to_bundle(each, wiring.units.get(each.channel, ""), place) for each in registers]
        self._link = config.link()
        # A unit that is late is not polled for at least as long as its answer may still take.
        self._first_pause = min(max(_FIRST_PAUSE, config.timeout), config.retry_max)
        self._units = [_Unit(number, self._first_pause) for number in config.units]
        self._readers = {
            number: UnitReader(number, registers, self._link, pause=self._first_pause, most=config.retry_max)
            for number in config.units
        }
        self._most_s = _NAME_S + 2 * config.timeout * (2 * len(registers) + 2)
        self._thread = BackgroundThread("modbus", self._loop.call_soon_threadsafe, at_end=self._link.close)
        self._rejections = Rejections(config.name, wiring.counters)
        self._timer: Timer | None = None
        self._stopped = False
        self._waiting: list[_Unit] = []
        self._due = 0.0
        self._line_fault = ""
        self._line_pause = self._first_pause
        self._was_open = False
        self._silence = SilenceWatch(
            self._loop,
            config.silent_after,
            wiring.counters,
            source=config.name,
            where=config.where,
            remedy="look at the line, and at units and register",
            changed=self._show,
            can_hear=lambda: not self._line_fault,
        )

    def start(self) -> None:
        """Start."""
        self._silence.start()
        self._tick()

    def stop(self) -> None:
        """Stop; no batch is delivered after this. A request in progress ends in its thread, which closes the line."""
        if self._stopped:
            return
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
        self._silence.stop()
        self._thread.stop()
        self.state, self.is_open = f"{self._config.where}: stopped", False
        self._wiring.on_state()

    def _tick(self) -> None:
        """Poll every unit that is due; those that answered at the last attempt come first."""
        now = self._loop.time()
        self._due = now + self._config.interval
        self._waiting = sorted((unit for unit in self._units if unit.due <= now), key=lambda unit: not unit.answers)
        self._next()

    def _next(self) -> None:
        if self._stopped:
            return
        if not self._waiting:
            self._timer = self._loop.call_at(max(self._due, self._loop.time()), self._tick)
            return
        unit = self._waiting.pop(0)
        what = f"unit {unit.number} of {self._config.where}"
        reader = self._readers[unit.number]
        self._thread.submit(reader.read, lambda answer: self._take(unit, answer), what=what, most_s=self._most_s)

    def _take(self, unit: _Unit, answer: "UnitAnswer") -> None:
        if self._stopped:
            return
        if answer.line is not None:
            self._lose(answer.line.reason, str(answer.line))
            return
        if self._line_fault or not self._was_open:
            self._line_fault, self._was_open, self._line_pause = "", True, self._first_pause
            self._wiring.interrupted()
            _logger.info("line open", extra=log.fields(source=self._config.name, line=self._config.where))
        if answer.silence is not None:
            unit.answers = False
            unit.due = self._loop.time() + unit.pause * self._rng.uniform(0.5, 1.0) + 0.5 * self._first_pause
            unit.pause = min(2 * unit.pause, self._config.retry_max)
            self._counters.errors["no_answer"] += 1
            self._note(unit, {"unit": f"{answer.silence}: look at the device, its number and the wiring"})
        else:
            unit.answers, unit.due, unit.pause = True, 0.0, self._first_pause
            if answer.refusals:
                self._counters.errors["refused_register"] += answer.refusals
            self._deliver(unit, answer)
        if self._config.url is not None and not self._waiting and not any(each.answers for each in self._units):
            self._thread.submit(self._link.close, lambda _: None)  # the connection itself may be dead
        self._show()
        self._next()

    def _deliver(self, unit: _Unit, answer: "UnitAnswer") -> None:
        values = np.full((1, len(answer.values)), np.nan, np.float32)
        faults: dict[str, str] = {}
        where = f"{self._config.where}: unit {unit.number}"
        for column, (value, (factor, offset)) in enumerate(zip(answer.values, self._factors, strict=True)):
            channel = self._wiring.channels[column]
            if isinstance(value, RejectedError):
                self._counters.reject(value.reason, f"channel {channel}: {value.why}")
                self._rejections.report((), lambda _: where)
            elif isinstance(value, float):
                values[0, column] = value * factor + offset
            else:
                faults[channel] = str(value)
        self._note(unit, faults)
        if np.isnan(values).all():
            return
        self._silence.heard()
        self._counters.counts["readings"] += 1

        def refuse(_row: int, reason: str, why: str, count: int) -> None:
            self._rejections.refuse(reason, why, where=where, frame=str(values[0].tolist()), count=count)

        key, at = str(unit.number), answer.at
        self._wiring.sink(Batch(self._config.name, values, [key], [at], [None], [None], answer.arrived, refuse=refuse))

    def _note(self, unit: _Unit, faults: dict[str, str]) -> None:
        """Log the new faults of one unit, and the end of earlier ones."""
        fields = log.fields(source=self._config.name, unit=unit.number)
        for what, text in faults.items():
            if unit.faults.get(what) != text:
                _logger.warning("%s: %s", self._config.where, text, extra=fields)
        if unit.faults and not faults:
            _logger.info("%s: unit %s is well again", self._config.where, unit.number, extra=fields)
        unit.faults = faults

    def _lose(self, reason: str, text: str) -> None:
        """Handle the loss of the line: no unit can be polled until it is restored."""
        self._waiting = []
        for unit in self._units:
            unit.answers = False
        self._counters.errors[reason] += 1
        if text != self._line_fault:
            _logger.warning(text, extra=log.fields(source=self._config.name))
        self._line_fault = text
        pause = self._line_pause * self._rng.uniform(0.5, 1.0)
        self._line_pause = min(2 * self._line_pause, self._config.retry_max)
        self._timer = self._loop.call_later(pause, self._tick)
        self._show()

    def _show(self) -> None:
        if self._stopped:  # by the sink, in the middle of a delivery
            return
        faults = [text for unit in self._units for text in unit.faults.values()]
        is_open = not self._line_fault and any(unit.answers for unit in self._units)
        state = self._line_fault or "; ".join(_shown(faults)) or "reading"
        if self._silence.is_silent and not self._line_fault and not faults:
            state = self._silence.text
        if (state, is_open) != (self.state, self.is_open):
            self.state, self.is_open = state, is_open
            self._wiring.on_state()


def _shown(faults: Sequence[str]) -> list[str]:
    more = len(faults) - _MOST_SHOWN
    return [*faults[:_MOST_SHOWN], *([f"and {more} more"] if more > 0 else [])]
