"""A `Core` -> the normal form that every bundle has, so that the runtime knows no frameworks.

One input `window`, float32 `[N, length, channels]` (or `[N, *shape]`), and by task `label` int64 `[N]` with
`scores` float32 `[N, classes]`, `value` float32 `[N, targets]`, or `score` float32 `[N]`, higher is stranger.
"""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from converter.graph import FLOAT, INT64, OPSET, GraphBuilder, opset_of
from converter.load.source import Core
from converter.plan import Plan
from edge_runtime.errors import CommandError
from edge_runtime.manifest import INPUT_NAME


def normal_form(core: Core, plan: Plan) -> onnx.ModelProto:
    """Wrap a model.

    Raises:
        CommandError: its outputs do not make up what the task needs.
    """
    builder = GraphBuilder(max(OPSET, opset_of(core.model)))
    window = builder.input(INPUT_NAME, FLOAT, ("N", *plan.input.tensor_shape))
    builder.reserve("label", "scores", "value", "score")
    fed = _feed(builder, window, core, plan)
    values = builder.embed(core.model, {core.input: fed})
    kinds = {output.name: output.type.tensor_type.elem_type for output in core.model.graph.output}

    def value(role: str) -> str:
        name = core.outputs[role]
        return values[name] if kinds[name] == FLOAT or role == "label" else builder.cast(values[name], FLOAT)

    if plan.task == "classification":
        _classification(builder, core, plan, value, kinds)
    elif plan.task == "regression":
        if "value" not in core.outputs:
            raise CommandError(f"expected a model that gives values, found one that gives {', '.join(core.outputs)}")
        columns = builder.constant([-1, len(plan.targets)], np.int64)  # some converters stack the targets of all rows
        builder.output("value", builder.node("Reshape", value("value"), columns), FLOAT, ("N", len(plan.targets)))
    else:
        _anomaly(builder, core, value)
    return builder.build(plan.name)


def _feed(builder: GraphBuilder, window: str, core: Core, plan: Plan) -> str:
    """The window as the model wants it: shape, layout and element type."""
    value = window
    shape = plan.input.tensor_shape
    if core.layout == "channel_first":
        value = builder.node("Transpose", value, perm=[0, 2, 1])
        shape = (shape[1], shape[0])
    if shape != core.shape:
        value = builder.node("Reshape", value, builder.constant([0, *core.shape], np.int64))
    kind = next(item for item in core.model.graph.input if item.name == core.input).type.tensor_type.elem_type
    return value if kind == FLOAT else builder.cast(value, kind)


def _classification(builder: GraphBuilder, core: Core, plan: Plan, value: Any, kinds: dict[str, int]) -> None:
    count = len(plan.labels)
    scores = _scores(builder, core, count, value)
    if "cut" in core.extra:
        label = _cut(builder, scores, *core.extra["cut"])
    elif "label" in core.outputs:
        label = _class_index(builder, value("label"), kinds[core.outputs["label"]], core)
    else:
        label = builder.node("ArgMax", scores, axis=1, keepdims=0)
    if plan.order != tuple(range(count)):
        scores = builder.node("Gather", scores, builder.constant(plan.order, np.int64), axis=1)
        back = np.argsort(np.array(plan.order))
        label = builder.node("Gather", builder.constant(back, np.int64), label, axis=0)
    builder.output("label", label, INT64, ("N",))
    builder.output("scores", scores, FLOAT, ("N", count))


def _cut(builder: GraphBuilder, scores: str, threshold: float, positive: int) -> str:
    """The label of a classifier that decides by a threshold of its own, and not by the largest score."""
    column = builder.node("Gather", scores, builder.constant(positive, np.int64), axis=1)
    yes = builder.node("GreaterOrEqual", column, builder.constant(threshold))
    one, other = builder.constant(positive, np.int64), builder.constant(1 - positive, np.int64)
    return builder.node("Where", yes, one, other)


def _scores(builder: GraphBuilder, core: Core, count: int, value: Any) -> str:
    """Probabilities of all classes, out of what the model gives."""
    if "scores" in core.outputs:
        scores = str(value("scores"))
        if core.extra.get("columns", count) == 1 and count == 2:
            positive = builder.node("Reshape", scores, builder.constant([-1, 1], np.int64))
            return _two(builder, positive)
        return builder.node("Reshape", scores, builder.constant([0, count], np.int64))
    for role in ("decisions", "logits"):
        if role in core.outputs:
            raw = str(value(role))
            if count == 2 and (role == "decisions" or core.extra.get("columns", 1) == 1):
                return _squash_two(builder, raw, core.extra.get("columns", 1))
            return builder.node("Softmax", builder.node("Reshape", raw, builder.constant([0, count], np.int64)), axis=1)
    raise CommandError(f"expected a model that gives scores, found one that gives {', '.join(core.outputs)}")


def _two(builder: GraphBuilder, positive: str) -> str:
    return builder.node("Concat", builder.node("Sub", builder.constant(1.0), positive), positive, axis=1)


def _squash_two(builder: GraphBuilder, raw: str, columns: int) -> str:
    if columns == 2:  # the decision value and its negative
        raw = builder.node("Gather", raw, builder.constant([1], np.int64), axis=1)
    return _two(builder, builder.node("Sigmoid", builder.node("Reshape", raw, builder.constant([-1, 1], np.int64))))


def _class_index(builder: GraphBuilder, label: str, kind: int, core: Core) -> str:
    """The model's own label as the position of its class."""
    classes = core.classes
    label = builder.node("Reshape", label, builder.constant([-1], np.int64))
    if kind == TensorProto.STRING:
        return builder.node(
            "LabelEncoder", label, domain="ai.onnx.ml", keys_strings=[str(name) for name in classes],
            values_int64s=list(range(len(classes))), default_int64=0,
        )  # fmt: skip
    if kind != INT64:
        label = builder.cast(label, INT64)
    if not classes or [int(name) for name in classes] == list(range(len(classes))):
        return label
    column = builder.node("Unsqueeze", label, builder.constant([1], np.int64))
    same = builder.node("Equal", column, builder.constant([int(name) for name in classes], np.int64))
    return builder.node("ArgMax", builder.cast(same, INT64), axis=1, keepdims=0)


def _anomaly(builder: GraphBuilder, core: Core, value: Any) -> None:
    if "score" in core.outputs:
        score = str(value("score"))
    elif "decision" in core.outputs:
        score = builder.node("Neg", value("decision"))
    else:
        raise CommandError(f"expected a model that gives a score, found one that gives {', '.join(core.outputs)}")
    builder.output("score", builder.node("Reshape", score, builder.constant([-1], np.int64)), FLOAT, ("N",))
