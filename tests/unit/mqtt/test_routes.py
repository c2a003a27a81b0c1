"""Which handlers get a message, and that what is remembered of topics has a bound."""

import pytest

from edge_runtime.mqtt.messages import Handler, Message
from edge_runtime.mqtt.routes import MOST_TOPICS, Routes


def _one(_messages: list[Message]) -> None:
    """A handler."""


def _two(_messages: list[Message]) -> None:
    """Another one."""


def _message(topic: bytes) -> Message:
    return Message(topic, b"", None)


@pytest.fixture
def routes() -> Routes:
    """Of two handlers, one of which has several filters that overlap."""
    made = Routes()
    made.set([(["a/#", "a/+", "$share/g/b"], _one), (["b", "a/x"], _two)])
    return made


@pytest.mark.parametrize(
    ("topic", "handlers"),
    [(b"a/y", (_one,)), (b"a/x", (_one, _two)), (b"b", (_one, _two)), (b"c", ()), (b"\xff", (_one, _two))],
)
def test_a_topic_has_the_handlers_whose_filters_match_it(
    routes: Routes, topic: bytes, handlers: tuple[Handler, ...]
) -> None:
    """Each once, in the order of their subscriptions; a topic that is no text goes to every one."""
    assert routes.of(topic) == handlers
    assert routes.of(topic) is routes.known[topic]


def test_new_subscriptions_replace_the_old_ones(routes: Routes) -> None:
    """Also for topics that are known already."""
    routes.of(b"a/x")
    routes.set([(["a/x"], _two)])
    assert (routes.known, routes._ways) == ({}, {})  # nothing is kept of handlers that are gone
    assert (routes.of(b"a/x"), routes.of(b"a/y"), routes.of(b"\xff")) == ((_two,), (), (_two,))
    routes.set([(["a/x"], _one), (["a/x"], _two), (["c"], _one)])
    assert routes.of(b"a/x") == routes.of(b"\xff") == (_one, _two)


def test_messages_are_split_by_handler_in_their_order(routes: Routes) -> None:
    """Without a copy where all of them have the same handlers."""
    same = [_message(b"a/x"), _message(b"b")]
    assert routes.split(same) == [(_one, same), (_two, same)]
    assert routes.split(same)[0][1] is same
    assert routes.split(same[:1]) == [(_one, same[:1]), (_two, same[:1])]
    mixed = [_message(topic) for topic in (b"a/y", b"a/x", b"c", b"b")]
    assert routes.split(mixed) == [(_one, [mixed[0], mixed[1], mixed[3]]), (_two, [mixed[1], mixed[3]])]


def test_twenty_thousand_topics_are_remembered_at_most(routes: Routes) -> None:
    """Then all are forgotten, and asked for again."""
    assert MOST_TOPICS == 20_000
    for number in range(20_000):
        routes.of(b"a/%d" % number)
    assert len(routes.known) == 20_000
    routes.of(b"a/0")
    assert len(routes.known) == 20_000
    assert routes.of(b"a/new") == (_one,)
    assert list(routes.known) == [b"a/new"]
