"""Modbus registers as a source: against pymodbus's own server over TCP and a cable, and against frames by hand."""

import importlib.util
import math
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from edge_runtime.config.load import load_config
from edge_runtime.errors import EXIT_CONFIG, ConfigError
from edge_runtime.stream.sources.modbus import ModbusSource, ModbusSourceTable, parse_url
from edge_runtime.stream.sources.modbus_link import NoAnswerError
from edge_runtime.stream.sources.modbus_unit import UnitAnswer
from tests.support.payload_cases import DEVICE
from tests.support.ports import find_free_port
from tests.support.source_bench import PATIENCE_S, SourceBench
from tests.support.waiting import Deadline

if TYPE_CHECKING:
    from tests.support.modbus import HandWritten, ModbusServer, SerialCable

pytest.importorskip("pymodbus")
QUICK = "interval = 0.02\ntimeout = 0.5\nretry_max = 0.2\n"


def register(channel: str, address: int, **more: Any) -> str:
    """One `[[source.register]]`."""
    keys = {"channel": channel, "address": address, **more}
    lines = (f"{name} = {value if not isinstance(value, str) else repr(value)}\n" for name, value in keys.items())
    return "[[source.register]]\n" + "".join(lines)


def load(folder: Path, text: str) -> ModbusSourceTable:
    """The table of a source with these keys."""
    (folder / "m.onnx").write_bytes(b"")
    path = folder / "device.toml"
    path.write_text(f'{DEVICE}type = "modbus"\n{text}')
    table = load_config(path).source[0]
    assert isinstance(table, ModbusSourceTable)
    return table


Bench = SourceBench[ModbusSource]
Begin = Callable[..., Bench]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    """Start a source of these keys: `begin(text, units)`."""
    begun: list[Bench] = []

    def start(text: str, units: dict[str, str] | None = None) -> Bench:
        table = load(tmp_path, text)
        channels = tuple(each.channel for each in table.register)
        table.check_channels_of(channels, None, units=units or {})
        begun.append(SourceBench(ModbusSource, table, channels, units))
        begun[-1].source.start()
        return begun[-1]

    yield start
    for bench in begun:
        bench.close()
        assert None not in bench.by_key
        assert all(abs(age) < PATIENCE_S for age in bench.ages)


@pytest.fixture
def serve() -> Iterator[Callable[..., "ModbusServer"]]:
    """Start pymodbus's server for these units."""
    from tests.support.modbus import ModbusServer, device  # noqa: PLC0415 - only where pymodbus is

    begun: list[ModbusServer] = []

    def start(units: dict[int, dict[str, Any]], **where: Any) -> ModbusServer:
        devices = [
            device(number, **{"inputs": {0: 0}, "coils": {0: False}, **parts}) for number, parts in units.items()
        ]
        begun.append(ModbusServer(devices, **where))
        return begun[-1]

    yield start
    for each in begun:
        each.stop()


@pytest.fixture
def by_hand() -> Iterator[Callable[..., "HandWritten"]]:
    """A device with answers by hand."""
    from tests.support.modbus import HandWritten  # noqa: PLC0415 - as above

    begun: list[HandWritten] = []

    def start(answer: Callable[[bytes], bytes], **where: Any) -> HandWritten:
        begun.append(HandWritten(answer, **where))
        return begun[-1]

    yield start
    for each in begun:
        each.stop()


@pytest.fixture
def cable(tmp_path: Path) -> Iterator["SerialCable"]:
    """A serial line between two paths."""
    from tests.support.modbus import SerialCable  # noqa: PLC0415 - as above

    made = SerialCable(tmp_path)
    yield made
    made.cut()


# Every type in both orders, and what the registers hold, high byte first, as `struct` writes it.
TYPES = [
    ("int16", ">h", -1234.0),
    ("uint16", ">H", 65000.0),
    ("int32", ">i", -70000.0),
    ("uint32", ">I", 4000000000.0),
    ("int64", ">q", -(2.0**40)),
    ("uint64", ">Q", 2.0**41),
    ("float32", ">f", 21.5),
    ("float64", ">d", -0.001),
]


def words_of(form: str, value: float, word_order: str, byte_order: str) -> list[int]:
    """The registers of a number, as a device with these orders has them."""
    packed = struct.pack(form, value if form[1] in "fd" else int(value))
    words = [packed[at : at + 2] for at in range(0, len(packed), 2)]
    words = words[::-1] if word_order == "little" else words
    return [int.from_bytes(word, "little" if byte_order == "little" else "big") for word in words]


def test_every_type_in_every_order_over_tcp(begin: Begin, serve: Callable[..., "ModbusServer"]) -> None:
    """Numbers of all widths, with the words and bytes in either order, are what the device means."""
    holding: dict[int, int] = {}
    keys, expected, address = "", [], 0
    for word_order in ("big", "little"):
        for byte_order in ("big", "little"):
            for kind, form, value in TYPES:
                words = words_of(form, value, word_order, byte_order)
                holding |= {address + index: word for index, word in enumerate(words)}
                name = f"{kind}_{word_order}_{byte_order}"
                keys += register(name, address, type=kind, word_order=word_order, byte_order=byte_order)
                expected.append(value)
                address += len(words)
    server = serve({1: {"holding": holding}})
    bench = begin(f'url = "tcp://127.0.0.1:{server.tcp_port}"\n{QUICK}{keys}')
    bench.rounds("1", 2)
    assert bench.by_key["1"][0] == pytest.approx(expected, rel=1e-6)
    assert bench.source.is_open
    assert bench.source.state == "reading"
    # 88 neighbours in one request
    assert set(server.requests) == {(1, 3, 0, address)}


def test_all_four_tables_bits_scale_and_units(begin: Begin, serve: Callable[..., "ModbusServer"]) -> None:
    """Coils, discrete inputs and single bits are 0 and 1; numbers are scaled, and converted to the bundle's unit."""
    server = serve({1: {"holding": {7: 0b1010, 8: 215}, "inputs": {30: 5}, "coils": {3: True, 4: False}}})
    keys = (
        register("pump", 3, table="coil")
        + register("valve", 4, table="coil", type="bool")
        + register("door", 4, table="discrete")
        + register("bit1", 7, type="bool", bit=1)
        + register("bit2", 7, type="bool", bit=2)
        + register("any", 7, type="bool")
        + register("temperature", 8, type="int16", scale=0.1, offset=-1.0, unit="°C")
        + register("level", 30, table="input")
    )
    bench = begin(f'url = "tcp://127.0.0.1:{server.tcp_port}"\n{QUICK}{keys}', {"temperature": "K"})
    bench.rounds("1", 1)
    assert bench.by_key["1"][0] == pytest.approx([1, 0, 1, 1, 0, 1, 20.5 + 273.15, 5], rel=1e-6)
    assert set(server.requests) == {(1, 1, 3, 2), (1, 2, 4, 1), (1, 3, 7, 2), (1, 4, 30, 1)}


def test_rtu_over_a_serial_line(begin: Begin, serve: Callable[..., "ModbusServer"], cable: "SerialCable") -> None:
    """Two units of a line are two keys."""
    server = serve({3: {"holding": {0: 11, 1: 12}}, 17: {"holding": {0: 21, 1: 22}}}, port=cable.paths[1])
    keys = register("a", 0) + register("b", 1)
    bench = begin(f'port = "{cable.paths[0]}"\nunits = [3, 17]\n{QUICK}{keys}')
    bench.rounds("3", 2)
    bench.rounds("17", 2)
    assert bench.by_key["3"][0] == [11, 12]
    assert bench.by_key["17"][0] == [21, 22]
    assert {request[0] for request in server.requests} == {3, 17}
    assert bench.interruptions == 1


# The example of the protocol's own description: registers 107 to 109 of unit 17. The sums (76 87, 49 AD) were computed
# on paper by the rule of MODBUS over Serial Line V1.02, 6.2.2, and are in many manuals.
ASKED = bytes.fromhex("11 03 00 6B 00 03 76 87")
ANSWERED = bytes.fromhex("11 03 06 AE 41 56 52 43 40 49 AD")


def crc(data: bytes) -> bytes:
    """The sum of a frame, bit by bit as the specification describes it, low byte first."""
    remainder = 0xFFFF
    for byte in data:
        remainder ^= byte
        for _ in range(8):
            remainder = remainder >> 1 ^ (0xA001 if remainder & 1 else 0)
    return remainder.to_bytes(2, "little")


def test_frames_by_hand_over_a_serial_line(begin: Begin, by_hand: Callable[..., "HandWritten"], tmp_path: Path) -> None:
    """The bytes on the line are those of the specification's example, and its values come out."""
    assert crc(ASKED[:-2]) == ASKED[-2:]
    assert crc(ANSWERED[:-2]) == ANSWERED[-2:]
    device = by_hand(lambda _: ANSWERED, folder=tmp_path)
    keys = register("a", 107) + register("b", 108) + register("c", 109)
    bench = begin(f'port = "{device.path}"\nunits = [17]\n{QUICK}{keys}')
    bench.rounds("17", 1)
    assert device.asked[0] == ASKED
    assert bench.by_key["17"][0] == [0xAE41, 0x5652, 0x4340]


def test_frames_by_hand_over_tcp(begin: Begin, by_hand: Callable[..., "HandWritten"]) -> None:
    """Number, protocol, length and unit stand in front, and an answer with another number is not taken."""

    def answer(request: bytes) -> bytes:
        number, unit = request[:2], request[6:7]
        assert request[2:6] == b"\0\0\0\6"
        assert request[7:] == bytes.fromhex("04 00 08 00 02")
        late = b"\xff\xff\0\0\0\7" + unit + bytes.fromhex("04 04 11 11 11 11")
        return late + number + b"\0\0\0\7" + unit + bytes.fromhex("04 04 42 28 00 00")

    device = by_hand(answer)
    keys = register("x", 8, table="input", type="float32")
    bench = begin(f'url = "tcp://127.0.0.1:{device.tcp_port}"\nunits = [9]\n{QUICK}{keys}')
    bench.rounds("9", 3)
    assert bench.by_key["9"][:3] == [[42.0]] * 3


def test_a_dead_unit_does_not_hold_up_the_others(
    begin: Begin, by_hand: Callable[..., "HandWritten"], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is asked ever more seldom, named once, and the others go on meanwhile, each at its interval."""

    def answer(request: bytes) -> bytes:
        body = request[:2] + b"\2\0\7"
        return b"" if request[0] == 2 else body + crc(body)

    device = by_hand(answer, folder=tmp_path)
    times = "interval = 0.02\ntimeout = 0.2\nretry_max = 100.0\n"
    bench = begin(f'port = "{device.path}"\nunits = [1, 2, 3]\n{times}{register("x", 0)}')
    bench.until(lambda: bench.counters.errors["no_answer"] >= 2)
    before = len(bench.by_key["3"])
    bench.rounds("1", 30)
    assert len(bench.by_key["3"]) - before >= 29
    asked = [request[0] for request in device.asked]
    assert asked.count(2) == bench.counters.errors["no_answer"] <= 6  # of more than thirty rounds
    assert asked.count(1) > 30
    assert bench.source.is_open
    assert bench.source.state.startswith("unit 2: no valid answer within 0.2 s: look at")
    assert sum("unit 2" in record.getMessage() for record in caplog.records) == 1


def test_units_that_answer_come_first_and_a_silent_one_is_asked_no_more_seldom_than_its_limit(
    begin: Begin, by_hand: Callable[..., "HandWritten"], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that does not come takes a whole timeout; the pause doubles up to `retry_max`, and ends with it."""
    device = by_hand(lambda _: b"", folder=tmp_path)
    bench = begin(f'port = "{device.path}"\nunits = [1, 2, 3]\ntimeout = 0.2\nretry_max = 3.0\n{register("x", 0)}')
    source = bench.source
    monkeypatch.setattr(source, "_next", lambda: None)
    for unit, answers in zip(source._units, (False, True, False), strict=True):
        unit.answers, unit.due, unit.pause = answers, 0.0, source._first_pause
    source._tick()
    assert [unit.number for unit in source._waiting] == [2, 1, 3]
    (dead, *_) = source._units
    pauses = []
    for _ in range(8):
        source._take(dead, UnitAnswer(silence=NoAnswerError("no answer")))
        pauses.append(dead.pause)
        assert dead.due - bench.loop.time() <= 3.0 + 0.5 * source._first_pause
    first = source._first_pause
    assert pauses == [min(2 ** (number + 1) * first, 3.0) for number in range(8)]
    assert pauses[-1] == 3.0
    source._take(dead, UnitAnswer(values=(7.0,), at=time.time(), arrived=time.perf_counter()))
    assert (dead.answers, dead.due, dead.pause) == (True, 0.0, first)


def test_a_unit_comes_back(
    begin: Begin, by_hand: Callable[..., "HandWritten"], caplog: pytest.LogCaptureFixture
) -> None:
    """That it does is logged, and the state is well again."""
    caplog.set_level("INFO", logger="edge_runtime")
    alive = [False]

    def answer(request: bytes) -> bytes:
        if request[6] == 2 and not alive[0]:
            return b""
        return request[:4] + b"\0\5" + request[6:8] + b"\2\0\7"

    device = by_hand(answer)
    bench = begin(f'url = "tcp://127.0.0.1:{device.tcp_port}"\nunits = [1, 2]\n{QUICK}{register("x", 0)}')
    bench.until(lambda: bench.counters.errors["no_answer"])
    bench.rounds("1", 2)
    alive[0] = True
    bench.rounds("2", 2)
    bench.until(lambda: bench.source.state == "reading")
    assert any("unit 2 is well again" in record.getMessage() for record in caplog.records)


def test_a_register_that_is_not_there_is_named_and_the_others_are_read(
    begin: Begin, serve: Callable[..., "ModbusServer"], caplog: pytest.LogCaptureFixture
) -> None:
    """One sentence with unit, address, table and channel; its channel is missing, and it is not asked for each time."""
    holding = {address: address for address in range(10) if address != 4}
    server = serve({1: {"holding": holding}, 2: {"holding": dict.fromkeys(range(10), 1)}})
    keys = "".join(register(f"c{address}", address) for address in range(10))
    bench = begin(
        f'url = "tcp://127.0.0.1:{server.tcp_port}"\nunits = [1, 2]\ninterval = 0.02\nretry_max = 100.0\n{keys}'
    )
    bench.rounds("1", 5)
    expected = [float(address) for address in range(10)]
    for row in bench.by_key["1"]:
        assert math.isnan(row[4])
        assert row[:4] + row[5:] == expected[:4] + expected[5:]
    assert bench.by_key["2"][0] == [1.0] * 10
    sentence = (
        "unit 1: register 4 of holding (channel c4) is not there (exception 2, illegal data address): "
        "look at table and address in its manual"
    )
    assert bench.source.state == sentence
    assert sum(sentence in record.getMessage() for record in caplog.records) == 1
    of_first = [request[2:] for request in server.requests if request[0] == 1]
    assert of_first[0] == (0, 10)
    assert of_first[1:11] == [(address, 1) for address in range(10)]
    assert set(of_first[11:]) <= {(0, 4), (5, 5), (4, 1)}  # its neighbours in one request each
    assert bench.counters.errors["refused_register"] <= 4


def test_a_register_that_appears_is_read(begin: Begin, by_hand: Callable[..., "HandWritten"]) -> None:
    """What was refused is tried again."""
    there = [False]

    def answer(request: bytes) -> bytes:
        if not there[0]:
            return request[:4] + b"\0\3" + request[6:7] + b"\x83\2"
        return request[:4] + b"\0\5" + request[6:8] + b"\2\0\7"

    device = by_hand(answer)
    bench = begin(f'url = "tcp://127.0.0.1:{device.tcp_port}"\n{QUICK}{register("x", 40001)}')
    bench.until(lambda: bench.counters.errors["refused_register"] >= 2)
    assert bench.source.state.endswith("and 40001 may be a number of the manual: its address is 0")
    assert bench.by_key == {}
    there[0] = True
    bench.rounds("1", 1)
    bench.until(lambda: bench.source.state == "reading")


def test_neighbours_that_a_device_gives_only_one_by_one(begin: Begin, by_hand: Callable[..., "HandWritten"]) -> None:
    """Some refuse a request across the borders of their own tables, though each register is there."""

    def answer(request: bytes) -> bytes:
        address, count = struct.unpack(">HH", request[8:12])
        if count > 1:
            return request[:4] + b"\0\3" + request[6:7] + b"\x83\2"
        return request[:4] + b"\0\5" + request[6:8] + b"\2" + struct.pack(">H", 100 + address)

    device = by_hand(answer)
    keys = register("a", 0) + register("b", 1)
    bench = begin(f'url = "tcp://127.0.0.1:{device.tcp_port}"\n{QUICK}{keys}')
    bench.rounds("1", 4)
    assert bench.by_key["1"] == [[100, 101]] * len(bench.by_key["1"])
    assert bench.counters.errors["refused_register"] == 1
    assert bench.source.state == "reading"


@pytest.mark.parametrize(
    ("body", "count"),
    [
        (b"\x03\x02\x00", "short"),  # says two bytes, has one
        (b"\x03\x04\x00\x01\x00\x02", "two registers of one"),
        (b"\x04\x02\x00\x01", "of another function"),
        (b"\x63\x02\x00\x01", "of no function"),
        (b"\x03", "nothing"),
        (b"\x83", "an exception without its code"),
    ],
)
def test_an_answer_that_is_none_is_no_reading(
    body: bytes, count: str, begin: Begin, by_hand: Callable[..., "HandWritten"]
) -> None:
    """Whatever a device sends back, no number is made of it, and the source goes on."""
    good = [False]

    def answer(request: bytes) -> bytes:
        sent = b"\x03\x02\x00\x07" if good[0] else body
        return request[:4] + struct.pack(">H", len(sent) + 1) + request[6:7] + sent

    device = by_hand(answer)
    bench = begin(f'url = "tcp://127.0.0.1:{device.tcp_port}"\n{QUICK}{register("x", 0)}')
    bench.until(lambda: bench.counters.errors["no_answer"] + bench.counters.errors["refused_register"] >= 2)
    assert bench.by_key == {}
    good[0] = True
    bench.rounds("1", 1)
    assert bench.by_key["1"][0] == [7.0], count


def test_noise_on_a_serial_line_is_no_reading(
    begin: Begin, by_hand: Callable[..., "HandWritten"], tmp_path: Path
) -> None:
    """A frame with a wrong sum, of another unit or cut short gives no value; the next good one does."""
    body = b"\x05\x03\x02\x00\x07"
    bad = [
        body + b"\0\0",
        b"\x06" + body[1:] + crc(b"\x06" + body[1:]),
        (body + crc(body))[:5],
        b"\xff\x00\x55",
        b"",
    ]
    answers = iter(bad)
    device = by_hand(lambda _: next(answers, body + crc(body)), folder=tmp_path)
    keys = register("x", 0)
    bench = begin(f'port = "{device.path}"\nunits = [5]\ninterval = 0.02\ntimeout = 0.2\nretry_max = 0.05\n{keys}')
    bench.rounds("5", 2)
    assert bench.by_key["5"] == [[7.0]] * len(bench.by_key["5"])
    assert bench.counters.errors["no_answer"] == len(bad)


def test_a_server_that_is_away_is_waited_for(
    begin: Begin, serve: Callable[..., "ModbusServer"], caplog: pytest.LogCaptureFixture
) -> None:
    """Named once, tried again, and after a restart of the server readings go on without a word from outside."""
    port = find_free_port()
    bench = begin(f'url = "tcp://127.0.0.1:{port}"\n{QUICK}{register("x", 0)}')
    bench.until(lambda: bench.counters.errors["connect_failed"] >= 3)
    assert not bench.source.is_open
    sentence = f"tcp://127.0.0.1:{port}: cannot be reached (Connection refused): look at the network and at url"
    assert bench.source.state == sentence
    assert sum(sentence in record.getMessage() for record in caplog.records) == 1
    server = serve({1: {"holding": {0: 1}}}, tcp_port=port)
    bench.rounds("1", 2)
    server.stop()
    bench.until(lambda: not bench.source.is_open)
    serve({1: {"holding": {0: 2}}}, tcp_port=port)
    bench.rounds("1", 2)
    assert bench.by_key["1"][-1] == [2]


def test_a_connection_that_was_closed_between_two_requests_is_opened_again(
    begin: Begin, by_hand: Callable[..., "HandWritten"]
) -> None:
    """Gateways close what is idle; that costs no reading, and is no fault."""
    device = by_hand(lambda request: request[:4] + b"\0\5" + request[6:8] + b"\2\0\7", closes=True)
    bench = begin(f'url = "tcp://127.0.0.1:{device.tcp_port}"\n{QUICK}{register("x", 0)}')
    bench.rounds("1", 4)
    assert not bench.counters.errors


def test_an_absent_port_is_waited_for(begin: Begin, tmp_path: Path) -> None:
    """In the words of every serial port."""
    bench = begin(f'port = "{tmp_path}/none"\n{QUICK}{register("x", 0)}')
    bench.until(lambda: bench.counters.errors["absent"] >= 2)
    assert bench.source.state == f"{tmp_path}/none: no such port: waiting until it is plugged in"


def test_a_number_that_is_none_is_a_missing_channel(begin: Begin, serve: Callable[..., "ModbusServer"]) -> None:
    """Devices write NaN where they have no measurement."""
    server = serve({1: {"holding": {0: 0x7FC0, 1: 0, 2: 3}}})
    keys = register("a", 0, type="float32") + register("b", 2)
    bench = begin(f'url = "tcp://127.0.0.1:{server.tcp_port}"\n{QUICK}{keys}')
    bench.rounds("1", 1)
    assert str(bench.by_key["1"][0]) == "[nan, 3.0]"
    assert bench.counters.rejected["not_finite"] >= 1
    assert bench.counters.last_rejected["not_finite"]["why"] == "channel a: expected a finite number, found nan"


def test_stopping_ends_the_thread_and_the_line(begin: Begin, serve: Callable[..., "ModbusServer"]) -> None:
    """Nothing comes after a stop, and no descriptor is left."""
    server = serve({1: {"holding": {0: 1}}})
    before = descriptors()
    bench = begin(f'url = "tcp://127.0.0.1:{server.tcp_port}"\n{QUICK}{register("x", 0)}')
    bench.rounds("1", 1)
    bench.source.stop()
    bench.source.stop()
    assert bench.source._thread.stop(PATIENCE_S)
    count = len(bench.by_key["1"])
    for _ in range(3):
        bench.loop.run_once(0.05)
    assert len(bench.by_key["1"]) == count
    end = Deadline(PATIENCE_S)
    while descriptors() > before + 4:  # the loop's own: epoll and its pipe; and the server's, which may still wait
        assert not end.over
        time.sleep(0.01)


def descriptors() -> int:
    """How many this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


X = register("x", 0)


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        (X, 'port: expected either port or url = "tcp://HOST:502", found neither'),
        (f'port = "/dev/a"\nurl = "tcp://a"\n{X}', 'port: expected either port or url = "tcp://HOST:502", found both'),
        (f'url = "http://a"\n{X}', 'url: expected tcp://HOST or tcp://HOST:PORT, found "http://a"'),
        (f'url = "tcp://a:99999"\n{X}', 'url: expected tcp://HOST or tcp://HOST:PORT, found "tcp://a:99999"'),
        (f'url = "tcp://a"\nbaudrate = 19200\n{X}', "baudrate: expected it only with port, found it with url"),
        (f'url = "tcp://a"\nunits = []\n{X}', "units: expected the number of at least one unit, found an array of 0"),
        (f'url = "tcp://a"\nunits = [1, 1]\n{X}', "units: expected every unit once, found 1 twice"),
        (f'port = "/dev/a"\nunits = [248]\n{X}', "units: expected 1 to 247 on a serial line, found 248"),
        ('url = "tcp://a"\nregister = []\n', "register: expected at least one [[source.register]]"),
        (f'url = "tcp://a"\n{X}{X}', 'register: expected every channel once, found "x" twice'),
        (
            'url = "tcp://a"\n' + register("x", 0, table="coil", type="int16"),
            'register[0] "x".type: expected "bool" in the table "coil", which holds bits, found "int16"',
        ),
        ('url = "tcp://a"\n' + register("x", 65535, type="int32"), 'address: expected at most 65534 for "int32"'),
        ('url = "tcp://a"\n' + register("x", 0, bit=3), "bit: expected it only with type"),
        ('url = "tcp://a"\n' + register("x", 0, scale=0.0), "scale: expected a factor other than 0, found 0"),
    ],
)
def test_mistakes_are_named(text: str, mistake: str, tmp_path: Path) -> None:
    """`check` says what is wrong, and where."""
    with pytest.raises(ConfigError, match="source") as caught:
        load(tmp_path, text)
    assert mistake in str(caught.value)


def test_a_channel_without_a_register_or_with_another_unit_is_refused(tmp_path: Path) -> None:
    """Before anything is read."""
    table = load(tmp_path, 'url = "tcp://a"\n' + register("x", 0, unit="V") + register("z", 1))
    with pytest.raises(ConfigError, match="no y"):
        table.check_channels_of(("x", "y"), None)
    with pytest.raises(ConfigError, match='expected "A", the unit of the bundle, found "V"'):
        table.check_channels_of(("x",), None, units={"x": "A"})
    with pytest.raises(ConfigError, match="found one of whole frames"):
        table.check_channels_of((), (4,))


def test_a_missing_library_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of exit code 78, with what to install; another release is one as well."""
    table = load(tmp_path, f'url = "tcp://a"\n{X}')
    import pymodbus  # noqa: PLC0415 - to be changed

    monkeypatch.setattr(pymodbus, "__version__", "3.99.0")
    with pytest.raises(ConfigError, match=r"expected pymodbus 3\.16\.x, found 3\.99\.0") as caught:
        table.check_channels_of(("x",), None)
    for name in [name for name in sys.modules if name.partition(".")[0] == "pymodbus"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "edge_runtime.stream.sources.modbus_link")
    monkeypatch.setitem(sys.modules, "pymodbus", None)
    with pytest.raises(ConfigError) as caught:
        table.check_channels_of(("x",), None)
    assert str(caught.value) == (
        'source "s".type: expected the package pymodbus for "modbus", found none: '
        'pip install "edge-inference-runtime[modbus]"'
    )
    assert caught.value.exit_code == EXIT_CONFIG


def test_a_device_file_without_modbus_needs_no_library() -> None:
    """The table itself is read without it."""
    assert importlib.util.find_spec("pymodbus") is not None
    assert parse_url("tcp://[::1]:1502") == ("::1", 1502)
    assert parse_url("tcp://plc.local") == ("plc.local", 502)
