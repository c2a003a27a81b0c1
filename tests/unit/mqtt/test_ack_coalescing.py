"""When acknowledgements are delayed, and which broker holds readings back, found by their times of arrival."""

import socket
from collections.abc import Iterator
from typing import cast

import pytest

from edge_runtime.mqtt.ack_coalescing import (
    ACK_DELAY_S,
    ALONE_READINGS,
    KERNEL_DELAY_S,
    LATE_READINGS,
    MOST_UNSENT_BYTES,
    TRIAL_READINGS,
    AckCoalescing,
)
from edge_runtime.mqtt.whole_socket import WholeSocket
from edge_runtime.system.loop import Loop
from tests.support.stepped import SteppedLoop

LATE = 0.044


class _Path:
    """Stands in for a hot path with nothing in flight."""

    in_flight, is_paused, window = 0, False, 20

    def read(self) -> None:
        """Nothing to read."""

    def flush(self) -> None:
        """Nothing to write."""


@pytest.fixture
def line() -> Iterator[tuple[AckCoalescing, WholeSocket]]:
    """What decides, over a real socket, and allowed to hold acknowledgements."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        plain = socket.create_connection(server.getsockname())
        other, _ = server.accept()
        loop, wrapped = Loop(), WholeSocket(plain)
        acks = AckCoalescing(_Path(), wrapped, loop, 0.2, prompt=True)
        acks.allow()
        yield acks, wrapped
        acks.end()
        wrapped.close()
        other.close()
        loop.close()


def test_readings_that_come_together_just_after_the_kernels_delay_are_held_back(
    line: tuple[AckCoalescing, WholeSocket],
) -> None:
    """From then on nothing waits in the socket, and what is read is confirmed at once."""
    acks, wrapped = line
    for _ in range(LATE_READINGS):
        assert acks.holding
        assert not wrapped.confirms
        acks.came_after(LATE, 4)
    assert wrapped.confirms
    assert not acks.holding
    assert not acks.watches_delay
    acks.allow()
    assert not acks.holding, "for as long as this connection lasts"


@pytest.mark.parametrize(
    ("seconds", "count"),
    [
        (0.010, 4),  # a busy source and a broker that holds nothing back
        (1.0, 1),  # a slow source
        (0.05, 1),  # twenty a second, each by itself
        (KERNEL_DELAY_S[1] + 0.001, 4),
        (0.081, 4),
        (0.035, 4),
        (KERNEL_DELAY_S[0] - 0.001, 4),
    ],
)
def test_other_brokers_and_slow_readings_cost_nothing(
    line: tuple[AckCoalescing, WholeSocket], seconds: float, count: int
) -> None:
    """Readings that come sooner, later or alone say nothing of the broker, however many there are."""
    acks, wrapped = line
    for _ in range(100):
        acks.came_after(seconds, count)
    assert acks.holding
    assert not wrapped.confirms


def test_a_chance_now_and_then_is_no_reason(line: tuple[AckCoalescing, WholeSocket]) -> None:
    """One in three that comes just then is a busy machine."""
    acks, wrapped = line
    for _ in range(50):
        acks.came_after(LATE, 2)
        acks.came_after(0.01, 1)
        acks.came_after(0.01, 1)
    assert not wrapped.confirms


@pytest.mark.parametrize("seconds", [0.036, 0.080])
def test_a_delay_at_the_edge_of_the_kernels_counts(line: tuple[AckCoalescing, WholeSocket], seconds: float) -> None:
    """Two readings together are enough, and three times more often than not."""
    acks, wrapped = line
    for count, late in ((2, 1), (2, 2), (1, 1), (1, 0), (1, 0), (2, 1), (2, 2)):
        acks.came_after(seconds, count)
        assert (acks.late, wrapped.confirms) == (late, False)
    acks.came_after(seconds, 2)
    assert wrapped.confirms


def test_readings_that_come_late_one_by_one_are_confirmed_at_once_as_a_trial(
    line: tuple[AckCoalescing, WholeSocket],
) -> None:
    """Three sensors of ten a second: each is held back alone. None is late any more in the trial, which stays."""
    acks, wrapped = line
    for _ in range(ALONE_READINGS):
        assert not wrapped.confirms
        acks.came_after(LATE, 1)
    assert wrapped.confirms
    assert acks.watches_delay
    for index in range(TRIAL_READINGS):
        assert acks.watches_delay
        acks.came_after(LATE if index < TRIAL_READINGS // 2 - 1 else 0.033, 1)
    assert wrapped.confirms
    assert not acks.holding
    assert not acks.watches_delay


def test_a_sensor_of_the_kernels_rate_is_tried_ever_more_rarely(line: tuple[AckCoalescing, WholeSocket]) -> None:
    """Twenty readings a second come 50 ms after the last with every broker: the trial ends, the next one is far off."""
    acks, wrapped = line
    expected = []
    for wait in (ALONE_READINGS, 4 * ALONE_READINGS, 16 * ALONE_READINGS):
        expected += (wait - 1) * [False] + TRIAL_READINGS * [True] + [False]
    seen = []
    for _ in expected:
        acks.came_after(0.05, 1)
        seen.append(wrapped.confirms)
        assert acks.holding is not wrapped.confirms
    assert seen == expected
    assert acks.watches_delay


def test_half_of_a_trials_readings_late_is_no_gain(line: tuple[AckCoalescing, WholeSocket]) -> None:
    """It ends as one in which all are late."""
    acks, wrapped = line
    for _ in range(ALONE_READINGS):
        acks.came_after(LATE, 1)
    for index in range(TRIAL_READINGS):
        acks.came_after(LATE if index % 2 else 0.01, 1)
    assert not wrapped.confirms
    assert acks.holding


def test_readings_that_come_late_by_chance_start_no_trial(line: tuple[AckCoalescing, WholeSocket]) -> None:
    """Two in three have to be late; `is_counting` says that the next one is wanted, however soon it comes."""
    acks, wrapped = line
    assert not acks.is_counting
    for _ in range(100):
        for seconds in (LATE, LATE, 0.01):
            acks.came_after(seconds, 1)
            assert acks.is_counting is (seconds == LATE)
    assert not wrapped.confirms
    acks.came_after(0.01, 1)
    assert not acks.is_counting


def test_three_in_four_that_come_late_start_a_trial(line: tuple[AckCoalescing, WholeSocket]) -> None:
    """A reading that comes sooner takes back two late ones, not more: each round leaves one."""
    acks, wrapped = line
    for _ in range(ALONE_READINGS - 3):
        for seconds in (LATE, LATE, LATE, 0.01):
            acks.came_after(seconds, 1)
            assert not wrapped.confirms
    for _ in range(3):
        assert not wrapped.confirms
        acks.came_after(LATE, 1)
    assert wrapped.confirms


def test_the_next_reading_is_wanted_while_one_more_came_late_together_than_not(
    line: tuple[AckCoalescing, WholeSocket],
) -> None:
    """Two that came together, then one that came soon: one is left, and two more late ones are enough."""
    acks, wrapped = line
    for seconds, count in ((LATE, 2), (LATE, 2), (0.01, 1)):
        acks.came_after(seconds, count)
        assert acks.is_counting
    acks.came_after(0.01, 1)
    assert not acks.is_counting
    assert not wrapped.confirms


@pytest.mark.parametrize(("count", "readings"), [(2, 3), (1, 8)])
def test_a_broker_that_holds_readings_back_is_recognised_within_a_second(
    line: tuple[AckCoalescing, WholeSocket], count: int, readings: int
) -> None:
    """Three late reads of several messages, or eight of one: at ten readings a second more would be felt."""
    acks, wrapped = line
    for _ in range(readings):
        assert not wrapped.confirms
        acks.came_after(LATE, count)
    assert wrapped.confirms


class _Bench:
    """Acknowledgements over a connection and a socket that only note what they are asked for."""

    def __init__(self, window: int = 20, *, can_wait: bool = True) -> None:
        self.in_flight, self.is_paused, self.window = 0, False, window
        self.calls: list[str] = []
        self.least: list[int] = []
        self.confirms = False
        self.loop = SteppedLoop()
        self._can_wait = can_wait
        self.acks = AckCoalescing(self, cast("WholeSocket", self), self.loop.as_loop, 0.2)

    def read(self) -> None:
        """As the connection's."""
        self.calls.append("read")

    def flush(self) -> None:
        """As the connection's, which takes `ours` along."""
        self.calls.append(f"flush {len(self.acks.ours)}")
        self.acks.ours.clear()

    def let_wait(self, least: int) -> bool:
        """As the socket's."""
        self.least.append(least)
        return self._can_wait

    def take_calls(self) -> list[str]:
        """What was asked for since the last look."""
        calls, self.calls = self.calls, []
        return calls


def test_the_brokers_acknowledgements_wait_from_readiness_to_the_beginning_of_a_stop() -> None:
    """Less than five bytes, one PUBACK, cause no wake-up; at the stop all that waits is read, once."""
    bench = _Bench()
    assert not bench.acks.holding
    assert not bench.acks.watches_delay, "unless it was asked for"
    bench.acks.allow()
    bench.acks.allow()
    assert bench.acks.holding
    assert bench.least == [5]
    bench.acks.at_once()
    bench.acks.at_once()
    assert not bench.acks.holding
    assert (bench.least, bench.take_calls()) == ([5, 1], ["read"])
    bench.acks.wrote(20, 20)
    bench.in_flight = 2
    bench.loop.advance(10.0)
    assert not bench.acks.holding, "not even after a rush"
    assert bench.loop.served == 1, "the end of the rush, and no look after acknowledgements that are read as they come"


def test_before_the_connection_is_ready_nothing_waits() -> None:
    """Nor when a rush ends before it is; and while there is one, readiness holds nothing."""
    bench = _Bench()
    bench.acks.wrote(6, 20)
    bench.loop.advance(1.0)
    assert not bench.acks.holding
    bench.acks.wrote(6, 20)
    bench.acks.allow()
    assert not bench.acks.holding
    bench.loop.advance(1.0)
    bench.loop.advance(1.0)
    assert bench.acks.holding
    assert bench.least == [5]


@pytest.mark.parametrize(("window", "can_wait", "holds"), [(3, True, False), (4, True, True), (20, False, False)])
def test_where_places_are_few_or_the_socket_cannot_wait_nothing_does(window: int, can_wait: bool, holds: bool) -> None:
    """Four places in flight are the least."""
    bench = _Bench(window, can_wait=can_wait)
    bench.acks.allow()
    assert bench.acks.holding is holds


def test_in_a_rush_nothing_waits_and_a_second_with_few_places_taken_ends_it() -> None:
    """More than a quarter of the places: of twenty six, at any moment of the second, or at its end."""
    bench = _Bench()
    bench.acks.allow()
    bench.acks.wrote(5, 20)
    assert bench.acks.rush_timer is None
    bench.acks.wrote(6, 20)
    assert (bench.acks.holding, bench.least) == (False, [5, 1])
    for most, in_flight in ((6, 0), (0, 6), (0, 0), (7, 0)):
        for taken in (0, most, 1):
            bench.acks.wrote(taken, 20)
        bench.in_flight = in_flight
        bench.loop.advance(1.0)
        assert (bench.acks.holding, bench.acks.rush_timer is None) == (False, False), (most, in_flight)
    bench.acks.wrote(5, 20)
    bench.loop.advance(0.999)
    assert not bench.acks.holding
    bench.loop.advance(0.001)
    assert bench.acks.holding
    assert bench.acks.rush_timer is None
    assert bench.least == [5, 1, 5]
    served = bench.loop.served
    bench.loop.advance(10.0)
    assert bench.take_calls() == []
    assert bench.loop.served == served, "nothing is in flight, and nothing is looked after"


def test_after_a_rush_what_is_still_in_flight_is_looked_after() -> None:
    """The acknowledgements that come after its end wait no longer than any other."""
    bench = _Bench()
    bench.acks.allow()
    bench.acks.wrote(6, 20)
    bench.in_flight = 2
    bench.loop.advance(1.0)
    assert bench.acks.holding
    bench.loop.advance(0.2)
    assert bench.take_calls() == ["read"]


def test_no_acknowledgement_waits_longer_than_the_patience() -> None:
    """A fifth of a second after a write the broker's are read, again and again until none is missing."""
    bench = _Bench()
    bench.acks.allow()
    bench.acks.wrote(0, 20)
    bench.loop.advance(10.0)
    assert bench.take_calls() == [], "nothing is in flight"
    bench.in_flight = 1
    bench.acks.wrote(1, 20)
    bench.loop.advance(0.1)
    bench.acks.wrote(1, 20)
    bench.loop.advance(0.099)
    assert bench.take_calls() == []
    bench.loop.advance(0.002)
    assert bench.take_calls() == ["read"], "the first one has waited long enough"
    bench.is_paused = True
    bench.loop.advance(0.2)
    assert bench.take_calls() == [], "nothing is read while reading is paused"
    bench.is_paused = False
    bench.loop.advance(0.2)
    assert bench.take_calls() == ["read"]
    bench.in_flight = 0
    bench.loop.advance(10.0)
    assert bench.take_calls() == []
    assert bench.loop.served == 4, "and then no timer wakes the process"


def test_ours_leave_with_the_patience_where_no_message_takes_them_along() -> None:
    """Also in a rush, where the broker's are not waited for."""
    bench = _Bench()
    bench.acks.allow()
    bench.acks.acknowledge(0x1234)
    bench.acks.acknowledge(7)
    assert bytes(bench.acks.ours) == b"\x40\x02\x12\x34\x40\x02\x00\x07"
    bench.acks.tidy_later()
    bench.loop.advance(0.2)
    assert bench.take_calls() == ["flush 8"]
    bench.acks.wrote(20, 20)
    bench.in_flight = 20
    bench.acks.acknowledge(8)
    bench.acks.tidy_later()
    bench.loop.advance(0.2)
    assert bench.take_calls() == ["flush 4"]
    served = bench.loop.served
    bench.loop.advance(0.7)
    assert bench.loop.served == served


def test_after_the_end_of_the_connection_nothing_is_read_or_written() -> None:
    """Whatever was waiting: another connection has acknowledgements of its own."""
    for taken in (1, 20):
        bench = _Bench()
        bench.acks.allow()
        bench.in_flight = taken
        bench.acks.acknowledge(1)
        bench.acks.tidy_later()
        bench.acks.wrote(taken, 20)
        bench.acks.end()
        bench.in_flight, least = 0, list(bench.least)
        assert not bench.acks.holding
        assert not bench.acks.ours
        assert bench.acks.rush_timer is None
        bench.loop.advance(10.0)
        assert bench.take_calls() == []
        assert (bench.least, bench.loop.served) == (least, 0)


def test_of_ours_no_more_than_five_wait_and_none_for_longer_than_a_fifth_of_a_second() -> None:
    """A broker usually lets twenty be unacknowledged, and a PUBACK has four bytes."""
    assert MOST_UNSENT_BYTES == 5 * 4
    assert ACK_DELAY_S == 0.2
