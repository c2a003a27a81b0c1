"""A prediction as a JSON object, the default payload.

All members that are the same for every prediction are encoded once, when the model is wired; one `%` inserts the rest.
Numbers are the shortest text that reads back to the same float32.
"""

import base64
import json
from datetime import UTC, datetime
from functools import lru_cache
from itertools import islice
from json.encoder import encode_basestring
from typing import Any

from numpy.typing import NDArray

from edge_runtime.bundle.manifest import Manifest
from edge_runtime.delivery.payloads import Convention
from edge_runtime.readings import Floats, Prediction

_DELAYED = b',"delayed":true}'
_UNSYNCHRONISED = b',"clock":"unsynchronised"}'


class JsonPayload:
    """Encodes the predictions of one model.

    Args:
        device: the device's id.
        model: the model's name in the configuration.
        source: the source's name.
        start: the number of this start of the daemon, which no earlier start had.
        manifest: of the bundle; its version, labels and targets are part of the text.
        threshold: the anomaly threshold in force.
    """

    def __init__(
        self, *, device: str, model: str, source: str, start: int, manifest: Manifest, threshold: float | None
    ) -> None:
        self._id = _text(f"{device}/{model}/")[:-1]
        self._start = start
        head = f'"device":{_text(device)},"model":{_text(model)},"version":{_text(manifest.version)}'
        self._head = f'{head},"source":{_text(source)}'
        self._labels = {label: (place, _text(label)) for place, label in enumerate(manifest.output.labels)}
        if manifest.task == "classification":
            pairs = ",".join(f"{_literal(_text(label))}:%s" for label in manifest.output.labels)
            self._scores = f'"scores":{{{pairs}}}'
        elif manifest.task == "regression":
            pairs = ",".join(f"{_literal(_text(target.name))}:%s" for target in manifest.output.targets)
            self._scores = f'"values":{{{pairs}}}'
            self._ends = ",".join(f"{_literal(_text(target.name))}:[%s,%s]" for target in manifest.output.targets)
        self._task = manifest.task
        self._names = [_text(label) for label in manifest.output.labels]
        self._threshold = json.dumps(threshold)
        self._keys: dict[str | None, tuple[str, str]] = {None: ("-", "null")}

    def encode(self, prediction: Prediction, *, synchronised: bool = True) -> bytes:
        """The payload. `synchronised` False adds the mark that the device's clock was not yet set."""
        key_id, key = self._keys.get(prediction.key) or self._new_key(prediction.key)
        tail = prediction.identity if prediction.identity is not None else f"{self._start}/{prediction.seq}"
        if prediction.identity is not None:
            tail = _text(tail)[1:-1]
        alarm = (',"alarm":true' if prediction.alarm else ',"alarm":false') if prediction.can_alarm else ""
        body = (
            f'{{"id":{self._id}{key_id}/{tail}","seq":{prediction.seq},{self._head},"key":{key},'
            f'"time":"{_time(prediction.time)}",{self._answer(prediction)}{alarm}}}'
        ).encode()
        return body if synchronised else body[:-1] + _UNSYNCHRONISED

    def _answer(self, prediction: Prediction) -> str:
        if self._task == "classification":
            assert prediction.scores is not None
            assert prediction.label is not None
            numbers = _texts(prediction.scores)
            known = self._labels.get(prediction.label)
            if known is None:  # it abstains
                score, label = str(prediction.score), _text(prediction.label)
            else:  # formatting a number is expensive: the text of the label's score is used twice
                score, label = numbers[known[0]], known[1]
            return f'"label":{label},"score":{score},{self._scores % numbers}{self._set(prediction)}'
        if self._task == "regression":
            assert prediction.values is not None
            return f"{self._scores % _texts(prediction.values)}{self._interval(prediction)}"
        if prediction.tensors is not None:
            return self._tensors(prediction.tensors)
        anomaly = "true" if prediction.anomaly else "false"
        return f'"score":{prediction.score!s},"threshold":{self._threshold},"anomaly":{anomaly}'

    def _set(self, prediction: Prediction) -> str:
        """The prediction set of labels, if the bundle has one."""
        if prediction.label_set is None:
            return ""
        return f',"set":[{",".join(self._labels[label][1] for label in prediction.label_set)}]'

    def _interval(self, prediction: Prediction) -> str:
        """The prediction intervals of the values, if the bundle has them."""
        if prediction.interval is None:
            return ""
        ends = [str(end) for pair in zip(*prediction.interval, strict=True) for end in pair]
        return f',"interval":{{{self._ends % tuple(ends)}}}'

    def _tensors(self, tensors: dict[str, NDArray[Any]]) -> str:
        """Labels by name, detections as objects, an embedding as numbers, other tensors as base64 of their bytes."""
        if self._task == "multilabel":
            return self._several_labels(tensors)
        if self._task == "embedding":
            return f'"embedding":[{",".join(map(str, tensors["embedding"]))}]'
        if self._task == "tensor":
            parts = ",".join(f"{_text(name)}:{_packed(part)}" for name, part in tensors.items())
            return f'"tensors":{{{parts}}}'
        found = ",".join(
            f'{{"label":{self._names[label]},"score":{score!s},"box":[{",".join(map(str, box))}]}}'
            for label, score, box in zip(tensors["label"].tolist(), tensors["scores"], tensors["boxes"], strict=True)
            if label >= 0
        )
        return f'"detections":[{found}]'

    def _several_labels(self, tensors: dict[str, NDArray[Any]]) -> str:
        """A score for each label, and the labels that are present."""
        names = self._names
        scores = ",".join(f"{name}:{score!s}" for name, score in zip(names, tensors["scores"], strict=True))
        there = ",".join(name for name, yes in zip(names, tensors["labels"].tolist(), strict=True) if yes)
        return f'"labels":{{{scores}}},"present":[{there}]'

    def _new_key(self, key: str | None) -> tuple[str, str]:
        if len(self._keys) > 10_000:
            self._keys = {None: ("-", "null")}
        text = _text(key)
        found = self._keys[key] = (text[1:-1], text)
        return found


def mark_delayed(payload: bytes) -> bytes | None:
    """The object with the mark added; None if the bytes are not such an object."""
    return payload[:-1] + _DELAYED if payload[:2] == b'{"' and payload[-1:] == b"}" else None


def _packed(part: NDArray[Any]) -> str:
    """A tensor as base64: four thirds of its bytes, a third of its numbers as text."""
    whole = part.dtype.kind == "i"
    data = base64.b64encode(part.astype("<i8" if whole else "<f4", copy=False).tobytes()).decode()
    shape = ",".join(map(str, part.shape))
    return f'{{"shape":[{shape}],"datatype":"{"INT64" if whole else "FP32"}","data":"{data}"}}'


def _time(time: float) -> str:
    second, micros = divmod(round(time * 1_000_000), 1_000_000)
    return f"{_second(second)}.{micros:06d}Z"


@lru_cache(maxsize=16)  # shared by all models: with many, each has few readings of one second
def _second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _texts(numbers: Floats) -> tuple[str, ...]:
    """The text of each number. Without the limit, numpy would raise and format an `IndexError` at the end."""
    return tuple(map(str, islice(numbers, len(numbers))))


def _text(value: str | None) -> str:
    return "null" if value is None else encode_basestring(value)


def _literal(text: str) -> str:
    """The text, escaped for a `%` template."""
    return text.replace("%", "%%")


CONVENTION = Convention(JsonPayload, mark_delayed)
