"""Nearest neighbours of scikit-learn that skl2onnx converts wrongly: weights by distance, several labels, metrics.

Squared distances from one matrix product, in float64 around the mean of the training, find the nearest training rows.
The distances to those few are then computed exactly, so that a reading that equals a training row has distance 0, as in
scikit-learn, and gets the answer of that row.

Weak points: of rows at the same distance, another may be the last neighbour; metrics other than the Euclidean compare
with every training row at once, which is refused beyond `_MOST_NUMBERS`.
"""

from typing import Any

import numpy as np

from converter.graph.build import DOUBLE, FLOAT, INT64, GraphBuilder
from edge_runtime.errors import CommandError

_EUCLIDEAN = ("euclidean", "l2", "minkowski")
_OTHERS = ("manhattan", "l1", "cityblock", "chebyshev")
_MOST_NUMBERS = 250_000  # of the training rows, for metrics that are no matrix product


def is_ours(estimator: Any) -> bool:
    """Whether this module converts a classifier or regressor of neighbours."""
    if type(estimator).__name__ not in ("KNeighborsClassifier", "KNeighborsRegressor"):
        return False
    metric, power = _metric(estimator)
    known = metric in (*_EUCLIDEAN, *_OTHERS) and (metric != "minkowski" or power in (1.0, 2.0))
    several = isinstance(getattr(estimator, "classes_", None), list)
    return known and (estimator.weights == "distance" or several or metric == "chebyshev")


def check_neighbours(estimator: Any, place: str) -> None:
    """Refuse weights by a function, and metrics without a form here for several labels or weights by distance.

    Raises:
        CommandError: it is refused.
    """
    kind = type(estimator).__name__
    if kind not in ("KNeighborsClassifier", "KNeighborsRegressor"):
        return
    if callable(estimator.weights):
        raise CommandError(
            f"{place}: {kind}: expected weights='uniform' or 'distance', found a function: use one of these"
        )
    metric, power = _metric(estimator)
    several = isinstance(getattr(estimator, "classes_", None), list)
    if (several or estimator.weights == "distance") and not is_ours(estimator):
        metric_text = f"{metric!r} with p={power:g}" if metric == "minkowski" else repr(metric)
        raise CommandError(
            f"{place}: {kind}: with weights by distance or several labels expected a metric of euclidean, manhattan, "
            f"chebyshev, found {metric_text}: use one of these"
        )
    if is_ours(estimator) and not _is_euclidean(estimator) and np.size(estimator._fit_X) > _MOST_NUMBERS:  # noqa: SLF001
        raise CommandError(
            f"{place}: {kind}: expected at most {_MOST_NUMBERS:,} numbers of training rows with the metric {metric!r}, "
            f"found {np.size(estimator._fit_X):,}: use metric='euclidean', or fewer rows"  # noqa: SLF001
        )


def write_neighbours(builder: GraphBuilder, x: str, estimator: Any) -> dict[str, str]:
    """The graph of an estimator that `is_ours`: the weighted mean of the neighbours' values."""
    index, weights = _nearest(builder, x, estimator)
    classes = getattr(estimator, "classes_", None)
    codes = np.asarray(estimator._y)  # noqa: SLF001 - there is no public way to what was learnt
    if isinstance(classes, list):
        columns = [np.asarray(own)[codes[:, place]] for place, own in enumerate(classes)]
        table = np.stack(columns, axis=1).astype(np.float64)
    elif classes is not None:
        table = np.eye(len(classes))[codes.reshape(-1)]
    else:
        table = codes.astype(np.float64).reshape(len(codes), -1)
    votes_of = builder.node("Gather", builder.constant(table, np.float64), index, axis=0)  # [N, k, columns]
    axes = builder.constant([1], np.int64)
    votes = builder.node("ReduceSum", builder.node("Mul", votes_of, weights), axes, keepdims=0)
    share = builder.node("Div", votes, builder.node("ReduceSum", weights, axes, keepdims=0))
    count = table.shape[1]
    if classes is None:
        builder.output("value", share, DOUBLE, ("N", count))
        return {"value": "value"}
    builder.output("scores", builder.cast(share, FLOAT), FLOAT, ("N", count))
    if isinstance(classes, list):
        there = builder.node("Greater", share, builder.constant(0.5, np.float64))
        builder.output("labels", builder.cast(there, INT64), INT64, ("N", count))
        return {"labels": "labels", "scores": "scores"}
    builder.output("label", builder.node("ArgMax", votes, axis=1, keepdims=0), INT64, ("N",))
    return {"label": "label", "scores": "scores"}


def _nearest(builder: GraphBuilder, x: str, estimator: Any) -> tuple[str, str]:
    """The nearest training rows, `[N, k]`, and their weights, `[N, k, 1]`."""
    rows = np.asarray(estimator._fit_X, dtype=np.float64)  # noqa: SLF001 - as above
    if _is_euclidean(estimator):
        middle = rows.mean(axis=0)
        centred = rows - middle
        off = builder.node("Sub", x, builder.constant(middle[None], np.float64))
        product = builder.node("MatMul", off, builder.constant(centred.T, np.float64))
        squares = builder.constant((centred**2).sum(axis=1)[None], np.float64)
        # The squared length of the reading is the same for every row and does not change the order.
        far = builder.node("Sub", squares, builder.node("Add", product, product))
    else:
        wide = builder.node("Unsqueeze", x, builder.constant([1], np.int64))
        far = _length(builder, builder.node("Sub", wide, builder.constant(rows[None], np.float64)), estimator, keep=0)
    count = builder.constant([int(estimator.n_neighbors)], np.int64)
    index = builder.nodes("TopK", 2, far, count, axis=1, largest=0, sorted=1)[1]
    near = builder.node("Gather", builder.constant(rows, np.float64), index, axis=0)
    off = builder.node("Sub", builder.node("Unsqueeze", x, builder.constant([1], np.int64)), near)
    distance = _length(builder, off, estimator, keep=1)
    one = builder.constant(1.0, np.float64)
    same = builder.cast(builder.node("Equal", distance, builder.constant(0.0, np.float64)), DOUBLE)
    if estimator.weights == "uniform":
        return index, builder.node("Add", builder.node("Mul", same, builder.constant(0.0, np.float64)), one)
    inverse = builder.node("Div", one, builder.node("Add", distance, same))
    any_same = builder.node(
        "Greater", builder.node("ReduceMax", same, axes=[1], keepdims=1), builder.constant(0.5, np.float64)
    )
    return index, builder.node("Where", any_same, same, inverse)


def _length(builder: GraphBuilder, off: str, estimator: Any, *, keep: int) -> str:
    """The norm over the last of three axes in the estimator's metric."""
    axes = builder.constant([2], np.int64)
    if _is_euclidean(estimator):
        squares = builder.node("ReduceSum", builder.node("Mul", off, off), axes, keepdims=keep)
        return builder.node("Sqrt", squares)
    if _metric(estimator)[0] == "chebyshev":
        return builder.node("ReduceMax", builder.node("Abs", off), axes=[2], keepdims=keep)
    return builder.node("ReduceSum", builder.node("Abs", off), axes, keepdims=keep)


def _is_euclidean(estimator: Any) -> bool:
    metric, power = _metric(estimator)
    return metric in _EUCLIDEAN and (metric != "minkowski" or power == 2.0)


def _metric(estimator: Any) -> tuple[str, float]:
    """The metric that scikit-learn uses."""
    settings = getattr(estimator, "effective_metric_params_", None) or {}
    if settings.get("w") is not None:
        return "minkowski with weights", 0.0
    return str(estimator.effective_metric_), float(settings.get("p", estimator.p))
