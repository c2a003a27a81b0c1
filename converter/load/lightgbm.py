"""LightGBM: text model files, and its estimators inside scikit-learn pipelines."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from converter.graph.category_sets import HALF, CategorySets
from converter.graph.trees import Forest, ForestBuilder
from converter.load.booster_categories import NO_INDEXES, Indexes, coded, declared, indexes_of, known_to_lightgbm, named
from converter.load.forest import Link, forest_core
from converter.load.kind import Loader, ModelFile
from converter.load.optional import require
from converter.load.source import INDEPENDENT, Answer, Core, SourceModel
from converter.spec import ChannelSpec, Spec
from edge_runtime.bundle.manifest import Task
from edge_runtime.errors import CommandError
from edge_runtime.readings import Floats

# `kZeroThreshold` of LightGBM: its prediction treats smaller numbers as zero.
_TINY = float(np.float32(1e-35))
_OBJECTIVES: dict[str, tuple[Task, Link]] = {
    "binary": ("classification", "sigmoid_open"),
    "multiclass": ("classification", "softmax"),
    "multiclassova": ("classification", "one_each"),
    "regression": ("regression", "identity"),
    "regression_l1": ("regression", "identity"),
    "huber": ("regression", "identity"),
    "fair": ("regression", "identity"),
    "quantile": ("regression", "identity"),
    "mape": ("regression", "identity"),
    "poisson": ("regression", "exp"),
    "gamma": ("regression", "exp"),
    "tweedie": ("regression", "exp"),
    "cross_entropy": ("regression", "logistic"),
}


def load(path: Path, spec: Spec) -> "LightgbmModel":
    """Load a model file.

    Raises:
        CommandError: lightgbm is not installed, cannot read the file, or the file has parts without ONNX form.
    """
    lightgbm = require("lightgbm", path)
    text = path.read_text(encoding="utf-8", errors="replace")
    if "end of trees" not in text:  # LightGBM crashes on some truncated files
        raise CommandError(f"{path}: expected a LightGBM model, found a truncated one")
    try:
        booster = lightgbm.Booster(model_str=text)
    except Exception as error:
        raise CommandError(f"{path}: expected a LightGBM model, found a damaged or other file") from error
    return LightgbmModel(booster, str(path), spec.channel)


class LightgbmModel(SourceModel):
    """A LightGBM model file."""

    framework = "LightGBM"
    trees = True

    def __init__(self, booster: Any, place: str, channels: Sequence[ChannelSpec] = ()) -> None:
        super().__init__()
        self.version = require("lightgbm", place).__version__
        self._booster = booster
        known = known_to_lightgbm(booster)
        self._indexes = indexes_of(known, declared(channels, int(booster.num_feature()), known))
        self._forest, self._link, self.task = read(booster, place, self._indexes)
        self.independent = self._link == "one_each"
        if self.independent:
            self.notes.append(INDEPENDENT)
        self.shape = (int(booster.num_feature()),)
        names = booster.feature_name()
        self.feature_names = () if names == [f"Column_{i}" for i in range(len(names))] else tuple(names)
        if self.task == "classification":
            self.classes = tuple(range(2 if self._forest.outputs == 1 else self._forest.outputs))

    def predict(self, windows: Floats) -> Answer:
        """Call LightGBM, in float64 on the float32 values."""
        x = coded(windows.reshape(len(windows), -1).astype(np.float64), self._indexes)
        found = np.asarray(self._booster.predict(x, num_threads=1))
        if self.task == "regression":
            return Answer(value=found.reshape(len(windows), -1))
        if found.ndim == 2:
            return Answer(label=found.argmax(axis=1), scores=found)
        return Answer(label=(found > 0.5).astype(np.int64), scores=np.stack([1.0 - found, found], axis=1))

    def takes_unknown(self, column: int) -> bool:
        """See `SourceModel`: a value outside of every set of categories goes to the other side."""
        return self._forest.sets is not None and self._forest.sets.has(column)

    def core(self) -> Core:
        """The trees."""
        assert self.shape is not None
        return forest_core(self._forest, self.shape[0], self._link)


def read(booster: Any, place: str, indexes: Indexes = NO_INDEXES) -> tuple[Forest, Link, Task]:
    """A booster's trees, link and task. `indexes` maps codes to values in a window.

    Raises:
        CommandError: it has parts that ONNX trees do not have.
    """
    model = booster.dump_model(num_iteration=booster.best_iteration if booster.best_iteration > 0 else None)
    objective = model.get("objective", "regression").split()
    if objective[0] not in _OBJECTIVES or "sqrt" in objective:
        raise CommandError(f"{place}: no ONNX form is known for the LightGBM objective {' '.join(objective)!r}")
    task, link = _OBJECTIVES[objective[0]]
    slope = next((float(word.split(":")[1]) for word in objective if word.startswith("sigmoid:")), 1.0)
    columns = model["num_tree_per_iteration"]
    rounds = len(model["tree_info"]) // columns
    share = slope / rounds if model.get("average_output") else slope
    sets = CategorySets(int(booster.num_feature()), whole="cut")
    builder = ForestBuilder(columns, "<=", narrow=False, sets=sets)
    for index, tree in enumerate(model["tree_info"]):
        _add(
            builder,
            tree["tree_structure"],
            index % columns,
            share,
            categories=(sets, indexes),
            place=f"{place}: tree {index}",
        )
    return replace(builder.build(), tiny=_TINY), link, task


def _add(
    builder: ForestBuilder,
    root: dict[str, Any],
    column: int,
    share: float,
    *,
    categories: tuple[CategorySets, Indexes],
    place: str,
) -> None:
    feature: list[int] = []
    threshold: list[float] = []
    left: list[int] = []
    right: list[int] = []
    value: list[float] = []
    missing: list[bool] = []
    waiting: list[tuple[dict[str, Any], int, bool]] = [(root, -1, False)]
    while waiting:
        node, parent, is_left = waiting.pop()
        number = len(feature)
        if parent >= 0:
            (left if is_left else right)[parent] = number
        leaf = "leaf_value" in node
        if "leaf_coeff" in node:
            raise CommandError(f"{place}: expected one value a leaf, found a linear tree")
        by_category = not leaf and node["decision_type"] == "=="
        if not leaf and not by_category and (node["decision_type"] != "<=" or node["missing_type"] == "Zero"):
            raise CommandError(f"{place}: expected splits by number or category, found one with zero as missing")
        feature.append(-1 if leaf else _split_column(node, *categories) if by_category else node["split_feature"])
        threshold.append(0.0 if leaf else HALF if by_category else node["threshold"])
        left.append(0)
        right.append(0)
        value.append(node["leaf_value"] * share if leaf else 0.0)
        missing.append(not leaf and not by_category and _missing_goes_left(node))
        if not leaf:
            waiting += [(node["right_child"], number, False), (node["left_child"], number, True)]
    builder.add(
        np.array(feature), np.array(threshold), np.array(left), np.array(right),
        weights=np.array(value)[:, None], targets=[column],
        missing=np.array(missing),
    )  # fmt: skip


def _split_column(node: dict[str, Any], sets: CategorySets, indexes: Indexes) -> int:
    """The column of a set of categories: its members go left; others, negative numbers and missing values go right."""
    column = int(node["split_feature"])
    codes = [int(code) for code in str(node["threshold"]).split("||")]
    return sets.column(column, named(codes, column, indexes), unknown=False, missing=False)


def _missing_goes_left(node: dict[str, Any]) -> bool:
    """The side of NaN: the default side, or the side of zero where training had no NaN."""
    return bool(node["default_left"]) if node["missing_type"] == "NaN" else float(node["threshold"]) >= 0.0


def _recognise(file: ModelFile) -> str | None:
    return "lightgbm" if file.head.startswith((b"tree\n", b"tree\r\n")) else None


LOADER = Loader("LightGBM", _recognise, lambda path, spec, _kind, _trust: load(path, spec))
