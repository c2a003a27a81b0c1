"""The life cycle of a link to one broker: connect, be accepted, subscribe, stay, and connect again.

Every connection is a new one: a paho client, its socket and a `HotPath` (`hot_path.py`), which reads and publishes for
as long as it is up. Messages not delivered when it breaks are not kept: their senders send them again. Everything runs
in the loop's thread, except the blocking part of connecting (names, TCP, TLS), which has its own thread, so that a dead
broker never delays a reading.

Guarantee: retries are spaced from `reconnect_min` to `reconnect_max` seconds with jitter. TLS is verified and never
falls back to clear text. A link that is silent for one and a half keep-alives is given up. Weak point: resolving a name
blocks its thread without a limit; after `CONNECT_HANG_S` the watchdog acts.

Longer than 500 lines, and a class of more than 400, on purpose: a link is one state machine (connecting, accepted,
ready, lost), and each of its steps is short.
"""

import random
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import paho.mqtt.client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from edge_runtime.config.addresses import parse_endpoint
from edge_runtime.config.load import BrokerTable
from edge_runtime.errors import EdgeError
from edge_runtime.mqtt import hot_packets
from edge_runtime.mqtt.ack_coalescing import ACK_DELAY_S
from edge_runtime.mqtt.hot_path import HotPath
from edge_runtime.mqtt.messages import Handler, OnOutcome, RenewedWill, Will
from edge_runtime.mqtt.paho_client import CONNECT_TIMEOUT_S, PahoClient, explain, make_client
from edge_runtime.mqtt.rival import RivalWatch
from edge_runtime.mqtt.send_queue import Grant
from edge_runtime.mqtt.subscriptions import Subscriptions
from edge_runtime.mqtt.whole_socket import MOST_BYTES, WholeSocket
from edge_runtime.system.background import run_beside
from edge_runtime.system.counters import Counters
from edge_runtime.system.log import fields, get_logger
from edge_runtime.system.loop import Loop, Timer

if TYPE_CHECKING:
    from edge_runtime.mqtt.password_command import PasswordCommand

CONNECT_PATIENCE_S = 60.0  # for a whole attempt: a peer that sends byte by byte stays within each single timeout
CONNECT_HANG_S = 300.0  # resolving a name longer than this can only be ended with the process
PING_SHARE = 0.7  # of the keep-alive: with a check every quarter of it, a ping leaves in time
_QOS_NOT_SUPPORTED, _RETAIN_NOT_SUPPORTED = 0x9B, 0x9A  # MQTT 5 section 2.4
ACKS_MOST_S = 60.0  # for an acknowledgement; a working broker is faster, and only a new connection sends again
_ASK_AGAIN_S = 5.0  # after a failed password_command, while the previous password is still valid
_SETTLE_S, _SETTLE_LOOK_S = 1.0, 0.02  # for messages in flight, before the connection is replaced
STABLE_S = 30.0  # a connection that lasted this long resets the back-off

_log = get_logger("mqtt")


class Connection:
    """A connection that reconnects by itself.

    Attributes:
        name: its name in health.
        connected: the broker has accepted the connection and no loss is known.
        ready: connected, and every subscription is granted.
        state: one line for people.
        window: how many unacknowledged QoS 1 messages the broker allows.
        on_change: called after `connected` or `ready` changed.
    """

    is_fallback = False  # the interface of `Failover`

    def __init__(
        self,
        settings: BrokerTable,
        *,
        name: str,
        client_id: str,
        password: Callable[[], str | None],
        loop: Loop,
        counters: Counters,
        will: Will | RenewedWill | None = None,
        ack_patience: float = ACK_DELAY_S,
        keeps_session: bool = True,
    ) -> None:
        self.name = name
        self._keeps_session = keeps_session
        self._ack_patience = ack_patience
        self._settings = settings
        self._endpoint = parse_endpoint(settings.url)
        self._client_id = client_id
        self._password = password
        self._secret = _secret_of(settings)
        self._loop = loop
        self._counters = counters
        self._will = will
        self._acks_in_order = True
        self._subscriptions = Subscriptions(loop, self._note, self._flush_soon)
        self._most_bytes = MOST_BYTES
        self._heads = hot_packets.TopicHeads()
        self._parting = ""  # the broker's reason for ending the connection
        self._path: HotPath | None = None
        self._stopping = False
        self._acks_at_once = False
        self._attempts = 0
        self._rivals = RivalWatch(client_id)
        self._generation = 0
        self._keepalive = float(settings.keepalive)
        self._pinged_at = 0.0
        self._will_qos, self._may_retain_will = 1, True
        self._is_held = False
        self._was_refused = False
        self._answered_at = 0.0
        self._had_session = False
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
        """The URL of the broker while connected; else None."""
        return self._settings.url if self.connected else None

    @property
    def in_flight(self) -> int:
        """How many messages the broker has not acknowledged."""
        return 0 if self._path is None else self._path.in_flight

    @property
    def owed(self) -> int:
        """How many messages we have not acknowledged."""
        return 0 if self._path is None else len(self._path.owed)

    @property
    def delivered(self) -> int:
        """How many messages the present connection has brought."""
        return 0 if self._path is None else self._path.delivered

    def subscribe(
        self, filters: list[str], qos: int, handler: Handler, *, most_bytes: int = 0, optional: bool = False
    ) -> None:
        """Call `handler` with the messages of `filters`, a list per wake-up.

        A handler that takes payloads of more than 16 MB sets `most_bytes`; longer messages are skipped. When several
        handlers share a connection each gets the messages that match its filters, and takes its own hold on the
        receipts. The refusal of an `optional` subscription is no fault of the connection.
        """
        self._subscriptions.add(filters, qos, handler, optional=optional)
        self._most_bytes = max(self._most_bytes, most_bytes + hot_packets.HEAD_BYTES)
        path = self._path
        if path is not None:
            path.wrapped.most_bytes = self._most_bytes
            if self.connected:
                self._check_ready(path)

    def acknowledge_in_any_order(self) -> None:
        """From now on acknowledge receipts out of order, since keys fill their windows at different rates."""
        self._acks_in_order = False
        if self._path is not None:
            self._path.acks_in_order = False

    def unsubscribe(self, handler: Handler) -> None:
        """Unsubscribe the filters of `handler`; a filter of another handler stays."""
        self._subscriptions.remove(handler)

    def drop_filters(self, filters: Iterable[str]) -> None:
        """Unsubscribe, at the next connection, filters of an earlier start that no source uses any more."""
        self._subscriptions.drop(filters)

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
        outcome: OnOutcome | None,
        properties: Properties | None = None,
    ) -> bool:
        """Send a message; False if there is no connection or no room, and then `outcome` is never called.

        A message of QoS 1 is queued while the broker's limit of unacknowledged ones is reached.

        `outcome` is called once, unless the connection breaks first: then it is unknown whether the broker has the
        message, and `outcome` is never called.
        """
        path = self._path
        if path is None or not self.connected:
            return False
        return path.publish(topic, payload, qos=qos, retain=retain, outcome=outcome, properties=properties)

    def unsendable(self, topic: str, size: int) -> str | None:
        """Why a message with a payload of `size` bytes can never be sent over this connection; None if it can."""
        return None if self._path is None else self._path.unsendable(topic, size)

    def hold(self, *, held: bool) -> None:
        """Stop or resume reading: TCP's flow control slows a broker down that sends more than fits."""
        self._is_held = held
        if self._path is not None:
            self._path.hold(held=held)

    def stop(self) -> None:
        """Send unsent messages and a DISCONNECT, and close. The broker does not publish the will."""
        self._stopping = True
        self._cancel_timers()
        if self._path is not None:
            self._path.say_goodbye()
            self._forget(f"stopped {self._settings.url}")
        self.state = "stopped"

    def acknowledge_at_once(self) -> None:
        """From now on read every acknowledgement at once, because a stop waits for the last one."""
        self._acks_at_once = True
        if self._path is not None:
            self._path.acks.at_once()

    def poke(self) -> None:
        """Write published messages and acknowledgements at once, instead of at the end of the loop's pass."""
        if self._path is not None:
            self._path.flush()

    def _flush_soon(self) -> None:
        if self._path is not None:
            self._path.flush_soon()

    # --- connecting -------------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        self._generation += 1
        generation = self._generation
        self._cancel_timers()
        self.state = f"connecting to {self._settings.url}"
        try:
            password = None if self._secret is not None else self._password()
            client = make_client(self._settings, self._client_id, password, keeps_session=self._keeps_session)
            will = self._will() if callable(self._will) else self._will
            if will is not None:
                retain = will.retain and self._may_retain_will
                client.will_set(will.topic, will.payload, qos=self._will_qos, retain=retain)
        except (OSError, ValueError, EdgeError) as error:  # a password or certificate is unreadable at present
            self._retry(f"cannot prepare the connection to {self._settings.url}: {error}")
            return
        client.on_connect, client.on_disconnect = self._on_connect, self._on_disconnect
        client.on_subscribe = self._on_subscribe
        self._timers.append(self._loop.call_later(CONNECT_PATIENCE_S, client.abort))
        run_beside(
            "mqtt-connect",
            self._loop.call_soon_threadsafe,
            lambda: self._open(client),
            done=lambda _: self._attach(client, generation),
            # name, TCP and TLS errors share no base; each ends this attempt
            failed=lambda error: self._open_failed(generation, error),
            what=f"connecting to {self._settings.url}",
            most_s=CONNECT_HANG_S,
        )

    def _open(self, client: PahoClient) -> None:
        """The blocking part of connecting, in a thread."""
        if self._secret is not None:
            client.username_pw_set(self._settings.username, self._secret.password())
        if self._settings.protocol == "5":
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = int(self._settings.session_expiry) if self._keeps_session else 0
            properties.ReceiveMaximum = self._settings.receive_maximum
            client.connect(
                self._endpoint.host,
                self._endpoint.port,
                self._settings.keepalive,
                clean_start=not self._keeps_session,
                properties=properties,
            )
        else:
            client.connect(self._endpoint.host, self._endpoint.port, self._settings.keepalive)

    def _open_failed(self, generation: int, error: Exception) -> None:
        if isinstance(error, EdgeError):
            self._counters.errors["password_command"] += 1
        self._attempt_failed(generation, explain(error, self._settings.url))

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
        self._cancel_timers()  # the timer of the attempt
        wrapped.most_bytes = self._most_bytes
        self._path = path = HotPath(
            client,
            wrapped,
            url=self._settings.url,
            is_v5=self._settings.protocol == "5",
            loop=self._loop,
            counters=self._counters,
            routes=self._subscriptions.routes,
            heads=self._heads,
            ack_patience=self._ack_patience,
            prompt=self._settings.latency == "prompt",
            on_state=self._set_state,
            on_end=self._ended,
        )
        path.acks_in_order = self._acks_in_order
        if self._is_held:
            path.hold(held=True)
        self._keepalive = float(self._settings.keepalive)
        self._heard_at = self._pinged_at = self._answered_at = self._loop.time()
        self._timers.append(self._loop.call_later(CONNECT_TIMEOUT_S, self._check_accepted))
        self._schedule_keepalive()
        path.flush()

    def _set_state(self, state: str) -> None:
        self.state = state

    def _check_accepted(self) -> None:
        if self._path is not None and not self.connected:
            self._lose(f"{self._settings.url} accepted the connection but does not speak MQTT to us")

    def _retry(self, reason: str, hint: str = "") -> None:
        settings = self._settings
        delay = min(settings.reconnect_max, settings.reconnect_min * 2.0 ** min(self._attempts, 16))
        delay *= random.uniform(0.5, 1.0)  # noqa: S311 - jitter, no secret
        delay = max(delay, min(settings.reconnect_min, 1.0))
        self._attempts += 1
        self.state = f"{reason}; next attempt in {delay:.0f} s{hint}"
        self._timers.append(self._loop.call_later(delay, self._connect))
        self._announce()

    # --- losing -----------------------------------------------------------------------------------------------------

    def _ended(self, reason: str | None) -> None:
        """Handle the end of the connection, found by the hot path; without a reason, the broker closed it."""
        closed = f"{self._settings.url} closed the connection" if self.connected else self.state
        soon = self.connected and reason is None and self._loop.time() - self._connected_at < STABLE_S
        self._lose(reason or self._parting or closed, self._rivals.hint(cut_soon=soon))

    def _lose(self, reason: str, hint: str = "") -> None:
        """Drop a lost or useless connection, and retry later."""
        if self._path is None or self._stopping:
            return
        was_connected = self.connected
        self._counters.errors["disconnected" if was_connected else "refused"] += 1
        if was_connected and self._loop.time() - self._connected_at >= STABLE_S:
            self._attempts = 0
        self._forget(reason)
        self._retry(reason, hint)

    def _forget(self, reason: str) -> None:
        self._cancel_timers()
        path, self._path = self._path, None
        if path is not None:
            path.end()
        self._parting = ""
        self._subscriptions.end()
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
        """Check four times a keep-alive: often enough to find a half-open link within two of them."""
        self._timers = [
            timer for timer in self._timers if timer.callback is not None and timer.when > self._loop.time()
        ]
        self._timers.append(self._loop.call_later(max(0.25, self._keepalive / 4), self._keep_alive))

    def _keep_alive(self) -> None:
        path = self._path
        if path is None:
            return
        if path.acks.holding and not path.is_paused:
            path.read()  # the answer to a ping is as short as an acknowledgement, and may be delayed like one
        if self._path is not path:
            return
        now = self._loop.time()
        if path.wrapped.heard or path.is_paused or path.is_held:  # silence means nothing while nothing is read
            self._heard_at, path.wrapped.heard = now, False
        if now - self._heard_at >= 1.5 * self._keepalive:
            self._lose(f"{self._settings.url} does not answer")
            return
        if self.connected and now - self._pinged_at >= PING_SHARE * self._keepalive:
            self._pinged_at = now
            path.ping()
        if path.answered or not path.outcomes or path.is_paused or path.is_held:
            self._answered_at, path.answered = now, False
        if now - self._answered_at >= max(ACKS_MOST_S, self._keepalive):
            self._lose(f"{self._settings.url} acknowledges nothing any more")
            return
        if self._subscriptions.are_exhausted:
            self._lose(f"{self.state}; the connection begins anew")
            return
        self._schedule_keepalive()

    def _renew_in_time(self) -> None:
        """Get a new password before the present one expires, and reconnect with it."""
        secret = self._secret
        if secret is None or secret.renew_at is None:
            return
        generation = self._generation

        def ask() -> None:
            run_beside(
                "mqtt-password",
                self._loop.call_soon_threadsafe,
                secret.renew,
                done=lambda _: self._begin_anew(generation),
                failed=failed,
                what="password_command",
            )

        def failed(error: Exception) -> None:
            self._counters.errors["password_command"] += 1
            _log.warning("%s: asking again", error, extra=fields(link=self.name, broker=self._settings.url))
            if generation == self._generation and not self._stopping:
                self._timers.append(self._loop.call_later(_ASK_AGAIN_S, ask))

        self._timers.append(self._loop.call_at(secret.renew_at, ask))

    def _begin_anew(self, generation: int, patience: float = _SETTLE_S) -> None:
        """Replace a working connection by one with the new password, once messages in flight are acknowledged."""
        path = self._path
        if path is None or generation != self._generation or self._stopping:
            return
        if path.in_flight and patience > 0:
            again = partial(self._begin_anew, generation, patience - _SETTLE_LOOK_S)
            self._timers.append(self._loop.call_later(_SETTLE_LOOK_S, again))
            return
        self._counters.counts["renewals"] += 1
        _log.info("another password: connecting again", extra=fields(link=self.name, broker=self._settings.url))
        path.say_goodbye()
        self._forget(f"connecting to {self._settings.url} with another password")
        self._announce()
        self._connect()

    # --- paho's callbacks -------------------------------------------------------------------------------------------

    def _on_connect(
        self,
        client: paho.Client,
        _userdata: Any,
        flags: paho.ConnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        if reason.is_failure:
            if self._secret is not None:
                self._secret.forget()
            self._adapt_will(reason.value)
            self.state = f"{self._settings.url} refused the login of {self._client_id!r}: {_words(reason, properties)}"
            return
        path = self._path
        assert path is not None
        path.grant = granted = self._granted(properties)
        self.window = granted.window
        server_s = getattr(properties, "ServerKeepAlive", None)
        if server_s:  # MQTT 5 section 3.2.2.3.14: it replaces ours; more frequent pings are allowed
            self._keepalive = min(float(server_s), float(self._settings.keepalive))
            self._schedule_keepalive()
        self.connected = True
        self._connected_at = self._loop.time()
        self.state = f"connected to {self._settings.url}"
        self._counters.counts["connects"] += 1
        self._note_session(present=bool(flags.session_present))
        self._subscriptions.begin(client)
        self._check_ready(path)
        self._renew_in_time()

    def _granted(self, properties: Properties | None) -> Grant:
        """The limits in a CONNACK; the first of each missing feature is logged."""
        most = self._settings.max_inflight
        granted = Grant(
            window=min(most, getattr(properties, "ReceiveMaximum", None) or most),
            bytes=getattr(properties, "MaximumPacketSize", None) or hot_packets.MOST_BYTES,
            qos=min(1, getattr(properties, "MaximumQoS", 1)),
            retains=bool(getattr(properties, "RetainAvailable", 1)),
        )
        if granted.qos == 0:
            self._note("broker_takes_qos_0", "the broker takes QoS 0 only: what is sent counts as delivered")
        if not granted.retains:
            self._note("broker_retains_nothing", "the broker retains nothing, status and models included")
        return granted

    def _adapt_will(self, reason: int) -> None:
        """Lower the QoS of the last will, or do not retain it, after the broker refused it for that."""
        if reason == _QOS_NOT_SUPPORTED:
            self._will_qos = 0
        elif reason == _RETAIN_NOT_SUPPORTED:
            self._may_retain_will = False

    def _note_session(self, *, present: bool) -> None:
        """Count a lost session: the broker has dropped the messages that it held for this device."""
        if self._had_session and not present and self._subscriptions:
            self._note("session_lost", "the broker has lost our session: readings that it held for us are gone")
        self._had_session = True

    def _note(self, reason: str, why: str) -> None:
        """Count it, and log it the first time."""
        if not self._counters.errors[reason]:
            _log.warning(why, extra=fields(link=self.name, broker=self._settings.url))
        self._counters.errors[reason] += 1

    def _on_subscribe(
        self, _client: paho.Client, _userdata: Any, mid: int, reasons: list[ReasonCode], _properties: Properties
    ) -> None:
        self._subscriptions.answered(mid, list(reasons))
        refusal = self._subscriptions.refusal
        if refusal:
            self.state = f"{self._settings.url} refused {refusal}"
        elif self._was_refused:
            self.state = f"connected to {self._settings.url}"
        self._was_refused = bool(refusal)
        if self._path is not None:
            self._check_ready(self._path)

    def _check_ready(self, path: HotPath) -> None:
        self.ready = self._subscriptions.are_granted
        if self.ready and not self._acks_at_once:
            path.acks.allow()
        self._loop.call_soon(self._announce)

    def _on_disconnect(
        self,
        _client: paho.Client,
        _userdata: Any,
        flags: paho.DisconnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        if flags.is_disconnect_packet_from_server:
            self._rivals.parted(reason.value)
            self._parting = f"{self._settings.url} ended the connection: {_words(reason, properties)}"

    def _announce(self) -> None:
        for listener in self.on_change:
            listener()


def _secret_of(settings: BrokerTable) -> "PasswordCommand | None":
    if not settings.password_command:
        return None
    from edge_runtime.mqtt.password_command import PasswordCommand  # noqa: PLC0415 - only where one is configured

    return PasswordCommand(settings.password_command, settings.password_lifetime)


def _words(reason: ReasonCode, properties: Properties | None) -> str:
    """A reason with the broker's explanation: its reason string, and the other server that it names."""
    server_reason = getattr(properties, "ReasonString", None)
    other = getattr(properties, "ServerReference", None)
    parts = [
        str(reason),
        f"({server_reason[:200]})" if server_reason else "",
        f"(it names another server: {other[:200]})" if other else "",
    ]
    return " ".join(part for part in parts if part)
