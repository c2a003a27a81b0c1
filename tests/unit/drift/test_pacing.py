"""The rate and the clock of one stream, block by block, worked out on paper."""

import math

import pytest

from edge_runtime.drift.pacing import CHUNK, CLOCK_ALARM_S, RATE_ALARM, TWICE, Level, Pacing, SavedPacing


def _level(*severities: float) -> list[int]:
    level = Level()
    found = []
    for severity in severities:
        level.follow(severity)
        found.append(level.state)
    return found


@pytest.mark.parametrize(
    ("severities", "states"),
    [
        ((0.5, 0.5), [0, 1]),
        ((0.49, 0.49, 0.49), [0, 0, 0]),
        ((1.0, 1.0), [0, 2]),
        ((0.99, 0.99), [0, 1]),
        ((0.5, 0.0, 0.5, 0.5), [0, 0, 0, 1]),  # two blocks one after the other
        ((0.5, 1.0), [0, 2]),
        ((1.0, 1.0, 0.7, 0.7), [0, 2, 2, 2]),  # what raised it has to fall below 0.7 of its limit
        ((1.0, 1.0, 0.69, 0.69), [0, 2, 2, 1]),
        ((1.0, 1.0, 0.34, 0.34), [0, 2, 2, 0]),
        ((0.5, 0.5, 0.35, 0.35), [0, 1, 1, 1]),
        ((0.5, 0.5, 0.34, 0.34), [0, 1, 1, 0]),
        ((0.5, 0.5, 0.9, 0.9), [0, 1, 1, 1]),
        ((0.5, 0.5, 0.34, 0.5, 0.34, 0.34), [0, 1, 1, 1, 1, 0]),
        ((1.0, 1.0, 0.0, 0.0, 1.0, 1.0), [0, 2, 2, 0, 0, 2]),
    ],
)
def test_a_state_follows_two_blocks_of_one_mind(severities: tuple[float, ...], states: list[int]) -> None:
    """Up and down."""
    assert TWICE == 2
    assert _level(*severities) == states


def _blocks(pacing: Pacing, times: list[float], *, wall: float | None = None, block: int = 16) -> None:
    for start in range(0, len(times), block):
        pacing.measure(times[start : start + block], wall)
        pacing.judge(block, 0, 0.0)


def _even(interval: float, count: int = 64) -> list[float]:
    return [1000.0 + interval * number for number in range(count)]


@pytest.mark.parametrize(
    ("interval", "state"), [(1.0, 0), (1.09, 0), (1.11, 1), (1.2, 1), (1.22, 2), (0.92, 0), (0.9, 1), (0.82, 2)]
)
def test_a_rate_is_an_alarm_where_it_is_off_by_a_fifth(interval: float, state: int) -> None:
    """To watch from a tenth on; the interval that was measured is known in any case."""
    assert pytest.approx(math.log(1.21)) == RATE_ALARM
    pacing = Pacing(1.0, 0, 0.0, is_live=False)
    _blocks(pacing, _even(interval))
    assert pacing.found == pytest.approx(interval)
    assert (pacing.rate.state, pacing.state, pacing.clock.state) == (state, state, 0)


@pytest.mark.parametrize(
    ("spans", "found"),
    [
        ([1.0, 1.0, 1.0, 1.0, 1.0, 50.0, 1.0], 1.0),  # a pause: the median counts
        ([0.2, 1.8, 0.2, 1.8, 0.2, 1.8, 1.0], 1.0),  # jitter: the mean counts
        ([0.0, 2.0, 0.0, 2.0, 0.0, 2.0, 1.0], 1.0),  # equal times: forward spans over all of them
        ([3.0, -1.0, 3.0, -1.0, 3.0, -1.0, 3.0], 12.0 / 7.0),  # times that go back: only the forward ones
        ([0.0] * 4 + [1.0] * 3, 1.0),  # the median of the forward steps alone
        ([0.0, 1.0, 1.0, 1.0, 5.0, 5.0, 5.0], 18.0 / 7.0),  # which is 3 here, and the mean is nearer
        ([-1.0] * 7, None),
        ([1.0] * 6, None),  # seven moments are too few
    ],
)
def test_the_better_of_median_and_mean_counts(spans: list[float], found: float | None) -> None:
    """Over the forward steps of the first moments of a block."""
    pacing = Pacing(1.0, 0, 0.0, is_live=False)
    times = [1000.0]
    for span in spans:
        times.append(times[-1] + span)
    pacing.measure(times, None)
    pacing.judge(len(times), 0, 0.0)
    assert pacing.found == (None if found is None else pytest.approx(found))


def test_what_is_found_is_compared_with_the_interval_of_the_training() -> None:
    """By ratio: of median and mean the nearer one counts, and its ratio is the severity."""
    pacing = Pacing(2.0, 0, 0.0, is_live=False)
    for _ in range(2):
        pacing.measure([1000.0, 1002.4, 1004.8, 1007.2, 1009.6, 1009.9, 1010.2, 1010.5], None)
        pacing.judge(8, 0, 0.0)
    assert pacing.found == pytest.approx(2.4)  # the median, a fifth too long; the mean, 1.5, is a quarter too short
    assert pacing.rate.state == 1
    for _ in range(2):
        pacing.measure(_even(1.0, 8), None)
        pacing.judge(8, 0, 0.0)
    assert (pacing.found, pacing.rate.state) == (1.0, 2)


def test_one_reading_and_half_a_second_are_enough_of_arrivals() -> None:
    """A block of one reading."""
    pacing = Pacing(1.0, 0, 100.0, is_live=True)
    pacing.judge(1, 0, 103.0)
    assert pacing.found == 3.0
    pacing.judge(1, 0, 103.5)
    assert pacing.found == 0.5


def test_the_first_33_moments_of_a_block_are_looked_at() -> None:
    """The next block has its own."""
    assert CHUNK == 32
    pacing = Pacing(1.0, 0, 0.0, is_live=False)
    assert pacing.wants_times
    pacing.measure(_even(1.0, 32), None)
    assert pacing.wants_times
    pacing.measure([2000.0, 3000.0], None)
    assert not pacing.wants_times
    pacing.measure([4000.0], None)
    assert len(pacing._moments) == 33
    pacing.judge(40, 0, 0.0)
    assert pacing.wants_times
    assert pacing.found == 1.0
    pacing.measure(_even(0.5, 100), None)
    assert len(pacing._moments) == 33
    pacing.judge(100, 0, 0.0)
    assert pacing.found == 0.5


def test_without_a_rate_of_the_training_no_times_are_wanted() -> None:
    """There is nothing to compare them with."""
    pacing = Pacing(None, 0, 0.0, is_live=True)
    assert not pacing.wants_times
    pacing.measure(_even(1.0), None)
    pacing.judge(64, 0, 10.0)
    assert (pacing.found, pacing.rate.state, pacing.wants_times) == (None, 0, False)


def test_readings_without_times_are_judged_by_their_arrival() -> None:
    """How many came since the first one of the block; those that came with it belong to the time before."""
    pacing = Pacing(1.0, 3, 100.0, is_live=True)
    pacing.judge(16, 4, 100.0 + 34.0)  # 16 and 4 more have come, of which 3 were there at the beginning
    assert pacing.found == 2.0
    pacing.judge(16, 0, 134.0 + 24.0)
    assert pacing.found == 2.0
    pacing.judge(16, 16, 158.0)  # in the same moment
    assert pacing.found == 2.0
    pacing.judge(16, 0, 190.0)  # none since
    assert pacing.found == 2.0
    pacing.judge(16, 0, 190.0 + 16.0)
    assert pacing.found == 1.0
    recorded = Pacing(1.0, 0, 100.0, is_live=False)
    recorded.judge(16, 0, 200.0)
    assert recorded.found is None
    timed = Pacing(1.0, 0, 100.0, is_live=True)
    timed.measure([1.0, 2.0], None)
    timed.judge(16, 0, 200.0)
    assert timed.found is None


@pytest.mark.parametrize(
    ("offset", "state"), [(0.5, 0), (29.0, 0), (30.0, 1), (59.0, 1), (60.0, 2), (-29.0, 0), (-30.0, 1), (-60.0, 2)]
)
def test_a_clock_is_an_alarm_where_every_reading_is_off_by_a_minute(offset: float, state: int) -> None:
    """To watch from half a minute on; behind is positive. One reading of a block that is right is enough."""
    assert CLOCK_ALARM_S == 60.0
    pacing = Pacing(None, 0, 0.0, is_live=True)
    for _ in range(2):
        pacing.measure([5000.0, 5001.0], 5000.0 + offset + (1.0 if offset > 0 else 0.0))
        pacing.measure([5000.5], 5000.5 + offset)
        pacing.judge(3, 0, 0.0)
    assert (pacing.offset, pacing.clock.state, pacing.state) == (offset, state, state)
    for _ in range(2):
        pacing.measure([5000.0], 5000.0 + offset)
        pacing.measure([5000.0], 5000.0)
        pacing.judge(2, 0, 0.0)
    assert (pacing.offset, pacing.clock.state) == (0.0, 0)
    pacing.measure([5000.0], None)
    pacing.judge(1, 0, 0.0)
    assert pacing.offset == 0.0


def test_both_states_are_kept_over_a_stop() -> None:
    """With what was measured."""
    saved = SavedPacing(rate=1, clock=2, found=3.0, offset=4.0)
    pacing = Pacing(1.0, 0, 0.0, is_live=True)
    assert pacing.save() == SavedPacing(0, 0, None, None)
    pacing.restore(saved)
    assert pacing.save() == saved
    assert (pacing.rate.state, pacing.clock.state, pacing.state) == (1, 2, 2)
