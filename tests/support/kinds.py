"""Every kind of bundle in the tests, and how its windows and scores look in every way of deploying it."""

import base64
import json
from collections.abc import Callable
from typing import Any

import numpy as np

from edge_runtime.bundle.manifest import Manifest, output_ports
from edge_runtime.bundle.model import NAMED_TASKS
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
    "tensors": builders.tensors,
    "embedding": lambda: builders.tensors(name="vector", task="embedding"),
    "detection": builders.detection,
    "multilabel": builders.multilabel,
}


def numbers(document: dict[str, Any], manifest: Manifest) -> list[float]:
    """The scores in a prediction as subscribers see it."""
    if manifest.task == "classification":
        return [document["scores"][label] for label in manifest.output.labels]
    if manifest.task == "regression":
        return [document["values"][target.name] for target in manifest.output.targets]
    if manifest.task == "multilabel":
        there = [float(label in document["present"]) for label in manifest.output.labels]
        return [*there, *(document["labels"][label] for label in manifest.output.labels)]
    if manifest.task == "embedding":
        return list(document["embedding"])
    if manifest.task == "detection":
        return dense(document["detections"], manifest)
    if manifest.task == "tensor":
        return [number for port in output_ports(manifest) for number in unpacked(document["tensors"][port])]
    return [document["score"]]


def unpacked(tensor: dict[str, Any]) -> list[float]:
    """The numbers of a published tensor, as a subscriber reads them."""
    data = base64.b64decode(tensor["data"], validate=True)
    found = np.frombuffer(data, {"FP32": "<f4", "INT64": "<i8"}[tensor["datatype"]])
    assert found.size == np.prod(tensor["shape"])
    return [float(number) for number in found]


def dense(detections: list[dict[str, Any]], manifest: Manifest) -> list[float]:
    """Detections as the rows of their outputs: boxes, scores, labels, nothing where there is none."""
    most = manifest.output.detections or 0
    missing = [0.0] * (most - len(detections))
    boxes = [number for each in detections for number in each["box"]] + 4 * missing
    labels = [float(manifest.output.labels.index(each["label"])) for each in detections]
    return [*boxes, *(each["score"] for each in detections), *missing, *labels, *(-1.0 for _ in missing)]


def dense_outputs(outputs: dict[str, Any], manifest: Manifest) -> Floats:
    """The outputs of a graph of tensors as `numbers` gives them, a row a window; what is no detection is nothing."""
    count = len(next(iter(outputs.values())))
    parts = {name: outputs[name] for name in output_ports(manifest)}
    if manifest.task == "detection":
        order = np.argsort(parts["label"] < 0, axis=1, kind="stable")  # those that are there come first
        there = np.take_along_axis(parts["label"], order, axis=1) >= 0
        parts = {
            "boxes": np.take_along_axis(parts["boxes"], order[..., None], axis=1) * there[..., None],
            "scores": np.take_along_axis(parts["scores"], order, axis=1) * there,
            "label": np.take_along_axis(parts["label"], order, axis=1),
        }
    return np.concatenate([part.reshape(count, -1).astype(np.float32) for part in parts.values()], axis=1)


def row_numbers(row: dict[str, Any], manifest: Manifest) -> list[float]:
    """The scores in a row of a batch."""
    if manifest.task == "classification":
        return [row[f"score_{label}"] for label in manifest.output.labels]
    if manifest.task == "regression":
        return [row[target.name] for target in manifest.output.targets]
    if manifest.task == "detection":
        return dense(row["detections"], manifest)
    if manifest.task == "multilabel":
        return [float(row[f"{kind}_{label}"]) for kind in ("present", "score") for label in manifest.output.labels]
    if manifest.task in NAMED_TASKS:
        return [float(number) for name in output_ports(manifest) for number in np.ravel(row[name])]
    return [row["score"]]


def named(window: Floats, manifest: Manifest) -> bytes:
    """A window as a request by name."""
    if manifest.input.shape:
        return json.dumps({"frame": window.tolist()}).encode()
    rows = [dict(zip(manifest.channel_names, row, strict=True)) for row in window.tolist()]
    return json.dumps(rows if len(rows) > 1 else rows[0]).encode()
