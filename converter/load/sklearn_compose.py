"""Votes and calibrations of scikit-learn, whose members may be all that converts alone: pipelines, trees, boosters.

Each member becomes a graph of its own, as it would without the others, and the graphs are put together as scikit-learn
puts the answers together. skl2onnx does this for some members only, and gets the probabilities of calibrated pipelines
wrong.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from converter.graph.build import DOUBLE, FLOAT, INT64, GraphBuilder
from converter.load.source import Core
from converter.normal_form import probabilities
from edge_runtime.errors import CommandError

MemberCore = Callable[[Any, bool], Core]
_KINDS = ("CalibratedClassifierCV", "VotingClassifier", "VotingRegressor")


def is_composed(estimator: Any) -> bool:
    """Whether it is put together here."""
    return type(estimator).__name__ in _KINDS and type(estimator).__module__.startswith("sklearn.")


def composed_core(estimator: Any, columns: int, convert: MemberCore, place: str) -> Core:
    """The graph of all members.

    Args:
        estimator: fitted.
        columns: how many it takes.
        convert: a member -> its graph; with True, with decision values in place of probabilities.
        place: the file, for messages.

    Raises:
        CommandError: a member or a way to calibrate has no ONNX form.
    """
    builder = GraphBuilder()
    x = builder.input("x", FLOAT, ("N", columns))
    builder.reserve("label", "scores", "value")
    if type(estimator).__name__ == "VotingRegressor":
        weights = _weights(estimator)
        values = [_value(builder, convert(member, False), x) for member in estimator.estimators_]
        builder.output("value", _average(builder, values, weights), DOUBLE, ("N", 1))
        return Core(builder.build("vote"), "x", (columns,), {"value": "value"}, extra={"columns": 1})
    count = len(estimator.classes_)
    if type(estimator).__name__ == "CalibratedClassifierCV":
        parts = [_calibrated(builder, one, x, count, convert, place) for one in estimator.calibrated_classifiers_]
        scores = _average(builder, parts, np.ones(len(parts)))
    else:
        parts = [_scores(builder, convert(member, False), x, count) for member in estimator.estimators_]
        scores = _average(builder, parts, _weights(estimator))
    builder.output("label", builder.node("ArgMax", scores, axis=1, keepdims=0), INT64, ("N",))
    builder.output("scores", scores, DOUBLE, ("N", count))
    roles = {"label": "label", "scores": "scores"}
    return Core(builder.build("composed"), "x", (columns,), roles, extra={"columns": count})


def _weights(estimator: Any) -> Any:
    """The weights of the members that were not dropped."""
    given = estimator._weights_not_none  # noqa: SLF001 - scikit-learn's own property
    return np.ones(len(estimator.estimators_)) if given is None else np.asarray(given, dtype=np.float64)


def _embedded(builder: GraphBuilder, core: Core, x: str) -> Callable[[str], str]:
    """A member inside the whole; its outputs by role, in float32."""
    values = builder.embed(core.model, {core.input: x})
    kinds = {output.name: output.type.tensor_type.elem_type for output in core.model.graph.output}

    def value(role: str) -> str:
        name = core.outputs[role]
        return values[name] if kinds[name] == FLOAT or role == "label" else builder.cast(values[name], FLOAT)

    return value


def _value(builder: GraphBuilder, core: Core, x: str) -> str:
    value = builder.node("Reshape", _embedded(builder, core, x)("value"), builder.constant([-1, 1], np.int64))
    return builder.cast(value, DOUBLE)


def _scores(builder: GraphBuilder, core: Core, x: str, count: int) -> str:
    return builder.cast(probabilities(builder, core, count, _embedded(builder, core, x)), DOUBLE)


def _average(builder: GraphBuilder, parts: list[str], weights: Any) -> str:
    total = float(np.sum(weights))
    terms = [
        builder.node("Mul", part, builder.constant(float(weight) / total, np.float64))
        for part, weight in zip(parts, weights, strict=True)
    ]
    return builder.node("Sum", *terms) if len(terms) > 1 else terms[0]


def _calibrated(builder: GraphBuilder, one: Any, x: str, count: int, convert: MemberCore, place: str) -> str:
    """One member with its calibrators: a line for each class, made into probabilities."""
    if list(one.estimator.classes_) != list(one.classes):
        raise CommandError(f"{place}: CalibratedClassifierCV: expected members that saw every class, found others")
    raw = hasattr(one.estimator, "decision_function")
    core = convert(one.estimator, raw)
    if raw:
        columns = 1 if count == 2 else count
        given = int(core.extra.get("columns", columns))
        answers = builder.node(
            "Reshape", _embedded(builder, core, x)("decisions"), builder.constant([0, given], np.int64)
        )
        places = [given - 1] if count == 2 else list(range(count))
    else:
        answers = probabilities(builder, core, count, _embedded(builder, core, x))
        places = [1] if count == 2 else list(range(count))
    answers = builder.cast(answers, DOUBLE)
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


def _line(builder: GraphBuilder, value: str, calibrator: Any, place: str) -> str:
    """A calibrator of one class: a logistic curve, or straight pieces between points."""
    kind = type(calibrator).__name__
    if kind == "_SigmoidCalibration":
        slope, shift = float(calibrator.a_), float(calibrator.b_)
        # Not the operator Sigmoid, which ends far from zero: shares of very small numbers are made of these.
        scaled = builder.node("Mul", value, builder.constant(slope, np.float64))
        power = builder.node("Exp", builder.node("Add", scaled, builder.constant(shift, np.float64)))
        one = builder.constant(1.0, np.float64)
        return builder.node("Div", one, builder.node("Add", one, power))
    if kind != "IsotonicRegression" or calibrator.out_of_bounds != "clip":
        raise CommandError(f"{place}: CalibratedClassifierCV: no ONNX form is known for its method ({kind})")
    at = np.asarray(calibrator.X_thresholds_, dtype=np.float64)
    rises = np.asarray(calibrator.y_thresholds_, dtype=np.float64)
    if len(at) == 1:
        flat = builder.node("Mul", value, builder.constant(0.0, np.float64))
        return builder.node("Add", flat, builder.constant(rises[0], np.float64))
    # The sum over the pieces of how far each of them has been climbed: exact at the points, level outside.
    step = builder.node("Sub", value, builder.constant(at[None, :-1], np.float64))
    share = builder.node("Div", step, builder.constant(np.diff(at)[None], np.float64))
    share = builder.node(
        "Min", builder.node("Max", share, builder.constant(0.0, np.float64)), builder.constant(1.0, np.float64)
    )
    climbed = builder.node("MatMul", share, builder.constant(np.diff(rises)[:, None], np.float64))
    return builder.node("Add", climbed, builder.constant(rises[0], np.float64))
