"""A truth as it is sent -> which prediction is meant, and what was right. Pure.

    {"id": "dev1/m/k1/1700000000/17", "label": "running"}
    {"key": "k1", "time": "2026-01-01T00:00:00Z", "label": "running"}
    {"key": "k1", "time": 1767225600, "values": {"power": 3.5}}

Labels may be those of the bundle or, where no label is called so, classes of its model. Of an anomaly the label is true
or false, 1 or 0, `anomaly` or `normal`. Whatever is anything else is refused with one sentence; nothing is guessed.
"""

import math
from typing import Any, Literal, NamedTuple

import msgspec

from edge_runtime.batch.evaluate import anomaly_word, plain
from edge_runtime.batch.label_names import spoken_in
from edge_runtime.bundle.manifest import Manifest
from edge_runtime.errors import CommandError, EdgeError
from edge_runtime.stream.origin import RejectedError, TimeReader
from edge_runtime.truth.memory import Answer

MOST_BYTES = 65_536
_SHOWN = 60
_TIMES = TimeReader()

Reason = Literal["malformed", "unknown_label"]


class TruthError(EdgeError):
    """What was sent is no truth; `reason` is the word that is counted."""

    def __init__(self, reason: Reason, why: str) -> None:
        super().__init__(why)
        self.reason = reason


class TruthMessage(NamedTuple):
    """What was right about which prediction: one with an `id`, else the one of `key` at `time`."""

    id: str | None
    key: str | None
    time: float
    answer: Answer


def read_truth(body: bytes, manifest: Manifest) -> TruthMessage:
    """Read one message.

    Raises:
        TruthError: it is no truth for this model.
    """
    if len(body) > MOST_BYTES:
        raise TruthError("malformed", f"expected at most {MOST_BYTES} bytes, found {len(body)}")
    try:
        document = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise TruthError("malformed", f"expected a JSON object, found none: {str(error)[:_SHOWN]}") from None
    if type(document) is not dict:
        raise TruthError("malformed", f"expected a JSON object, found {_shown(document)}")
    identity = document.get("id")
    if identity is not None:
        if type(identity) is not str:
            raise TruthError("malformed", f"expected id to be text, found {_shown(identity)}")
        return TruthMessage(identity, None, math.nan, _answer(document, manifest))
    key = document.get("key")
    if type(key) in (int, float):
        key = plain(key)
    if key is not None and type(key) is not str:
        raise TruthError("malformed", f"expected key to be text, found {_shown(key)}")
    if "time" not in document:
        raise TruthError("malformed", f"expected an id, or key and time, found {_shown(sorted(document))}")
    try:
        time = _TIMES.read_text(document["time"])
    except RejectedError as error:
        raise TruthError("malformed", f"time: {error.why or error.reason}") from None
    if time is None:
        raise TruthError("malformed", f"expected a time, found {_shown(document['time'])}")
    return TruthMessage(None, None if key == "-" else key, time, _answer(document, manifest))


def _answer(document: dict[str, Any], manifest: Manifest) -> Answer:
    if manifest.task == "regression":
        return _values(document, manifest)
    if "label" not in document:
        raise TruthError("malformed", f"expected a label, found {_shown(sorted(document))}")
    label = document["label"]
    if label is None or isinstance(label, list | dict):
        raise TruthError("malformed", f"expected a label as text, found {_shown(label)}")
    name = plain(label)
    if manifest.task == "anomaly":
        try:
            return anomaly_word(name) == "anomaly"
        except CommandError:
            raise TruthError(
                "unknown_label", f"label: expected true or false, anomaly or normal, found {_shown(label)}"
            ) from None
    labels = manifest.output.labels
    place = spoken_in([name], labels).get(name)
    if place is None:
        place = spoken_in([name], manifest.output.classes).get(name)
    if place is None:
        raise TruthError("unknown_label", f"label: expected one of {', '.join(labels)}, found {_shown(label)}")
    return labels[place]


def _values(document: dict[str, Any], manifest: Manifest) -> list[float]:
    names = [target.name for target in manifest.output.targets]
    values = document.get("values")
    if type(values) is not dict or set(values) != set(names):
        found = sorted(values) if type(values) is dict else values
        raise TruthError("malformed", f"values: expected an object of {', '.join(names)}, found {_shown(found)}")
    for name in names:
        if type(values[name]) not in (int, float) or not math.isfinite(values[name]):
            raise TruthError("malformed", f"values.{name}: expected a number, found {_shown(values[name])}")
    return [float(values[name]) for name in names]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
