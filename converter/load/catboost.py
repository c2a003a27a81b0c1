"""CatBoost: binary model files (`.cbm`) with features that are numbers or categories, read from CatBoost's own JSON.

The reference is CatBoost's own class for the model's loss, on the same float32 values: there a regressor with a
logarithmic link returns values, not logarithms. CatBoost's ONNX export is not used, since it omits links.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from converter.graph.category_sets import HALF, CategorySets
from converter.graph.trees import Forest, ForestBuilder
from converter.load.catboost_categories import CategorySplits, texts_of, with_texts
from converter.load.forest import Link, forest_core
from converter.load.kind import Loader, ModelFile
from converter.load.optional import require
from converter.load.source import INDEPENDENT, Answer, Core, SourceModel
from converter.spec import ChannelSpec, Spec
from edge_runtime.bundle.manifest import Task
from edge_runtime.errors import CommandError
from edge_runtime.readings import Floats

NO_TEXTS: Mapping[int, Sequence[str]] = MappingProxyType({})

# loss -> task and link. Other losses rank, or return neither label nor value.
_LOSSES: dict[str, tuple[Task, Link]] = {
    "Logloss": ("classification", "sigmoid_open"),
    "CrossEntropy": ("classification", "sigmoid_open"),
    "Focal": ("classification", "sigmoid_open"),
    "MultiClass": ("classification", "softmax"),
    "MultiClassOneVsAll": ("classification", "one_each"),
    "MultiLogloss": ("multilabel", "label_each"),
    "MultiCrossEntropy": ("multilabel", "label_each"),
    "Poisson": ("regression", "exp"),
    "Tweedie": ("regression", "exp"),
    **dict.fromkeys(
        ("RMSE", "MAE", "Quantile", "MultiQuantile", "Expectile", "MAPE", "Lq", "Huber", "LogCosh", "MultiRMSE"),
        ("regression", "identity"),
    ),
    "RMSEWithUncertainty": ("regression", "uncertainty"),
}


def load(path: Path, spec: Spec) -> "CatboostModel":
    """Load a model file.

    Raises:
        CommandError: catboost is not installed, or the file is damaged or has features of text or embeddings.
    """
    catboost = require("catboost", path)
    try:
        booster = catboost.CatBoost().load_model(str(path))
    except Exception as error:
        raise CommandError(f"{path}: expected a CatBoost model, found a damaged, truncated or other file") from error
    return CatboostModel(in_json(booster, str(path)), path, booster, spec.channel)


def in_json(booster: Any, place: str) -> dict[str, Any]:
    """CatBoost's own JSON of a model.

    Raises:
        CommandError: CatBoost cannot write it.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="edge-convert-") as folder:
            booster.save_model(f"{folder}/model.json", format="json")
            found: dict[str, Any] = json.loads(Path(f"{folder}/model.json").read_text(encoding="utf-8"))
            return found
    except Exception as error:
        text = str(error).strip().splitlines()
        raise CommandError(f"{place}: CatBoost cannot write it as JSON: {text[0] if text else error}") from error


def with_categories(estimator: Any, path: Path, channels: Sequence[ChannelSpec]) -> "CatboostModel | None":
    """A pickled CatBoost estimator as a model of its own; None where all its features are numbers."""
    model = in_json(estimator, str(path))
    return CatboostModel(model, path, estimator, channels) if _has_categories(model) else None


def of_estimator(estimator: Any) -> tuple[Forest, Link]:
    """The trees of an estimator inside a pipeline, whose input is numbers only.

    Raises:
        CommandError: it has parts that ONNX trees cannot express.
    """
    place = type(estimator).__name__
    forest, link, _ = read(in_json(estimator, place), place)
    return forest, link


class CatboostModel(SourceModel):
    """A CatBoost model file."""

    framework = "CatBoost"
    trees = True

    def __init__(self, model: dict[str, Any], path: Path, booster: Any, channels: Sequence[ChannelSpec] = ()) -> None:
        super().__init__()
        catboost = require("catboost", path)
        self.version = str(catboost.__version__)
        self._texts = texts_of(model["features_info"], channels, str(path)) if _has_categories(model) else {}
        self._forest, self._link, self.task = read(model, str(path), booster, self._texts)
        kind = catboost.CatBoostRegressor if self.task == "regression" else catboost.CatBoostClassifier
        with tempfile.TemporaryDirectory(prefix="edge-convert-") as folder:
            booster.save_model(f"{folder}/model.cbm")
            self._model = kind().load_model(f"{folder}/model.cbm")
        self.shape = (len(self._model.feature_names_ or ()),)
        names = tuple(self._model.feature_names_ or ())
        self.feature_names = () if names == tuple(map(str, range(len(names)))) else names
        self.independent = self._link == "one_each"
        if self.task != "regression":
            self.classes = tuple(np.asarray(self._model.classes_).tolist())
        self.targets = self._forest.outputs
        if self.independent:
            self.notes.append(INDEPENDENT)

    def predict(self, windows: Floats) -> Answer:
        """Ask CatBoost."""
        x = with_texts(np.ascontiguousarray(windows.reshape(len(windows), -1)), self._texts)
        if self.task == "regression":
            return Answer(value=np.asarray(self._model.predict(x), dtype=np.float64).reshape(len(x), -1))
        scores = np.asarray(self._model.predict_proba(x), dtype=np.float64)
        if self.task == "multilabel":
            there = np.asarray(self._model.predict(x)).reshape(scores.shape).astype(np.int64)
            return Answer(labels=there, scores=scores)
        index = {str(name): position for position, name in enumerate(self.classes)}
        label = np.asarray(self._model.predict(x)).reshape(-1).tolist()
        return Answer(label=np.array([index[str(name)] for name in label], dtype=np.int64), scores=scores)

    def takes_unknown(self, column: int) -> bool:
        """See `SourceModel`: CatBoost has a statistic for an unknown category."""
        return column in self._texts

    def core(self) -> Core:
        """The trees."""
        assert self.shape is not None
        return forest_core(self._forest, self.shape[0], self._link)


def _has_categories(model: dict[str, Any]) -> bool:
    return bool(model["features_info"].get("categorical_features"))


def read(
    model: dict[str, Any], place: str, booster: Any = None, texts: Mapping[int, Sequence[str]] = NO_TEXTS
) -> tuple[Forest, Link, Task]:
    """A model's trees, link and task. `texts` are those of the columns that hold categories.

    Raises:
        CommandError: it has parts that ONNX trees cannot express.
    """
    loss = str(model["model_info"].get("params", {}).get("loss_function", {}).get("type", ""))
    if loss not in _LOSSES:
        raise CommandError(f"{place}: no ONNX form is known for the CatBoost loss {loss or 'of its own'!r}")
    task, link = _LOSSES[loss]
    features = model["features_info"]
    for kind in ("text_features", "embedding_features"):
        if features.get(kind):
            raise CommandError(
                f"{place}: expected features that are numbers or categories, found {kind.replace('_', ' ')}, of which "
                "CatBoost makes statistics of its own: encode them before, and train it on numbers"
            )
    if texts and model.get("trees"):
        raise CommandError(
            f"{place}: expected symmetric trees (grow_policy='SymmetricTree', CatBoost's default) with features that "
            "are categories, found others: train it so, or encode the categories before"
        )
    columns = [int(each["flat_feature_index"]) for each in features.get("float_features", ())]
    # NaN is below every border, or above all ("AsTrue"); where training had none, it is above none.
    right = [each["nan_value_treatment"] == "AsTrue" for each in features.get("float_features", ())]
    scale, bias = model["scale_and_bias"]
    base = np.atleast_1d(np.asarray(bias, dtype=np.float64))
    sets = CategorySets(len(columns) + len(texts), whole="exact")
    builder = ForestBuilder(len(base), "<=", narrow=True, sets=sets)
    splits = CategorySplits(model, booster, texts, sets, place=place) if texts else None
    for tree in model.get("oblivious_trees", ()):
        _add_oblivious(builder, tree, float(scale), len(base), features=(columns, right), splits_by_category=splits)
    for tree in model.get("trees", ()):
        _add(builder, tree, float(scale), len(base), features=(columns, right))
    return builder.build(base), link, task


def _add_oblivious(
    builder: ForestBuilder,
    tree: dict[str, Any],
    scale: float,
    outputs: int,
    *,
    features: tuple[list[int], list[bool]],
    splits_by_category: CategorySplits | None,
) -> None:
    """A symmetric tree: the nodes of a level share a split; the first split is the lowest bit of a leaf number."""
    splits = tree.get("splits") or []
    values = np.asarray(tree["leaf_values"], dtype=np.float64).reshape(-1, outputs) * scale
    depth = len(splits)
    inner = (1 << depth) - 1
    count = inner + (1 << depth)
    feature, threshold = np.full(count, -1), np.zeros(count)
    left, right = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
    weights, missing = np.zeros((count, outputs)), np.zeros(count, dtype=np.bool_)
    for level in range(depth):
        split = splits[depth - 1 - level]  # the highest bit is at the root
        start, size = (1 << level) - 1, 1 << level
        nodes = np.arange(start, start + size)
        left[nodes], right[nodes] = 2 * nodes + 1, 2 * nodes + 2
        if split.get("split_type", "FloatFeature") != "FloatFeature":
            assert splits_by_category is not None
            feature[nodes], threshold[nodes] = splits_by_category.column(split), HALF
            continue
        feature[nodes] = features[0][split["float_feature_index"]]
        threshold[nodes] = split["border"]
        missing[nodes] = not features[1][split["float_feature_index"]]
    weights[inner:] = values
    builder.add(feature, threshold, left, right, weights=weights, missing=missing)


def _add(
    builder: ForestBuilder, root: dict[str, Any], scale: float, outputs: int, *, features: tuple[list[int], list[bool]]
) -> None:
    """A tree of any shape."""
    feature: list[int] = []
    threshold: list[float] = []
    sides: list[list[int]] = []
    weights: list[Any] = []
    missing: list[bool] = []
    waiting: list[tuple[dict[str, Any], int, int]] = [(root, -1, 0)]
    while waiting:
        node, parent, side = waiting.pop()
        number = len(feature)
        if parent >= 0:
            sides[parent][side] = number
        split = node.get("split")
        feature.append(-1 if split is None else features[0][split["float_feature_index"]])
        threshold.append(0.0 if split is None else split["border"])
        sides.append([0, 0])
        weights.append(np.zeros(outputs) if split is not None else np.asarray(node["value"]) * scale)
        missing.append(split is not None and not features[1][split["float_feature_index"]])
        if split is not None:
            waiting += [(node["right"], number, 1), (node["left"], number, 0)]
    places = np.array(sides)
    builder.add(
        np.array(feature), np.array(threshold), places[:, 0], places[:, 1],
        weights=np.array([np.broadcast_to(value, outputs) for value in weights]), missing=np.array(missing),
    )  # fmt: skip


def _recognise(file: ModelFile) -> str | None:
    return "catboost" if file.head.startswith(b"CBM1") else None


LOADER = Loader("CatBoost", _recognise, lambda path, spec, _kind, _trust: load(path, spec))
