"""What a reading costs does not grow with the number of keys, topics, sources and models: steps are counted."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edge_runtime.config.load import load_config
from edge_runtime.config.topics import fewest
from edge_runtime.drift.monitor import Monitor
from edge_runtime.http.event_stream import HEALTH_EVERY_S, Watching
from edge_runtime.http.live_view import MOST_WATCHERS, Board
from edge_runtime.mqtt.messages import Handler, Message
from edge_runtime.mqtt.routes import MOST_TOPICS, Routes
from edge_runtime.mqtt.topics import TopicKeys
from edge_runtime.readings import Batch
from edge_runtime.stream.decide import Sequences
from edge_runtime.stream.rate import OnRate, Pace
from edge_runtime.stream.windows import Windows
from tests.support import drifting
from tests.support.stepped import SteppedLoop
from tests.support.steps import steps_of
from tests.support.way_in import LENGTH, OutboxDoor, make_pipeline

FLAT = 1.1


def _growth(cost: Callable[[int], float], few: int, many: int) -> float:
    cost(few)  # the first call imports and remembers
    return cost(many) / cost(few)


def test_asking_a_broker_for_a_topic_costs_the_same_among_a_thousand() -> None:
    """Which filters cover which is found without comparing each with each."""

    def cost(count: int) -> float:
        filters = [(f"plant/line-{number}/+/state", 1) for number in range(count)]
        return steps_of(lambda: fewest(filters)) / count

    assert _growth(cost, 50, 1000) < FLAT


def test_a_device_file_of_many_topics_is_checked_topic_by_topic(tmp_path: Path) -> None:
    """Which topics overlap is found without comparing each with each."""
    (tmp_path / "m.onnx").touch()

    def cost(count: int) -> float:
        topics = ", ".join(f'"plant/line-{number}/{{key}}/state"' for number in range(count))
        path = tmp_path / "device.toml"
        path.write_text(
            f'[device]\nid = "d"\n[[source]]\nname = "s"\ntype = "mqtt"\ntopics = [{topics}]\n'
            '[[model]]\nname = "m"\nbundle = "m.onnx"\nsource = "s"\n[upstream]\nurl = "mqtt://h"\n'
        )
        return float(steps_of(lambda: load_config(path)))

    cost(1)  # imports and remembers
    none = cost(1)
    assert (cost(301) - none) / 300 < FLAT * (cost(51) - none) / 50


def test_the_key_of_a_new_topic_costs_the_same_among_a_thousand_patterns() -> None:
    """That of a topic that is known costs a look into a table."""

    def cost(count: int) -> float:
        keys = TopicKeys(tuple(f"plant/line-{number}/{{key}}/state" for number in range(count)))
        topic = f"plant/line-{count - 1}/m/state".encode()
        return float(steps_of(lambda: keys.match(topic)))

    assert _growth(cost, 2, 1000) < FLAT


def _message(topic: str) -> Message:
    return Message(topic.encode(), b"", None)


def _routes(count: int) -> tuple[Routes, list[list[str]]]:
    """So many handlers, and what each of them was given."""
    given: list[list[str]] = [[] for _ in range(count)]

    def handler(own: list[str]) -> Handler:
        return lambda messages: own.extend(message.topic.decode() for message in messages)

    routes = Routes()
    routes.set(([f"s/{number}/+", f"s/{number}/a"], handler(own)) for number, own in enumerate(given))
    return routes, given


def test_messages_reach_the_source_that_subscribed_to_them_and_no_other() -> None:
    """In their order, once, however many filters of it catch them; those of no source reach none."""
    routes, given = _routes(3)
    messages = [_message(topic) for topic in ("s/1/a", "s/0/b", "s/1/c", "elsewhere", "s/1/a")]
    for handler, own in routes.split(messages):
        handler(own)
    assert given == [["s/0/b"], ["s/1/a", "s/1/c", "s/1/a"], []]
    assert len(routes.of(b"s/\xff/a")) == 3  # no UTF-8: each may look at it
    routes.set([])
    assert routes.split(messages) == []


def test_a_handler_that_shares_its_subscription_with_a_group_is_found_by_the_plain_topic() -> None:
    """`$share/GROUP/` is no part of a topic."""
    routes, taken = Routes(), list[Message]()
    routes.set([(["$share/g/s/+"], taken.extend)])
    [(handler, own)] = routes.split([_message("s/1"), _message("s/2")])
    handler(own)
    assert [message.topic for message in taken] == [b"s/1", b"s/2"]


def test_what_a_connection_remembers_of_topics_is_bounded() -> None:
    """Who invents topics does not fill the memory."""
    routes, _ = _routes(1)
    for number in range(MOST_TOPICS + 10):
        assert len(routes.of(b"s/0/%d" % number)) == 1
    assert len(routes.known) <= MOST_TOPICS


def test_handing_a_message_over_costs_the_same_among_fifty_sources() -> None:
    """One message, and several of one source, once their topics are known."""

    def cost(count: int) -> float:
        routes, _ = _routes(count)
        messages = [_message(f"s/{count - 1}/{key}") for key in range(10)]

        def deliver() -> None:
            for handler, own in routes.split(messages):
                handler(own)

        deliver()
        return float(steps_of(deliver))

    assert _growth(cost, 2, 50) < FLAT


@pytest.mark.parametrize("length", [1, 8])
def test_a_key_that_makes_room_for_another_is_found_without_a_look_at_all(length: int) -> None:
    """Keys that come once each, in a daemon whose keys are at their limit."""

    def cost(keys: int) -> float:
        windows = Windows((length, 1), length=length, stride=1, max_keys=keys)
        one = np.zeros((1, 1), np.float32)
        moments = iter(range(10 * keys))

        def come(count: int) -> None:
            for _ in range(count):
                moment = next(moments)
                windows.push(one, [str(moment)], None, float(moment))
                windows.take_evicted()

        come(keys + keys // 2)
        found = steps_of(lambda: come(keys)) / keys
        assert len(windows) == keys
        assert windows.evicted == keys + keys // 2
        return found

    assert _growth(cost, 200, 4000) < 1.5  # the order of a share of them is sorted: it grows with its logarithm


def test_the_key_that_makes_room_is_the_one_that_was_silent_longest() -> None:
    """Against a plain list in the order of the last readings, over a random course."""
    random = np.random.default_rng(5)
    windows = Windows((4, 1), length=4, stride=1, max_keys=40)
    one = np.zeros((1, 1), np.float32)
    order: list[str | None] = []
    for moment in range(3000):
        key = f"k{random.integers(90)}"
        windows.push(one, [key], None, float(moment))
        if key in order:
            order.remove(key)
        order.append(key)
        gone = [order.pop(0)] if len(order) > 40 else []
        assert windows.take_evicted() == gone
        assert {each for each, _ in windows.open()} == set(order)


def test_the_rate_of_a_key_is_judged_without_a_look_at_all_keys() -> None:
    """The verdict on the model is that on the median of its keys, which a count of sides tells."""

    def cost(keys: int) -> float:
        pace = Pace(10.0, 8, "warn", restart=lambda _: None, notice=lambda _: None)
        names: list[str | None] = [str(number) for number in range(keys)]

        def pass_by(readings: range) -> None:
            for moment in readings:
                for name in names:
                    pace.measure([name], [moment / 10.0], 0.0)

        pass_by(range(10))
        return steps_of(lambda: pass_by(range(10, 18))) / keys

    assert _growth(cost, 20, 400) < FLAT


def test_the_verdict_on_the_rates_of_many_keys_is_that_on_their_median() -> None:
    """Against the median itself, over random sets of keys; where exactly half is off, the verdict stays."""
    random = np.random.default_rng(7)
    for _ in range(60):
        verdicts: list[str] = []
        pace = Pace(10.0, 8, "warn", restart=lambda _: None, notice=lambda p: verdicts.append(p.state))  # noqa: B023
        for number in range(int(random.integers(1, 45))):
            interval = float(random.choice([0.05, 0.1, 0.2], p=random.dirichlet([1.0, 1.0, 1.0])))
            for reading in range(20):
                pace.measure([str(number)], [reading * interval], 0.0)
            assert pace.rate_hz is not None
            is_off = not 1 / 1.1 <= pace.rate_hz / 10.0 <= 1.1
            intervals = [1.0 / each.rate.interval for each in pace._streams.values() if each.rate.interval]
            off = max(sum(rate > 11.1 for rate in intervals), sum(rate < 9.0 for rate in intervals))
            assert pace.state == ("off" if is_off else "ok") or 2 * off == len(intervals)
        pace.forget([str(number) for number in range(45)])
        assert pace._sides == [0, 0, 0, 0]


def test_more_keys_in_one_batch_than_may_have_windows_leave_nothing_behind() -> None:
    """What they were remembered by goes with the next batch, or with the next look at silent keys."""
    loop = SteppedLoop()
    pipeline = make_pipeline(
        loop.as_loop, OutboxDoor(), stride=1, acknowledge="entry", start=1, sequences=Sequences(), max_keys=10
    )
    for number in range(200):
        pipeline.accept(_batch([f"k{number}-{each}" for each in range(30) for _ in range(LENGTH)]))
    assert pipeline.counters.counts["predictions"] == 200 * 30
    assert len(pipeline.decider.keys) <= 2 * 10 + 30
    pipeline.expire()
    assert len(pipeline.decider.keys) <= 10
    assert len(pipeline._addresses) <= 10


@pytest.mark.parametrize("on_rate", ["warn", "resample", "reject"])
def test_more_keys_in_one_batch_than_are_remembered_are_all_measured(on_rate: OnRate) -> None:
    """And no more than twice the limit are kept beside those of the batch."""
    pace = Pace(10.0, 8, on_rate, restart=lambda _: None, notice=lambda _: None, max_keys=10)
    for number in range(20):
        keys: list[str | None] = [f"k{number}-{each}" for each in range(50)]
        times = [number / 10.0] * 50
        paced = pace.take(np.zeros((50, 1), np.float32), keys, times, 0.0)
        assert paced is None or len(paced.values) in {0, 50}
        assert len(pace._streams) <= 2 * 10 + 50
        assert sum(pace._sides) == len(pace._streams)


def _batch(keys: list[str | None]) -> Batch:
    count = len(keys)
    return Batch(
        source="s",
        values=np.zeros((count, 1), np.float32),
        keys=keys,
        times=[time.time()] * count,
        identities=[None] * count,
        receipts=[None] * count,
        arrived=0.0,
    )


def test_what_is_known_of_drift_is_put_together_once_for_every_block() -> None:
    """Health, page and metrics ask for it every second, of each of many models with many keys."""
    random = np.random.default_rng(1)
    values = random.normal([20.0, 1000.0], [1.0, 5.0], (4000, 2)).astype(np.float32)
    monitor = Monitor(drifting.manifest(values, ("temperature", "pressure")))
    rows = values[: 2 * drifting.BLOCK]
    for key in ("a", "b"):
        monitor.take(rows, [key] * len(rows), None, 0.0)
    first = monitor.document()
    assert first["blocks"] == 4
    assert monitor.document() is first
    shifted = rows + np.array([50.0, 0.0], np.float32)
    monitor.take(shifted, ["b"] * len(rows), None, 1.0)
    assert (monitor.document()["state"], monitor.document()["channels"]["temperature"]["key"]) == ("alarm", "b")
    monitor.forget(["b"])
    monitor.take(rows[:1], ["c"], None, 2.0)
    assert (monitor.document()["state"], monitor.document()["channels"]["temperature"]["key"]) == ("ok", "a")


def test_the_health_of_many_models_is_encoded_once_for_all_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """And sent again beside other events only when it is a new one."""
    made = 0

    def health() -> dict[str, Any]:
        nonlocal made
        made += 1
        return {"made": made}

    def ask(answer: Callable[[], object]) -> None:
        answer()

    board = Board(ask, health)
    encoded: list[object] = []
    plain = msgspec.json.Encoder().encode

    def encode(document: object) -> bytes:
        encoded.append(document)
        return plain(document)

    monkeypatch.setattr("edge_runtime.http.live_view._encode", encode)
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    pages = [page for _ in range(MOST_WATCHERS) if (page := Watching.begin(board)) is not None]
    assert all(b"health" in page.first() for page in pages)
    assert encoded == [{"made": 1}]
    board.post("prediction", b"{}")
    assert [page.more() for page in pages] == [b"event: prediction\ndata: {}\n\n"] * MOST_WATCHERS
    now += HEALTH_EVERY_S - 0.5  # older than a second: a new one is made for the next event
    board.post("prediction", b"{}")
    assert all(b'{"made":2}' in page.more() for page in pages)
    now += HEALTH_EVERY_S + 0.5
    assert all(b'{"made":3}' in page.more() for page in pages)
    assert encoded == [{"made": 1}, {"made": 2}, {"made": 3}]
