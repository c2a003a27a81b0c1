"""What stands behind a source where its readings are accounted for: a model that answers with its window, and a door.

Everything between is real: contract, windows, receipts, numbers and payload.
"""

import json
from collections import deque
from types import SimpleNamespace
from typing import Any, cast

from edge_runtime.bundle.manifest import Channel, Input, Manifest, Output, Target, Window
from edge_runtime.bundle.model import Model, Scores
from edge_runtime.config.tables import ModelTable, RepairTable
from edge_runtime.delivery.json_payload import JsonPayload
from edge_runtime.delivery.outbox import Outbox
from edge_runtime.readings import Floats, Receipt
from edge_runtime.stream.decide import Sequences
from edge_runtime.stream.pipeline import Pipeline
from edge_runtime.system.clock import Clock
from edge_runtime.system.counters import Counters
from edge_runtime.system.loop import Loop

LENGTH = 3
RATE_HZ = 1.0  # of the model; the sensors keep to it, or do not
MAX_GAP_S = 1e6  # longer than any course by the monotonic clock, and shorter than the steps of the wall clock


class EchoModel:
    """A model whose answer is its own window."""

    def __init__(self, stride: int, length: int = LENGTH, rate_hz: float = RATE_HZ) -> None:
        self.manifest = Manifest(
            name="echo",
            version="1.0.0",
            task="regression",
            input=Input(channels=(Channel(name="v"),), window=Window(length=length, stride=stride, rate_hz=rate_hz)),
            output=Output(targets=tuple(Target(name=f"t{i}") for i in range(length))),
        )
        self.bundle = SimpleNamespace(digest="echo")

    def run(self, windows: Floats, _carries: object = None) -> Scores:
        return Scores(value=windows[:, :, 0].copy())

    run_borrowed = run


class OutboxDoor:
    """Keeps predictions until they are safe, which a rule decides."""

    def __init__(self) -> None:
        self.made: list[tuple[str, tuple[float, ...], str]] = []
        self.unsafe: deque[Receipt | None] = deque()

    def offer(self, stream: str, topic: str, payload: bytes, *, priority: int, receipt: Receipt | None) -> None:
        """As `Outbox.offer`."""
        document = json.loads(payload)
        self.made.append((document["key"], tuple(document["values"].values()), document["id"]))
        self.unsafe.append(receipt)

    def safe(self, count: int) -> None:
        for _ in range(min(count, len(self.unsafe))):
            receipt = self.unsafe.popleft()
            if receipt is not None:
                receipt.release()


def make_pipeline(
    loop: Loop,
    outbox: OutboxDoor,
    *,
    stride: int,
    acknowledge: str,
    start: int,
    sequences: Sequences,
    counters: Counters | None = None,
    on_rate: str = "warn",
    max_keys: int = 10_000,
) -> Pipeline:
    """A real pipeline of that model."""
    model = EchoModel(stride)
    return Pipeline(
        ModelTable(
            name="m",
            bundle="m.onnx",
            source="s",
            run="loop",
            acknowledge=cast("Any", acknowledge),
            on_rate=cast("Any", on_rate),
            max_gap=MAX_GAP_S,
            max_keys=max_keys,
        ),
        cast("Model", model),
        channels=("v",),
        repair=RepairTable(),
        payload=JsonPayload(device="d", model="m", source="s", start=start, manifest=model.manifest, threshold=None),
        topic="edge/d/m/{key}",
        outbox=cast("Outbox", outbox),
        loop=loop,
        clock=Clock(lambda: True),
        counters=counters or Counters(),
        sequences=sequences,
    )
