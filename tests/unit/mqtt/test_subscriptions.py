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
