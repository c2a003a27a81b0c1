"""The hot path of one connection, for as long as it is up: read, hand over, publish, acknowledge, write.

The packets of the hot path go past paho (`hot_packets.py`); paho gets the others. What is published while messages are
handed over leaves in one write as soon as they are, our own acknowledgements behind it; only then is settled what the
broker has acknowledged, unless so many places are taken that it has to come first. When acknowledgements travel is the
business of `ack_coalescing.py`.

Guarantee: a message is acknowledged to the broker only when its `Receipt` is released, in the order of arrival (but for
readings that wait for their windows), and only over the connection that brought it, since each connection has a
`HotPath` of its own. Every `outcome` is called
once, or never when the connection ends before. `MOST_OWED` messages may wait for our acknowledgement; then nothing
more is read.
"""

import itertools
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from edge_runtime.mqtt import hot_packets
from edge_runtime.mqtt.ack_coalescing import AckCoalescing
from edge_runtime.mqtt.messages import Handler, Message, Outcome
from edge_runtime.mqtt.paho_client import PahoClient, topic_of
from edge_runtime.mqtt.whole_socket import WholeSocket
from edge_runtime.readings import Receipt
from edge_runtime.system.counters import Counters
from edge_runtime.system.loop import Loop

MOST_OWED = 10_000  # messages that wait for our acknowledgement; MQTT's own limit is 65,535
MOST_OWED_BY_WINDOWS = 65_000
GOODBYE_TIMEOUT_S = 2.0

TopicHeads = hot_packets.TopicHeads
_NUMBERS = itertools.count(1)


class HotPath:
    """One open connection; made when TCP and TLS stand, before the broker has accepted us.

    Args:
        client: paho, connected.
        wrapped: its socket.
        url: of the broker, for messages.
        is_v5: MQTT 5 is spoken.
        loop: the event loop.
        counters: refusals and rejections by reason.
        handlers: each is given every message.
        heads: encoded topics, kept from connection to connection.
        ack_patience: see `AckCoalescing`.
        on_state: called with one line for people when the broker refused something.
        on_end: called when the connection is at its end, with the reason; None where the broker closed it.

    Attributes:
        window: how many messages of QoS 1 the broker lets be unacknowledged.
        most_sent: the longest packet that the broker takes.
        owed: receipts of messages that the broker waits for.
        acks_in_order: MQTT 3.1.1 section 4.6 asks for it; False where windows hold their readings, each key for itself:
            a key that is silent would hold up all the others, and brokers find an acknowledgement by its packet id.
        outcomes: by packet id, of what the broker has not acknowledged.
        last_id: the packet id that was given last.
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
        handlers: Sequence[Handler],
        heads: TopicHeads,
        ack_patience: float,
        on_state: Callable[[str], None],
        on_end: Callable[[str | None], None],
    ) -> None:
        self.client = client
        self.wrapped = wrapped
        self.window = 1
        self.most_sent = hot_packets.MOST_BYTES
        self.last_id = hot_packets.FIRST_ID
        self.owed: deque[Receipt] = deque()
        self.outcomes: dict[int, Outcome] = {}
        self.acks = AckCoalescing(self, wrapped, loop, ack_patience)
        self.is_paused = False
        self.acks_in_order = True
        self._look_due = False
        self._number = next(_NUMBERS)
        self._url = url
        self._is_v5 = is_v5
        self._no_properties = b"\0" if is_v5 else b""
        self._loop = loop
        self._counters = counters
        self._handlers = handlers
        self._heads = heads
        self._on_state = on_state
        self._on_end = on_end
        self._inbox: list[Message] = []
        self._settled: list[tuple[Outcome, bool]] = []
        self._handed: list[Outcome] = []  # of QoS 0, which is settled with the write
        self._flush_due = False
        self._delivering = False  # while a batch is with its handlers
        self._writing = False
        self._fd = wrapped.fileno()
        client.on_message = self._on_message
        loop.add_reader(self._fd, self.read)

    @property
    def _most_owed(self) -> int:
        return MOST_OWED if self.acks_in_order else MOST_OWED_BY_WINDOWS

    @property
    def in_flight(self) -> int:
        """How many messages the broker has not acknowledged."""
        return len(self.outcomes)

    # --- out --------------------------------------------------------------------------------------------------------

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int,
        retain: bool,
        outcome: Outcome | None,
        properties: Properties | None,
    ) -> None:
        """Send a message; see `Connection.publish`."""
        packet_id = self._next_id() if qos else 0
        extra = self._no_properties if properties is None else bytes(properties.pack())  # type: ignore[no-untyped-call]
        try:
            packet = hot_packets.publish(self._heads[topic], payload, packet_id, retain=retain, properties=extra)
            if len(packet) > self.most_sent:
                raise ValueError(f"the broker takes at most {self.most_sent} bytes, found {len(packet)}")  # noqa: TRY301
        except ValueError as error:  # no broker would take it: a topic with a wildcard, a payload beyond MQTT's limit
            self._counters.errors["publish_refused"] += 1
            self._on_state(f"{self._url}: a message cannot be sent: {error}")
            if outcome is not None:
                self._settled.append((outcome, False))
                self._loop.call_soon(self._settle)
            return
        self.wrapped.send(packet)
        if outcome is not None and packet_id:
            self.outcomes[packet_id] = outcome
        elif outcome is not None:
            self._handed.append(outcome)
        self.flush_soon()

    def _next_id(self) -> int:
        """A packet id that the broker does not hold."""
        while True:
            self.last_id = self.last_id + 1 if self.last_id < hot_packets.LAST_ID else hot_packets.FIRST_ID
            if self.last_id not in self.outcomes:
                return self.last_id

    def flush_soon(self) -> None:
        """Write once for everything that a pass of the loop brings."""
        if not self._flush_due:
            self._flush_due = True
            if not self._delivering:
                self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write what paho has to send, and what we have."""
        self._flush_due = False
        if self._fd >= 0:
            self._drain_to_socket()
            self._write()

    def _write(self) -> None:
        wrapped = self.wrapped
        self._add_acks()
        if not wrapped.has_unsent:
            return
        try:
            done = wrapped.flush()
        except OSError as error:
            self._settle()  # what the broker acknowledged before the connection broke counts
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
        if self.acks.watches:
            self.acks.wrote()

    def _add_acks(self) -> None:
        """Ours go behind what was published: a broker takes one packet after the other, and people wait for those."""
        if self.acks.ours:
            self.wrapped.send(self.acks.ours)
            self.acks.ours.clear()

    def _drain_to_socket(self) -> None:
        if self.client.want_write():
            self.client.loop_write()

    # --- in ---------------------------------------------------------------------------------------------------------

    def read(self) -> None:
        """Take what has arrived, hand it over, settle what the broker acknowledged."""
        if self._fd < 0:
            return
        try:
            closed = not self._read_all()
            fault = None
        except OSError as error:
            closed, fault = True, f"{self._url}: {error.strerror or error}"
        except Exception as error:  # noqa: BLE001 - whatever paho makes of bytes that are no MQTT ends the connection
            self._counters.errors["not_mqtt"] += 1
            closed, fault = True, f"{self._url} sent something that is not MQTT ({type(error).__name__})"
        if self._settled and not (self.acks.holding and self._inbox and not closed):
            self._settle()  # what the broker acknowledged before the connection broke counts
        if closed:
            self._on_end(fault)
            return
        if self._inbox:
            messages, self._inbox = self._inbox, []
            self._deliver(messages)
        if self._settled:  # few are in flight, so that nothing waited for this: the answer to a reading went first
            self._settle()
        if self.client.want_write():  # paho answers something; our own packets see to themselves
            self.flush_soon()
        if len(self.owed) >= self._most_owed and self._fd >= 0:
            self.is_paused = True  # a broker without a window of its own: let the network hold it back
            self._loop.remove_reader(self._fd)

    def _read_all(self) -> bool:
        """Take everything that has arrived, and let paho have its share; False when the broker has closed."""
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

    def _deliver(self, messages: list[Message]) -> None:
        self._delivering = True  # what is published meanwhile leaves in one write
        for handler in self._handlers:
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

    def _acknowledge(self) -> None:
        """A receipt was released: give the broker its PUBACKs, in the order of its messages."""
        if self._fd < 0:
            return
        if not self.acks_in_order:
            if not self._look_due:
                self._look_due = True
                self._loop.call_soon(self._acknowledge_released)
            return
        while self.owed and self.owed[0].is_released:  # MQTT 3.1.1 section 4.6: in the order of arrival
            self.acks.acknowledge(self.owed.popleft().number)
        self._send_acknowledgements()

    def _acknowledge_released(self) -> None:
        """One look a pass at everything that is owed."""
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
        if self.acks.is_full:
            self.flush_soon()
        elif self.acks.ours:
            self.acks.tidy_later()  # the next publish takes it along: one write for both; this is if none comes
        if self.is_paused and len(self.owed) < self._most_owed // 2:
            self.is_paused = False
            self._loop.add_reader(self._fd, self.read)

    # --- what `hot_packets` and paho find; they note it, and act when all is read ------------------------------------

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
        """A message has come; see `hot_packets.Taker`."""
        receipt = None
        if packet_id:
            receipt = Receipt(self._acknowledge, packet_id)
            self.owed.append(receipt)
        self._inbox.append(Message(topic, payload, receipt, False, properties, retained, repeated, self._number))

    def took_too_long(self, topic: bytes, packet_id: int, size: int) -> None:
        """A message that is too long to keep: counted, acknowledged, and so not sent again; see `WholeSocket`."""
        self._counters.rejected["too_long"] += 1
        self._on_state(f"{self._url} sent {size} bytes on {topic[:80]!r}: passed over")
        if packet_id:
            receipt = Receipt(self._acknowledge, packet_id)
            self.owed.append(receipt)
            receipt.release()

    def took_acknowledgement(self, packet_id: int, reason: int) -> None:
        """The broker has answered a message of ours; see `hot_packets.Taker`."""
        outcome = self.outcomes.pop(packet_id, None)
        if outcome is None:
            return
        refused = hot_packets.is_refusal(reason)
        if refused:
            self._counters.errors["publish_refused"] += 1
            why = ReasonCode(PacketTypes.PUBACK, identifier=reason)
            self._on_state(f"{self._url} refused a message: {why}")
        self._settled.append((outcome, not refused))

    def _on_message(self, _client: paho.Client, _userdata: Any, message: paho.MQTTMessage) -> None:
        self.took_message(
            topic_of(message),
            bytes(message.payload),
            message.mid if message.qos == 1 else 0,
            retained=message.retain,
            repeated=message.dup,
            properties=message.properties,
        )

    # --- its end ----------------------------------------------------------------------------------------------------

    def say_goodbye(self) -> None:
        """Send what is unsent and a DISCONNECT, waiting for the network for `GOODBYE_TIMEOUT_S` at the most."""
        self._withdraw()  # paho closes the socket with the goodbye
        self.wrapped.set_patience(GOODBYE_TIMEOUT_S)
        self._add_acks()
        self._drain_to_socket()
        self.client.disconnect()
        self._drain_to_socket()
        self.end()

    def end(self) -> None:
        """Close the socket; nothing is acknowledged, settled or handed over any more."""
        self._withdraw()
        self.acks.end()
        self.outcomes.clear()
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
