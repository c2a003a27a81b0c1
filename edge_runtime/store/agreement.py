"""The agreement of two models on the same windows: counts, labels, differences of scores, time. Pure.

Memory is bounded: a table of labels against labels, running sums, and a ring of the last 4096 differences of each
number, from which the quantiles are. So a quantile covers the last 4096 windows, a mean and a maximum cover all.
"""

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.bundle.manifest import Manifest, output_ports
from edge_runtime.bundle.model import NAMED_TASKS, Scores
from edge_runtime.system.counters import Latencies

KEPT = 4096
_QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


class Differences:
    """The absolute differences of one number."""

    def __init__(self) -> None:
        self._ring = np.zeros(KEPT)
        self._count = 0
        self._sum = 0.0
        self._most = 0.0

    def add(self, found: NDArray[Any]) -> None:
        """Add the differences of some windows, float `[n]`, all finite."""
        for at in range(0, len(found), KEPT):
            part = found[at : at + KEPT]
            places = np.arange(self._count, self._count + len(part)) % KEPT
            self._ring[places] = part
            self._count += len(part)
        if len(found):
            self._sum += float(found.sum())
            self._most = max(self._most, float(found.max()))

    def document(self) -> dict[str, float]:
        """Mean and maximum of all, quantiles of the last; empty before the first."""
        if not self._count:
            return {}
        known = self._ring[: min(self._count, KEPT)]
        quantiles = np.quantile(known, list(_QUANTILES.values()), method="higher").tolist()
        figures = {"mean": self._sum / self._count, **dict(zip(_QUANTILES, quantiles, strict=True)), "max": self._most}
        return {name: float(np.float32(value)) for name, value in figures.items()}


class Agreement:
    """The statistics of one pair of models.

    Args:
        active: the manifest of the active model.
        shadow: the manifest of the shadow: the same task, labels and targets.
        threshold: of the active one, if the configuration sets it; it is applied to both.
    """

    def __init__(self, active: Manifest, shadow: Manifest, threshold: float | None = None) -> None:
        self._task = active.task
        self._labels = active.output.labels if active.task == "classification" else ("normal", "anomaly")
        self._thresholds = tuple(
            threshold if threshold is not None else manifest.output.threshold for manifest in (active, shadow)
        )
        names = [target.name for target in active.output.targets] if active.task == "regression" else ["score"]
        self._named = active.task in NAMED_TASKS
        if self._named:
            names = [name for name, port in output_ports(active).items() if port.dtype == "float32"]
        self._differences = {name: Differences() for name in names}
        self._latencies = {"active": Latencies(), "shadow": Latencies()}
        self._pairs: Counter[tuple[int, int]] = Counter()
        self.compared = 0
        self.not_finite = 0

    def add(self, active: Scores, shadow: Scores) -> None:
        """Compare the answers to the same windows; those with a non-finite number are only counted."""
        if self._named:
            self._add_tensors(active.arrays(), shadow.arrays())
            return
        first, second = _numbers(active), _numbers(shadow)
        good = np.isfinite(first).all(axis=1) & np.isfinite(second).all(axis=1)
        self.not_finite += int(np.count_nonzero(~np.isfinite(second).all(axis=1)))
        self.compared += int(np.count_nonzero(good))
        apart = np.abs(first[good].astype(np.float64) - second[good])
        if self._task == "regression":
            for column, differences in enumerate(self._differences.values()):
                differences.add(apart[:, column])
            return
        self._differences["score"].add(apart.max(axis=1, initial=0.0))
        self._pairs.update(zip(self._verdicts(active, 0)[good], self._verdicts(shadow, 1)[good], strict=True))

    def _add_tensors(self, active: dict[str, NDArray[Any]], shadow: dict[str, NDArray[Any]]) -> None:
        """The largest difference of each tensor."""
        gaps = {}
        for name in self._differences:
            one, other = (part[name].reshape(len(part[name]), -1) for part in (active, shadow))
            gaps[name] = np.abs(one.astype(np.float64) - other).max(axis=1, initial=0.0)
        good = np.logical_and.reduce([np.isfinite(gap) for gap in gaps.values()])
        self.not_finite += int(np.count_nonzero(~good))
        self.compared += int(np.count_nonzero(good))
        for name, gap in gaps.items():
            self._differences[name].add(gap[good])

    def took(self, who: str, seconds: float) -> None:
        """Note how long `active` or `shadow` took for a window."""
        self._latencies[who].add(seconds)

    def document(self) -> dict[str, Any]:
        """The figures; those without data are left out or empty, and none is ever NaN."""
        found: dict[str, Any] = {"compared": self.compared, "not_finite": self.not_finite}
        if self._task != "regression" and not self._named:
            same = sum(count for (one, other), count in self._pairs.items() if one == other)
            table: dict[str, dict[str, int]] = {}
            for (one, other), count in sorted(self._pairs.items()):
                table.setdefault(self._name(one), {})[self._name(other)] = count
            share = round(same / self.compared, 6) if self.compared else None
            found["labels"] = {"same": same, "share": share, "active_to_shadow": table}
        found["difference"] = {name: each.document() for name, each in self._differences.items()}
        found["latency_ms"] = {who: each.quantiles_ms() for who, each in self._latencies.items()}
        return found

    def _verdicts(self, scores: Scores, which: int) -> NDArray[np.int64]:
        if scores.label is not None:
            return scores.label
        assert scores.score is not None
        threshold = self._thresholds[which]
        assert threshold is not None
        return (scores.score > threshold).astype(np.int64)

    def _name(self, verdict: int) -> str:
        return self._labels[verdict] if 0 <= verdict < len(self._labels) else str(verdict)


def _numbers(scores: Scores) -> NDArray[np.float32]:
    """Every number of every window, `[n, k]`."""
    found = scores.scores if scores.scores is not None else scores.value if scores.value is not None else scores.score
    assert found is not None
    return found if found.ndim == 2 else found[:, np.newaxis]
