"""What counts as the same model, and what scores of a classifier must be."""

from typing import Any

import numpy as np
import pytest

from converter.fidelity import compare, label_is_not_the_largest, probability_fault
from converter.load.source import Answer


def classifier(windows: Any) -> Answer:
    """Two classes, separated by the sum of a window's readings; it jumps at 1."""
    total = windows.reshape(len(windows), -1).astype(np.float64).sum(axis=1)
    positive = np.where(total > 1.0, 0.9, 0.2)
    return Answer(label=(positive > 0.5).astype(np.int64), scores=np.stack([1 - positive, positive], axis=1))


def windows(n: int = 400) -> Any:
    """Readings around the jump, none of them on it."""
    return np.random.default_rng(0).normal(size=(n, 1, 3)).astype(np.float32)


def test_every_score_counts_and_the_worst_row_is_named() -> None:
    """One probability of one row is enough, although its label is right."""
    rows = windows()
    source, found = classifier(rows), classifier(rows)
    assert source.scores is not None
    assert found.scores is not None
    found.scores[17] = source.scores[17] + [1e-3, -1e-3]
    seen = compare(found, source, rows, classifier, names=("off", "on"))
    assert not seen.is_faithful
    assert seen.first is not None
    assert seen.first.row == 17
    assert seen.first.what in ("class 'off'", "class 'on'")
    found.scores[17] = source.scores[17] + [5e-5, -5e-5]
    assert compare(found, source, rows, classifier, names=("off", "on")).is_faithful


def test_a_row_on_which_the_source_jumps_is_told_apart_from_a_fault() -> None:
    """The source answers otherwise one rounding away: such a row is counted; a hundred of them are a fault."""
    rows = windows()
    rows[3] = [[0.5, 0.25, 0.25 + 1e-7]]
    source, found = classifier(rows), classifier(rows)
    assert found.scores is not None
    assert found.label is not None
    found.scores[3], found.label[3] = [0.8, 0.2], 0
    seen = compare(found, source, rows, classifier, names=("off", "on"))
    assert seen.is_faithful
    assert seen.boundary.tolist() == [3]
    rows[:100] = rows[3]
    source, found = classifier(rows), classifier(rows)
    found.scores[:100], found.label[:100] = [0.8, 0.2], 0  # type: ignore[index]
    assert not compare(found, source, rows, classifier, names=("off", "on")).is_faithful


def test_whole_numbers_of_a_category_are_not_taken_for_a_boundary() -> None:
    """An encoder knows 3 and not 3.000001, which excuses no wrong answer to 3."""

    def encoder(asked: Any) -> Answer:
        code = asked.reshape(-1).astype(np.float64)
        return Answer(value=np.where(np.isin(code, (0, 1, 2, 3)), code, -5.0)[:, None])

    rows = np.random.default_rng(0).integers(0, 4, (200, 1, 1)).astype(np.float32)
    source, found = encoder(rows), encoder(rows)
    assert found.value is not None
    row = int(np.flatnonzero(rows.reshape(-1) == 3)[0])
    found.value[row] = -5.0
    seen = compare(found, source, rows, encoder, names=("code",))
    assert seen.wrong.tolist() == [row]


def test_ties_of_scores_excuse_single_labels_and_not_many() -> None:
    """Where scores are equal a rounding may decide; a source that decides ties by another rule is not that."""

    def by_rule(asked: Any) -> Answer:
        return Answer(label=np.ones(len(asked), dtype=np.int64), scores=np.full((len(asked), 2), 0.5))

    rows = windows()
    found = by_rule(rows)
    assert found.label is not None
    found.label[7] = 0
    assert compare(found, by_rule(rows), rows, by_rule, names=("off", "on")).is_faithful
    found.label[:100] = 0
    seen = compare(found, by_rule(rows), rows, by_rule, names=("off", "on"))
    assert seen.first is not None
    assert str(seen.first) == "label: expected 'on' as in the source, found 'off'"


def test_each_target_is_judged_on_its_own_scale() -> None:
    """A small target beside a large one is not lost in it."""

    def regressor(asked: Any) -> Answer:
        x = asked.reshape(len(asked), -1).astype(np.float64)
        return Answer(value=np.stack([1e6 * x[:, 0], 1e-3 * x[:, 1]], axis=1))

    rows = windows()
    found = regressor(rows)
    assert found.value is not None
    found.value[5, 1] += 1e-4
    seen = compare(found, regressor(rows), rows, regressor, names=("power", "leak"))
    assert seen.first is not None
    assert (seen.first.row, seen.first.what) == (5, "target 'leak'")


def test_a_small_difference_of_large_terms_is_judged_by_the_terms() -> None:
    """What a reading's own rounding does to the source's answer, the converted model may do too."""

    def difference(asked: Any) -> Answer:
        x = asked.reshape(len(asked), -1).astype(np.float64)
        return Answer(score=1e4 * x[:, 0] - 1e4 * x[:, 1])

    rows = windows() + np.float32(100.0)
    rows[:, 0, 1] = rows[:, 0, 0] * (1 + 1e-6)
    found = difference(rows)
    assert found.score is not None
    off = Answer(score=found.score + 0.2)
    assert compare(off, difference(rows), rows, difference, names=("score",)).is_faithful
    assert not compare(
        Answer(score=found.score + 10.0), difference(rows), rows, difference, names=("score",)
    ).is_faithful


def test_an_answer_that_is_not_finite_is_a_fault_where_the_source_s_is() -> None:
    """NaN differs from every number, and infinity is right only beyond float32."""

    def source(asked: Any) -> Answer:
        return Answer(value=asked.reshape(len(asked), -1)[:, :1].astype(np.float64) * 1e30)

    rows = windows(20)
    rows[0] = 1e20
    with np.errstate(over="ignore"):
        right = Answer(value=np.asarray(source(rows).value, dtype=np.float32))
    assert compare(right, source(rows), rows, source, names=("y",)).is_faithful
    assert right.value is not None
    right.value[4] = np.nan
    assert compare(right, source(rows), rows, source, names=("y",)).wrong.tolist() == [4]


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ([[-0.2, 1.2]], "expected 0 to 1"),
        ([[0.6, 0.6]], "sum to 1.2, expected 1"),
        ([[np.nan, 0.5]], "is nan"),
        ([[0.9, 0.1], [0.2, 0.8]], "belongs to something else"),
    ],
)
def test_scores_that_are_no_probabilities_are_named(scores: Any, words: str) -> None:
    """Range, sum, and that the column of a class is high where the label is that class."""
    label = np.array([1, 0][: len(scores)])
    assert words in probability_fault(Answer(label=label, scores=np.array(scores)), ("a", "b"))


def test_scores_that_are_probabilities_pass() -> None:
    """Also those of classes with a probability each, and of a label that a threshold decides."""
    fair = Answer(label=np.array([0, 1]), scores=np.array([[0.9, 0.1], [0.4, 0.6]]))
    assert probability_fault(fair, ("a", "b")) == ""
    each = Answer(label=np.array([0, 1]), scores=np.array([[0.9, 0.2], [0.1, 0.8]]) + 0.1)
    assert "sum" in probability_fault(each, ("a", "b"))
    assert probability_fault(each, ("a", "b"), independent=True) == ""
    tuned = Answer(label=np.array([1, 1]), scores=np.array([[0.9, 0.1], [0.7, 0.3]]))
    assert probability_fault(tuned, ("a", "b"), own_rule=True) == ""
    assert label_is_not_the_largest(tuned) == 2
