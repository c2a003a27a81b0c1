"""The answers of the tasks tensor, embedding, detection and multilabel as columns of an output file.

Of a multi-label model each label has two columns: `present_LABEL` (true or false) and `score_LABEL`. In text each other
answer is JSON: a tensor as nested rows of numbers, detections as a list of objects, as subscribers read them. NumPy's
files hold the arrays themselves (`boxes`, `scores` and `label` of a detection, -1 where there is none), Parquet holds
lists: a tensor row by row, with its sizes in the field's metadata.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_runtime.bundle.manifest import Manifest, output_ports
from edge_runtime.bundle.model import NAMED_TASKS

DETECTIONS = "detections"
_WORDS = {True: "true", False: "false"}


def is_named(manifest: Manifest) -> bool:
    """Whether a model's answers are tensors."""
    return manifest.task in NAMED_TASKS


def column_names(manifest: Manifest) -> list[str]:
    """The columns in text and in Parquet."""
    if manifest.task == "multilabel":
        return [f"{kind}_{label}" for kind in ("present", "score") for label in manifest.output.labels]
    return [DETECTIONS] if manifest.task == "detection" else list(output_ports(manifest))


def texts(manifest: Manifest, tensors: dict[str, NDArray[Any]]) -> dict[str, list[str]]:
    """Every column as JSON, a text a window."""
    if manifest.task == "detection":
        quoted = [msgspec.json.encode(label).decode() for label in manifest.output.labels]
        return {DETECTIONS: [_detections(row, quoted) for row in _rows(tensors)]}
    if manifest.task == "multilabel":
        return {
            name: [_WORDS[yes] for yes in column.tolist()] if column.dtype == np.bool_ else list(map(str, column))
            for name, column in by_label(manifest, tensors).items()
        }
    return {name: [_nested(window) for window in part] for name, part in tensors.items()}


def numpy_types(manifest: Manifest) -> dict[str, "np.dtype[Any]"]:
    """The columns of NumPy's files, with the sizes of one window."""
    if manifest.task == "multilabel":
        return {name: np.dtype("?" if name.startswith("present_") else "<f4") for name in column_names(manifest)}
    return {
        name: np.dtype(("<i8" if port.dtype == "int64" else "<f4", port.shape))
        for name, port in output_ports(manifest).items()
    }


def arrow_fields(manifest: Manifest, pa: Any) -> list[Any]:
    """The columns of a Parquet file."""
    if manifest.task == "detection":
        item = pa.struct(
            [pa.field("label", pa.string()), pa.field("score", pa.float32()), pa.field("box", pa.list_(pa.float32()))]
        )
        return [pa.field(DETECTIONS, pa.list_(item))]
    if manifest.task == "multilabel":
        names = column_names(manifest)
        count = len(manifest.output.labels)
        return [pa.field(name, pa.bool_() if place < count else pa.float32()) for place, name in enumerate(names)]
    kinds = {"float32": pa.float32(), "int64": pa.int64()}
    return [
        pa.field(name, pa.list_(kinds[port.dtype]), metadata={"shape": ",".join(map(str, port.shape))})
        for name, port in output_ports(manifest).items()
    ]


def arrow_arrays(manifest: Manifest, tensors: dict[str, NDArray[Any]], fields: Sequence[Any], pa: Any) -> list[Any]:
    """Some windows as the columns of `fields`."""
    if manifest.task == "detection":
        labels = manifest.output.labels
        rows = [
            [{"label": labels[label], "score": score, "box": box} for label, score, box in row]
            for row in _rows(tensors)
        ]
        return [pa.array(rows, fields[0].type)]
    if manifest.task == "multilabel":
        columns = by_label(manifest, tensors).values()
        return [pa.array(column, field.type) for column, field in zip(columns, fields, strict=True)]
    arrays = []
    for field in fields:
        flat = tensors[field.name].reshape(len(tensors[field.name]), -1)
        offsets = pa.array(np.arange(len(flat) + 1, dtype=np.int32) * flat.shape[1])
        arrays.append(pa.ListArray.from_arrays(offsets, pa.array(flat.ravel(), field.type.value_type)))
    return arrays


def by_label(manifest: Manifest, tensors: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The columns of a multi-label model."""
    columns = [*(tensors["labels"] > 0).T, *tensors["scores"].T]
    return dict(zip(column_names(manifest), columns, strict=True))


def _rows(tensors: dict[str, NDArray[Any]]) -> list[list[tuple[int, Any, Any]]]:
    """Of each window the detections: label, score, box."""
    columns = (tensors["label"].tolist(), tensors["scores"], tensors["boxes"])
    return [
        [(label, score, box) for label, score, box in zip(*row, strict=True) if label >= 0]
        for row in zip(*columns, strict=True)
    ]


def _detections(row: list[tuple[int, Any, Any]], quoted: Sequence[str]) -> str:
    found = ",".join(
        f'{{"label":{quoted[label]},"score":{score!s},"box":[{",".join(map(str, box))}]}}' for label, score, box in row
    )
    return f"[{found}]"


def _nested(part: Any) -> str:
    if not np.ndim(part):
        return str(part)
    return f"[{','.join(map(_nested, part))}]" if part.ndim > 1 else f"[{','.join(map(str, part))}]"
