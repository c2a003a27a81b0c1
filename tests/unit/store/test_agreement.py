"""How far two models agree: counted by hand in small cases, bounded in long ones."""

import json

import numpy as np

from edge_runtime.bundle.manifest import Manifest, read_manifest
from edge_runtime.bundle.model import Scores
from edge_runtime.store.agreement import KEPT, Agreement
from tests.support import builders


def manifest(draft: builders.Draft) -> Manifest:
    """Of a draft."""
    return read_manifest(json.dumps(draft.manifest), "draft")


def classes(*rows: tuple[float, float]) -> Scores:
    """Scores of the labels low and high."""
    scores = np.array(rows, np.float32)
    return Scores(label=scores.argmax(axis=1).astype(np.int64), scores=scores)


def test_labels_are_counted_against_each_other() -> None:
    """Who said what where the other said what, the share of equal labels, and the difference of the scores."""
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
