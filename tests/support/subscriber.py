"""An MQTT client of the tests: it collects what it receives, publishes what a test wants, and waits with deadlines."""

import json
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from tests.support.waiting import Deadline


@dataclass(frozen=True)
class Message:
    """One message as it arrived; `arrived` is on the monotonic clock."""

    topic: str
    payload: bytes
    retained: bool
    qos: int
    arrived: float
    properties: Any = None

    @property
    def text(self) -> str:
        """The payload as text."""
        return self.payload.decode()

    @property
    def document(self) -> Any:
        """The payload as JSON; NaN and Infinity are no JSON here, whatever Python thinks."""
        return json.loads(self.payload, parse_constant=_refuse_constant)


class Subscriber:
    """Connects, subscribes, and keeps every message in order of arrival.

    Args:
        port: of a broker on loopback.
        topics: filters to subscribe to, again after each reconnection.
        qos: of the subscriptions. With 0 the broker hands a message on at once or never; with 1 it keeps what exceeds
            20 unacknowledged ones to itself, and a killed broker takes that along.
        protocol: MQTT 3.1.1 or 5.
        login: user and password.
        ca_file: the authority to trust; given, the connection is TLS.
        client_id: given, the session is kept by the broker while this client is away.
        deadline: how long connecting may take.
    """

    def __init__(
        self,
        port: int,
        *topics: str,
        qos: int = 1,
        protocol: MQTTProtocolVersion = MQTTProtocolVersion.MQTTv311,
        login: tuple[str, str] | None = None,
        ca_file: Path | None = None,
        client_id: str = "",
        deadline: float = 20.0,
    ) -> None:
        self.messages: list[Message] = []
        self._topics = topics
        self._qos = qos
        self._sent: set[int] = set()
        self._acknowledged: set[int] = set()
        self._changed = threading.Condition()
        self._subscribed = False
        keep: dict[str, Any] = {}
        connect: dict[str, Any] = {}
        if protocol == MQTTProtocolVersion.MQTTv5:
            connect["clean_start"] = not client_id
            if client_id:
                connect["properties"] = _connect_properties()
        else:
            keep["clean_session"] = not client_id
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=client_id, protocol=protocol, **keep)
        self._client.reconnect_delay_set(1, 1)
        self._client.max_queued_messages_set(0)
        if login is not None:
            self._client.username_pw_set(*login)
        if ca_file is not None:
            self._client.tls_set(str(ca_file), tls_version=ssl.PROTOCOL_TLS_CLIENT)
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_message = self._on_message
        self._client.on_publish = self._on_publish
        self._client.connect("localhost", port, keepalive=60, **connect)
        self._client.loop_start()
        try:
            self.wait_until(lambda _: self._subscribed, "the subscription to be acknowledged", deadline)
        except AssertionError:
            self.close()
            raise

    def publish(self, topic: str, payload: str | bytes | dict[str, Any], *, qos: int = 1, retain: bool = False) -> None:
        """Hand one message to the broker; a dict is sent as JSON. `flush` waits for the acknowledgements."""
        data = json.dumps(payload) if isinstance(payload, dict) else payload
        # While the link is down paho keeps the message and sends it later; its return code would say otherwise.
        self._sent.add(self._client.publish(topic, data, qos=qos, retain=retain).mid)

    def flush(self, deadline: float = 30.0) -> None:
        """Return when the broker has acknowledged everything published so far.

        Raises:
            AssertionError: it has not in time.
        """
        self.wait_until(
            lambda _: self._sent <= self._acknowledged,
            lambda: f"{len(self._sent - self._acknowledged)} of {len(self._sent)} acknowledgements",
            deadline,
        )
        self._sent.clear()
        self._acknowledged.clear()

    def on(self, prefix: str) -> list[Message]:
        """The messages whose topic begins so, in order of arrival."""
        with self._changed:
            return [message for message in self.messages if message.topic.startswith(prefix)]

    def wait_for(self, count: int, prefix: str = "", deadline: float = 20.0) -> list[Message]:
        """Return the messages under a topic prefix as soon as there are `count` of them.

        Raises:
            AssertionError: they did not come in time; the text says how many did.
        """
        seen = matching = 0

        def enough(messages: list[Message]) -> bool:
            nonlocal seen, matching
            matching += sum(message.topic.startswith(prefix) for message in messages[seen:])
            seen = len(messages)
            return matching >= count

        self.wait_until(
            enough,
            lambda: (
                f"{count} messages under {prefix!r}; {matching} came, the last: "
                + "; ".join(f"{m.topic} {m.payload[:120]!r}" for m in self.on(prefix)[-3:])
            ),
            deadline,
        )
        return self.on(prefix)

    def wait_for_text(self, topic: str, text: str, deadline: float = 20.0) -> None:
        """Return when the newest message of a topic is this text, as for a status."""
        self.wait_until(
            lambda _: (found := self.on(topic)) and found[-1].payload == text.encode(),
            lambda: f"{text!r} on {topic}; it had {[m.payload for m in self.on(topic)]}",
            deadline,
        )

    def wait_until(
        self,
        condition: Callable[[list[Message]], object],
        what: str | Callable[[], str],
        deadline: float = 20.0,
    ) -> None:
        """Return when `condition(messages)` is true.

        Raises:
            AssertionError: it did not come true in time; the text says what was waited for.
        """
        with self._changed:
            until = Deadline(deadline)
            while not (done := condition(self.messages)) and not until.over:
                self._changed.wait(until.left)
        if not done:
            raise AssertionError(f"waited {deadline:g} s in vain for {what if isinstance(what, str) else what()}")

    def clear(self) -> None:
        """Forget what has arrived."""
        with self._changed:
            self.messages.clear()

    def close(self) -> None:
        """Disconnect; a kept session stays with the broker."""
        self._client.disconnect()
        self._client.loop_stop()
        # paho closes its wake-up sockets only when the client goes, and a circle would leave the order to the collector
        self._client.on_connect = self._client.on_subscribe = None
        self._client.on_message = self._client.on_publish = None

    def _on_connect(
        self, client: mqtt.Client, _userdata: object, _flags: object, reason: ReasonCode, _properties: object
    ) -> None:
        if reason.is_failure:
            return
        if self._topics:
            client.subscribe([(topic, self._qos) for topic in self._topics])
        else:
            self._mark_subscribed()

    def _on_subscribe(self, *_arguments: object) -> None:
        self._mark_subscribed()

    def _mark_subscribed(self) -> None:
        with self._changed:
            self._subscribed = True
            self._changed.notify_all()

    def _on_publish(self, _client: mqtt.Client, _userdata: object, mid: int, *_arguments: object) -> None:
        with self._changed:
            self._acknowledged.add(mid)
            self._changed.notify_all()

    def _on_message(self, _client: mqtt.Client, _userdata: object, message: mqtt.MQTTMessage) -> None:
        found = Message(
            message.topic,
            bytes(message.payload),
            bool(message.retain),
            message.qos,
            time.monotonic(),
            getattr(message, "properties", None),
        )
        with self._changed:
            self.messages.append(found)
            self._changed.notify_all()


def _connect_properties() -> Any:
    make: Any = Properties  # paho's class has no types
    properties = make(PacketTypes.CONNECT)
    properties.SessionExpiryInterval = 3600
    return properties


def _refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")
