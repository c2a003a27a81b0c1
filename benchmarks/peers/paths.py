"""The two pure paths between the wires, alone in a process, to be counted instruction by instruction.

Usage: paths.py decode|encode BATCH ROUNDS. `decode` is frame -> reading -> window -> tensor, `encode` is scores ->
decision -> payload, both by the runtime's own stages and without any I/O.
"""

import random
import sys
from collections.abc import Callable

import numpy as np

from benchmarks.load import reading
from benchmarks.names import CHANNELS, LABELS
from edge_runtime.bundle.manifest import Channel, Input, Manifest, Output
from edge_runtime.bundle.model import Scores
from edge_runtime.config.load import ModelTable
from edge_runtime.delivery.json_payload import JsonPayload
from edge_runtime.stream.codecs import make_decoder
from edge_runtime.stream.decide import Decider
from edge_runtime.stream.windows import Windows
from edge_runtime.system.counters import Counters

TIME = 1763896744.123456


def decode_path(batch: int) -> Callable[[], None]:
    """Decode one wake-up's frames and fill the windows of a model that takes single readings."""
    generator = random.Random(3)
    frames = [reading(generator) for _ in range(batch)]
    decoder = make_decoder("json", CHANNELS)
    windows = Windows((1, len(CHANNELS)), length=1, stride=1)
    counters = Counters()
    times = [TIME] * batch

    def once() -> None:
        decoded = decoder.decode(frames, counters)
        windows.push(decoded.values, decoded.keys, times, 0.0)

    return once


def encode_path(batch: int) -> Callable[[], None]:
    """Judge one call's scores and make the payloads."""
    manifest = Manifest(
        name="mlp",
        version="1.0.0",
        task="classification",
        input=Input(channels=tuple(Channel(name=name) for name in CHANNELS)),
        output=Output(labels=LABELS),
    )
    decider = Decider(manifest, ModelTable(name="mlp", bundle="mlp.onnx", source="machine"))
    payload = JsonPayload(device="bench", model="mlp", source="machine", start=1, manifest=manifest, threshold=None)
    table = np.random.default_rng(3).dirichlet(np.ones(len(LABELS)), batch).astype(np.float32)
    scores = Scores(label=table.argmax(axis=1), scores=table)

    def once() -> None:
        for row in range(batch):
            prediction = decider.decide(scores, row, None, TIME)
            if prediction is not None:
                payload.encode(prediction)

    return once


def main(name: str, batch: int, rounds: int) -> None:
    """Run one path `rounds` times."""
    once = {"decode": decode_path, "encode": encode_path}[name](batch)
    for _ in range(rounds):
        once()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
