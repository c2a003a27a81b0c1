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

from edge_runtime.truth.figures import TruthFigures, TruthSums, summed, wilson


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


def _sums(figures: TruthFigures) -> TruthSums:
    document = figures.document()
    return TruthSums(
        document["n"],
        document["confusion"],
        document.get("errors", {}),
        document.get("labels", {}),
        document.get("right", 0),
    )
