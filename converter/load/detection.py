"""Detectors: the layout of boxes and scores in their outputs, and suppression in numpy.

`converter/graph/suppress.py` does the same with ONNX operators; this module is its reference.
Boxes are suppressed class by class: of those that overlap more than `overlap` the one with the highest score stays. The
answer has `most` rows, highest scores first: `boxes` as left, top, right, bottom in the units of the model, `scores`
and `label`, with -1 for a row without a detection.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.spec import DetectionSpec, Spec
from edge_runtime.errors import CommandError
from edge_runtime.readings import Floats

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Detection:
    """The layout of a detector's outputs.

    Attributes:
        sources: one output with both, or that of the boxes and that of the scores.
        candidates: the number of boxes before suppression.
        classes: the number of score columns that count.
        turned: for each output, whether its candidates are the last axis.
        activation: turns the numbers into scores: none, sigmoid or softmax.
        rules: of the specification.
        notes: for the user.
    """

    sources: tuple[str, ...]
    candidates: int
    classes: tuple[int, ...]
    turned: tuple[bool, ...]
    activation: str
    rules: DetectionSpec
    notes: list[str] = field(default_factory=list)

    @property
    def most(self) -> int:
        """The number of rows of the answer."""
        return min(self.rules.most, self.candidates * len(self.classes))

    def found(self, arrays: Sequence[Array]) -> dict[str, Array]:
        """The detections in the model's outputs for n windows."""
        count = len(arrays[0])
        boxes, scores = self._parts(arrays)
        answer: dict[str, Array] = {
            "boxes": np.zeros((count, self.most, 4), np.float32),
            "scores": np.zeros((count, self.most), np.float32),
            "label": np.full((count, self.most), -1, np.int64),
        }
        for row in range(count):
            kept = [
                (float(scores[row, place, label]), label, place)
                for label in range(len(self.classes))
                for place in self._suppressed(boxes[row], scores[row, :, label])
            ]
            kept.sort(key=lambda item: (-item[0], item[1], item[2]))
            for index, (score, label, place) in enumerate(kept[: self.most]):
                answer["boxes"][row, index] = boxes[row, place]
                answer["scores"][row, index], answer["label"][row, index] = score, label
        return answer

    def _parts(self, arrays: Sequence[Array]) -> tuple[Floats, Floats]:
        """Corners `[n, candidates, 4]`, and scores `[n, candidates, classes]`."""
        count = len(arrays[0])
        tables = []
        for array, turned in zip(arrays, self.turned, strict=True):
            shape = (count, -1, self.candidates) if turned else (count, self.candidates, -1)
            table = array.reshape(shape).astype(np.float32)
            tables.append(table.transpose(0, 2, 1) if turned else table)
        boxes, scores = (tables[0][..., :4], tables[0][..., 4:]) if len(tables) == 1 else tables
        if self.activation == "sigmoid":
            scores = (1.0 / (1.0 + np.exp(-scores))).astype(np.float32)
        elif self.activation == "softmax":
            power = np.exp(scores - scores.max(axis=2, keepdims=True))
            scores = (power / power.sum(axis=2, keepdims=True)).astype(np.float32)
        if self.rules.objectness:
            scores = scores[..., :1] * scores[..., 1:]
        if self.rules.background:
            scores = scores[..., 1:]
        return corners(boxes, self.rules.boxes), scores.astype(np.float32)

    def _suppressed(self, boxes: Floats, scores: Floats) -> list[int]:
        """The remaining candidates of one class, the highest score first."""
        order = np.argsort(-scores, kind="stable")
        order = order[scores[order] > self.rules.threshold]
        kept: list[int] = []
        while len(order) and len(kept) < self.rules.most:
            best, order = int(order[0]), order[1:]
            kept.append(best)
            order = order[overlaps(boxes[best], boxes[order]) <= self.rules.overlap]
        return kept


def corners(boxes: Floats, kind: str) -> Floats:
    """Boxes as left, top, right, bottom."""
    one, two, three, four = (boxes[..., index] for index in range(4))
    half = np.float32(0.5)
    match kind:
        case "cxcywh":
            parts = [one - three * half, two - four * half, one + three * half, two + four * half]
        case "xywh":
            parts = [one, two, one + three, two + four]
        case "yxyx":
            parts = [two, one, four, three]
        case _:
            parts = [one, two, three, four]
    return np.stack(parts, axis=-1).astype(np.float32)


def overlaps(box: Floats, others: Floats) -> Floats:
    """The intersection over the union of one box with others."""
    box, others = _in_order(box), _in_order(others)
    left, top = np.maximum(box[0], others[:, 0]), np.maximum(box[1], others[:, 1])
    right, bottom = np.minimum(box[2], others[:, 2]), np.minimum(box[3], others[:, 3])
    common = np.maximum(right - left, 0) * np.maximum(bottom - top, 0)
    areas = (others[:, 2] - others[:, 0]) * (others[:, 3] - others[:, 1])
    union = (box[2] - box[0]) * (box[3] - box[1]) + areas - common
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(union > 0, common / union, 0), dtype=np.float32)


def _in_order(boxes: Floats) -> Floats:
    """Sort the corners of boxes, which `NonMaxSuppression` accepts in any order: the upper left one first."""
    one, other = boxes[..., :2], boxes[..., 2:]
    return np.concatenate([np.minimum(one, other), np.maximum(one, other)], axis=-1)


def find_detection(
    probe: dict[str, Array], floats: Sequence[str], stated: dict[str, str], spec: Spec, *, place: str
) -> Detection:
    """Find boxes and scores among the outputs.

    Args:
        probe: the model's outputs for a few windows.
        floats: its numeric outputs.
        stated: `boxes` and `scores` of the specification, with the outputs that they name.
        spec: the specification; the number of its labels is the number of classes.
        place: the file, for messages.

    Raises:
        CommandError: the sizes match no layout, or several.
    """
    rules = spec.detection or DetectionSpec()
    if not spec.labels:
        raise CommandError(f"{place}: labels: expected the names of the detector's classes, found none")
    columns = len(spec.labels) + int(rules.background) + int(rules.objectness)
    if stated and set(stated) != {"boxes", "scores"}:
        raise CommandError(
            f"{place}: [[output]]: expected the names 'boxes' and 'scores', with `tensor` for the file's own, "
            f"found {', '.join(stated)}"
        )
    one = spec.model.output
    sources = (one,) if one else tuple(stated[name] for name in ("boxes", "scores")) if stated else tuple(floats)
    if len(sources) == 1:
        sizes: tuple[int, ...] = (4 + columns,)
    elif len(sources) == 2:
        sizes = (4, columns)
        if not stated:
            sources = _boxes_first(probe, sources, sizes, place)
    else:
        raise CommandError(
            f"{place}: expected one output with boxes and scores, or one of each, found "
            f"{', '.join(sources) or 'none'}: name them in [[output]] as 'boxes' and 'scores', with `tensor`"
        )
    turned, counts = zip(
        *(_axis(probe[name], size, name, place) for name, size in zip(sources, sizes, strict=True)), strict=True
    )
    if len(set(counts)) != 1:
        raise CommandError(f"{place}: expected as many boxes as scores, found {counts[0]} and {counts[1]}")
    notes: list[str] = []
    activation: str | None = spec.model.activation
    if activation is None:
        activation = _activation(probe, sources, turned, counts[0])
        if activation != "none":
            notes.append(f"scores are no probabilities: {activation} is applied; [model] activation changes that")
    return Detection(sources, counts[0], tuple(range(len(spec.labels))), turned, activation, rules, notes)


def _boxes_first(
    probe: dict[str, Array], sources: tuple[str, ...], sizes: tuple[int, ...], place: str
) -> tuple[str, ...]:
    """The two outputs, the boxes first, if their sizes are unambiguous."""
    orders = [
        order
        for order in (sources, sources[::-1])
        if all(size in probe[name].shape[1:] for name, size in zip(order, sizes, strict=True))
    ]
    if len(orders) == 2:
        raise CommandError(
            f"{place}: expected sizes that tell boxes from scores, found {' and '.join(sources)} with an axis of "
            f"{sizes[0]} each: name them in [[output]] as 'boxes' and 'scores', with `tensor`"
        )
    return orders[0] if orders else sources


def _axis(array: Array, size: int, name: str, place: str) -> tuple[bool, int]:
    """Whether the candidates of an output are its last axis, and their number."""
    shape = [extent for extent in array.shape[1:] if extent != 1] or [1]
    if len(shape) == 1:
        shape = [1, *shape] if shape[0] == size else [shape[0], 1]
    fits = [shape[0] == size, shape[-1] == size] if len(shape) == 2 else [False, False]
    if fits == [True, True]:
        raise CommandError(
            f"{place}: {name}: expected one axis of {size}, found two in {list(array.shape[1:])}, so that boxes and "
            "candidates cannot be distinguished: export the model with another number of candidates"
        )
    if not any(fits):
        raise CommandError(
            f"{place}: {name}: expected an axis of {size} (boxes and classes of the specification), "
            f"found {list(array.shape[1:])}: correct labels, or [detection] objectness and background"
        )
    return (True, shape[1]) if fits[0] else (False, shape[0])


def _activation(probe: dict[str, Array], sources: Sequence[str], turned: Sequence[bool], count: int) -> str:
    array = probe[sources[-1]]
    table = (
        array.reshape(len(array), -1, count) if turned[-1] else array.reshape(len(array), count, -1).transpose(0, 2, 1)
    )
    scores = table[:, 4:] if len(sources) == 1 else table
    return "none" if ((scores >= 0) & (scores <= 1)).all() else "sigmoid"
