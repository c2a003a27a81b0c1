"""One message a wake-up takes a shorter way than many: what comes out of both is the same, whatever comes in.

The longer way is met twice: with a message that belongs to others beside each, so that only the source takes it, and
with everything that one link brought in one wake-up, so that the decoder does too.
"""

import json
from collections.abc import Iterable
from itertools import groupby
from typing import Any, cast

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.mqtt.connection import Connection
from edge_runtime.mqtt.messages import Message
from edge_runtime.readings import Batch, Receipt
from edge_runtime.stream.sources.mqtt import MqttSource, MqttSourceTable
from edge_runtime.system.counters import Counters
from tests.support.tables import table

NOW = 1795432744.0
TOPICS = [b"s/a", b"s/b", b"s/", b"other", b"s/\xff"]
NUMBERS = st.sampled_from([0, 1, 2.5, -3, 1e39, 10**400, None, "7", True])
READINGS = st.fixed_dictionaries(
    {},
    optional={
        "t": NUMBERS,
        "h": NUMBERS,
        "id": st.sampled_from([0, 1, "x", "", None, [1], 2.5, "y" * 200]),
        "seq": st.sampled_from([0, 1, 2, 3, 5000, "1", -1]),
        "time": st.sampled_from([NOW, NOW + 1, NOW - 5, NOW * 1000, 5, "2026-11-23T11:19:04Z", "yesterday", None]),
        "key": st.sampled_from(["k", 7, "", "a/b", None]),
        "more": st.sampled_from(["ä", [1, 2]]),
    },
)
PLAIN = st.fixed_dictionaries(
    {"t": st.integers(0, 2), "h": st.just(1)}, optional={"seq": st.integers(0, 4), "time": st.just(NOW)}
)
DOCUMENTS = st.one_of(PLAIN, PLAIN, READINGS, st.lists(READINGS, max_size=3), st.lists(PLAIN, max_size=3))
BYTES = st.sampled_from([b"", b"no json", b"\xff\xfe", b"NaN", b'{"t":NaN,"h":1}', b"[" * 2000, b"x" * 400, b"[]"])
CONFIGURATIONS = st.fixed_dictionaries(
    {"topics": st.sampled_from([["s/{key}"], ["s/+"]]), "format": st.sampled_from(["json", "msgpack"])},
    optional={
        "identity": st.sampled_from(["none", "time", "more", "seq"]),
        "retained": st.sampled_from(["once", "ignore", "take"]),
        "late": st.just("drop"),
        "time_unit": st.sampled_from(["s", "ms"]),
        "key": st.just("key"),
    },
)
COURSE = st.lists(
    st.tuples(
        st.sampled_from(TOPICS[:2] * 4 + TOPICS),
        st.one_of(DOCUMENTS, DOCUMENTS, BYTES),
        st.sampled_from([0, 1, 1, 1]),  # QoS
        st.sampled_from(["", "", "", "dup", "retained", "cut"]),
        st.integers(0, 4),  # of an earlier message, for what is repeated
    ),
    max_size=12,
)


class _Line:
    """One source on a connection that delivers what it is handed."""

    ready, state = True, "connected"

    def __init__(self, configuration: dict[str, Any]) -> None:
        self.counters = Counters()
        self.readings: list[tuple[Any, ...]] = []
        self.acknowledged: list[int] = []
        self.held: list[Receipt] = []
        self.source = MqttSource(
            table(MqttSourceTable, **{"name": "s", "max_frame_bytes": 300, **configuration}),
            ("t", "h"),
            None,
            connection=cast("Connection", self),
            sink=self._take,
            counters=self.counters,
        )

    def subscribe(self, _filters: list[str], _qos: int, handler: Any, *, most_bytes: int) -> None:
        del most_bytes
        self.handler = handler

    def _take(self, batch: Batch) -> None:
        assert batch.refuse is not None
        for row, value in enumerate(batch.values.tolist()):
            own = batch.times[row] if batch.own_times else None
            receipt = batch.receipts[row]
            if receipt is not None:
                receipt.hold()
                self.held.append(receipt)
            self.readings.append(
                (str(value), batch.keys[row], batch.identities[row], own, None if receipt is None else receipt.number)
            )
            batch.refuse(row, "out_of_range", f"row {value}", 1)

    def deliver(self, messages: Iterable[dict[str, Any]], *, beside: bool = False) -> None:
        """One wake-up, with a message that is for others beside it or not."""
        made = []
        for each in messages:
            number = each["number"]
            receipt = Receipt(lambda number=number: self.acknowledged.append(number), number) if number else None  # type: ignore[misc]
            made.append(Message(**{**each["message"], "receipt": receipt}))
        self.handler([*made, Message(b"elsewhere", b"", None)] if beside else made)
        for message in made:
            if message.receipt is not None:
                message.receipt.release()

    def seen(self) -> tuple[Any, ...]:
        counts = self.counters
        last = {
            reason: {part: text for part, text in found.items() if part != "time"}
            for reason, found in counts.last_rejected.items()
        }
        return self.readings, counts.counts, counts.rejected, counts.skipped, counts.errors, last, self.acknowledged


def _messages(course: list[Any], encode: Any) -> list[dict[str, Any]]:
    """As a broker delivers them: DUP with the number of an earlier message, over another link after a cut."""
    made: list[dict[str, Any]] = []
    link = 1
    for topic, content, qos, way, back in course:
        number = len(made) + 1 if qos else 0
        payload = content if isinstance(content, bytes) else encode(content)
        message = {"topic": topic, "payload": payload, "link": link, "retained": way == "retained"}
        if way == "cut":
            message["link"] = link = link + 1
        if way == "dup" and made:
            earlier = made[-1 - back % len(made)]
            number = earlier["number"]
            message |= {"topic": earlier["message"]["topic"], "payload": earlier["message"]["payload"]}
            message["repeated"] = number > 0
        made.append({"number": number, "message": message})
    return made


@settings(max_examples=100)
@given(configuration=CONFIGURATIONS, course=COURSE)
def test_messages_give_the_same_readings_one_by_one_and_together(configuration: Any, course: Any) -> None:
    """Values, keys, identities, times, receipts, what is counted, shown and acknowledged."""
    if configuration.get("key") and configuration["topics"] == ["s/{key}"]:
        del configuration["key"]
    encode = _packed if configuration["format"] == "msgpack" else lambda item: json.dumps(item).encode()
    messages = _messages(course, encode)
    single, beside, together = _Line(configuration), _Line(configuration), _Line(configuration)
    for message in messages:
        single.deliver([message])
        beside.deliver([message], beside=True)
    for _, part in groupby(messages, key=lambda each: each["message"]["link"]):
        together.deliver(part)
    for line in (single, beside, together):
        for receipt in line.held:
            receipt.release()
        line.acknowledged.sort()
    assert single.seen() == beside.seen()
    found, expected = single.seen(), together.seen()
    assert [reading[:3] for reading in found[0]] == [reading[:3] for reading in expected[0]]
    assert found[1:5] == expected[1:5]
    assert found[6] == expected[6]


def _packed(item: Any) -> bytes:
    try:
        return msgspec.msgpack.encode(item)
    except OverflowError:  # MessagePack has no such number
        return b"\xc1"


def test_a_plain_message_takes_the_shorter_way() -> None:
    """Or the comparison would compare nothing."""
    line = _Line({"topics": ["s/{key}"]})
    line.source._hand_over = None  # type: ignore[method-assign,assignment]
    for content in ({"t": 1, "h": 2}, {"t": 1, "h": 2, "seq": 1}, {"t": 1, "h": 2, "time": NOW}):
        line.deliver([{"number": 1, "message": {"topic": b"s/a", "payload": json.dumps(content).encode()}}])
    assert [reading[2] for reading in line.readings] == [None, "1", str(int(NOW)) + ".0"]
