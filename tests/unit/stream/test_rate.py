"""A window means seconds: another rate than the bundle's is noticed, and nothing else is taken for one."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_runtime.readings import Floats
from edge_runtime.stream.rate import OnRate, Pace
from edge_runtime.stream.resample import Resampler

NOMINAL = 10.0
LENGTH = 50
Moments = NDArray[np.float64]


class Rig:
    """The watch of one model of 50 readings at 10 Hz, and what it reported."""

    def __init__(self, on_rate: OnRate = "warn", *, holds: bool = True) -> None:
        self.notices: list[tuple[str, float]] = []
        self.restarted: list[str | None] = []
        self.pace = Pace(
            NOMINAL,
            LENGTH,
            on_rate,
            restart=self.restarted.append,
            notice=lambda pace: self.notices.append((pace.state, round(pace.rate_hz or 0.0, 1))),
            holds=holds,
        )

    def feed(self, times: Moments, values: Floats | None = None, key: str | None = None, block: int = 7) -> Floats:
        """Readings with times of their own, some at a time; what goes on to the windows."""
        if values is None:
            values = np.arange(len(times), dtype=np.float32)[:, None]
        passed = []
        for start in range(0, len(times), block):
            part = values[start : start + block]
            moments = [float(moment) for moment in times[start : start + block]]
            paced = self.pace.take(part, [key] * len(part), moments, 0.0)
            passed.append(part if paced is None else paced.values)
        return np.concatenate(passed)

    def arrive(self, groups: Sequence[tuple[int, float]]) -> None:
        """Readings without times: how many came at each moment."""
        for count, moment in groups:
            self.pace.measure([None] * count, None, moment)


def even(rate_hz: float, count: int = 200) -> Moments:
    """Times of a steady sensor."""
    return 1.7e9 + np.arange(count) / rate_hz


@pytest.mark.parametrize("rate_hz", [1.0, 5.0, 8.0, 11.5, 20.0, 50.0, 1000.0])
def test_a_wrong_rate_is_known_before_the_second_window(rate_hz: float) -> None:
    """Off by more than a tenth: the state says so within two windows, with the rate that is."""
    rig = Rig()
    rig.feed(even(rate_hz, 2 * LENGTH))
    ((state, found),) = rig.notices
    assert state == "off"
    assert found == pytest.approx(rate_hz, rel=1e-3)
    assert f"expected readings at 10 Hz (rate_hz of the bundle), found {rate_hz:.3g} Hz" in rig.pace.explain()


@pytest.mark.parametrize("rate_hz", [9.3, 10.0, 10.7])
def test_a_rate_within_a_tenth_is_right(rate_hz: float) -> None:
    """Sensors' clocks differ a little."""
    rig = Rig()
    rig.feed(even(rate_hz))
    assert [state for state, _ in rig.notices] == ["ok"]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("share", [0.1, 0.3, 0.45])
def test_jitter_is_no_wrong_rate(share: float, seed: int) -> None:
    """Each reading may be early or late by almost half a period."""
    rng = np.random.default_rng(seed)
    rig = Rig()
    rig.feed(even(NOMINAL) + rng.uniform(-share, share, 200) / NOMINAL)
    assert [state for state, _ in rig.notices] == ["ok"]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("share", [0.05, 0.2, 0.3])
def test_lost_readings_are_no_wrong_rate(share: float, seed: int) -> None:
    """Up to a third may be missing, each by chance."""
    rng = np.random.default_rng(seed)
    rig = Rig()
    rig.feed(even(NOMINAL)[rng.random(200) >= share])
    assert [state for state, _ in rig.notices] == ["ok"]


@pytest.mark.parametrize(("burst", "state", "rate_hz"), [(1.0, "ok", 10.0), (0.5, "off", 20.0), (2.0, "off", 5.0)])
def test_ten_readings_in_one_message_are_one_burst(burst: float, state: str, rate_hz: float) -> None:
    """Readings without times that come together share the time since the message before."""
    rig = Rig()
    rig.arrive([(10, 100.0 + burst * number) for number in range(20)])
    assert rig.notices == [(state, rate_hz)]


def test_bursts_with_times_of_their_own_are_even() -> None:
    """Where readings bring their times, it does not matter when they come."""
    rig = Rig()
    rig.feed(even(NOMINAL), block=10)
    assert rig.notices == [("ok", 10.0)]


def test_a_backlog_after_an_outage_is_no_wrong_rate() -> None:
    """A broker that was away sends at once what came meanwhile: the time before it belongs to it."""
    rig = Rig()
    steady = [(1, 0.1 * number) for number in range(100)]
    flood = [(1, 40.0 + 0.001 * number) for number in range(300)]
    again = [(1, 40.4 + 0.1 * number) for number in range(200)]
    rig.arrive([*steady, *flood, *again])
    assert [state for state, _ in rig.notices] == ["ok"]


def test_the_rate_of_a_model_is_the_median_over_its_keys() -> None:
    """One key that is off among many is its own affair."""
    rig = Rig()
    for key, rate_hz in (("a", 10.0), ("b", 10.0), ("c", 40.0)):
        rig.feed(even(rate_hz), key=key)
    assert rig.pace.rate_hz == pytest.approx(10.0)
    assert rig.pace.state == "ok"


def test_a_rate_that_changes_is_noticed_both_ways() -> None:
    """Within two windows after the change, and again when it is right."""
    rig = Rig()
    times = np.cumsum([0.1] * 200 + [0.05] * 100 + [0.1] * 100) + 1.7e9
    rig.feed(times)
    assert [state for state, _ in rig.notices] == ["ok", "off", "ok"]


def test_nothing_is_known_of_a_few_readings() -> None:
    """A handful of readings is no measurement."""
    rig = Rig()
    rig.feed(even(50.0, 7))
    assert rig.pace.state == "unknown"
    assert rig.pace.rate_hz is None


def test_reject_refuses_a_stream_that_is_off() -> None:
    """Its readings are counted, and its window begins anew; another key goes on."""
    rig = Rig("reject")
    assert len(rig.feed(even(10.0), key="good")) == 200
    passed = rig.feed(even(20.0), key="fast")
    assert len(passed) + rig.pace.rejected == 200
    assert len(passed) <= LENGTH
    assert "fast" in rig.restarted
    assert "good" not in rig.restarted


@pytest.mark.parametrize("holds", [True, False])
def test_resample_leaves_the_right_rate_alone_to_the_bit(holds: bool) -> None:
    """Every reading goes on unchanged and in order; at most the first ones wait for a moment."""
    values = np.random.default_rng(1).normal(size=(200, 3)).astype(np.float32)
    passed = Rig("resample", holds=holds).feed(even(10.0), values)
    assert passed.tobytes() == values.tobytes()


@pytest.mark.parametrize("rate_hz", [5.0, 8.0, 12.5, 20.0, 50.0, 100.0])
def test_resample_gives_as_many_readings_as_the_model_wants(rate_hz: float) -> None:
    """Ten seconds are a hundred readings, whatever the sensor's rate."""
    passed = Rig("resample").feed(even(rate_hz, int(10 * rate_hz)))
    assert abs(len(passed) - 100) <= 2


def test_a_slow_wave_comes_through_and_a_fast_one_does_not() -> None:
    """On the way down what the model could not see does not come back as something slower."""
    times = np.arange(1000) / 100.0
    slow, fast = np.sin(2 * np.pi * 1.0 * times), np.sin(2 * np.pi * 11.0 * times)  # 11 Hz would look like 1 Hz
    values = np.column_stack([slow, fast, np.ones(1000)]).astype(np.float32)
    grid, outputs, _ = Resampler(10.0).push(times, values, 0.01)
    settled = slice(10, None)
    assert np.abs(outputs[settled, 0]).max() > 0.9
    assert np.abs(outputs[settled, 1]).max() < 0.05
    assert outputs[:, 2] == pytest.approx(1.0, abs=1e-6)
    lagging = np.sin(2 * np.pi * 1.0 * (grid - 0.1))  # one output period late, as is stated
    assert np.abs(outputs[settled, 0] - 0.97 * lagging[settled]).max() < 0.05


def test_between_two_readings_the_value_is_on_the_line() -> None:
    """On the way up an output waits for the reading behind it, and invents nothing."""
    times, values = np.array([0.0, 0.2, 0.4]), np.array([[0.0], [2.0], [1.0]], np.float32)
    grid, outputs, brought = Resampler(10.0).push(times, values, 0.2)
    assert grid == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    assert outputs[:, 0] == pytest.approx([0.0, 1.0, 2.0, 1.5, 1.0])
    assert brought.tolist() == [0, 1, 1, 2, 2]


@pytest.mark.parametrize("rate_hz", [5.0, 23.0, 50.0])
@pytest.mark.parametrize("seed", range(5))
def test_the_outputs_do_not_depend_on_how_the_readings_were_cut(rate_hz: float, seed: int) -> None:
    """One at a time, some at a time or all at once: the same bits; and no output knows of a later reading."""
    rng = np.random.default_rng(seed)
    times = 1.7e9 + np.arange(120) / rate_hz
    values = rng.normal(size=(120, 2)).astype(np.float32)
    whole = Resampler(10.0).push(times, values, 1.0 / rate_hz)
    cut, parts, start = Resampler(10.0), [], 0
    while start < 120:
        stop = start + int(rng.integers(1, 9))
        parts.append(cut.push(times[start:stop], values[start:stop], 1.0 / rate_hz))
        start = stop
    assert np.concatenate([part[1] for part in parts]).tobytes() == whole[1].tobytes()
    ends = np.cumsum([0, *(len(part[0]) for part in parts)])
    known = list(itertools.accumulate(len(part[0]) for part in parts))
    assert ends[-1] == known[-1] == len(whole[0])


def test_a_pause_begins_the_outputs_anew() -> None:
    """Nothing is invented for the time in which nothing came."""
    times = np.concatenate([np.arange(10) / 5.0, 3600.0 + np.arange(10) / 5.0])
    grid, _, _ = Resampler(10.0).push(times, np.zeros((20, 1), np.float32), 0.2)
    assert len(grid) == 2 * 19
    assert grid[19] == 3600.0


def test_times_that_stand_still_or_go_back_are_left_out() -> None:
    """A reading that is not later than the one before it has no place among the others."""
    times, values = np.array([0.0, 0.0, 0.2, 0.1, 0.4]), np.array([[0], [9], [2], [9], [4]], np.float32)
    _, outputs, _ = Resampler(10.0).push(times, values, 0.2)
    assert outputs[:, 0] == pytest.approx([0.0, 1.0, 2.0, 3.0, 4.0])
