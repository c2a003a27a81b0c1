"""The reports of drift on their topic: when they are published, to whom, and what the log says."""

import json
import logging
from typing import Any, cast

import numpy as np
import pytest

from edge_runtime.bundle.manifest import Manifest
from edge_runtime.config.tables import UpstreamTable
from edge_runtime.delivery.device_topics import own_topics
from edge_runtime.drift.publishing import SOON_S, DriftReports
from edge_runtime.mqtt.any_connection import AnyConnection
from edge_runtime.readings import Floats
from edge_runtime.stream.pipeline import Pipeline
from edge_runtime.system.clock import Clock
from tests.support import drifting
from tests.support.stepped import SteppedLoop

INTERVAL = 60.0


class _Link:
    """Keeps what it is given, while it is connected."""

    def __init__(self) -> None:
        self.connected = True
        self.sent: list[tuple[str, Any, bool]] = []

    def publish(self, topic: str, payload: bytes, *, qos: int, retain: bool = False, outcome: Any = None) -> bool:
        """As `Connection.publish`."""
        assert qos == 1
        if self.connected:
            self.sent.append((topic, json.loads(payload) if payload else None, retain))
            outcome(True)
        return self.connected


class _Model:
    """As much of a pipeline as the reports need."""

    def __init__(self, name: str, manifest: Manifest, digest: str = "d1") -> None:
        self.config = type("Table", (), {"name": name})
        self.model = type("Model", (), {"manifest": manifest, "bundle": type("Bundle", (), {"digest": digest})})
        self.drift: Any = None


class _Bench:
    """Reports over a link, on a loop that moves when asked."""

    def __init__(self, **upstream: Any) -> None:
        self.rng = np.random.default_rng(3)
        self.manifest = drifting.manifest(drifting.readings(self.rng, 4000))
        self.loop, self.link = SteppedLoop(), _Link()
        self.reports = DriftReports(self.loop.as_loop, Clock(lambda: True))
        table = UpstreamTable(url="mqtt://localhost", **upstream)
        self.reports.attach(cast("AnyConnection", self.link), own_topics("press-07", table), INTERVAL)
        self.model = self.follow("vibration")
        self.reports.link_changed()

    def follow(self, name: str, digest: str = "d1") -> _Model:
        """Watch a model of this name."""
        model = _Model(name, self.manifest, digest)
        self.reports.follow(cast("Pipeline", model), is_recorded=False)
        return model

    def take(self, blocks: int, *, stuck: bool = False) -> None:
        """So many blocks of readings."""
        values: Floats = drifting.readings(self.rng, blocks * drifting.BLOCK)
        if stuck:
            values[:, 0] = 20.5
        self.model.drift.take(values, [None] * len(values), None, 0.0)

    def states(self) -> list[str]:
        """Of the documents that were published since the last call."""
        sent, self.link.sent = self.link.sent, []
        return [document["state"] for _, document, _ in sent]


def test_a_model_is_reported_at_once_retained_on_its_own_topic() -> None:
    """So that whoever comes later finds how things stand."""
    bench = _Bench()
    (topic, document, retain), *_ = bench.link.sent
    assert (topic, retain) == ("edge/press-07/drift/vibration", True)
    assert (document["model"], document["state"], document["blocks"]) == ("vibration", "ok", 0)


def test_a_change_is_published_soon_and_the_rest_at_the_interval() -> None:
    """An alarm does not wait for the minute; figures that merely move do; and without new ones nothing is sent."""
    bench = _Bench()
    bench.states()
    bench.take(2)
    bench.loop.advance(SOON_S)
    assert bench.states() == []
    bench.loop.advance(INTERVAL)
    assert bench.states() == ["ok"]
    bench.loop.advance(2 * INTERVAL)
    assert bench.states() == []
    bench.take(2, stuck=True)
    bench.loop.advance(SOON_S)
    assert bench.states() == ["alarm"]


def test_while_the_link_is_down_nothing_is_kept_and_the_newest_is_sent_after_it() -> None:
    """One document, not one for each change."""
    bench = _Bench()
    bench.states()
    bench.link.connected = False
    bench.reports.link_changed()
    bench.take(2, stuck=True)
    bench.loop.advance(3 * INTERVAL)
    bench.link.connected = True
    bench.reports.link_changed()
    assert bench.states() == ["alarm"]


def test_the_log_names_the_channel_once_for_each_change(caplog: pytest.LogCaptureFixture) -> None:
    """An alarm is a warning."""
    bench = _Bench()
    with caplog.at_level(logging.INFO):
        bench.take(2, stuck=True)
        bench.loop.advance(3 * INTERVAL)
        bench.take(60)
        bench.loop.advance(3 * INTERVAL)
    lines = [(each.levelname, each.getMessage()) for each in caplog.records if each.getMessage().startswith("drift")]
    assert [level for level, _ in lines] == ["WARNING", "INFO"]
    assert lines[0][1].startswith("drift: temperature: stuck: 20.5 in ")
    assert lines[1][1] == "drift: as in training again"


def test_listeners_learn_model_key_and_state() -> None:
    """What captures windows at an alarm, for example."""
    bench = _Bench()
    heard: list[tuple[str, str | None, str]] = []
    bench.reports.listeners.append(lambda *what: heard.append(what))
    bench.take(2, stuck=True)
    assert heard == [("vibration", None, "alarm")]
    assert bench.reports.state_of("vibration", None) == "alarm"
    assert bench.reports.state_of("another", None) == "ok"


def test_the_same_bundle_keeps_what_is_known_and_another_one_begins_anew() -> None:
    """A reload makes a new pipeline for the same bundle."""
    bench = _Bench()
    bench.take(2, stuck=True)
    again = bench.follow("vibration")
    assert again.drift is bench.model.drift
    assert bench.follow("vibration", "d2").drift.state == "ok"


def test_the_topic_of_a_model_that_is_gone_is_emptied() -> None:
    """A retained alarm of it would stand for ever."""
    bench = _Bench()
    bench.reports.keep(set())
    assert bench.link.sent[-1] == ("edge/press-07/drift/vibration", None, True)
    assert bench.reports.documents() == {}


@pytest.mark.parametrize(
    ("upstream", "topic", "retain"),
    [
        ({"retain": False}, "edge/press-07/drift/vibration", False),
        ({"health_topic": "dt/{device}/health"}, "dt/press-07/health/drift/vibration", True),
        ({"health_topic": ""}, None, True),
    ],
)
def test_the_topic_follows_that_of_health(upstream: dict[str, Any], topic: str | None, retain: bool) -> None:
    """As the reports of shadows do."""
    bench = _Bench(**upstream)
    assert [each[0] for each in bench.link.sent[:1]] == ([] if topic is None else [topic])
    assert all(each[2] is retain for each in bench.link.sent)


def test_a_bundle_without_limits_is_named_in_one_sentence(caplog: pytest.LogCaptureFixture) -> None:
    """It works, and the log says what is not watched."""
    bench = _Bench()
    bench.manifest = drifting.manifest(drifting.readings(bench.rng, 4000), calibrated=False)
    with caplog.at_level(logging.INFO):
        bench.follow("older")
    (line,) = [each.getMessage() for each in caplog.records]
    assert line.startswith("the bundle has no limits for drift: what is stuck, missing, out of range or swapped")
