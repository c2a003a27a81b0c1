"""Sets, intervals and calibrated scores: against plain arithmetic, scikit-learn, and data whose truth is known."""

import math
from fractions import Fraction

import numpy as np
import pytest
from sklearn.isotonic import isotonic_regression

from converter.evaluate import Truth
from converter.load.source import Answer
from converter.spec import UncertaintySpec
from converter.uncertainty import (
    HeldOut,
    check_spec,
    confidence_of,
    half_width,
    in_words,
    is_inside,
    least_rows,
    least_score,
    uncertainty_of,
)
from edge_runtime.errors import CommandError


def _answer(rng: np.random.Generator, rows: int, sharpness: float = 2.0) -> tuple[Answer, Truth]:
    """Three classes whose probabilities are the very chances that the truth was drawn by."""
    logits = sharpness * rng.normal(size=(rows, 3))
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    label = np.array([rng.choice(3, p=row) for row in scores])
    return Answer(label=scores.argmax(axis=1), scores=scores.astype(np.float32)), Truth(label=label)


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("rows", [19, 20, 99, 100, 199, 1000])
def test_the_quantile_is_the_one_of_the_book(rows: int, coverage: float) -> None:
    """ceil((n + 1)(1 - alpha)) of n sorted scores (Angelopoulos and Bates 2021, section 1), in whole numbers."""
    rng = np.random.default_rng(rows)
    right = rng.random(rows).astype(np.float32)
    place = math.ceil((rows + 1) * Fraction(str(coverage)))
    if place > rows:
        assert rows < least_rows(coverage)
        return
    assert rows >= least_rows(coverage)
    strange = sorted(1 - right.astype(np.float64))
    assert least_score(right, coverage) == pytest.approx(1 - strange[place - 1], abs=1e-12)
    errors = rng.exponential(size=rows)
    wanted = sorted(errors)[place - 1]
    assert wanted <= half_width(errors, coverage) <= np.nextafter(np.float32(wanted), np.float32(np.inf))


@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
def test_the_coverage_asked_for_is_held_on_rows_that_were_not_seen(coverage: float) -> None:
    """Over 200 draws of 500 rows the mean is within what the theorem allows, for sets and for intervals."""
    rng = np.random.default_rng(7)
    spec, sets, ranges = UncertaintySpec(coverage=coverage), [], []
    for _ in range(200):
        one, other = _answer(rng, 500), _answer(rng, 200)
        made = uncertainty_of(spec, one, other)
        inside = is_inside(made, *other)
        assert inside is not None
        assert made.held == pytest.approx(inside.mean(), abs=1e-6)
        sets.append(inside.mean())
        values = rng.normal(size=(700, 1))
        noisy = Answer(value=(values + rng.standard_t(3, size=(700, 1))).astype(np.float32))
        rows = np.arange(700)
        interval = uncertainty_of(
            spec,
            (noisy.rows(rows[:500]), Truth(value=values[:500])),
            (noisy.rows(rows[500:]), Truth(value=values[500:])),
        )
        assert interval.held is not None
        ranges.append(interval.held)
    for found in (sets, ranges):
        assert coverage - 0.005 < np.mean(found) < coverage + 1 / 501 + 0.005


def test_scores_become_chances_as_isotonic_regression_has_it() -> None:
    """On the means of the same bins scikit-learn gives the same shares."""
    rng = np.random.default_rng(3)
    answer, truth = _answer(rng, 2000)
    assert answer.scores is not None
    assert answer.label is not None
    assert truth.label is not None
    found = confidence_of(answer, truth.label)
    score, hits = answer.scores.max(axis=1).astype(float), answer.label == truth.label
    bins = np.array_split(np.argsort(score, kind="stable"), 20)
    fitted = isotonic_regression([hits[rows].mean() for rows in bins], sample_weight=[len(rows) for rows in bins])
    assert sorted(set(np.round(fitted, 6))) == pytest.approx(found.shares, abs=2e-6)
    assert list(found.shares) == sorted(found.shares)


def test_overconfident_scores_are_corrected() -> None:
    """Probabilities that are far too sure: their mean promises 0.93, the calibrated ones what is right."""
    rng = np.random.default_rng(5)
    answers = []
    for _ in range(2):
        answer, truth = _answer(rng, 4000, sharpness=1.0)
        assert answer.scores is not None
        sharp = answer.scores.astype(float) ** 6
        sharp /= sharp.sum(axis=1, keepdims=True)
        answers.append((Answer(label=answer.label, scores=sharp.astype(np.float32)), truth))
    made = uncertainty_of(UncertaintySpec(), answers[0], answers[1])
    known = made.confidence
    assert made.least is None
    assert known is not None
    assert known.accuracy is not None
    assert answers[1][0].scores is not None
    assert float(answers[1][0].scores.max(axis=1).mean()) > known.accuracy + 0.15
    assert known.estimated == pytest.approx(known.accuracy, abs=0.02)


@pytest.mark.parametrize(
    ("task", "rows", "has_truth", "sentence"),
    [
        ("anomaly", 100, True, "expected a model of the task classification or regression, found anomaly"),
        ("multilabel", 100, True, "found multilabel: leave it out, or build one model for each label"),
        ("classification", 100, False, "expected rows with their truth to calibrate by, found none"),
        ("classification", 18, True, "expected at least 19 rows to calibrate a coverage of 0.95 by, found 18"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(task: str, rows: int, has_truth: bool, sentence: str) -> None:
    """With the remedy in the same sentence."""
    with pytest.raises(CommandError, match=sentence):
        check_spec(UncertaintySpec(coverage=0.95), task, rows, has_truth=has_truth, place="data.csv")  # type: ignore[arg-type]


def test_the_user_is_told_what_was_held_and_by_which_rows() -> None:
    """Coverage with its interval and its blocks, how well scores were calibrated, and the caveat about training."""
    rng = np.random.default_rng(9)
    one, other = _answer(rng, 500), _answer(rng, 1000)
    spec = UncertaintySpec(coverage=0.9)
    held = HeldOut(spec, np.zeros((500, 1), np.float32), one[1], np.repeat(np.arange(5), 200), "500 rows of d.npz")
    answered = in_words(uncertainty_of(spec, one, other), held, *other)
    assert answered[0].startswith("uncertainty: asked for 0.9, ")
    assert "of 1,000 unseen rows" in answered[0]
    assert "calibrated scores: on 1,000 unseen rows" in answered[1]
    answer, truth = other
    known = uncertainty_of(spec, one, other).confidence
    assert known is not None
    assert answer.scores is not None
    assert truth.label is not None
    off = []
    for block in range(5):  # of the rows that check, by a plain list
        rows = range(200 * block, 200 * block + 200)
        chances = [np.interp(float(answer.scores[row].max()), known.scores, known.shares) for row in rows]
        right = [int(answer.scores[row].argmax()) == int(truth.label[row]) for row in rows]
        off.append(abs(sum(chances) - sum(right)) / 200)
    assert answered[1].endswith(f", over 5 blocks by {sum(off) / 5:.2g}, at most by {max(off):.2g}")
    assert "500 rows of d.npz" in answered[2]
    assert "hold them out of training" in answered[2]
