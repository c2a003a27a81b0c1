"""Nearest neighbours by distance, in metrics and of targets that skl2onnx gets wrong: the source and ONNX compared."""

from typing import Any

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from edge_runtime.errors import CommandError
from tests.contract.converter.conftest import Convert


def readings(n: int, seed: int) -> Any:
    """In float32, of very different sizes, far from zero."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, 3)) * [1, 20, 0.1] + [1000, 0, 5]).astype(np.float32).astype(np.float64)


@pytest.mark.parametrize("metric", ["euclidean", "manhattan", "chebyshev", "minkowski"])
@pytest.mark.parametrize("weights", ["uniform", "distance"])
@pytest.mark.parametrize("targets", ["classes", "one value", "two values"])
def test_neighbours_answer_as_the_source(targets: str, weights: str, metric: str, convert: Convert) -> None:
    """Readings that are rows of the training are answered by that row alone; others by all, the nearer the more."""
    x = readings(250, 0)
    values = np.stack([x[:, 1] + x[:, 2], x[:, 0] * x[:, 2]], axis=1)
    y: Any = {"classes": np.digitize(values[:, 0], [0, 20]), "one value": values[:, 0], "two values": values}[targets]
    kind = KNeighborsClassifier if targets == "classes" else KNeighborsRegressor
    model = make_pipeline(StandardScaler(), kind(4, weights=weights, metric=metric)).fit(x, y)
    asked = np.concatenate([x[:80], readings(200, 1), np.array([[1e6, -1e6, 0], [0, 0, 0]])])
    done = convert(model, asked, name="m.joblib")
    if targets == "classes":
        np.testing.assert_array_equal(done.found.label, model.predict(asked))
        np.testing.assert_allclose(done.found.scores, model.predict_proba(asked), atol=2e-6)
    else:
        expected = model.predict(asked).reshape(len(asked), -1)
        np.testing.assert_allclose(done.found.value, expected, rtol=2e-6, atol=1e-5)


def test_a_row_that_the_training_has_twice_is_answered_by_both(convert: Convert) -> None:
    """Weights by distance: of rows at the distance 0 each counts, and no other."""
    x = np.array([[0.0], [0.0], [1.0], [2.0], [3.0]])
    model = KNeighborsClassifier(3, weights="distance").fit(x, [0, 1, 1, 0, 0])
    asked = np.array([[0.0], [1.0], [0.5]])
    done = convert(model, asked)
    np.testing.assert_allclose(done.found.scores, [[0.5, 0.5], [0.0, 1.0], [1 / 3, 2 / 3]], atol=1e-6)
    assert done.found.label.tolist() == model.predict(asked).tolist() == [0, 1, 1]


def test_what_has_no_right_form_is_refused_with_what_has(convert: Convert) -> None:
    """Weights by a function, and a metric that is not written here."""
    x = readings(60, 0)
    y = (x[:, 1] > 0).astype(int)
    for model, words in (
        (KNeighborsClassifier(3, weights=np.square), "expected weights='uniform' or 'distance', found a function"),
        (KNeighborsClassifier(3, weights="distance", metric="cosine"), "expected a metric of euclidean, manhattan, "),
        (KNeighborsRegressor(3, weights="distance", p=3), "found 'minkowski' with p=3: use one of these"),
    ):
        with pytest.raises(CommandError, match=words):
            convert(model.fit(x, y), x, name="m.joblib")
