"""Who is given which messages: readings do not pay for topics on which a message comes now and then."""

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
