"""Uncertainty of a bundle: sets, intervals and calibrated scores, calibrated on held-out rows and checked on others.

Split-conformal prediction. For n calibration rows and the requested coverage c:

    set        least = the k-th smallest score of the right label, k = floor((n + 1)(1 - c))
    interval   half  = the k-th largest |value - truth| of a target, k = floor((n + 1)(1 - c))

A new row, exchangeable with these, is inside with a probability of at least c, and of at most c + 1/(n + 1) where no
two scores are equal. Scores become probabilities by isotonic regression (pool adjacent violators) over bins of equal
counts.

Guarantee: no row both calibrates and checks, and both use the kept form, quantised or not. Weak points: whether the
model was trained on these rows cannot be detected here, so every build prints a warning; consecutive rows are not
independent, so that coverage varies between blocks by more than its interval.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.evaluate import Truth
from converter.load.source import Answer
from converter.spec import UncertaintySpec
from edge_runtime.bundle.manifest import Confidence, Task, Uncertainty
from edge_runtime.bundle.uncertainty import chance_right
from edge_runtime.errors import CommandError
from edge_runtime.readings import Floats
from edge_runtime.truth.figures import wilson

TASKS = ("classification", "regression")
_ALSO: dict[str, str] = {
    "multilabel": ", or build one model for each label: sets and an estimated accuracy belong to one label of several"
}
MOST_BINS, LEAST_IN_BIN = 20, 25
ERROR_BINS = 10
_BLOCKS = 10
_ROUNDING = 1e-9  # (n + 1)(1 - c) of n = 99 and c = 0.9 is 9.999999999999998 in float64


@dataclass(frozen=True, slots=True, eq=False)
class HeldOut:
    """Calibration rows with their truth.

    Attributes:
        spec: the requested coverage.
        windows: the rows.
        truth: of each row.
        blocks: the recording or block of each checking row; None where rows are independent.
        place: the origin of the rows, in words.
    """

    spec: UncertaintySpec
    windows: Floats
    truth: Truth
    blocks: NDArray[Any] | None
    place: str


def least_rows(coverage: float) -> int:
    """The least number of rows: with fewer, every set holds all labels."""
    return math.ceil(1 / (1 - coverage) - _ROUNDING) - 1


def check_spec(spec: UncertaintySpec, task: Task, rows: int, *, has_truth: bool, place: str) -> None:
    """Refuse an impossible calibration.

    Raises:
        CommandError: the task has neither sets nor intervals, there are too few rows, or none has truth.
    """
    if task not in TASKS:
        raise CommandError(
            f"[uncertainty]: expected a model of the task {' or '.join(TASKS)}, found {task}: leave it out"
            f"{_ALSO.get(task, '')}"
        )
    if not has_truth:
        raise CommandError(
            f"{place}: [uncertainty]: expected rows with their truth to calibrate by, found none: name [data] label, "
            "or leave the table out"
        )
    if spec.coverage is not None and rows < least_rows(spec.coverage):
        raise CommandError(
            f"{place}: [uncertainty]: expected at least {least_rows(spec.coverage)} rows to calibrate a coverage of "
            f"{spec.coverage:g} by, found {rows}: give more data, or ask for less"
        )


def uncertainty_of(
    spec: UncertaintySpec, calibrating: tuple[Answer, Truth], checking: tuple[Answer, Truth]
) -> Uncertainty:
    """The uncertainty in the manifest.

    Args:
        spec: the requested coverage.
        calibrating: the kept form's answers to the calibration rows, and their truth.
        checking: its answers to other rows, and their truth.
    """
    (found, truth), (checked, checked_truth) = calibrating, checking
    least: float | None = None
    half: tuple[float, ...] = ()
    confidence, held = None, None
    if found.scores is not None:
        assert truth.label is not None
        assert checked_truth.label is not None
        assert checked.scores is not None
        if spec.coverage is not None:
            least = least_score(found.scores[np.arange(len(truth.label)), truth.label], spec.coverage)
        confidence = _checked(confidence_of(found, truth.label), checked, checked_truth.label)
    else:
        assert found.value is not None
        assert truth.value is not None
        if spec.coverage is not None:
            errors = np.abs(found.value.astype(np.float64) - truth.value)
            half = tuple(half_width(errors[:, target], spec.coverage) for target in range(errors.shape[1]))
    made = Uncertainty(
        coverage=spec.coverage, least=least, half=half, rows=len(found.tensors()[next(iter(found.tensors()))]),
        confidence=confidence,
    )  # fmt: skip
    inside = is_inside(made, checked, checked_truth)
    if inside is not None:
        held = _short(float(inside.mean()))
        made = Uncertainty(
            coverage=made.coverage, least=made.least, half=made.half, rows=made.rows, checked=len(inside), held=held,
            confidence=confidence,
        )  # fmt: skip
    return made


def least_score(right: NDArray[Any], coverage: float) -> float:
    """The least score of a label in the set; `right` are the scores of the right labels."""
    return float(np.sort(right.astype(np.float32))[_place(len(right), coverage)])


def half_width(errors: NDArray[np.float64], coverage: float) -> float:
    """Half the width of the interval, rounded up to float32, the device's type."""
    exact = float(np.sort(errors)[::-1][_place(len(errors), coverage)])
    rounded = np.float32(exact)
    return float(rounded if float(rounded) >= exact else np.nextafter(rounded, np.float32(np.inf)))


def is_inside(made: Uncertainty, answer: Answer, truth: Truth) -> NDArray[np.bool_] | None:
    """Whether the truth of each row is in its set, or in the intervals of all targets; None without either."""
    if made.least is not None and answer.scores is not None and truth.label is not None:
        right = answer.scores.astype(np.float32)[np.arange(len(truth.label)), truth.label]
        return np.asarray(right >= np.float32(made.least))
    if made.half and answer.value is not None and truth.value is not None:
        width = np.array(made.half, np.float32)
        value = answer.value.astype(np.float32)
        return np.asarray(((truth.value >= value - width) & (truth.value <= value + width)).all(axis=1))
    return None


def confidence_of(answer: Answer, right: NDArray[np.int64]) -> Confidence:
    """The share of right labels by score: the means of bins, made non-decreasing by pooling."""
    assert answer.scores is not None
    assert answer.label is not None
    score = answer.scores[np.arange(len(right)), answer.label].astype(np.float64)
    order = np.argsort(score, kind="stable")
    bins = np.array_split(order, max(1, min(MOST_BINS, len(order) // LEAST_IN_BIN)))
    pools: list[tuple[float, float, int]] = []  # the sum of scores, the number of right ones, the number of all
    for rows in bins:
        pools.append((float(score[rows].sum()), float((answer.label[rows] == right[rows]).sum()), len(rows)))
        while len(pools) > 1 and pools[-2][1] / pools[-2][2] >= pools[-1][1] / pools[-1][2]:
            one, other = pools.pop(), pools.pop()
            pools.append((one[0] + other[0], one[1] + other[1], one[2] + other[2]))
    return Confidence(
        scores=tuple(_short(total / count) for total, _, count in pools),
        shares=tuple(_short(hits / count) for _, hits, count in pools),
        rows=len(right),
    )


def _checked(made: Confidence, answer: Answer, right: NDArray[np.int64]) -> Confidence:
    """The same with its check on other rows."""
    assert answer.scores is not None
    assert answer.label is not None
    score = answer.scores[np.arange(len(right)), answer.label].astype(np.float64)
    hits = answer.label == right
    chance = np.interp(score, made.scores, made.shares)
    order = np.argsort(score, kind="stable")
    parts = [rows for rows in np.array_split(order, ERROR_BINS) if len(rows)]
    error = sum(len(rows) * abs(float(chance[rows].mean() - hits[rows].mean())) for rows in parts) / len(right)
    return Confidence(
        scores=made.scores, shares=made.shares, rows=made.rows, checked=len(right), accuracy=_short(float(hits.mean())),
        estimated=_short(float(chance.mean())), error=_short(error),
    )  # fmt: skip


def in_words(made: Uncertainty, held: HeldOut, answer: Answer, truth: Truth) -> list[str]:
    """The results for the user, a sentence each."""
    sentences = []
    inside = is_inside(made, answer, truth)
    if inside is not None and made.held is not None and made.coverage is not None:
        low, high = wilson(int(inside.sum()), len(inside))
        blocks = [part.mean() for part in _parts(inside, held.blocks)]
        what = _sizes(made, answer)
        sentences.append(
            f"uncertainty: asked for {made.coverage:g}, {made.held:.4g} of {made.checked:,} unseen rows had the truth "
            f"inside (95 %: {low:.4g} to {high:.4g}; blocks: {min(blocks):.3g} to {max(blocks):.3g}); {what}"
        )
    known = made.confidence
    if known is not None and known.accuracy is not None and known.estimated is not None and known.error is not None:
        sentences.append(
            f"calibrated scores: on {known.checked:,} unseen rows they promise an accuracy of {known.estimated:.4g}, "
            f"and {known.accuracy:.4g} were right; over bins of the score they are off by {known.error:.2g} on average"
            f"{_over_blocks(known, held, answer, truth)}"
        )
    sentences.append(
        f"the uncertainty is calibrated on {held.place}; a model that was trained on these rows is surer than it may "
        "be: hold them out of training"
    )
    return sentences


def _sizes(made: Uncertainty, answer: Answer) -> str:
    if made.least is None:
        return f"intervals of +-{', +-'.join(f'{half:.4g}' for half in made.half)}"
    assert answer.scores is not None
    sizes = (answer.scores.astype(np.float32) >= np.float32(made.least)).sum(axis=1)
    return f"{np.mean(sizes == 1):.3g} of the sets hold one label, {np.mean(sizes == 0):.3g} none"


def _over_blocks(known: Confidence, held: HeldOut, answer: Answer, truth: Truth) -> str:
    """How far the promise of single blocks is off: a device shows that of its last windows, which are as much alike."""
    assert answer.scores is not None
    assert answer.label is not None
    assert truth.label is not None
    score = answer.scores[np.arange(len(truth.label)), answer.label].astype(np.float64)
    late = chance_right(known, score) - (answer.label == truth.label)
    off = [abs(float(part.mean())) for part in _parts(late, held.blocks)]
    return f", over {len(off)} blocks by {np.mean(off):.2g}, at most by {max(off):.2g}"


def _parts(inside: NDArray[Any], blocks: NDArray[Any] | None) -> Sequence[NDArray[Any]]:
    """The rows of each block; ten runs of rows without blocks."""
    if blocks is not None and len(np.unique(blocks)) > 1:
        return [inside[blocks == name] for name in np.unique(blocks)]
    return [part for part in np.array_split(inside, _BLOCKS) if len(part)]


def _place(rows: int, coverage: float) -> int:
    """The index of the k-th row, counted from the one that is farthest from the model."""
    return max(0, math.floor((rows + 1) * (1 - coverage) + _ROUNDING) - 1)


def _short(value: float) -> float:
    return float(f"{value:.7g}")
