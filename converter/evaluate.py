"""Comparison before output: the source model, the float ONNX and the final ONNX answer the same rows.

Pure; sessions are run by `session.py`. A higher metric is always better. Where the data has no truth, the source
model's answers count as the truth, and the name of the metric says so.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.load.source import Answer, class_name
from converter.named_answers import metric_of, worth
from edge_runtime.batch.label_names import places_of
from edge_runtime.bundle.manifest import Task
from edge_runtime.bundle.model import NAMED_TASKS
from edge_runtime.errors import CommandError


@dataclass(frozen=True, slots=True)
class Truth:
    """The truth of the evaluation rows, or None where only the source's answers are known."""

    label: NDArray[np.int64] | None = None
    value: NDArray[np.float64] | None = None
    labels: NDArray[np.int64] | None = None

    @property
    def is_known(self) -> bool:
        """Whether the data has the truth."""
        return self.label is not None or self.value is not None or self.labels is not None


@dataclass(frozen=True, slots=True)
class Judgement:
    """One form of the model on the evaluation rows.

    Attributes:
        metric: higher is better.
        differing: rows whose label (or alarm) differs from the source model's.
        difference: the largest difference of any score or value from the source's.
        quantiles: the 50, 90 and 99 % quantiles of that difference over rows.
    """

    metric: float
    differing: int
    difference: float
    quantiles: tuple[float, float, float]


def truth_of(
    raw: NDArray[Any] | None, task: Task, labels: Sequence[str], classes: Sequence[str], *, place: str
) -> Truth:
    """The truth column of the data as class indices or as numbers.

    Args:
        raw: one item a window, or None.
        task: what is predicted.
        labels: the bundle's labels.
        classes: the model's own names for them; the data may use either.
        place: the data file, for messages.

    Raises:
        CommandError: a label is neither, or a number is none.
    """
    if raw is not None and task == "multilabel":
        return Truth(labels=_several_truths(raw, labels, place))
    if raw is None or task in NAMED_TASKS:
        return Truth()
    if task == "regression":
        try:
            value = raw.astype(np.float64)
        except ValueError as error:
            raise CommandError(f"{place}: expected numbers as the truth of a regression: {error}") from error
        return Truth(value=value.reshape(len(raw), -1))
    names = [class_name(item) for item in raw.tolist()]
    if task == "anomaly":
        return Truth(label=_anomaly_truth(names, place))
    places = places_of(names, labels, classes, place)
    return Truth(label=np.array([places[name] for name in names], dtype=np.int64))


def _several_truths(raw: NDArray[Any], labels: Sequence[str], place: str) -> NDArray[np.int64]:
    """A column for each label: 1 where it is present, else 0."""
    table = raw.reshape(len(raw), -1)
    names = {"1": 1, "true": 1, "0": 0, "false": 0}
    found = [class_name(item).lower() for item in table.ravel().tolist()]
    strange = sorted(set(found) - names.keys())
    if table.shape[1] != len(labels) or strange:
        seen = f"{table.shape[1]} columns" if not strange else ", ".join(map(repr, strange[:5]))
        raise CommandError(
            f"{place}: labels: expected {len(labels)} columns of 0 and 1, one for each of {', '.join(labels)}, "
            f"found {seen}: name them as a list in [data] label"
        )
    return np.array([names[name] for name in found], dtype=np.int64).reshape(table.shape)


def _anomaly_truth(names: list[str], place: str) -> NDArray[np.int64]:
    """1 for an anomaly, else 0. scikit-learn uses -1 for an anomaly and 1 for normal; others use 1 and 0."""
    found = set(names)
    if found <= {"-1", "1"} and "-1" in found:
        return np.array([name == "-1" for name in names], dtype=np.int64)
    yes, no = {"1", "True", "true", "anomaly"}, {"0", "False", "false", "normal"}
    if not found <= yes | no:
        raise CommandError(f"{place}: labels: expected 0 and 1 (1 is an anomaly), found {', '.join(sorted(found)[:5])}")
    return np.array([name in yes for name in names], dtype=np.int64)


def metric_name(task: Task, truth: Truth) -> str:
    """The name of a task's metric."""
    if task == "classification":
        return "accuracy" if truth.label is not None else "agreement with the source"
    if task == "multilabel":
        return "F1 over all labels" if truth.labels is not None else "F1 against the source"
    if task in NAMED_TASKS:
        return metric_of(task)
    if task == "regression":
        return "R2" if truth.value is not None else "R2 against the source"
    return "ROC AUC" if _both(truth) else "agreement with the source"


def judge(answer: Answer, source: Answer, truth: Truth, task: Task, *, threshold: float | None = None) -> Judgement:
    """Compare one form of the model with the source, and with the truth if known."""
    if task == "multilabel":
        assert answer.labels is not None
        assert source.labels is not None
        metric = _f1(answer.labels, truth.labels if truth.labels is not None else source.labels)
        differing = int((answer.labels != source.labels).any(axis=1).sum())
        gap = _gap(answer.scores, source.scores)
    elif task in NAMED_TASKS:
        metric, differing, gap = worth(answer, source, task)
    elif task == "classification":
        assert answer.label is not None
        assert source.label is not None
        right = truth.label if truth.label is not None else source.label
        metric = float(np.mean(answer.label == right))
        differing = int(np.sum(answer.label != source.label))
        gap = _gap(answer.scores, source.scores)
    elif task == "regression":
        assert answer.value is not None
        assert source.value is not None
        right_value = truth.value if truth.value is not None else source.value
        if right_value.shape != source.value.shape:
            raise CommandError(
                f"data: expected {source.value.shape[1]} targets as the model gives, found {right_value.shape[1]}"
            )
        metric, differing = _r_squared(right_value, answer.value), 0
        gap = _gap(answer.value, source.value)
    else:
        assert answer.score is not None
        assert source.score is not None
        limit = 0.0 if threshold is None else threshold
        flags, expected = answer.score > limit, source.score > limit
        differing = int(np.sum(flags != expected))
        metric = _auc(truth.label, answer.score) if _both(truth) else float(np.mean(flags == expected))
        gap = _gap(answer.score, source.score)
    quantiles = tuple(float(q) for q in np.quantile(gap, [0.5, 0.9, 0.99])) if len(gap) else (0.0, 0.0, 0.0)
    return Judgement(metric, differing, float(gap.max(initial=0.0)), (quantiles[0], quantiles[1], quantiles[2]))


def metrics_on(answer: Answer, truth: Truth, task: Task) -> Callable[[NDArray[np.int64]], float] | None:
    """The metric of `judge` against a truth, on some rows; NaN where these have none; None where there is no truth."""
    if task == "classification" and truth.label is not None:
        right = np.asarray(answer.label == truth.label)
        return lambda rows: float(np.mean(right[rows]))
    if task == "multilabel" and truth.labels is not None and answer.labels is not None:
        found, wanted = answer.labels, truth.labels
        return lambda rows: _f1(found[rows], wanted[rows])
    if task == "regression" and truth.value is not None and answer.value is not None:
        value, true = answer.value, truth.value
        return lambda rows: _r_squared(true[rows], value[rows])
    if task == "anomaly" and _both(truth) and answer.score is not None and truth.label is not None:
        score, strange = answer.score, truth.label
        return lambda rows: _auc(strange[rows], score[rows]) if np.ptp(strange[rows]) else math.nan
    return None


def right_rows(answer: Answer, truth: Truth, task: Task, threshold: float | None) -> NDArray[np.bool_] | None:
    """Which rows are right; None where a row is not right or wrong by itself, or nothing says what is right."""
    if task == "classification" and truth.label is not None:
        return np.asarray(answer.label == truth.label)
    if task == "multilabel" and truth.labels is not None:
        return np.asarray(np.asarray(answer.labels == truth.labels).all(axis=1))
    if task == "anomaly" and truth.label is not None and answer.score is not None:
        return np.asarray((answer.score > (0.0 if threshold is None else threshold)) == (truth.label == 1))
    return None


def _both(truth: Truth) -> bool:
    return truth.label is not None and len(np.unique(truth.label)) == 2


def _gap(one: NDArray[Any] | None, other: NDArray[Any] | None) -> NDArray[np.float64]:
    """The largest difference of each row; infinite where one of them is not finite."""
    if one is None or other is None:
        return np.zeros(0)
    with np.errstate(invalid="ignore", over="ignore"):
        gap = np.abs(one.astype(np.float64) - other.astype(np.float64)).reshape(len(one), -1).max(axis=1, initial=0.0)
    return np.asarray(np.where(np.isfinite(gap), gap, np.inf), dtype=np.float64)


def _f1(found: NDArray[np.int64], right: NDArray[np.int64]) -> float:
    """F1 over the cells of all labels; 1 where nothing is present and nothing is found."""
    if found.shape != right.shape:
        raise CommandError(f"data: expected {found.shape[1]} labels as the model has, found {right.shape[1]}")
    marked = int(found.sum() + right.sum())
    return 2.0 * int((found & right).sum()) / marked if marked else 1.0


def _r_squared(right: NDArray[Any], found: NDArray[Any]) -> float:
    """R2 averaged over the targets; a target that never changes counts 1 when met and 0 when not."""
    scores = []
    for column in range(right.shape[1]):
        y, p = right[:, column].astype(np.float64), found[:, column].astype(np.float64)
        total = float(np.sum((y - y.mean()) ** 2))
        rest = float(np.sum((y - p) ** 2))
        scores.append(1.0 - rest / total if np.ptp(y) > 0 else float(np.allclose(y, p, rtol=1e-5, atol=1e-8)))
    return statistics.fmean(scores)


def _auc(label: NDArray[np.int64] | None, score: NDArray[Any]) -> float:
    """The probability that an anomaly scores above a normal row; equal scores count half."""
    assert label is not None
    values, ranks = np.unique(score, return_inverse=True)
    counts = np.bincount(ranks, minlength=len(values))
    middle = np.cumsum(counts) - (counts - 1) / 2.0
    rank = middle[ranks]
    strange = label == 1
    n, m = int(strange.sum()), int((~strange).sum())
    return float((rank[strange].sum() - n * (n + 1) / 2.0) / (n * m))
