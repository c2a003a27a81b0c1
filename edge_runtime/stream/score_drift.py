"""Drift of a new bundle's scores against its predecessor's: the population stability index (PSI). Pure.

    PSI = sum over bins of (q - p) * ln(q / p)        p: share of the old scores, q: of the new (Siddiqi, Credit Risk
                                                      Scorecards, 2006, chapter 6: above 0.25 is a major shift)

The bins are the deciles of the old scores; half a count is added to each, so that none is empty. Each number of the
answer (class, target, score) is judged separately, and the largest index counts. Chance alone gives about 9 * (1/n +
1/m) for n and m windows, which is why `ENOUGH` of both are needed.

Weak point: the input may have changed with the model. The old scores are the last before the exchange.
"""

import numpy as np
from numpy.typing import NDArray

from edge_runtime.bundle.model import Scores

KEPT = 1024
ENOUGH = 500
_BINS = 10


class ScoreSample:
    """The last `KEPT` answers of one bundle, without those that have a non-finite number."""

    def __init__(self) -> None:
        self._ring: NDArray[np.float32] | None = None
        self._count = 0

    def add(self, scores: Scores) -> None:
        """Note the answers to some windows; tensors and detections are not scores and are ignored."""
        numbers = scores.scores if scores.scores is not None else scores.value
        if scores.tensors is not None:
            if "labels" not in scores.tensors:
                return
            numbers = scores.tensors["scores"]
        found = numbers if numbers is not None else scores.score
        assert found is not None
        rows = found if found.ndim == 2 else found[:, np.newaxis]
        rows = rows[np.isfinite(rows).all(axis=1)][-KEPT:]
        if self._ring is None:
            self._ring = np.zeros((KEPT, rows.shape[1]), np.float32)
        places = np.arange(self._count, self._count + len(rows)) % KEPT
        self._ring[places] = rows
        self._count += len(rows)

    @property
    def rows(self) -> NDArray[np.float32]:
        """`[n, numbers]`, in no order."""
        return np.zeros((0, 1), np.float32) if self._ring is None else self._ring[: min(self._count, KEPT)]


def shift(old: ScoreSample | None, new: ScoreSample | None) -> float | None:
    """The largest PSI of any number; None if there are too few answers, or the two have different outputs."""
    if old is None or new is None:
        return None
    before, after = old.rows, new.rows
    if min(len(before), len(after)) < ENOUGH or before.shape[1] != after.shape[1]:
        return None
    return max(stability_index(before[:, column], after[:, column]) for column in range(before.shape[1]))


def stability_index(old: NDArray[np.float32], new: NDArray[np.float32]) -> float:
    """The PSI of two samples of one number, each of one or more."""
    edges = np.unique(np.quantile(old, np.linspace(0, 1, _BINS + 1)[1:-1]))
    shares = []
    for sample in (old, new):
        # Below each edge, above the last, and on an edge: a score that is always the same must not move between bins.
        counts = np.bincount(np.searchsorted(edges, sample, "left") + np.searchsorted(edges, sample, "right"))
        padded = np.zeros(2 * len(edges) + 1)
        padded[: len(counts)] = counts
        shares.append((padded + 0.5) / (padded.sum() + 0.5 * len(padded)))
    before, after = shares
    return float(((after - before) * np.log(after / before)).sum())
