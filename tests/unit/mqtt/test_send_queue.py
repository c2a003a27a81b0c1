"""The messages that wait for a place in flight: their order, their bound, and the newest of a retained topic."""

import pytest

from edge_runtime.mqtt.messages import OnOutcome
from edge_runtime.mqtt.send_queue import MOST_QUEUED, MOST_QUEUED_BYTES, Grant, Queued, SendQueue
from edge_runtime.system.counters import Counters


def _message(
    topic: str, payload: bytes, *, retain: bool = False, extra: bytes = b"\0", outcome: OnOutcome | None = None
) -> Queued:
    return Queued(topic, payload, retain, extra, outcome)


def _sent(queue: SendQueue) -> list[tuple[str, bytes]]:
    found = []
    while queue:
        message = queue.take()
        found.append((message.topic, message.payload))
    return found


def test_messages_wait_in_their_order() -> None:
    """Two of one topic too, where the broker is to keep neither."""
    queue = SendQueue(Counters())
    for payload in (b"1", b"2", b"3"):
        assert queue.add(_message("a", payload))
    assert len(queue) == 3
    assert _sent(queue) == [("a", b"1"), ("a", b"2"), ("a", b"3")]
    assert not queue.waiting


def test_of_retained_messages_on_a_topic_the_newest_waits_in_the_place_of_the_oldest() -> None:
    """With its own properties and outcome; other topics, and messages that are not retained, stay as they are."""
    counters = Counters()
    queue = SendQueue(counters)
    outcomes: list[OnOutcome] = [lambda _: None, lambda _: None]
    queue.add(_message("a", b"plain"))
    queue.add(_message("a", b"old", retain=True, extra=b"old", outcome=outcomes[0]))
    queue.add(_message("b", b"other", retain=True))
    queue.add(_message("a", b"plain too"))
    assert queue.add(_message("a", b"new", retain=True, extra=b"new", outcome=outcomes[1]))
    assert (queue.waiting[1].extra, queue.waiting[1].outcome) == (b"new", outcomes[1])
    assert _sent(queue) == [("a", b"plain"), ("a", b"new"), ("b", b"other"), ("a", b"plain too")]
    assert counters.dropped == {}


def test_one_more_than_256_is_refused_and_counted() -> None:
    """A newer retained message of a waiting topic takes no place of its own; a place that is free is taken."""
    counters = Counters()
    queue = SendQueue(counters)
    assert MOST_QUEUED == 256
    queue.add(_message("kept", b"1", retain=True))
    for _ in range(255):
        assert queue.add(_message("a", b"1"))
    assert not queue.add(_message("a", b"1"))
    assert not queue.add(_message("other", b"1", retain=True))
    assert counters.dropped == {"send_queue_full": 2}
    assert queue.add(_message("kept", b"2", retain=True))
    queue.take()
    assert queue.add(_message("a", b"1"))
    assert len(queue) == 256


@pytest.mark.parametrize("retain", [False, True])
def test_more_than_four_mebibytes_are_refused_and_counted(*, retain: bool) -> None:
    """A retained message that grows is refused as well, and the older one waits on."""
    counters = Counters()
    queue = SendQueue(counters)
    assert MOST_QUEUED_BYTES == 4 * 1024 * 1024
    half = bytes(MOST_QUEUED_BYTES // 2)
    assert queue.add(_message("a", half, retain=retain))
    assert queue.add(_message("b", half, retain=retain))
    assert not queue.add(_message("c", b"1"))
    assert not queue.add(_message("b", half + b"1", retain=retain))
    assert counters.dropped == {"send_queue_full": 2}
    if retain:
        assert queue.add(_message("b", half[:-1], retain=True))
        assert queue.add(_message("c", b"1"))
    queue.take()
    assert queue.add(_message("d", half))
    assert not queue.add(_message("d", half))
    queue.clear()
    assert len(queue) == 0
    assert queue.add(_message("e", half + half))


def test_a_broker_that_says_nothing_of_its_limits_is_sent_one_message_at_a_time_of_any_length() -> None:
    """Until its CONNACK has come; MQTT allows 268,435,455 bytes beside the fixed header."""
    assert Grant() == Grant(window=1, bytes=268_435_455, qos=1, retains=True)
