"""Votes, stacks, calibrations and transformed targets of scikit-learn, around members that convert alone.

Each member (a pipeline, trees, a booster) becomes its own graph, and the graphs are combined as scikit-learn combines
the answers. skl2onnx does this for some members only, with wrong probabilities for calibrated pipelines.
"""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from converter.graph.build import DOUBLE, FLOAT, INT64, GraphBuilder
from converter.load.sklearn_functions import inverse
from converter.load.source import Core
from converter.normal_form import label_index, probabilities
from edge_runtime.errors import CommandError

Way = Literal["answers", "raw", "last"]
MemberCore = Callable[[Any, Way], Core]
Shape = tuple[int, ...]
_KINDS = (
    "CalibratedClassifierCV",
    "MultiOutputRegressor",
    "RegressorChain",
    "StackingClassifier",
    "StackingRegressor",
    "TransformedTargetRegressor",
    "VotingClassifier",
    "VotingRegressor",
)


def is_composed(estimator: Any) -> bool:
    """Whether this module converts it."""
    if not type(estimator).__module__.startswith("sklearn."):
        return False
    if type(estimator).__name__.startswith("Bagging"):
        return any(
            not type(one).__module__.startswith("sklearn.") or hasattr(one, "steps") for one in estimator.estimators_
        )
    if type(estimator).__name__ == "OneVsRestClassifier":  # skl2onnx supports its own estimators with probabilities
        return any(
            not type(member).__module__.startswith("sklearn.") or not hasattr(member, "predict_proba")
            for member in estimator.estimators_
        )
    return type(estimator).__name__ in _KINDS


def targets_of(predict: Callable[[Any], Any], shape: Shape, place: str) -> int:
    """The number of values of a regressor, found by calls with some numbers, of which it may refuse some.

    Raises:
        CommandError: it refuses all of them.
    """
    reason = ""
    for value in (0.0, 1.0, -1.0):  # a previous logarithm refuses zero
        try:
            return int(np.prod(np.asarray(predict(np.full((2, *shape), value))).shape[1:]))
        except ValueError as error:
            reason = reason or str(error).strip().splitlines()[0]
    raise CommandError(f"{place}: expected a regressor that answers windows of 0, 1 or -1, found: {reason}")


def composed_core(
    estimator: Any, shape: Shape, convert: MemberCore, ahead: Callable[[GraphBuilder, str], str], *, place: str
) -> Core:
    """The graph of all members.

    Args:
        estimator: fitted.
        shape: of a window, before the steps in front of the estimator.
        convert: a member -> its graph with those steps; `raw`: with decision values in place of probabilities; `last`:
            without the steps, for an estimator on the answers of others.
        ahead: writes the steps: a window -> the estimator's input, in float64.
        place: the file, for messages.

    Raises:
        CommandError: a member or a calibration has no ONNX form.
    """
    builder = GraphBuilder()
    x = builder.input("x", FLOAT, ("N", *shape))
    builder.reserve("label", "scores", "value")
    kind = type(estimator).__name__
    if kind.startswith("Stacking"):
        return _stacked(builder, estimator, x, shape, convert=convert, ahead=ahead)
    if kind == "TransformedTargetRegressor":
        return _transformed_target(builder, estimator, x, shape, convert=convert, place=place)
    if kind == "MultiOutputRegressor":
        return _side_by_side(
            builder, shape, [value_of(builder, convert(one, "answers"), x) for one in estimator.estimators_]
        )
    if kind == "RegressorChain":
        return _chained(builder, estimator, x, shape, convert=convert, ahead=ahead)
    if kind.startswith("Bagging"):
        return _bagged(builder, estimator, x, shape, convert=convert, ahead=ahead)
    if kind == "VotingRegressor":
        weights = _weights(estimator)
        values = [value_of(builder, convert(member, "answers"), x) for member in estimator.estimators_]
        builder.output("value", _average(builder, values, weights), DOUBLE, ("N", 1))
        return Core(builder.build("vote"), "x", shape, {"value": "value"}, extra={"columns": 1})
    if kind == "OneVsRestClassifier":
        return _against_the_rest(builder, estimator, x, shape, convert=convert)
    count = len(estimator.classes_)
    if kind == "CalibratedClassifierCV":
        parts = [
            _calibrated(builder, one, x, count, convert=convert, place=place)
            for one in estimator.calibrated_classifiers_
        ]
        scores = _average(builder, parts, np.ones(len(parts)))
    elif estimator.voting == "hard":
        return _voted_hard(builder, estimator, x, shape, convert=convert)
    else:
        parts = [scores_of(builder, convert(member, "answers"), x, count) for member in estimator.estimators_]
        scores = _average(builder, parts, _weights(estimator))
    builder.output("label", builder.node("ArgMax", scores, axis=1, keepdims=0), INT64, ("N",))
    builder.output("scores", scores, DOUBLE, ("N", count))
    roles = {"label": "label", "scores": "scores"}
    return Core(builder.build("composed"), "x", shape, roles, extra={"columns": count})


def _side_by_side(builder: GraphBuilder, shape: Shape, values: list[str]) -> Core:
    """One regressor for each target."""
    builder.output("value", builder.node("Concat", *values, axis=1), DOUBLE, ("N", len(values)))
    return Core(builder.build("several"), "x", shape, {"value": "value"}, extra={"columns": len(values)})


def _chained(
    builder: GraphBuilder,
    estimator: Any,
    x: str,
    shape: Shape,
    *,
    convert: MemberCore,
    ahead: Callable[[GraphBuilder, str], str],
) -> Core:
    """One regressor for each target, which also takes the answers of the previous ones."""
    seen, values = [ahead(builder, x)], {}
    for target, member in zip(estimator.order_, estimator.estimators_, strict=True):
        joined = builder.cast(builder.node("Concat", *seen, axis=1) if len(seen) > 1 else seen[0], FLOAT)
        values[int(target)] = value_of(builder, convert(member, "last"), joined)
        seen.append(values[int(target)])
    return _side_by_side(builder, shape, [values[target] for target in sorted(values)])


def _bagged(
    builder: GraphBuilder,
    estimator: Any,
    x: str,
    shape: Shape,
    *,
    convert: MemberCore,
    ahead: Callable[[GraphBuilder, str], str],
) -> Core:
    """The mean of members with some of the columns each; those without probabilities vote."""
    parts, count = [], len(getattr(estimator, "classes_", ()))
    for member, columns in zip(estimator.estimators_, estimator.estimators_features_, strict=True):
        places = np.asarray(columns, dtype=np.int64)
        if np.array_equal(places, np.arange(estimator.n_features_in_)):
            core, rows = convert(member, "answers"), x
        else:
            some = builder.node("Gather", ahead(builder, x), builder.constant(places, np.int64), axis=1)
            core, rows = convert(member, "last"), builder.cast(some, FLOAT)
        if not count:
            parts.append(value_of(builder, core, rows))
            continue
        seen = np.asarray(member.classes_).astype(np.int64)  # positions of the classes; a member may lack some
        if hasattr(member, "predict_proba"):
            scores = scores_of(builder, core, rows, len(seen))
        else:
            label = builder.node(
                "Reshape", label_of(builder, core, rows, len(seen)), builder.constant([-1, 1], np.int64)
            )
            own = builder.node("Equal", label, builder.constant(np.arange(len(seen))[None], np.int64))
            scores = builder.cast(own, DOUBLE)
        parts.append(builder.node("MatMul", scores, builder.constant(np.eye(count)[seen], np.float64)))
    mean = _average(builder, parts, np.ones(len(parts)))
    if not count:
        builder.output("value", mean, DOUBLE, ("N", 1))
        return Core(builder.build("bag"), "x", shape, {"value": "value"}, extra={"columns": 1})
    builder.output("label", builder.node("ArgMax", mean, axis=1, keepdims=0), INT64, ("N",))
    builder.output("scores", mean, DOUBLE, ("N", count))
    roles = {"label": "label", "scores": "scores"}
    return Core(builder.build("bag"), "x", shape, roles, extra={"columns": count})


def _against_the_rest(builder: GraphBuilder, estimator: Any, x: str, shape: Shape, *, convert: MemberCore) -> Core:
    """One member for each class: the class of the largest value, and shares of the probabilities."""
    count, members = len(estimator.classes_), estimator.estimators_
    has_scores = hasattr(estimator, "predict_proba")
    decisions, shares = [], []
    for member in members:
        if has_scores:
            scores = scores_of(builder, convert(member, "answers"), x, 2)
            shares.append(builder.node("Gather", scores, builder.constant([1], np.int64), axis=1))
        if hasattr(member, "decision_function"):
            decisions.append(decisions_of(builder, convert(member, "raw"), x, 2))
    decisive = decisions or shares
    if len(members) == 1:
        cut = builder.constant(0.0 if decisions else 0.5, np.float64)
        yes = builder.cast(builder.node("Greater", decisive[0], cut), INT64)
        builder.output("label", builder.node("Reshape", yes, builder.constant([-1], np.int64)), INT64, ("N",))
    else:
        each = builder.node("Concat", *decisive, axis=1)
        builder.output("label", builder.node("ArgMax", each, axis=1, keepdims=0), INT64, ("N",))
    if not has_scores:
        builder.output("decisions", builder.node("Concat", *decisions, axis=1), DOUBLE, ("N", len(decisions)))
        roles = {"label": "label", "decisions": "decisions"}
        return Core(builder.build("rest"), "x", shape, roles, extra={"columns": len(decisions)})
    if len(members) == 1:
        rest = builder.node("Sub", builder.constant(1.0, np.float64), shares[0])
        scores = builder.node("Concat", rest, shares[0], axis=1)
    else:
        each = builder.node("Concat", *shares, axis=1)
        scores = builder.node("Div", each, builder.node("ReduceSum", each, builder.constant([1], np.int64), keepdims=1))
    builder.output("scores", scores, DOUBLE, ("N", count))
    roles = {"label": "label", "scores": "scores"}
    return Core(builder.build("rest"), "x", shape, roles, extra={"columns": count})


def _voted_hard(builder: GraphBuilder, estimator: Any, x: str, shape: Shape, *, convert: MemberCore) -> Core:
    """The class with the most votes, the first of equals; the scores are shares of the votes."""
    count, weights = len(estimator.classes_), _weights(estimator)
    each = builder.constant(np.arange(count)[None], np.int64)
    votes = []
    for member, weight in zip(estimator.estimators_, weights, strict=True):
        label = label_of(builder, convert(member, "answers"), x, count)
        chosen = builder.node("Equal", builder.node("Reshape", label, builder.constant([-1, 1], np.int64)), each)
        votes.append(builder.node("Mul", builder.cast(chosen, DOUBLE), builder.constant(float(weight), np.float64)))
    total = votes[0]
    for vote in votes[1:]:  # in scikit-learn's order, so that equal sums stay equal
        total = builder.node("Add", total, vote)
    scores = builder.node("Div", total, builder.constant(float(np.sum(weights)), np.float64))
    builder.output("label", builder.node("ArgMax", total, axis=1, keepdims=0), INT64, ("N",))
    builder.output("scores", scores, DOUBLE, ("N", count))
    roles = {"label": "label", "scores": "scores"}
    return Core(builder.build("vote"), "x", shape, roles, extra={"columns": count})


def _stacked(
    builder: GraphBuilder,
    estimator: Any,
    x: str,
    shape: Shape,
    *,
    convert: MemberCore,
    ahead: Callable[[GraphBuilder, str], str],
) -> Core:
    """The answers of the members, side by side, as the input of the last estimator."""
    parts = [
        _output_of(builder, member, method, x, convert=convert)
        for member, method in zip(estimator.estimators_, estimator.stack_method_, strict=True)
    ]
    if estimator.passthrough:
        parts.append(ahead(builder, x))
    joined = builder.cast(builder.node("Concat", *parts, axis=1), FLOAT)
    core = convert(estimator.final_estimator_, "last")
    if not hasattr(estimator, "classes_"):
        builder.output("value", value_of(builder, core, joined), DOUBLE, ("N", 1))
        return Core(builder.build("stack"), "x", shape, {"value": "value"}, extra={"columns": 1})
    count = len(estimator.classes_)
    builder.output("label", label_of(builder, core, joined, count), INT64, ("N",))
    builder.output("scores", scores_of(builder, core, joined, count), DOUBLE, ("N", count))
    roles = {"label": "label", "scores": "scores"}
    return Core(builder.build("stack"), "x", shape, roles, extra={"columns": count})


def _output_of(builder: GraphBuilder, member: Any, method: str, x: str, *, convert: MemberCore) -> str:
    """The answers of one member of a stack as columns."""
    core = convert(member, "raw" if method == "decision_function" else "answers")
    from sklearn.base import is_regressor  # noqa: PLC0415 - heavy

    if is_regressor(member):  # CatBoost's regressors have `classes_` too
        return value_of(builder, core, x)
    count = len(member.classes_)
    if method == "predict_proba":
        scores = scores_of(builder, core, x, count)
        return builder.node("Gather", scores, builder.constant([1], np.int64), axis=1) if count == 2 else scores
    if method == "decision_function":
        return decisions_of(builder, core, x, count)
    names = builder.constant(np.asarray(member.classes_, dtype=np.float64), np.float64)
    label = builder.node("Gather", names, label_of(builder, core, x, count), axis=0)
    return builder.node("Reshape", label, builder.constant([-1, 1], np.int64))


def _transformed_target(
    builder: GraphBuilder, estimator: Any, x: str, shape: Shape, *, convert: MemberCore, place: str
) -> Core:
    """A regressor, and the inverse of its target's scaling."""
    core = convert(estimator.regressor_, "answers")
    targets = targets_of(estimator.regressor_.predict, (int(estimator.regressor_.n_features_in_),), place)
    value = builder.node("Reshape", _embedded(builder, core, x)("value"), builder.constant([-1, targets], np.int64))
    back = inverse(estimator.transformer_, builder, builder.cast(value, DOUBLE), place)
    builder.output("value", back, DOUBLE, ("N", targets))
    return Core(builder.build("target"), "x", shape, {"value": "value"}, extra={"columns": targets})


def _weights(estimator: Any) -> Any:
    """The weights of the members that were not dropped."""
    given = estimator._weights_not_none  # noqa: SLF001 - scikit-learn's own property
    return np.ones(len(estimator.estimators_)) if given is None else np.asarray(given, dtype=np.float64)


def _embedded(builder: GraphBuilder, core: Core, x: str) -> Callable[[str], str]:
    """Add a member to the graph; return its outputs by role, in float32."""
    values = builder.embed(core.model, {core.input: x})
    kinds = {output.name: output.type.tensor_type.elem_type for output in core.model.graph.output}

    def value(role: str) -> str:
        name = core.outputs[role]
        return values[name] if kinds[name] == FLOAT or role == "label" else builder.cast(values[name], FLOAT)

    return value


def value_of(builder: GraphBuilder, core: Core, x: str, columns: int = 1) -> str:
    """A member's values in float64."""
    value = builder.node("Reshape", _embedded(builder, core, x)("value"), builder.constant([-1, columns], np.int64))
    return builder.cast(value, DOUBLE)


def scores_of(builder: GraphBuilder, core: Core, x: str, count: int) -> str:
    """A member's probabilities in float64."""
    return builder.cast(probabilities(builder, core, count, _embedded(builder, core, x)), DOUBLE)


def label_of(builder: GraphBuilder, core: Core, x: str, count: int) -> str:
    """The position of a member's class."""
    kinds = {output.name: output.type.tensor_type.elem_type for output in core.model.graph.output}
    return label_index(builder, core, count, _embedded(builder, core, x), kinds=kinds)


def decisions_of(builder: GraphBuilder, core: Core, x: str, count: int) -> str:
    """A member's decision values in float64: one column for two classes, else one for each class."""
    given = int(core.extra.get("columns", 1 if count == 2 else count))
    answers = builder.node("Reshape", _embedded(builder, core, x)("decisions"), builder.constant([0, given], np.int64))
    if count == 2 and given == 2:
        answers = builder.node("Gather", answers, builder.constant([1], np.int64), axis=1)
    return builder.cast(answers, DOUBLE)


def _average(builder: GraphBuilder, parts: list[str], weights: Any) -> str:
    total = float(np.sum(weights))
    terms = [
        builder.node("Mul", part, builder.constant(float(weight) / total, np.float64))
        for part, weight in zip(parts, weights, strict=True)
    ]
    return builder.node("Sum", *terms) if len(terms) > 1 else terms[0]


def _calibrated(builder: GraphBuilder, one: Any, x: str, count: int, *, convert: MemberCore, place: str) -> str:
    """One member with its calibrators: a curve for each class, normalised to probabilities."""
    tempered = getattr(one, "method", "") == "temperature"  # its classes are numbers for any type of label
    if len(one.estimator.classes_) != count or not (tempered or list(one.estimator.classes_) == list(one.classes)):
        raise CommandError(f"{place}: CalibratedClassifierCV: expected members that saw every class, found others")
    raw = hasattr(one.estimator, "decision_function")
    core = convert(one.estimator, "raw" if raw else "answers")
    if raw:
        answers = decisions_of(builder, core, x, count)
        places = [0] if count == 2 else list(range(count))
    else:
        answers = scores_of(builder, core, x, count)
        places = [1] if count == 2 else list(range(count))
    if tempered:
        return _tempered(builder, one.calibrators[0], answers, count, raw=raw)
    lines = [
        _line(builder, builder.node("Gather", answers, builder.constant([column], np.int64), axis=1), calibrator, place)
        for column, calibrator in zip(places, one.calibrators, strict=True)
    ]
    if count == 2:
        rest = builder.node("Sub", builder.constant(1.0, np.float64), lines[0])
        return builder.node("Concat", rest, lines[0], axis=1)
    each = builder.node("Concat", *lines, axis=1)
    total = builder.node("ReduceSum", each, builder.constant([1], np.int64), keepdims=1)
    nothing = builder.node("Equal", total, builder.constant(0.0, np.float64))
    shares = builder.node("Div", each, builder.node("Where", nothing, builder.constant(1.0, np.float64), total))
    return builder.node("Where", nothing, builder.constant(1.0 / count, np.float64), shares)


def _tempered(builder: GraphBuilder, calibrator: Any, answers: str, count: int, *, raw: bool) -> str:
    """A softmax of all decision values, or of the logarithms of all probabilities, times one factor."""
    if raw:
        logits = builder.node("Concat", builder.node("Neg", answers), answers, axis=1) if count == 2 else answers
    else:
        logits = builder.node("Log", builder.node("Add", answers, builder.constant(1e-12, np.float64)))
    scaled = builder.node("Mul", logits, builder.constant(float(calibrator.beta_), np.float64))
    return builder.node("Softmax", scaled, axis=1)


def _line(builder: GraphBuilder, value: str, calibrator: Any, place: str) -> str:
    """A calibrator of one class: a logistic curve, or straight pieces between points."""
    kind = type(calibrator).__name__
    if kind == "_SigmoidCalibration":
        slope, shift = float(calibrator.a_), float(calibrator.b_)
        # Not the operator Sigmoid, which is 0 for large negative values: these small numbers are normalised to shares.
        scaled = builder.node("Mul", value, builder.constant(slope, np.float64))
        power = builder.node("Exp", builder.node("Add", scaled, builder.constant(shift, np.float64)))
        one = builder.constant(1.0, np.float64)
        return builder.node("Div", one, builder.node("Add", one, power))
    if kind != "IsotonicRegression" or calibrator.out_of_bounds != "clip":
        raise CommandError(f"{place}: CalibratedClassifierCV: no ONNX form is known for its method ({kind})")
    return level_line(builder, value, np.asarray(calibrator.X_thresholds_), np.asarray(calibrator.y_thresholds_))


def level_line(builder: GraphBuilder, value: str, at: NDArray[Any], rises: NDArray[Any]) -> str:
    """A piecewise linear curve, constant outside of its points."""
    at, rises = at.astype(np.float64), rises.astype(np.float64)
    if len(at) == 1:
        flat = builder.node("Mul", value, builder.constant(0.0, np.float64))
        return builder.node("Add", flat, builder.constant(rises[0], np.float64))
    # The sum over the pieces of the part of each below the value: exact at the points, constant outside.
    step = builder.node("Sub", value, builder.constant(at[None, :-1], np.float64))
    share = builder.node("Div", step, builder.constant(np.diff(at)[None], np.float64))
    share = builder.node(
        "Min", builder.node("Max", share, builder.constant(0.0, np.float64)), builder.constant(1.0, np.float64)
    )
    climbed = builder.node("MatMul", share, builder.constant(np.diff(rises)[:, None], np.float64))
    return builder.node("Add", climbed, builder.constant(rises[0], np.float64))
