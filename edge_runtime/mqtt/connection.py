"""One broker: connect, stay connected, subscribe, receive, publish; all in the loop's thread but the connecting itself.

paho is a wire here, not a queue: every connection gets a client of its own, and what that client had not delivered
when the connection broke is its user's to send again. The packets of the hot path go past it (`hot_packets.py`).
The blocking part of connecting (names, TCP, TLS) runs in a thread of its own, so that a dead broker never delays a
reading.

Guarantee: a message is acknowledged to the broker only when its `Receipt` is released, and only over the connection
that brought it. Retries are spaced from `reconnect_min` to `reconnect_max` seconds with jitter. TLS is verified and
never falls back to clear text. While few messages are in flight, an acknowledgement that comes alone wakes nobody: it
is read with the next message, or after `ack_patience` seconds.

What is published while messages are delivered leaves in one write as soon as they are, our own acknowledgements behind
it; only then is settled what the broker has acknowledged, unless so many places are taken that it has to come first.
"""

import contextlib
import random
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from edge_runtime.config.addresses import parse_endpoint
from edge_runtime.config.load import BrokerTable
from edge_runtime.errors import EdgeError
from edge_runtime.mqtt import hot_packets
from edge_runtime.mqtt.light_paho import real_tls
from edge_runtime.mqtt.whole_socket import MOST_BYTES, WholeSocket
from edge_runtime.readings import Receipt
from edge_runtime.system.counters import Counters
from edge_runtime.system.loop import Loop, Timer
from edge_runtime.system.watchdog import working

CONNECT_TIMEOUT_S = 10.0
CONNECT_PATIENCE_S = 60.0  # for a whole attempt: a peer that drips keeps within every single time-out
CONNECT_HANG_S = 300.0  # a name that is not resolved in this time can only be left by a new process
ACK_DELAY_S = 0.2  # how long an acknowledgement, ours or the broker's, waits for company
LEAST_PATIENT_WINDOW = 4  # with fewer places in flight each acknowledgement is needed at once
PATIENT_SHARE = 4  # acknowledgements wait while no more than a quarter of the places is taken
CALM_S = 1.0  # after a rush, so long with few places taken
MOST_UNSENT_ACKS = 5  # a quarter of the 20 that a broker usually lets be unacknowledged
MOST_OWED = 10_000  # messages that wait for our acknowledgement; MQTT's own limit is 65,535
GOODBYE_TIMEOUT_S = 2.0
MOST_TOPICS = 10_000  # whose encoded form is kept
STABLE_S = 30.0  # a connection that lasted this long resets the back-off


class Message(msgspec.Struct, eq=False):
    """One message as it came: its topic as bytes (which may be no UTF-8), and the receipt for QoS 1.

    A handler sets `claimed` when the message is its own; one that nobody claims is counted as `unmatched_topic`.
    """

    topic: bytes
    payload: bytes
    receipt: Receipt | None
    claimed: bool = False
    properties: Properties | None = None
    retained: bool = False


class Will(msgspec.Struct, frozen=True):
    """What the broker says in our place when we are gone."""

    topic: str
    payload: bytes


Outcome = Callable[[bool], None]  # True: the broker has it; False: the broker refused it for good


class _Client(paho.Client):
    """paho over a `WholeSocket`. `_create_socket` is the one private method that we replace."""

    _raw: socket.socket | None = None

    def abort(self) -> None:
        """End what the connecting thread waits for, be it a handshake that drips."""
        if self._raw is not None:
            with contextlib.suppress(OSError):
                self._raw.shutdown(socket.SHUT_RDWR)

    def _create_socket(self) -> Any:
        # As text the name would go through Python's IDNA, whose tables are 1.5 MiB; a name beyond ASCII has to.
        host = self.host.encode() if self.host.isascii() else self.host
        plain = self._raw = socket.create_connection((host, self.port), timeout=CONNECT_TIMEOUT_S)  # type: ignore[arg-type]
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        context = self._ssl_context
        if context is None:
            return WholeSocket(plain)
        secured = self._raw = context.wrap_socket(plain, server_hostname=self.host, do_handshake_on_connect=False)
        try:
            secured.do_handshake()
        except BaseException:
            secured.close()  # paho would leave it to the garbage collector
            raise
        return WholeSocket(secured, real_tls())


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
        self._subscriptions: list[tuple[list[str], int, Callable[[list[Message]], None]]] = []
        self._most_bytes = MOST_BYTES
        self._most_sent = hot_packets.MOST_BYTES
        self._parting = ""  # what the broker said when it ended the connection
        self._client: _Client | None = None
        self._socket: WholeSocket | None = None
        self._fd = -1
        self._stopping = False
        self._attempts = 0
        self._generation = 0
        self._is_v5 = settings.protocol == "5"
        self._no_properties = b"\0" if self._is_v5 else b""
        self._heads: dict[str, bytes] = {}
        self._last_id = hot_packets.FIRST_ID
        self._inbox: list[Message] = []
        self._owed: deque[Receipt] = deque()  # the broker waits for their PUBACKs
        self._outcomes: dict[int, Outcome] = {}
        self._settled: list[tuple[Outcome, bool]] = []
        self._handed: list[Outcome] = []  # of QoS 0, which is settled with the write
        self._pending_subscriptions: set[int] = set()
        self._paused = False
        self._flush_due = False
        self._delivering = False  # while a batch is with its handlers
        self._acks = bytearray()  # ours, on their way to the socket
        self._ack_timer: Timer | None = None
        self._acks_wait = False  # the broker's, in the socket
        self._rush_timer: Timer | None = None  # while there is a rush
        self._most_in_flight = 0  # of the rush's last look
        self._hurried = False
        self._writing = False
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
        return len(self._outcomes)

    def subscribe(
        self, filters: list[str], qos: int, handler: Callable[[list[Message]], None], *, most_bytes: int = 0
    ) -> None:
        """Have `handler` called with the messages of `filters`, a list per wake-up. Before `start` only.

        A handler that takes payloads of more than 16 MB says so by `most_bytes`; longer messages are passed over.
        When several handlers share a connection each is given every message and picks its own by topic; each takes
        its own hold on the receipts.
        """
        self._subscriptions.append((filters, qos, handler))
        self._most_bytes = max(self._most_bytes, most_bytes + hot_packets.HEAD_BYTES)

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

        `outcome` is called once, unless the connection breaks before: then nobody knows, and it is never called.
        """
        wrapped = self._socket
        if wrapped is None or not self.connected:
            return False
        packet_id = self._next_id() if qos else 0
        extra = self._no_properties if properties is None else bytes(properties.pack())  # type: ignore[no-untyped-call]
        try:
            head = self._heads.get(topic) or self._keep_head(topic)
            packet = hot_packets.publish(head, payload, packet_id, retain=retain, properties=extra)
            if len(packet) > self._most_sent:
                raise ValueError(f"the broker takes at most {self._most_sent} bytes, found {len(packet)}")  # noqa: TRY301
        except ValueError as error:  # no broker would take it: a topic with a wildcard, a payload beyond MQTT's limit
            self._counters.errors["publish_refused"] += 1
            self.state = f"{self._settings.url}: a message cannot be sent: {error}"
            if outcome is not None:
                self._settled.append((outcome, False))
                self._loop.call_soon(self._settle)
            return True
        wrapped.send(packet)
        if outcome is not None and packet_id:
            self._outcomes[packet_id] = outcome
        elif outcome is not None:
            self._handed.append(outcome)
        self._flush_soon()
        return True

    def _next_id(self) -> int:
        """A packet id that the broker does not hold."""
        while True:
            self._last_id = self._last_id + 1 if self._last_id < hot_packets.LAST_ID else hot_packets.FIRST_ID
            if self._last_id not in self._outcomes:
                return self._last_id

    def _keep_head(self, topic: str) -> bytes:
        if len(self._heads) >= MOST_TOPICS:
            self._heads.clear()
        head = self._heads[topic] = hot_packets.topic_head(topic)
        return head

    def stop(self) -> None:
        """Say goodbye, send what is still unsent, and close. The will is not sent by the broker."""
        self._stopping = True
        self._cancel_timers()
        client, wrapped = self._client, self._socket
        if client is not None and wrapped is not None:
            self._loop.remove_reader(self._fd)
            self._loop.remove_writer(self._fd)
            self._fd = -1  # paho closes the socket with the goodbye
            wrapped.set_patience(GOODBYE_TIMEOUT_S)
            self._add_acks(wrapped)
            self._drain_to_socket(client)
            client.disconnect()
            self._drain_to_socket(client)
            self._forget(f"stopped {self._settings.url}")
        self.state = "stopped"

    def hurry(self) -> None:
        """From now on be woken by every acknowledgement: somebody waits for the last of them (a stop)."""
        self._hurried = True
        if self._acks_wait:
            self._let_acks_wait(want=False)
            self._on_readable()

    def poke(self) -> None:
        """Write at once what was published or acknowledged; the loop does it by itself at the end of its pass."""
        self._flush()

    # --- connecting ---------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        self._generation += 1
        generation = self._generation
        self._cancel_timers()
        self.state = f"connecting to {self._settings.url}"
        try:
            client = self._make_client()
        except (OSError, ValueError, EdgeError) as error:  # a password or a certificate that cannot be read now
            self._retry(f"cannot prepare the connection to {self._settings.url}: {error}")
            return
        self._timers.append(self._loop.call_later(CONNECT_PATIENCE_S, client.abort))
        threading.Thread(
            target=self._connect_blocking, args=(client, generation), name="mqtt-connect", daemon=True
        ).start()

    def _make_client(self) -> _Client:
        settings = self._settings
        is_v5 = settings.protocol == "5"
        client = _Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._client_id,
            protocol=paho.MQTTv5 if is_v5 else paho.MQTTv311,
            clean_session=None if is_v5 else False,
            manual_ack=True,
            reconnect_on_failure=False,
        )
        client.connect_timeout = CONNECT_TIMEOUT_S
        if settings.username is not None:
            client.username_pw_set(settings.username, self._password())
        if self._endpoint.tls:
            ssl = real_tls()
            context = ssl.create_default_context(cafile=settings.ca_file)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            if settings.cert_file is not None:
                context.load_cert_chain(settings.cert_file, settings.key_file)
            client.tls_set_context(context)
        if self._will is not None:
            client.will_set(self._will.topic, self._will.payload, qos=1, retain=True)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        # with this set paho leaves the writing to us: one flush at the end of a pass instead of one send a packet
        client.on_socket_register_write = _leave_writing_to_the_loop
        return client

    def _connect_blocking(self, client: _Client, generation: int) -> None:
        """In a thread: everything that can block."""
        try:
            with working(f"connecting to {self._settings.url}", CONNECT_HANG_S):
                self._open(client)
        except Exception as error:  # noqa: BLE001 - name, TCP and TLS errors share no base; each ends this attempt
            reason = _explain(error, self._settings.url)
            self._loop.call_soon_threadsafe(lambda: self._attempt_failed(generation, reason))
        else:
            self._loop.call_soon_threadsafe(lambda: self._attach(client, generation))

    def _open(self, client: _Client) -> None:
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

    def _attach(self, client: _Client, generation: int) -> None:
        wrapped = client.socket()
        if not isinstance(wrapped, WholeSocket):
            self._attempt_failed(generation, f"{self._settings.url} closed the connection at once")
            return
        if generation != self._generation or self._stopping:
            wrapped.close()
            return
        self._cancel_timers()  # that of the attempt
        wrapped.most_bytes = self._most_bytes
        self._client, self._socket, self._fd = client, wrapped, wrapped.fileno()
        self._heard_at = self._loop.time()
        self._loop.add_reader(self._fd, self._on_readable)
        self._timers.append(self._loop.call_later(CONNECT_TIMEOUT_S, self._check_accepted))
        self._schedule_keepalive()
        self._flush()

    def _check_accepted(self) -> None:
        if self._client is not None and not self.connected:
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

    # --- losing -------------------------------------------------------------------------------------------------

    def _lose(self, reason: str) -> None:
        """The connection is gone or useless: forget it, and try again later."""
        if self._client is None or self._stopping:
            return
        was_connected = self.connected
        self._counters.errors["disconnected" if was_connected else "refused"] += 1
        if was_connected and self._loop.time() - self._connected_at >= STABLE_S:
            self._attempts = 0
        self._forget(reason)
        self._retry(reason)

    def _tidy_later(self) -> None:
        if self._ack_timer is None:
            self._ack_timer = self._loop.call_later(self._ack_patience, self._tidy)

    def _tidy(self) -> None:
        """Nothing came along that would have taken the acknowledgements with it, in or out."""
        self._ack_timer = None
        if self._acks_wait and self._outcomes and not self._paused:
            self._on_readable()
        if self._acks:
            self._flush()
        if self._acks_wait and self._outcomes:
            self._tidy_later()

    def _watch_rush(self) -> None:
        """Something was written: in a rush no acknowledgement may wait, be it only a moment.

        A broker without TCP_NODELAY sends its next packet when the kernel has acknowledged the last one, and the kernel
        takes up to 40 ms for that while nobody reads; with every place taken that would be the speed of the stream.
        """
        taken = len(self._outcomes)
        if self._rush_timer is not None:
            self._most_in_flight = max(self._most_in_flight, taken)
        elif self._is_rush(taken):
            self._let_acks_wait(want=False)
            self._rush_timer = self._loop.call_later(CALM_S, self._calm_down)
        elif taken:
            self._tidy_later()

    def _is_rush(self, taken: int) -> bool:
        return taken > self.window // PATIENT_SHARE

    def _calm_down(self) -> None:
        self._rush_timer = None
        most, self._most_in_flight = self._most_in_flight, len(self._outcomes)
        if self._is_rush(max(most, self._most_in_flight)):
            self._rush_timer = self._loop.call_later(CALM_S, self._calm_down)
            return
        self._let_acks_wait()
        if self._acks_wait and self._outcomes:
            self._tidy_later()

    def _let_acks_wait(self, *, want: bool = True) -> None:
        """Let a lonely acknowledgement wait for the next message, where nothing else depends on it."""
        wrapped = self._socket
        is_calm = self.ready and not self._hurried and self._rush_timer is None
        patient = want and is_calm and self.window >= LEAST_PATIENT_WINDOW
        if wrapped is not None and patient != self._acks_wait:
            least = hot_packets.PUBACK_BYTES + 1 if patient else 1
            self._acks_wait = wrapped.let_wait(least) and patient

    def _forget(self, reason: str) -> None:
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            self._loop.remove_writer(self._fd)
        self._cancel_timers()
        client, self._client = self._client, None
        wrapped, self._socket = self._socket, None
        self._fd = -1
        self._writing = False
        self._outcomes.clear()
        self._settled.clear()
        self._handed.clear()
        self._inbox.clear()
        self._owed.clear()
        self._paused = False
        self._parting = ""
        self._acks.clear()
        self._acks_wait = False
        if self._ack_timer is not None:
            self._ack_timer.cancel()
            self._ack_timer = None
        if self._rush_timer is not None:
            self._rush_timer.cancel()
            self._rush_timer = None
        self._most_in_flight = 0
        self._pending_subscriptions.clear()
        if client is not None:
            client.on_disconnect = None
        if wrapped is not None:
            wrapped.close()
        self.connected = self.ready = False
        self.state = reason
        self._generation += 1
        if self._stopping:
            self._announce()

    def _cancel_timers(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()

    def _schedule_keepalive(self) -> None:
        """Look four times a keep-alive: often enough to find a half-open link within two of them."""
        self._timers = [
            timer for timer in self._timers if timer.callback is not None and timer.when > self._loop.time()
        ]
        self._timers.append(self._loop.call_later(max(1.0, self._settings.keepalive / 4), self._keep_alive))

    def _keep_alive(self) -> None:
        client, wrapped = self._client, self._socket
        if self._acks_wait and not self._paused:
            self._on_readable()  # the answer to a ping is as short as an acknowledgement
        if client is None or wrapped is None or self._client is not client:
            return
        if wrapped.heard:
            self._heard_at, wrapped.heard = self._loop.time(), False
        silence = self._loop.time() - self._heard_at
        if silence >= 1.5 * self._settings.keepalive:  # paho asks after one keep-alive, and would wait for another
            self._lose(f"{self._settings.url} does not answer")
            return
        if client.loop_misc() != paho.MQTT_ERR_SUCCESS or client.socket() is None:
            self._lose(f"{self._settings.url} does not answer")
            return
        self._flush()
        self._schedule_keepalive()

    # --- the hot path -------------------------------------------------------------------------------------------

    def _on_readable(self) -> None:
        client, wrapped = self._client, self._socket
        if client is None or wrapped is None:
            return
        fault = self._read_all(client, wrapped)
        if self._settled and not (self._acks_wait and self._inbox and fault is None):
            self._settle()  # what the broker said before the connection broke counts
        if fault is not None:
            self._lose(fault)
            return
        if self._inbox:
            messages, self._inbox = self._inbox, []
            self._deliver(messages)
        if self._settled:  # few are in flight, so that nobody waited for this: the answer to a reading went first
            self._settle()
        if client.want_write():  # paho answers something; our own packets see to themselves
            self._flush_soon()
        if len(self._owed) >= MOST_OWED and self._client is client:
            self._paused = True  # a broker without a window of its own: let the network hold it back
            self._loop.remove_reader(self._fd)

    def _read_all(self, client: _Client, wrapped: WholeSocket) -> str | None:
        """Let paho have everything that has arrived; says what is wrong when the connection is at its end."""
        try:
            more = True
            while more:
                more = wrapped.fill()
                while wrapped.take(self, is_v5=self._is_v5):
                    result = client.loop_read()
                    if client.socket() is None:
                        refused = self.state if not self.connected else f"{self._settings.url} closed the connection"
                        return self._parting or refused
                    if result != paho.MQTT_ERR_SUCCESS:
                        break
        except OSError as error:
            return f"{self._settings.url}: {error.strerror or error}"
        except Exception as error:  # noqa: BLE001 - whatever paho makes of bytes that are no MQTT ends the connection
            self._counters.errors["not_mqtt"] += 1
            return f"{self._settings.url} sent something that is not MQTT ({type(error).__name__})"
        return None

    def _deliver(self, messages: list[Message]) -> None:
        self._delivering = True  # what is published meanwhile leaves in one write
        for _, _, handler in self._subscriptions:
            handler(messages)
        self._delivering = False
        if self._flush_due:
            self._flush_due = False
            self._write()
        for message in messages:
            if not message.claimed:
                self._counters.rejected["unmatched_topic"] += 1
            if message.receipt is not None:
                message.receipt.release()

    def _settle(self) -> None:
        settled, self._settled = self._settled, []
        for outcome, accepted in settled:
            outcome(accepted)

    def _flush_soon(self) -> None:
        if not self._flush_due:
            self._flush_due = True
            if not self._delivering:
                self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Write what paho has to say, and what we have."""
        self._flush_due = False
        if self._client is not None:
            self._drain_to_socket(self._client)
        self._write()

    def _write(self) -> None:
        wrapped = self._socket
        if wrapped is None:
            return
        self._add_acks(wrapped)
        if not wrapped.has_unsent:
            return
        try:
            done = wrapped.flush()
        except OSError as error:
            self._settle()  # what the broker said before the connection broke counts
            self._lose(f"{self._settings.url}: {error.strerror or error}")
            return
        if self._handed:
            self._settled += [(outcome, True) for outcome in self._handed]
            self._handed.clear()
            self._loop.call_soon(self._settle)
        if done == self._writing:  # a writer is registered exactly while something is left
            self._writing = not done
            if done:
                self._loop.remove_writer(self._fd)
            else:
                self._loop.add_writer(self._fd, self._flush)
        if self._acks_wait or self._rush_timer is not None:
            self._watch_rush()

    def _add_acks(self, wrapped: WholeSocket) -> None:
        """Ours go behind what was published: a broker takes one packet after the other, and people wait for those."""
        if self._acks:
            wrapped.send(self._acks)
            self._acks.clear()

    @staticmethod
    def _drain_to_socket(client: _Client) -> None:
        if client.want_write():
            client.loop_write()

    def _acknowledge(self) -> None:
        """A receipt was released: give the broker its PUBACKs, in the order of its messages.

        A receipt of an earlier connection is owed to nobody: `_owed` knows those of the present one only.
        """
        if self._socket is None:
            return
        while self._owed and self._owed[0].is_released:  # MQTT 3.1.1 section 4.6: in the order of arrival
            self._acks += hot_packets.puback(self._owed.popleft().number)
        if len(self._acks) >= MOST_UNSENT_ACKS * hot_packets.PUBACK_BYTES:
            self._flush_soon()
        elif self._acks:
            self._tidy_later()  # the next publish takes it along: one write for both; this is if none comes
        if self._paused and len(self._owed) < MOST_OWED // 2:
            self._paused = False
            self._loop.add_reader(self._fd, self._on_readable)

    # --- the hot path's packets, and paho's callbacks: they note what happened, and act when all is read ---------

    def took_message(
        self, topic: bytes, payload: bytes, packet_id: int, *, retained: bool, properties: Properties | None = None
    ) -> None:
        """A message has come; see `hot_packets.Taker`."""
        receipt = None
        if packet_id:
            receipt = Receipt(self._acknowledge, packet_id)
            self._owed.append(receipt)
        self._inbox.append(Message(topic, payload, receipt, properties=properties, retained=retained))

    def took_too_long(self, topic: bytes, packet_id: int, size: int) -> None:
        """A message that nobody has room for: counted, acknowledged, and so not sent again; see `WholeSocket`."""
        self._counters.rejected["too_long"] += 1
        self.state = f"{self._settings.url} sent {size} bytes on {topic[:80]!r}: passed over"
        if packet_id:
            receipt = Receipt(self._acknowledge, packet_id)
            self._owed.append(receipt)
            receipt.release()

    def took_acknowledgement(self, packet_id: int, reason: int) -> None:
        """The broker has answered a message of ours; see `hot_packets.Taker`."""
        outcome = self._outcomes.pop(packet_id, None)
        if outcome is None:
            return
        refused = hot_packets.is_refusal(reason)
        if refused:
            self._counters.errors["publish_refused"] += 1
            why = ReasonCode(PacketTypes.PUBACK, identifier=reason)
            self.state = f"{self._settings.url} refused a message: {why}"
        self._settled.append((outcome, not refused))

    def _on_message(self, _client: paho.Client, _userdata: Any, message: paho.MQTTMessage) -> None:
        topic: bytes = message._topic  # noqa: SLF001 - `topic` decodes
        self.took_message(
            topic,
            bytes(message.payload),
            message.mid if message.qos == 1 else 0,
            retained=message.retain,
            properties=message.properties,
        )

    def _on_connect(
        self,
        client: paho.Client,
        _userdata: Any,
        _flags: paho.ConnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        if reason.is_failure:
            self.state = f"{self._settings.url} refused the login of {self._client_id!r}: {reason}"
            return
        maximum = getattr(properties, "ReceiveMaximum", None)
        self.window = min(self._settings.max_inflight, maximum or self._settings.max_inflight)
        self._most_sent = getattr(properties, "MaximumPacketSize", None) or hot_packets.MOST_BYTES
        self.connected = True
        self._connected_at = self._loop.time()
        self.state = f"connected to {self._settings.url}"
        self._counters.counts["connects"] += 1
        for filters, qos, _ in self._subscriptions:
            _, mid = client.subscribe([(topic, qos) for topic in filters])
            if mid is not None:
                self._pending_subscriptions.add(mid)
        self.ready = not self._pending_subscriptions
        self._let_acks_wait()
        self._loop.call_soon(self._announce)

    def _on_subscribe(
        self, _client: paho.Client, _userdata: Any, mid: int, reasons: list[ReasonCode], _properties: Properties
    ) -> None:
        if any(reason.is_failure for reason in reasons):
            self._counters.errors["subscription_refused"] += 1
            self.state = f"{self._settings.url} refused a subscription"
            self._loop.call_soon(self._announce)
            return
        self._pending_subscriptions.discard(mid)
        self.ready = not self._pending_subscriptions
        if self.ready:
            self._let_acks_wait()
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


def _leave_writing_to_the_loop(_client: paho.Client, _userdata: Any, _socket: Any) -> None:
    """Paho asks to be told when it may write; the flush at the end of the pass does not need to be asked."""


def _explain(error: Exception, url: str) -> str:
    """One line that says what is wrong with the connection, and where to look."""
    ssl = sys.modules.get("ssl")  # not loaded: then it is no fault of TLS
    if ssl is not None and isinstance(error, ssl.SSLCertVerificationError):
        return f"{url}: the broker's certificate is not trusted: {error.verify_message}: check ca_file and the clock"
    if ssl is not None and isinstance(error, ssl.SSLError):
        return f"{url}: TLS failed: {error.reason or error}"
    if isinstance(error, socket.gaierror):
        return f"{url}: the name is not known: {error.strerror}"
    if isinstance(error, TimeoutError):
        return f"{url}: no answer within {CONNECT_TIMEOUT_S:.0f} s"
    if isinstance(error, OSError):
        return f"{url}: {error.strerror or error}"
    return f"{url}: {type(error).__name__}: {error}"
