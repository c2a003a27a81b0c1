"""Messages into batches: what is no reading is acknowledged at once, what is one waits."""

from collections.abc import Sequence
from typing import Any, cast

import pytest

from edge_runtime.mqtt.connection import Connection
from edge_runtime.mqtt.messages import Message
from edge_runtime.readings import Batch, Receipt
from edge_runtime.stream.sources.mqtt import MqttSource, MqttSourceTable
from edge_runtime.system.counters import Counters
from tests.support.tables import table


class _Line:
    """Stands in for a connection: takes the subscription, and delivers what a test hands it."""

    ready = True
    state = "connected"

    def __init__(self) -> None:
        self.filters: list[str] = []
        self.acknowledged: list[int] = []
        self._handler: Any = None
        self._number = 0

    def subscribe(
        self, filters: list[str], qos: int, handler: Any, *, most_bytes: int, acks_in_order: bool = True
    ) -> None:
        """As `Connection.subscribe`."""
        self.filters, self._handler = filters, handler

    def deliver(self, *messages: tuple[bytes, bytes]) -> None:
        """One wake-up; the connection gives its own hold back at the end, as the real one does."""
        made = []
        for topic, payload in messages:
            number = self._number = self._number + 1
            made.append(Message(topic, payload, Receipt(lambda number=number: self.acknowledged.append(number))))  # type: ignore[misc]
        self._handler(made)
        for message in made:
            assert message.receipt is not None
            message.receipt.release()


class _Bench:
    def __init__(self, **keys: Any) -> None:
        config = table(MqttSourceTable, **{"name": "s", "topics": ["sensors/{key}/climate"], **keys})
        self.line, self.counters = _Line(), Counters()
        self.batches: list[Batch] = []
        self.source = MqttSource(
            config,
            ("t", "h"),
            None,
            connection=cast("Connection", self.line),
            sink=self._take,
            counters=self.counters,
        )

    def _take(self, batch: Batch) -> None:
        self.batches.append(batch)
        for receipt in batch.receipts:
            if receipt is not None:
                receipt.hold()


def test_messages_of_one_wake_up_are_one_batch() -> None:
    """Keys come from the topic, times and identities from the reading, and each keeps its receipt."""
    bench = _Bench()
    bench.line.deliver(
        (b"sensors/a/climate", b'{"t":1,"h":2,"seq":7}'), (b"sensors/b/climate", b'{"t":3,"h":4,"time":1795432744.5}')
    )
    (batch,) = bench.batches
    assert batch.values.tolist() == [[1, 2], [3, 4]]
    assert batch.keys == ["a", "b"]
    assert batch.identities == ["7", "1795432744.5"]
    assert batch.times[1] == 1795432744.5
    assert not batch.own_times
    assert bench.line.acknowledged == []
    assert bench.counters.counts["readings"] == 2


@pytest.mark.parametrize(
    ("payload", "reason"),
    [(b"no json", "malformed"), (b"\xff\xfe", "noise"), (b'{"t":"x","h":1}', "wrong_type"), (b"x" * 200, "too_long")],
)
def test_what_is_no_reading_is_acknowledged_and_counted(payload: bytes, reason: str) -> None:
    """Its broker must not send it for ever; its neighbours are not touched."""
    bench = _Bench(max_frame_bytes=100)
    bench.line.deliver((b"sensors/a/climate", payload), (b"sensors/a/climate", b'{"t":1,"h":2}'))
    assert bench.line.acknowledged == [1]
    assert bench.counters.rejected == {reason: 1}
    assert len(bench.batches[0]) == 1


def test_topics_of_others_are_left_to_them() -> None:
    """On a shared connection a source takes its own topics only; a topic that is no text belongs to no source."""
    bench = _Bench()
    bench.line.deliver((b"elsewhere", b'{"t":1,"h":2}'), (b"sensors/\xff/climate", b'{"t":1,"h":2}'))
    assert bench.batches == []
    assert bench.line.acknowledged == [1, 2]


def test_a_stopped_source_acknowledges_nothing() -> None:
    """What comes after the stop stays with the broker."""
    bench = _Bench()
    bench.source.stop()
    bench.line.deliver((b"sensors/a/climate", b'{"t":1,"h":2}'))
    assert bench.line.acknowledged == []
    assert bench.batches == []


def test_a_message_that_crashes_its_codec_is_set_aside() -> None:
    """It is logged, counted and acknowledged, not tried for ever; the next one is read."""
    bench = _Bench()
    decode = bench.source._decoder.decode

    def crash(frames: Sequence[bytes], counters: Counters) -> Any:
        if b"crash" in frames[0]:
            raise RuntimeError("a fault of ours")
        return decode(frames, counters)

    bench.source._decoder.decode = crash  # type: ignore[method-assign]
    bench.line.deliver((b"sensors/a/climate", b"crash"))
    bench.line.deliver((b"sensors/a/climate", b'{"t":1,"h":2}'))
    assert bench.line.acknowledged == [1]
    assert bench.counters.errors["crashed"] == 1
    assert len(bench.batches) == 1


def test_an_array_is_several_readings_with_one_receipt() -> None:
    """The message is acknowledged when the last of its readings is safe."""
    bench = _Bench()
    bench.line.deliver((b"sensors/a/climate", b'[{"t":1,"h":2},{"t":3,"h":4}]'))
    first, second = bench.batches[0].receipts
    assert first is second
    assert first is not None
    first.release()
    assert bench.line.acknowledged == []
    first.release()
    assert bench.line.acknowledged == [1]


def test_several_levels_of_a_topic_form_one_key() -> None:
    """`key` names them, and no field of the reading."""
    bench = _Bench(topics=["{site}/line/{machine}"], key="{site}-{machine}")
    assert bench.line.filters == ["+/line/+"]
    bench.line.deliver((b"north/line/m1", b'{"t":1,"h":2}'), (b"south/line/m1", b'{"t":3,"h":4}'))
    bench.line.deliver((b"north/line/m1", b'{"t":5,"h":6}'))
    assert [batch.keys for batch in bench.batches] == [["north-m1", "south-m1"], ["north-m1"]]
