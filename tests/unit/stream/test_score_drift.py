"""The stability index: small for samples of one distribution, large for those of two, silent where there are few."""

import math

import numpy as np
import pytest

from edge_runtime.bundle.model import Scores
from edge_runtime.stream.score_drift import ENOUGH, KEPT, ScoreSample, shift, stability_index


def sample(values: object) -> ScoreSample:
    """A bundle's answers."""
    found = ScoreSample()
    found.add(Scores(score=np.asarray(values, np.float32)))
    return found


def test_chance_alone_stays_far_below_the_usual_bound() -> None:
    """Two samples of one distribution, a hundred times over."""
    rng = np.random.default_rng(5)
    found = [shift(sample(rng.normal(size=ENOUGH)), sample(rng.normal(size=ENOUGH))) for _ in range(100)]
    assert max(each or 0.0 for each in found) < 0.12


@pytest.mark.parametrize(("by", "times"), [(1.0, 1.0), (0.0, 3.0)])
def test_a_moved_or_widened_distribution_is_far_above_it(by: float, times: float) -> None:
    """One standard deviation aside, or three times as wide."""
    rng = np.random.default_rng(6)
    found = shift(sample(rng.normal(size=ENOUGH)), sample(rng.normal(size=ENOUGH) * times + by))
    assert found is not None
    assert found > 0.25


def test_scores_that_never_change_do_not_drift() -> None:
    """A model that always says the same has one bin; another constant is another distribution."""
    old = np.full(ENOUGH, 0.5, np.float32)
    assert stability_index(old, old) == pytest.approx(0.0)
    assert stability_index(old, old + 0.1) > 1.0


def test_too_few_windows_say_nothing() -> None:
    """Without enough of both there is no verdict, nor without a predecessor, nor between different outputs."""
    many, few = sample(np.zeros(ENOUGH)), sample(np.zeros(ENOUGH - 1))
    assert shift(many, few) is None
    assert shift(None, many) is None
    other = ScoreSample()
    other.add(Scores(value=np.zeros((ENOUGH, 2), np.float32)))
    assert shift(many, other) is None


def test_a_sample_holds_the_last_answers() -> None:
    """Memory is bounded, and what is not finite is left out."""
    found = sample(np.zeros(KEPT))
    found.add(Scores(score=np.full(3 * KEPT, 7, np.float32)))
    found.add(Scores(score=np.array([np.nan], np.float32)))
    assert found.rows.shape == (KEPT, 1)
    assert (found.rows == 7).all()


def test_each_number_is_judged_by_itself() -> None:
    """The largest index counts."""
    rng = np.random.default_rng(7)
    old, new = ScoreSample(), ScoreSample()
    old.add(Scores(value=rng.normal(size=(ENOUGH, 2)).astype(np.float32)))
    new.add(Scores(value=(rng.normal(size=(ENOUGH, 2)) + np.array([0, 2])).astype(np.float32)))
    assert (shift(old, new) or 0) > 0.25


def test_the_index_is_that_of_its_formula() -> None:
    """Counted on paper: ten bins with ten old scores each, nine edges between them, half a count added to each."""
    old = np.arange(100, dtype=np.float32)
    new = old + 50  # none below 50, ten in each of four bins, and sixty from 90 on
    total = 100 + 19 * 0.5
    expected = 5 * (0.5 - 10.5) / total * math.log(0.5 / 10.5) + (60.5 - 10.5) / total * math.log(60.5 / 10.5)
    assert stability_index(old, new) == pytest.approx(expected, rel=1e-6)


def test_exactly_enough_answers_are_judged() -> None:
    """Of the new bundle as of the old one."""
    enough, few = sample(np.zeros(ENOUGH)), sample(np.zeros(ENOUGH - 1))
    assert shift(enough, enough) == pytest.approx(0.0)
    assert shift(few, enough) is None
    assert shift(enough, None) is None


def test_the_oldest_answers_make_room_for_the_newest() -> None:
    """One for one, in whatever pieces they come."""
    found = ScoreSample()
    assert found.rows.shape == (0, 1)
    for first in range(0, 3000, 7):
        found.add(Scores(score=np.arange(first, first + 7, dtype=np.float32)))
        kept = min(first + 7, KEPT)
        assert sorted(found.rows[:, 0].tolist()) == list(range(first + 7 - kept, first + 7))


def test_an_answer_with_a_number_that_is_not_finite_is_left_out_whole() -> None:
    """The others of its row with it."""
    found = ScoreSample()
    found.add(Scores(scores=np.array([[1, 2], [np.inf, 3], [4, np.nan], [5, 6]], np.float32)))
    assert found.rows.tolist() == [[1.0, 2.0], [5.0, 6.0]]


def test_labels_have_scores_and_other_tensors_have_none() -> None:
    """Numbers of an output that only its reader understands are not compared."""
    found = ScoreSample()
    found.add(Scores(tensors={"mask": np.ones((3, 2), np.float32)}))
    assert found.rows.shape == (0, 1)
    scores = np.array([[0.25, 0.75]], np.float32)
    found.add(Scores(tensors={"labels": np.array([[0, 1]]), "scores": scores}))
    assert found.rows.tolist() == scores.tolist()
