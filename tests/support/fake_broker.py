"""A broker that behaves badly in one way, byte by byte; it notes where a client breaks the protocol.

It stands for what a real one may do and mosquitto does not. Each way is a `Mode`: what the CONNACK says, and what is
done with each packet. Everything else is as friendly as can be, so that what a test finds is due to that one way.
"""

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.support.waiting import patient

CONNECT, CONNACK, PUBLISH, PUBACK, SUBSCRIBE, SUBACK = 0x10, 0x20, 0x30, 0x40, 0x80, 0x90
PINGREQ, PINGRESP, DISCONNECT, AUTH = 0xC0, 0xD0, 0xE0, 0xF0


def length(size: int) -> bytes:
    """A remaining length."""
    digits = bytearray()
    while True:
        digits.append(size & 127 | (128 if size > 127 else 0))
        size >>= 7
        if not size:
            return bytes(digits)


def packet(first: int, body: bytes) -> bytes:
    """A whole packet."""
    return bytes([first]) + length(len(body)) + body


def text(value: bytes) -> bytes:
    """A string with its length."""
    return struct.pack(">H", len(value)) + value


@dataclass
class Published:
    """One PUBLISH of the client."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    identifier: int
    size: int


@dataclass
class Mode:
    """One way to behave.

    Attributes:
        properties: of the CONNACK.
        connack: the reason code of the n-th CONNACK, from 0 on.
        session: whether a session is present at the n-th.
        on_connect: what is sent behind a CONNACK, or instead of it.
        on_publish: takes a PUBLISH; True when it has seen to the acknowledgement itself.
        on_subscribe: the reason codes for the filters of the n-th SUBSCRIBE.
        answers_pings: it does.
        receive_maximum: beyond it the connection ends.
        packet_bytes: beyond it the connection ends.
        most_qos: above it the connection ends, as does a will.
        retains: without it a retained message or will ends the connection.
        ack_delay_s: before a PUBACK.
    """

    properties: bytes = b""
    connack: Callable[[int], int] = lambda _n: 0
    session: Callable[[int], bool] = lambda n: n > 0
    on_connect: "Callable[[Client], bool] | None" = None
    on_publish: "Callable[[Client, Published], bool] | None" = None
    on_subscribe: Callable[[int, list[bytes]], list[int]] = lambda _n, filters: [1] * len(filters)
    answers_pings: bool = True
    receive_maximum: int = 65_535
    packet_bytes: int = 268_435_460
    most_qos: int = 2
    retains: bool = True
    ack_delay_s: float = 0.0


@dataclass
class Client:
    """One connection of the client."""

    socket: socket.socket
    broker: "FakeBroker"
    number: int
    is_v5: bool = False
    unacknowledged: set[int] = field(default_factory=set)
    heard: float = field(default_factory=time.monotonic)
    buffer: bytes = b""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def send(self, data: bytes) -> None:
        """Bytes as they are."""
        with self.lock:
            self.socket.sendall(data)

    def properties(self, data: bytes) -> bytes:
        """Properties with their length; nothing in MQTT 3.1.1."""
        return length(len(data)) + data if self.is_v5 else b""

    def acknowledge(self, identifier: int, reason: int = 0, properties: bytes = b"") -> None:
        """A PUBACK."""
        self.unacknowledged.discard(identifier)
        body = struct.pack(">H", identifier)
        if self.is_v5 and (reason or properties):
            body += bytes([reason]) + self.properties(properties)
        self.send(packet(PUBACK, body))

    def publish(
        self, topic: bytes, payload: bytes, identifier: int = 0, *, properties: bytes = b"", first: int = 0
    ) -> None:
        """A PUBLISH: QoS 1 with an identifier, else QoS 0; `first` instead of the usual first byte."""
        head = first or (PUBLISH | (2 if identifier else 0))
        number = struct.pack(">H", identifier) if identifier else b""
        self.send(packet(head, text(topic) + number + self.properties(properties) + payload))

    def disconnect(self, reason: int, properties: bytes = b"") -> None:
        """A DISCONNECT with a reason, where the version has one, and the end of the connection."""
        if self.is_v5:
            self.send(packet(DISCONNECT, bytes([reason]) + self.properties(properties)))
        self.close()

    def close(self) -> None:
        """The end of the connection."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)


class FakeBroker:
    """Serves one mode until `close`.

    Attributes:
        published: every PUBLISH that it acknowledged, or took at QoS 0, in order.
        seen: every PUBLISH.
        violations: what clients did that the protocol forbids.
        connects: how many CONNECTs came.
        subscribes: the filters of each SUBSCRIBE.
        acknowledged: the identifiers of the client's PUBACKs.
        disconnects: the reason codes of the client's DISCONNECTs.
    """

    def __init__(self, mode: Mode) -> None:
        self.mode = mode
        self.published: list[Published] = []
        self.seen: list[Published] = []
        self.violations: list[str] = []
        self.connects = 0
        self.pings = 0
        self.subscribes: list[list[bytes]] = []
        self.acknowledged: list[int] = []
        self.disconnects: list[int] = []
        self.clients: list[Client] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def url(self) -> str:
        """Where it is."""
        return f"mqtt://127.0.0.1:{self._listener.getsockname()[1]}"

    @property
    def present(self) -> Client | None:
        """The latest connection."""
        return self.clients[-1] if self.clients else None

    def close(self) -> None:
        """End it, and its threads."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for client in self.clients:
            client.close()
        for thread in list(self._threads):
            thread.join(patient(10))
        for client in self.clients:
            client.socket.close()

    def _accept(self) -> None:
        while True:
            try:
                accepted, _ = self._listener.accept()
            except OSError:
                return
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client = Client(accepted, self, len(self.clients))
            self.clients.append(client)
            thread = threading.Thread(target=self._serve, args=(client,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: Client) -> None:
        try:
            while (found := self._next(client)) is not None:
                self._take(client, *found)
        except OSError:
            client.close()

    @staticmethod
    def _next(client: Client) -> tuple[int, bytes] | None:
        while True:
            size, shift, at = 0, 0, 1
            while at < len(client.buffer) and shift < 28:
                size |= (client.buffer[at] & 127) << shift
                shift += 7
                at += 1
                if client.buffer[at - 1] < 128:
                    if len(client.buffer) >= at + size:
                        first, body = client.buffer[0], client.buffer[at : at + size]
                        client.buffer = client.buffer[at + size :]
                        return first, body
                    break
            data = client.socket.recv(65_536)
            if not data:
                return None
            client.buffer += data

    def _take(self, client: Client, first: int, body: bytes) -> None:
        client.heard = time.monotonic()
        kind = first & 0xF0
        if len(body) + 1 + len(length(len(body))) > self.mode.packet_bytes:
            self.violations.append(f"a packet of {len(body)} bytes")
            client.disconnect(0x95)
        elif kind == CONNECT:
            self._connect(client, body)
        elif kind == PUBLISH:
            self._publish(client, first, body)
        elif kind == SUBSCRIBE:
            self._subscribe(client, body)
        elif kind == PINGREQ:
            self.pings += 1
            if self.mode.answers_pings:
                client.send(packet(PINGRESP, b""))
        elif kind == PUBACK:
            self.acknowledged.append(struct.unpack(">H", body[:2])[0])
        elif kind == DISCONNECT:
            self.disconnects.append(body[0] if body else 0)
            client.close()
        elif kind not in {0x50, 0x60, 0x70}:
            self.violations.append(f"a packet that no client sends: {first:#04x}")

    def _connect(self, client: Client, body: bytes) -> None:
        client.is_v5 = body[6] == 5
        flags = body[7]
        number, self.connects = self.connects, self.connects + 1
        mode = self.mode
        reason = mode.connack(number)
        if flags & 4 and (flags >> 3 & 3) > mode.most_qos:
            reason = 0x9B
        elif flags & 4 and flags & 0x20 and not mode.retains:
            reason = 0x9A
        if reason == 0 and mode.on_connect is not None and mode.on_connect(client):
            return
        session = 1 if mode.session(number) and reason == 0 else 0
        properties = mode.properties if reason == 0 else b""
        client.send(packet(CONNACK, bytes([session, reason]) + client.properties(properties)))
        if reason:
            client.close()

    def _subscribe(self, client: Client, body: bytes) -> None:
        at = 2 + (1 + body[2] if client.is_v5 else 0)
        filters = []
        while at < len(body):
            size = struct.unpack(">H", body[at : at + 2])[0]
            filters.append(body[at + 2 : at + 2 + size])
            at += 3 + size
        reasons = self.mode.on_subscribe(len(self.subscribes), filters)
        self.subscribes.append(filters)
        client.send(packet(SUBACK, body[:2] + client.properties(b"") + bytes(reasons)))

    def _publish(self, client: Client, first: int, body: bytes) -> None:
        size = struct.unpack(">H", body[:2])[0]
        at, qos, identifier = 2 + size, first >> 1 & 3, 0
        if qos:
            identifier = struct.unpack(">H", body[at : at + 2])[0]
            at += 2
        if client.is_v5:
            at += 1 + body[at]
        found = Published(body[2 : 2 + size].decode(), body[at:], qos, bool(first & 1), identifier, len(body))
        self.seen.append(found)
        mode = self.mode
        if qos > mode.most_qos:
            self.violations.append(f"QoS {qos}")
            client.disconnect(0x9B)
            return
        if found.retain and not mode.retains:
            self.violations.append("a retained message")
            client.disconnect(0x9A)
            return
        if identifier in client.unacknowledged:
            self.violations.append(f"packet id {identifier} twice")
        if identifier:
            client.unacknowledged.add(identifier)
            if len(client.unacknowledged) > mode.receive_maximum:
                self.violations.append(f"{len(client.unacknowledged)} messages in flight")
                client.disconnect(0x93)
                return
        if mode.on_publish is not None and mode.on_publish(client, found):
            return
        if mode.ack_delay_s and identifier:
            threading.Timer(mode.ack_delay_s, self._later, args=(client, found)).start()
            return
        self.published.append(found)
        if identifier:
            client.acknowledge(identifier)

    def _later(self, client: Client, found: Published) -> None:
        self.published.append(found)
        with contextlib.suppress(OSError):
            client.acknowledge(found.identifier)
