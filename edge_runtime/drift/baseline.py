"""The reference of a bundle as arrays, and the arithmetic of drift that the device and the converter share. Pure.

    PSI    = sum over bins of (q - p) * ln(q / p)         p: shares in training, q: recent (Siddiqi, Credit Risk
                                                          Scorecards, 2006); half a count is added to each bin
    CUSUM  up = max(0, up + z - slack), down likewise     z: mean of a block, in sd of such means (Page, 1954)

Each block's z is cut at `slack + limit / 2`, so that no block raises an alarm alone.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edge_runtime.bundle.manifest import Channel, ChannelReference, DriftLimits
from edge_runtime.drift.column import CALM, MEMORY, ColumnReference, Statistic
from edge_runtime.readings import Floats

MOST_TOGETHER = 3  # blocks that are judged at once: more would need over 2 kB a channel
TOGETHER_HZ = 100.0  # of slower streams each block is judged by itself: they cost next to nothing
TOGETHER_S = 20.0  # the time that blocks which are judged at once take at most, at the rate of training
MOST_SAMPLED = 64  # readings sampled from a block; in a block below twice that, every reading
FAR = 3.0  # standard deviations from the mean: beyond that the column is tested for being another channel
MOST_BINS = 32  # of a reference; the converter writes 10
STUCK_RUNS = 2  # times the longest run of equal values in training
STUCK_LEAST = 16  # further equal values; also the least number of equal sampled readings
LEAST_STEP = 1e-4  # standard deviations: the floor of a mean step, whose logarithm is taken
_NO_RUN_KNOWN = 256  # equal values, if the reference has no longest run and the channel is no switch
_SWITCH_BINS = 5  # a channel with fewer bins has few different values, and may keep one for long

Doubles = NDArray[np.float64]


class Baseline:
    """The reference for blocks of readings (or of scores), with one column for each channel.

    Args:
        references: of each column; None if the bundle has none.
        channels: with the limits of each column, for the share that is out of range; None for scores.
        block: the number of readings that are judged together.
        memory: of the shape, in blocks.
        rate_hz: readings a second of one stream; None if unknown.

    Attributes:
        edges: `[columns, bins - 1]` inner edges, padded with infinity.
        present: `[columns, bins]`: whether a column has this bin.
        shares: `[columns, bins]` of the training; 1 without a bin.
        every: one of so many readings of a block is sampled.
        size: the number of sampled readings of a block.
        together: the number of blocks that are judged at once: several in a fast stream of several columns.
        span: the number of their readings.
        calm: the number of blocks without a reason, before a state falls.
        first_counts: `[columns, bins]`: the weighted counts before the first block: those of blocks as in training.
        centres: `[columns, together * size + 1]`: the mean of training, repeated for each held reading.
        marks: `[columns, bins + 1, 1]`: the lower limit, the inner edges, and the next number above the upper limit.
    """

    def __init__(
        self,
        references: Sequence[ChannelReference | None],
        channels: Sequence[Channel] | None,
        block: int,
        *,
        memory: float = MEMORY,
        rate_hz: float | None = None,
    ) -> None:
        count = len(references)
        self.block = block
        self.every = max(1, block // MOST_SAMPLED)
        self.size = -(-block // self.every)
        self.together = 1 if block % self.every or count == 1 else _together(block, rate_hz)
        self.span = block * self.together
        self.calm = max(CALM, self.together)  # else an alarm could come and go within blocks that are judged at once
        self.keep = 1.0 - 1.0 / max(memory, 1.0)  # the weight of the shape so far, with each further block
        self.known = np.array([_has_bins(each) for each in references], np.bool_)
        inner = [each.edges[1:-1] if each is not None and _has_bins(each) else () for each in references]
        bins = 1 + max((len(each) for each in inner), default=0)
        self.edges: Floats = np.full((count, bins - 1), np.inf, np.float32)
        self.shares = np.ones((count, bins))
        self.present = np.zeros((count, bins), np.bool_)
        for column, (edges, reference) in enumerate(zip(inner, references, strict=True)):
            self.edges[column, : len(edges)] = edges
            if self.known[column] and reference is not None:
                own = slice(len(reference.counts))
                self.present[column, own] = True
                counts = _counts(reference)
                self.shares[column, own] = padded(np.array(counts), sum(counts))
        largest = float(np.finfo(np.float32).max)
        limits = [each.limits or (-largest, largest) for each in channels or ()] or [(-largest, largest)] * count
        self.low: Floats = np.array([max(low, -largest) for low, _ in limits], np.float32)
        self.high: Floats = np.array([min(high, largest) for _, high in limits], np.float32)
        with np.errstate(over="ignore"):  # the next number above the largest is infinity
            above = np.nextafter(self.high, np.float32(np.inf))
        self.marks: Floats = np.column_stack([self.low, self.edges, above])[:, :, np.newaxis]
        self.first = np.array([each.min if each else -np.inf for each in references])
        self.last = np.array([each.max if each else np.inf for each in references])
        self.std = np.array([each.std if each and each.std > 0 else np.nan for each in references])
        self.far = FAR * self.std
        self.missing = np.array([each.missing if each else 0.0 for each in references])
        stuck_after = np.array([_stuck_after(each) for each in references])
        stuck_after = np.maximum(stuck_after / self.every, STUCK_LEAST)  # of those that are looked at
        found = [each.limits if each else None for each in references]
        least_step = LEAST_STEP * np.nan_to_num(self.std, nan=1.0)
        self.is_calibrated = any(each is not None for each in found)

        def of(name: str, default: float) -> Doubles:
            return np.array([getattr(each, name, default) for each in found], np.float64)

        mean = np.array([each.mean if each else np.nan for each in references])
        self.mean = np.where(np.isnan(of("mean", np.nan)), mean, of("mean", np.nan))
        self.centre = np.nan_to_num(self.mean)
        self.centres = np.repeat(self.centre[:, np.newaxis], self.together * self.size + 1, axis=1)
        self.first_counts = np.where(self.present, self.shares, 0.0) * self.size * max(memory, 1.0)
        self.keeps = np.full(self.shares.shape, self.keep)
        self.shape = Shape(self.present, self.shares)
        statistics = [
            [Statistic(*each) for each in zip(*(of(name, default).tolist() for name, default in asked), strict=True)]
            for asked in (
                (("", 0.0), ("sd", np.inf), ("slack", 0.0), ("limit", np.inf)),
                (("step", 0.0), ("step_sd", np.inf), ("step_slack", 0.0), ("step_limit", np.inf)),
            )
        ]
        self.columns = [
            ColumnReference(*each)
            for each in zip(
                *statistics, *zip(*map(_beside, found), strict=True), least_step.tolist(),
                self.missing.tolist(), stuck_after.tolist(), self.far.tolist(),
                of("psi", np.inf).tolist(), [self.calm] * count, strict=True,
            )
        ]  # fmt: skip

        self.columns = [each._replace(quiet=each.least()) for each in self.columns]
        self.has_beside = any(each.share for each in self.columns)

    def __len__(self) -> int:
        return len(self.mean)


class Shape:
    """The PSI of weighted counts against the training.

    Args:
        present: `[columns, bins]`: whether a column has this bin.
        shares: of the training.
    """

    def __init__(self, present: NDArray[np.bool_], shares: Doubles) -> None:
        self._half = np.full(shares.shape, 0.5)
        self._halves = 0.5 * np.maximum(present.sum(axis=1), 1)  # half a count for each bin
        self._shares = np.where(present, shares, 0.0)  # a missing bin weighs nothing
        self._inverse = 1.0 / shares
        self._one = np.ones_like(shares)
        self._ones = np.ones(shares.shape[1])

    def index(self, counts: Doubles) -> Doubles:
        """The PSI of `[..., columns, bins]` counts for each column: with r = q / p, the sum of p * (r - 1) * ln(r)."""
        total = counts.dot(self._ones)
        ratio = counts + self._half
        ratio *= self._inverse
        ratio /= (total + self._halves)[..., np.newaxis]
        terms = np.log(ratio)
        ratio -= self._one
        terms *= ratio
        terms *= self._shares
        return np.asarray(terms @ self._ones)


def padded(counts: NDArray[np.integer] | Doubles, total: float | Doubles) -> Doubles:
    """Shares of bins, with half a count more in each, so that none is empty."""
    return np.asarray((counts + 0.5) / (np.asarray(total)[..., np.newaxis] + 0.5 * np.shape(counts)[-1]))


def stability_index(training: Doubles, late: Doubles) -> Doubles:
    """The PSI over the last axis of two arrays of shares."""
    return np.asarray(((late - training) * np.log(late / training)).sum(axis=-1))


def _together(block: int, rate_hz: float | None) -> int:
    """The number of blocks to judge at once, so that a reason is still reported within seconds."""
    if rate_hz is None or rate_hz < TOGETHER_HZ:
        return 1
    return min(max(int(TOGETHER_S * rate_hz / block), 1), MOST_TOGETHER)


def _beside(limits: DriftLimits | None) -> tuple[Statistic, float]:
    """The statistic of a column's steps relative to the other columns, and the share of these."""
    if limits is None or limits.beside is None:
        return Statistic(), 0.0
    found = limits.beside
    return Statistic(found.mean, found.sd, found.slack, found.limit), found.share


def _has_bins(reference: ChannelReference | None) -> bool:
    """Whether the reference has a usable histogram."""
    if reference is None or not 2 <= len(reference.edges) - 1 <= MOST_BINS:
        return False
    return len(reference.counts) == len(reference.edges) - 1 and min(reference.counts) >= 0


def _counts(reference: ChannelReference) -> tuple[int, ...]:
    """The counts that the limits were derived from."""
    own = reference.limits.counts if reference.limits is not None else ()
    return own if len(own) == len(reference.counts) and min(own) >= 0 else reference.counts


def _stuck_after(reference: ChannelReference | None) -> float:
    """The number of equal values in a row that is unlike training; infinite if any number is usual."""
    if reference is None or not reference.std > 0.0:
        return np.inf
    if reference.run is not None:
        return float(STUCK_RUNS * reference.run + STUCK_LEAST)
    return float(_NO_RUN_KNOWN) if len(reference.edges) > _SWITCH_BINS else np.inf
