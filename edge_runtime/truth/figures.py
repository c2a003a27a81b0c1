"""The accuracy and the errors of a model, from counts of joined truth. Pure.

    accuracy   right / n, with Wilson's interval of 95 % (Wilson, JASA 22, 1927): for a share p of n
               (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n),  z = 1.96
    labels     of a multi-label model, for each label: hit, missed, false and rest, which are the four cells of its
               own confusion; hamming is the share of wrong labels among all labels of all windows (Hamming loss),
               and a prediction is right if every label is right
    errors     of each target of a regression: mean absolute error with its interval of 95 % (mean +- z s / sqrt n),
               root mean square, and bias (prediction - truth)

Weak point: the intervals assume independent windows. Neighbours in time are not independent, and truth is often known
for chosen windows only, so that the real uncertainty is larger.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from edge_runtime.truth.memory import Answer, word_of

Z = 1.959963984540054  # of 95 %
DIGITS = 6
CELLS = ("hit", "missed", "false", "rest")  # of a label: true and predicted, true only, predicted only, neither


class ErrorSums(msgspec.Struct):
    """Sums over the errors of one target."""

    signed: float = 0.0
    absolute: float = 0.0
    squared: float = 0.0


class TruthFigures(msgspec.Struct):
    """The counts since the model began to use this bundle.

    Attributes:
        n: the number of judged predictions.
        right: the number of right ones among them.
        confusion: truth -> prediction -> windows.
        errors: by target.
        labels: of a multi-label model, label -> `hit`, `missed`, `false` or `rest` -> windows.
        withheld: the number of judged predictions that had not been published.
        unmatched: the number of truths that could not be joined, by reason.
        refused: the number of truths that could not be read, by reason.
    """

    n: int = 0
    right: int = 0
    confusion: dict[str, dict[str, int]] = {}
    errors: dict[str, ErrorSums] = {}
    labels: dict[str, dict[str, int]] = {}
    withheld: int = 0
    unmatched: dict[str, int] = {}
    refused: dict[str, int] = {}

    def judge(self, answer: Answer, truth: Answer, targets: tuple[str, ...]) -> bool | None:
        """Count one prediction with its truth. Return whether it was right; None for values."""
        self.n += 1
        if isinstance(answer, list):
            assert isinstance(truth, list)
            for name, predicted, true in zip(targets, answer, truth, strict=True):
                sums = self.errors.setdefault(name, ErrorSums())
                error = predicted - true
                sums.signed += error
                sums.absolute += abs(error)
                sums.squared += error * error
            return None
        row = self.confusion.setdefault(word_of(truth), {})
        row[word_of(answer)] = row.get(word_of(answer), 0) + 1
        is_right = answer == truth
        self.right += is_right
        return is_right

    def judge_labels(self, answer: list[bool], truth: list[bool], labels: tuple[str, ...]) -> bool:
        """Count a prediction of several labels, one element for each. Return whether every label was right."""
        self.n += 1
        for name, predicted, true in zip(labels, answer, truth, strict=True):
            row = self.labels.setdefault(name, dict.fromkeys(CELLS, 0))
            row[("hit" if predicted else "missed") if true else ("false" if predicted else "rest")] += 1
        is_right = answer == truth
        self.right += is_right
        return is_right

    def note_unmatched(self, reason: str) -> None:
        """Count a truth without a prediction, by reason."""
        self.unmatched[reason] = self.unmatched.get(reason, 0) + 1

    def note_refused(self, reason: str) -> None:
        """Count a message that is not a valid truth, by reason."""
        self.refused[reason] = self.refused.get(reason, 0) + 1

    @property
    def is_empty(self) -> bool:
        """Nothing was counted."""
        return not (self.n or self.unmatched or self.refused)

    def document(self) -> dict[str, Any]:
        """The figures' part of the document of `edge/{device}/accuracy/{model}`."""
        has_labels = bool(self.n) and not self.errors
        return {
            "n": self.n,
            "accuracy": _round(self.right / self.n) if has_labels else None,
            "interval": [_round(each) for each in wilson(self.right, self.n)] if has_labels else None,
            "confusion": self.confusion,
            **({"right": self.right, "hamming": hamming(self.labels), "labels": self.labels} if self.labels else {}),
            **({"errors": {name: self._error(sums) for name, sums in self.errors.items()}} if self.errors else {}),
        }

    def _error(self, sums: ErrorSums) -> dict[str, Any]:
        mean = sums.absolute / self.n
        spread = math.sqrt(max(0.0, sums.squared / self.n - mean * mean) * self.n / max(1, self.n - 1))
        half = Z * spread / math.sqrt(self.n)
        return {
            "mae": _round(mean),
            "interval": [_round(max(0.0, mean - half)), _round(mean + half)] if self.n > 1 else None,
            "rmse": _round(math.sqrt(sums.squared / self.n)),
            "bias": _round(sums.signed / self.n),
        }


def hamming(labels: Mapping[str, Mapping[str, int]]) -> float | None:
    """The share of wrong labels among all labels of all windows; None without any."""
    wrong = sum(row.get("missed", 0) + row.get("false", 0) for row in labels.values())
    judged = sum(sum(row.values()) for row in labels.values())
    return _round(wrong / judged) if judged else None


def wilson(right: int, n: int) -> tuple[float, float]:
    """Wilson's interval of 95 % for a share; n is 1 or more."""
    share, square = right / n, Z * Z / n
    middle = share + square / 2
    half = Z * math.sqrt(share * (1 - share) / n + square / (4 * n))
    low, high = (middle - half) / (1 + square), (middle + half) / (1 + square)
    return max(0.0, low), min(1.0, high)


class TruthSums(NamedTuple):
    """The figures of one device, as in its document."""

    n: int
    confusion: Mapping[str, Mapping[str, int]]
    errors: Mapping[str, Mapping[str, Any]]
    labels: Mapping[str, Mapping[str, int]] = {}
    right: int = 0  # of a multi-label model; other tasks have it in the confusion


def summed(parts: Sequence[TruthSums]) -> dict[str, Any]:
    """The figures of several devices together; errors of regressions by their share of n."""
    confusion = _added([part.confusion for part in parts])
    labels = _added([part.labels for part in parts])
    judged = sum(sum(row.values()) for row in confusion.values())
    right = sum(row.get(truth, 0) for truth, row in confusion.items())
    if labels:
        several = [part for part in parts if part.labels]
        judged, right = judged + sum(part.n for part in several), right + sum(part.right for part in several)
    errors = {
        name: {
            figure: _mean([(float(part.errors[name][figure]), part.n) for part in parts if name in part.errors])
            for figure in ("mae", "bias")
        }
        for name in sorted({name for part in parts for name in part.errors})
    }
    return {
        "n": sum(part.n for part in parts),
        "accuracy": _round(right / judged) if judged else None,
        "interval": [_round(each) for each in wilson(right, judged)] if judged else None,
        "confusion": confusion,
        **({"right": right, "hamming": hamming(labels), "labels": labels} if labels else {}),
        **({"errors": errors} if errors else {}),
    }


def _added(tables: Sequence[Mapping[str, Mapping[str, int]]]) -> dict[str, dict[str, int]]:
    """The sum of tables, cell by cell."""
    total: dict[str, dict[str, int]] = {}
    for table in tables:
        for name, row in table.items():
            into = total.setdefault(name, {})
            for cell, count in row.items():
                into[cell] = into.get(cell, 0) + count
    return total


def _mean(pairs: Sequence[tuple[float, int]]) -> float:
    """The mean, weighted by the number of judged predictions."""
    return _round(sum(value * count for value, count in pairs) / max(1, sum(count for _, count in pairs)))


def _round(value: float) -> float:
    """Round to six digits: more would be noise, and would lengthen the document."""
    return float(f"{value:.{DIGITS}g}")
