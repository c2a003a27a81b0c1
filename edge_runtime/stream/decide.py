"""Scores -> verdicts: threshold, hysteresis, n-of-m, and whether a prediction is published. Pure.

The smoothed verdict is published as `label` or `anomaly`. `alarm` follows it: it needs as many windows as the verdict
to be raised and to end, and is raised only under a label of `alarm_labels`. `scores` are always those of the window
itself, and `score` is that of the published label in it. A prediction that the configuration withholds is handled: its
reading is acknowledged at once.
"""

import math
from collections import deque
from collections.abc import Iterable, KeysView
from typing import Any

from numpy.typing import NDArray

from edge_runtime.bundle.manifest import LABEL_TASKS, Manifest
from edge_runtime.bundle.model import NAMED_TASKS, ModelError, Scores
from edge_runtime.bundle.uncertainty import intervals, label_sets
from edge_runtime.config.load import ModelTable
from edge_runtime.readings import Prediction

_NEVER = -math.inf
_NO_VERDICTS: deque[int] = deque(maxlen=0)  # shared by all keys without smoothing: a deque takes 700 bytes


class Sequences:
    """The sequence numbers of a model's predictions, by key; they continue when its bundle is exchanged."""

    def __init__(self) -> None:
        self._last: dict[str | None, int] = {}
        self._floor = 0  # the highest number of any forgotten key
        self._withheld = 0

    def next(self, key: str | None) -> int:
        """One more than the last of this key; a forgotten key that returns continues above every used number."""
        seq = self._last[key] = self._last.get(key, self._floor) + 1
        return seq

    def beside(self, key: str | None) -> tuple[int, str]:
        """For an unpublished prediction: the last number of its key, and a number unique to this prediction."""
        last = self._last.get(key, self._floor)
        self._withheld += 1
        return last, f"{last}.{self._withheld}"

    def forget(self, key: str | None) -> None:
        """Forget a key."""
        self._floor = max(self._floor, self._last.pop(key, 0))


class _Stream:
    """The state of one key: its recent verdicts, and the last published prediction."""

    __slots__ = ("alarm", "alarms", "last_time", "last_values", "last_verdict", "recent", "verdict")

    def __init__(self, memory: int) -> None:
        self.recent = deque(maxlen=memory) if memory > 1 else _NO_VERDICTS
        self.verdict: int | None = None
        self.alarm = False
        self.alarms: deque[int] = _NO_VERDICTS  # filled for a smoothed classification with alarms
        self.last_verdict: int | None = None
        self.last_values: tuple[float, ...] | None = None
        self.last_time = _NEVER


class Decider:
    """The verdicts of one model.

    A classification's verdict is the index of its label, an anomaly's is 1 or 0, a regression has none.
    An alarm is one of these: a label of `alarm_labels` with a score of at least `threshold`, also among the detections
    of a detector and the labels of a multi-label model; an anomaly; a value above `threshold`. Tensors have neither
    verdict nor alarm.
    """

    def __init__(self, manifest: Manifest, config: ModelTable, sequences: Sequences | None = None) -> None:
        self._sequences = sequences or Sequences()
        self._task = manifest.task
        self._labels = manifest.output.labels
        self._sets, self._intervals = label_sets(manifest), intervals(manifest)
        self._abstain = config.abstain
        self._alarm_labels = frozenset(config.alarm_labels)
        self._threshold = config.threshold if config.threshold is not None else manifest.output.threshold
        self._hysteresis = config.hysteresis
        self._needed, self._memory = (config.smoothing.n, config.smoothing.m) if config.smoothing else (1, 1)
        self._publish = config.publish
        self._min_interval = config.min_interval
        self._publishes_all = config.publish == "always" and config.min_interval <= 0
        self._has_verdict = self._task in ("classification", "anomaly") or (
            bool(self._alarm_labels) if self._task in NAMED_TASKS else self._threshold is not None
        )
        self._can_alarm = {
            "classification": bool(self._alarm_labels),
            "detection": bool(self._alarm_labels),
            "multilabel": bool(self._alarm_labels),
            "anomaly": True,
            "regression": self._threshold is not None,
        }.get(self._task, False)
        self._streams: dict[str | None, _Stream] = {}
        self.withheld: Prediction | None = None  # the last withheld prediction, without a number

    @property
    def threshold(self) -> float | None:
        """The threshold in force: the configuration's, else the manifest's."""
        return self._threshold

    def decide(self, scores: Scores, row: int, key: str | None, time: float) -> Prediction | None:
        """The prediction for row `row` of `scores`, or None when the configuration withholds it.

        Raises:
            ModelError: the model names a label that its manifest does not have.
        """
        stream = self._streams.get(key)
        if stream is None:
            stream = self._streams[key] = _Stream(self._memory)
        prediction = Prediction(key=key, time=time, seq=0, identity=None, can_alarm=self._can_alarm)
        if self._task == "classification":
            self._classify(scores, row, stream, prediction)
        elif self._task == "anomaly":
            self._judge_anomaly(scores, row, stream, prediction)
        elif scores.tensors is not None:
            self._judge_tensors(scores.tensors, row, stream, prediction)
        else:
            self._judge_values(scores, row, stream, prediction)
        if not (self._publishes_all or self._is_wanted(stream, prediction, time)):
            self.withheld = prediction
            return None
        prediction.seq = self._sequences.next(key)
        stream.last_verdict, stream.last_time = stream.verdict, time
        if prediction.values is not None:
            stream.last_values = tuple(prediction.values.tolist())
        elif self._publish == "change" and prediction.tensors is not None:
            stream.last_values = self._in_numbers(prediction.tensors)
        return prediction

    def identify_withheld(self, own: str | None, start: int) -> Prediction | None:
        """The last withheld prediction, with an identity that stays the same on further calls.

        Args:
            own: the identity of its reading, if that has one; else it is made of `seq`, the number of the prediction
                published before it, and a number unique to this prediction (`START/1234.7`).
            start: the number of this start.
        """
        found = self.withheld
        if found is not None and found.identity is None:
            found.seq, number = self._sequences.beside(found.key)
            found.identity = f"{start}/{number}" if own is None else own
        return found

    @property
    def keys(self) -> KeysView[str | None]:
        """The keys that have a state here."""
        return self._streams.keys()

    def forget(self, keys: Iterable[str | None]) -> None:
        """Drop the state of forgotten keys.

        If one returns, its sequence continues above every used number, so that no `id` repeats.
        """
        for key in keys:
            self._streams.pop(key, None)
            self._sequences.forget(key)

    def _classify(self, scores: Scores, row: int, stream: _Stream, prediction: Prediction) -> None:
        assert scores.label is not None
        assert scores.scores is not None
        raw = best = int(scores.label[row])
        if not 0 <= raw < len(self._labels):
            raise ModelError(f"expected a label from 0 to {len(self._labels) - 1}, found {raw}")
        prediction.scores = scores.scores[row]
        if self._sets is not None:
            prediction.label_set = self._sets.of(prediction.scores)
            if self._abstain is not None and len(prediction.label_set) != 1:
                raw = len(self._labels)  # the index of the label of an abstention
        self._smooth(stream, raw)
        verdict = stream.verdict
        assert verdict is not None
        abstains = verdict == len(self._labels)
        prediction.label = self._abstain if abstains else self._labels[verdict]
        prediction.score = prediction.scores[best if abstains else verdict]
        if self._can_alarm:
            own = (self._abstain if raw != best else self._labels[raw]) in self._alarm_labels
            limit = _NEVER if self._threshold is None else self._threshold
            if stream.alarm:
                limit -= self._hysteresis
            self._smooth_alarm(stream, int(own and bool(prediction.scores[best] >= limit)))
            prediction.alarm = stream.alarm = stream.alarm and prediction.label in self._alarm_labels

    def _smooth_alarm(self, stream: _Stream, raw: int) -> None:
        """The alarm becomes `raw` once n of the last m windows had it; the first window's counts at once."""
        if self._memory > 1:
            is_first = stream.alarms is _NO_VERDICTS
            if is_first:
                stream.alarms = deque(maxlen=self._memory)
            stream.alarms.append(raw)
            if not is_first and stream.alarms.count(raw) < self._needed:
                return
        stream.alarm = bool(raw)

    def _judge_anomaly(self, scores: Scores, row: int, stream: _Stream, prediction: Prediction) -> None:
        assert scores.score is not None
        assert self._threshold is not None
        prediction.score = scores.score[row]
        limit = self._threshold - self._hysteresis if stream.verdict else self._threshold
        self._smooth(stream, int(prediction.score > limit))
        stream.alarm = stream.verdict == 1
        prediction.anomaly = prediction.alarm = stream.alarm

    def _judge_values(self, scores: Scores, row: int, stream: _Stream, prediction: Prediction) -> None:
        assert scores.value is not None
        prediction.values = scores.value[row]
        if self._intervals is not None:
            prediction.interval = self._intervals.of(prediction.values)
        if self._threshold is not None:
            limit = self._threshold - self._hysteresis if stream.alarm else self._threshold
            self._smooth(stream, int(bool((prediction.values > limit).any())))
            stream.alarm = stream.verdict == 1
            prediction.alarm = stream.alarm

    def _judge_tensors(
        self, tensors: dict[str, NDArray[Any]], row: int, stream: _Stream, prediction: Prediction
    ) -> None:
        prediction.tensors = {name: part[row] for name, part in tensors.items()}
        if not self._can_alarm:
            return
        limit = _NEVER if self._threshold is None else self._threshold
        if stream.alarm:
            limit -= self._hysteresis
        scores = prediction.tensors["scores"].tolist()
        labels = self._labels_of(prediction.tensors)
        raised = any(
            label >= 0 and self._labels[label] in self._alarm_labels and score >= limit
            for label, score in zip(labels, scores, strict=True)
        )
        self._smooth(stream, int(raised))
        prediction.alarm = stream.alarm = stream.verdict == 1

    def _labels_of(self, tensors: dict[str, NDArray[Any]]) -> list[int]:
        """The label of each score; -1 where there is no detection, or the label is absent."""
        if self._task == "detection":
            found: list[int] = tensors["label"].tolist()
            return found
        return [place if there else -1 for place, there in enumerate(tensors["labels"].tolist())]

    def _in_numbers(self, tensors: dict[str, NDArray[Any]]) -> tuple[float, ...]:
        """The numbers that are compared to notice a change: the labels that are present, or every number."""
        if self._task in LABEL_TASKS:
            return tuple(sorted(label for label in self._labels_of(tensors) if label >= 0))
        return tuple(value for part in tensors.values() for value in part.ravel().tolist())

    def _smooth(self, stream: _Stream, raw: int) -> None:
        """The verdict becomes `raw` once n of the last m windows had it.

        The first window needs a verdict too: for a classification it is that window's own label, for every other task
        "no alarm".
        """
        if self._memory > 1:
            if stream.verdict is None and self._task != "classification":
                stream.verdict = 0
            stream.recent.append(raw)
            if stream.verdict is not None and stream.recent.count(raw) < self._needed:
                return
        stream.verdict = raw

    def _is_wanted(self, stream: _Stream, prediction: Prediction, time: float) -> bool:
        if self._publish == "alarm" and not prediction.alarm:
            return False
        changed = self._is_changed(stream, prediction)
        if self._publish == "change" and not changed:
            return False
        soon = 0.0 <= time - stream.last_time < self._min_interval
        if self._has_verdict:
            return changed or not soon  # a new verdict does not wait
        return not soon

    def _is_changed(self, stream: _Stream, prediction: Prediction) -> bool:
        """Whether the verdict differs from the last published; without one, any value by more than the hysteresis."""
        if self._has_verdict:
            return stream.verdict != stream.last_verdict
        if stream.last_values is None:
            return True
        if prediction.tensors is not None:
            values = self._in_numbers(prediction.tensors)
            if self._task in LABEL_TASKS:
                return values != stream.last_values
        else:
            assert prediction.values is not None
            values = tuple(prediction.values.tolist())
        pairs = zip(values, stream.last_values, strict=True)
        return any(abs(value - last) > self._hysteresis for value, last in pairs)
