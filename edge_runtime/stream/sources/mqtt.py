"""Topics -> readings: the messages that one wake-up brought, decoded together, as one batch.

Guarantee: a QoS 1 message is acknowledged when every model has released its readings, or at once when it is no
reading (then it is counted). A stopped source acknowledges nothing, so that the broker keeps what comes.
"""

import time
from collections.abc import Callable

from edge_runtime.config.tables import MqttSourceTable
from edge_runtime.mqtt.failover import AnyConnection
from edge_runtime.mqtt.messages import Message
from edge_runtime.mqtt.topics import TopicKeys
from edge_runtime.readings import Batch, Receipt
from edge_runtime.stream.codecs import source_decoder
from edge_runtime.system.counters import Counters
from edge_runtime.system.log import fields, get_logger

_log = get_logger("source")


class MqttSource:
    """A source on a connection that it may share with other sources and with the upstream.

    Args:
        config: its table.
        channels: the order of the columns that it delivers.
        shape: of a source of whole frames.
        connection: not yet started; the source subscribes through it.
        sink: takes the batches.
        counters: `readings`, and rejections by reason.
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
    ) -> None:
        self._config = config
        self._connection = connection
        self._sink = sink
        self._counters = counters
        self._keys = TopicKeys(config.topics)
        self._keyed_by_topic = any("{key}" in topic for topic in config.topics)
        self._decoder = source_decoder(config, channels, shape)
        self._stopped = False
        connection.subscribe(self._keys.filters, config.qos, self._take, most_bytes=config.max_frame_bytes)

    @property
    def is_open(self) -> bool:
        """Every subscription is granted."""
        return self._connection.ready

    @property
    def state(self) -> str:
        """One line for people."""
        return self._connection.state

    def start(self) -> None:
        """Nothing to do: the connection brings the messages."""

    def stop(self) -> None:
        """Leave what comes from now on with the broker."""
        self._stopped = True

    def _take(self, messages: list[Message]) -> None:
        arrived = time.perf_counter()
        frames: list[bytes] = []
        keys: list[str | None] = []
        receipts: list[Receipt | None] = []
        for message in messages:
            found, key = self._keys.match(message.topic)
            if not found:
                continue  # no topic of ours; the connection's owner counts it
            message.claimed = True
            if self._stopped:
                if message.receipt is not None:
                    message.receipt.hold()
                continue
            if len(message.payload) > self._config.max_frame_bytes:
                self._counters.rejected["too_long"] += 1
                continue
            frames.append(message.payload)
            keys.append(key)
            receipts.append(message.receipt)
        if frames:
            self._decode(frames, keys, receipts, arrived)

    def _decode(
        self, frames: list[bytes], keys: list[str | None], receipts: list[Receipt | None], arrived: float
    ) -> None:
        try:
            decoded = self._decoder.decode(frames, self._counters)
        except Exception:  # noqa: BLE001 - a fault of ours: set aside, or the broker sends them again for ever
            self._counters.errors["crashed"] += 1
            _log.exception("messages are set aside", extra=fields(source=self._config.name, messages=len(frames)))
            return
        if not len(decoded):
            return
        now = time.time()
        own_times = None not in decoded.times
        self._counters.counts["readings"] += len(decoded)
        self._sink(
            Batch(
                source=self._config.name,
                values=decoded.values,
                keys=[keys[row] for row in decoded.rows] if self._keyed_by_topic else decoded.keys,
                times=[now if own is None else own for own in decoded.times],
                identities=decoded.identities,
                receipts=[receipts[row] for row in decoded.rows],
                arrived=arrived,
                own_times=own_times,
            )
        )
