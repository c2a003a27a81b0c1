"""How sure a model is, by its manifest: sets of labels, intervals of values, and what scores promise. Pure.

    set        the labels whose score is at least `least`; none where no label is likely enough, several where more are
    interval   of each target: the value, and `half` on either side of it
    estimate   the mean over windows of the chance that the label is right, which `Confidence` reads off its score

The numbers were found by the converter on rows that the model was not to have seen (split-conformal prediction: Vovk,
Gammerman and Shafer 2005; Sadinle, Lei and Wasserman 2019 for sets). Guarantee: over readings that are exchangeable
with those rows, the truth lies in set or interval as often as `coverage` says. Weak point: after the world has changed
they are not, and nothing here notices it; drift does.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.bundle.manifest import Confidence, Manifest, OutputPort, output_ports
from edge_runtime.bundle.model import Scores
from edge_runtime.readings import Floats


class LabelSets:
    """The sets of one model."""

    def __init__(self, labels: tuple[str, ...], least: float) -> None:
        self._labels = labels
        self._least = least

    def of(self, scores: Floats) -> tuple[str, ...]:
        """The set of one window, in the order of the manifest."""
        least = self._least
        return tuple(label for label, score in zip(self._labels, scores.tolist(), strict=True) if score >= least)

    def members(self, scores: Floats) -> NDArray[np.bool_]:
        """`[n, labels]`: which labels are in the set of each window."""
        return scores >= np.float32(self._least)


class Intervals:
    """The intervals of one model."""

    def __init__(self, half: tuple[float, ...]) -> None:
        self._half = np.array(half, np.float32)

    def of(self, values: Floats) -> tuple[Floats, Floats]:
        """The low and the high ends, in the shape of the values."""
        return values - self._half, values + self._half


def label_sets(manifest: Manifest) -> LabelSets | None:
    """Those of a classification that has them."""
    found = manifest.uncertainty
    return None if found is None or found.least is None else LabelSets(manifest.output.labels, found.least)


def intervals(manifest: Manifest) -> Intervals | None:
    """Those of a regression that has them."""
    found = manifest.uncertainty
    return None if found is None or not found.half else Intervals(found.half)


def chance_right(confidence: Confidence, scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """The chance that a label with such a score is right."""
    return np.interp(scores, confidence.scores, confidence.shares)


def answer_ports(manifest: Manifest) -> dict[str, OutputPort]:
    """What is answered to a request of tensors: the outputs of the graph, and `set` or `interval` beside them."""
    ports = output_ports(manifest)
    if label_sets(manifest) is not None:
        ports["set"] = OutputPort("int64", (len(manifest.output.labels),))
    if intervals(manifest) is not None:
        ports["interval"] = OutputPort("float32", (len(manifest.output.targets), 2))
    return ports


def further_answers(manifest: Manifest, scores: Scores) -> dict[str, NDArray[Any]]:
    """The tensors of `answer_ports` that the graph does not have: 1 for each label in the set; low and high ends."""
    sets, ranges = label_sets(manifest), intervals(manifest)
    if sets is not None and scores.scores is not None:
        return {"set": sets.members(scores.scores).astype(np.int64)}
    if ranges is not None and scores.value is not None:
        return {"interval": np.stack(ranges.of(scores.value), axis=-1)}
    return {}
