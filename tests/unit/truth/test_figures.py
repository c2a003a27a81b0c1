"""What joined truth says: against scikit-learn and statsmodels' formulas worked on paper."""

import math
import random

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    hamming_loss,
    mean_absolute_error,
    multilabel_confusion_matrix,
    root_mean_squared_error,
)

from edge_runtime.truth.figures import TruthFigures, TruthSums, hamming, summed, wilson


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe, Statistics in Medicine 17 (1998), table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 1 - 0.1170, 1.0),
    ],
)
def test_the_interval_is_wilsons(right: int, n: int, low: float, high: float) -> None:
    """As published for other data; the last row is 0 of 29 read backwards."""
    found = wilson(right, n)
    assert found[0] == pytest.approx(low, abs=5e-5)
    assert found[1] == pytest.approx(high, abs=5e-5)


def test_labels_are_counted_as_scikit_learn_counts_them() -> None:
    """Confusion and accuracy over 500 windows."""
    rng = random.Random(1)
    labels = ["a", "b", "c"]
    truth = [rng.choice(labels) for _ in range(500)]
    answered = [each if rng.random() < 0.8 else rng.choice(labels) for each in truth]
    figures = TruthFigures()
    assert [figures.judge(one, other, ()) for one, other in zip(answered, truth, strict=True)] == [
        one == other for one, other in zip(answered, truth, strict=True)
    ]
    document = figures.document()
    expected = confusion_matrix(truth, answered, labels=labels)
    assert [[document["confusion"][row].get(column, 0) for column in labels] for row in labels] == expected.tolist()
    assert document["accuracy"] == pytest.approx(np.trace(expected) / 500)
    assert document["n"] == 500


def test_errors_are_those_of_scikit_learn() -> None:
    """For each target by itself."""
    rng = np.random.default_rng(2)
    truth, answered = rng.normal(size=(80, 2)), rng.normal(size=(80, 2))
    figures = TruthFigures()
    for one, other in zip(answered.tolist(), truth.tolist(), strict=True):
        assert figures.judge(one, other, ("x", "y")) is None
    document = figures.document()
    assert (document["accuracy"], document["interval"], document["confusion"]) == (None, None, {})
    for place, name in enumerate("xy"):
        found, off = document["errors"][name], np.abs(answered[:, place] - truth[:, place])
        assert found["mae"] == pytest.approx(mean_absolute_error(truth[:, place], answered[:, place]), rel=1e-5)
        assert found["rmse"] == pytest.approx(root_mean_squared_error(truth[:, place], answered[:, place]), rel=1e-5)
        assert found["bias"] == pytest.approx(float((answered - truth)[:, place].mean()), rel=1e-5)
        half = 1.959964 * off.std(ddof=1) / math.sqrt(80)
        assert found["interval"] == pytest.approx([off.mean() - half, off.mean() + half], rel=1e-5)


def test_an_anomaly_is_a_word_in_the_confusion() -> None:
    """And nothing is reported before the first truth."""
    figures = TruthFigures()
    assert figures.is_empty
    assert figures.document() == {"n": 0, "accuracy": None, "interval": None, "confusion": {}}
    figures.judge(answer=True, truth=False, targets=())
    figures.judge(answer=False, truth=False, targets=())
    assert figures.document()["confusion"] == {"normal": {"anomaly": 1, "normal": 1}}


def test_the_sum_of_devices_is_what_one_device_would_have_counted() -> None:
    """Confusion, accuracy and interval; errors by their share of n."""
    rng = random.Random(3)
    parts, whole = [TruthFigures(), TruthFigures(), TruthFigures()], TruthFigures()
    for number in range(300):
        answered, true = rng.choice("ab"), rng.choice("ab")
        parts[number % 3].judge(answered, true, ())
        whole.judge(answered, true, ())
    assert summed([_sums(part) for part in parts]) == whole.document()
    parts, whole = [TruthFigures(), TruthFigures()], TruthFigures()
    for number in range(100):
        pair = [rng.random()], [rng.random()]
        parts[number % 10 == 0].judge(*pair, ("t",))
        whole.judge(*pair, ("t",))
    found = summed([_sums(part) for part in parts])
    assert found["n"] == 100
    assert found["errors"]["t"]["mae"] == pytest.approx(whole.document()["errors"]["t"]["mae"], rel=1e-4)


def test_several_labels_are_counted_as_scikit_learn_counts_them() -> None:
    """The four cells of each label, the Hamming loss, and the share of windows of which every label is right."""
    rng = np.random.default_rng(4)
    truth = rng.random((300, 3)) < 0.4
    answered = truth ^ (rng.random((300, 3)) < [0.05, 0.2, 0.3])
    names, figures = ("a", "b", "c"), TruthFigures()
    for one, other in zip(answered.tolist(), truth.tolist(), strict=True):
        assert figures.judge_labels(one, other, names) == (one == other)
    document = figures.document()
    cells = multilabel_confusion_matrix(truth, answered)
    for name, ((rest, false), (missed, hit)) in zip(names, cells.tolist(), strict=True):
        assert document["labels"][name] == {"hit": hit, "missed": missed, "false": false, "rest": rest}
    assert document["hamming"] == pytest.approx(hamming_loss(truth, answered), rel=1e-5)
    assert document["accuracy"] == pytest.approx(accuracy_score(truth, answered), rel=1e-5)
    assert document["right"] == round(300 * accuracy_score(truth, answered))


def test_several_labels_of_devices_are_summed_cell_by_cell() -> None:
    """As one device would have counted them; one without any truth adds nothing."""
    rng = np.random.default_rng(5)
    parts, whole = [TruthFigures(), TruthFigures(), TruthFigures()], TruthFigures()
    for number in range(200):
        pair = (rng.random(2) < 0.5).tolist(), (rng.random(2) < 0.5).tolist()
        parts[number % 2].judge_labels(*pair, ("a", "b"))
        whole.judge_labels(*pair, ("a", "b"))
    assert summed([_sums(part) for part in parts]) == whole.document()


def test_an_error_needs_two_windows_for_an_interval() -> None:
    """Worked on paper: absolute errors of 1 and 3 have the mean 2 and the standard deviation sqrt 2."""
    figures = TruthFigures()
    figures.judge([4.0], [5.0], ("t",))
    assert figures.document()["errors"] == {"t": {"mae": 1.0, "interval": None, "rmse": 1.0, "bias": -1.0}}
    figures.judge([8.0], [5.0], ("t",))
    found = figures.document()["errors"]["t"]
    assert (found["mae"], found["bias"], found["rmse"]) == (2.0, 1.0, pytest.approx(math.sqrt(5.0), rel=1e-5))
    assert found["interval"] == pytest.approx([2.0 - 1.959964, 2.0 + 1.959964], abs=1e-5)


def test_the_interval_of_an_error_ends_at_nought() -> None:
    """No absolute error is below it; equal errors have an interval without width."""
    figures = TruthFigures()
    for error in (0.0, 0.0, 0.0, 8.0):
        figures.judge([error], [0.0], ("t",))
    low, high = figures.document()["errors"]["t"]["interval"]
    assert (low, high) == (0.0, pytest.approx(2.0 + 1.959964 * 4.0 / 2.0, rel=1e-5))
    equal = TruthFigures()
    for _ in range(7):
        equal.judge([0.1], [0.0], ("t",))
    assert equal.document()["errors"]["t"]["interval"] == [0.1, 0.1]


def test_truth_that_was_not_joined_is_counted_by_reason() -> None:
    """Each makes the figures worth a document, and none changes the accuracy."""
    figures = TruthFigures()
    assert figures.is_empty
    assert (figures.n, figures.right, figures.withheld) == (0, 0, 0)
    for _ in range(3):
        figures.note_unmatched("late")
    assert not figures.is_empty
    refused = TruthFigures()
    for _ in range(2):
        refused.note_refused("malformed")
    assert not refused.is_empty
    assert (figures.unmatched, figures.refused) == ({"late": 3}, {})
    assert (refused.unmatched, refused.refused) == ({}, {"malformed": 2})
    assert figures.document()["accuracy"] is None
    judged = TruthFigures()
    judged.judge("a", "a", ())
    assert not judged.is_empty


def test_figures_have_six_digits() -> None:
    """Two thirds, and their share of right ones."""
    figures = TruthFigures()
    for answer in ("a", "a", "b"):
        figures.judge(answer, "a", ())
    assert figures.document()["accuracy"] == 0.666667


def test_an_interval_ends_at_nought_and_at_one() -> None:
    """Also by rounding, for every number of windows of which none or all are right."""
    for n in range(1, 500):
        low, high = wilson(0, n)
        assert low == pytest.approx(0.0, abs=1e-12)
        assert 0.0 <= low < high < 1.0
        low, high = wilson(n, n)
        assert high == pytest.approx(1.0, abs=1e-12)
        assert 0.0 < low < high <= 1.0


def test_cells_that_a_document_leaves_out_are_nought() -> None:
    """A label that is never confused, and one that is never answered, as a device of another release may send them."""
    assert hamming({"a": {"hit": 3}, "b": {"missed": 1}}) == 0.25
    assert hamming({"a": {"false": 1, "rest": 3}}) == 0.25
    assert hamming({}) is None
    found = summed([TruthSums(4, {"a": {"b": 3}, "b": {"b": 1}}, {})])
    assert (found["n"], found["accuracy"]) == (4, 0.25)


def test_devices_with_several_labels_are_summed_beside_those_with_one() -> None:
    """Each kind has its right ones at another place; one device of each, worked on paper."""
    labels = {"a": {"hit": 2, "missed": 0, "false": 1, "rest": 1}}
    found = summed([TruthSums(4, {}, {}, labels, 3), TruthSums(6, {"x": {"x": 5, "y": 1}}, {})])
    assert (found["n"], found["right"], found["accuracy"], found["hamming"]) == (10, 8, 0.8, 0.25)
    assert found["labels"] == labels
    assert summed([TruthSums(4, {}, {}, labels)])["right"] == 0


def test_errors_of_devices_are_weighted_by_their_windows() -> None:
    """A device without this target adds nothing, and none gives no figure."""
    one = TruthSums(1, {}, {"t": {"mae": 2.0, "bias": -2.0}})
    three = TruthSums(3, {}, {"t": {"mae": 4.0, "bias": 2.0}, "u": {"mae": 1.0, "bias": 1.0}})
    found = summed([one, three])
    assert found["errors"] == {"t": {"mae": 3.5, "bias": 1.0}, "u": {"mae": 1.0, "bias": 1.0}}
    assert summed([one])["errors"] == {"t": {"mae": 2.0, "bias": -2.0}}
    assert summed([]) == {"n": 0, "accuracy": None, "interval": None, "confusion": {}}


def _sums(figures: TruthFigures) -> TruthSums:
    document = figures.document()
    return TruthSums(
        document["n"],
        document["confusion"],
        document.get("errors", {}),
        document.get("labels", {}),
        document.get("right", 0),
    )
