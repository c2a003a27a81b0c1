"""Compare a converted model's answers with its source's: every score, every target, every row.

A number may differ by rounding, on the scale of its own column. Where it differs by more, the source answers the row
again with readings changed by one rounding. If its answer jumps, the row lies on a decision boundary: float32 cannot
keep it on one side. Such rows are counted and named; all other differences are faults. Pure, except for calls of the
source.

Weak point: the boundary is searched by random steps around the row, so a boundary that is not hit counts as a fault.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from converter.load.source import Answer
from edge_runtime.readings import Floats

Ask = Callable[[Floats], Answer]

SCORE_TOLERANCE = 1e-4  # of a probability
_OF_SPREAD, _OF_LARGEST = 1e-4, 1e-6  # of a value: of its column's range, and of its size (float32)
_STEP = 1e-6  # relative: about eight roundings of float32, as many as a few layers add up
_STEPS = 8
FEW_CATEGORIES = 64  # a channel with up to so many distinct whole numbers counts as a category
_MOST_ROWS = 512  # rows that the source answers again
_BOUNDARY_SHARE = 0.01
_LABEL_SHARE = 0.001
_SUM_TOLERANCE = 1e-3
_SLACK = 1e-6  # by rounding a probability may lie this far outside of [0, 1]


@dataclass(frozen=True, slots=True)
class Difference:
    """One answer that differs from the source's.

    Attributes:
        row: its index among the compared rows.
        what: the class, target or "score".
        source: the source's number, or its label.
        found: the converted model's.
    """

    row: int
    what: str
    source: str
    found: str

    def __str__(self) -> str:
        return f"{self.what}: expected {self.source} as in the source, found {self.found}"


@dataclass(frozen=True, slots=True, eq=False)
class Fidelity:
    """The result of a comparison.

    Attributes:
        wrong: rows with a fault.
        boundary: rows on a decision boundary of the source.
        first: the worst fault, or None.
        rows: the number of compared rows.
    """

    wrong: NDArray[np.int64]
    boundary: NDArray[np.int64]
    first: Difference | None
    rows: int

    @property
    def is_faithful(self) -> bool:
        """Whether both are the same model."""
        return not len(self.wrong)


def compare(
    found: Answer,
    source: Answer,
    windows: Floats,
    ask: Ask,
    *,
    names: Sequence[str],
    scale: Answer | None = None,
    recorded: Floats | None = None,
    boundaries: bool = True,
) -> Fidelity:
    """Compare every answer with the source's.

    Args:
        found: the converted model's answers.
        source: the source's.
        windows: the inputs of both.
        ask: calls the source.
        names: of the columns: labels or targets; an anomaly has one column.
        scale: answers of the source that show the range of each column; by default those given.
        recorded: recorded windows, by default those given; they show which channels hold categories.
        boundaries: whether a row on a decision boundary is tolerated.
    """
    one, other = _columns(found), _columns(source)
    tolerance = tolerances(scale or source)
    off = _excess(one, other, tolerance)
    labels = _labels_differ(found, source, tolerance)
    every = _labels_differ(found, source, None)
    if int((every & ~labels).sum()) > max(1, _LABEL_SHARE * len(one)):
        labels = every  # so many ties are no rounding: the source decides them by another rule than its scores
    suspects = np.flatnonzero((off > 0).any(axis=1) | labels)
    if not len(suspects):
        return Fidelity(suspects, suspects, None, len(one))
    worst = np.maximum(off[suspects].max(axis=1, initial=0.0), labels[suspects])
    asked = suspects[np.argsort(-worst, kind="stable")][:_MOST_ROWS]
    locked = _categories(windows if recorded is None else recorded)
    if boundaries:
        rounding, jumping = _near_the_source(found, windows, asked, ask, tolerance=tolerance, locked=locked)
    else:
        rounding = jumping = np.zeros(len(asked), dtype=np.bool_)
    wrong = np.setdiff1d(suspects, asked[rounding | jumping])
    boundary = np.sort(asked[jumping & ~rounding])
    differing = int(_labels_differ(found, source, None)[boundary].sum())
    if len(boundary) > max(1, _BOUNDARY_SHARE * len(one)) or differing > max(1, _LABEL_SHARE * len(one)):
        wrong = suspects
    if not len(wrong):
        return Fidelity(wrong, boundary, None, len(one))
    row = next(int(row) for row in asked if row in set(wrong.tolist()))
    return Fidelity(wrong, boundary, _difference(found, source, row, off, names=names), len(one))


def tolerances(source: Answer) -> NDArray[np.float64]:
    """The tolerance of each column: one for all probabilities; for values and scores by the column's scale."""
    columns = _columns(source)
    if source.scores is not None:
        return np.full(columns.shape[1], SCORE_TOLERANCE)
    finite = np.where(np.isfinite(columns), columns, 0.0)
    if not len(finite):
        return np.zeros(columns.shape[1])
    spread = finite.max(axis=0) - finite.min(axis=0)
    allowed = np.maximum(_OF_SPREAD * spread, _OF_LARGEST * np.abs(finite).max(axis=0))
    return np.asarray(np.maximum(allowed, 1e-30), dtype=np.float64)


def probability_fault(
    answer: Answer, labels: Sequence[str], *, independent: bool = False, own_rule: bool = False, step: float = 0.0
) -> str:
    """Why a classifier's scores are no probabilities, in a sentence; empty when they are.

    Args:
        answer: labels and scores.
        labels: the names of the columns.
        independent: whether each class has its own probability (one against the rest), so that rows need not sum to 1.
        own_rule: whether the label comes from another rule than the largest score, such as a tuned threshold.
        step: the rounding step of a quantised source's scores; a sum may be off by a step for each class.
    """
    scores, label = answer.scores, answer.label
    independent = independent or answer.labels is not None
    if scores is None or (label is None and answer.labels is None) or not len(scores):
        return ""
    if not np.isfinite(scores).all():
        row, column = np.argwhere(~np.isfinite(scores))[0]
        return f"row {row}: the score of {labels[column]!r} is {scores[row, column]}"
    outside = (scores < -_SLACK) | (scores > 1.0 + _SLACK)
    if outside.any():
        row, column = np.argwhere(outside)[0]
        return f"row {row}: the score of {labels[column]!r} is {scores[row, column]:.6g}, expected 0 to 1"
    total = scores.sum(axis=1)
    if not independent and (np.abs(total - 1.0) > max(_SUM_TOLERANCE, step * len(labels))).any():
        row = int(np.argmax(np.abs(total - 1.0)))
        return f"row {row}: the scores sum to {total[row]:.6g}, expected 1"
    if own_rule or label is None:
        return ""
    for place, name in enumerate(labels):
        mine = label == place
        if mine.any() and not mine.all():
            inside, beside = float(scores[mine, place].mean()), float(scores[~mine, place].mean())
            if inside < beside - SCORE_TOLERANCE:
                return (
                    f"the score of {name!r} is {inside:.3f} on average where the label is {name!r} and {beside:.3f} "
                    "where it is not, so the column belongs to something else"
                )
    return ""


def label_is_not_the_largest(answer: Answer) -> int:
    """Rows whose label does not have the largest score; some models decide by another rule than their probabilities."""
    if answer.scores is None or answer.label is None:
        return 0
    own = answer.scores[np.arange(len(answer.label)), answer.label]
    return int((own < answer.scores.max(axis=1) - SCORE_TOLERANCE).sum())


def _columns(answer: Answer) -> NDArray[np.float64]:
    numbers = next(part for part in (answer.scores, answer.value, answer.score) if part is not None)
    return np.asarray(numbers, dtype=np.float64).reshape(len(numbers), -1)


def _excess(
    one: NDArray[np.float64], other: NDArray[np.float64], tolerance: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The excess over the tolerance of each number, in tolerances; infinite where only one of the two is finite."""
    with np.errstate(invalid="ignore", over="ignore"):
        narrow = other.astype(np.float32).astype(np.float64)  # infinite beyond float32's range
        # Outside the data a number may be larger than any of the column: float32 rounds it on its own scale.
        gap = np.abs(one - narrow) / np.maximum(tolerance, _OF_LARGEST * np.abs(narrow))
    same = (one == other) | (one == narrow) | (np.isnan(one) & np.isnan(other))
    return np.where(same, 0.0, np.where(np.isfinite(gap), np.maximum(gap - 1.0, 0.0), np.inf))


def _labels_differ(found: Answer, source: Answer, tolerance: NDArray[np.float64] | None) -> NDArray[np.bool_]:
    """Rows with another label; with a tolerance, without those whose two scores in the source are equal within it.

    Of several labels each counts; one whose score is one half within the tolerance may be present or not.
    """
    if found.labels is not None and source.labels is not None:
        several = found.labels != source.labels
        if source.scores is not None and tolerance is not None:
            several = several & ~(np.abs(source.scores - 0.5) <= 2 * tolerance)
        return np.asarray(several.any(axis=1), dtype=np.bool_)
    if found.label is None or source.label is None:
        return np.zeros(len(_columns(found)), dtype=np.bool_)
    differ = found.label != source.label
    if source.scores is not None and tolerance is not None:
        every = np.arange(len(differ))
        gap = np.abs(source.scores[every, found.label] - source.scores[every, source.label])
        differ &= ~(gap <= 2 * tolerance[0])
    return np.asarray(differ, dtype=np.bool_)


def _categories(windows: Floats) -> NDArray[np.float64]:
    """`[2, channels]`: the range of a channel that holds a few whole numbers, which the steps leave unchanged."""
    flat = windows.reshape(-1, windows.shape[-1])
    limits = np.full((2, flat.shape[1]), np.nan)
    for index in range(flat.shape[1]) if windows.ndim == 3 else ():
        distinct = np.unique(flat[:, index])
        if len(distinct) <= FEW_CATEGORIES and (distinct == np.rint(distinct)).all():
            limits[:, index] = distinct[0], distinct[-1]
    return limits


def _near_the_source(
    found: Answer,
    windows: Floats,
    rows: NDArray[np.int64],
    ask: Ask,
    *,
    tolerance: NDArray[np.float64],
    locked: NDArray[np.float64],
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Let the source answer readings that are changed by one rounding.

    Returns: the rows whose difference is no larger than the usual change by such a step (small differences of large
        terms), and the rows whose answer lies between the source's answers to all steps (it jumps between them).
    """
    rng = np.random.default_rng(0)
    some = windows[rows]
    answers = [ask(some)]
    with np.errstate(invalid="ignore", over="ignore"):
        free = ~((some >= locked[0]) & (some <= locked[1]))
        for _ in range(_STEPS):
            step = rng.uniform(-_STEP, _STEP, size=some.shape) * free
            near = (some.astype(np.float64) * (1.0 + step)).astype(np.float32)
            try:
                answers.append(ask(np.where(np.isfinite(near), near, some)))
            except Exception:  # noqa: BLE001, S112 - a framework may refuse a value; the other steps still count
                continue
    table = np.stack([_columns(answer) for answer in answers])
    one, labels_fit = _columns(found)[rows], np.ones(len(rows), dtype=np.bool_)
    same_labels = labels_fit
    if found.label is not None:
        labels = np.stack([answer.label for answer in answers if answer.label is not None])
        labels_fit = np.asarray((labels == found.label[rows]).any(axis=0))
        same_labels = np.asarray(labels[0] == found.label[rows])
    elif found.labels is not None:
        labels = np.stack([answer.labels for answer in answers if answer.labels is not None])
        labels_fit = np.asarray((labels == found.labels[rows]).any(axis=0).all(axis=1))
        same_labels = np.asarray((labels[0] == found.labels[rows]).all(axis=1))
    with np.errstate(invalid="ignore", over="ignore"):
        usual = np.median(np.abs(table - table[0]), axis=0)
        rounding = (np.abs(one - table[0]) <= tolerance + 4.0 * usual).all(axis=1)
        low, high = table.min(axis=0), table.max(axis=0)
        slack = 2.0 * (high - low) + tolerance
        inside = ((one >= low - slack) & (one <= high + slack)).all(axis=1)
    return np.asarray(rounding & same_labels), np.asarray(inside & labels_fit)


def _difference(
    found: Answer, source: Answer, row: int, off: NDArray[np.float64], *, names: Sequence[str]
) -> Difference:
    if not off[row].any() and found.label is not None and source.label is not None:
        return Difference(row, "label", repr(names[source.label[row]]), repr(names[found.label[row]]))
    if not off[row].any() and found.labels is not None and source.labels is not None:
        place = int(np.argmax(found.labels[row] != source.labels[row]))
        words = ("not there", "there")
        return Difference(
            row, f"label {names[place]!r}", words[source.labels[row, place]], words[found.labels[row, place]]
        )
    column = int(np.argmax(off[row]))
    kinds = {"label": found.labels, "class": found.scores, "target": found.value}
    kind = next((name for name, part in kinds.items() if part is not None), "")
    what = f"{kind} {names[column]!r}" if kind else "score"
    return Difference(row, what, f"{_columns(source)[row, column]:.6g}", f"{_columns(found)[row, column]:.6g}")
