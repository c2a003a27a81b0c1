"""Read a serial port at the usual speeds, or a broker's topics, for a few seconds.

Guarantee: nothing is written to a port, nothing is published, and no broker keeps a session. Weak point: opening a port
resets many boards, and their boot messages are read too.
"""

import contextlib
import os
import select
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from edge_runtime.config.addresses import parse_endpoint
from edge_runtime.errors import CommandError
from edge_runtime.stream.sources.port import PortError, close_port, open_port

USUAL_SPEEDS = (115_200, 9_600, 57_600, 38_400, 19_200, 230_400, 4_800)
_PORTS = ("/dev/serial/by-id/*", "/dev/ttyUSB*", "/dev/ttyACM*", "/dev/ttyAMA*", "/dev/serial0")
_LISTEN_S = 1.5  # at each speed: enough for a sensor that sends once a second
_ENOUGH = 4096
_MOST_MESSAGES = 500
_CONNECT_S = 10.0


class _Port(msgspec.Struct, frozen=True):
    """What `open_port` wants, for a look."""

    port: str
    baudrate: int
    bytesize: int = 8
    parity: str = "none"
    stopbits: int = 1
    flow_control: str = "none"
    dtr: bool | None = None
    rts: bool | None = None


def serial_ports(patterns: Sequence[str] = _PORTS) -> list[str]:
    """Every serial port once, under its most stable name."""
    found: dict[Path, str] = {}
    for pattern in patterns:
        for path in sorted(Path("/").glob(pattern.removeprefix("/"))):
            found.setdefault(path.resolve(), str(path))
    return list(found.values())


def hear_port(port: str, baudrate: int, seconds: float = _LISTEN_S) -> bytes:
    """The bytes that a port sends within some seconds.

    Raises:
        CommandError: it cannot be opened.
    """
    try:
        descriptor = open_port(_Port(port, baudrate))
    except PortError as error:
        raise CommandError(str(error)) from error
    heard = bytearray()
    until = time.monotonic() + seconds
    try:
        while len(heard) < _ENOUGH and (rest := until - time.monotonic()) > 0:
            if not select.select([descriptor], [], [], rest)[0]:
                break
            chunk = os.read(descriptor, _ENOUGH)
            if not chunk:
                break
            heard += chunk
    except OSError as error:
        raise CommandError(f"{port}: {error.strerror}") from error
    finally:
        close_port(descriptor)
    return bytes(heard)


def find_speed(port: str, speeds: Sequence[int] = USUAL_SPEEDS) -> tuple[int, bytes]:
    """The speed at which the largest share of bytes is text, and these bytes; 115200 where the port is silent.

    Raises:
        CommandError: the port cannot be opened.
    """
    best = (0.0, speeds[0], b"")
    for speed in speeds:
        heard = hear_port(port, speed)
        share = share_of_text(heard)
        if share > best[0]:
            best = (share, speed, heard)
        if share > 0.98 and heard.count(b"\n") >= 2:
            break
    return best[1], best[2]


def share_of_text(heard: bytes) -> float:
    """The share of printable bytes: about half at a wrong speed."""
    return sum(byte in b"\t\r\n" or 32 <= byte < 127 for byte in heard) / len(heard) if heard else 0.0


def lines_of(heard: bytes) -> list[bytes]:
    """The complete lines, without the first and the last one, which may be cut."""
    return [line for line in heard.replace(b"\r", b"\n").split(b"\n")[1:-1] if line.strip()]


def hear_broker(url: str, topic: str, seconds: float) -> dict[str, list[bytes]]:
    """Topics with their messages within some seconds.

    Raises:
        CommandError: the broker cannot be reached, or refuses.
    """
    endpoint = parse_endpoint(url)
    heard: dict[str, list[bytes]] = {}
    state: dict[str, Any] = {}
    client = paho.Client(CallbackAPIVersion.VERSION2, client_id="", clean_session=True, transport=endpoint.transport)
    if endpoint.path:
        client.ws_set_options(path=endpoint.path)
    client.connect_timeout = _CONNECT_S
    if endpoint.tls:
        client.tls_set()

    def connected(_client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        state["reason"] = reason
        client.subscribe(topic, 0)

    def came(_client: Any, _data: Any, message: paho.MQTTMessage) -> None:
        with contextlib.suppress(UnicodeDecodeError):
            if sum(map(len, heard.values())) < _MOST_MESSAGES:
                heard.setdefault(message.topic, []).append(bytes(message.payload))

    client.on_connect, client.on_message = connected, came
    try:
        client.connect(endpoint.host, endpoint.port)
        until = time.monotonic() + seconds
        while time.monotonic() < until and client.loop(timeout=0.1) == paho.MQTT_ERR_SUCCESS:
            pass
        client.disconnect()
    except (OSError, ValueError) as error:
        raise CommandError(
            f"{url}: expected a broker, found: {error}: is it running? name another with --broker"
        ) from error
    reason = state.get("reason")
    if reason is None or reason.is_failure:
        cause = "no answer" if reason is None else str(reason)
        raise CommandError(
            f"{url}: expected a broker that lets this machine in, found: {cause}: write the file by hand"
        )
    return heard


def topic_patterns(heard: dict[str, list[bytes]]) -> Iterator[tuple[str, list[bytes]]]:
    """Topics that differ in one level only, as one with `{key}`, and the messages of all of them; the busiest first."""
    topics = {topic: messages for topic, messages in heard.items() if not topic.startswith("$")}
    groups: dict[str, list[str]] = {}
    for topic in topics:
        levels = topic.split("/")
        for place in range(len(levels)):
            groups.setdefault("/".join([*levels[:place], "{key}", *levels[place + 1 :]]), []).append(topic)
    taken: set[str] = set()
    found: list[tuple[str, list[bytes]]] = []
    for pattern, members in sorted(groups.items(), key=lambda each: -len(each[1])):
        fresh = [topic for topic in members if topic not in taken]
        if len(fresh) > 1:
            taken.update(fresh)
            found.append((pattern, [message for topic in fresh for message in topics[topic]]))
    found += [(topic, messages) for topic, messages in topics.items() if topic not in taken]
    yield from sorted(found, key=lambda each: -len(each[1]))
