"""Payload conventions: how a prediction is written for its subscribers, by the name in `[[model]] payload`.

A convention is one file, which holds a `CONVENTION`, and one line in `CONVENTIONS`; the device file, `check`, the
pipelines and the outbox find it there. Its module is imported only where a model uses it.
"""

import importlib
from collections.abc import Callable
from typing import NamedTuple, Protocol

from edge_runtime.bundle.manifest import LABEL_TASKS, Manifest
from edge_runtime.config.tables import ModelTable
from edge_runtime.readings import Prediction

CONVENTIONS = {
    "json": "edge_runtime.delivery.json_payload",
    "msgpack": "edge_runtime.delivery.msgpack_payload",
}


class Payload(Protocol):
    """Encodes the predictions of one model."""

    def encode(self, prediction: Prediction, *, synchronised: bool = True) -> bytes:
        """The payload. `synchronised` False adds that the device's clock was not yet set."""


class MakePayload(Protocol):
    """Makes the encoder of one model; called once, when the model is wired."""

    def __call__(
        self, *, device: str, model: str, source: str, start: int, manifest: Manifest, threshold: float | None
    ) -> Payload:
        """See `JsonPayload`."""


class Convention(NamedTuple):
    """What a convention's file gives.

    Attributes:
        make: makes the encoder of one model.
        mark_delayed: the payload with the mark that it comes late from the outbox; None when the bytes are not of this
            convention. What is stored does not name its convention.
    """

    make: MakePayload
    mark_delayed: Callable[[bytes], bytes | None]


def convention(name: str) -> Convention:
    """The convention of this name, which is one of `CONVENTIONS`."""
    found: Convention = importlib.import_module(CONVENTIONS[name]).CONVENTION
    return found


def mark_delayed(payload: bytes) -> bytes:
    """The payload of a prediction that is delivered late from the outbox; unknown bytes stay as they are."""
    for name in CONVENTIONS:
        marked = convention(name).mark_delayed(payload)
        if marked is not None:
            return marked
    return payload


def prediction_id(device: str, model: str, start: int, prediction: Prediction) -> str:
    """The `id` that every convention gives a published prediction, as plain text."""
    key = "-" if prediction.key is None else prediction.key
    tail = prediction.identity if prediction.identity is not None else f"{start}/{prediction.seq}"
    return f"{device}/{model}/{key}/{tail}"


def can_alarm(table: ModelTable, manifest: Manifest) -> bool:
    """Whether its predictions have the member `alarm`, as `stream/decide.py` has it."""
    if manifest.task == "regression":
        return table.threshold is not None or manifest.output.threshold is not None
    return manifest.task == "anomaly" or (manifest.task in LABEL_TASKS and bool(table.alarm_labels))
