"""Estimators of scikit-learn that skl2onnx has no form for, written as graphs in float64.

Some of them are no outlier detectors in scikit-learn, but give an anomaly score: mixtures by density, k-means by the
distance to the nearest centre, PCA by the reconstruction error. They have no threshold; the data gives one.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.graph.build import DOUBLE, FLOAT, INT64, GraphBuilder
from converter.load.neighbours import check_neighbours, is_ours, write_neighbours
from converter.load.sklearn_compose import level_line
from edge_runtime.errors import CommandError

Write = Callable[[GraphBuilder, str, Any], dict[str, str]]  # graph, float64 rows, estimator -> role: tensor
_KERNELS = ("linear", "poly", "polynomial", "rbf", "sigmoid")
_STRANGENESS = {
    "GaussianMixture": "the negative logarithm of the density",
    "BayesianGaussianMixture": "the negative logarithm of the density",
    "KMeans": "the distance to the nearest centre",
    "MiniBatchKMeans": "the distance to the nearest centre",
    "BisectingKMeans": "the distance to the nearest centre",
    "PCA": "the mean square of what the components do not rebuild",
    "IncrementalPCA": "the mean square of what the components do not rebuild",
}


def strangeness(estimator: Any) -> str | None:
    """The anomaly score of an estimator without a verdict, in words; None for any other."""
    return _STRANGENESS.get(type(estimator).__name__) if type(estimator).__module__.startswith("sklearn.") else None


def score_of(estimator: Any, rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """That score, by scikit-learn's public methods."""
    if hasattr(estimator, "score_samples") and "Mixture" in type(estimator).__name__:
        return np.asarray(np.negative(estimator.score_samples(rows)), dtype=np.float64)
    if "KMeans" in type(estimator).__name__:
        return np.asarray(np.min(estimator.transform(rows), axis=1), dtype=np.float64)
    rebuilt = estimator.inverse_transform(estimator.transform(rows))
    return np.asarray(((rows - rebuilt) ** 2).mean(axis=1), dtype=np.float64)


def writer_of(estimator: Any) -> Write | None:
    """The function that writes an estimator's graph; None where this module has none."""
    if not type(estimator).__module__.startswith("sklearn."):
        return None
    if is_ours(estimator):
        return write_neighbours
    return _WRITERS.get(type(estimator).__name__)


def check_own(estimator: Any, place: str) -> None:
    """Refuse an estimator without a fixed answer."""
    kind = type(estimator).__name__
    check_neighbours(estimator, place)
    if hasattr(estimator, "get_cat_feature_indices") and estimator.get_cat_feature_indices():
        raise CommandError(
            f"{place}: {kind} inside a pipeline: expected features that are numbers, found categories: encode them in "
            "the pipeline, or save the model alone with save_model"
        )
    if kind.startswith("RadiusNeighbors"):
        raise CommandError(
            f"{place}: {kind}: no ONNX form is known for neighbours within a radius: use KNeighbors of the same kind"
        )
    if kind == "VotingClassifier" and estimator.voting == "soft":
        silent = [type(member).__name__ for member in estimator.estimators_ if not hasattr(member, "predict_proba")]
        if silent:
            raise CommandError(
                f"{place}: VotingClassifier: expected members with probabilities for soft votes, found "
                f"{', '.join(silent)}: use voting='hard', or wrap such members in CalibratedClassifierCV"
            )
    if kind == "KernelRidge" and estimator.kernel not in _KERNELS:
        raise CommandError(
            f"{place}: KernelRidge: expected a kernel of {', '.join(_KERNELS)}, found {estimator.kernel!r}: "
            "use one of these"
        )
    if kind == "DummyClassifier" and estimator.strategy in ("uniform", "stratified"):
        raise CommandError(
            f"{place}: DummyClassifier: expected strategy 'prior', 'most_frequent' or 'constant', found "
            f"{estimator.strategy!r}, which answers at random: use another strategy"
        )
    if kind == "IsotonicRegression" and estimator.out_of_bounds != "clip":
        raise CommandError(
            f"{place}: IsotonicRegression: expected out_of_bounds='clip', found {estimator.out_of_bounds!r}, which "
            "has no answer beyond the training's values: fit it with 'clip'"
        )


def _number(builder: GraphBuilder, value: Any) -> str:
    return builder.constant(value, np.float64)


def _sum(builder: GraphBuilder, value: str, axis: int, *, keep: int = 0) -> str:
    return builder.node("ReduceSum", value, builder.constant([axis], np.int64), keepdims=keep)


def _scored(builder: GraphBuilder, score: str) -> dict[str, str]:
    flat = builder.node("Reshape", builder.cast(score, FLOAT), builder.constant([-1], np.int64))
    builder.output("score", flat, FLOAT, ("N",))
    return {"score": "score"}


def _labelled(builder: GraphBuilder, label: str, scores: str, count: int) -> dict[str, str]:
    builder.output("label", label, INT64, ("N",))
    builder.output("scores", builder.cast(scores, FLOAT), FLOAT, ("N", count))
    return {"label": "label", "scores": "scores"}


def _envelope(builder: GraphBuilder, x: str, estimator: Any) -> dict[str, str]:
    """The squared Mahalanobis distance, minus the threshold's distance."""
    off = builder.node("Sub", x, _number(builder, estimator.location_[None]))
    turned = builder.node("MatMul", off, _number(builder, estimator.get_precision()))
    distance = _sum(builder, builder.node("Mul", turned, off), 1)
    return _scored(builder, builder.node("Add", distance, _number(builder, float(estimator.offset_))))


def _mixture(builder: GraphBuilder, x: str, estimator: Any) -> dict[str, str]:
    """The logarithm of a sum of normal densities; the constant part is computed by a call at the means."""
    means = np.asarray(estimator.means_, dtype=np.float64)
    count, width = means.shape
    factors = np.asarray(estimator.precisions_cholesky_, dtype=np.float64)
    turn = {
        "full": lambda: factors,
        "tied": lambda: np.repeat(factors[None], count, axis=0),
        "diag": lambda: factors[:, :, None] * np.eye(width),
        "spherical": lambda: factors[:, None, None] * np.eye(width),
    }[estimator.covariance_type]()
    highest = np.diag(estimator._estimate_weighted_log_prob(means))  # noqa: SLF001 - score_samples is made of it
    off = builder.node(
        "Sub", builder.node("Unsqueeze", x, builder.constant([0], np.int64)), _number(builder, means[:, None])
    )
    turned = builder.node("MatMul", off, _number(builder, turn))
    squares = _sum(builder, builder.node("Mul", turned, turned), 2)
    each = builder.node("Sub", _number(builder, highest[:, None]), builder.node("Mul", squares, _number(builder, 0.5)))
    top = builder.node("ReduceMax", each, axes=[0], keepdims=1)
    spread = _sum(builder, builder.node("Exp", builder.node("Sub", each, top)), 0, keep=1)
    return _scored(builder, builder.node("Neg", builder.node("Add", builder.node("Log", spread), top)))


def _centres(builder: GraphBuilder, x: str, estimator: Any) -> dict[str, str]:
    squares = _squared_distances(builder, x, estimator.cluster_centers_)
    return _scored(builder, builder.node("Sqrt", builder.node("ReduceMin", squares, axes=[1], keepdims=0)))


def _squared_distances(builder: GraphBuilder, x: str, points: Any) -> str:
    """`[N, points]`."""
    wide = builder.node("Unsqueeze", x, builder.constant([1], np.int64))
    off = builder.node("Sub", wide, _number(builder, np.asarray(points, dtype=np.float64)[None]))
    return _sum(builder, builder.node("Mul", off, off), 2)


def _components(builder: GraphBuilder, x: str, estimator: Any) -> dict[str, str]:
    """The reconstruction error; the inverse transformation undoes whitening."""
    parts = np.asarray(estimator.components_, dtype=np.float64)
    off = builder.node("Sub", x, _number(builder, np.asarray(estimator.mean_)[None]))
    kept = builder.node("MatMul", builder.node("MatMul", off, _number(builder, parts.T)), _number(builder, parts))
    lost = builder.node("Sub", off, kept)
    return _scored(builder, builder.node("ReduceMean", builder.node("Mul", lost, lost), axes=[1], keepdims=0))


def _nearest_centroid(builder: GraphBuilder, x: str, estimator: Any) -> dict[str, str]:
    """The nearest centre is the label; with unequal priors the largest discriminant, from which scores are computed."""
    count = len(estimator.classes_)
    spread = np.where(estimator.within_class_std_dev_ != 0, estimator.within_class_std_dev_, 1.0)
    scaled = builder.node("Div", x, _number(builder, spread[None]))
    squares = _squared_distances(builder, scaled, estimator.centroids_ / spread)
    priors = np.asarray(estimator.class_prior_, dtype=np.float64)
    sums = builder.node("Sub", _number(builder, 2.0 * np.log(priors)[None]), squares)
    if np.isclose(priors, 1 / count).all():
        plain = _squared_distances(builder, x, estimator.centroids_)
        label = builder.node("ArgMin", plain, axis=1, keepdims=0)
    else:
        label = builder.node("ArgMax", sums, axis=1, keepdims=0)
    return _labelled(builder, label, builder.node("Softmax", sums, axis=1), count)


def _repeated(builder: GraphBuilder, x: str, row: NDArray[Any], kind: type[Any]) -> str:
    """One row of numbers for each row of the input."""
    count = builder.node("Gather", builder.node("Shape", x), builder.constant([0], np.int64), axis=0)
    shape = builder.node("Concat", count, builder.constant([1], np.int64), axis=0) if row.ndim > 1 else count
    return builder.node("Expand", builder.constant(row, kind), shape)


def _dummy_classifier(builder: GraphBuilder, x: str, estimator: Any) -> dict[str, str]:
    row = np.zeros((1, 1))
    scores = np.asarray(estimator.predict_proba(row), dtype=np.float64)
    label = list(estimator.classes_).index(estimator.predict(row)[0])
    answer = _repeated(builder, x, np.array([label]), np.int64)
    return _labelled(builder, answer, _repeated(builder, x, scores, np.float64), scores.shape[1])


def _dummy_regressor(builder: GraphBuilder, x: str, estimator: Any) -> dict[str, str]:
    row = np.asarray(estimator.constant_, dtype=np.float64).reshape(1, -1)
    builder.output("value", _repeated(builder, x, row, np.float64), DOUBLE, ("N", row.shape[1]))
    return {"value": "value"}


def _isotonic(builder: GraphBuilder, x: str, estimator: Any) -> dict[str, str]:
    value = level_line(builder, x, np.asarray(estimator.X_thresholds_), np.asarray(estimator.y_thresholds_))
    builder.output("value", value, DOUBLE, ("N", 1))
    return {"value": "value"}


def _kernel_ridge(builder: GraphBuilder, x: str, estimator: Any) -> dict[str, str]:
    """A weighted sum of a row's kernel values with each training row."""
    rows = np.asarray(estimator.X_fit_, dtype=np.float64)
    weights = np.asarray(estimator.dual_coef_, dtype=np.float64).reshape(len(rows), -1)
    gamma = 1.0 / rows.shape[1] if estimator.gamma is None else float(estimator.gamma)
    if estimator.kernel == "rbf":
        distances = _squared_distances(builder, x, rows)
        kernel = builder.node("Exp", builder.node("Mul", distances, _number(builder, -gamma)))
    else:
        kernel = builder.node("MatMul", x, _number(builder, rows.T))
        if estimator.kernel in ("poly", "polynomial", "sigmoid"):
            kernel = builder.node("Mul", kernel, _number(builder, gamma))
            kernel = builder.node("Add", kernel, _number(builder, float(estimator.coef0)))
        if estimator.kernel == "sigmoid":
            kernel = builder.node("Tanh", kernel)
        elif estimator.kernel != "linear":
            kernel = builder.node("Pow", kernel, _number(builder, float(estimator.degree)))
    builder.output("value", builder.node("MatMul", kernel, _number(builder, weights)), DOUBLE, ("N", weights.shape[1]))
    return {"value": "value"}


_WRITERS: dict[str, Write] = {
    "BayesianGaussianMixture": _mixture,
    "BisectingKMeans": _centres,
    "DummyClassifier": _dummy_classifier,
    "DummyRegressor": _dummy_regressor,
    "EllipticEnvelope": _envelope,
    "GaussianMixture": _mixture,
    "IncrementalPCA": _components,
    "IsotonicRegression": _isotonic,
    "KMeans": _centres,
    "KernelRidge": _kernel_ridge,
    "MiniBatchKMeans": _centres,
    "NearestCentroid": _nearest_centroid,
    "PCA": _components,
}
