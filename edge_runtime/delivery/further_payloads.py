"""The further payload conventions of a model: each has topics below that of the prediction.

Guarantee: the reading of a prediction is acknowledged when every message of it is safe. Each convention is a separate
stream in the outbox, so that a refusal of its topics delays no other.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from edge_runtime.delivery.payloads import (
    Encoders,
    FlatPayload,
    Payload,
    PredictionTaker,
    convention,
    first_of,
    flat_convention,
)
from edge_runtime.readings import Prediction, Receipt


class ManyPayloads:
    """The further conventions of one model.

    Args:
        whole: the conventions of one message a prediction, by the last level of their topic.
        flat: the conventions of several.
    """

    def __init__(self, whole: dict[str, Payload], flat: Sequence[tuple[str, FlatPayload]]) -> None:
        self._whole = whole
        self._flat = flat

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
        """Give the messages of a prediction to the outbox; each takes a hold of its own on the receipt.

        Args:
            outbox: takes the messages.
            prediction: their content.
            address: its stream in the outbox, and its topic.
            priority: as of the prediction.
            receipt: of its reading, held by the caller for the prediction itself.
            synchronised: the clock of the device is set.
        """
        stream, topic = address
        for name, level, payload in list(self._messages(prediction, synchronised=synchronised)):
            if receipt is not None:
                receipt.hold()
            outbox.offer(f"{name}:{stream}", f"{topic}/{level}", payload, priority=priority, receipt=receipt)

    def _messages(self, prediction: Prediction, *, synchronised: bool) -> Iterator[tuple[str, str, bytes]]:
        for name, payload in self._whole.items():
            yield name, name, payload.encode(prediction, synchronised=synchronised)
        for name, flat in self._flat:
            for level, part in flat.encode_parts(prediction, synchronised=synchronised):
                yield name, level, part


def encoders_of(names: Sequence[str], facts: dict[str, Any], watcher: FlatPayload | None = None) -> Encoders:
    """The encoders of a list of conventions.

    Args:
        names: the conventions.
        facts: the arguments of their makers.
        watcher: gets the predictions if no convention writes them as one message.
    """
    first = first_of(names)
    flat = [(name, found.make(**facts)) for name in names if (found := flat_convention(name)) is not None]
    flat_names = {name for name, _ in flat}
    if first is None and watcher is not None:
        flat.append(("", watcher))
    whole = {name: convention(name).make(**facts) for name in names if name != first and name not in flat_names}
    further = ManyPayloads(whole, flat) if whole or flat else None
    return Encoders(None if first is None else convention(first).make(**facts), further)
