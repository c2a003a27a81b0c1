"""scikit-learn's tree ensembles as a `Forest`, read from the fitted arrays."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.graph.category_sets import HALF, CategorySets
from converter.graph.trees import Forest, ForestBuilder
from converter.load.booster_categories import INDEXES, NO_INDEXES
from converter.load.forest import Link

Parts = tuple[Forest, Link, float, float]  # forest, link, divisor, shift


def forest_of(estimator: Any) -> Parts | None:
    """The forest of an estimator; None where this module does not support it, and skl2onnx is used."""
    module = type(estimator).__module__.split(".")[0]
    if module == "xgboost":
        from converter.load import xgboost  # noqa: PLC0415 - an extra

        indexes = getattr(estimator, INDEXES, NO_INDEXES)
        forest, link, _, _ = xgboost.read(estimator.get_booster(), type(estimator).__name__, indexes)
        return forest, link, 1.0, 0.0
    if module == "lightgbm":
        from converter.load import lightgbm  # noqa: PLC0415 - an extra

        indexes = getattr(estimator, INDEXES, NO_INDEXES)
        forest, link, _ = lightgbm.read(estimator.booster_, type(estimator).__name__, indexes)
        return forest, link, 1.0, 0.0
    if module == "catboost":
        from converter.load import catboost  # noqa: PLC0415 - an extra

        return (*catboost.of_estimator(estimator), 1.0, 0.0)
    if module != "sklearn":
        return None
    reader = _READERS.get(type(estimator).__name__)
    return reader(estimator) if reader else None


def _add(builder: ForestBuilder, tree: Any, weights: NDArray[Any], targets: list[int] | None = None) -> None:
    feature = np.where(tree.children_left < 0, -1, tree.feature)
    builder.add(
        feature, tree.threshold, tree.children_left, tree.children_right, weights=weights, targets=targets,
        missing=getattr(tree, "missing_go_to_left", None),
    )  # fmt: skip


def _voting_classifier(estimator: Any) -> Parts | None:
    trees = getattr(estimator, "estimators_", [estimator])
    if isinstance(estimator.classes_, list):
        return _several_labels(trees, estimator.classes_)
    builder = ForestBuilder(len(estimator.classes_), "<=", narrow=True)
    for tree in trees:
        counts = tree.tree_.value[:, 0, :]
        _add(builder, tree.tree_, counts / counts.sum(axis=1, keepdims=True))
    return builder.build(), "mean", float(len(trees)), 0.0


def _several_labels(trees: list[Any], classes: list[Any]) -> Parts:
    """The share of class 1 for each label in the whole leaf."""
    builder = ForestBuilder(len(classes), "<=", narrow=True)
    for tree in trees:
        counts = tree.tree_.value  # [nodes, labels, classes], padded with zeros
        shares = counts / counts.sum(axis=2, keepdims=True)
        columns = [
            shares[:, label, np.asarray(own).tolist().index(1)] if 1 in np.asarray(own).tolist()
            else np.zeros(len(shares))
            for label, own in enumerate(classes)
        ]  # fmt: skip
        _add(builder, tree.tree_, np.stack(columns, axis=1))
    return builder.build(), "share_each", float(len(trees)), 0.0


def _averaging_regressor(estimator: Any) -> Parts | None:
    trees = getattr(estimator, "estimators_", [estimator])
    builder = ForestBuilder(trees[0].tree_.value.shape[1], "<=", narrow=True)
    for tree in trees:
        _add(builder, tree.tree_, tree.tree_.value[:, :, 0])
    return builder.build(), "identity", float(len(trees)), 0.0


def _boosting(estimator: Any) -> Parts | None:
    if estimator.init_ is not None and type(estimator.init_).__name__ not in (
        "DummyClassifier",
        "DummyRegressor",
        "str",
    ):
        return None
    columns = estimator.estimators_.shape[1]
    base = estimator._raw_predict_init(np.zeros((1, estimator.n_features_in_), dtype=np.float32))  # noqa: SLF001
    builder = ForestBuilder(columns, "<=", narrow=True)
    for row in estimator.estimators_:
        for column, tree in enumerate(row):
            _add(builder, tree.tree_, tree.tree_.value[:, :, 0] * estimator.learning_rate, [column])
    if not hasattr(estimator, "classes_"):
        return builder.build(base), "identity", 1.0, 0.0
    if estimator.loss == "exponential":
        return None  # its probabilities are another function of the sum
    return builder.build(base), "sigmoid" if columns == 1 else "softmax", 1.0, 0.0


def _histogram_boosting(estimator: Any) -> Parts | None:
    predictors = estimator._predictors  # noqa: SLF001 - there is no public way to the trees
    columns = len(predictors[0])
    places, categories = _remapped(estimator)
    sets = CategorySets(int(estimator.n_features_in_), whole="exact")
    builder = ForestBuilder(columns, "<=", narrow=False, sets=sets)
    for row in predictors:
        for column, tree in enumerate(row):
            nodes = tree.nodes
            feature = np.where(nodes["is_leaf"], -1, places[nodes["feature_idx"].astype(np.int64)])
            threshold = np.array(nodes["num_threshold"], dtype=np.float64)
            for node in np.flatnonzero(nodes["is_categorical"] & ~nodes["is_leaf"].astype(bool)):
                known = categories[int(nodes["feature_idx"][node])]
                left = _bits(tree.raw_left_cat_bitsets[int(nodes["bitset_idx"][node])])
                lost = bool(nodes["missing_go_to_left"][node])  # an unknown category counts as missing
                named = [value for code, value in enumerate(known) if (code in left) is not lost]
                feature[node] = sets.column(int(feature[node]), named, unknown=lost, missing=lost)
                threshold[node] = HALF
            builder.add(
                feature, threshold, nodes["left"].astype(np.int64), nodes["right"].astype(np.int64),
                weights=nodes["value"][:, None], targets=[column], missing=nodes["missing_go_to_left"],
            )  # fmt: skip
    forest = builder.build(np.ravel(estimator._baseline_prediction))  # noqa: SLF001
    if hasattr(estimator, "classes_"):
        return forest, "sigmoid_open" if columns == 1 else "softmax", 1.0, 0.0
    link = type(estimator._loss.link).__name__  # noqa: SLF001
    if link not in ("IdentityLink", "LogLink"):
        return None
    return forest, "exp" if link == "LogLink" else "identity", 1.0, 0.0


def _remapped(estimator: Any) -> tuple[NDArray[np.int64], dict[int, list[float]]]:
    """For each column of the trees, the column of the input; and the categories of categorical columns."""
    width = int(estimator.n_features_in_)
    preprocessor = getattr(estimator, "_preprocessor", None)
    if preprocessor is None:
        return np.arange(width), {}
    mask = np.asarray(estimator.is_categorical_, dtype=bool)
    encoder = preprocessor.named_transformers_["encoder"]
    learned = {
        place: [float(value) for value in values if value == value]  # noqa: PLR0124 - NaN is not itself
        for place, values in enumerate(encoder.categories_)
    }
    return np.concatenate([np.flatnonzero(mask), np.flatnonzero(~mask)]).astype(np.int64), learned


def _bits(words: NDArray[Any]) -> frozenset[int]:
    """The numbers in a set of bits."""
    return frozenset(
        32 * place + bit for place, word in enumerate(words.tolist()) for bit in range(32) if word >> bit & 1
    )


def _isolation(estimator: Any) -> Parts | None:
    """Score = -decision_function = 2 ** (-path length / normal path length) + offset."""
    builder = ForestBuilder(1, "<=", narrow=True)
    for tree, columns in zip(estimator.estimators_, estimator.estimators_features_, strict=True):
        inner = tree.tree_
        depth = _depths(inner.children_left, inner.children_right)
        length = depth + _average_path(inner.n_node_samples)
        feature = np.where(inner.children_left < 0, -1, np.asarray(columns)[np.maximum(inner.feature, 0)])
        builder.add(feature, inner.threshold, inner.children_left, inner.children_right, weights=length[:, None])
    normal = float(len(estimator.estimators_) * _average_path(np.array([estimator._max_samples]))[0])  # noqa: SLF001
    return builder.build(), "isolation", normal, float(estimator.offset_)


def _depths(left: NDArray[Any], right: NDArray[Any]) -> NDArray[np.float64]:
    depth = np.zeros(len(left))
    for node in range(len(left)):  # a child always follows its parent
        if left[node] >= 0:
            depth[left[node]] = depth[right[node]] = depth[node] + 1
    return depth


def _average_path(samples: NDArray[Any]) -> NDArray[np.float64]:
    """Mean length of an unsuccessful search in a binary search tree of n samples (Liu, Ting and Zhou, 2008)."""
    n = np.asarray(samples, dtype=np.float64)
    long = np.maximum(n, 3.0)
    mean = 2.0 * (np.log(long - 1.0) + np.euler_gamma) - 2.0 * (long - 1.0) / long
    return np.where(n <= 1, 0.0, np.where(n == 2, 1.0, mean))


_READERS = {
    "DecisionTreeClassifier": _voting_classifier,
    "ExtraTreeClassifier": _voting_classifier,
    "RandomForestClassifier": _voting_classifier,
    "ExtraTreesClassifier": _voting_classifier,
    "DecisionTreeRegressor": _averaging_regressor,
    "ExtraTreeRegressor": _averaging_regressor,
    "RandomForestRegressor": _averaging_regressor,
    "ExtraTreesRegressor": _averaging_regressor,
    "GradientBoostingClassifier": _boosting,
    "GradientBoostingRegressor": _boosting,
    "HistGradientBoostingClassifier": _histogram_boosting,
    "HistGradientBoostingRegressor": _histogram_boosting,
    "IsolationForest": _isolation,
}
