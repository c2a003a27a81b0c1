"""A pipeline with stand-ins for all that is around it, for tests of what becomes of its readings and receipts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np

from edge_runtime.bundle.model import Model, ModelError
from edge_runtime.bundle.open import open_bundle
from edge_runtime.config.tables import ModelTable, RepairTable
from edge_runtime.delivery.json_payload import JsonPayload
from edge_runtime.delivery.outbox import Outbox
from edge_runtime.readings import Batch, Receipt
from edge_runtime.stream.decide import Sequences
from edge_runtime.stream.pipeline import Pipeline
from edge_runtime.system.clock import Clock
from edge_runtime.system.counters import Counters
from edge_runtime.system.loop import Loop
from tests.support import builders
from tests.support.stepped import SteppedLoop

POISON = 666.0


class TakenPredictions:
    """Stands in for the outbox: keeps what it is offered, receipts and all."""

    def __init__(self) -> None:
        self.documents: list[dict[str, Any]] = []
        self.topics: list[str] = []
        self.streams: list[str] = []
        self.priorities: list[int] = []
        self.receipts: list[Receipt | None] = []

    def offer(self, stream: str, topic: str, payload: bytes, *, priority: int, receipt: Receipt | None) -> None:
        """As `Outbox.offer`."""
        self.documents.append(json.loads(payload))
        self.topics.append(topic)
        self.streams.append(stream)
        self.priorities.append(priority)
        self.receipts.append(receipt)


class ModelBench:
    """A pipeline with everything around it."""

    def __init__(
        self,
        draft: builders.Draft,
        folder: Path,
        *,
        loop: Loop | None = None,
        repair: RepairTable = RepairTable(),  # noqa: B008 - frozen
        channels: tuple[str, ...] | None = None,
        sequences: Sequences | None = None,
        **table: Any,
    ) -> None:
        model = Model(open_bundle(draft.save(folder / f"{draft.manifest['name']}.onnx")))
        config = msgspec.convert({"name": "m", "bundle": "m.onnx", "source": "s", "run": "loop"} | table, ModelTable)
        self.loop = loop or SteppedLoop().as_loop
        self.counters = Counters()
        self.taken = TakenPredictions()
        threshold = model.manifest.output.threshold
        self.pipeline = Pipeline(
            config,
            model,
            channels=channels or model.manifest.channel_names,
            repair=repair,
            payload=JsonPayload(
                device="d", model="m", source="s", start=1, manifest=model.manifest, threshold=threshold
            ),
            topic="edge/d/m/{key}",
            outbox=cast("Outbox", self.taken),
            loop=self.loop,
            clock=Clock(lambda: True),
            counters=self.counters,
            sequences=sequences,
        )
        self.pipeline.warm_up()

    def poison(self) -> None:
        """From now on the model fails on every window that holds 666."""
        model = self.pipeline.model
        call = model._call

        def fail(windows: Any, states: Any) -> Any:
            if (windows == POISON).any():
                raise ModelError("it cannot take this")
            return call(windows, states)

        model._call = fail  # type: ignore[method-assign]


class NumberedReceipts:
    """Receipts by number, and which of them were acknowledged."""

    def __init__(self, count: int) -> None:
        self.acknowledged: list[int] = []
        self.all = [Receipt(self._note(number)) for number in range(count)]

    def _note(self, number: int) -> Callable[[], None]:
        return lambda: self.acknowledged.append(number)

    def hand_over(self) -> None:
        """The source gives its own hold back, as it does when every model has had the batch."""
        for receipt in self.all:
            receipt.release()


def batch_of(
    rows: list[list[float]], receipts: NumberedReceipts | None = None, keys: list[str | None] | None = None
) -> Batch:
    """Readings a second apart, whose identities are their places."""
    count = len(rows)
    return Batch(
        "s",
        np.array(rows, np.float32),
        keys or [None] * count,
        [float(1_700_000_000 + i) for i in range(count)],
        [str(i) for i in range(count)],
        list(receipts.all) if receipts else [None] * count,
    )
