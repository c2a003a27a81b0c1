"""Tasks whose answers are tensors: the comparison of two answers, and the metric of a form.

A tensor is compared number by number, on the scale of its index along the shortest axis (of 84 x 8400: each of the 84
quantities); in a small tensor each number has its own scale. Each detection must be found in the other answer, with its
label, its place and its score. Pure.

Weak point: rounding decides about detections just at the threshold or at the allowed overlap. A few of them count as
borderline, not as faults.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from converter.fidelity import SCORE_TOLERANCE, Difference, Fidelity
from converter.load.detection import overlaps
from converter.load.source import Answer
from edge_runtime.bundle.manifest import Task

MOST_NUMBERS = 8_000_000  # of all answers to the evaluation rows: 32 MB a form, of which there are a dozen
LEAST_ROWS = 10
_FEW_NUMBERS = 4096  # numbers of a tensor, up to which each has its own scale
_OF_SPREAD, _OF_LARGEST = 1e-4, 1e-6  # as for the values of a regression
_SAME_PLACE = 0.99  # intersection over union of two equal boxes
_FOUND = 0.5  # of a box that counts as found in the metric, the usual value for detectors
_BORDERLINE_SHARE = 0.01

Array = NDArray[np.float64]


def rows_to_judge(numbers: int, rows: int) -> int:
    """The number of evaluation rows of a model with so many numbers in each answer."""
    return min(rows, max(LEAST_ROWS, MOST_NUMBERS // max(1, numbers)))


def metric_of(task: Task) -> str:
    """The name of a task's metric; truth is not read for these tasks."""
    return {"detection": "detections as the source's (F1)", "embedding": "cosine with the source's"}.get(
        task, "R2 against the source"
    )


def worth(answer: Answer, source: Answer, task: Task) -> tuple[float, int, Array]:
    """The metric, the number of differing rows, and the largest difference of each row."""
    one, other = answer.tensors(), source.tensors()
    if task == "detection":
        pairs = [_matched(a, b, _FOUND) for a, b in zip(_detections(answer), _detections(source), strict=True)]
        both = sum(found for found, _, _ in pairs)
        whole = sum(one_count + other_count for _, one_count, other_count in pairs)
        differing = sum(found != a or found != b for found, a, b in pairs)
        gap = np.abs(np.sort(one["scores"], axis=1) - np.sort(other["scores"], axis=1)).max(axis=1, initial=0.0)
        return (2.0 * both / whole if whole else 1.0), differing, gap.astype(np.float64)
    gaps, parts = np.zeros(len(next(iter(other.values())))), []
    for name, expected in other.items():
        found = one[name].reshape(len(gaps), -1).astype(np.float64)
        right = expected.reshape(len(gaps), -1).astype(np.float64)
        with np.errstate(invalid="ignore"):
            off = np.abs(found - right)
        gaps = np.maximum(gaps, np.where(np.isfinite(off), off, np.inf).max(axis=1, initial=0.0))
        parts.append(_cosine(found, right) if task == "embedding" else _r_squared(found, right, expected.shape[1:]))
    return float(np.mean(parts)), 0, gaps


def compare_named(found: Answer, source: Answer, task: Task, labels: Sequence[str] = ()) -> Fidelity:
    """Compare every tensor, or every detection, with the source's."""
    rows = len(next(iter(source.tensors().values())))
    off = _missed(found, source, labels) if task == "detection" else _off(found, source)
    faults: dict[int, Difference] = {}
    for difference in off:
        faults.setdefault(difference.row, difference)
    suspects = np.array(sorted(faults), dtype=np.int64)
    nothing = suspects[:0]
    if not len(suspects):
        return Fidelity(nothing, nothing, None, rows)
    steps = task == "detection" or all(part.dtype == np.int64 for part in source.tensors().values())
    if steps and len(suspects) <= max(1, int(_BORDERLINE_SHARE * rows)):
        return Fidelity(nothing, suspects, None, rows)
    return Fidelity(suspects, nothing, faults[int(suspects[0])], rows)


def _off(found: Answer, source: Answer) -> Iterator[Difference]:
    """The first number of each row whose difference exceeds rounding."""
    for name, expected in source.tensors().items():
        flat, other = (part.reshape(len(part), -1).astype(np.float64) for part in (expected, found.tensors()[name]))
        tolerance = _tolerance(flat, expected.shape[1:]) if expected.dtype.kind == "f" else np.zeros(1)
        with np.errstate(invalid="ignore"):
            bad = np.abs(flat - other) > tolerance
        bad |= np.isfinite(flat) != np.isfinite(other)
        for row in np.flatnonzero(bad.any(axis=1)).tolist():
            place = int(np.flatnonzero(bad[row])[0])
            index = [int(at) for at in np.unravel_index(place, expected.shape[1:] or (1,))]
            yield Difference(row, f"tensor {name!r} at {index}", f"{flat[row, place]:.6g}", f"{other[row, place]:.6g}")


def _tolerance(flat: Array, shape: tuple[int, ...]) -> Array:
    """The tolerance of each number of a row."""
    finite = np.where(np.isfinite(flat), flat, 0.0)
    low, high = finite.min(axis=0), finite.max(axis=0)
    largest = np.abs(finite).max(axis=0)
    if finite.shape[1] > _FEW_NUMBERS or len(finite) < LEAST_ROWS:
        axis = int(np.argmin(shape)) if shape else 0
        others = tuple(each for each in range(len(shape)) if each != axis)
        low = np.broadcast_to(low.reshape(shape).min(axis=others, keepdims=True), shape).reshape(-1)
        high = np.broadcast_to(high.reshape(shape).max(axis=others, keepdims=True), shape).reshape(-1)
        largest = np.broadcast_to(largest.reshape(shape).max(axis=others, keepdims=True), shape).reshape(-1)
    return np.asarray(np.maximum(_OF_SPREAD * (high - low), _OF_LARGEST * largest) + 1e-30, dtype=np.float64)


def _missed(found: Answer, source: Answer, labels: Sequence[str]) -> Iterator[Difference]:
    """The first detection of each row that only one of the answers has."""
    for row, (one, other) in enumerate(zip(_detections(found), _detections(source), strict=True)):
        same = _same(one, other)
        for mine, seen, whose in ((other, same.any(axis=0), "source"), (one, same.any(axis=1), "found")):
            missing = np.flatnonzero(~seen)
            if not len(missing):
                continue
            place = int(missing[0])
            name = labels[mine.label[place]] if labels else mine.label[place]
            text = f"{name} {mine.scores[place]:.3f} at {[round(float(x), 2) for x in mine.boxes[place]]}"
            yield Difference(
                row, "detection", text if whose == "source" else "none", "none" if whose == "source" else text
            )


class _Detected(NamedTuple):
    """The detections of one row."""

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    label: NDArray[np.int64]


def _same(one: _Detected, other: _Detected) -> NDArray[np.bool_]:
    """The pairs of detections of two rows with equal label, score within its tolerance, and place."""
    same = one.label[:, None] == other.label
    same &= np.abs(one.scores[:, None] - other.scores) <= SCORE_TOLERANCE
    close = np.isclose(one.boxes[:, None], other.boxes, rtol=1e-4, atol=1e-4).all(axis=2)
    return np.asarray(same & (close | (_overlaps(one, other) >= _SAME_PLACE)), dtype=np.bool_)


def _overlaps(one: _Detected, other: _Detected) -> NDArray[np.float32]:
    table = np.zeros((len(one.label), len(other.label)), np.float32)
    for place, box in enumerate(one.boxes):
        table[place] = overlaps(box, other.boxes)
    return table


def _detections(answer: Answer) -> Iterator[_Detected]:
    """The detections of each row."""
    tensors = answer.tensors()
    for boxes, scores, label in zip(tensors["boxes"], tensors["scores"], tensors["label"], strict=True):
        there = label >= 0
        yield _Detected(boxes[there], scores[there], label[there])


def _matched(one: _Detected, other: _Detected, least: float) -> tuple[int, int, int]:
    """The number of pairs of a row, the best overlap first, and the number of detections in each answer."""
    table = np.where(one.label[:, None] == other.label, _overlaps(one, other), 0.0)
    found = 0
    while table.size and table.max() >= least:
        row, column = np.unravel_index(int(table.argmax()), table.shape)
        table[row], table[:, column] = 0.0, 0.0
        found += 1
    return found, len(one.label), len(other.label)


def _cosine(found: Array, right: Array) -> float:
    length = np.linalg.norm(found, axis=1) * np.linalg.norm(right, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = (found * right).sum(axis=1) / length
    return float(np.where(length > 0, cosine, (found == right).all(axis=1)).mean())


def _r_squared(found: Array, right: Array, shape: tuple[int, ...]) -> float:
    """R2 over all numbers that share a scale, averaged over the scales."""
    axis = int(np.argmin(shape)) if shape else 0
    tables = [
        np.moveaxis(part.reshape(len(part), *(shape or (1,))), axis + 1, 0).reshape((shape or (1,))[axis], -1)
        for part in (found, right)
    ]
    rest = ((tables[0] - tables[1]) ** 2).sum(axis=1)
    total = ((tables[1] - tables[1].mean(axis=1, keepdims=True)) ** 2).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        scores = np.where(total > 0, 1.0 - rest / total, np.isclose(rest, 0.0))
    return float(np.where(np.isfinite(scores), scores, -1e9).mean())
