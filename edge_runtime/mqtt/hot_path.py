"""The hot path of one connection, while it is up: read, deliver, publish, acknowledge, write.

The packets of the hot path bypass paho (`hot_packets.py`); paho gets the others. Messages that are published during a
delivery are sent in one write after it, followed by our own acknowledgements; only then are the broker's
acknowledgements handled, unless so many places are taken that they have to come first. `ack_coalescing.py` decides when
acknowledgements are sent and read.

Guarantee: a message is acknowledged to the broker only when its `Receipt` is released, in the order of arrival (except
readings that wait for their windows), and only over the connection that delivered it, since each connection has its own
`HotPath`. Every `outcome` is called once, or never if before that the connection ends or a newer retained message takes
the place of one that waits. `MOST_OWED` messages may wait for our acknowledgement; then reading stops.

Longer than 500 lines, and a class of more than 400, on purpose: reading, publishing and acknowledging share one socket,
one set of packet ids and one order of sending, and a further call between them costs time for every reading. Separate
modules hold the parts that do not need that order: `ack_coalescing.py`, `send_queue.py`, `hot_packets.py`,
`whole_socket.py`.
"""

import itertools
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from edge_runtime.mqtt import hot_packets
from edge_runtime.mqtt.ack_coalescing import KERNEL_DELAY_S, MOST_UNSENT_BYTES, AckCoalescing
from edge_runtime.mqtt.messages import Message, OnOutcome
from edge_runtime.mqtt.paho_client import PahoClient, topic_of
from edge_runtime.mqtt.routes import Routes
from edge_runtime.mqtt.send_queue import Grant, Queued, SendQueue
from edge_runtime.mqtt.whole_socket import WholeSocket
from edge_runtime.readings import Receipt
from edge_runtime.system.counters import Counters
from edge_runtime.system.log import fields, get_logger
from edge_runtime.system.loop import Loop

MOST_OWED = 10_000  # messages that wait for our acknowledgement; MQTT's own limit is 65,535
MOST_OWED_BY_WINDOWS = 65_000
MOST_AT_ONCE = 256  # messages in one delivery to the handlers
GOODBYE_TIMEOUT_S = 2.0

TopicHeads = hot_packets.TopicHeads
_NUMBERS = itertools.count(1)
_log = get_logger("mqtt")


class _BrokenRuleError(Exception):
    """The broker violated the MQTT specification."""


class HotPath:
    """One open connection; made when TCP and TLS are connected, before the broker's CONNACK.

    Args:
        client: paho, connected.
        wrapped: its socket.
        url: of the broker, for messages.
        is_v5: whether the protocol is MQTT 5.
        loop: the event loop.
        counters: refusals and rejections by reason.
        routes: the handlers of the messages.
        heads: encoded topics, kept from connection to connection.
        ack_patience: see `AckCoalescing`, and `prompt`.
        on_state: called with one line for people when the broker refused a message.
        on_end: called when the connection has ended, with the reason; None if the broker closed it.

    Attributes:
        grant: what the broker allows.
        owed: receipts of the messages that we have not acknowledged.
        acks_in_order: whether we acknowledge in the order of arrival, as required by MQTT 3.1.1 section 4.6. False if
            windows hold their readings, since a silent key would delay all others; brokers match acknowledgements by
            packet id.
        outcomes: by packet id, of our messages that the broker has not acknowledged; None if no callback was given.
        delivered: how many messages were delivered to the handlers.
        answered: whether a PUBACK has arrived; the watch for silence resets it.
        last_id: the last packet id in use.
    """

    def __init__(
        self,
        client: PahoClient,
        wrapped: WholeSocket,
        *,
        url: str,
        is_v5: bool,
        loop: Loop,
        counters: Counters,
        routes: Routes,
        heads: TopicHeads,
        ack_patience: float,
        prompt: bool = False,
        on_state: Callable[[str], None],
        on_end: Callable[[str | None], None],
    ) -> None:
        self.client = client
        self.wrapped = wrapped
        self.grant = Grant()
        self.last_id = hot_packets.FIRST_ID
        self.owed: deque[Receipt] = deque()
        self.outcomes: dict[int, OnOutcome | None] = {}
        self.acks = AckCoalescing(self, wrapped, loop, ack_patience, prompt=prompt)
        self.delivered = 0
        self.answered = False
        self.is_paused = False
        self.acks_in_order = True
        self._look_due = False
        self._number = next(_NUMBERS)
        self.is_held = False
        self.queue = SendQueue(counters)  # messages that wait for a place in flight
        self._url = url
        self._is_v5 = is_v5
        self._no_properties = b"\0" if is_v5 else b""
        self._loop = loop
        self._counters = counters
        self._routes = routes
        self._heads = heads
        self._on_state = on_state
        self._on_end = on_end
        self._inbox: list[Message] = []
        self._settled: list[tuple[OnOutcome, bool]] = []
        self._handed: list[OnOutcome] = []  # of QoS 0, for which the write is the outcome
        self._flush_due = False
        self._delivering = False  # True while handlers process a batch
        self._writing = False
        self._wrote_at = 0.0
        self._fd = wrapped.fileno()
        self._released = self._acknowledge  # bound once
        client.on_message = self._on_message
        loop.add_reader(self._fd, self.read)

    @property
    def _most_owed(self) -> int:
        return MOST_OWED if self.acks_in_order else MOST_OWED_BY_WINDOWS

    @property
    def in_flight(self) -> int:
        """How many messages the broker has not acknowledged, including those that wait for a place."""
        return len(self.outcomes) + len(self.queue.waiting)

    @property
    def window(self) -> int:
        """How many unacknowledged messages of QoS 1 the broker allows."""
        return self.grant.window

    # --- out --------------------------------------------------------------------------------------------------------

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int,
        retain: bool,
        outcome: OnOutcome | None,
        properties: Properties | None,
    ) -> bool:
        """Send a message, or queue it for a place in flight; see `Connection.publish`."""
        grant = self.grant
        extra = self._no_properties if properties is None else bytes(properties.pack())  # type: ignore[no-untyped-call]
        if qos > grant.qos:
            self._counters.counts["sent_at_qos_0"] += 1
            qos = 0
        if retain and not grant.retains:
            self._counters.counts["sent_unretained"] += 1
            retain = False
        if qos and len(self.outcomes) >= grant.window:
            return self.queue.add(Queued(topic, payload, retain, extra, outcome))
        self._send(topic, payload, qos=qos, retain=retain, extra=extra, outcome=outcome)
        return True

    def _send(
        self, topic: str, payload: bytes, *, qos: int, retain: bool, extra: bytes, outcome: OnOutcome | None
    ) -> None:
        packet_id = self._next_id() if qos else 0
        try:
            packet = hot_packets.publish(self._heads[topic], payload, packet_id, retain=retain, properties=extra)
            if len(packet) > self.grant.bytes:
                raise ValueError(f"the broker takes at most {self.grant.bytes} bytes, found {len(packet)}")  # noqa: TRY301
        except ValueError as error:  # no broker accepts it: a topic with a wildcard, a payload beyond MQTT's limit
            self._note_refusal(f"{self._url}: a message cannot be sent: {error}", topic)
            if outcome is not None:
                self._settled.append((outcome, False))
                self._loop.call_soon(self._settle)
            return
        self.wrapped.send(packet)
        if packet_id:
            self.outcomes[packet_id] = outcome
        elif outcome is not None:
            self._handed.append(outcome)
        self.flush_soon()

    def unsendable(self, topic: str, size: int) -> str | None:
        """Why a message with a payload of `size` bytes can never be sent to this broker; None if it can."""
        try:
            head = self._heads[topic]
        except ValueError as error:
            return str(error)
        whole = hot_packets.publish_size(head, size, is_v5=self._is_v5)
        if whole > min(self.grant.bytes, hot_packets.MOST_BYTES):
            return f"the broker takes at most {self.grant.bytes} bytes, found {whole}"
        return None

    def _send_queued(self) -> None:
        while self.queue and len(self.outcomes) < self.grant.window:
            waiting = self.queue.take()
            self._send(
                waiting.topic,
                waiting.payload,
                qos=1,
                retain=waiting.retain,
                extra=waiting.extra,
                outcome=waiting.outcome,
            )

    def _note_refusal(self, why: str, topic: str = "") -> None:
        if not self._counters.errors["publish_refused"]:
            _log.warning("a message was refused", extra=fields(why=why, topic=topic[:200]))
        self._counters.errors["publish_refused"] += 1
        self._on_state(why)

    def ping(self) -> None:
        """Send a PINGREQ to the broker."""
        self.wrapped.send(hot_packets.PINGREQ)
        self.flush_soon()

    def _next_id(self) -> int:
        """The next packet id that is not in use."""
        while True:
            self.last_id = self.last_id + 1 if self.last_id < hot_packets.LAST_ID else hot_packets.FIRST_ID
            if self.last_id not in self.outcomes:
                return self.last_id

    def flush_soon(self) -> None:
        """Schedule one write for all messages of a pass of the loop."""
        if not self._flush_due:
            self._flush_due = True
            if not self._delivering:
                self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write the packets of paho and our own."""
        self._flush_due = False
        if self._fd >= 0:
            self._drain_to_socket()
            self._write()

    def _write(self) -> None:
        wrapped = self.wrapped
        acks = self.acks
        if acks.ours:  # as `_add_acks`, without the call
            wrapped.send(acks.ours)
            acks.ours.clear()
        if not wrapped.has_unsent:
            return
        try:
            done = wrapped.flush()
        except OSError as error:
            self._settle()  # acknowledgements received before the loss count
            self._on_end(f"{self._url}: {error.strerror or error}")
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
                self._loop.add_writer(self._fd, self.flush)
        if acks.holding or acks.rush_timer is not None:
            acks.wrote(len(self.outcomes) + len(self.queue.waiting), self.grant.window)
        if acks.watches_delay:
            self._wrote_at = self._loop.time()

    def _add_acks(self) -> None:
        """Append our acknowledgements after published messages, which are more urgent."""
        self.wrapped.send(self.acks.ours)
        self.acks.ours.clear()

    def _drain_to_socket(self) -> None:
        if self.client.want_write():
            self.client.loop_write()

    # --- in ---------------------------------------------------------------------------------------------------------

    def read(self) -> None:
        """Read all packets, deliver their messages, and handle the broker's acknowledgements."""
        if self._fd < 0:
            return
        try:
            closed = not self._read_all()
            fault = None
        except OSError as error:
            closed, fault = True, f"{self._url}: {error.strerror or error}"
        except _BrokenRuleError as error:
            self._counters.errors["not_mqtt"] += 1
            closed, fault = True, f"{self._url} {error}"
        except Exception as error:  # noqa: BLE001 - any error of paho with bytes that are not MQTT ends the connection
            self._counters.errors["not_mqtt"] += 1
            closed, fault = True, f"{self._url} sent something that is not MQTT ({type(error).__name__})"
        acks, count = self.acks, len(self._inbox)
        if acks.watches_delay and count:
            delay = self._loop.time() - self._wrote_at
            if count > 1 or acks.is_counting or delay >= KERNEL_DELAY_S[0]:
                acks.came_after(delay, count)
        if self._settled and not (self.acks.holding and self._inbox and not closed):
            self._settle()  # acknowledgements received before the loss count
        if closed:
            self._on_end(fault)
            return
        self._deliver_inbox()
        if self._settled:  # few are in flight, so that nothing waited for this, and predictions were sent first
            self._settle()
        if self.client.want_write():  # paho has an answer; our own packets schedule their write
            self.flush_soon()
        if len(self.owed) >= MOST_OWED and len(self.owed) >= self._most_owed and self._fd >= 0:
            self.is_paused = True  # a broker without a limit: TCP flow control stops it
            self._loop.remove_reader(self._fd)

    def _read_all(self) -> bool:
        """Read all packets, and give paho those that are not ours; False if the broker has closed the connection."""
        more = True
        while more:
            more = self.wrapped.fill()
            while self.wrapped.take(self, is_v5=self._is_v5):
                result = self.client.loop_read()
                if self.client.socket() is None:
                    return False
                if result != paho.MQTT_ERR_SUCCESS:
                    break
        return True

    def hold(self, *, held: bool) -> None:
        """Stop or resume reading; messages that were read but not delivered wait here."""
        if held == self.is_held or self._fd < 0:
            return
        self.is_held = held
        if held:
            self._loop.remove_reader(self._fd)
            return
        self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        self._deliver_inbox()
        if not self.is_held and not self.is_paused and self._fd >= 0:
            self._loop.add_reader(self._fd, self.read)

    def _deliver_inbox(self) -> None:
        """Deliver the messages in parts, so that delivery stops when a handler has no more room."""
        while self._inbox and not self.is_held:
            messages, self._inbox = self._inbox, []
            if len(messages) > MOST_AT_ONCE:
                messages, self._inbox = messages[:MOST_AT_ONCE], messages[MOST_AT_ONCE:]
            self._deliver(messages)

    def _deliver(self, messages: list[Message]) -> None:
        self._delivering = True  # messages published meanwhile are sent in one write
        self.delivered += len(messages)
        if len(messages) == 1:
            topic = messages[0].topic
            for handler in self._routes.known.get(topic) or self._routes.of(topic):
                handler(messages)
        else:
            for handler, own in self._routes.split(messages):
                handler(own)
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

    def _acknowledge(self) -> None:
        """Send PUBACKs after the release of a receipt, in the order of the messages."""
        if self._fd < 0:
            return
        if not self.acks_in_order:
            if not self._look_due:
                self._look_due = True
                self._loop.call_soon(self._acknowledge_released)
            return
        owed, ours = self.owed, self.acks.ours
        while owed and not owed[0].holds:  # MQTT 3.1.1 section 4.6: in the order of arrival
            ours += hot_packets.puback(owed.popleft().number)
        self._send_acknowledgements()

    def _acknowledge_released(self) -> None:
        """Acknowledge all released receipts, once per pass of the loop."""
        self._look_due = False
        if self._fd < 0:
            return
        waiting = deque(receipt for receipt in self.owed if not receipt.is_released)
        if len(waiting) < len(self.owed):
            for receipt in self.owed:
                if receipt.is_released:
                    self.acks.acknowledge(receipt.number)
            self.owed = waiting
            self._send_acknowledgements()

    def _send_acknowledgements(self) -> None:
        ours = self.acks.ours
        if len(ours) >= MOST_UNSENT_BYTES:
            self.flush_soon()
        elif ours:
            self.acks.tidy_later()  # usually sent with the next publish; the timer sends it without one
        if self.is_paused and len(self.owed) < self._most_owed // 2:
            self.is_paused = False
            if not self.is_held:
                self._loop.add_reader(self._fd, self.read)

    # --- called by `hot_packets` and paho for each packet; delivery follows when all are read -----------------------

    def took_message(
        self,
        topic: bytes,
        payload: bytes,
        packet_id: int,
        *,
        retained: bool,
        repeated: bool = False,
        properties: Properties | None = None,
    ) -> None:
        """Take a message; see `hot_packets.Taker`."""
        receipt = None
        if packet_id:
            receipt = Receipt(self._released, packet_id)
            self.owed.append(receipt)
        self._inbox.append(Message(topic, payload, receipt, False, properties, retained, repeated, self._number))

    def took_too_long(self, topic: bytes, packet_id: int, size: int) -> None:
        """Count and acknowledge a message that is too long to keep, so that it is not resent; see `WholeSocket`."""
        self._counters.rejected["too_long"] += 1
        self._on_state(f"{self._url} sent {size} bytes on {topic[:80]!r}: passed over")
        if packet_id:
            receipt = Receipt(self._released, packet_id)
            self.owed.append(receipt)
            receipt.release()

    def took_acknowledgement(self, packet_id: int, reason: int) -> None:
        """Handle the broker's answer to one of our messages; see `hot_packets.Taker`."""
        self.answered = True
        if packet_id not in self.outcomes:
            return
        outcome = self.outcomes.pop(packet_id)
        refused = hot_packets.is_refusal(reason)
        if refused:
            self._note_refusal(f"{self._url} refused a message: {_reason(reason)}")
        if outcome is not None:
            self._settled.append((outcome, not refused))
        if self.queue.waiting:
            self._send_queued()

    def _on_message(self, _client: paho.Client, _userdata: Any, message: paho.MQTTMessage) -> None:
        topic = topic_of(message)
        if not topic:
            raise _BrokenRuleError("used a topic alias, which was not allowed")
        self.took_message(
            topic,
            bytes(message.payload),
            message.mid if message.qos == 1 else 0,
            retained=message.retain,
            repeated=message.dup,
            properties=message.properties,
        )

    # --- end --------------------------------------------------------------------------------------------------------

    def say_goodbye(self) -> None:
        """Send the unsent bytes and a DISCONNECT; waits for the network for at most `GOODBYE_TIMEOUT_S`."""
        self._withdraw()  # paho closes the socket after the DISCONNECT
        self.acks.at_once()
        self.wrapped.set_patience(GOODBYE_TIMEOUT_S)
        self._add_acks()
        self._drain_to_socket()
        self._wait_for_places()
        self.client.disconnect()
        self._drain_to_socket()
        self.end()

    def _wait_for_places(self) -> None:
        """Send the queue, including the last messages of a stop, while the broker's acknowledgements free places."""
        deadline = time.monotonic() + GOODBYE_TIMEOUT_S
        try:
            while self.queue and time.monotonic() < deadline:
                self.wrapped.flush()
                self.wrapped.fill()
                if self.wrapped.take(self, is_v5=self._is_v5):
                    self.client.loop_read()
                if self.client.socket() is None:
                    return
        except Exception as error:  # noqa: BLE001 - the connection is ended in any case: as in `read`
            _log.warning("the last messages of a stop are not sent", extra=fields(left=len(self.queue), why=error))

    def end(self) -> None:
        """Close the socket; no acknowledgement, outcome or delivery follows."""
        self._withdraw()
        self.acks.end()
        self.outcomes.clear()
        self.queue.clear()
        self._settled.clear()
        self._handed.clear()
        self._inbox.clear()
        self.owed.clear()
        self.client.on_disconnect = None
        self.wrapped.close()

    def _withdraw(self) -> None:
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            self._loop.remove_writer(self._fd)
        self._fd = -1


def _reason(code: int) -> str:
    """The text of a reason code; MQTT 5 defines only some for a PUBACK, but a broker may send any."""
    try:
        return str(ReasonCode(PacketTypes.PUBACK, identifier=code))
    except (KeyError, IndexError, ValueError, AssertionError):
        return f"reason code {code:#04x}"
