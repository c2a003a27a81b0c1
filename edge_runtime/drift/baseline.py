"""The reference of a bundle as arrays, and the arithmetic of drift that the device and the converter share. Pure.

    PSI    = sum over bins of (q - p) * ln(q / p)         p: shares in training, q: of late (Siddiqi, Credit Risk
                                                          Scorecards, 2006); half a count is added to each bin
    CUSUM  up = max(0, up + z - slack), down likewise     z: mean of a block, in sd of such means (Page, 1954)

Each block's z is cut at `slack + limit / 2`, so that no block raises an alarm alone.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_runtime.bundle.manifest import Channel, ChannelReference
from edge_runtime.readings import Floats

MEMORY = 8.0  # blocks: the weight of a block in the shares of late falls by 1/8 with each further one
MOST_BINS = 32  # of a reference; the converter writes 10
STUCK_RUNS = 2  # times the longest run of equal values in training
STUCK_LEAST = 16  # equal values more than that
LEAST_STEP = 1e-4  # standard deviations: the floor of a mean step, whose logarithm is taken
_NO_RUN_KNOWN = 256  # equal values, where the reference does not say and the channel is no switch
_SWITCH_BINS = 5  # a channel with fewer bins holds few different values, and may hold one for long

Doubles = NDArray[np.float64]


class Baseline:
    """What a block of readings (or of scores) is compared with; one column a channel.

    Args:
        references: of each column; None where the bundle has none.
        channels: what each column may be, for the share that is out of range; None for scores.
        block: readings that are judged together.
        memory: blocks, of the shape.

    Attributes:
        edges: `[columns, bins - 1]` inner edges, filled up with infinity.
        present: `[columns, bins]`: which bins a column has.
        shares: `[columns, bins]` of the training; 1 where there is no bin.
    """

    def __init__(
        self,
        references: Sequence[ChannelReference | None],
        channels: Sequence[Channel] | None,
        block: int,
        memory: float = MEMORY,
    ) -> None:
        count = len(references)
        self.block = block
        self.keep = 1.0 - 1.0 / max(memory, 1.0)  # of the shape, with each further block
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
        self.half = 0.5 * np.maximum(self.present.sum(axis=1), 1)  # half a count for each bin
        largest = float(np.finfo(np.float32).max)
        limits = [each.limits or (-largest, largest) for each in channels or ()] or [(-largest, largest)] * count
        self.low: Floats = np.array([max(low, -largest) for low, _ in limits], np.float32)
        self.high: Floats = np.array([min(high, largest) for _, high in limits], np.float32)
        self.first = np.array([each.min if each else -np.inf for each in references])
        self.last = np.array([each.max if each else np.inf for each in references])
        self.std = np.array([each.std if each and each.std > 0 else np.nan for each in references])
        self.missing = np.array([each.missing if each else 0.0 for each in references])
        self.stuck_after = np.array([_stuck_after(each) for each in references])
        found = [each.limits if each else None for each in references]
        self.least_step = LEAST_STEP * np.nan_to_num(self.std, nan=1.0)
        self.is_calibrated = any(each is not None for each in found)

        def of(name: str, default: float) -> Doubles:
            return np.array([default if each is None else getattr(each, name) for each in found], np.float64)

        mean = np.array([each.mean if each else np.nan for each in references])
        self.mean = np.where(np.isnan(of("mean", np.nan)), mean, of("mean", np.nan))
        self.centre = np.nan_to_num(self.mean)
        self.offset = Cusum(of("slack", 0.0), of("limit", np.inf))
        self.sd = of("sd", np.inf)
        self.stepping = Cusum(of("step_slack", 0.0), of("step_limit", np.inf))
        self.step, self.step_sd = of("step", 0.0), of("step_sd", np.inf)
        self.psi_limit = of("psi", np.inf)
        self.is_stuck_possible = bool(np.isfinite(self.stuck_after).any())

    def __len__(self) -> int:
        return len(self.mean)

    def shares_of(self, above: Doubles, total: Doubles) -> Doubles:
        """Shares of bins from counts at or above each inner edge, and counts of all; 1 where there is no bin."""
        counts = np.empty_like(self.shares)
        counts[:, 0] = total
        counts[:, 1:] = above
        counts[:, :-1] -= above
        return np.where(self.present, (counts + 0.5) / (total + self.half)[:, np.newaxis], 1.0)


class Cusum(NamedTuple):
    """Two one-sided sums over blocks, one for each column."""

    slack: Doubles
    limit: Doubles

    def step(self, up: Doubles, down: Doubles, z: Doubles) -> tuple[Doubles, Doubles]:
        """The sums after one more block. They are cut at twice the limit, so that an alarm ends in finite time."""
        most = self.slack + self.limit / 2.0
        z = np.minimum(np.maximum(z, -most), most)
        ceiling = 2.0 * self.limit
        up = np.minimum(np.maximum(up + z - self.slack, 0.0), ceiling)
        down = np.minimum(np.maximum(down - z - self.slack, 0.0), ceiling)
        return up, down


def padded(counts: NDArray[np.integer] | Doubles, total: float | Doubles) -> Doubles:
    """Shares of bins, with half a count more in each, so that none is empty."""
    return np.asarray((counts + 0.5) / (np.asarray(total)[..., np.newaxis] + 0.5 * np.shape(counts)[-1]))


def stability_index(training: Doubles, late: Doubles) -> Doubles:
    """The PSI over the last axis of two arrays of shares."""
    return np.asarray(((late - training) * np.log(late / training)).sum(axis=-1))


def _has_bins(reference: ChannelReference | None) -> bool:
    """Whether its histogram can be compared with."""
    if reference is None or not 2 <= len(reference.edges) - 1 <= MOST_BINS:
        return False
    return len(reference.counts) == len(reference.edges) - 1 and min(reference.counts) >= 0


def _counts(reference: ChannelReference) -> tuple[int, ...]:
    """Those that the limits belong to."""
    own = reference.limits.counts if reference.limits is not None else ()
    return own if len(own) == len(reference.counts) and min(own) >= 0 else reference.counts


def _stuck_after(reference: ChannelReference | None) -> float:
    """Equal values one after another that no longer look like training; infinite where they may."""
    if reference is None or not reference.std > 0.0:
        return np.inf
    if reference.run is not None:
        return float(STUCK_RUNS * reference.run + STUCK_LEAST)
    return float(_NO_RUN_KNOWN) if len(reference.edges) > _SWITCH_BINS else np.inf
