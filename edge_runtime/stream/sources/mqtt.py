"""Topics -> readings: the messages of one wake-up, decoded together, as one batch.

Guarantee: a QoS 1 message is acknowledged when every model has released its readings, or at once if it is not a reading
(which is counted). A reading is delivered once, however often it is sent (`seen.py`). A stopped source acknowledges
nothing. Longer than 500 lines: the table of a kind of source is in its file, and this one also has the keys of a
connection.
"""

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal
from zlib import crc32

import msgspec
from msgspec import Meta

from edge_runtime.config.broker_rules import PASSWORDS, broker_address, login, tls_files
from edge_runtime.config.convert import quote
from edge_runtime.config.load import upstream_broker
from edge_runtime.config.rules import Finding, rule
from edge_runtime.config.tables import (
    MAX_PACKET_BYTES,
    Alpn,
    BrokerTable,
    Config,
    FilePath,
    Latency,
    Name,
    Protocol,
    Seconds,
    SomeSeconds,
    Text,
    Topic,
    UpstreamTable,
    tag_of,
)
from edge_runtime.config.topics import split_share
from edge_runtime.mqtt.any_connection import AnyConnection
from edge_runtime.mqtt.messages import Message
from edge_runtime.mqtt.topics import TopicKeys, as_filter
from edge_runtime.readings import Batch, Receipt
from edge_runtime.stream.codecs import NO_CATEGORIES, NO_UNITS, Categories, CodecTable, Decoder, Units
from edge_runtime.stream.codecs.columns import Decoded
from edge_runtime.stream.codecs.json_codec import JsonTable
from edge_runtime.stream.holding import OwedReceipts
from edge_runtime.stream.origin import is_fit_key
from edge_runtime.stream.rejections import MOST_SAMPLE, Rejections
from edge_runtime.stream.seen import Deliveries, SavedSeen, Seen, log_first
from edge_runtime.stream.sources import key_levels
from edge_runtime.stream.sources.kind import AnySource, FramedSourceTable, Wiring
from edge_runtime.stream.sources.limit import LimitWatch
from edge_runtime.stream.sources.silence import SilenceWatch
from edge_runtime.system.counters import Counters
from edge_runtime.system.log import fields, get_logger
from edge_runtime.system.loop import Loop

if TYPE_CHECKING:
    from edge_runtime.stream.sources.channel_topics import ChannelTopics

MOSQUITTO_INFLIGHT = 20  # its max_inflight_messages by default, mosquitto.conf(5)

_log = get_logger("source")


class MqttSourceTable(FramedSourceTable, frozen=True, kw_only=True, tag="mqtt"):
    """`[[source]]` with `type = "mqtt"`: topics of a broker; every message is one reading, or a JSON array of them.

    Without `url` the source uses the connection of `[upstream]`, changed by the keys that are given here.
    With `url` it has its own connection and takes nothing over, so that no password goes to another broker by accident.

    Attributes:
        topics: The topics to subscribe to. One level may be `{key}`: every value of it has its own window. With
            `key = "{site}-{machine}"` the levels `{site}` and `{machine}` of each topic form the key together. `+`
            and `#` are allowed. The prefix `$share/GROUP/` shares the messages with the other members of the group.
            One level may be `{channel}`: a message is one value of the channel of that name, and the values of a key
            are joined to readings.
        when: When a reading is made of joined values: with `any` at each new value once every channel has one, with
            `all` when every channel has a new one, with the name of a channel at each new value of it. Only for topics
            with `{channel}`.
        max_age (s): An older value makes no reading, which is counted as `stale`. Left out, values never become stale.
        url: The broker, as in `[upstream]`; left out, the broker of `[upstream]`.
        client_id: As in `[upstream]`. Left out beside a `url`, it is `edge-{device}-{name of the source}`.
        protocol: As in `[upstream]`. Left out beside a `url`, it is `3.1.1`.
        username: As in `[upstream]`.
        password_file: As in `[upstream]`.
        password_credential: As in `[upstream]`.
        password_command: As in `[upstream]`.
        password_lifetime (s): As in `[upstream]`.
        ca_file: As in `[upstream]`.
        cert_file: As in `[upstream]`.
        key_file: As in `[upstream]`.
        alpn: As in `[upstream]`.
        latency: As in `[upstream]`.
        qos: 1: the broker keeps a reading until its prediction is safe. 0: a reading may be lost on the way.
        silent_after (s): Topics without a good reading for this time are reported as silent, in health and log; 0
            disables the report.
        max_frame_bytes (B): A longer message is skipped and counted as `too_long`.
        retained: The treatment of a retained message, which the broker sends at each connection: `once` uses it unless
            it equals the last message of its topic, `ignore` skips it, `take` uses it each time.
    """

    codec: CodecTable = JsonTable()
    topics: tuple[Topic, ...]
    url: Text | None = None
    client_id: Text | None = None
    protocol: Protocol | None = None
    username: Text | None = None
    password_file: FilePath | None = None
    password_credential: Name | None = None
    password_command: tuple[Text, ...] = ()
    password_lifetime: SomeSeconds | None = None
    ca_file: FilePath | None = None
    cert_file: FilePath | None = None
    key_file: FilePath | None = None
    alpn: Alpn | None = None
    latency: Latency | None = None
    qos: Literal[0, 1] = 1
    silent_after: Seconds = 600.0
    max_frame_bytes: Annotated[int, Meta(ge=16, le=MAX_PACKET_BYTES)] = 65536
    retained: Literal["once", "ignore", "take"] = "once"
    when: Text = "any"
    max_age: SomeSeconds | None = None

    @property
    def key_member(self) -> str | None:
        """The member that holds the key; also None if `key` consists of levels of the topic."""
        return None if key_levels.is_of_levels(self.key) else self.key

    @property
    def brokers(self) -> tuple[str, ...]:
        """Its own broker, if it has one."""
        return () if self.url is None else (self.url,)

    def read_topics(self, upstream: UpstreamTable) -> dict[str, str]:
        """Its topics at the broker of the predictions, and the topics that each matches."""
        if self.url is not None and self.url not in upstream.brokers:
            return {}
        return {topic: split_share(as_filter(topic))[1] for topic in self.topics}

    def subscriptions(self, config: Config) -> tuple[object, dict[str, str]]:
        """The broker of its subscriptions, and its topics with the filter that each subscribes to."""
        return source_broker(config, self), {topic: as_filter(topic) for topic in self.topics}

    def describe(self) -> str:
        """The topics."""
        return f"mqtt {', '.join(self.topics)}, QoS {self.qos}, {tag_of(self.codec)}"

    @property
    def joins(self) -> bool:
        """Whether a message is a value of one channel instead of a whole reading."""
        return "{channel}" in "".join(self.topics)

    def decoder(self, channels: tuple[str, ...], shape: tuple[int, ...] | None, **facts: Any) -> Decoder:
        """Make the decoder, as in the base class; for topics with `{channel}`, one for each channel."""
        if not self.joins:
            return super().decoder(channels, shape, **facts)
        from edge_runtime.stream.sources.channel_topics import topic_decoders  # noqa: PLC0415 - where topics name it

        make = super().decoder
        return topic_decoders(self.name, self.when, channels, shape, make=lambda names: make(names, None, **facts))

    def make(self, wiring: Wiring) -> "MqttSource":
        """Make the source, subscribed through the connection of its broker."""
        broker = source_broker(wiring.config, self)
        return MqttSource(
            self, wiring.channels, wiring.shape,
            connection=wiring.connect(broker, f"source {self.name}"),
            sink=wiring.sink,
            counters=wiring.counters,
            is_clock_set=wiring.is_clock_set, categories=wiring.categories, units=wiring.units,
            loop=wiring.loop, on_state=wiring.on_state,
            held_at_most=self.most_unacknowledged(wiring.config) if wiring.holds_windows else None,
        )  # fmt: skip

    def most_unacknowledged(self, config: Config) -> tuple[int, str] | None:
        """The limit requested in MQTT 5; else mosquitto's default."""
        broker = source_broker(config, self)
        if self.qos == 0:
            return None
        if broker.protocol == "5":
            return broker.receive_maximum, "receive_maximum"
        return MOSQUITTO_INFLIGHT, "mosquitto's max_inflight_messages"

    def beside_service(self) -> "MqttSourceTable":
        """The source with plain subscriptions instead of shared ones, of which each member gets only some messages."""
        topics = tuple(dict.fromkeys(split_share(topic)[1] for topic in self.topics))
        return msgspec.structs.replace(self, topics=topics, qos=0)

    def links(self, config: Config) -> tuple[BrokerTable, ...]:
        """Its broker."""
        return (source_broker(config, self),)

    def rewire(self, source: AnySource, wiring: Wiring) -> bool:
        """Exchange the decoder for other channels; the subscriptions stay."""
        assert isinstance(source, MqttSource)
        if self.joins:
            return False
        source.decode_with(self.decoder_for(wiring))
        if wiring.holds_windows:
            source.hold_windows(self.most_unacknowledged(wiring.config))
        return True

    def withdraw(self, source: AnySource) -> None:
        """End the subscriptions too, or the broker would keep queueing their messages."""
        assert isinstance(source, MqttSource)
        source.unsubscribe()
        source.stop()


rule(MqttSourceTable, keys=("url",))(broker_address)
rule(MqttSourceTable, keys=("url", "ca_file", "cert_file", "key_file", "alpn"))(tls_files)
rule(MqttSourceTable, keys=("url", "username", *PASSWORDS, "password_lifetime"))(login)


@rule(MqttSourceTable, keys=("topics",))
def _topics(source: MqttSourceTable) -> Iterator[Finding]:
    if not source.topics:
        yield "topics", "expected at least one topic, found an array of 0"
    yield from key_levels.mistakes(source.topics, source.key)
    plain = [topic for topic in source.topics if "{channel}" not in topic]
    if source.joins and plain:
        yield "topics", f"expected {{channel}} in every topic or in none, found none in {quote(plain[0])}"


@rule(MqttSourceTable, keys=("topics", "when", "max_age"))
def _joining(source: MqttSourceTable) -> Iterator[Finding]:
    for key, is_set in (("when", source.when != "any"), ("max_age", source.max_age is not None)):
        if is_set and not source.joins:
            yield key, "expected it only with {channel} in the topics, found topics of whole readings: take it out"


def source_broker(config: Config, source: MqttSourceTable) -> BrokerTable:
    """The broker that an MQTT source reads from.

    Without a `url` of the source it is that of `[upstream]`, changed by the keys that the source gives; without changes
    it equals `upstream_broker(config)`, and one connection serves both. With a `url` it is a separate broker, and
    nothing is taken over from `[upstream]`.
    """
    upstream = upstream_broker(config)
    given = {key: getattr(source, key) for key in _CONNECTION_KEYS if getattr(source, key) not in {None, ()}}
    if source.url is None:
        if given.keys() & set(PASSWORDS):
            given = {**dict.fromkeys(PASSWORDS[:2]), "password_command": (), "password_lifetime": None, **given}
        changed: BrokerTable = msgspec.structs.replace(upstream, **given)
        if changed == upstream or source.client_id is not None:
            return changed
        return msgspec.structs.replace(changed, client_id=_own_client_id(config, source))
    return BrokerTable(**{"client_id": _own_client_id(config, source), **given})


_CONNECTION_KEYS = tuple(key for key in MqttSourceTable.__struct_fields__ if key in BrokerTable.__struct_fields__)


def _own_client_id(config: Config, source: MqttSourceTable) -> str:
    return f"edge-{config.device.id}-{source.name}"


class MqttSource:
    """A source whose connection may be shared with other sources and with `[upstream]`.

    Args:
        config: its table.
        channels: the order of the columns that it delivers.
        shape: of a source of whole frames.
        connection: not yet started; the source subscribes through it.
        sink: takes the batches.
        counters: `readings`, and rejected or skipped messages by reason.
        is_clock_set: whether the wall clock is set.
        loop: for the watch over silence; None disables it.
        on_state: called when `state` changes for another reason than the connection's.
        held_at_most: if one of its models acknowledges by windows: how many readings may wait for their windows, and
            the setting of this limit. Then each key is acknowledged independently.
    """

    def __init__(
        self,
        config: MqttSourceTable,
        channels: tuple[str, ...],
        shape: tuple[int, ...] | None,
        *,
        connection: AnyConnection,
        sink: Callable[[Batch], None],
        counters: Counters,
        is_clock_set: Callable[[], bool] = lambda: True,
        categories: Categories = NO_CATEGORIES,
        units: Units = NO_UNITS,
        loop: Loop | None = None,
        on_state: Callable[[], None] = lambda: None,
        held_at_most: tuple[int, str] | None = None,
    ) -> None:
        self._config = config
        self._connection = connection
        self._sink = sink
        self._counters = counters
        self._silence = None if loop is None else self._silence_watch(loop, on_state)
        self._keys = TopicKeys(config.topics, is_fit_key, key_levels.template_of(config.key))
        self._keyed_by_topic = any("{" in topic.replace("{channel}", "") for topic in config.topics)
        self._decoder = config.decoder(channels, shape, is_clock_set=is_clock_set, categories=categories, units=units)
        self._seen = Seen(
            counters, late=config.late, late_tolerance=config.late_tolerance, notice=log_first(config.name)
        )
        self._rejections = Rejections(config.name, counters)
        self._by_channel = self._joined(channels) if config.joins else None
        self._retained_once = config.retained == "once"
        self._most_bytes = config.max_frame_bytes
        self._stopped = False
        connection.subscribe(
            self._keys.filters,
            config.qos,
            self._take,
            most_bytes=config.max_frame_bytes,
        )
        self._loop = loop
        self._limit = LimitWatch(loop, connection, counters, held_at_most, source=config.name) if held_at_most else None
        self._present: tuple[list[Message], list[int]] = [], []  # the messages being delivered, and the rows of each
        self._refuse_reading = self._refuse  # bound once
        if held_at_most is not None:
            connection.acknowledge_in_any_order()

    @property
    def is_open(self) -> bool:
        """Whether every subscription is granted."""
        return self._connection.ready

    @property
    def state(self) -> str:
        """The state, one line for people."""
        if self._silence is not None and self._silence.is_silent:
            return self._silence.text
        return self._connection.state

    def start(self) -> None:
        """Start watching for silence; the connection delivers the messages."""
        if self._limit is not None:
            self._limit.start()
        if self._silence is not None:
            self._silence.start()

    def decode_with(self, decoder: Decoder) -> None:
        """Use another decoder from now on."""
        self._decoder = decoder

    def unsubscribe(self) -> None:
        """End the subscriptions."""
        self._connection.unsubscribe(self._take)

    def stop(self) -> None:
        """Stop; later messages are not acknowledged and stay with the broker."""
        self._stopped = True
        if self._limit is not None:
            self._limit.stop()
        if self._silence is not None:
            self._silence.stop()

    def _joined(self, channels: tuple[str, ...]) -> "ChannelTopics":
        """Make the part that joins the values of topics with `{channel}`."""
        from edge_runtime.stream.sources.channel_topics import ChannelTopics  # noqa: PLC0415 - where topics name it

        def stale(key: str | None, why: str) -> None:
            self._counters.reject("stale", why)
            self._rejections.report((), lambda _: ", ".join(self._config.topics) if key is None else f"key {key}")

        joining = ChannelTopics(self._config, channels, self._sink, stale)
        self._sink = joining.take
        return joining

    def _silence_watch(self, loop: Loop, on_state: Callable[[], None]) -> SilenceWatch:
        return SilenceWatch(
            loop,
            self._config.silent_after,
            self._counters,
            source=self._config.name,
            where=", ".join(self._config.topics),
            remedy="look at the senders, and at the spelling of the topics",
            changed=on_state,
            can_hear=lambda: self._connection.ready,
        )

    def hold_windows(self, held_at_most: tuple[int, str] | None) -> None:
        """Set `held_at_most` of the class: a model acknowledges by windows from now on."""
        self._connection.acknowledge_in_any_order()
        if self._limit is None and held_at_most is not None:
            self._limit = LimitWatch(
                self._loop, self._connection, self._counters, held_at_most, source=self._config.name
            )
            self._limit.start()

    def take_over(self, other: object) -> None:
        """Take over the memory of the source that this one replaces at a reload: the broker continues its session."""
        if isinstance(other, MqttSource):
            self._seen.take_over(other._seen)  # noqa: SLF001 - of our own kind

    def save(self, owed: OwedReceipts) -> SavedSeen:
        """The state that a clean stop saves, so that no earlier reading is taken again."""
        return msgspec.structs.replace(self._seen.save(owed), filters=self._keys.filters)

    def restore(self, saved: SavedSeen, owed: OwedReceipts) -> None:
        """Restore the state that the last clean stop saved, after the windows were restored."""
        self._seen.restore(saved, owed)
        self._connection.drop_filters(set(saved.filters).difference(self._keys.filters))  # they may deliver copies

    def _take(self, messages: list[Message]) -> None:
        arrived = time.perf_counter()
        if self._limit is not None:
            self._limit.took()
        if len(messages) == 1 and self._took_plain(messages[0], arrived):
            return
        taken: list[Message] = []
        keys: list[str | None] = []
        digests: list[int] = []
        known: list[bool] = []
        seen, most = self._seen, self._most_bytes
        for message in messages:
            topic, payload = message.topic, message.payload
            found, key = self._keys.match(topic)
            if not found:
                continue  # not a topic of this source; the connection's owner counts it
            message.claimed = True
            if self._stopped:
                if message.receipt is not None:
                    message.receipt.hold()
                continue
            if len(payload) > most:
                why = f"expected at most max_frame_bytes = {most} bytes, found {len(payload)}"
                self._reject(message, "too_long", why)
                continue
            if key == "":
                why = f"expected a key that can be a level of a topic and is of one topic only, found {topic[:80]!r}"
                self._reject(message, "bad_key", why)
                continue
            digest = crc32(payload)
            was_here = seen.is_known_message(topic, digest, message.receipt, message.link, repeated=message.repeated)
            if was_here:
                pass
            elif not message.retained:
                if self._retained_once:
                    seen.note_topic(topic, digest)
            elif seen.is_last_of_topic(topic, digest) if self._retained_once else self._config.retained == "ignore":
                seen.skip("retained", topic.decode())
                continue
            taken.append(message)
            keys.append(key)
            digests.append(digest)
            known.append(was_here)
        if taken and (decoded := self._decode(taken, [message.payload for message in taken])) is not None:
            self._hand_over(decoded, keys, messages=taken, digests=digests, known=known, arrived=arrived)

    def _took_plain(self, message: Message, arrived: float) -> bool:
        """Take the only message of a wake-up, like `_take` but without its lists: the usual case at low load.

        False, without any effect, for a message that is repeated, retained or unreadable.
        """
        if message.repeated or message.retained or self._stopped:
            return False
        topic, payload = message.topic, message.payload
        found, key = self._keys.match(topic)
        if not found or key == "" or len(payload) > self._most_bytes:
            return False
        message.claimed = True
        digest, receipt, link = crc32(payload), message.receipt, message.link
        self._seen.note_message(topic, digest, receipt, link, with_topic=self._retained_once)
        messages = [message]
        decoded = self._decode(messages, [payload])
        if decoded is None:
            return True
        if len(decoded.rows) != 1:
            self._hand_over(decoded, [key], messages=messages, digests=[digest], known=[False], arrived=arrived)
            return True
        keys = [key] if self._keyed_by_topic else decoded.keys
        is_told_apart = decoded.identities[0] is not None or decoded.times[0] is not None
        if not is_told_apart or self._seen.admit_one(decoded, keys[0], digest, receipt=receipt, link=link):
            self._send_on(decoded, keys, [receipt], messages=messages, arrived=arrived)
        return True

    def _reject(self, message: Message, reason: str, why: str) -> None:
        self._counters.reject(reason, why, sample=message.payload[:MOST_SAMPLE])
        self._rejections.report((), lambda _: message.topic.decode(errors="replace"))

    def _decode(self, messages: list[Message], frames: list[bytes]) -> Decoded | None:
        """The readings of messages, whose payloads are `frames`; None if there are none."""
        if self._by_channel is not None:
            self._by_channel.announce(messages, self._decoder)
        try:
            decoded = self._decoder.decode(frames, self._counters)
        except Exception:  # noqa: BLE001 - a fault of ours: set aside, or the broker sends them again for ever
            self._counters.errors["crashed"] += 1
            _log.exception("messages are set aside", extra=fields(source=self._config.name, messages=len(frames)))
            return None
        if self._counters.notes:
            self._rejections.report(frames, lambda frame: messages[frame].topic.decode(errors="replace"))
        return decoded if decoded.rows else None

    def _hand_over(
        self,
        decoded: Decoded,
        keys: list[str | None],
        *,
        messages: list[Message],
        digests: list[int],
        known: list[bool],
        arrived: float,
    ) -> None:
        rows = decoded.rows
        keys = [keys[row] for row in rows] if self._keyed_by_topic else decoded.keys
        count = len(rows)
        if True in known or decoded.identities.count(None) != count or decoded.times.count(None) != count:
            came = Deliveries(
                messages[-1].link,
                [each.topic for each in messages],
                digests,
                [each.repeated for each in messages],
                known,
                [each.receipt for each in messages],
            )
            going = self._seen.admit(decoded, keys, came)
            if going is not None:
                if not going:
                    return
                decoded = decoded.chosen(going)
                keys = [keys[index] for index in going]
                rows = decoded.rows
        self._send_on(decoded, keys, [messages[row].receipt for row in rows], messages=messages, arrived=arrived)

    def _send_on(
        self,
        decoded: Decoded,
        keys: list[str | None],
        receipts: list[Receipt | None],
        *,
        messages: list[Message],
        arrived: float,
    ) -> None:
        if self._silence is not None:
            self._silence.heard()
        rows, times = decoded.rows, decoded.times
        self._counters.counts["readings"] += len(rows)
        self._present = messages, rows
        are_own = None not in times
        if not are_own:
            now = time.time()
            times = [now if own is None else own for own in times] if len(rows) > 1 else [now]
        self._sink(
            Batch(
                self._config.name,
                decoded.values,
                keys,
                times,  # type: ignore[arg-type]  # no None is left
                decoded.identities,
                receipts,
                arrived,
                are_own,
                self._refuse_reading,
            )
        )

    def _refuse(self, row: int, reason: str, why: str, count: int) -> None:
        """Report readings of the present batch that a model refuses."""
        messages, rows = self._present
        message = messages[rows[row]]
        where = message.topic.decode(errors="replace")
        self._rejections.refuse(reason, why, where=where, frame=message.payload, count=count)
