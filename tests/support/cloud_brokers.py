"""Brokers with the rules of two clouds, as their makers document them; what breaks a rule is noted, and ends the link.

TLS, ALPN and WebSockets are done here by hand on sockets, so that nothing of the client's libraries judges itself.
"""

import base64
import contextlib
import hashlib
import hmac
import socket
import ssl
import struct
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from tests.support.fake_broker import CONNACK, CONNECT, PUBLISH, SUBSCRIBE, Client, FakeBroker, Mode, packet

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3
_BINARY, _CLOSE, _PING, _PONG = 2, 8, 9, 10


def _framed(opcode: int, payload: bytes) -> bytes:
    return bytes([0x80 | opcode, len(payload)]) + payload


class ServerWebSocket:
    """The server's side of RFC 6455 over a connected socket, as strict as it asks for.

    Args:
        connected: the connection.
        path: what has to be asked for.
        violations: takes what the client did that the specification forbids.
        pings_every: a ping goes out with every so many frames; 0 for none.
    """

    def __init__(self, connected: Any, path: str, violations: list[str], *, pings_every: int = 3) -> None:
        self._connected = connected
        self._violations = violations
        self._pings_every = pings_every
        self._buffer = b""
        self._sent = 0
        self.pongs = 0
        head = b""
        while b"\r\n\r\n" not in head:
            chunk = connected.recv(4096)
            if not chunk:
                raise OSError("no request")
            head += chunk
        line, *lines = head.partition(b"\r\n\r\n")[0].decode().split("\r\n")
        fields = {name.strip().lower(): value.strip() for name, _, value in (each.partition(":") for each in lines)}
        wanted = {"upgrade": "websocket", "connection": "upgrade", "sec-websocket-version": "13"}
        faults = [name for name, value in wanted.items() if fields.get(name, "").lower() != value]
        if line != f"GET {path} HTTP/1.1" or faults or "mqtt" not in fields.get("sec-websocket-protocol", ""):
            connected.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            raise OSError(f"no upgrade: {line} {faults}")
        proof = hashlib.sha1(fields["sec-websocket-key"].encode() + _GUID)  # noqa: S324 - what RFC 6455 asks for
        accept = base64.b64encode(proof.digest()).decode()
        answer = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        answer += f"Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"
        connected.sendall(answer.encode())

    def recv(self, _size: int) -> bytes:
        """The payload of the next frames; empty at the end."""
        while True:
            frame = self._frame()
            if frame is None:
                return b""
            opcode, payload = frame
            if opcode == _CLOSE:
                return b""
            if opcode == _PONG:
                self.pongs += 1
            elif opcode == _BINARY and payload:
                return payload

    def sendall(self, data: bytes) -> None:
        """Frames of at most 100 bytes, in two pieces, or behind a ping in one."""
        for at in range(0, len(data), 100):
            self._sent += 1
            frame = _framed(_BINARY, data[at : at + 100])
            if self._pings_every and self._sent % self._pings_every == 0:
                self._connected.sendall(_framed(_PING, b"are you there") + frame)
            else:
                self._connected.sendall(frame[:1])
                self._connected.sendall(frame[1:])

    def shutdown(self, how: int) -> None:
        """Of the socket below."""
        self._connected.shutdown(how)

    def settimeout(self, seconds: float) -> None:
        """Of the socket below."""
        self._connected.settimeout(seconds)

    def close(self) -> None:
        """Of the socket below."""
        self._connected.close()

    def _frame(self) -> tuple[int, bytes] | None:
        head = self._exactly(2)
        if head is None:
            return None
        opcode, size = head[0] & 15, head[1] & 127
        if not head[1] & 128:
            self._violations.append(f"a frame without a mask (opcode {opcode})")
            return None
        if not head[0] & 128 or opcode not in {_BINARY, _CLOSE, _PING, _PONG}:
            self._violations.append(f"a frame with the first byte {head[0]:#x}")
            return None
        if size > 125:
            wider = self._exactly(2 if size == 126 else 8)
            if wider is None:
                return None
            size = int.from_bytes(wider, "big")
        mask, payload = self._exactly(4), self._exactly(size)
        if mask is None or payload is None:
            return None
        return opcode, bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))

    def _exactly(self, size: int) -> bytes | None:
        while len(self._buffer) < size:
            chunk = self._connected.recv(65_536)
            if not chunk:
                return None
            self._buffer += chunk
        found, self._buffer = self._buffer[:size], self._buffer[size:]
        return found


class SecuredBroker(FakeBroker):
    """A fake broker behind TLS, or TLS and WebSockets.

    Args:
        mode: how it behaves beyond the rules of its class.
        context: of TLS; None for a clear connection.
        path: of the WebSocket; None speaks MQTT itself.

    Attributes:
        client_ids: of each CONNECT.
        alpn: what TLS has agreed on with each connection.
    """

    def __init__(self, mode: Mode, context: ssl.SSLContext | None, *, path: str | None = None) -> None:
        self._context = context
        self._path = path
        self.client_ids: list[str] = []
        self.alpn: list[str | None] = []
        super().__init__(mode)

    @property
    def port(self) -> int:
        """Where it is."""
        return int(self._listener.getsockname()[1])

    def violate(self, client: Client, what: str) -> None:
        """Note it, and end the link."""
        self.violations.append(what)
        client.close()

    def _serve(self, client: Client) -> None:
        plain = client.socket
        connected: Any = plain
        try:
            if self._context is not None:
                connected = self._context.wrap_socket(plain, server_side=True)
                client.socket = connected
                self.alpn.append(connected.selected_alpn_protocol())
            if not self._admits(client):
                return
            if self._path is not None:
                client.socket = ServerWebSocket(connected, self._path, self.violations)  # type: ignore[assignment]
            super()._serve(client)
        except OSError:
            pass
        finally:
            with contextlib.suppress(OSError):
                client.socket.shutdown(socket.SHUT_RDWR)
            connected.close()

    def _admits(self, client: Client) -> bool:
        """Whether a connection may go on that has not sent anything yet."""
        del client
        return True


def _strings(body: bytes, at: int) -> list[bytes]:
    found = []
    while at < len(body):
        size = struct.unpack(">H", body[at : at + 2])[0]
        found.append(body[at + 2 : at + 2 + size])
        at += 2 + size
    return found


class AwsIotCore(SecuredBroker):
    """AWS IoT Core: certificates, ALPN on the port of HTTPS, policies.

    Its documented limits: the client id is the one of the policy, topics beyond the policy end the connection (this
    one permits no subscription), no QoS 2, a message has at most 128 KB, a topic at most 256 bytes and seven slashes.

    Args:
        context: with the authority of its clients.
        thing: the name of the device.
        topics: prefixes that its policy lets it publish to.
    """

    ALPN = "x-amzn-mqtt-ca"

    def __init__(self, context: ssl.SSLContext, thing: str, topics: tuple[str, ...]) -> None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.set_alpn_protocols([self.ALPN])
        self._thing = thing
        self._topics = topics
        super().__init__(Mode(most_qos=1), context)

    def _admits(self, client: Client) -> bool:
        if self.alpn[-1] == self.ALPN:
            return True
        self.violations.append(f"no {self.ALPN} on the port of HTTPS")
        client.close()
        return False

    def _take(self, client: Client, first: int, body: bytes) -> None:
        kind = first & 0xF0
        if kind == CONNECT:
            found = _strings(body, 10)
            self.client_ids.append(found[0].decode())
            if found[0].decode() != self._thing:
                self.violate(client, f"client id {found[0].decode()}")
                return
            if body[7] & 4 and not self._permits(found[1].decode()):
                self.violate(client, f"a will on {found[1].decode()}")
                return
        elif kind == PUBLISH:
            size = struct.unpack(">H", body[:2])[0]
            topic = body[2 : 2 + size].decode()
            if not self._permits(topic) or size > 256 or topic.count("/") > 7:
                self.violate(client, f"a message on {topic}")
                return
            if len(body) > 128 * 1024:
                self.violate(client, f"a message of {len(body)} bytes")
                return
        elif kind == SUBSCRIBE:
            self.violate(client, f"a subscription to {_strings(body, 2)[0].decode()}")
            return
        super()._take(client, first, body)

    def _permits(self, topic: str) -> bool:
        return topic.startswith(self._topics)


def sas_token(hub: str, device: str, key: bytes, expiry: float) -> str:
    """A token of Azure: the resource, its signature, and the second at which it ends."""
    resource = quote(f"{hub}/devices/{device}", safe="")
    signed = f"{resource}\n{int(expiry)}".encode()
    signature = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    return f"SharedAccessSignature sr={resource}&sig={quote(signature, safe='')}&se={int(expiry)}"


class AzureIotHub(SecuredBroker):
    """Azure IoT Hub: the device's name as client id, tokens that expire, one topic to publish to.

    As documented: the user name is `HUB/DEVICE/?api-version=...`, the password a token, whose end ends the connection;
    telemetry goes to `devices/DEVICE/messages/events/` and its property bags, any other topic and QoS 2 end the
    connection; MQTT 3.1.1 alone; a message has at most 256 KB.

    Args:
        context: of TLS.
        device: the name of the device.
        key: that its tokens are signed with.
        path: of the WebSocket.

    Attributes:
        tokens: the password of each connection that was let in.
        expired: how many connections it has ended because their token was over.
    """

    HUB = "factory.azure-devices.net"

    def __init__(self, context: ssl.SSLContext, device: str, key: bytes, *, path: str | None = None) -> None:
        self._device = device
        self._key = key
        self.tokens: list[str] = []
        self.expired = 0
        self._timers: list[threading.Timer] = []
        super().__init__(Mode(most_qos=1), context, path=path)

    @property
    def events(self) -> str:
        """Where telemetry goes."""
        return f"devices/{self._device}/messages/events/"

    def close(self) -> None:
        """End it."""
        for timer in self._timers:
            timer.cancel()
        super().close()

    def _take(self, client: Client, first: int, body: bytes) -> None:
        kind = first & 0xF0
        if kind == CONNECT:
            found = [each.decode() for each in _strings(body, 10)]
            will = [found.pop(1), found.pop(1)] if body[7] & 4 else []
            if will and not will[0].startswith(self.events):
                self.violate(client, f"a will on {will[0]}")
                return
            self.client_ids.append(found[0])
            lifetime = self._lifetime(found)
            if lifetime is None:
                client.send(packet(CONNACK, bytes([0, 5])))
                client.close()
                return
            self.tokens.append(found[2])
            timer = threading.Timer(lifetime, self._expire, args=(client,))
            timer.daemon = True
            self._timers.append(timer)
            timer.start()
        elif kind == PUBLISH:
            size = struct.unpack(">H", body[:2])[0]
            topic = body[2 : 2 + size].decode()
            if not topic.startswith(self.events) or len(body) > 256 * 1024:
                self.violate(client, f"a message of {len(body)} bytes on {topic}")
                return
        elif kind == SUBSCRIBE:
            topic = _strings(body, 2)[0].decode()
            if not topic.startswith(f"devices/{self._device}/messages/devicebound/"):
                self.violate(client, f"a subscription to {topic}")
                return
        super()._take(client, first, body)

    def _expire(self, client: Client) -> None:
        if client is self.present:
            self.expired += 1
            client.close()

    def _lifetime(self, login: list[str]) -> float | None:
        """The seconds that a login is good for; None where it is none."""
        if len(login) != 3 or login[0] != self._device:
            return None
        if login[1] != f"{self.HUB}/{self._device}/?api-version=2021-04-12":
            return None
        head, _, rest = login[2].partition(" ")
        fields = dict(each.split("=", 1) for each in rest.split("&")) if "=" in rest else {}
        if head != "SharedAccessSignature" or fields.keys() != {"sr", "sig", "se"}:
            return None
        good = sas_token(self.HUB, self._device, self._key, float(fields["se"]))
        if login[2] != good or unquote(fields["sr"]) != f"{self.HUB}/devices/{self._device}":
            return None
        left = float(fields["se"]) - time.time()
        return left if left > 0 else None


def server_context(certificate: Path, key: Path, authority: Path) -> ssl.SSLContext:
    """TLS with this certificate, which trusts clients of the authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(authority)
    return context
