"""scikit-learn: skops files, and pickle or joblib files that the user trusts.

Steps before the last are computed in float64 inside the graph, as scikit-learn does. Tree ensembles become one node
with exact comparisons (`trees.py`); all else goes through skl2onnx. The result is compared with `predict` later, so a
wrong conversion is detected before a file is written.
"""

import contextlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.graph.build import DOUBLE, FLOAT, GraphBuilder
from converter.load.gaussian import is_several, several_core
from converter.load.kind import Loader, ModelFile
from converter.load.pickles import looks_pickled
from converter.load.sklearn_categories import coded_estimator
from converter.load.sklearn_compose import Way, composed_core, is_composed, targets_of
from converter.load.sklearn_convert import convertible, to_onnx, width_of
from converter.load.sklearn_facts import (
    by_position,
    chained,
    check_fitted,
    check_one_label,
    classes_of,
    each_alone,
    give_widths,
    sentinels_of,
    shares_of_votes,
    squash,
    stands_for_missing,
    steps_of,
    tuned_threshold,
    votes_hard,
    widen_classes,
)
from converter.load.sklearn_file import booster_model, read_pickle, read_skops
from converter.load.sklearn_labels import answer_of, check_labels, label_count, labels_core, names_of
from converter.load.sklearn_own import Write, check_own, score_of, strangeness, writer_of
from converter.load.source import INDEPENDENT, Answer, Core, SourceModel
from converter.load.svm import KINDS, is_machine, machine_core
from converter.spec import ChannelSpec
from edge_runtime.errors import CommandError
from edge_runtime.readings import Floats

# Each column separate and non-decreasing, so that trees can absorb them.
_MONOTONE = (
    "StandardScaler",
    "MinMaxScaler",
    "MaxAbsScaler",
    "RobustScaler",
    "QuantileTransformer",
    "PowerTransformer",
)
# skl2onnx returns their decision values unchanged.
_WITH_DECISIONS = ("LogisticRegression", "LinearSVC", "SVC", "NuSVC", "RidgeClassifier", "SGDClassifier", "Perceptron",
                   "LogisticRegressionCV", "RidgeClassifierCV", "PassiveAggressiveClassifier",
                   "LinearDiscriminantAnalysis")  # fmt: skip
# Sums of large squares and small differences: float32 is not precise enough.
_IN_DOUBLE = (
    "GaussianProcessClassifier",
    "GaussianProcessRegressor",
    "KNeighborsClassifier",
    "KNeighborsRegressor",
    *KINDS,
)


def load(path: Path, kind: str, trust: bool, channels: Sequence[ChannelSpec] = ()) -> SourceModel:
    """Load an estimator.

    Args:
        path: the file.
        kind: `skops` or `pickle` (joblib included).
        trust: whether code inside the file may run.
        channels: of the specification, some of which may hold text.

    Raises:
        CommandError: it is not trusted, damaged, or no estimator.
    """
    estimator, made_with = (read_skops(path, trust), "") if kind == "skops" else read_pickle(path, trust)
    module = type(estimator).__module__.split(".")[0]
    if type(estimator).__name__ == "Booster" and module in ("lightgbm", "xgboost"):
        return booster_model(estimator, module, path, channels)
    last = steps_of(estimator)[-1]
    if not hasattr(estimator, "get_params") or not (hasattr(estimator, "predict") or strangeness(last)):
        raise CommandError(
            f"{path}: expected a fitted scikit-learn classifier, regressor or outlier detector, "
            f"found {module}.{type(estimator).__name__}"
        )
    if module == "catboost":
        from converter.load.catboost import with_categories  # noqa: PLC0415 - an extra

        found = with_categories(estimator, path, channels)
        if found is not None:
            return found
    model = SklearnModel(estimator, str(path), channels)
    if made_with:
        model.notes.append(
            f"made with scikit-learn {made_with} and read with {model.version}: its answers are those of the latter"
        )
        model.version = made_with
    return model


class SklearnModel(SourceModel):
    """A fitted estimator or pipeline."""

    framework = "scikit-learn"

    def __init__(self, estimator: Any, place: str, channels: Sequence[ChannelSpec] = ()) -> None:
        import sklearn  # noqa: PLC0415 - heavy

        super().__init__()
        self.version = sklearn.__version__
        self._place, self._raw = place, False
        give_widths(estimator)
        check_fitted(estimator, place)
        check_own(steps_of(estimator)[-1], place)
        self.feature_names = tuple(str(name) for name in getattr(estimator, "feature_names_in_", ()))
        self._estimator = by_position(estimator)
        give_widths(self._estimator)
        self._coded = coded_estimator(estimator, self._estimator, channels, place)
        if self._coded is not None:
            self._estimator = self._coded.by_index
            self.notes += self._coded.notes
        self._steps = steps_of(self._estimator)
        self._final = self._steps[-1]
        widen_classes(self._final)
        if getattr(self._final, "decision_function_shape", None) == "ovo":
            self._final.decision_function_shape = "ovr"  # a value for each class, not for each pair; same predict
        self._cut = tuned_threshold(self._final)
        self.own_rule = self._cut is not None
        self.sentinels = sentinels_of(self._estimator)
        if self._cut is not None:
            self._steps = [*self._steps[:-1], *steps_of(self._final.estimator_)]
            self._final = self._steps[-1]
        self._windows = bool(getattr(self._steps[0], "takes_windows_", False))
        self._take_shape(estimator)
        self._take_task()
        if self.task == "classification" and self.shape is not None:
            with contextlib.suppress(ValueError):  # some raise an error for zeros, and get rows of the data later
                check_one_label(self._call("predict", np.zeros((2, *self.shape))), self._final, place)
        self.trees = _forest_of(self._final) is not None or "Tree" in type(self._final).__name__
        if self.task == "regression" and self.shape is not None:
            self.targets = targets_of(lambda x: self._call("predict", x), self.shape, place)
        self._note_scores()

    def _take_shape(self, estimator: Any) -> None:
        """The shape of a window, and the rate that its features assume, as far as the first step has them."""
        first = self._steps[0]
        if self._windows:
            self.shape = first.window_shape_
            self.rate_hz = getattr(first, "rate_hz", None)
        elif hasattr(estimator, "n_features_in_"):
            self.shape = (int(estimator.n_features_in_),)
        elif hasattr(first, "n_features_in_"):  # behind steps that pass all columns through
            self.shape = (int(first.n_features_in_),)
        elif type(self._final).__name__ == "IsotonicRegression":
            self.shape, self._final.n_features_in_ = (1,), 1

    def _take_task(self) -> None:
        """Task and classes, from the last step.

        Raises:
            CommandError: it has no task that a bundle can have.
        """
        from sklearn.base import is_classifier, is_outlier_detector, is_regressor  # noqa: PLC0415 - heavy

        if is_outlier_detector(self._final):
            self.task, self.threshold = "anomaly", 0.0
        elif is_classifier(self._final) and label_count(self._final):
            self.task, self.targets = "multilabel", label_count(self._final)
            check_labels(self._final, self._place)
            self.classes = names_of(self._final)
        elif is_classifier(self._final):
            self.task = "classification"
            if getattr(self._final, "objective_", None) == "multiclassova" or each_alone(self._final):
                self.independent = True
                self.notes.append(INDEPENDENT)
            self.classes = classes_of(self._final, self._place)
        elif is_regressor(self._final):
            self.task = "regression"
        elif strangeness(self._final):
            self.task = "anomaly"
            self.notes.append(f"{type(self._final).__name__}: the anomaly score is {strangeness(self._final)}")
        else:
            raise CommandError(
                f"{self._place}: expected a classifier, a regressor or an outlier detector as the last step, "
                f"found {type(self._final).__name__}"
            )

    def _note_scores(self) -> None:
        """Tell the user where scores are no probabilities."""
        if votes_hard(self._final):
            self.notes.append(
                "VotingClassifier votes hard: the scores are shares of the votes, and are no probabilities"
            )
        elif self.task in ("classification", "multilabel") and not hasattr(self._final, "predict_proba"):
            self.notes.append(
                f"{type(self._final).__name__} gives no probabilities: the scores are its decision values, squashed, "
                "and are not calibrated"
            )

    def settle(self, shape: tuple[int, ...]) -> None:
        """See `SourceModel`; releases before 1.0 did not store an estimator's number of columns."""
        super().settle(shape)
        first = self._steps[0]
        if not hasattr(first, "n_features_in_") and self.shape is not None:
            first.n_features_in_ = self.shape[-1]
        if not hasattr(self._final, "n_features_in_"):
            raise CommandError(
                f"{self._place}: {type(self._final).__name__} does not say how many columns it takes, and stands "
                "behind other steps: save the model again with a release of scikit-learn from 1.0 on"
            )

    def predict(self, windows: Floats) -> Answer:
        """Call scikit-learn, in float64 on the float32 values."""
        x = windows.astype(np.float64)
        if not self._windows:
            x = x.reshape(len(x), -1)
        if self.task == "anomaly" and strangeness(self._final):
            return Answer(score=self._strangeness(x))
        if self.task == "anomaly":
            return Answer(score=-np.asarray(self._call("decision_function", x), dtype=np.float64).reshape(-1))
        if self.task == "regression":
            return Answer(value=np.asarray(self._call("predict", x), dtype=np.float64).reshape(len(x), -1))
        if self.task == "multilabel":
            return answer_of(
                self._final, self._call("predict", x), lambda method: self._call(method, x), lambda: self._before(x)
            )
        index = {name: position for position, name in enumerate(self.classes)}
        predicted = np.asarray(self._call("predict", x)).reshape(-1).tolist()  # CatBoost's is a column
        label = np.array([index[name] for name in predicted], dtype=np.int64)
        if hasattr(self._final, "predict_proba"):
            scores = np.asarray(self._call("predict_proba", x), dtype=np.float64)
        elif votes_hard(self._final):
            scores = shares_of_votes(self._final, np.asarray(self._call("transform", x), dtype=np.int64))
        else:
            scores = squash(np.asarray(self._call("decision_function", x), dtype=np.float64))
        return Answer(label=label, scores=scores)

    def _before(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """The input of the last step."""
        whole = self._estimator if self._coded is None else self._coded.estimator
        whole = getattr(whole, "best_estimator_", whole)
        rows = x if self._coded is None else self._coded.values(x)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return np.asarray(
                whole[:-1].transform(rows) if len(getattr(whole, "steps", ())) > 1 else rows, dtype=np.float64
            )

    def _strangeness(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """The anomaly score of an estimator without a verdict, by its own methods."""
        whole = self._estimator if self._coded is None else self._coded.estimator
        rows = self._before(x)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return score_of(whole.steps[-1][1] if hasattr(whole, "steps") else whole, rows)

    def core(self) -> Core:
        """The pipeline as a graph."""
        trees, write = self._tree_core(), writer_of(self._final)
        if trees is not None:
            core = trees
        elif write is not None:
            core = self._own_core(write)
        elif self.task == "multilabel":
            core = labels_core(self._final, self._columns(), self._member, self._ahead)
        else:
            core = self._composed_core() if is_composed(self._final) else self._skl2onnx_core()
        if self._cut is not None:
            core.extra["cut"] = self._cut
        return core

    def drift(self, windows: Floats) -> int | None:
        """See `SourceModel`: trees behind scalers that were folded into the thresholds."""
        from converter.graph.trees import drifting_rows  # noqa: PLC0415 - only for trees

        parts, before = _forest_of(self._final), self._steps[:-1]
        if (
            parts is None
            or parts[0].sets is not None
            or not before
            or not all(type(step).__name__ in _MONOTONE for step in before)
        ):
            return None
        return drifting_rows(parts[0], windows.reshape(len(windows), -1), chained(before))

    def takes_unknown(self, column: int) -> bool:
        """See `SourceModel`: tested by a call."""
        if self._coded is None or not self._coded.holds_text(column):
            return False
        assert self.shape is not None
        row = np.zeros((1, *self.shape))
        row[..., column] = -1.0
        try:
            self._call("predict", row)
        except ValueError:  # "Found unknown categories"
            return False
        return True

    def _call(self, method: str, x: NDArray[Any]) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if self._coded is not None:
                return self._coded.call(method, x)
            return getattr(self._estimator, method)(x)

    def _tree_core(self) -> Core | None:
        from converter.load.forest import forest_core  # noqa: PLC0415 - brings in onnx

        parts = _forest_of(self._final)
        if parts is None:
            return None
        forest, link, divisor, shift = parts
        columns = int(self._final.n_features_in_)
        before = self._steps[:-1]
        missing = stands_for_missing(self._final)
        folds = all(type(step).__name__ in _MONOTONE for step in before)
        if not before or (folds and missing is None and forest.sets is None):
            transform = chained(before) if before else None
            return forest_core(
                forest,
                columns,
                link,
                transform,
                prefix=None,
                divisor=divisor,
                shift=shift,
                missing=missing,
                raw=self._raw,
            )
        prefix = self._convert_steps(before)
        return forest_core(
            forest, columns, link, None, prefix=prefix, divisor=divisor, shift=shift, missing=missing, raw=self._raw
        )

    def _composed_core(self) -> Core:
        """A vote or a stack; the previous steps go before each member, whose trees absorb scalers."""
        return composed_core(self._final, self._columns(), self._member, self._ahead, place=self._place)

    def _columns(self) -> tuple[int, ...]:
        assert self.shape is not None
        return self.shape

    def _member(self, member: Any, way: Way) -> Core:
        """A member as its own graph, with the previous steps; see `composed_core`."""
        from sklearn.pipeline import make_pipeline  # noqa: PLC0415 - heavy

        before = self._steps[:-1]
        whole = make_pipeline(*before, member) if before and way != "last" else member
        part = SklearnModel(whole, self._place)
        part.settle((int(member.n_features_in_),) if way == "last" else self._columns())
        return part.decisions() if way == "raw" else part.core()

    def _ahead(self, builder: GraphBuilder, x: str) -> str:
        """The steps before the last, in float64."""
        value = builder.cast(x, DOUBLE)
        if len(self._steps) == 1:
            return value
        prefix = self._convert_steps(self._steps[:-1])
        return builder.embed(prefix.model, {prefix.input: value})[prefix.outputs["value"]]

    def decisions(self) -> Core:
        """The pipeline as a graph that returns decision values instead of probabilities.

        Raises:
            CommandError: its last step has no decision values in ONNX.
        """
        self._raw = True
        trees = self._tree_core()
        if trees is not None:
            return trees
        if type(self._final).__name__ not in _WITH_DECISIONS:
            raise CommandError(
                f"{self._place}: {type(self._final).__name__} inside a calibration: no ONNX form is known for its "
                "decision values: calibrate another estimator, or use it without calibration"
            )
        return self._skl2onnx_core()

    def _own_core(self, write: Write) -> Core:
        assert self.shape is not None
        builder = GraphBuilder()
        x = builder.cast(builder.input("x", FLOAT, ("N", *self.shape)), DOUBLE)
        builder.reserve("label", "labels", "scores", "value", "score")
        before = self._steps[:-1]
        if before:
            prefix = self._convert_steps(before)
            x = builder.embed(prefix.model, {prefix.input: x})[prefix.outputs["value"]]
        roles = write(builder, x, self._final)
        return Core(builder.build("sklearn"), "x", self.shape, roles)

    def _skl2onnx_core(self) -> Core:
        assert self.shape is not None
        before = self._steps[:-1]
        builder = GraphBuilder()
        x = builder.input("x", FLOAT, ("N", *self.shape))
        kind = type(self._final).__name__
        if before:
            prefix = self._convert_steps(before)
            x = builder.embed(prefix.model, {prefix.input: builder.cast(x, DOUBLE)})[prefix.outputs["value"]]
            x = builder.cast(x, DOUBLE if kind in _IN_DOUBLE else FLOAT)
        elif kind in _IN_DOUBLE:
            x = builder.cast(x, DOUBLE)
        final = self._convert_final(kind in _IN_DOUBLE)
        values = builder.embed(final.model, {final.input: x})
        for role, name in final.outputs.items():
            info = next(output for output in final.model.graph.output if output.name == name)
            builder.output(
                f"out_{role}", values[name], info.type.tensor_type.elem_type, ("N",) if role == "label" else ("N", "K")
            )
        roles = {role: f"out_{role}" for role in final.outputs}
        classes = self.classes if "label" in roles and not is_several(self._final) else ()
        return Core(builder.build("sklearn"), "x", self.shape, roles, classes, dict(final.extra))

    def _convert_steps(self, steps: list[Any]) -> Core:
        """The steps before the last as one graph, float64 in and out."""
        assert self.shape is not None
        builder = GraphBuilder()
        value = builder.input("x", DOUBLE, ("N", *self.shape))
        shape = self.shape
        for step in steps:
            value, columns = self._add_step(builder, value, step, shape)
            shape = (columns,)
        builder.output("value", value, DOUBLE, ("N", *shape))
        return Core(builder.build("steps"), "x", self.shape, {"value": "value"})

    def _add_step(self, builder: GraphBuilder, value: str, step: Any, shape: tuple[int, ...]) -> tuple[str, int]:
        """One step in float64; in float32 where skl2onnx has no working float64 form."""
        for double in (True, False):
            try:
                model = to_onnx(step, shape, double, {}, place=self._place)
            except CommandError:
                if not double:
                    raise
                continue
            columns = width_of(model, shape, double).get("columns")
            if columns is not None:
                fed = value if double else builder.cast(value, FLOAT)
                result = builder.embed(model, {model.graph.input[0].name: fed})[model.graph.output[0].name]
                return (result if double else builder.cast(result, DOUBLE)), columns
        raise CommandError(f"{self._place}: {type(step).__name__}: its ONNX form does not run")

    def _convert_final(self, double: bool) -> Core:
        options: dict[str, Any] = {}
        if self.task == "classification":
            options["zipmap"] = False
            if self._raw or not hasattr(self._final, "predict_proba"):
                options["raw_scores"] = True
        columns = (int(self._final.n_features_in_),)
        if is_machine(self._final):
            return machine_core(self._final, columns[0])
        if is_several(self._final):
            return several_core(
                self._final,
                columns[0],
                lambda one: to_onnx(one, columns, True, options, place=self._place),
                self._place,
            )
        model = to_onnx(convertible(self._final), columns, double, options, place=self._place)
        names = [output.name for output in model.graph.output]
        if self.task == "regression":
            roles = {"value": names[0]}
        elif self.task == "anomaly":
            roles = {"decision": names[1]}
        else:
            scores = "scores" if hasattr(self._final, "predict_proba") and not self._raw else "decisions"
            roles = {"label": names[0], scores: names[1]}
        return Core(model, model.graph.input[0].name, columns, roles, extra=width_of(model, columns, double))


def _forest_of(final: Any) -> Any:
    from converter.load.sklearn_trees import forest_of  # noqa: PLC0415 - keeps this module quick to import

    return forest_of(final)


def _recognise(file: ModelFile) -> str | None:
    if "schema.json" in (file.members or ()):
        return "skops"
    if looks_pickled(file):
        return "pickle"
    if file.suffix == ".skops":
        raise CommandError(
            f"{file.path}: expected a skops file, found no zip archive: it is truncated or something else"
        )
    return None


LOADER = Loader("skops", _recognise, lambda path, spec, kind, trust: load(path, kind, trust, spec.channel))
