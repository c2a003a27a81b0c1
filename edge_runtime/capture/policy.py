"""The choice of windows worth labelling: by the model's answer, and at random. Pure.

A window is captured if the model is unsure (`uncertain`), if its answer is one of the configured labels (`label`), or
at random (`random`). The random share does not depend on the model, so it is an unbiased sample to evaluate it.
"""

from collections.abc import Callable, Iterable, Iterator

from edge_runtime.bundle.manifest import Manifest
from edge_runtime.bundle.model import Scores
from edge_runtime.config.tables import CaptureTable

ANOMALY, NORMAL = "anomaly", "normal"  # the names of an anomaly's answers among labels

UNCERTAIN, LABEL, RANDOM = "uncertain", "label", "random"


class CapturePolicy:
    """The rules of one bundle.

    Args:
        table: `[capture]` of the device file.
        manifest: the bundle's manifest.
        threshold: the one in use, if the task has one.
        chance: returns a random number from 0 (included) to 1 (excluded).
    """

    def __init__(
        self, table: CaptureTable, manifest: Manifest, threshold: float | None, chance: Callable[[], float]
    ) -> None:
        self._uncertain = table.uncertain
        self._labels = frozenset(table.labels)
        self._share = table.random
        self._task = manifest.task
        self._names = manifest.output.labels
        self._threshold = threshold
        self._chance = chance

    def reasons(self, scores: Scores, row: int) -> tuple[str, ...]:
        """The reasons to capture a window; empty if there is none."""
        found = []
        if self._uncertain is not None:
            margin = self.margin(scores, row)
            if margin is not None and margin <= self._uncertain:
                found.append(UNCERTAIN)
        if self._labels and not self._labels.isdisjoint(self._predicted_labels(scores, row)):
            found.append(LABEL)
        if self._share and self._chance() < self._share:
            found.append(RANDOM)
        return tuple(found)

    def margin(self, scores: Scores, row: int) -> float | None:
        """The certainty of the model; None if its task has no measure.

        For a classification: the difference between the two largest scores. For several labels: the least difference
        between a label and its opposite. Else: the distance from the threshold, if there is one.
        """
        if scores.scores is not None:
            numbers = scores.scores[row].tolist()
            if self._task != "classification":
                return float(min(abs(2.0 * number - 1.0) for number in numbers))
            numbers.sort()
            return float(numbers[-1] - numbers[-2])
        if self._threshold is None:
            return None
        if scores.score is not None:
            return abs(float(scores.score[row]) - self._threshold)
        if scores.value is not None:
            return float(min(abs(number - self._threshold) for number in scores.value[row].tolist()))
        return None

    def label(self, scores: Scores, row: int) -> str | None:
        """The label of this window alone, before any smoothing; None if the task has no labels."""
        if self._task == "classification" and scores.label is not None:
            place = int(scores.label[row])
            return self._names[place] if 0 <= place < len(self._names) else None
        if self._task == "anomaly" and scores.score is not None and self._threshold is not None:
            return ANOMALY if float(scores.score[row]) > self._threshold else NORMAL
        return None

    def _predicted_labels(self, scores: Scores, row: int) -> Iterator[str]:
        """All labels that the model gives to a window."""
        one = self.label(scores, row)
        if one is not None:
            yield one
        elif scores.tensors is not None and self._task == "detection":
            yield from (self._names[place] for place in scores.tensors["label"][row].tolist() if place >= 0)
        elif scores.scores is not None:
            numbers = scores.scores[row].tolist()
            yield from (name for name, number in zip(self._names, numbers, strict=True) if number >= 0.5)


def mistakes(table: CaptureTable, models: Iterable[tuple[str, Manifest]]) -> Iterator[tuple[str, str]]:
    """Labels and channels that no bundle of a device has, or that are listed twice, as the key and a sentence.

    Args:
        table: `[capture]` of the device file.
        models: the names of the models and their bundles.
    """
    known_labels: set[str] = set()
    known_channels: set[str] = set()
    for name, manifest in models:
        known_labels.update((ANOMALY, NORMAL) if manifest.task == "anomaly" else manifest.output.labels)
        channels = set(manifest.channel_names)
        known_channels |= channels
        if channels and channels <= set(table.exclude):
            yield "exclude", f'expected a channel of model "{name}" that is left, found all of them excluded'
    for key, wanted, known in (("labels", table.labels, known_labels), ("exclude", table.exclude, known_channels)):
        what = "label" if key == "labels" else "channel"
        for place, each in enumerate(wanted):
            if each in wanted[:place]:
                yield key, f"expected every {what} once, found {each!r} twice"
            if each not in known:
                names = ", ".join(sorted(known)) or "none"
                yield key, f"expected a {what} of one of the models ({names}), found {each!r}"
