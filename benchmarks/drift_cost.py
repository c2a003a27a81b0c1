"""What the watch over drift costs beside the pipeline that it belongs to: `python -m benchmarks.drift_cost`.

One pipeline, from a JSON frame to the payload of its prediction, without sockets, with and without the watch in turns,
so that a machine whose speed changes favours neither. Readings come one by one, and 64 at a time as from a backlog.
"""

import json
import tempfile
import time
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np

from benchmarks.models import write_bundle
from benchmarks.names import CHANNELS
from converter.reference import reference_of
from edge_runtime.bundle.manifest import DriftLimits, DriftReference, Manifest
from edge_runtime.bundle.model import Model
from edge_runtime.bundle.open import open_bundle
from edge_runtime.config.tables import ModelTable, RepairTable
from edge_runtime.delivery.json_payload import JsonPayload
from edge_runtime.delivery.outbox import Outbox
from edge_runtime.drift.monitor import Monitor
from edge_runtime.readings import Batch, Receipt
from edge_runtime.stream.pipeline import Pipeline
from edge_runtime.system.clock import Clock
from edge_runtime.system.counters import Counters
from edge_runtime.system.loop import Loop

TURNS, READINGS = 10, 6400


class _Taker:
    """Takes predictions, as the outbox does."""

    def offer(self, stream: str, topic: str, payload: bytes, *, priority: int, receipt: Receipt | None) -> None:
        """As `Outbox.offer`."""


def watched(manifest: Manifest, block: int) -> Manifest:
    """The manifest with a reference and limits, as a build with data writes them."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(4000, len(CHANNELS))).astype(np.float32)
    found = tuple(
        msgspec.structs.replace(
            each, run=3,
            limits=DriftLimits(each.mean, each.std / block**0.5, 0.1, 0.1, 1.0, 50.0, 1.0, 50.0, 5.0, each.counts),
        )
        for each in reference_of(values, CHANNELS)
    )  # fmt: skip
    scores = reference_of(rng.beta(2, 2, (4000, len(manifest.output.labels))), manifest.output.labels)
    about = DriftReference(block=block, score_block=block, rate_hz=100.0)
    return msgspec.structs.replace(manifest, reference=found, score_reference=scores, drift=about)


def main() -> None:
    """Measure, and print a line for each way in which readings come."""
    with tempfile.TemporaryDirectory() as folder:
        model = Model(open_bundle(write_bundle(Path(folder) / "mlp.onnx")))
        table = msgspec.convert({"name": "m", "bundle": "m.onnx", "source": "s", "run": "loop"}, ModelTable)
        pipeline = Pipeline(
            table, model, channels=CHANNELS, repair=RepairTable(), topic="edge/d/m/{key}",
            payload=JsonPayload(device="d", model="m", source="s", start=1, manifest=model.manifest, threshold=None),
            outbox=cast("Outbox", _Taker()), loop=Loop(), clock=Clock(lambda: True), counters=Counters(),
        )  # fmt: skip
        pipeline.warm_up()
        rng = np.random.default_rng(1)
        values = rng.normal(size=(READINGS, len(CHANNELS))).astype(np.float32)
        frames = [json.dumps(dict(zip(CHANNELS, map(float, row), strict=True))) for row in values]
        print("| block | together | without, us a reading | with | more |\n|---|---|---|---|---|")
        for block in (128, 512, 2048):
            monitor = Monitor(watched(model.manifest, block), is_recorded=True)
            for together in (1, 64):
                spent: dict[bool, float] = {True: 0.0, False: 0.0}
                for turn in range(2 * TURNS):
                    pipeline.drift = monitor if turn % 2 else None
                    spent[bool(turn % 2)] += _turn(pipeline, values, frames, together)
                without, more = (1e6 * spent[each] / TURNS / READINGS for each in (False, True))
                print(f"| {block} | {together} | {without:.1f} | {more:.1f} | {more / without - 1:.1%} |", flush=True)


def _turn(pipeline: Pipeline, values: Any, frames: list[str], together: int) -> float:
    """CPU seconds for all readings once."""
    keys: list[str | None] = [None] * together
    nothing: list[Any] = [None] * together
    began = time.process_time()
    for start in range(0, READINGS, together):
        for frame in frames[start : start + together]:
            msgspec.json.decode(frame)
        times = [float(row) / 100.0 for row in range(start, start + together)]
        pipeline.accept(
            Batch("s", values[start : start + together], keys, times, nothing, nothing, 0.0, own_times=True)
        )
    return time.process_time() - began


if __name__ == "__main__":
    main()
