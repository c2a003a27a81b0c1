"""The life cycle of a link to one broker: connect, be accepted, subscribe, stay, and connect again.

Every connection is a new one: a paho client, its socket and a `HotPath` (`hot_path.py`), which reads and publishes for
as long as it is up. What it had not delivered when it broke is its user's to send again. Everything runs in the loop's
thread but the blocking part of connecting (names, TCP, TLS), which has a thread of its own, so that a dead broker
never delays a reading.

Guarantee: retries are spaced from `reconnect_min` to `reconnect_max` seconds with jitter. TLS is verified and never
falls back to clear text. A link that is silent for one and a half keep-alives is given up. Weak point: a name that
cannot be resolved keeps its thread for as long as the resolver likes; after `CONNECT_HANG_S` the watchdog acts.
"""

import random
from collections.abc import Callable
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from edge_runtime.config.addresses import parse_endpoint
from edge_runtime.config.load import BrokerTable
from edge_runtime.config.topics import fewest
from edge_runtime.errors import EdgeError
from edge_runtime.mqtt import hot_packets
from edge_runtime.mqtt.ack_coalescing import ACK_DELAY_S
from edge_runtime.mqtt.hot_path import HotPath
from edge_runtime.mqtt.messages import Handler, Outcome, Will
from edge_runtime.mqtt.paho_client import CONNECT_TIMEOUT_S, PahoClient, explain, make_client
from edge_runtime.mqtt.whole_socket import MOST_BYTES, WholeSocket
from edge_runtime.system.background import run_beside
from edge_runtime.system.counters import Counters
from edge_runtime.system.loop import Loop, Timer

CONNECT_PATIENCE_S = 60.0  # for a whole attempt: a peer that drips keeps within every single timeout
CONNECT_HANG_S = 300.0  # a name that is not resolved in this time can only be left by a new process
STABLE_S = 30.0  # a connection that lasted this long resets the back-off


class Connection:
    """A connection that keeps itself up.

    Attributes:
        name: what health calls it.
        connected: the broker has accepted us and the link is up, as far as is known.
        ready: connected, and every subscription is granted.
        state: one line for people.
        window: how many QoS 1 messages the broker lets be unacknowledged.
        on_change: called after `connected` or `ready` changed.
    """

    is_fallback = False  # as `Failover` has it

    def __init__(
        self,
        settings: BrokerTable,
        *,
        name: str,
        client_id: str,
        password: Callable[[], str | None],
        loop: Loop,
        counters: Counters,
        will: Will | None = None,
        ack_patience: float = ACK_DELAY_S,
    ) -> None:
        self.name = name
        self._ack_patience = ack_patience
        self._settings = settings
        self._endpoint = parse_endpoint(settings.url)
        self._client_id = client_id
        self._password = password
        self._loop = loop
        self._counters = counters
        self._will = will
        self._acks_in_order = True
        self._subscriptions: list[tuple[list[str], int, Handler]] = []
        self._handlers: list[Handler] = []  # the same list as in the hot path
        self._asked: dict[str, int] = {}  # filters and QoS, over this connection
        self._unwanted: set[str] = set()  # filters that the broker still sends for
        self._most_bytes = MOST_BYTES
        self._heads = hot_packets.TopicHeads()
        self._parting = ""  # the broker's reason for ending the connection
        self._path: HotPath | None = None
        self._stopping = False
        self._acks_at_once = False
        self._attempts = 0
        self._generation = 0
        self._pending_subscriptions: set[int] = set()
        self._connected_at = 0.0
        self._heard_at = 0.0
        self._timers: list[Timer] = []
        self.connected = False
        self.ready = False
        self.state = "not started"
        self.window = settings.max_inflight
        self.on_change: list[Callable[[], None]] = []

    @property
    def url(self) -> str | None:
        """The broker, while it serves."""
        return self._settings.url if self.connected else None

    @property
    def in_flight(self) -> int:
        """How many messages the broker has not answered."""
        return 0 if self._path is None else self._path.in_flight

    def subscribe(self, filters: list[str], qos: int, handler: Handler, *, most_bytes: int = 0) -> None:
        """Have `handler` called with the messages of `filters`, a list per wake-up.

        A handler that takes payloads of more than 16 MB says so by `most_bytes`; longer messages are passed over.
        When several handlers share a connection each is given every message and picks its own by topic; each takes
        its own hold on the receipts.
        """
        self._subscriptions.append((filters, qos, handler))
        self._handlers.append(handler)
        self._most_bytes = max(self._most_bytes, most_bytes + hot_packets.HEAD_BYTES)
        path = self._path
        if path is not None:
            path.wrapped.most_bytes = self._most_bytes
            if self.connected:
                self._ask_for_topics()
                self._check_ready(path)

    def acknowledge_in_any_order(self) -> None:
        """From now on acknowledge a receipt while older ones wait: each key fills its windows at its own pace."""
        self._acks_in_order = False
        if self._path is not None:
            self._path.acks_in_order = False

    def unsubscribe(self, handler: Handler) -> None:
        """Take back what was subscribed for `handler`; a filter that another handler wants stays."""
        for filters, _, other in self._subscriptions:
            if other == handler:
                self._unwanted.update(filters)
        self._subscriptions = [each for each in self._subscriptions if each[2] != handler]
        self._handlers[:] = [handler for _, _, handler in self._subscriptions]
        self._loop.call_soon(self._ask_for_topics)  # a filter may be wanted again in this very pass

    def _ask_for_topics(self) -> None:
        """Subscribe to what is wanted and was not asked for over this connection, and drop what is not wanted.

        One filter catches a topic at a time, as far as they cover each other: a broker may send a message once for each
        that does. While the link is down this waits for the next connection, for the broker remembers filters.
        """
        path = self._path
        if path is None or not self.connected:
            return
        given = [(topic, qos) for filters, qos, _ in self._subscriptions for topic in filters]
        wanted = fewest(given)
        known = self._asked.keys() or {
            topic for topic, _ in given
        }  # at first: what an earlier start may have asked for
        anew = [(topic, qos) for topic, qos in wanted.items() if self._asked.get(topic) != qos]
        gone = sorted((self._unwanted | known) - wanted.keys())
        if anew:
            _, mid = path.client.subscribe(anew)
            if mid is not None:
                self._pending_subscriptions.add(mid)
        if gone:
            path.client.unsubscribe(gone)
        self._asked = wanted
        self._unwanted.clear()
        path.flush_soon()

    def start(self) -> None:
        """Begin to connect; returns at once."""
        self._connect()

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int,
        retain: bool = False,
        outcome: Outcome | None,
        properties: Properties | None = None,
    ) -> bool:
        """Send a message; False when there is no connection, and then `outcome` is never called.

        `outcome` is called once, unless the connection breaks before: then it is not known whether the broker has the
        message, and `outcome` is never called.
        """
        path = self._path
        if path is None or not self.connected:
            return False
        path.publish(topic, payload, qos=qos, retain=retain, outcome=outcome, properties=properties)
        return True

    def stop(self) -> None:
        """Say goodbye, send what is still unsent, and close. The will is not sent by the broker."""
        self._stopping = True
        self._cancel_timers()
        if self._path is not None:
            self._path.say_goodbye()
            self._forget(f"stopped {self._settings.url}")
        self.state = "stopped"

    def acknowledge_at_once(self) -> None:
        """From now on read every acknowledgement as it comes: a stop waits for the last of them."""
        self._acks_at_once = True
        if self._path is not None:
            self._path.acks.at_once()

    def poke(self) -> None:
        """Write at once what was published or acknowledged; the loop does it by itself at the end of its pass."""
        if self._path is not None:
            self._path.flush()

    # --- connecting -------------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        self._generation += 1
        generation = self._generation
        self._cancel_timers()
        self.state = f"connecting to {self._settings.url}"
        try:
            client = make_client(self._settings, self._client_id, self._password(), self._will)
        except (OSError, ValueError, EdgeError) as error:  # a password or a certificate that cannot be read now
            self._retry(f"cannot prepare the connection to {self._settings.url}: {error}")
            return
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._on_subscribe
        self._timers.append(self._loop.call_later(CONNECT_PATIENCE_S, client.abort))
        run_beside(
            "mqtt-connect",
            self._loop.call_soon_threadsafe,
            lambda: self._open(client),
            lambda _: self._attach(client, generation),
            # name, TCP and TLS errors share no base; each ends this attempt
            lambda error: self._attempt_failed(generation, explain(error, self._settings.url)),
            what=f"connecting to {self._settings.url}",
            most_s=CONNECT_HANG_S,
        )

    def _open(self, client: PahoClient) -> None:
        """In a thread: everything that can block."""
        if self._settings.protocol == "5":
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = int(self._settings.session_expiry)
            properties.ReceiveMaximum = self._settings.receive_maximum
            client.connect(
                self._endpoint.host,
                self._endpoint.port,
                self._settings.keepalive,
                clean_start=False,
                properties=properties,
            )
        else:
            client.connect(self._endpoint.host, self._endpoint.port, self._settings.keepalive)

    def _attempt_failed(self, generation: int, reason: str) -> None:
        if generation == self._generation and not self._stopping:
            self._counters.errors["connect_failed"] += 1
            self._retry(reason)

    def _attach(self, client: PahoClient, generation: int) -> None:
        wrapped = client.socket()
        if not isinstance(wrapped, WholeSocket):
            self._attempt_failed(generation, f"{self._settings.url} closed the connection at once")
            return
        if generation != self._generation or self._stopping:
            wrapped.close()
            return
        self._cancel_timers()  # that of the attempt
        wrapped.most_bytes = self._most_bytes
        self._path = path = HotPath(
            client,
            wrapped,
            url=self._settings.url,
            is_v5=self._settings.protocol == "5",
            loop=self._loop,
            counters=self._counters,
            handlers=self._handlers,
            heads=self._heads,
            ack_patience=self._ack_patience,
            on_state=self._set_state,
            on_end=self._ended,
        )
        path.acks_in_order = self._acks_in_order
        self._heard_at = self._loop.time()
        self._timers.append(self._loop.call_later(CONNECT_TIMEOUT_S, self._check_accepted))
        self._schedule_keepalive()
        path.flush()

    def _set_state(self, state: str) -> None:
        self.state = state

    def _check_accepted(self) -> None:
        if self._path is not None and not self.connected:
            self._lose(f"{self._settings.url} accepted the connection but does not speak MQTT to us")

    def _retry(self, reason: str) -> None:
        settings = self._settings
        delay = min(settings.reconnect_max, settings.reconnect_min * 2.0 ** min(self._attempts, 16))
        delay *= random.uniform(0.5, 1.0)  # noqa: S311 - jitter, no secret
        delay = max(delay, min(settings.reconnect_min, 1.0))
        self._attempts += 1
        self.state = f"{reason}; next attempt in {delay:.0f} s"
        self._timers.append(self._loop.call_later(delay, self._connect))
        self._announce()

    # --- losing -----------------------------------------------------------------------------------------------------

    def _ended(self, reason: str | None) -> None:
        """The hot path met the end of the connection; without a reason of its own, the broker closed it."""
        closed = f"{self._settings.url} closed the connection" if self.connected else self.state
        self._lose(reason or self._parting or closed)

    def _lose(self, reason: str) -> None:
        """The connection is gone or useless: forget it, and try again later."""
        if self._path is None or self._stopping:
            return
        was_connected = self.connected
        self._counters.errors["disconnected" if was_connected else "refused"] += 1
        if was_connected and self._loop.time() - self._connected_at >= STABLE_S:
            self._attempts = 0
        self._forget(reason)
        self._retry(reason)

    def _forget(self, reason: str) -> None:
        self._cancel_timers()
        path, self._path = self._path, None
        if path is not None:
            path.end()
        self._parting = ""
        self._pending_subscriptions.clear()
        self.connected = self.ready = False
        self.state = reason
        self._generation += 1
        if self._stopping:
            self._announce()

    def _cancel_timers(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()

    # --- staying ----------------------------------------------------------------------------------------------------

    def _schedule_keepalive(self) -> None:
        """Look four times a keep-alive: often enough to find a half-open link within two of them."""
        self._timers = [
            timer for timer in self._timers if timer.callback is not None and timer.when > self._loop.time()
        ]
        self._timers.append(self._loop.call_later(max(1.0, self._settings.keepalive / 4), self._keep_alive))

    def _keep_alive(self) -> None:
        path = self._path
        if path is None:
            return
        if path.acks.holding and not path.is_paused:
            path.read()  # the answer to a ping is as short as an acknowledgement
        if self._path is not path:
            return
        if path.wrapped.heard:
            self._heard_at, path.wrapped.heard = self._loop.time(), False
        silence = self._loop.time() - self._heard_at
        if silence >= 1.5 * self._settings.keepalive:  # paho asks after one keep-alive, and would wait for another
            self._lose(f"{self._settings.url} does not answer")
            return
        if path.client.loop_misc() != paho.MQTT_ERR_SUCCESS or path.client.socket() is None:
            self._lose(f"{self._settings.url} does not answer")
            return
        path.flush()
        self._schedule_keepalive()

    # --- paho's callbacks -------------------------------------------------------------------------------------------

    def _on_connect(
        self,
        _client: paho.Client,
        _userdata: Any,
        _flags: paho.ConnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        if reason.is_failure:
            self.state = f"{self._settings.url} refused the login of {self._client_id!r}: {reason}"
            return
        path = self._path
        assert path is not None
        maximum = getattr(properties, "ReceiveMaximum", None)
        self.window = path.window = min(self._settings.max_inflight, maximum or self._settings.max_inflight)
        path.most_sent = getattr(properties, "MaximumPacketSize", None) or hot_packets.MOST_BYTES
        self.connected = True
        self._connected_at = self._loop.time()
        self.state = f"connected to {self._settings.url}"
        self._counters.counts["connects"] += 1
        self._asked = {}
        self._ask_for_topics()
        self._check_ready(path)

    def _on_subscribe(
        self, _client: paho.Client, _userdata: Any, mid: int, reasons: list[ReasonCode], _properties: Properties
    ) -> None:
        if any(reason.is_failure for reason in reasons):
            self._counters.errors["subscription_refused"] += 1
            self.state = f"{self._settings.url} refused a subscription"
            self._loop.call_soon(self._announce)
            return
        self._pending_subscriptions.discard(mid)
        if self._path is not None:
            self._check_ready(self._path)

    def _check_ready(self, path: HotPath) -> None:
        self.ready = not self._pending_subscriptions
        if self.ready and not self._acks_at_once:
            path.acks.allow()
        self._loop.call_soon(self._announce)

    def _on_disconnect(
        self,
        _client: paho.Client,
        _userdata: Any,
        flags: paho.DisconnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        if flags.is_disconnect_packet_from_server:
            self._parting = f"{self._settings.url} ended the connection: {reason}"

    def _announce(self) -> None:
        for listener in self.on_change:
            listener()
