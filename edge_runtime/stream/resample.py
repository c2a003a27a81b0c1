"""Readings of one stream brought to another rate: causal, and anti-aliased on the way down. Pure.

On the way down each output is the mean of the readings of the two output periods before it, weighted by a Hann window,
whose first zero lies at the output rate and whose side lobes are below -31 dB, so that components too fast for the
output rate are not aliased. The output lags the readings by one output period. On the way up each output lies on the
straight line between the two readings around it. Both use the readings' own times, evenly spaced or not.

Guarantee: no output depends on a reading later than the one that triggers it; memory is the readings of two output
periods. Weak point: the straight line damps frequencies close to half of the input's rate.
"""

import math

import numpy as np
from numpy.typing import NDArray

from edge_runtime.readings import Floats

GAP_PERIODS = 10  # of the slower rate; after a longer pause the outputs start again
_WIDTH = 2.0  # of the Hann window, in output periods
_SLACK = 1e-6  # of a period: times of readings are rounded


class Resampler:
    """One stream.

    Args:
        rate_hz: that of the outputs.
    """

    def __init__(self, rate_hz: float) -> None:
        self._period = 1.0 / rate_hz
        self._times: NDArray[np.float64] = np.empty(0)
        self._values: Floats = np.empty((0, 0), np.float32)
        self._begin = 0.0
        self._next = 0

    def push(
        self, times: NDArray[np.float64], values: Floats, interval: float
    ) -> tuple[NDArray[np.float64], Floats, NDArray[np.int64]]:
        """Take readings, and return the outputs that they trigger.

        Args:
            times: seconds, of one reading or more; one that is not later than the one before it is skipped.
            values: `[n, channels]`.
            interval: seconds from one reading to the next, as measured.

        Returns:
            The times and values of the outputs, and for each the index of the reading that triggered it.
        """
        most = GAP_PERIODS * max(interval, self._period)
        last = self._times[-1] if len(self._times) else times[0]
        pauses = set(np.flatnonzero(np.diff(times, prepend=last) > most).tolist())
        starts = sorted({0} | pauses)
        parts = []
        for start, stop in zip(starts, [*starts[1:], len(times)], strict=True):
            if start in pauses:
                self._times = np.empty(0)
            parts.append(self._run(times, values, start, stop, interval=interval))
        return (
            np.concatenate([part[0] for part in parts]),
            np.concatenate([part[1] for part in parts]),
            np.concatenate([part[2] for part in parts]),
        )

    def _run(
        self, times: NDArray[np.float64], values: Floats, start: int, stop: int, *, interval: float
    ) -> tuple[NDArray[np.float64], Floats, NDArray[np.int64]]:
        """Resample readings that have no pause between them."""
        width = values.shape[1]
        rows = np.arange(start, stop)
        if not len(self._times):
            self._begin, self._next = float(times[start]), 0
            self._values = np.empty((0, width), np.float32)
        floor = self._times[-1] if len(self._times) else -math.inf
        later = np.maximum.accumulate(np.concatenate([[floor], times[start:stop]]))
        keep = np.diff(later) > 0
        known = len(self._times)
        self._times = np.concatenate([self._times, times[start:stop][keep]])
        self._values = np.concatenate([self._values, values[start:stop][keep]])
        rows = rows[keep]
        count = math.floor((self._times[-1] - self._begin) / self._period + _SLACK) + 1
        grid = self._begin + self._period * np.arange(self._next, count)
        self._next = max(self._next, count)
        outputs = self._filtered(grid) if interval < self._period else self._on_lines(grid)
        # The reading that triggers an output is the first one not before it.
        brought = np.searchsorted(self._times, grid - _SLACK * self._period) - known
        if len(rows):  # else there is no output either
            brought = rows[np.clip(brought, 0, len(rows) - 1)]
        oldest = self._times[-1] - _WIDTH * self._period - 2 * interval
        first = max(0, min(int(np.searchsorted(self._times, oldest)), len(self._times) - 2))
        self._times, self._values = self._times[first:], self._values[first:]
        return grid, outputs, brought.astype(np.int64)

    def _filtered(self, grid: NDArray[np.float64]) -> Floats:
        outputs = np.empty((len(grid), self._values.shape[1]), np.float32)
        width = _WIDTH * self._period
        slack = _SLACK * self._period
        begins = np.searchsorted(self._times, grid - width, side="right")
        ends = np.searchsorted(self._times, grid + slack, side="right")
        for index, (begin, end, at) in enumerate(zip(begins.tolist(), ends.tolist(), grid.tolist(), strict=True)):
            weights = 1.0 - np.cos(2.0 * np.pi * np.clip((at - self._times[begin:end]) / width, 0.0, 1.0))
            total = weights.sum()
            if total < 0.5:  # only a reading at the edge of the window: at the beginning, or next to lost readings
                outputs[index] = self._values[max(0, end - 1)]
            else:
                outputs[index] = weights @ self._values[begin:end].astype(np.float64) / total
        return outputs

    def _on_lines(self, grid: NDArray[np.float64]) -> Floats:
        outputs = np.empty((len(grid), self._values.shape[1]), np.float32)
        for channel in range(outputs.shape[1]):
            outputs[:, channel] = np.interp(grid, self._times, self._values[:, channel].astype(np.float64))
        return outputs
