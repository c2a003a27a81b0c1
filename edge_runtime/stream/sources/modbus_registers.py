"""Modbus registers -> numbers: groups registers into requests, and converts their bits. Pure.

Guarantee: the registers of one value are always read in one request, so that a value never combines two states of the
device. Registers that no channel names are never requested, since a device may refuse them.
"""

import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from edge_runtime.config.rules import Finding, rule
from edge_runtime.config.tables import MAX_UINT16, Table, Text
from edge_runtime.stream.origin import RejectedError

# The limits of one request: MODBUS Application Protocol Specification V1.1b3, sections 6.1 to 6.4.
MOST_BITS, MOST_REGISTERS = 2000, 125
BIT_TABLES = frozenset({"coil", "discrete"})

# Registers of each type, and its format for `struct`, high byte first.
_TYPES = {
    "bool": (1, ">H"),
    "int16": (1, ">h"),
    "uint16": (1, ">H"),
    "int32": (2, ">i"),
    "uint32": (2, ">I"),
    "int64": (4, ">q"),
    "uint64": (4, ">Q"),
    "float32": (2, ">f"),
    "float64": (4, ">d"),
}
RegisterType = Literal["bool", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64"]


class RegisterTable(Table, frozen=True, kw_only=True):
    """`[[source.register]]` of `type = "modbus"`: the place of one channel of the model in each unit.

    Attributes:
        channel: The channel of the model.
        table: One of the four tables of a Modbus device: `holding` and `input` hold registers, `coil` and `discrete`
            single bits.
        address: The address in the table, from 0, as sent over the line. The number 40001 of a manual is address 0 of
            `holding`, 30001 of `input`, 10001 of `discrete` and 1 of `coil`.
        type: The type of the number; left out, `uint16`, or `bool` of a coil or discrete input. Types of 32 and 64
            bits take two and four registers from `address` on. `bool` of a register is 0 for zero and 1 for all else.
        bit: The bit of the register that is the value; the lowest is 0. Only with `type = "bool"`.
        word_order: The first of several registers: the one with the high digits (`big`) or the low ones (`little`).
        byte_order: The first byte of a register, high (`big`, as in the specification) or low (`little`).
        scale: The factor of the number, applied before `offset` is added.
        offset: The number that is added after `scale` is applied.
        unit: The unit of the result. If the bundle names another unit of the same quantity, the value is converted.
    """

    channel: Text
    table: Literal["holding", "input", "coil", "discrete"] = "holding"
    address: Annotated[int, Meta(ge=0, le=MAX_UINT16)]
    type: RegisterType | None = None
    bit: Annotated[int, Meta(ge=0, le=15)] | None = None
    word_order: Literal["big", "little"] = "big"
    byte_order: Literal["big", "little"] = "big"
    scale: float = 1.0
    offset: float = 0.0
    unit: Text | None = None

    @property
    def count(self) -> int:
        """The number of registers, or bits, of the value."""
        return 1 if self.type is None else _TYPES[self.type][0]


@rule(RegisterTable, keys=("table", "type", "bit", "address", "scale"))
def _a_value_of_its_table(register: RegisterTable) -> Iterator[Finding]:
    if register.table in BIT_TABLES and register.type not in {None, "bool"}:
        yield "type", f'expected "bool" in the table "{register.table}", which holds bits, found "{register.type}"'
    if register.bit is not None and (register.table in BIT_TABLES or register.type != "bool"):
        yield "bit", 'expected it only with type = "bool" of a register: take it out'
    if register.address + register.count - 1 > MAX_UINT16:
        yield "address", f'expected at most {MAX_UINT16 + 1 - register.count} for "{register.type}", found one beyond'
    if register.scale == 0:
        yield "scale", "expected a factor other than 0, found 0: the channel would never change"


class RegisterRun(msgspec.Struct, frozen=True):
    """Adjacent registers of one table, read by one request.

    Attributes:
        table: their table.
        address: of the first.
        count: of registers or bits.
        columns: the indexes of these registers among those of the source, in the order of their addresses.
    """

    table: str
    address: int
    count: int
    columns: tuple[int, ...]


def runs_of(registers: Sequence[RegisterTable], columns: Iterable[int]) -> list[RegisterRun]:
    """The requests that read the registers with these indexes: adjacent ones together, within the limits of one."""
    found: list[RegisterRun] = []
    for column in sorted(columns, key=lambda each: (registers[each].table, registers[each].address)):
        register = registers[column]
        last = found[-1] if found else None
        if last is not None and last.table == register.table and register.address <= last.address + last.count:
            count = max(last.count, register.address + register.count - last.address)
            if count <= (MOST_BITS if register.table in BIT_TABLES else MOST_REGISTERS):
                found[-1] = RegisterRun(last.table, last.address, count, (*last.columns, column))
                continue
        found.append(RegisterRun(register.table, register.address, register.count, (column,)))
    return found


def value_of(register: RegisterTable, words: Sequence[int]) -> float:
    """The number in the registers, or the bit, of one channel.

    Raises:
        RejectedError: `not_finite`, which devices send if they have no measurement.
    """
    if register.table in BIT_TABLES:
        return float(bool(words[0]))
    if register.byte_order == "little":
        words = [(word & 0xFF) << 8 | word >> 8 for word in words]
    if register.word_order == "little":
        words = words[::-1]
    if register.type == "bool":
        return float(words[0] != 0) if register.bit is None else float(words[0] >> register.bit & 1)
    (value,) = struct.unpack(_TYPES[register.type or "uint16"][1], struct.pack(f">{len(words)}H", *words))
    if not math.isfinite(value):
        raise RejectedError("not_finite", f"expected a finite number, found {value}")
    return float(value)
