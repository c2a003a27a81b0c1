"""A truth as it is sent -> the prediction that it belongs to, and the right answer. Pure.

    {"id": "dev1/m/k1/1700000000/17", "label": "running"}
    {"key": "k1", "time": "2026-01-01T00:00:00Z", "label": "running"}
    {"key": "k1", "time": 1767225600, "values": {"power": 3.5}}
    {"id": "dev1/m/k1/1700000000/17", "labels": ["hot", "loud"]}

A label is a label of the bundle or, if none has this name, a class of its model. For an anomaly the label is true or
false, 1 or 0, `anomaly` or `normal`. For a multi-label model `labels` is an array of exactly the present labels, or an
object with true or false for every label. Anything else is refused with one sentence of bounded length; nothing is
guessed.
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
_NAMED = 12  # labels in a message
_LARGEST = 3.4028234663852886e38  # of float32, the type of a model's values
_UNIX_SECONDS = TimeReader()

Reason = Literal["malformed", "unknown_label"]


class TruthError(EdgeError):
    """A message is not a valid truth; it is counted under `reason`."""

    def __init__(self, reason: Reason, why: str) -> None:
        super().__init__(why)
        self.reason = reason


class TruthMessage(NamedTuple):
    """The right answer for a prediction, which is named by `id`, else by `key` and `time`."""

    id: str | None
    key: str | None
    time: float
    answer: Answer


def read_truth(body: bytes, manifest: Manifest, times: TimeReader = _UNIX_SECONDS) -> TruthMessage:
    """Read one message.

    Args:
        body: the message.
        manifest: of the model.
        times: reads its time.

    Raises:
        TruthError: it is not a valid truth for this model.
    """
    if len(body) > MOST_BYTES:
        raise TruthError("malformed", f"expected at most {MOST_BYTES} bytes, found {len(body)}")
    try:
        document = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise TruthError("malformed", f"expected a JSON object, found none: {str(error)[:_SHOWN]}") from None
    if type(document) is not dict:
        raise TruthError("malformed", f"expected a JSON object, found {shown(document)}")
    identity = document.get("id")
    if identity is not None:
        if type(identity) is not str:
            raise TruthError("malformed", f"expected id to be text, found {shown(identity)}")
        return TruthMessage(identity, None, math.nan, _answer(document, manifest))
    key = document.get("key")
    if type(key) in (int, float):
        key = plain(key)
    if key is not None and type(key) is not str:
        raise TruthError("malformed", f"expected key to be text, found {shown(key)}")
    if "time" not in document:
        raise TruthError("malformed", f"expected an id, or key and time, found {shown(sorted(document))}")
    try:
        time = times.read_text(document["time"])
    except RejectedError as error:
        raise TruthError("malformed", f"time: {error.why or error.reason}") from None
    if time is None:
        raise TruthError("malformed", f"expected a time, found {shown(document['time'])}")
    return TruthMessage(None, None if key == "-" else key, time, _answer(document, manifest))


def _answer(document: dict[str, Any], manifest: Manifest) -> Answer:
    if manifest.task == "regression":
        return _values(document, manifest)
    if manifest.task == "multilabel":
        return _several(document, manifest)
    if "label" not in document:
        raise TruthError("malformed", f"expected a label, found {shown(sorted(document))}")
    label = document["label"]
    if label is None or isinstance(label, list | dict):
        raise TruthError("malformed", f"expected a label as text, found {shown(label)}")
    name = plain(label)
    if manifest.task == "anomaly":
        try:
            return anomaly_word(name) == "anomaly"
        except CommandError:
            raise TruthError(
                "unknown_label", f"label: expected true or false, anomaly or normal, found {shown(label)}"
            ) from None
    return manifest.output.labels[_place(name, label, manifest)]


def _place(name: str, label: Any, manifest: Manifest) -> int:
    """The place of this label of the bundle, or class of its model."""
    for spoken in (manifest.output.labels, manifest.output.classes):
        place = spoken_in([name], spoken).get(name)
        if place is not None:
            return place
    expected = ", ".join(map(shortened, manifest.output.labels[:_NAMED]))
    more = ", ..." if len(manifest.output.labels) > _NAMED else ""
    raise TruthError("unknown_label", f"label: expected one of {expected}{more}, found {shown(label)}")


def _several(document: dict[str, Any], manifest: Manifest) -> list[bool]:
    """Whether each label is present, in the order of the bundle."""
    labels, known = document.get("labels"), manifest.output.labels
    if type(labels) is list:
        there = _places(labels, manifest)
        return [place in there for place in range(len(known))]
    if type(labels) is not dict:
        found = shown(labels) if "labels" in document else shown(sorted(document))
        raise TruthError("malformed", f"expected labels, an array of those that are there, found {found}")
    for name, is_there in labels.items():
        if is_there not in (True, False):  # 1 and 0 equal these
            raise TruthError("malformed", f"labels.{shortened(name)}: expected true or false, found {shown(is_there)}")
    given = dict(zip(_places(list(labels), manifest), labels.values(), strict=True))
    missing = [label for place, label in enumerate(known) if place not in given]
    if missing:
        raise TruthError("malformed", f"labels: expected true or false of every label, found none of {shown(missing)}")
    return [bool(given[place]) for place in range(len(known))]


def _places(labels: list[Any], manifest: Manifest) -> list[int]:
    """The places of the labels, each once."""
    places = []
    for label in labels:
        if label is None or isinstance(label, list | dict):
            raise TruthError("malformed", f"labels: expected labels as text, found {shown(label)}")
        places.append(_place(plain(label), label, manifest))
    if len(set(places)) < len(places):
        raise TruthError("malformed", f"labels: expected each label once, found {shown(labels)}")
    return places


def _values(document: dict[str, Any], manifest: Manifest) -> list[float]:
    names = [target.name for target in manifest.output.targets]
    values = document.get("values")
    if type(values) is not dict or set(values) != set(names):
        found = sorted(values) if type(values) is dict else values
        raise TruthError("malformed", f"values: expected an object of {', '.join(names)}, found {shown(found)}")
    for name in names:
        value = values[name]
        if type(value) not in (int, float) or not -_LARGEST <= value <= _LARGEST:
            raise TruthError("malformed", f"values.{name}: expected a number{_range(value)}, found {shown(value)}")
    return [float(values[name]) for name in names]


def _range(value: Any) -> str:
    return f" of at most {_LARGEST:.2g}" if type(value) in (int, float) else ""


def shown(value: Any) -> str:
    """The value as text for a message, of bounded length."""
    return shortened(repr(value))


def shortened(text: str) -> str:
    """The text, cut off if it is long."""
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
