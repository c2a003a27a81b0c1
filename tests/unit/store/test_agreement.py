"""How far two models agree: counted by hand in small cases, bounded in long ones."""

import json
from typing import Any

import numpy as np
import pytest

from edge_runtime.bundle.manifest import Manifest, read_manifest
from edge_runtime.bundle.model import Scores
from edge_runtime.store.agreement import KEPT, Agreement, Differences
from tests.support import builders


def manifest(draft: builders.Draft) -> Manifest:
    """Of a draft."""
    return read_manifest(json.dumps(draft.manifest), "draft")


def classes(*rows: tuple[float, float]) -> Scores:
    """Scores of the labels low and high."""
    scores = np.array(rows, np.float32)
    return Scores(label=scores.argmax(axis=1).astype(np.int64), scores=scores)


def test_labels_are_counted_against_each_other() -> None:
    """Who reported what where the other reported what, the share of equal labels, and the difference of the scores."""
    both = manifest(builders.classification())
    found = Agreement(both, both)
    found.add(classes((0.75, 0.25), (0.75, 0.25)), classes((0.5, 0.5), (0.25, 0.75)))
    found.add(classes((0.25, 0.75), (0.0, 1.0)), classes((0.25, 0.75), (0.0, 1.0)))
    found.took("active", 0.001)
    found.took("shadow", 0.004)
    document = found.document()
    assert document["compared"] == 4
    assert document["labels"] == {
        "same": 3,
        "share": 0.75,
        "active_to_shadow": {"low": {"low": 1, "high": 1}, "high": {"high": 2}},
    }
    assert document["difference"]["score"] == {"mean": 0.1875, "p50": 0.25, "p90": 0.5, "p99": 0.5, "max": 0.5}
    assert document["latency_ms"] == {"active": {"p50": 1.0, "p99": 1.0}, "shadow": {"p50": 4.0, "p99": 4.0}}


def test_an_anomaly_is_judged_by_each_ones_own_threshold() -> None:
    """Unless the configuration sets one for both."""
    strict, lax = (manifest(builders.anomaly(threshold=threshold)) for threshold in (1.0, 3.0))
    scores = Scores(score=np.array([0.5, 2.0, 4.0], np.float32))
    own, common = Agreement(strict, lax), Agreement(strict, lax, 1.0)
    for each in (own, common):
        each.add(scores, scores)
    assert own.document()["labels"]["active_to_shadow"] == {
        "normal": {"normal": 1},
        "anomaly": {"normal": 1, "anomaly": 1},
    }
    assert common.document()["labels"]["same"] == 3


def test_each_target_of_a_regression_has_its_own_differences() -> None:
    """Targets have units of their own, and no labels."""
    both = manifest(builders.regression(targets=("power", "torque")))
    found = Agreement(both, both)
    found.add(Scores(value=np.array([[1, 10]], np.float32)), Scores(value=np.array([[2, 10]], np.float32)))
    document = found.document()
    assert "labels" not in document
    assert document["difference"]["power"]["max"] == 1.0
    assert document["difference"]["torque"]["max"] == 0.0


def test_nan_is_counted_and_never_published() -> None:
    """A shadow's NaN is a figure of its own, and the document stays JSON."""
    both = manifest(builders.classification())
    found = Agreement(both, both)
    found.add(classes((0.5, 0.5)), classes((np.nan, 0.5)))
    document = found.document()
    assert (document["compared"], document["not_finite"]) == (0, 1)
    assert document["labels"]["share"] is None
    assert "NaN" not in json.dumps(document)


def test_the_maximum_is_of_all_and_the_quantiles_of_the_last() -> None:
    """Memory is bounded however long a shadow runs."""
    both = manifest(builders.anomaly())
    found = Agreement(both, both)
    zeros = Scores(score=np.zeros(KEPT, np.float32))
    found.add(Scores(score=np.array([9.0], np.float32)), Scores(score=np.array([0.0], np.float32)))
    for _ in range(3):
        found.add(zeros, zeros)
    difference = found.document()["difference"]["score"]
    assert found.compared == 3 * KEPT + 1
    assert (difference["p99"], difference["max"]) == (0.0, 9.0)


def test_before_the_first_window_there_are_no_figures() -> None:
    """Empty, and not NaN or 0."""
    both = manifest(builders.classification())
    assert Agreement(both, both).document() == {
        "compared": 0,
        "not_finite": 0,
        "labels": {"same": 0, "share": None, "active_to_shadow": {}},
        "difference": {"score": {}},
        "latency_ms": {"active": {}, "shadow": {}},
    }


@pytest.mark.parametrize("at_once", [1, 7, KEPT, 3 * KEPT])
def test_figures_are_those_of_numpy_over_the_last_windows(at_once: int) -> None:
    """However many windows come together: the ring holds the last 4096, mean and maximum are of all."""
    assert KEPT == 4096
    count = 2 * KEPT + 137 if at_once > 1 else KEPT + 137
    gaps = np.random.default_rng(5).exponential(size=count)
    differences = Differences()
    for at in range(0, count, at_once):
        differences.add(gaps[at : at + at_once])
    differences.add(gaps[:0])
    found, last = differences.document(), gaps[-KEPT:]
    assert list(found) == ["mean", "p50", "p90", "p99", "max"]
    assert found["mean"] == pytest.approx(gaps.mean(), rel=1e-6)
    assert found["max"] == pytest.approx(gaps.max(), rel=1e-6)
    for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
        assert found[name] == pytest.approx(np.quantile(last, share, method="higher"), rel=1e-6)


def test_few_windows_are_not_mixed_with_the_empty_part_of_the_ring() -> None:
    """The quantiles of two are of two."""
    differences = Differences()
    differences.add(np.array([2.0, 4.0]))
    assert differences.document() == {"mean": 3.0, "p50": 4.0, "p90": 4.0, "p99": 4.0, "max": 4.0}


def test_every_window_with_a_number_that_is_not_finite_is_left_out() -> None:
    """In either model; only those of the shadow are counted as its fault."""
    both = manifest(builders.classification())
    found = Agreement(both, both)
    nan, inf = float("nan"), float("inf")
    found.add(
        classes((0.5, 0.5), (nan, 0.5), (0.5, 0.5), (1.0, 0.0), (inf, 0.0)),
        classes((0.5, 0.5), (0.5, 0.5), (0.5, inf), (0.0, 1.0), (nan, 0.0)),
    )
    document = found.document()
    assert (document["compared"], document["not_finite"]) == (2, 2)
    assert document["labels"]["active_to_shadow"] == {"low": {"low": 1, "high": 1}}
    assert document["difference"]["score"]["max"] == 1.0


def test_the_difference_of_a_classification_is_that_of_its_scores_furthest_apart() -> None:
    """Computed in double precision, whatever the sign."""
    both = manifest(builders.classification())
    found = Agreement(both, both)
    found.add(classes((0.25, 0.75)), classes((0.5, 0.625)))
    assert found.document()["difference"]["score"]["max"] == 0.25


def test_the_share_of_equal_labels_has_six_digits() -> None:
    """Two of three."""
    both = manifest(builders.classification())
    found = Agreement(both, both)
    found.add(classes((1, 0), (1, 0), (0, 1)), classes((1, 0), (0, 1), (0, 1)))
    assert found.document()["labels"]["share"] == 0.666667


def test_a_score_at_the_threshold_is_no_anomaly() -> None:
    """As in `decide`: above it is one. A configured threshold of 0 is one as well."""
    both = manifest(builders.anomaly(threshold=1.0))
    scores = Scores(score=np.array([-0.5, 0.0, 0.5, 1.0, 1.5], np.float32))
    own, common = Agreement(both, both), Agreement(both, both, 0.0)
    for each in (own, common):
        each.add(scores, scores)
    assert own.document()["labels"]["active_to_shadow"] == {"normal": {"normal": 4}, "anomaly": {"anomaly": 1}}
    assert common.document()["labels"]["active_to_shadow"] == {"normal": {"normal": 2}, "anomaly": {"anomaly": 3}}


def test_a_label_that_the_manifest_does_not_name_is_shown_by_its_number() -> None:
    """A shadow that answers one more, or one below 0: the figures go on."""
    both = manifest(builders.classification())
    found = Agreement(both, both)
    scores = np.array([[0.5, 0.5]] * 3, np.float32)
    found.add(Scores(label=np.array([0, 1, 0]), scores=scores), Scores(label=np.array([2, -1, 1]), scores=scores))
    assert found.document()["labels"]["active_to_shadow"] == {"low": {"2": 1, "high": 1}, "high": {"-1": 1}}


def test_every_target_is_judged_in_one_window() -> None:
    """A target that is not finite leaves the window out for all of them."""
    both = manifest(builders.regression(targets=("power", "torque")))
    found = Agreement(both, both)
    found.add(
        Scores(value=np.array([[1, 10], [2, 20], [3, 30]], np.float32)),
        Scores(value=np.array([[4, 5], [2, np.nan], [3, 31]], np.float32)),
    )
    document = found.document()
    assert (document["compared"], document["not_finite"]) == (2, 1)
    assert document["difference"]["power"] == {"mean": 1.5, "p50": 3.0, "p90": 3.0, "p99": 3.0, "max": 3.0}
    assert document["difference"]["torque"] == {"mean": 3.0, "p50": 5.0, "p90": 5.0, "p99": 5.0, "max": 5.0}


def test_tensors_are_compared_each_by_its_largest_difference() -> None:
    """Those of floats; whole numbers are places, whose difference says nothing. There are no labels."""
    both = manifest(builders.tensors())
    heat = np.ones((2, 2, 3), np.float32)
    other = heat.copy()
    other[0, 1, 2], other[0, 0, 0], other[1, 0, 1] = 0.5, 1.25, 3.0
    peak = np.zeros((2, 3), np.int64)
    found = Agreement(both, both)
    found.add(Scores(tensors={"heat": heat, "peak": peak}), Scores(tensors={"heat": other, "peak": peak + 1}))
    document = found.document()
    assert "labels" not in document
    assert document["difference"] == {"heat": {"mean": 1.25, "p50": 2.0, "p90": 2.0, "p99": 2.0, "max": 2.0}}
    assert (document["compared"], document["not_finite"]) == (2, 0)


def test_a_tensor_that_is_not_finite_is_counted() -> None:
    """In either model; the other windows of the call are compared."""
    both = manifest(builders.tensors())
    heat = np.zeros((3, 2, 3), np.float32)
    one, other = heat.copy(), heat.copy()
    one[0, 0, 0], other[1, 0, 0], other[2, 1, 1] = np.inf, np.nan, 3.0
    peak = np.zeros((3, 3), np.int64)
    found = Agreement(both, both)
    found.add(Scores(tensors={"heat": one, "peak": peak}), Scores(tensors={"heat": other, "peak": peak}))
    document = found.document()
    assert (document["compared"], document["not_finite"]) == (1, 2)
    assert document["difference"]["heat"]["max"] == 3.0


def test_one_tensor_of_several_leaves_its_window_out_of_all() -> None:
    """A detection's boxes and scores are of one window."""
    both = manifest(builders.detection())
    zeros: dict[str, Any] = {"boxes": np.zeros((2, 3, 4), np.float32), "scores": np.zeros((2, 3), np.float32),
             "label": np.zeros((2, 3), np.int64)}  # fmt: skip
    other = {name: part.copy() for name, part in zeros.items()}
    other["boxes"][0, 0, 0], other["scores"][0, 0] = np.nan, 5.0
    other["scores"][1, 2] = 0.5
    found = Agreement(both, both)
    found.add(Scores(tensors=zeros), Scores(tensors=other))
    document = found.document()
    assert (document["compared"], document["not_finite"]) == (1, 1)
    assert document["difference"]["scores"]["max"] == 0.5
    assert document["difference"]["boxes"]["max"] == 0.0
