"""The metrics of a model on recordings with truth: counted for each part, added up, and printed.

The truth of a window is that of its last reading, because a prediction has the time of its last reading. Windows
without truth are not counted.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import msgspec
import numpy as np

from edge_runtime.batch.label_names import places_of
from edge_runtime.bundle.manifest import Manifest
from edge_runtime.bundle.model import NAMED_TASKS, Scores
from edge_runtime.errors import CommandError

_TRUE = frozenset({"1", "true", "yes", "anomaly", "anomalous"})
_FALSE = frozenset({"0", "false", "no", "normal", "ok"})


class Errors(msgspec.Struct):
    """Running sums over one target."""

    count: int = 0
    absolute: float = 0.0
    squared: float = 0.0
    truth: float = 0.0
    truth_squared: float = 0.0


class EvaluationCounts(msgspec.Struct):
    """The counts. `confusion` is truth -> prediction -> windows; `errors` is target -> sums."""

    judged: int = 0
    without_truth: int = 0
    confusion: dict[str, dict[str, int]] = {}
    errors: dict[str, Errors] = {}


class Judge(Protocol):
    """Counts as the windows come."""

    judgement: EvaluationCounts

    def add(self, scores: Scores, truth: list[list[Any]]) -> None:
        """Some windows with their truth: a list for each column."""


def make_judge(manifest: Manifest, columns: Sequence[str]) -> Judge:
    """The judge of a task.

    Raises:
        CommandError: the number of columns does not fit the task.
    """
    if manifest.task in NAMED_TASKS and manifest.task != "multilabel":
        raise CommandError(f"--label: a model of the kind {manifest.task} is not judged: leave it out")
    several = [target.name for target in manifest.output.targets]
    if manifest.task == "multilabel":
        several = list(manifest.output.labels)
    if len(columns) != (len(several) or 1):
        what = ", ".join(several) or manifest.task
        raise CommandError(f"--label: expected {len(several) or 1} columns (for {what}), found {len(columns)}")
    if manifest.task == "multilabel":
        return _SeveralLabels(manifest)
    return _Regression(manifest) if manifest.task == "regression" else _Verdicts(manifest)


class _Verdicts:
    """Labels, or anomalies, against the truth."""

    def __init__(self, manifest: Manifest) -> None:
        self.judgement = EvaluationCounts()
        self._labels = manifest.output.labels
        self._threshold = manifest.output.threshold

    def add(self, scores: Scores, truth: list[list[Any]]) -> None:
        found: list[str]
        if scores.label is not None:
            found = [self._labels[index] for index in scores.label.tolist()]
        else:
            assert scores.score is not None
            assert self._threshold is not None
            found = ["anomaly" if high else "normal" for high in (scores.score > self._threshold).tolist()]
        for value, verdict in zip(truth[0], found, strict=True):
            right = plain(value)
            if not right:
                self.judgement.without_truth += 1
                continue
            if scores.label is None:
                right = anomaly_word(right)
            row = self.judgement.confusion.setdefault(right, {})
            row[verdict] = row.get(verdict, 0) + 1
            self.judgement.judged += 1


class _SeveralLabels:
    """Multi-label answers against the truth: `confusion` is label -> hit, missed, false or rest -> windows."""

    def __init__(self, manifest: Manifest) -> None:
        self._labels = manifest.output.labels
        self.judgement = EvaluationCounts(confusion={label: {} for label in self._labels})

    def add(self, scores: Scores, truth: list[list[Any]]) -> None:
        assert scores.tensors is not None
        known = [row for row, values in enumerate(zip(*truth, strict=True)) if all(plain(value) for value in values)]
        self.judgement.without_truth += len(scores.tensors["labels"]) - len(known)
        self.judgement.judged += len(known)
        for place, label in enumerate(self._labels):
            predicted, row = scores.tensors["labels"][:, place], self.judgement.confusion[label]
            for at in known:
                right = _is_yes(plain(truth[place][at]), "1 or 0, true or false")
                name = ("hit" if predicted[at] else "missed") if right else ("false" if predicted[at] else "rest")
                row[name] = row.get(name, 0) + 1


class _Regression:
    """Values against the truth."""

    def __init__(self, manifest: Manifest) -> None:
        names = [target.name for target in manifest.output.targets]
        self.judgement = EvaluationCounts(errors={name: Errors() for name in names})
        self._names = names

    def add(self, scores: Scores, truth: list[list[Any]]) -> None:
        assert scores.value is not None
        right = np.array([[_number(value) for value in column] for column in truth], np.float64)
        known = np.isfinite(right).all(axis=0)
        self.judgement.without_truth += int((~known).sum())
        self.judgement.judged += int(known.sum())
        for place, name in enumerate(self._names):
            truth_values = right[place][known]
            off = scores.value[known, place].astype(np.float64) - truth_values
            sums = self.judgement.errors[name]
            sums.count += len(off)
            sums.absolute += float(np.abs(off).sum())
            sums.squared += float((off**2).sum())
            sums.truth += float(truth_values.sum())
            sums.truth_squared += float((truth_values**2).sum())


def plain(value: Any) -> str:
    """A label as text: the number 1.0 and the text "1" are the same class."""
    if value is None:
        return ""
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        return str(int(value))
    text = str(value).strip()
    if text.endswith(".0") and text[:-2].lstrip("-").isdigit():
        return text[:-2]
    return "" if text.lower() == "nan" else text


def anomaly_word(text: str) -> str:
    """The truth of an anomaly, in any spelling, as `anomaly` or `normal`.

    Raises:
        CommandError: it is neither.
    """
    return "anomaly" if _is_yes(text, "1 or 0, true or false, anomaly or normal") else "normal"


def _is_yes(text: str, words: str) -> bool:
    if text.lower() not in _TRUE | _FALSE:
        raise CommandError(f"--label: expected {words}, found {text[:60]!r}")
    return text.lower() in _TRUE


def _number(value: Any) -> float:
    text = plain(value)
    if not text:
        return math.nan
    try:
        return float(text)
    except ValueError:
        raise CommandError(f"--label: expected numbers, found {text[:60]!r}") from None


def total(judgements: Iterable[EvaluationCounts]) -> EvaluationCounts:
    """The sum over all parts, in their order."""
    whole = EvaluationCounts(confusion={}, errors={})
    for each in judgements:
        whole.judged += each.judged
        whole.without_truth += each.without_truth
        for right, row in each.confusion.items():
            into = whole.confusion.setdefault(right, {})
            for verdict, count in row.items():
                into[verdict] = into.get(verdict, 0) + count
        for name, sums in each.errors.items():
            all_sums = whole.errors.setdefault(name, Errors())
            for part in Errors.__struct_fields__:
                setattr(all_sums, part, getattr(all_sums, part) + getattr(sums, part))
    return whole


def describe(judgement: EvaluationCounts, manifest: Manifest) -> list[str]:
    """The metrics, and the confusion matrix, as lines for people.

    Raises:
        CommandError: no truth is a label of the bundle or a class of its model.
    """
    if not judgement.judged:
        return ["evaluation: no window has a truth to be judged by"]
    if manifest.task == "classification":
        judgement = _in_labels(judgement, manifest)
    rest = f", {judgement.without_truth} without a truth" if judgement.without_truth else ""
    lines = [f"evaluation over {judgement.judged} windows{rest}"]
    if manifest.task == "regression":
        return lines + [_describe_errors(name, sums) for name, sums in judgement.errors.items()]
    if manifest.task == "multilabel":
        return lines + _describe_labels(judgement.confusion)
    names = list(manifest.output.labels) if manifest.task == "classification" else ["normal", "anomaly"]
    strangers = sorted(set(judgement.confusion).difference(names))
    right = sum(row.get(label, 0) for label, row in judgement.confusion.items())
    lines.append(f"accuracy {right / judgement.judged:.4f}")
    if strangers:
        lines.append(f"labels that the model does not know: {', '.join(strangers)}")
    width = max(9, *(len(name) for name in [*names, *strangers]))
    lines.append(f"{'':{width}}  precision     recall         f1     windows")
    lines += [f"{name:{width}}  {_describe_class(judgement, name)}" for name in names]
    lines += ["confusion (a row is the truth, a column the prediction)"]
    columns = [max(len(name), 7) for name in names]
    lines.append(" " * width + "".join(f"  {name:>{size}}" for name, size in zip(names, columns, strict=True)))
    for name in [*names, *strangers]:
        row = judgement.confusion.get(name, {})
        cells = "".join(f"  {row.get(other, 0):>{size}}" for other, size in zip(names, columns, strict=True))
        lines.append(f"{name:{width}}{cells}")
    return lines


def _in_labels(judgement: EvaluationCounts, manifest: Manifest) -> EvaluationCounts:
    """The same with the bundle's labels as truth; recordings may name the model's own classes."""
    labels = manifest.output.labels
    places = places_of(judgement.confusion, labels, manifest.output.classes, "--label", some_strange=True)
    confusion: dict[str, dict[str, int]] = {}
    for right, row in judgement.confusion.items():
        into = confusion.setdefault(labels[places[right]] if right in places else right, {})
        for verdict, count in row.items():
            into[verdict] = into.get(verdict, 0) + count
    return EvaluationCounts(judgement.judged, judgement.without_truth, confusion, judgement.errors)


def _describe_class(judgement: EvaluationCounts, name: str) -> str:
    hits = judgement.confusion.get(name, {}).get(name, 0)
    true = sum(judgement.confusion.get(name, {}).values())
    marked = sum(row.get(name, 0) for row in judgement.confusion.values())
    precision = hits / marked if marked else 0.0
    recall = hits / true if true else 0.0
    f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
    return f"{precision:9.4f}  {recall:9.4f}  {f1:9.4f}  {true:10}"


def _describe_labels(confusion: dict[str, dict[str, int]]) -> list[str]:
    """F1 over all labels, and for each label."""
    width = max(9, *map(len, confusion))
    counts = {name: [row.get(kind, 0) for kind in ("hit", "missed", "false")] for name, row in confusion.items()}
    hits, missed, false = (sum(column) for column in zip(*counts.values(), strict=True))
    lines = [f"F1 over all labels {_f1(hits, missed, false):.4f}"]
    lines.append(f"{'':{width}}  precision     recall         f1     windows")
    for name, (hit, lost, wrong) in counts.items():
        precision = hit / (hit + wrong) if hit + wrong else 0.0
        recall = hit / (hit + lost) if hit + lost else 0.0
        lines.append(f"{name:{width}}  {precision:9.4f}  {recall:9.4f}  {_f1(hit, lost, wrong):9.4f}  {hit + lost:10}")
    return lines


def _f1(hits: int, missed: int, false: int) -> float:
    """1 where nothing is present and nothing was found."""
    return 2 * hits / (2 * hits + missed + false) if hits + missed + false else 1.0


def _describe_errors(name: str, sums: Errors) -> str:
    spread = sums.truth_squared - sums.truth**2 / sums.count
    r2 = f"{1 - sums.squared / spread:.4f}" if spread > 0 else "-"
    return f"{name}: MAE {sums.absolute / sums.count:.6g}, RMSE {math.sqrt(sums.squared / sums.count):.6g}, R2 {r2}"
