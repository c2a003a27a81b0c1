"""XGBoost: model files (JSON and UBJ), and its estimators inside scikit-learn pipelines.

The trees are read from the model's own JSON, so thresholds are the float32 numbers of XGBoost's comparisons.
"""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from converter.graph.category_sets import HALF, CategorySets
from converter.graph.trees import Forest, ForestBuilder
from converter.load.booster_categories import (
    NO_INDEXES,
    Indexes,
    Known,
    coded,
    declared,
    indexes_of,
    known_to_xgboost,
    named,
)
from converter.load.forest import Link, forest_core
from converter.load.kind import Loader, ModelFile
from converter.load.optional import require
from converter.load.source import Answer, Core, SourceModel
from converter.spec import ChannelSpec, Spec
from edge_runtime.bundle.manifest import Task
from edge_runtime.errors import CommandError
from edge_runtime.readings import Floats

# objective -> task and link. Other objectives return neither label nor value.
_OBJECTIVES: dict[str, tuple[Task, Link]] = {
    "binary:logistic": ("classification", "sigmoid_open"),
    "binary:logitraw": ("classification", "sigmoid_half"),
    "binary:hinge": ("classification", "hinge"),
    "multi:softprob": ("classification", "softmax"),
    "multi:softmax": ("classification", "softmax"),
    "reg:squarederror": ("regression", "identity"),
    "reg:absoluteerror": ("regression", "identity"),
    "reg:pseudohubererror": ("regression", "identity"),
    "reg:quantileerror": ("regression", "identity"),
    "reg:logistic": ("regression", "logistic"),
    "reg:squaredlogerror": ("regression", "identity"),
    "reg:gamma": ("regression", "exp"),
    "reg:tweedie": ("regression", "exp"),
    "count:poisson": ("regression", "exp"),
}


def load(path: Path, spec: Spec) -> "XgboostModel":
    """Load a model file.

    Raises:
        CommandError: xgboost is not installed, cannot read the file, or the file has parts without ONNX form.
    """
    xgboost = require("xgboost", path)
    try:
        booster = xgboost.Booster(model_file=str(path))
    except Exception as error:
        raise CommandError(f"{path}: expected an XGBoost model, found a damaged or other file") from error
    return XgboostModel(booster, str(path), spec.channel)


class XgboostModel(SourceModel):
    """An XGBoost model file."""

    framework = "XGBoost"
    trees = True

    def __init__(self, booster: Any, place: str, channels: Sequence[ChannelSpec] = ()) -> None:
        super().__init__()
        self.version = require("xgboost", place).__version__
        self._booster = booster
        known = known_to_xgboost(json.loads(bytes(booster.save_raw("json")))["learner"])
        self._indexes = indexes_of(known, declared(channels, int(booster.num_features()), known))
        self._forest, self._link, self.task, names = read(booster, place, self._indexes)
        self.own_rule = self._link == "sigmoid_half"
        if self.own_rule:
            self.notes.append(
                "binary:logitraw: the label is the second class above a sum of 0.5, as in XGBClassifier.predict; the "
                "scores are the probabilities that belong to the sums"
            )
        self._rounds = _rounds(booster)
        self.shape = (int(booster.num_features()),)
        self.feature_names = tuple(names)
        if self.task == "classification":
            count = 2 if self._forest.outputs == 1 else self._forest.outputs
            self.classes = tuple(range(count))
        else:
            self.targets = self._forest.outputs

    def predict(self, windows: Floats) -> Answer:
        """Ask XGBoost."""
        x = coded(windows.reshape(len(windows), -1), self._indexes)
        kind = "margin" if self._link == "softmax" else "value"
        found = np.asarray(self._booster.inplace_predict(x, iteration_range=(0, self._rounds), predict_type=kind))
        if self.task == "regression":
            return Answer(value=found.reshape(len(x), -1))
        if self.task == "multilabel":
            return Answer(labels=(found > 0.5).astype(np.int64), scores=found.astype(np.float64))
        if self._link == "softmax":
            power = np.exp(found.astype(np.float64) - found.max(axis=1, keepdims=True))
            return Answer(label=found.argmax(axis=1), scores=power / power.sum(axis=1, keepdims=True))
        label = (found > 0.5).astype(np.int64)
        if self._link == "sigmoid_half":
            found = 1.0 / (1.0 + np.exp(-found.astype(np.float64)))
        return Answer(label=label, scores=np.stack([1.0 - found, found], axis=1))

    def takes_unknown(self, column: int) -> bool:
        """See `SourceModel`: a value outside of every set of categories goes to the other side."""
        return self._forest.sets is not None and self._forest.sets.has(column)

    def core(self) -> Core:
        """The trees."""
        assert self.shape is not None
        return forest_core(self._forest, self.shape[0], self._link)


def read(booster: Any, place: str, indexes: Indexes = NO_INDEXES) -> tuple[Forest, Link, Task, list[str]]:
    """A booster's trees, link, task and feature names.

    Raises:
        CommandError: it is no forest, or has parts that ONNX trees cannot express.
    """
    model = json.loads(bytes(booster.save_raw("json")))["learner"]
    name = model["objective"]["name"]
    if name not in _OBJECTIVES:
        raise CommandError(f"{place}: no ONNX form is known for the XGBoost objective {name!r}")
    task, link = _OBJECTIVES[name]
    machine, known = model["gradient_booster"], known_to_xgboost(model)
    if machine["name"] not in ("gbtree", "dart"):
        raise CommandError(f"{place}: expected XGBoost trees, found a {machine['name']} model")
    weights = machine.get("weight_drop")
    trees = machine["gbtree"]["model"] if machine["name"] == "dart" else machine["model"]
    settings = model["learner_model_param"]
    columns = max(1, int(settings["num_class"]), int(settings.get("num_target", 1)))
    if columns > 1 and task == "classification" and link != "softmax":
        if link != "sigmoid_open":
            raise CommandError(
                f"{place}: no ONNX form is known for the XGBoost objective {name!r} with {columns} labels: use "
                "'binary:logistic', or convert a model for each label"
            )
        task, link = "multilabel", "label_each"
    sets = CategorySets(int(booster.num_features()), whole="floor")
    builder = ForestBuilder(columns, "<", narrow=True, sets=sets)
    kept = _rounds(booster) * max(1, int(trees["gbtree_model_param"]["num_parallel_tree"])) * columns
    for index, (tree, column) in enumerate(zip(trees["trees"][:kept], trees["tree_info"], strict=False)):
        if int(tree["tree_param"]["size_leaf_vector"]) > 1:
            raise CommandError(
                f"{place}: expected one value a leaf, found several in tree {index}: train it with "
                "multi_strategy='one_output_per_tree', its default"
            )
        left = np.array(tree["left_children"])
        numbers = np.array(tree["split_conditions"], dtype=np.float32).astype(np.float64)
        feature, thresholds = np.where(left < 0, -1, np.array(tree["split_indices"])), numbers.copy()
        for node, column_of in _by_category(tree, sets, indexes, known):
            feature[node], thresholds[node] = column_of, HALF
        values = numbers[:, None] * (weights[index] if weights else 1.0)
        right, default = np.array(tree["right_children"]), np.array(tree["default_left"])
        builder.add(feature, thresholds, left, right, weights=values, targets=[column], missing=default)
    return builder.build(_base(settings["base_score"], link, columns)), link, task, model["feature_names"]


def _by_category(tree: dict[str, Any], sets: CategorySets, indexes: Indexes, known: Known) -> Iterator[tuple[int, int]]:
    """The nodes that split by category, and the column of each: its members go right, others left."""
    starts, sizes = tree.get("categories_segments", ()), tree.get("categories_sizes", ())
    for node, start, size in zip(tree.get("categories_nodes", ()), starts, sizes, strict=True):
        column, missing = int(tree["split_indices"][node]), bool(tree["default_left"][node])
        codes = [int(code) for code in tree["categories"][start : start + size]]
        if column in indexes:  # an index without a code is missing
            others = [code for code in range(len(known[column])) if code not in codes]
            yes, unknown = (codes, True) if missing else (others, False)
        else:
            yes, unknown = codes, True
        yield int(node), sets.column(column, named(yes, column, indexes), unknown=unknown, missing=missing)


def _rounds(booster: Any) -> int:
    """The number of rounds that count: up to the best one, if training stopped early."""
    best = booster.attr("best_iteration")
    return int(best) + 1 if best is not None else int(booster.num_boosted_rounds())


def _base(text: Any, link: Link, columns: int) -> list[float]:
    """The start of every sum; files store it as an answer, not as a sum."""
    parsed = json.loads(text) if isinstance(text, str) else text
    scores = [float(np.float32(value)) for value in (parsed if isinstance(parsed, list) else [parsed])]
    scores = scores * columns if len(scores) == 1 else scores
    if link in ("sigmoid_open", "logistic", "label_each"):
        return [math.log(score / (1.0 - score)) for score in scores]
    return [math.log(score) for score in scores] if link == "exp" else scores


def _recognise(file: ModelFile) -> str | None:
    in_json = file.head.startswith(b"{") and (b'"learner"' in file.head or file.suffix == ".ubj")
    in_ubjson = file.head.startswith(b"{L\0\0\0\0\0\0\0\x07learner")
    return "xgboost" if in_json or in_ubjson else None


LOADER = Loader("XGBoost", _recognise, lambda path, spec, _kind, _trust: load(path, spec))
