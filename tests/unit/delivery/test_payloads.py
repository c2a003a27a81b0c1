"""Payload conventions: each is found by its name, and a late prediction is marked by the convention that wrote it."""

import json
from typing import Any

import msgspec
import numpy as np
import pytest

from edge_runtime.bundle.manifest import Input, Manifest, Output, Target
from edge_runtime.delivery.payloads import CONVENTIONS, convention, mark_delayed
from edge_runtime.readings import Prediction

READERS: dict[str, Any] = {"json": json.loads, "msgpack": msgspec.msgpack.decode}
OUTPUTS: dict[str, tuple[Output, dict[str, Any]]] = {
    "classification": (Output(labels=("a", "b")), {"label": "b", "scores": np.array([0.027, 0.973], np.float32)}),
    "regression": (Output(targets=(Target(name="t"),)), {"values": np.array([0.1], np.float32)}),
    "anomaly": (Output(threshold=0.5), {"score": np.float32(0.7), "anomaly": True}),
}


@pytest.mark.parametrize("task", list(OUTPUTS))
@pytest.mark.parametrize("name", list(CONVENTIONS))
@pytest.mark.parametrize("synchronised", [True, False])
def test_every_convention_says_the_same(name: str, task: Any, synchronised: bool) -> None:
    """The members, their values and the mark of a late one are the same, whatever the bytes look like."""
    output, fields = OUTPUTS[task]
    manifest = Manifest(name="m", version="1.0.0", task=task, input=Input(), output=output)
    facts: dict[str, Any] = {"device": "d", "model": "m", "source": "s", "start": 7, "manifest": manifest}
    prediction = Prediction(key="k", time=1763896744.25, seq=3, identity=None, **fields)
    encode = convention(name).make(**facts, threshold=0.5).encode
    reference = json.loads(
        convention("json").make(**facts, threshold=0.5).encode(prediction, synchronised=synchronised)
    )
    payload = encode(prediction, synchronised=synchronised)
    assert READERS[name](payload) == reference
    assert READERS[name](mark_delayed(payload)) == reference | {"delayed": True}


@pytest.mark.parametrize("payload", [b"", b"text", b"\xff\x00", b"[1]"])
def test_what_no_convention_knows_stays_as_it_is(payload: bytes) -> None:
    """A row of an outbox whose convention is gone is delivered without the mark, and not changed."""
    assert mark_delayed(payload) == payload
