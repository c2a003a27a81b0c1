"""The watch over a stream that may stand still because windows hold all that a broker lets be unacknowledged."""

import logging
from typing import cast

import pytest

from edge_runtime.mqtt.connection import Connection
from edge_runtime.stream.sources.limit import LIMIT_PATIENCE_S, LimitWatch
from edge_runtime.stream.sources.mqtt import MqttSource, MqttSourceTable
from edge_runtime.system.counters import Counters
from tests.support.stepped import SteppedLoop
from tests.support.tables import table


class _Line:
    ready = True

    def __init__(self) -> None:
        self.owed = 0
        self.delivered = 0


def _watch(loop: SteppedLoop, line: _Line, counters: Counters) -> LimitWatch:
    watch = LimitWatch(
        loop.as_loop, cast("Connection", line), counters, (20, "mosquitto's max_inflight_messages"), source="climate"
    )
    watch.start()
    return watch


def test_a_stream_that_stands_still_at_the_limit_is_reported_with_the_setting(caplog: pytest.LogCaptureFixture) -> None:
    """Each time that it is looked at, in the counter and in the log."""
    loop, line, counters = SteppedLoop(), _Line(), Counters()
    watch = _watch(loop, line, counters)
    line.owed = 20
    watch.took()
    with caplog.at_level(logging.ERROR):
        loop.advance(2 * LIMIT_PATIENCE_S)
    assert counters.errors["window_limit"] == 2
    assert "open windows hold 20 readings, as many as mosquitto's max_inflight_messages" in caplog.text


def test_a_stream_below_the_limit_or_without_a_link_is_not_reported() -> None:
    """Nor one that goes on, nor a source that was stopped."""
    loop, line, counters = SteppedLoop(), _Line(), Counters()
    watch = _watch(loop, line, counters)
    line.owed = 19
    loop.advance(2 * LIMIT_PATIENCE_S)
    line.owed, line.ready = 20, False
    loop.advance(LIMIT_PATIENCE_S)
    line.ready = True
    for _ in range(10):
        watch.took()
        loop.advance(LIMIT_PATIENCE_S / 2)
    watch.stop()
    loop.advance(10 * LIMIT_PATIENCE_S)
    assert counters.errors == {}


class _Link(_Line):
    state = "connected"

    def subscribe(self, *_arguments: object, **_more: object) -> None:
        """Any filters."""

    def acknowledge_in_any_order(self) -> None:
        """Noted elsewhere."""


def test_a_reload_to_windows_starts_the_watch_of_a_source_that_runs() -> None:
    """The source is kept, and its model acknowledges by windows from then on; a second reload starts no second one."""
    loop, line, counters = SteppedLoop(), _Link(), Counters()
    source = MqttSource(
        table(MqttSourceTable, name="s", topics=["t"]),
        ("x",),
        None,
        connection=cast("Connection", line),
        sink=lambda _batch: None,
        counters=counters,
        loop=loop.as_loop,
    )
    source.start()
    line.owed = 20
    loop.advance(2 * LIMIT_PATIENCE_S)
    assert counters.errors["window_limit"] == 0
    for _ in range(2):
        source.hold_windows((20, "mosquitto's max_inflight_messages"))
    loop.advance(LIMIT_PATIENCE_S)
    assert counters.errors["window_limit"] == 1
