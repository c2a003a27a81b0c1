"""Whether the form that was kept is good enough, and why, in one sentence: the first sentence of a report. Pure.

A model is good enough when three things hold. It beats a constant answer (the most frequent class, the mean, random
anomaly scores) by more than the sampling error of the evaluation rows. It finds every class that the rows hold. The
form loses no more of the metric than was allowed. Further requirements of an application are not known here. Weak
point: rows are treated as independent. Windows of one recording are correlated, so the intervals are too narrow.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from converter.evaluate import Truth
from converter.load.source import Answer
from edge_runtime.bundle.manifest import Task

Z = 1.96  # of a two-sided interval of 95 %
LEAST_ROWS = 5  # of a class: with fewer, "never found" does not count against the model
_WORDS = {"good": "Good enough", "bad": "Not good enough", "open": "Not shown"}


@dataclass(frozen=True, slots=True)
class Assessment:
    """`open`: the measurement does not decide it."""

    kind: Literal["good", "bad", "open"]
    why: str

    @property
    def sentence(self) -> str:
        """The verdict and its reason."""
        return f"{_WORDS[self.kind]}: {self.why}."


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Judged:
    """The inputs of a verdict.

    Attributes:
        task: of the model.
        truth: the truth; None where the data has none.
        answer: the answers of the form that was kept; None where none was kept.
        form: the name of that form, or why there is none.
        metric: the metric's name.
        source: the metric of the source.
        kept: the metric of the form.
        max_drop: the loss of the metric that was allowed.
        labels: of a classification.
        targets: of a regression, with units.
        threshold: of an anomaly.
    """

    task: Task
    truth: Truth
    answer: Answer | None
    form: str
    metric: str
    source: float
    kept: float
    max_drop: float
    labels: Sequence[str] = ()
    targets: Sequence[tuple[str, str]] = ()
    threshold: float | None = None


def assess(judged: Judged) -> Assessment:
    """The assessment of a form."""
    answer, truth = judged.answer, judged.truth
    if answer is None:
        return Assessment("bad", judged.form)
    if judged.task == "classification" and truth.label is not None:
        assert answer.label is not None
        return _classes(judged, np.asarray(answer.label), truth.label)
    if judged.task == "multilabel" and truth.labels is not None:
        assert answer.labels is not None
        return _several_labels(judged, answer.labels == 1, truth.labels == 1)
    if judged.task == "regression" and truth.value is not None:
        assert answer.value is not None
        return _values(judged, np.asarray(answer.value, dtype=np.float64), truth.value)
    if judged.task == "anomaly" and truth.label is not None and len(np.unique(truth.label)) == 2:
        assert answer.score is not None
        return _anomalies(judged, np.asarray(answer.score, dtype=np.float64), truth.label == 1)
    return Assessment(
        "open",
        f"{judged.form} answers as the source does ({judged.metric} {judged.kept:.4f}), "
        "and whether the source is right cannot be known from data without truth",
    )


def interval(right: int, rows: int) -> tuple[float, float]:
    """The share of right answers with 95 % (Wilson's interval, which holds for few rows and for shares near 1)."""
    share, square = right / rows, Z * Z / rows
    middle = (share + square / 2) / (1 + square)
    half = Z / (1 + square) * math.sqrt(share * (1 - share) / rows + square / (4 * rows))
    return max(0.0, middle - half), min(1.0, middle + half)


def _classes(judged: Judged, predicted: NDArray[np.int64], right: NDArray[np.int64]) -> Assessment:
    rows, hits = len(right), int((predicted == right).sum())
    counts = np.bincount(right, minlength=len(judged.labels))
    usual = int(counts.argmax())
    base = counts[usual] / rows
    low, high = interval(hits, rows)
    measured = (
        f"{judged.form} finds {hits / rows:.1%} of {rows:,} rows right ({low:.1%} to {high:.1%} with 95 %), "
        f'where always answering "{judged.labels[usual]}" finds {base:.1%}'
    )
    if np.count_nonzero(counts) < 2:
        return Assessment("open", f"{measured}, since the rows hold one class only")
    missed = [
        place
        for place in range(len(judged.labels))
        if counts[place] >= LEAST_ROWS and not (predicted[right == place] == place).any()
    ]
    if missed:
        names = ", ".join(f'"{judged.labels[place]}" ({counts[place]:,} rows)' for place in missed[:3])
        return Assessment("bad", f"{measured}; it never finds {names}")
    if hits / rows <= base:
        return Assessment("bad", measured)
    if low <= base:
        return Assessment("open", f"{measured}: the rows are too few to tell the two apart")
    absent = [label for label, count in zip(judged.labels, counts, strict=True) if not count]
    unseen = f"; no row judges {_listed(absent)}" if absent else ""
    return Assessment("good", f"{measured}, and it {_loss(judged)}{unseen}")


def _several_labels(judged: Judged, predicted: NDArray[np.bool_], right: NDArray[np.bool_]) -> Assessment:
    """Judge by the label with the least gain over a constant answer."""
    rows = len(right)
    missed = [
        place
        for place in range(len(judged.labels))
        if right[:, place].sum() >= LEAST_ROWS and not (predicted & right)[:, place].any()
    ]
    shares, bases = (predicted == right).mean(axis=0), np.maximum(right.mean(axis=0), 1.0 - right.mean(axis=0))
    worst = missed[0] if missed else int(np.argmin(shares - bases + (bases == 1.0)))
    base, hits = float(bases[worst]), int((predicted == right)[:, worst].sum())
    low, high = interval(hits, rows)
    always = "there" if right[:, worst].mean() > 0.5 else "not there"
    measured = (
        f'of all labels {judged.form} tells least of "{judged.labels[worst]}": it is right in {hits / rows:.1%} of '
        f"{rows:,} rows ({low:.1%} to {high:.1%} with 95 %), where always answering that it is {always} is right in "
        f"{base:.1%}"
    )
    if missed:
        return Assessment("bad", f"{measured}; it never finds {_listed([judged.labels[place] for place in missed])}")
    if base == 1.0:
        return Assessment("open", f"{measured}, since no label ever changes in these rows")
    if hits / rows <= base:
        return Assessment("bad", measured)
    if low <= base:
        return Assessment("open", f"{measured}: the rows are too few to tell the two apart")
    fixed = [label for label, each in zip(judged.labels, bases, strict=True) if each == 1.0]
    unseen = f"; no row judges {_listed(fixed)}" if fixed else ""
    return Assessment("good", f"{measured}, and it {_loss(judged)}{unseen}")


def _values(judged: Judged, found: NDArray[np.float64], right: NDArray[np.float64]) -> Assessment:
    """Judge by the target that is predicted worst, compared with always answering the mean."""
    worst: tuple[float, Assessment] | None = None
    for column, (name, unit) in enumerate(judged.targets):
        y, p = right[:, column], found[:, column]
        blind = (y - y.mean()) ** 2
        gain = blind - (y - p) ** 2
        mean, error = float(gain.mean()), float(gain.std(ddof=1) / math.sqrt(len(y))) if len(y) > 1 else math.inf
        off, blind_off = math.sqrt(float(((y - p) ** 2).mean())), math.sqrt(float(blind.mean()))
        behind = f" {unit}" if unit else ""
        measured = (
            f"{judged.form} is off by {off:.3g}{behind} in {name} (root mean square, {len(y):,} rows), "
            f"where always answering the mean is off by {blind_off:.3g}{behind}"
        )
        if not blind.any():
            one = Assessment("open", f"{measured}, since the truth never changes")
        elif mean <= 0:
            one = Assessment("bad", measured)
        elif mean - Z * error <= 0:
            one = Assessment("open", f"{measured}: the rows are too few to tell the two apart")
        else:
            one = Assessment("good", f"{measured}, and it {_loss(judged)}")
        rank = off / blind_off if blind_off else math.inf
        if worst is None or rank > worst[0]:
            worst = rank, one
    assert worst is not None
    return worst[1]


def _anomalies(judged: Judged, score: NDArray[np.float64], strange: NDArray[np.bool_]) -> Assessment:
    n, m = int(strange.sum()), int((~strange).sum())
    area = judged.kept
    half = Z * _error_of_area(area, n, m)
    limit = 0.0 if judged.threshold is None else judged.threshold
    caught, false = int((score[strange] > limit).sum()), int((score[~strange] > limit).sum())
    measured = (
        f"with its threshold {judged.form} finds {caught:,} of {n:,} strange rows and raises {false:,} false alarms in "
        f"{m:,} ordinary ones; a strange row scores above an ordinary one in {area:.1%} of pairs, where chance has 50 %"
    )
    if area <= 0.5 or not caught:
        return Assessment("bad", measured)
    if area - half <= 0.5:
        return Assessment("open", f"{measured}: the rows are too few to tell the two apart")
    if caught / n <= false / m:
        return Assessment("bad", f"{measured}: at this threshold an alarm says nothing")
    return Assessment("good", f"{measured}, and it {_loss(judged)}")


def _error_of_area(area: float, n: int, m: int) -> float:
    """The standard error of an area under the curve (Hanley and McNeil 1982)."""
    one, two = area / (2 - area), 2 * area * area / (1 + area)
    spread = area * (1 - area) + (n - 1) * (one - area * area) + (m - 1) * (two - area * area)
    return math.sqrt(max(spread, 0.0) / (n * m))


def _loss(judged: Judged) -> str:
    drop = judged.source - judged.kept
    if drop <= 0:
        return f"loses nothing of the source's {judged.metric} ({judged.source:.4f})"
    return f"loses {drop:.4f} of the source's {judged.metric} ({judged.source:.4f}), of {judged.max_drop:g} allowed"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f'"{name}"' for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
