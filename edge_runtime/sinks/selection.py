"""Which predictions a sink takes: all, those whose verdict is new, or alarms. Independent of `publish`. Pure."""

from typing import Literal

from edge_runtime.readings import Prediction

When = Literal["always", "change", "alarm"]
_MOST_KEYS = 10_000


class Selection:
    """The choice of one sink among the predictions of one model.

    Args:
        when: of the sink.
        hysteresis: of the model: by how much a value without a threshold must differ to be new.
    """

    def __init__(self, when: When, hysteresis: float) -> None:
        self._when = when
        self._hysteresis = hysteresis
        self._last: dict[str | None, tuple[float | str, ...]] = {}  # of each key, what was taken last

    def wants(self, prediction: Prediction) -> bool:
        """Whether the sink takes this prediction. The first of a key is new."""
        if self._when == "always":
            return True
        if self._when == "alarm":
            return prediction.alarm
        verdict = _verdict(prediction)
        last = self._last.get(prediction.key)
        if last is not None and not self._differ(verdict, last):
            return False
        self._last.pop(prediction.key, None)
        if len(self._last) >= _MOST_KEYS:
            del self._last[next(iter(self._last))]  # the key whose verdict changed longest ago: its next one is new
        self._last[prediction.key] = verdict
        return True

    def _differ(self, verdict: tuple[float | str, ...], last: tuple[float | str, ...]) -> bool:
        if len(verdict) != len(last):
            return True
        return any(
            abs(new - old) > self._hysteresis if isinstance(new, float) and isinstance(old, float) else new != old
            for new, old in zip(verdict, last, strict=True)
        )


def _verdict(prediction: Prediction) -> tuple[float | str, ...]:
    """What a change is judged by: the label, the alarm, the labels of detections, or else every number."""
    if prediction.label is not None:
        return (prediction.label,)
    if prediction.can_alarm:
        return (str(prediction.alarm),)
    if prediction.values is not None:
        return tuple(prediction.values.tolist())
    tensors = prediction.tensors or {}
    if "boxes" in tensors:
        return tuple(sorted(str(label) for label in tensors["label"].tolist() if label >= 0))
    if "labels" in tensors:
        return tuple(str(there) for there in tensors["labels"].tolist())
    return tuple(float(value) for part in tensors.values() for value in part.ravel().tolist())
