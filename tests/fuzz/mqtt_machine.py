"""A broker that sends anything in any order, to a `Connection` without a network; and a reader of what it answers.

The oracle is a second reader of MQTT, which knows what was granted and what was sent: no packet of ours may break the
protocol or a grant, whatever came before. Each outcome comes once at most, nothing is acknowledged that did not come,
and no exception leaves the connection.
"""

import random
import struct
from collections.abc import Callable
from typing import Any, cast

from edge_runtime.config.tables import BrokerTable
from edge_runtime.mqtt.connection import Connection
from edge_runtime.mqtt.messages import Message, Will
from edge_runtime.mqtt.paho_client import make_client
from edge_runtime.mqtt.whole_socket import WholeSocket
from edge_runtime.readings import Receipt
from edge_runtime.system.counters import Counters
from tests.support.fake_broker import length, packet, text
from tests.support.stepped import SteppedLoop

CONNECT, CONNACK, PUBLISH, PUBACK, SUBSCRIBE, SUBACK, UNSUBSCRIBE = 1, 2, 3, 4, 8, 9, 10
PINGREQ, DISCONNECT, AUTH = 12, 14, 15
_TOPICS = [b"s/a", b"s/b", b"s/", b"x", b"s/" + b"k" * 3000, b"s/\xff\xfe", b"s/\x00", b"s/+", b"", b"edge/d/desired"]


class Wire:
    """A socket whose other end is the machine."""

    _numbers = iter(range(1000, 10**9))

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._fd = next(self._numbers)
        self.incoming: list[bytes] = []
        self.sent = bytearray()
        self.is_open = True
        self.has_ended = False

    def recv(self, _size: int) -> bytes:
        """The next piece; the end once it has ended."""
        if self.incoming:
            return self.incoming.pop(0)
        if self.has_ended:
            return b""
        raise BlockingIOError

    def send(self, data: bytes) -> int:
        """Some of it, or none now."""
        if self.has_ended and self._rng.random() < 0.5:
            raise ConnectionResetError(104, "Connection reset by peer")
        if self._rng.random() < 0.1:
            raise BlockingIOError
        taken = len(data) if self._rng.random() < 0.8 else self._rng.randrange(1, len(data) + 1)
        self.sent += data[:taken]
        return taken

    def sendall(self, data: bytes) -> None:
        """All of it."""
        self.sent += data

    def fileno(self) -> int:
        """A number that no other wire has."""
        return self._fd

    def close(self) -> None:
        """The end of ours."""
        self.is_open = False

    def nothing(self, *_: Any) -> None:
        """What has no meaning here."""

    setsockopt = setblocking = settimeout = shutdown = nothing


class _Loop(SteppedLoop):
    """A stepped loop that knows who reads and who waits to write."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: dict[int, Callable[[], None]] = {}
        self.writers: dict[int, Callable[[], None]] = {}

    def add_reader(self, fd: int, callback: Callable[[], None]) -> None:
        """As `Loop.add_reader`."""
        self.readers[fd] = callback

    def add_writer(self, fd: int, callback: Callable[[], None]) -> None:
        """As `Loop.add_writer`."""
        self.writers[fd] = callback

    def remove_reader(self, fd: int) -> None:
        """As `Loop.remove_reader`."""
        self.readers.pop(fd, None)

    def remove_writer(self, fd: int) -> None:
        """As `Loop.remove_writer`."""
        self.writers.pop(fd, None)


class _WiredConnection(Connection):
    """A connection whose attempts are made at once, over a wire."""

    def __init__(self, loop: _Loop, rng: random.Random, settings: BrokerTable) -> None:
        super().__init__(
            settings,
            name="upstream",
            client_id="edge-d",
            password=lambda: None,
            loop=loop.as_loop,
            counters=Counters(),
            will=Will("edge/d/status", b"offline"),
        )
        self.wires: list[Wire] = []
        self._rng = rng

    def _connect(self) -> None:
        self._generation += 1
        self._cancel_timers()
        client = make_client(self._settings, self._client_id, None)
        client.will_set("edge/d/status", b"offline", qos=self._will_qos, retain=self._may_retain_will)
        client.on_connect, client.on_disconnect = self._on_connect, self._on_disconnect
        client.on_subscribe = self._on_subscribe
        wire = Wire(self._rng)
        self.wires.append(wire)
        client._create_socket = lambda: WholeSocket(cast("Any", wire))  # type: ignore[method-assign]
        self._open(client)
        self._attach(client, self._generation)


class _Judge:
    """The second reader: what the client sent, against what it was granted and given."""

    def __init__(self, *, is_v5: bool) -> None:
        self.is_v5 = is_v5
        self.free()
        self.in_flight: set[int] = set()
        self.owed: list[int] = []
        self.owes_anything = False  # bytes at random came, which may have been messages of any number
        self.subscribes: list[tuple[int, int]] = []
        self.has_connected = self.is_accepted = self.has_gone = False
        self._buffer = b""

    def free(self) -> None:
        """Bound the client by nothing but the protocol."""
        self.window, self.most_bytes, self.qos, self.retains = 65_535, 268_435_460, 2, True

    def hear(self, data: bytes) -> None:
        """Bytes of the client."""
        self._buffer += data
        while (found := _first_packet(self._buffer)) is not None:
            first, body, size = found
            self._buffer = self._buffer[size:]
            self._judge(first >> 4, first & 15, body, size)

    def _judge(self, kind: int, flags: int, body: bytes, size: int) -> None:
        assert not self.has_gone, "nothing behind a DISCONNECT"
        assert (kind == CONNECT) == (not self.has_connected), "CONNECT first, and once"
        if kind == CONNECT:
            self.has_connected = True
            assert body[:6] == b"\0\4MQTT"
            return
        assert size <= self.most_bytes or not self.is_accepted, f"the maximum packet size: {kind}, {size}"
        if kind == PUBLISH:
            self._judge_publish(flags, body)
        elif kind == PUBACK:
            number = struct.unpack(">H", body[:2])[0]
            assert flags == 0
            assert number in self.owed or self.owes_anything, "only what came is acknowledged, once"
            if number in self.owed:
                self.owed.remove(number)
        elif kind in {SUBSCRIBE, UNSUBSCRIBE}:
            assert flags == 2
            number = struct.unpack(">H", body[:2])[0]
            assert number
            if kind == SUBSCRIBE:
                at, count = 2 + (1 + body[2] if self.is_v5 else 0), 0
                while at < len(body):
                    at += 3 + struct.unpack(">H", body[at : at + 2])[0]
                    count += 1
                assert at == len(body)
                self.subscribes.append((number, count))
        elif kind == DISCONNECT:
            self.has_gone = True
        else:
            # paho answers QoS 2 (5, 6, 7) and a ping (13), which no broker may send here; each is the right answer.
            assert kind in {PINGREQ, 5, 6, 7, 13}, f"a packet of type {kind}"

    def _judge_publish(self, flags: int, body: bytes) -> None:
        qos, retained = flags >> 1 & 3, flags & 1
        assert self.is_accepted, "nothing before CONNACK"
        assert qos <= min(self.qos, 1), "the maximum QoS"
        assert not flags & 8, "nothing is sent twice over one connection"
        assert self.retains or not retained, "no retained messages"
        size = struct.unpack(">H", body[:2])[0]
        topic = body[2 : 2 + size].decode()
        assert topic
        assert not set(topic) & set("+#\0"), "no wildcards"
        if qos:
            number = struct.unpack(">H", body[2 + size : 4 + size])[0]
            assert number, "a packet id"
            assert number not in self.in_flight, "a packet id in use"
            self.in_flight.add(number)
            assert len(self.in_flight) <= self.window, "the receive maximum"


def _first_packet(data: bytes) -> tuple[int, bytes, int] | None:
    size = shift = 0
    for at, byte in enumerate(data[1:5], 1):
        size |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            whole = at + 1 + size
            return (data[0], data[at + 1 : whole], whole) if len(data) >= whole else None
    assert len(data) < 5, "a length of four bytes"
    return None


class MqttMachine:
    """One connection and its reconnections, a course of steps each."""

    name = "MQTT packets"

    def __init__(self) -> None:
        shared = {"url": "mqtt://broker.test:1883", "max_inflight": 20, "reconnect_min": 0.5, "reconnect_max": 2.0}
        self._settings = {
            version == "5": BrokerTable(protocol=version, keepalive=10, **shared)  # type: ignore[arg-type]
            for version in ("3.1.1", "5")
        }

    def run(self, seed: int) -> tuple[int, set[str]]:
        """One course: how many packets of the broker it held, and what it has reached."""
        random.seed(seed)  # the jitter of reconnections
        return _Course(random.Random(seed), self._settings).run()


class _Course:
    def __init__(self, rng: random.Random, settings: dict[bool, BrokerTable]) -> None:
        self._rng = rng
        self._is_v5 = rng.random() < 0.6
        self._loop = _Loop()
        self._connection = _WiredConnection(self._loop, rng, settings[self._is_v5])
        self._judge = _Judge(is_v5=self._is_v5)
        self._seen = 0  # wires
        self._receipts: list[Receipt] = []
        self._outcomes: dict[int, int] = {}
        self._published = 0
        self._count = 0
        self._reached: set[str] = set()
        self._connection.subscribe(["s/+"], 1, self._take)
        self._connection.subscribe(["edge/d/#"], 1, lambda _messages: None)

    def run(self) -> tuple[int, set[str]]:
        self._connection.start()
        self._look()
        for _ in range(self._rng.randrange(3, 25)):
            step = self._rng.choice(_STEPS)
            step(self)
            self._look()
            assert self._connection.in_flight <= 20_000
        connection = self._connection
        self._reached |= {"connected"} if connection.connected else set()
        self._reached |= {f"error {name}" for name in connection._counters.errors}
        self._reached |= {f"rejected {name}" for name in connection._counters.rejected}
        connection._stopping = True
        connection._forget("over")
        self._loop.settle()
        assert all(count == 1 for count in self._outcomes.values()), "an outcome once"
        assert not self._loop.readers, "nothing is watched any more"
        assert not self._loop.writers
        return self._count, self._reached

    # --- the client's side --------------------------------------------------------------------------------------

    def _take(self, messages: list[Message]) -> None:
        for message in messages:
            message.claimed = message.topic.startswith(b"s/")
            if message.claimed and message.receipt is not None:
                message.receipt.hold()
                self._receipts.append(message.receipt)

    def publish(self) -> None:
        """The device has something to say."""
        rng, number = self._rng, self._published
        self._published += 1

        def outcome(_taken: bool) -> None:
            self._outcomes[number] = self._outcomes.get(number, 0) + 1

        topic = rng.choice(("edge/d/m/-", "edge/d/health", "a" * 3000, "a/+/b", "\0"))
        payload = b"x" * rng.choice((0, 10, 100, 5000))
        qos, retain = rng.choice((0, 1, 1, 1)), rng.random() < 0.2
        self._connection.publish(topic, payload, qos=qos, retain=retain, outcome=outcome)
        for _ in range(rng.choice((0, 0, 4, 40))):
            self._connection.publish(topic, payload, qos=qos, retain=retain, outcome=None)

    def release(self) -> None:
        """Some readings are done with."""
        self._rng.shuffle(self._receipts)
        for _ in range(self._rng.randrange(1, 6)):
            if self._receipts:
                self._receipts.pop().release()

    def hold(self) -> None:
        """Memory is short, or no more."""
        self._connection.hold(held=self._rng.random() < 0.5)

    def wait(self) -> None:
        """Time passes."""
        self._loop.advance(self._rng.choice((0.01, 0.3, 3.0, 20.0, 90.0)))

    # --- the broker's side --------------------------------------------------------------------------------------

    def accept(self) -> None:
        """A CONNACK as it should be, with grants."""
        rng, judge, properties = self._rng, self._judge, b""
        if self._is_v5 and rng.random() < 0.7:
            grants = [
                (b"\x21", struct.pack(">H", window := rng.choice((1, 2, 10, 65_535)))),
                (b"\x27", struct.pack(">I", most := rng.choice((50, 200, 4000, 268_435_455)))),
                (b"\x24", bytes([qos := rng.randrange(2)])),
                (b"\x25", bytes([retains := rng.randrange(2)])),
                (b"\x13", struct.pack(">H", rng.choice((1, 5, 60, 65_535)))),
                (b"\x22", b"\0\0"),
                (b"\x1f", text(b"hello")),
            ]
            chosen = [grant for grant in grants if rng.random() < 0.4]
            properties = b"".join(name + value for name, value in chosen)
            if not judge.is_accepted and self._connection.wires[-1].is_open:
                names = {name for name, _ in chosen}
                judge.window = window if b"\x21" in names else 65_535
                judge.most_bytes = most if b"\x27" in names else 268_435_460
                judge.qos = qos if b"\x24" in names else 2
                judge.retains = bool(retains) or b"\x25" not in names
        if judge.is_accepted:
            properties = b""  # a second one counts as the first, and grants everything
            self._reached.add("a second CONNACK")
            judge.free()
        judge.is_accepted = True
        self._send(packet(CONNACK << 4, bytes([rng.randrange(2), 0]) + self._properties(properties)))

    def refuse(self) -> None:
        """A CONNACK that is none."""
        reason = self._rng.choice((1, 4, 5, 0x80, 0x87, 0x97, 0x9A, 0x9B, 0x9F, 0xFF))
        self._send(packet(CONNACK << 4, bytes([0, reason]) + self._properties(b"")))

    def grant(self) -> None:
        """SUBACKs for what was asked, and sometimes others."""
        rng = self._rng
        for number, count in self._judge.subscribes:
            answers = bytes(
                rng.choice((1, 1, 1, 0, 0x80, 0x87, 2, 0x42)) for _ in range(count + rng.choice((0, 0, 0, 1, -1)))
            )
            self._send(packet(SUBACK << 4, struct.pack(">H", number) + self._properties(b"") + answers))
        self._judge.subscribes.clear()

    def acknowledge(self) -> None:
        """PUBACKs for some of what is in flight, in any order."""
        numbers = sorted(self._judge.in_flight)
        self._rng.shuffle(numbers)
        for number in numbers[: self._rng.randrange(1, 30)]:
            self._judge.in_flight.discard(number)
            self._send(self._puback(number))

    def misacknowledge(self) -> None:
        """PUBACKs for what is not."""
        number = self._rng.choice((0, 1, 2, 100, 32_768, 65_535))
        self._judge.in_flight.discard(number)
        for _ in range(self._rng.choice((1, 2))):
            self._send(self._puback(number))

    def _puback(self, number: int) -> bytes:
        body = struct.pack(">H", number)
        if self._is_v5 and self._rng.random() < 0.4:
            reason = self._rng.choice((0, 0x10, 0x80, 0x87, 0x90, 0x97, 0x99, 0x42, 0xFF))
            body += bytes([reason]) + (self._properties(self._rng.choice((b"", b"\x1f" + text(b"no")))))
        return packet(PUBACK << 4, body)

    def bring(self) -> None:
        """Readings."""
        rng = self._rng
        for _ in range(rng.choice((1, 1, 3, 50))):
            qos = rng.choice((0, 1, 1, 1, 2))
            number = rng.choice((1, 2, 3, 77, 65_535, 0)) if qos else 0
            properties = rng.choice(
                (b"", b"", b"\x01\x01", b"\x23\0\1", b"\x02\0\0\0\1", b"\x26" + text(b"a") + text(b"b"), b"\x7f")
            )
            topic = rng.choice(_TOPICS)
            body = text(topic) + (struct.pack(">H", number) if qos else b"") + self._properties(properties)
            if qos == 1:
                self._judge.owed.append(number)
            self._send(packet(PUBLISH << 4 | qos << 1 | rng.randrange(2) | rng.choice((0, 8)), body + b'{"x":1}'))

    def anything(self) -> None:
        """Packets of every kind with bodies of any kind."""
        rng = self._rng
        first = rng.randrange(256)
        body = bytes(rng.randrange(256) for _ in range(rng.choice((0, 1, 2, 3, 5, 20))))
        self._foresee(first, body)
        self._send(packet(first, body))

    def garble(self) -> None:
        """Bytes that are no packet, and packets whose length lies."""
        rng = self._rng
        data = rng.choice((b"\x30\xff\xff\xff\xff\xff", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x20", b"\0\0",
                           b"\x32\x80\x80\x80\x01", b"\xd0\0" * 50, b"\xff" * 30, b"\x16\x03\x01\x02\0"))  # fmt: skip
        self._judge.owes_anything = True  # what lies may bring anything
        self._judge.in_flight.clear()
        self._judge.window = 65_535
        self._send(data)

    def part(self) -> None:
        """DISCONNECT, with a reason or without."""
        self._send(packet(DISCONNECT << 4, self._rng.choice((b"", b"\x8e", b"\x9d\0", b"\x8b\x03\x1f\0\0", b"\x00"))))

    def end(self) -> None:
        """The end of the stream."""
        self._connection.wires[-1].has_ended = True

    def _foresee(self, first: int, body: bytes) -> None:
        """What a packet made at random may set free: the judge must not hold the client to less."""
        kind = first >> 4
        if kind == PUBLISH:
            self._judge.owes_anything = True
        elif kind == PUBACK and len(body) >= 2:
            self._judge.in_flight.discard(struct.unpack(">H", body[:2])[0])
        elif kind == CONNACK:
            self._judge.is_accepted = True
            self._judge.free()

    def _properties(self, data: bytes) -> bytes:
        return length(len(data)) + data if self._is_v5 else b""

    def _send(self, data: bytes) -> None:
        self._count += 1
        wire = self._connection.wires[-1]
        if wire.has_ended or not wire.is_open:
            return
        if len(data) > 1 and self._rng.random() < 0.2:
            at = self._rng.randrange(1, len(data))
            wire.incoming += [data[:at], data[at:]]
        else:
            wire.incoming.append(data)

    def _look(self) -> None:
        """Let the client read and write what there is, and judge it."""
        loop = self._loop
        for _ in range(400):
            loop.settle()
            wires = self._connection.wires
            if len(wires) > self._seen:
                self._seen = len(wires)
                self._judge = _Judge(is_v5=self._is_v5)
                for receipt in self._receipts:
                    receipt.release()  # of a connection that is gone: it acknowledges nothing
                self._receipts.clear()
            wire = wires[-1]
            self._judge.hear(bytes(wire.sent))
            wire.sent.clear()
            reader, writer = loop.readers.get(wire.fileno()), loop.writers.get(wire.fileno())
            busy = False
            if writer is not None:
                writer()
                busy = True
            if reader is not None and (wire.incoming or wire.has_ended):
                reader()
                busy = True
            if not busy and not loop._soon:
                return


_STEPS: list[Callable[[_Course], None]] = [
    *([_Course.accept] * 3), *([_Course.publish] * 5), *([_Course.acknowledge] * 4), *([_Course.bring] * 4),
    *([_Course.release] * 3), *([_Course.wait] * 3), *([_Course.anything] * 2), _Course.grant, _Course.grant,
    _Course.misacknowledge, _Course.refuse, _Course.hold, _Course.garble, _Course.part, _Course.end,
]  # fmt: skip
