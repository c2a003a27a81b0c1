"""The predictions that a sink takes: all, those with a changed verdict, or alarms. Independent of `publish`. Pure."""

from typing import Literal

from edge_runtime.readings import Prediction

When = Literal["always", "change", "alarm"]
_MOST_KEYS = 10_000


class Selection:
    """The choice of one sink among the predictions of one model.

    Args:
        when: of the sink.
        hysteresis: of the model: the least difference of a value without a threshold that counts as a change.
    """

    def __init__(self, when: When, hysteresis: float) -> None:
        self._when = when
        self._hysteresis = hysteresis
        self._last: dict[str | None, tuple[float | str, ...]] = {}  # by key: the verdict that was taken last

    def wants(self, prediction: Prediction) -> bool:
        """Whether the sink takes this prediction. The first of a key counts as a change."""
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
            del self._last[next(iter(self._last))]  # the key with the oldest change; it then starts anew
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
    """The part of a prediction that a change is judged by: label, alarm, labels of detections, or else every number."""
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
