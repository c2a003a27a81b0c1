"""Every kind of bundle in the tests, and how its windows and scores look in every way of deploying it."""

import json
from collections.abc import Callable
from typing import Any

from edge_runtime.bundle.manifest import Manifest
from edge_runtime.readings import Floats
from tests.support import builders


def sensitive(draft: builders.Draft) -> builders.Draft:
    """Say in the manifest what the converter would have measured: the kernel of its mean goes by the batch size."""
    draft.manifest["batch_invariant"] = False
    return draft


KINDS: dict[str, Callable[[], builders.Draft]] = {
    "classification": builders.classification,
    "classification of windows": lambda: builders.classification(length=4),
    "many classes": lambda: builders.classification(length=7, labels=[f"c{i}" for i in range(9)]),
    "regression": lambda: builders.regression(targets=("power", "heat")),
    "regression of windows": lambda: builders.regression(length=5),
    "anomaly": builders.anomaly,
    "anomaly of windows": lambda: sensitive(builders.anomaly(length=6)),
    "memory": builders.stateful,
    "frames": builders.frame,
    "tokens": builders.tokens,
}


def numbers(document: dict[str, Any], manifest: Manifest) -> list[float]:
    """The scores in a prediction as subscribers see it."""
    if manifest.task == "classification":
        return [document["scores"][label] for label in manifest.output.labels]
    if manifest.task == "regression":
        return [document["values"][target.name] for target in manifest.output.targets]
    return [document["score"]]


def row_numbers(row: dict[str, Any], manifest: Manifest) -> list[float]:
    """The scores in a row of a batch."""
    if manifest.task == "classification":
        return [row[f"score_{label}"] for label in manifest.output.labels]
    if manifest.task == "regression":
        return [row[target.name] for target in manifest.output.targets]
    return [row["score"]]


def named(window: Floats, manifest: Manifest) -> bytes:
    """A window as a request by name."""
    if manifest.input.shape:
        return json.dumps({"frame": window.tolist()}).encode()
    rows = [dict(zip(manifest.channel_names, row, strict=True)) for row in window.tolist()]
    return json.dumps(rows if len(rows) > 1 else rows[0]).encode()
