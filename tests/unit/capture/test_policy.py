"""Which windows are kept: by the margin of the model, by label, by chance."""

from typing import Any

import msgspec
import numpy as np
import pytest

from edge_runtime.bundle.manifest import Channel, Input, Manifest, Output, Target
from edge_runtime.bundle.model import Scores
from edge_runtime.capture.policy import CapturePolicy, mistakes
from edge_runtime.config.tables import CaptureTable

CLASSES = Manifest(
    name="c", version="1", task="classification", input=Input((Channel("x"),)), output=Output(("a", "b", "rare"))
)
ANOMALY = Manifest(
    name="a", version="1", task="anomaly", input=Input((Channel("y"), Channel("z"))), output=Output(threshold=2.0)
)
REGRESSION = Manifest(
    name="r", version="1", task="regression", input=Input((Channel("x"),)), output=Output(targets=(Target("t"),))
)


def _table(**keys: Any) -> CaptureTable:
    return msgspec.convert(keys, CaptureTable)


def _policy(manifest: Manifest, threshold: float | None = None, chance: float = 0.5, **keys: Any) -> CapturePolicy:
    return CapturePolicy(_table(**keys), manifest, threshold, lambda: chance)


def _classes(*scores: float) -> Scores:
    row = np.array([scores], np.float32)
    return Scores(label=row.argmax(axis=1), scores=row)


@pytest.mark.parametrize(
    ("scores", "kept"),
    [((0.5, 0.25, 0.25), True), ((0.5, 0.5, 0.0), True), ((0.625, 0.25, 0.125), False), ((1.0, 0.0, 0.0), False)],
)
def test_a_classification_is_kept_by_the_distance_of_its_two_largest_scores(
    scores: tuple[float, ...], kept: bool
) -> None:
    """At most `uncertain`, wherever the two stand."""
    policy = _policy(CLASSES, uncertain=0.25)
    for order in (scores, scores[::-1], (scores[1], scores[0], scores[2])):
        assert policy.reasons(_classes(*order), 0) == (("uncertain",) if kept else ())


@pytest.mark.parametrize(("score", "kept"), [(1.5, True), (2.5, True), (1.25, False), (2.75, False)])
def test_an_anomaly_is_kept_near_its_threshold(score: float, kept: bool) -> None:
    """On either side."""
    policy = _policy(ANOMALY, 2.0, uncertain=0.5)
    assert policy.reasons(Scores(score=np.array([score], np.float32)), 0) == (("uncertain",) if kept else ())


def test_a_regression_is_kept_near_a_threshold_that_it_has() -> None:
    """Without one there is no telling how sure it is."""
    value = Scores(value=np.array([[9.0, 5.25]], np.float32))
    assert _policy(REGRESSION, 5.0, uncertain=0.5).reasons(value, 0) == ("uncertain",)
    assert _policy(REGRESSION, None, uncertain=100.0).reasons(value, 0) == ()


def test_a_rare_label_is_kept_whatever_its_score() -> None:
    """The label of the window itself; an anomaly has two words."""
    policy = _policy(CLASSES, labels=["rare"])
    assert policy.reasons(_classes(0.0, 0.0, 1.0), 0) == ("label",)
    assert policy.reasons(_classes(1.0, 0.0, 0.0), 0) == ()
    strange = _policy(ANOMALY, 2.0, labels=["anomaly"])
    assert strange.reasons(Scores(score=np.array([2.5, 2.0], np.float32)), 0) == ("label",)
    assert strange.reasons(Scores(score=np.array([2.5, 2.0], np.float32)), 1) == ()


def test_a_share_is_kept_by_chance() -> None:
    """None with 0, every one with 1."""
    sure = _classes(1.0, 0.0, 0.0)
    assert _policy(CLASSES, random=0.5, chance=0.49).reasons(sure, 0) == ("random",)
    assert _policy(CLASSES, random=0.5, chance=0.5).reasons(sure, 0) == ()
    assert _policy(CLASSES, random=1.0, chance=1 - 2**-53).reasons(sure, 0) == ("random",)
    assert _policy(CLASSES, random=0.0, chance=0.0).reasons(sure, 0) == ()


def test_every_reason_stands_with_a_window() -> None:
    """A window that is kept by chance alone is marked."""
    policy = _policy(CLASSES, uncertain=1.0, labels=["a"], random=1.0)
    assert policy.reasons(_classes(1.0, 0.0, 0.0), 0) == ("uncertain", "label", "random")


def test_labels_and_channels_must_be_those_of_a_model() -> None:
    """A word that no bundle knows would silently keep nothing."""
    models = [("one", CLASSES), ("two", ANOMALY)]
    assert list(mistakes(_table(labels=["rare", "anomaly"], exclude=["y"]), models)) == []
    assert list(mistakes(_table(labels=["rara"], exclude=["w"]), models)) == [
        ("labels", "expected a label of one of the models (a, anomaly, b, normal, rare), found 'rara'"),
        ("exclude", "expected a channel of one of the models (x, y, z), found 'w'"),
    ]
    assert list(mistakes(_table(labels=["a", "b", "a"]), models)) == [
        ("labels", "expected every label once, found 'a' twice")
    ]
    assert list(mistakes(_table(exclude=["z", "y"]), models)) == [
        ("exclude", 'expected a channel of model "two" that is left, found all of them excluded')
    ]
