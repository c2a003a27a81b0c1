"""Reads the registers of one Modbus unit, in as few requests as it allows, without those that it refuses.

Guarantee: if a unit refuses a request of several registers, they are read one by one, so that the missing one is named
and the others are read; a refused register is retried after a pause that doubles up to `most`. Runs in the source's
thread.
"""

import time
from collections.abc import Callable, Sequence

import msgspec

from edge_runtime.errors import TransientError
from edge_runtime.stream.origin import RejectedError
from edge_runtime.stream.sources.modbus_link import LinkError, ModbusLink, NoAnswerError, RefusalError
from edge_runtime.stream.sources.modbus_registers import BIT_TABLES, RegisterRun, RegisterTable, runs_of, value_of

# MODBUS Application Protocol Specification V1.1b3, section 7.
_EXCEPTIONS = {
    1: "illegal function",
    2: "illegal data address",
    3: "illegal data value",
    4: "device failure",
    5: "acknowledge",
    6: "device busy",
    8: "memory parity error",
    10: "gateway path unavailable",
    11: "gateway target device failed to respond",
}
_LASTING = frozenset({1, 2, 3})  # a repeated request would get the same code
_FROM_GATEWAY = frozenset({10, 11})  # the unit itself did not answer
_NUMBERED_FROM = {"holding": 40001, "input": 30001, "discrete": 10001, "coil": 1}


class RegisterFault(TransientError):  # noqa: N818 - a value of an answer, and never raised
    """A register cannot be read; the text is the message."""


Found = float | RejectedError | RegisterFault


class UnitAnswer(msgspec.Struct, frozen=True):
    """The result of polling one unit.

    Attributes:
        values: of the channels; empty if there was no answer.
        refusals: how many requests were refused.
        at: Unix seconds when the last of them arrived.
        arrived: `time.perf_counter()` at that moment.
        silence: why there is no answer.
        line: why there is no line.
    """

    values: tuple[Found, ...] = ()
    refusals: int = 0
    at: float = 0.0
    arrived: float = 0.0
    silence: NoAnswerError | None = None
    line: LinkError | None = None


class UnitReader:
    """Reads one unit.

    Args:
        number: of the unit.
        registers: of the channels, in their order.
        link: the line to it.
        pause: seconds before the first retry of a refused register.
        most: the longest such pause.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        number: int,
        registers: Sequence[RegisterTable],
        link: ModbusLink,
        *,
        pause: float,
        most: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._number = number
        self._registers = registers
        self._link = link
        self._first_pause = pause
        self._most = most
        self._clock = clock
        self._runs = runs_of(registers, range(len(registers)))
        self._refused: dict[int, tuple[float, float, RegisterFault]] = {}  # time of the retry, next pause, reason
        self._split: list[RegisterRun] = []  # requests that were refused as a whole in the present reading

    def read(self) -> UnitAnswer:
        """Read every register once."""
        values: dict[int, Found] = {}
        refusals = 0
        try:
            self._link.open()
            waiting = list(self._runs)
            self._split = []
            while waiting:
                run = waiting.pop(0)
                if len(run.columns) == 1 and run.columns[0] in self._refused:
                    again, _, fault = self._refused[run.columns[0]]
                    if self._clock() < again:
                        values[run.columns[0]] = fault
                        continue
                try:
                    self._take(run, self._link.read(self._number, run), values)
                except RefusalError as error:
                    refusals += 1
                    waiting[:0] = self._refuse(run, error.code, values)
        except LinkError as error:
            return UnitAnswer(line=error)
        except NoAnswerError as error:
            return UnitAnswer(refusals=refusals, silence=NoAnswerError(f"unit {self._number}: {error}"))
        self._plan_again()
        found = tuple(values[column] for column in range(len(self._registers)))
        return UnitAnswer(found, refusals, time.time(), time.perf_counter())

    def _take(self, run: RegisterRun, words: Sequence[int], values: dict[int, Found]) -> None:
        for column in run.columns:
            register = self._registers[column]
            start = register.address - run.address
            self._refused.pop(column, None)
            try:
                values[column] = value_of(register, words[start : start + register.count])
            except RejectedError as error:
                values[column] = error

    def _refuse(self, run: RegisterRun, code: int, values: dict[int, Found]) -> list[RegisterRun]:
        """Note the refusal of a register, or return the smaller runs to try instead of a refused run."""
        if code in _FROM_GATEWAY:
            raise NoAnswerError(f"exception {code}, {_EXCEPTIONS[code]}, of the gateway")
        if code in _LASTING and len(run.columns) > 1:
            self._split.append(run)
            return [each for column in run.columns for each in runs_of(self._registers, [column])]
        for column in run.columns:
            fault = values[column] = RegisterFault(self._sentence(self._registers[column], code))
            if code in _LASTING:
                _, pause, _ = self._refused.get(column, (0.0, self._first_pause, fault))
                self._refused[column] = (self._clock() + pause, min(2 * pause, self._most), fault)
        return []

    def _plan_again(self) -> None:
        """Replan the split runs: without their refused registers, or one by one if no single register was refused."""
        for run in self._split:
            alone = [column for column in run.columns if column in self._refused]
            together = [column for column in run.columns if column not in self._refused]
            self._runs.remove(run)
            self._runs += runs_of(self._registers, together) if alone else []
            for column in alone or together:
                self._runs += runs_of(self._registers, [column])

    def _sentence(self, register: RegisterTable, code: int) -> str:
        what = "bit" if register.table in BIT_TABLES else "register"
        name = f"unit {self._number}: {what} {register.address} of {register.table} (channel {register.channel})"
        cause = f"exception {code}, {_EXCEPTIONS.get(code, 'of the maker')}"
        if code not in _LASTING:
            return f"{name} cannot be read now ({cause})"
        first = _NUMBERED_FROM[register.table]
        hint = ""
        if register.address >= first > 1:
            hint = f", and {register.address} may be a number of the manual: its address is {register.address - first}"
        return f"{name} is not there ({cause}): look at table and address in its manual{hint}"
