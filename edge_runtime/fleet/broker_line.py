"""A connection to the broker of the devices: receives their publications, and publishes with acknowledgement.

It uses MQTT 5, in which a broker gives a reason where an account may not subscribe or publish (3.1.1 drops both
silently), and falls back to 3.1.1 for a broker without MQTT 5. Guarantee: `hear` raises every refusal (CONNACK, SUBACK,
PUBACK) as one line that names it. Each new connection is reported as `connected`; the caller's deadline ends waiting.

Weak point: a broker drops messages for a subscriber that is too slow; mosquitto by default queues 1,000 messages of QoS
1, with 20 in flight, so a wildcard over 1,000 devices loses most retained messages. A caller with many devices
subscribes with QoS 0, which is sent at once, and then calls `read_again` for missing topics, in batches that fit every
queue.
"""

import queue
import ssl
import threading
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import msgspec
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.subscribeoptions import SubscribeOptions

from edge_runtime.config.addresses import parse_endpoint
from edge_runtime.fleet.errors import AwayError, RefusedError

CONNECTED = "connected"
CAUGHT_UP = "caught up"
_NO_SUCH_VERSION = 0x84  # CONNACK: unsupported protocol version
_NO_SUBSCRIBERS = 0x10  # PUBACK: taken, but nothing is subscribed
_MOST_KNOWN = 65_535  # message ids
_BATCH = 100  # topics that are read again at a time


class Login(msgspec.Struct, frozen=True, kw_only=True):
    """How to reach the broker.

    Attributes:
        url: `mqtt://HOST:PORT` or `mqtts://HOST:PORT`.
        username: None for a broker without accounts.
        password: of that account.
        ca_file: the authority of the broker's certificate, where the system does not know it.
    """

    url: str
    username: str | None = None
    password: str | None = None
    ca_file: str | None = None


class Heard(NamedTuple):
    """A message; with an empty payload and the topic `connected` a new connection, or `caught up` after `read_again`.

    Attributes:
        topic: below `edge/`.
        payload: its bytes.
        retained: the broker kept it.
    """

    topic: str
    payload: bytes
    retained: bool = False


class BrokerLine:
    """A connection that hears some topics below `edge/`. A context manager.

    Args:
        login: the broker.
        filters: what to listen to, below `edge/`.
        qos: 1 for a conversation with one device, 0 for many devices.

    Raises:
        AwayError: the broker cannot be reached.
    """

    def __init__(self, login: Login, filters: Sequence[str], *, qos: int = 1) -> None:
        self._login = login
        self._qos = qos
        self._again: deque[list[str]] = deque()
        self._reading: tuple[int | None, list[str]] | None = None
        self._filters = filters
        self._heard: queue.SimpleQueue[Heard | Exception] = queue.SimpleQueue()
        self._published: dict[int, str] = {}
        self._early: dict[int, Any] = {}  # acknowledged before `publish` has returned
        self._lock = threading.Lock()
        self._closing = False
        self.connections = 0  # what was not acknowledged before another one may be lost
        self._client = self._connect(MQTTProtocolVersion.MQTTv5)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._closing = True
        self._client.disconnect()
        self._client.loop_stop()

    def hear(self, patience_s: float) -> Heard | None:
        """The next message; `connected` for a connection; None for none in that time.

        Raises:
            RefusedError: the broker refuses the login, a subscription or what was published.
        """
        try:
            found = self._heard.get(timeout=max(0.0, patience_s))
        except queue.Empty:
            return None
        if isinstance(found, Exception):
            raise found
        return found

    def publish(self, topic: str, payload: bytes | dict[str, Any], *, retain: bool = False, qos: int = 1) -> bool:
        """Publish below `edge/`; False without a connection, when a caller that waits has to publish again.

        With `qos=0` nothing tells whether it arrived or was refused, and nothing is waited for: a broker lets only some
        messages of QoS 1 be under way, so that each twenty of a thousand would cost a round trip.
        """
        if not self._client.is_connected():
            return False
        data = payload if isinstance(payload, bytes) else msgspec.json.encode(payload)
        # Without our lock: paho calls back under a lock of its own, which this call needs too.
        mid = self._client.publish(f"edge/{topic}", data, qos=qos, retain=retain).mid
        if qos == 0:
            return True
        with self._lock:
            if mid in self._early:
                reason = self._early.pop(mid)
            else:
                reason = None
                self._published[mid] = topic
                while len(self._published) > _MOST_KNOWN:
                    self._published.pop(next(iter(self._published)))
        if reason is not None:
            self._acknowledged(topic, reason)
        return True

    def read_again(self, topics: Sequence[str]) -> None:
        """Have the broker send what it retains on these topics, below `edge/`; `caught up` is heard after the last."""
        with self._lock:
            self._again.extend(list(topics[at : at + _BATCH]) for at in range(0, len(topics), _BATCH))
            is_idle = self._reading is None
        if is_idle:
            self._read_next()

    @property
    def is_settled(self) -> bool:
        """The broker has acknowledged everything that was published."""
        with self._lock:
            return not self._published

    def _connect(self, version: MQTTProtocolVersion) -> paho.Client:
        endpoint = parse_endpoint(self._login.url)
        client = paho.Client(CallbackAPIVersion.VERSION2, protocol=version, transport=endpoint.transport)
        if endpoint.path:
            client.ws_set_options(path=endpoint.path)
        client.reconnect_delay_set(1, 5)
        if self._login.username is not None:
            client.username_pw_set(self._login.username, self._login.password)
        if endpoint.tls:
            client.tls_set_context(ssl.create_default_context(cafile=self._login.ca_file))
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_publish = self._on_publish
        client.on_message = self._on_message
        try:
            client.connect(endpoint.host, endpoint.port)
        except OSError as error:
            raise AwayError(f"{self._login.url}: the broker cannot be reached: {error}") from error
        client.loop_start()
        return client

    def _on_connect(self, client: paho.Client, _userdata: object, _flags: object, reason: Any, _more: object) -> None:
        if reason.is_failure:
            if reason.value == _NO_SUCH_VERSION and client.protocol == MQTTProtocolVersion.MQTTv5:
                threading.Thread(target=self._fall_back, name="mqtt 3.1.1", daemon=True).start()
                return
            self._heard.put(RefusedError(f"{self._login.url} refused the login: {reason}"))
            return
        with self._lock:
            self.connections += 1
            self._published.clear()
            self._early.clear()
            self._again.clear()
            self._reading = None
        self._subscribe(client, self._filters, self._qos)

    def _subscribe(self, client: paho.Client, filters: Sequence[str], qos: int) -> int | None:
        if client.protocol == MQTTProtocolVersion.MQTTv5:
            options = SubscribeOptions(qos=qos, noLocal=True)
            return client.subscribe([(f"edge/{each}", options) for each in filters])[1]
        return client.subscribe([(f"edge/{each}", qos) for each in filters])[1]

    def _read_next(self) -> None:
        with self._lock:
            if not self._again:
                self._reading = None
                self._heard.put(Heard(CAUGHT_UP, b""))
                return
            topics = self._again.popleft()
            self._reading = (self._subscribe(self._client, topics, 0), topics)

    def _fall_back(self) -> None:
        """A broker of MQTT 3.1.1: connect anew, outside of the old client's thread."""
        self._client.disconnect()
        self._client.loop_stop()
        if self._closing:
            return
        try:
            self._client = self._connect(MQTTProtocolVersion.MQTTv311)
        except AwayError as error:
            self._heard.put(error)

    def _on_subscribe(
        self, _client: object, _userdata: object, mid: int, reasons: Sequence[Any], _more: object
    ) -> None:
        with self._lock:
            reading = self._reading
        if reading is not None and reading[0] == mid:
            self._client.unsubscribe([f"edge/{each}" for each in reading[1]])
            self._read_next()
            return
        for topic, reason in zip(self._filters, reasons, strict=False):
            if reason.is_failure:
                self._heard.put(
                    RefusedError(f"the broker does not let this account subscribe to edge/{topic}: {reason}")
                )
                return
        self._heard.put(Heard(CONNECTED, b""))

    def _on_publish(self, _client: object, _userdata: object, mid: int, reason: Any, _more: object) -> None:
        with self._lock:
            topic = self._published.pop(mid, None)
            if topic is None:  # `publish` has not come back yet
                self._early[mid] = reason
                while len(self._early) > _MOST_KNOWN:
                    self._early.pop(next(iter(self._early)))
                return
        self._acknowledged(topic, reason)

    def _acknowledged(self, topic: str, reason: Any) -> None:
        if reason.is_failure and reason.value != _NO_SUBSCRIBERS:
            self._heard.put(RefusedError(f"the broker does not let this account publish to edge/{topic}: {reason}"))

    def _on_message(self, _client: object, _userdata: object, message: paho.MQTTMessage) -> None:
        self._heard.put(Heard(message.topic.removeprefix("edge/"), bytes(message.payload), bool(message.retain)))
