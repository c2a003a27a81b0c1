"""The device's own topics: what is published when, what is retained, and what a refusal leads to."""

import json
import logging
from collections.abc import Callable
from typing import Any, cast

import pytest

from edge_runtime.config.tables import UpstreamTable
from edge_runtime.delivery.device_topics import SOON_S, OwnTopics, Upstream, own_topics
from edge_runtime.mqtt.connection import Connection
from edge_runtime.mqtt.messages import Will
from tests.support.stepped import SteppedLoop

TABLE = UpstreamTable(url="mqtt://broker")


def test_the_topics_are_below_the_device() -> None:
    """As documented, with the last will on `status`."""
    topics = own_topics("press-07", TABLE)
    assert topics == OwnTopics("edge/press-07/status", "edge/press-07/models", "edge/press-07/health",
                               "edge/press-07", retain=True)  # fmt: skip
    assert topics.shadow == "edge/press-07/shadow"
    assert topics.drift == "edge/press-07/drift"
    assert topics.will == Will("edge/press-07/status", b"offline", retain=True)


def test_topics_can_be_moved_and_switched_off() -> None:
    """Reports on single models follow health: below a moved one, and nowhere without one."""
    table = UpstreamTable(
        url="mqtt://b", status_topic="", models_topic="x/{device}", health_topic="y/{device}/z", retain=False
    )
    topics = own_topics("d", table)
    assert topics == OwnTopics("", "x/d", "y/d/z", "y/d/z", retain=False)
    assert (topics.will, topics.shadow, topics.drift) == (None, "y/d/z/shadow", "y/d/z/drift")
    silent = own_topics("d", UpstreamTable(url="mqtt://b", health_topic="", retain=False))
    assert (silent.health, silent.below, silent.shadow, silent.drift) == ("", "", "", "")
    assert silent.will == Will("edge/d/status", b"offline", retain=False)


class _Link:
    """A broker's end that answers when it is asked to."""

    def __init__(self) -> None:
        self.connected = False
        self.takes = True
        self.sent: list[tuple[str, bytes, bool]] = []
        self.outcomes: list[tuple[str, Callable[[bool], None]]] = []

    def publish(self, topic: str, payload: bytes, *, qos: int, retain: bool, outcome: Callable[[bool], None]) -> bool:
        """As `Connection.publish`."""
        assert qos == 1
        if not self.connected or not self.takes:
            return False
        self.sent.append((topic.removeprefix("edge/d/"), payload, retain))
        self.outcomes.append((topic, outcome))
        return True

    def answer(self, *, accept: bool = True) -> None:
        """Answer everything."""
        outcomes, self.outcomes = self.outcomes, []
        for _, outcome in outcomes:
            outcome(accept)

    def taken(self) -> list[str]:
        """The topics since the last look, or `online` and `offline` themselves; all are accepted."""
        sent, self.sent = self.sent, []
        self.answer()
        return [payload.decode() if topic == "status" else topic for topic, payload, _ in sent]


class _Device:
    """The stage with a clock and a link that are moved by hand."""

    def __init__(self, interval: float = 30.0, **changes: Any) -> None:
        self.loop, self.link = SteppedLoop(), _Link()
        self.ready = True
        self.shadows: dict[str, dict[str, Any]] = {}
        self.health = 0

        def health() -> dict[str, Any]:
            self.health += 1
            return {"n": self.health}

        self.upstream = Upstream(
            own_topics("d", UpstreamTable(url="mqtt://b", **changes)),
            cast("Connection", self.link),
            self.loop.as_loop,
            interval=interval,
            is_ready=lambda: self.ready,
            health=health,
            models=lambda: [{"name": "m"}],
            shadows=lambda: self.shadows,
        )

    def connect(self, *, up: bool = True) -> None:
        """The link comes up, or goes down."""
        self.link.connected = up
        self.upstream.link_changed()


@pytest.fixture
def device() -> _Device:
    """Not yet connected."""
    return _Device()


def test_a_device_that_is_ready_says_online_once(device: _Device) -> None:
    """With its models and its health; a further change of a source publishes nothing again."""
    device.connect()
    assert [topic for topic, _, _ in device.link.sent] == ["models", "health", "status"]
    assert device.link.sent == [
        ("models", b'[{"name":"m"}]', True),
        ("health", b'{"n":1}', False),
        ("status", b"online", True),
    ]
    device.link.taken()
    device.upstream.link_changed()
    assert device.link.taken() == []


def test_a_device_that_is_not_ready_says_online_later(device: _Device) -> None:
    """When its last port is open; at the latest with the next health message."""
    device.ready = False
    device.connect()
    assert device.link.taken() == ["models", "health"]
    device.upstream.link_changed()
    assert device.link.taken() == []
    device.ready = True
    device.upstream.link_changed()
    assert device.link.taken() == ["online"]
    other = _Device()
    other.ready = False
    other.connect()
    other.link.taken()
    other.ready = True
    other.loop.advance(30.0)
    assert other.link.taken() == ["health", "online"]


def test_nothing_is_retained_where_the_broker_forbids_it() -> None:
    """`retain = false` holds for status and models."""
    device = _Device(retain=False)
    device.connect()
    assert [retain for _, _, retain in device.link.sent] == [False, False, False]


def test_each_connection_begins_anew(device: _Device) -> None:
    """The broker has published the last will meanwhile, so `online` has to be reported again."""
    device.connect()
    device.link.taken()
    device.connect(up=False)
    assert device.link.taken() == []
    device.connect()
    assert device.link.taken() == ["models", "health", "online"]


def test_health_is_published_at_its_interval(device: _Device) -> None:
    """Counted from the last message, and also while the link is down, without effect."""
    device.connect()
    device.link.taken()
    device.loop.advance(29.9)
    assert device.link.taken() == []
    device.loop.advance(0.2)
    assert device.link.taken() == ["health"]
    device.loop.advance(90.0)
    assert device.link.taken() == ["health"] * 3
    device.connect(up=False)
    device.loop.advance(60.0)
    assert device.link.taken() == []


def test_a_new_connection_begins_the_interval_of_health_anew(device: _Device) -> None:
    """The message that was due before is not published in addition."""
    device.connect()
    device.loop.advance(10.0)
    device.connect(up=False)
    device.connect()
    device.link.taken()
    device.loop.advance(29.9)
    assert device.link.taken() == []
    device.loop.advance(0.2)
    assert device.link.taken() == ["health"]


def test_a_fault_is_published_within_a_second_and_not_more_often(device: _Device) -> None:
    """Ten faults in a second are one message, and the interval begins anew with it."""
    assert SOON_S == 1.0
    device.connect()
    device.link.taken()
    for _ in range(10):
        device.upstream.publish_health_soon()
        device.loop.advance(0.05)
    assert device.link.taken() == []
    device.loop.advance(0.6)
    assert device.link.taken() == ["health"]
    device.loop.advance(29.8)
    assert device.link.taken() == []
    device.loop.advance(0.2)
    assert device.link.taken() == ["health"]


def test_a_fault_before_the_first_health_is_published_soon(device: _Device) -> None:
    """A source may fail before the link is up."""
    device.upstream.publish_health_soon()
    device.link.connected = True
    device.loop.advance(1.0)
    assert "health" in device.link.taken()


def test_health_that_is_due_anyway_is_not_put_off() -> None:
    """A fault shortly before the interval's end publishes no second message."""
    device = _Device(interval=0.5)
    device.connect()
    device.link.taken()
    device.upstream.publish_health_soon()
    device.loop.advance(0.5)
    assert device.link.taken() == ["health"]


def test_another_interval_takes_effect_at_once(device: _Device) -> None:
    """After a reload; the same interval changes nothing, and before the first message there is nothing to hasten."""
    device.upstream.publish_every(10.0)
    device.connect()
    device.link.taken()
    device.upstream.publish_every(10.0)
    device.loop.advance(5.0)
    assert device.link.taken() == []
    device.loop.advance(5.0)
    assert device.link.taken() == ["health"]
    device.upstream.publish_every(100.0)
    device.loop.advance(1.0)
    assert device.link.taken() == ["health"]
    device.loop.advance(99.9)
    assert device.link.taken() == []
    device.loop.advance(0.2)
    assert device.link.taken() == ["health"]


def test_an_interval_that_is_changed_before_the_first_message_publishes_none(device: _Device) -> None:
    """There is no timer yet, and the link's first message begins it."""
    device.link.connected = True
    device.upstream.publish_every(10.0)
    device.loop.advance(5.0)
    assert device.link.taken() == []


def test_a_reopened_part_is_announced_again(device: _Device) -> None:
    """`online` comes once everything is open again."""
    device.connect()
    device.link.taken()
    device.upstream.announce_again()
    device.ready = False
    device.upstream.link_changed()
    assert device.link.taken() == []
    device.ready = True
    device.upstream.link_changed()
    assert device.link.taken() == ["online"]


def test_shadows_follow_health_on_topics_of_their_own(device: _Device) -> None:
    """One for each model, and none without health's topic."""
    device.shadows = {"a": {"state": "running"}, "b": {"state": "ended"}}
    device.connect()
    shadows = {topic: json.loads(payload) for topic, payload, _ in device.link.sent if "shadow" in topic}
    assert shadows == {
        "shadow/a": {"model": "a", "state": "running"},
        "shadow/b": {"model": "b", "state": "ended"},
    }
    silent = _Device(health_topic="")
    silent.shadows = device.shadows
    silent.connect()
    assert [topic for topic, _, _ in silent.link.sent] == ["models", "status"]


def test_a_clean_stop_says_offline_after_the_last_health(device: _Device) -> None:
    """And no timer publishes anything afterwards; without a link nothing is sent."""
    device.connect()
    device.link.taken()
    device.upstream.say_goodbye()
    assert device.link.sent == [("health", b'{"n":2}', False), ("status", b"offline", True)]
    device.link.taken()
    device.loop.advance(1000.0)
    assert device.link.taken() == []
    other = _Device()
    other.upstream.say_goodbye()
    assert other.link.sent == []


def test_a_refused_status_is_published_again_with_the_next_health(
    device: _Device, caplog: pytest.LogCaptureFixture
) -> None:
    """And the refusal is logged once for each topic, until it is accepted again."""
    device.connect()
    device.link.answer(accept=False)
    refused = [each for each in caplog.records if each.levelno == logging.WARNING]
    assert len(refused) == 3
    device.link.sent.clear()
    device.loop.advance(30.0)
    assert [topic for topic, _, _ in device.link.sent] == ["health", "status"]
    device.link.answer(accept=False)
    assert len([each for each in caplog.records if each.levelno == logging.WARNING]) == 3
    device.loop.advance(30.0)
    device.link.answer(accept=True)
    device.link.sent.clear()
    device.loop.advance(30.0)
    assert [topic for topic, _, _ in device.link.sent] == ["health"]
    device.link.answer(accept=False)
    assert len([each for each in caplog.records if each.levelno == logging.WARNING]) == 4
    device.link.sent.clear()
    device.upstream.link_changed()
    assert device.link.sent == []  # health was refused, not status


def test_a_status_that_the_link_did_not_take_is_said_later(device: _Device) -> None:
    """A full queue of the connection is no `online`."""
    device.link.takes = False
    device.connect()
    assert device.link.taken() == []
    device.link.takes = True
    device.upstream.link_changed()
    assert device.link.taken() == ["online"]


def test_a_status_that_is_switched_off_is_never_said() -> None:
    """It counts as reported, so that it costs nothing at each health message."""
    device = _Device(status_topic="")
    asked: list[int] = []
    device.connect()
    assert device.link.taken() == ["models", "health"]

    def is_ready() -> bool:
        asked.append(1)
        return True

    device.upstream._is_ready = is_ready
    device.loop.advance(60.0)
    assert device.link.taken() == ["health", "health"]
    assert asked == []
