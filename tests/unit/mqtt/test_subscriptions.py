"""Subscriptions on a loop whose time the test turns: who is given which messages, and what is asked for again."""

from typing import cast

import paho.mqtt.client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

from edge_runtime.mqtt.messages import Message
from edge_runtime.mqtt.subscriptions import Subscriptions
from tests.support.stepped import SteppedLoop


def _readings(_messages: list[Message]) -> None:
    """The handler of a source."""


def _truth(_messages: list[Message]) -> None:
    """The handler of something optional."""


def _made() -> Subscriptions:
    return Subscriptions(SteppedLoop().as_loop, lambda _reason, _words: None, lambda: None)


def test_a_handler_is_given_no_message_of_another_ones_topics() -> None:
    """The routes stay the same object, for a connection that is up holds it."""
    made = _made()
    routes = made.routes
    made.add(["edge/room/truth/+"], 1, _truth, optional=True)
    made.add(["sensors/+/climate"], 1, _readings)
    assert (routes.of(b"sensors/a/climate"), routes.of(b"edge/room/truth/m")) == ((_readings,), (_truth,))
    made.remove(_truth)
    assert (routes.of(b"sensors/a/climate"), routes.of(b"edge/room/truth/m")) == ((_readings,), ())


def test_where_a_source_reads_the_same_topic_both_are_given_every_message() -> None:
    """A source of everything below `edge/` would claim the truth; when it goes, truth is asked alone again."""
    for wide in ("#", "edge/#", "edge/+/truth/comfort", "$share/g/edge/room/truth/comfort"):
        made = _made()
        made.add(["edge/room/truth/+"], 1, _truth, optional=True)
        made.add([wide], 1, _readings)
        assert made.routes.of(b"edge/room/truth/comfort") == (_truth, _readings)
        made.remove(_readings)
        assert made.routes.of(b"edge/room/truth/comfort") == (_truth,)


REFUSED = ReasonCode(PacketTypes.SUBACK, identifier=0x87)
GRANTED = ReasonCode(PacketTypes.SUBACK, identifier=1)


class _Client:
    """Numbers what it is asked for, as paho does."""

    def __init__(self) -> None:
        self.asked: list[list[tuple[str, int]]] = []

    def subscribe(self, wanted: list[tuple[str, int]]) -> tuple[int, int]:
        """The next packet id."""
        self.asked.append(wanted)
        return 0, len(self.asked)

    def unsubscribe(self, topics: list[str]) -> None:
        """Nothing is answered here."""


def test_a_refused_topic_is_asked_for_again_after_5_to_600_seconds_and_from_5_on_over_a_new_connection() -> None:
    """Each refusal is counted and named, and doubles the pause; a topic that is granted is not asked for again."""
    loop, client, notes = SteppedLoop(), _Client(), list[tuple[str, str]]()
    subscriptions = Subscriptions(loop.as_loop, lambda reason, text: notes.append((reason, text)), lambda: None)
    subscriptions.add(["granted/#", "denied/#"], 1, _readings)
    subscriptions.begin(cast("paho.Client", client))
    subscriptions.answered(1, [GRANTED, REFUSED])
    pauses = []
    for turn in range(9):
        begun, before = loop.now, len(client.asked)
        while len(client.asked) == before:
            loop.advance(0.5)
        pauses.append(loop.now - begun)
        assert client.asked[-1] == [("denied/#", 1)]
        assert not subscriptions.are_granted
        subscriptions.answered(len(client.asked), [REFUSED if turn < 8 else GRANTED])
    assert pauses == [5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 600.0, 600.0]
    assert notes == [("subscription_refused", f"the broker refused the subscription to denied/#: {REFUSED}")] * 9
    assert subscriptions.are_granted
    subscriptions.end()
    subscriptions.begin(cast("paho.Client", client))
    subscriptions.answered(len(client.asked), [GRANTED, REFUSED])
    begun, before = loop.now, len(client.asked)
    while len(client.asked) == before:
        loop.advance(0.5)
    assert loop.now - begun == 5.0


class _Link:
    """Subscriptions on a stepped loop, with everything that they ask for."""

    def __init__(self) -> None:
        self.loop = SteppedLoop()
        self.notes: list[tuple[str, str]] = []
        self.flushed = 0
        self.client = _NotingClient()
        self.made = Subscriptions(self.loop.as_loop, lambda *note: self.notes.append(note), self._flush)

    def _flush(self) -> None:
        self.flushed += 1

    def begin(self) -> "_NotingClient":
        self.client = _NotingClient()
        self.made.begin(cast("paho.Client", self.client))
        return self.client


class _NotingClient(_Client):
    def __init__(self) -> None:
        super().__init__()
        self.left: list[list[str]] = []

    def unsubscribe(self, topics: list[str]) -> None:
        """Noted."""
        self.left.append(topics)


class _FullClient(_NotingClient):
    def subscribe(self, wanted: list[tuple[str, int]]) -> tuple[int, int]:
        """Paho could not take the packet."""
        super().subscribe(wanted)
        return 4, cast("int", None)


AT_QOS_0 = ReasonCode(PacketTypes.SUBACK, identifier=0)


def test_subscriptions_are_granted_when_the_broker_has_answered_all_of_them() -> None:
    """And those of no handler at all; an optional one delays nothing."""
    link = _Link()
    assert link.made.are_granted
    assert not link.made
    link.made.add(["edge/d/truth/+"], 1, _truth, optional=True)
    assert not link.made
    link.made.add(["a/#", "b/#"], 1, _readings)
    assert link.made
    client = link.begin()
    assert client.asked == [[("a/#", 1), ("b/#", 1)], [("edge/d/truth/+", 1)]]
    assert link.flushed == 1
    assert not link.made.are_granted
    link.made.answered(1, [GRANTED, GRANTED])
    assert link.made.are_granted
    assert (link.made.refusal, link.notes) == ("", [])


def test_a_filter_of_an_optional_subscription_that_a_source_wants_too_is_no_optional_one() -> None:
    """Its refusal is a fault of the connection."""
    link = _Link()
    link.made.add(["a/+"], 1, _truth, optional=True)
    link.made.add(["a/+"], 1, _readings)
    client = link.begin()
    assert client.asked == [[("a/+", 1)]]
    assert not link.made.are_granted
    link.made.answered(1, [REFUSED])
    assert [reason for reason, _ in link.notes] == ["subscription_refused"]
    assert link.made.refusal == f"a subscription to 'a/+': {REFUSED}"


def test_a_refusal_names_every_topic() -> None:
    """With the reason of the last one; an answer that is missing is a refusal."""
    link = _Link()
    link.made.add(["a", "b", "c"], 1, _readings)
    link.begin()
    link.made.answered(1, [REFUSED, GRANTED])
    assert not link.made.are_granted
    assert link.made.refusal == "a subscription to 'a', 'c': no answer"
    assert link.notes == [
        ("subscription_refused", f"the broker refused the subscription to a: {REFUSED}"),
        ("subscription_refused", "the broker refused the subscription to c: no answer"),
    ]
    link.loop.advance(5.0)
    assert link.client.asked[1:] == [[("a", 1), ("c", 1)]]  # in one packet, with one timer for both
    assert (link.flushed, link.made.refusal) == (2, "")


def test_a_broker_that_answers_too_much_or_twice_changes_nothing() -> None:
    """A packet id that nothing waits for."""
    link = _Link()
    link.made.add(["a"], 1, _readings)
    link.begin()
    link.made.answered(1, [GRANTED, REFUSED])
    link.made.answered(1, [REFUSED])
    link.made.answered(99, [REFUSED])
    assert (link.made.are_granted, link.notes) == (True, [])


def test_a_lower_qos_is_noted() -> None:
    """A source that wants no more hears nothing of it."""
    link = _Link()
    link.made.add(["once"], 0, _truth)
    link.made.add(["a"], 1, _readings)
    client = link.begin()
    assert client.asked == [[("once", 0), ("a", 1)]]
    link.made.answered(1, [AT_QOS_0, AT_QOS_0])
    assert link.notes == [("subscription_at_qos_0", "the broker sends a at QoS 0 only: readings may be lost")]
    assert link.made.are_granted


def test_the_refusal_of_an_optional_subscription_is_noted_and_not_tried_again() -> None:
    """On this connection."""
    link = _Link()
    link.made.add(["edge/d/truth/+"], 1, _truth, optional=True)
    link.begin()
    link.made.answered(1, [REFUSED])
    expected = f"the broker refused the subscription to edge/d/truth/+: {REFUSED}"
    assert link.notes == [("optional_subscription_refused", expected)]
    link.loop.advance(1000.0)
    assert len(link.client.asked) == 1
    assert (link.made.are_granted, link.made.refusal) == (True, "")


def test_an_optional_subscription_is_given_up_when_three_connections_in_a_row_end_at_it() -> None:
    """An answer in between starts the count again; a connection that was lost before it asked counts for nothing."""
    link = _Link()
    link.made.end()  # there was none
    link.made.add(["edge/d/truth/+"], 1, _truth, optional=True)
    link.made.add(["a"], 1, _readings)
    for _ in range(2):
        link.begin()
        link.made.end()
    link.begin()
    link.made.answered(2, [GRANTED])
    link.made.end()
    link.made.end()  # once a connection
    assert link.notes == []
    for turn in range(3):
        assert len(link.begin().asked) == 2
        link.made.end()
        assert len(link.notes) == (turn == 2)
    words = "the broker ends the connection at the subscription to edge/d/truth/+: it is not asked for any more"
    assert link.notes == [("optional_subscription_refused", words)]
    for _ in range(3):
        assert link.begin().asked == [[("a", 1)]]
        link.made.end()
    assert len(link.notes) == 1
    silent = _Link()
    silent.made.add(["a"], 1, _readings)
    for _ in range(4):
        silent.begin()
        silent.made.end()
    assert silent.notes == []


def test_a_handler_that_is_added_or_removed_changes_the_open_connection() -> None:
    """Only what changed is sent; a filter that another one covers is not subscribed."""
    link = _Link()
    link.made.add(["a/+"], 1, _readings)
    client = link.begin()
    link.made.add(["b", "a/1"], 1, _truth)
    assert client.asked == [[("a/+", 1)], [("b", 1)]]
    link.made.remove(_readings)
    assert client.left == []  # in the same pass the filter may be wanted again
    link.loop.settle()
    assert client.asked[2:] == [[("a/1", 1)]]
    assert client.left == [["a/+"]]
    assert link.flushed == 3
    link.made.add(["b"], 0, _readings)
    assert client.asked[3:] == []  # the higher QoS covers it
    link.made.remove(_truth)
    link.loop.settle()
    assert client.asked[3:] == [[("b", 0)]]
    assert client.left[1:] == [["a/1"]]


def test_a_filter_that_another_handler_wants_stays() -> None:
    """The broker is asked for nothing."""
    link = _Link()
    link.made.add(["a"], 1, _readings)
    link.made.add(["a"], 1, _truth)
    client = link.begin()
    link.made.remove(_truth)
    link.loop.settle()
    assert (client.asked, client.left) == ([[("a", 1)]], [])


def test_what_was_unsubscribed_while_the_link_was_down_is_unsubscribed_at_the_next_connection() -> None:
    """The broker keeps filters; so does it those of an earlier start. Once is enough."""
    link = _Link()
    link.made.add(["a"], 1, _readings)
    link.made.add(["old"], 1, _truth)
    link.begin()
    link.made.end()
    link.made.remove(_truth)
    link.loop.settle()
    link.made.drop(["older", "a"])
    assert link.client.left == []
    client = link.begin()
    assert (client.asked, client.left) == ([[("a", 1)]], [["old", "older"]])
    link.made.end()
    assert link.begin().left == []


def test_a_filter_that_is_covered_is_unsubscribed_where_an_earlier_start_may_have_subscribed_it() -> None:
    """The broker would send its messages twice."""
    link = _Link()
    link.made.add(["a/1", "a/+"], 1, _readings)
    client = link.begin()
    assert (client.asked, client.left) == ([[("a/+", 1)]], [["a/1"]])


def test_a_refused_topic_that_is_not_wanted_any_more_is_forgotten() -> None:
    """The connection is ready without it; another refused one stays."""
    link = _Link()
    link.made.add(["a"], 1, _readings)
    link.made.add(["b"], 1, _truth)
    link.begin()
    link.made.answered(1, [REFUSED, REFUSED])
    link.made.remove(_truth)
    link.loop.settle()
    assert link.made.refusal == f"a subscription to 'a': {REFUSED}"
    link.loop.advance(5.0)
    assert link.client.asked[1:] == [[("a", 1)]]
    link.made.answered(2, [REFUSED])
    link.made.remove(_readings)
    link.loop.settle()
    assert link.made.are_granted
    flushed = link.flushed
    link.loop.advance(1000.0)
    assert (len(link.client.asked), link.flushed) == (2, flushed)


def test_a_lost_connection_ends_its_retries() -> None:
    """Nothing is asked for over it, and the next one begins with every topic and the shortest pause."""
    link = _Link()
    link.made.add(["a"], 1, _readings)
    first = link.begin()
    link.made.answered(1, [REFUSED])
    link.loop.advance(5.0)
    link.made.answered(2, [REFUSED])  # the next retry would be in 10 s
    link.made.end()
    assert link.made.refusal == ""
    assert link.made.are_granted
    link.loop.advance(8.0)
    assert len(first.asked) == 2
    second = link.begin()
    link.made.answered(1, [REFUSED])
    link.loop.advance(4.9)
    assert len(second.asked) == 1
    link.loop.advance(0.2)
    assert len(second.asked) == 2
    link.made.end()
    assert link.made.are_granted
    link.made.remove(_readings)
    link.begin()
    assert link.made.are_granted


def test_after_nine_hundred_retries_a_new_connection_is_needed() -> None:
    """Paho numbers its packets up to the first of ours."""
    link = _Link()
    link.made.add(["a"], 1, _readings)
    for _ in range(2):
        link.begin()
        for number in range(1, 901):
            link.made.answered(number, [REFUSED])
            link.loop.advance(600.0)
            assert len(link.client.asked) == number + 1
            assert not link.made.are_exhausted
        link.made.answered(901, [REFUSED])
        link.loop.advance(600.0)
        assert len(link.client.asked) == 901
        assert link.made.are_exhausted
        link.made.end()
        assert not link.made.are_exhausted


def test_a_packet_that_paho_does_not_take_waits_for_no_answer() -> None:
    """The connection is about to end."""
    link = _Link()
    link.made.add(["a"], 1, _readings)
    link.made.begin(cast("paho.Client", client := _FullClient()))
    assert client.asked == [[("a", 1)]]
    assert link.made.are_granted
    link.made.end()
    assert link.notes == []


def test_what_is_not_wanted_any_more_is_left_once_and_what_another_still_wants_is_kept() -> None:
    """Filters of an earlier start at the next connection; those of a handler that goes at once."""
    link = _Link()
    link.made.add(["mine/#", "both/#"], 1, _readings)
    link.made.add(["both/#"], 1, _truth)
    link.made.drop(["old/#", "mine/#"])
    client = link.begin()
    assert client.left == [["old/#"]]
    link.made.remove(_readings)
    link.loop.settle()
    assert client.left == [["old/#"], ["mine/#"]]
    link.made.end()
    assert link.begin().left == []
