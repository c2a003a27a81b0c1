"""Payload conventions: the formats of a published prediction, by the name in `[[model]] payload`.

A convention is one file with a `CONVENTION`, and one line in `CONVENTIONS`, where the device file, `check`, the
pipelines and the outbox find it. Its module is imported only where a model uses it.
"""

import importlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

from edge_runtime.bundle.manifest import LABEL_TASKS, Manifest
from edge_runtime.config.tables import ModelTable
from edge_runtime.readings import Prediction, Receipt

CONVENTIONS = {
    "json": "edge_runtime.delivery.json_payload",
    "msgpack": "edge_runtime.delivery.msgpack_payload",
    "values": "edge_runtime.delivery.values_payload",
}


class Payload(Protocol):
    """Encodes the predictions of one model."""

    def encode(self, prediction: Prediction, *, synchronised: bool = True) -> bytes:
        """The payload. `synchronised` False adds that the device's clock was not yet set."""


class FlatPayload(Protocol):
    """Encodes the predictions of one model as several messages each."""

    def encode_parts(self, prediction: Prediction, *, synchronised: bool = True) -> Iterator[tuple[str, bytes]]:
        """The levels below the prediction's topic, and the payload of each."""


class PredictionTaker(Protocol):
    """Takes the messages: the outbox, or a display of them."""

    def offer(self, stream: str, topic: str, payload: bytes, *, priority: int, receipt: Receipt | None) -> None:
        """As `Outbox.offer`."""


class FurtherPayloads(Protocol):
    """The further conventions of a model; the class is in `further_payloads.py`."""

    def offer(
        self,
        outbox: PredictionTaker,
        prediction: Prediction,
        address: tuple[str, str],
        *,
        priority: int,
        receipt: Receipt | None,
        synchronised: bool,
    ) -> None:
        """Give the messages of a prediction to the outbox; each takes a hold of its own on the receipt."""


class Encoders(NamedTuple):
    """The encoders of one model: that of the convention with the prediction's own topic, and the others."""

    first: Payload | None
    further: FurtherPayloads | None


class MakePayload(Protocol):
    """Makes the encoder of one model; called once, when the model is wired."""

    def __call__(
        self, *, device: str, model: str, source: str, start: int, manifest: Manifest, threshold: float | None
    ) -> Payload:
        """See `JsonPayload`."""


class MakeFlatPayload(Protocol):
    """As `MakePayload`, for a convention of several messages a prediction."""

    def __call__(
        self, *, device: str, model: str, source: str, start: int, manifest: Manifest, threshold: float | None
    ) -> FlatPayload:
        """See `JsonPayload`."""


class Convention(NamedTuple):
    """The `CONVENTION` of a convention's file.

    Attributes:
        make: makes the encoder of one model.
        mark_delayed: adds the mark for late delivery from the outbox to a payload; None if the bytes are not of this
            convention, which a stored row does not name.
    """

    make: MakePayload
    mark_delayed: Callable[[bytes], bytes | None]


class FlatConvention(NamedTuple):
    """The `CONVENTION` of a file that writes several messages a prediction; none of them has a mark."""

    make: MakeFlatPayload


def convention(name: str) -> Convention:
    """The convention of this name, one of `CONVENTIONS` that writes one message a prediction."""
    found = _loaded(name)
    assert isinstance(found, Convention)
    return found


def flat_convention(name: str) -> FlatConvention | None:
    """The convention of this name, if it writes several messages a prediction; else None."""
    found = _loaded(name)
    return found if isinstance(found, FlatConvention) else None


def _loaded(name: str) -> Convention | FlatConvention:
    found: Convention | FlatConvention = importlib.import_module(CONVENTIONS[name]).CONVENTION
    return found


def first_of(names: Sequence[str]) -> str | None:
    """The convention that has the prediction's own topic: the first of one message; the others are below it."""
    return next((name for name in names if flat_convention(name) is None), None)


def mark_delayed(payload: bytes) -> bytes:
    """The payload with the mark for late delivery from the outbox; unknown bytes stay unchanged."""
    for name in CONVENTIONS:
        known = _loaded(name)
        marked = known.mark_delayed(payload) if isinstance(known, Convention) else None
        if marked is not None:
            return marked
    return payload


def prediction_id(device: str, model: str, start: int, prediction: Prediction) -> str:
    """The `id` that every convention gives a published prediction, as plain text."""
    key = "-" if prediction.key is None else prediction.key
    tail = prediction.identity if prediction.identity is not None else f"{start}/{prediction.seq}"
    return f"{device}/{model}/{key}/{tail}"


def can_alarm(table: ModelTable, manifest: Manifest) -> bool:
    """Whether its predictions have the member `alarm`, as in `stream/decide.py`."""
    if manifest.task == "regression":
        return table.threshold is not None or manifest.output.threshold is not None
    return manifest.task == "anomaly" or (manifest.task in LABEL_TASKS and bool(table.alarm_labels))
