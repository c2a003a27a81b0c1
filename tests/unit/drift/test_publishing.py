"""The reports of drift on their topic: when they are published, to whom, and what the log says."""

import json
import logging
from typing import Any, cast

import msgspec
import numpy as np
import pytest

from edge_runtime.bundle.manifest import Manifest
from edge_runtime.config.tables import UpstreamTable
from edge_runtime.delivery.device_topics import own_topics
from edge_runtime.drift.monitor import SavedWatch
from edge_runtime.drift.publishing import SOON_S, DriftReports, SavedDrift
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
        self.accepts = True
        self.sent: list[tuple[str, Any, bool]] = []

    def publish(self, topic: str, payload: bytes, *, qos: int, retain: bool = False, outcome: Any = None) -> bool:
        """As `Connection.publish`."""
        assert qos == 1
        if self.connected:
            self.sent.append((topic, json.loads(payload) if payload else None, retain))
            outcome(self.accepts)
        return self.connected


class _Files:
    """Keeps small files, as `StateFolder` does."""

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}
        self.is_full = False

    def read(self, what: str) -> bytes | None:
        """As `StateFolder.read`."""
        return self.data.get(what)

    def write(self, what: str, data: bytes) -> None:
        """As `StateFolder.write`."""
        if self.is_full:
            raise OSError(28, "No space left on device")
        self.data[what] = data


class _Model:
    """As much of a pipeline as the reports need."""

    def __init__(self, name: str, manifest: Manifest, digest: str = "d1") -> None:
        self.config = type("Table", (), {"name": name})
        self.model = type("Model", (), {"manifest": manifest, "bundle": type("Bundle", (), {"digest": digest})})
        self.drift: Any = None


class _Bench:
    """Reports over a link, on a loop that moves when asked."""

    def __init__(self, files: "_Files | None" = None, **upstream: Any) -> None:
        self.rng = np.random.default_rng(3)
        self.manifest = drifting.manifest(drifting.readings(self.rng, 4000))
        self.loop, self.link = SteppedLoop(), _Link()
        self.files = files or _Files()
        self.reports = DriftReports(self.loop.as_loop, Clock(lambda: True), self.files)
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


def test_what_is_known_outlives_a_clean_stop() -> None:
    """The alarm stands again with the first reading, as do the sums; with another bundle all begins anew."""
    first = _Bench()
    first.take(5)
    first.take(2, stuck=True)
    first.reports.end()
    before = first.model.drift.streams[None].input
    second = _Bench(first.files)
    assert second.states() == ["ok", "ok"]
    second.model.drift.take(drifting.readings(second.rng, 1), [None], None, 0.0)
    after = second.model.drift.streams[None].input
    assert [each.save() for each in after.columns] == [each.save() for each in before.columns]
    assert after.save() == before.save()
    second.loop.advance(SOON_S)
    ((_, document, _),) = second.link.sent
    assert (document["state"], document["causes"][0]) == (
        "alarm", {"at": "temperature", "cause": "stuck", "state": "alarm"},
    )  # fmt: skip
    second.reports.end()
    other = _Bench(second.files)
    other.model = other.follow("vibration", "d2")
    other.take(1)
    assert other.model.drift.state == "ok"


def test_a_start_takes_the_saved_state_once() -> None:
    """After a crash it would be outdated: a start after the next one begins at ok, with the first reading too."""
    bench = _Bench()
    bench.take(5)
    bench.take(2, stuck=True)
    bench.reports.end()
    assert any(bench.files.data.values())
    _Bench(bench.files)
    assert not any(bench.files.data.values())
    third = _Bench(bench.files)
    third.model.drift.take(drifting.readings(third.rng, 1), [None], None, 0.0)
    assert third.model.drift.state == "ok"


def test_it_goes_on_as_if_there_had_been_no_stop() -> None:
    """Between two blocks: the same figures of the blocks that follow, but for the step over the stop."""
    whole, first = _Bench(), _Bench()
    values = drifting.readings(np.random.default_rng(9), 12 * drifting.BLOCK)
    keys: list[str | None] = ["a"] * len(values)
    half = 6 * drifting.BLOCK
    whole.model.drift.take(values, keys, None, 0.0)
    first.model.drift.take(values[:half], keys[:half], None, 0.0)
    first.reports.end()
    second = _Bench(first.files)
    second.model.drift.take(values[half:], keys[half:], None, 0.0)
    one, two = (each.model.drift.document()["channels"] for each in (whole, second))
    assert one == two


def test_a_key_that_does_not_come_is_kept_for_the_next_start() -> None:
    """A start in which it was silent forgets nothing, and reports no key that it has not seen."""
    first = _Bench()
    values = drifting.readings(first.rng, 2 * drifting.BLOCK)
    values[:, 0] = 20.5
    first.model.drift.take(values, ["a"] * len(values), None, 0.0)
    first.reports.end()
    second = _Bench(first.files)
    assert second.reports.documents()["vibration"]["watched"] == 0
    second.reports.end()
    third = _Bench(second.files)
    third.model.drift.take(values[:1], ["a"], None, 0.0)
    assert third.reports.state_of("vibration", "a") == "alarm"


@pytest.mark.parametrize("data", [b"\xc1", b"x", b"\x80", b"\x82\xa6format\x02\xa6models\x80"])
def test_a_file_that_cannot_be_read_begins_anew(data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """Damaged, or of another release."""
    files = _Files()
    files.data["drift"] = data
    with caplog.at_level(logging.WARNING):
        bench = _Bench(files)
    bench.take(2)
    assert bench.model.drift.state == "ok"
    assert len(caplog.records) == (0 if b"format" in data else 1)


def test_figures_of_other_columns_are_not_taken_up() -> None:
    """A file that was changed by hand: that key begins anew, and nothing is lost."""
    first = _Bench()
    first.take(2, stuck=True)
    first.reports.end()
    saved = msgspec.msgpack.decode(first.files.data["drift"], type=SavedDrift)
    digest, ((key, columns, scores, pacing),) = saved.models["vibration"]
    assert columns is not None
    for odd in (columns._replace(columns=columns.columns[:1]), columns._replace(bins=[[1.0]])):
        saved.models["vibration"] = (digest, [SavedWatch(key, odd, scores, pacing)])
        first.files.data["drift"] = msgspec.msgpack.encode(saved)
        second = _Bench(first.files)
        second.take(4)
        assert (second.model.drift.state, second.model.drift.blocks) == ("ok", 4)


def test_a_full_disk_keeps_nothing_and_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """The stop is clean all the same."""
    bench = _Bench()
    bench.files.is_full = True
    with caplog.at_level(logging.WARNING):
        bench.reports.end()
    assert caplog.records[0].getMessage() == "what is known of drift is not kept"


def test_a_change_is_published_within_a_second() -> None:
    """And an unchanged state when the interval of health has passed since."""
    bench = _Bench()
    bench.states()
    bench.take(2, stuck=True)
    bench.loop.advance(0.99)
    assert bench.states() == []
    bench.loop.advance(0.02)
    assert bench.states() == ["alarm"]
    bench.take(1, stuck=True)
    bench.loop.advance(INTERVAL - 0.1)
    assert bench.states() == []
    bench.loop.advance(0.2)
    assert bench.states() == ["alarm"]


def test_a_refusal_is_logged_once_until_the_topic_is_accepted_again(caplog: pytest.LogCaptureFixture) -> None:
    """A broker that allows no such topic refuses each document."""
    bench = _Bench()
    bench.link.accepts = False
    for accepts in (False, False, True, False):
        bench.link.accepts = accepts
        bench.take(1)
        bench.loop.advance(INTERVAL)
    assert [each.getMessage() for each in caplog.records] == ["the broker refused a message of the device"] * 2
    assert caplog.records[0].__dict__["fields"] == {"topic": "edge/press-07/drift/vibration"}


def test_another_connection_gets_every_document() -> None:
    """As after a reload with another broker; the same one again gets none."""
    bench = _Bench()
    bench.states()
    topics = own_topics("press-07", UpstreamTable(url="mqtt://localhost"))
    bench.reports.attach(cast("AnyConnection", bench.link), topics, INTERVAL)
    bench.reports.link_changed()
    assert bench.states() == []
    other = _Link()
    bench.reports.attach(cast("AnyConnection", other), topics, INTERVAL)
    bench.reports.link_changed()
    assert [document["state"] for _, document, _ in other.sent] == ["ok"]


def test_without_a_connection_the_documents_are_there_all_the_same() -> None:
    """For health and the page; nothing is published."""
    loop, rng = SteppedLoop(), np.random.default_rng(3)
    reports = DriftReports(loop.as_loop, Clock(lambda: True), _Files())
    model = _Model("vibration", drifting.manifest(drifting.readings(rng, 4000)))
    reports.follow(cast("Pipeline", model), is_recorded=False)
    reports.link_changed()
    model.drift.take(drifting.readings(rng, drifting.BLOCK), [None] * drifting.BLOCK, None, 0.0)
    loop.advance(2 * INTERVAL)
    assert reports.documents()["vibration"]["blocks"] == 1
    assert (reports.state_of("vibration", None), reports.state_of("other", None)) == ("ok", "ok")


@pytest.mark.parametrize("is_set", [True, False])
def test_times_are_compared_with_a_clock_that_is_set_only(*, is_set: bool) -> None:
    """A device that has not heard the time yet would call every reading wrong."""
    rng = np.random.default_rng(3)
    reports = DriftReports(SteppedLoop().as_loop, Clock(lambda: is_set), _Files())
    model = _Model("vibration", drifting.manifest(drifting.readings(rng, 4000)))
    reports.follow(cast("Pipeline", model), is_recorded=False)
    values = drifting.readings(rng, 2 * drifting.BLOCK)
    model.drift.take(values, [None] * len(values), [1000.0 + row for row in range(len(values))], 0.0)
    clock = model.drift.document()["clock"]
    assert (clock["state"], clock["offset_s"] is None) == (("alarm", False) if is_set else ("ok", True))


def test_after_the_end_nothing_is_left_to_do() -> None:
    """No document that was due."""
    bench = _Bench()
    bench.take(2, stuck=True)
    bench.reports.end()
    bench.states()
    served = bench.loop.served
    bench.loop.advance(3 * INTERVAL)
    assert (bench.loop.served, bench.states()) == (served, [])


def test_a_file_of_this_format_stays_readable() -> None:
    """As a release has written it: format 1."""
    first = _Bench()
    first.take(2, stuck=True)
    first.reports.end()
    saved = msgspec.msgpack.decode(first.files.data["drift"])
    assert saved["format"] == 1
    assert saved["models"]["vibration"][0] == "d1"
