"""Resampled streams against a plain account of the whole recording, however its readings are cut into pieces."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_runtime.readings import Floats
from edge_runtime.stream.resample import Resampler

PERIOD = 0.125  # exact in binary
Moments = NDArray[np.float64]


def _plain(times: Moments, values: Floats, *, down: bool) -> tuple[list[float], list[float], list[int]]:
    """Times, values and triggering readings of one channel, by the definition and from all readings at once."""
    grid, outputs, brought = [], [], []
    number = 0
    while (at := times[0] + PERIOD * number) <= times[-1] + 1e-7:
        number += 1
        trigger = next(index for index, time in enumerate(times) if time >= at - 1e-7)
        if down:
            near = [index for index, time in enumerate(times) if at - 2 * PERIOD < time <= at + 1e-7]
            weights = [
                1.0 - math.cos(math.pi * min(max(at - times[index], 0.0), 2 * PERIOD) / PERIOD) for index in near
            ]
            total = sum(weights)
            before = [index for index, time in enumerate(times) if time <= at + 1e-7]
            mean = (
                sum(w * float(values[i]) for w, i in zip(weights, near, strict=True)) / total if total >= 0.5 else None
            )
            outputs.append(float(values[before[-1]]) if mean is None else mean)
        else:
            later = trigger if times[trigger] >= at else min(trigger + 1, len(times) - 1)
            earlier = max(0, later - 1)
            span = times[later] - times[earlier]
            share = 1.0 if span == 0.0 else min(1.0, (at - times[earlier]) / span)
            outputs.append(float(values[earlier]) * (1 - share) + float(values[later]) * share)
        grid.append(float(at))
        brought.append(trigger)
    return grid, outputs, brought


def _pushed(
    times: Moments, values: Floats, interval: float, cuts: list[int]
) -> tuple[list[float], list[float], list[int], Resampler]:
    resampler = Resampler(1.0 / PERIOD)
    grid: list[float] = []
    outputs: list[float] = []
    brought: list[int] = []
    for start, stop in zip([0, *cuts], [*cuts, len(times)], strict=True):
        found = resampler.push(times[start:stop], values[start:stop, np.newaxis], interval)
        grid += found[0].tolist()
        outputs += found[1][:, 0].tolist()
        brought += [start + index for index in found[2].tolist()]
    return grid, outputs, brought, resampler


@pytest.mark.parametrize("interval", [0.01, 0.06, 0.125, 0.2, 0.7])
@pytest.mark.parametrize("seed", range(6))
def test_every_output_is_what_its_definition_says(interval: float, seed: int) -> None:
    """On the way down and up, with jitter and lost readings; the first reading not before it triggers an output."""
    rng = np.random.default_rng(seed)
    times = 50.0 + np.cumsum(interval * rng.uniform(0.3, 1.7, 90))
    times = times[rng.random(90) > 0.1]
    values = rng.normal(size=len(times)).astype(np.float32)
    cuts = np.unique(rng.integers(1, len(times) - 1, 25)).tolist()
    grid, outputs, brought, _ = _pushed(times, values, interval, cuts)
    expected = _plain(times, values, down=interval < PERIOD)
    assert grid == pytest.approx(expected[0], abs=1e-9)
    assert outputs == pytest.approx(expected[1], abs=2e-6)
    assert brought == expected[2]


def test_at_its_own_rate_a_stream_is_itself() -> None:
    """An interval of exactly the period is no way down: nothing is filtered."""
    times = np.arange(20, dtype=np.float64) * PERIOD
    values = np.random.default_rng(1).normal(size=20).astype(np.float32)
    grid, outputs, brought, _ = _pushed(times, values, PERIOD, [3, 4, 11])
    assert (grid, outputs, brought) == (times.tolist(), values.tolist(), list(range(20)))


@pytest.mark.parametrize(("interval", "limit"), [(PERIOD, 1.25), (PERIOD / 4, 1.25), (0.5, 5.0)])
@pytest.mark.parametrize("cut", [[], [3], [2]])
def test_a_pause_of_more_than_ten_periods_of_the_slower_rate_begins_the_outputs_anew(
    interval: float, limit: float, cut: list[int]
) -> None:
    """Within one push or between two; exactly ten are no pause."""
    for pause, is_pause in ((limit, False), (limit + 0.03125, True)):
        times = np.array([0.0, interval, 2 * interval, 2 * interval + pause, 3 * interval + pause])
        grid, outputs, _, _ = _pushed(times, np.array([1, 2, 3, 4, 5], np.float32), interval, cut)
        assert not is_pause or outputs[grid.index(times[3])] == 4.0
        between = [moment for moment in grid if times[2] < moment < times[3]]
        assert (between == []) == is_pause


@pytest.mark.parametrize(("interval", "most"), [(0.01, 28), (0.06, 8), (0.5, 3)])
def test_memory_is_the_readings_of_two_output_periods(interval: float, most: int) -> None:
    """And two more, however long the stream."""
    times = np.arange(2000, dtype=np.float64) * interval
    _, _, _, resampler = _pushed(times, np.zeros(2000, np.float32), interval, list(range(1, 2000, 3)))
    assert len(resampler._times) == len(resampler._values) <= most


@pytest.mark.parametrize("cut", [[], [1], [2], [3], [1, 2, 3, 4]])
def test_times_that_do_not_advance_are_skipped_over_pushes_too(cut: list[int]) -> None:
    """A push of nothing but such readings triggers nothing."""
    times, values = np.array([0.0, 0.0, 0.25, 0.125, 0.5]), np.array([0, 9, 2, 9, 4], np.float32)
    grid, outputs, brought, _ = _pushed(times, values, 0.25, cut)
    assert grid == [0.0, 0.125, 0.25, 0.375, 0.5]
    assert outputs == pytest.approx([0.0, 1.0, 2.0, 3.0, 4.0])
    assert brought == [0, 2, 2, 4, 4]


def test_a_rounded_time_still_triggers_its_output() -> None:
    """Times of readings are rounded: a millionth of a period early is in time, and more is not."""
    for early, count in ((0.9e-6, 2), (1.1e-6, 1)):
        times = np.array([0.0, PERIOD * (1 - early)])
        grid, outputs, brought, _ = _pushed(times, np.array([1, 2], np.float32), PERIOD, [])
        assert (len(grid), outputs, brought) == (count, [1.0, 2.0][:count], [0, 1][:count])


def test_several_channels_are_resampled_alike() -> None:
    """Each by itself, in float32."""
    times = np.arange(40, dtype=np.float64) * 0.03125
    values = np.random.default_rng(2).normal(size=(40, 3)).astype(np.float32)
    for interval in (0.03125, 0.25):
        _, together, _ = Resampler(8.0).push(times, values, interval)
        assert together.dtype == np.float32
        for channel in range(3):
            _, alone, _ = Resampler(8.0).push(times, values[:, channel : channel + 1], interval)
            assert together[:, channel].tobytes() == alone[:, 0].tobytes()


def test_a_reading_that_is_early_by_more_than_rounding_triggers_nothing() -> None:
    """Ten millionths of a period: the output waits for the reading behind it."""
    times = np.array([0.0, PERIOD * (1 - 1e-5), 2 * PERIOD])
    grid, _, brought, _ = _pushed(times, np.array([1, 2, 3], np.float32), PERIOD, [])
    assert (grid, brought) == ([0.0, PERIOD, 2 * PERIOD], [0, 2, 2])


def test_no_output_depends_on_a_reading_behind_it() -> None:
    """Even where it comes ten millionths of a period later, and the output has no other reading to be a mean of."""
    times = np.array([0.0, 1e-5 * PERIOD, 0.5 * PERIOD])
    _, outputs, _, _ = _pushed(times, np.array([1, 9, 9], np.float32), PERIOD / 4, [])
    assert outputs == [1.0]


@pytest.mark.parametrize("cut", [[], [1]])
def test_over_lost_readings_an_output_is_the_last_reading_that_is_known(cut: list[int]) -> None:
    """On the way down, where the Hann window has none: the one at its end, else the one before the loss."""
    times = np.array([0.0, 5 * PERIOD])
    grid, outputs, _, _ = _pushed(times, np.array([1, 9], np.float32), PERIOD / 2, cut)
    assert grid == [PERIOD * number for number in range(6)]
    assert outputs == [1.0, 1.0, 1.0, 1.0, 1.0, 9.0]
