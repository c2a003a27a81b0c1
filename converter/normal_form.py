"""A `Core` -> the normal form of every bundle, so that the runtime needs no knowledge of frameworks.

One input `window`, float32 `[N, length, channels]` (or `[N, *shape]`), and by task `label` int64 `[N]` with
`scores` float32 `[N, classes]`, `labels` int64 `[N, labels]` (1 for each that is there) with `scores` float32
`[N, labels]`, `value` float32 `[N, targets]`, or `score` float32 `[N]`, higher is stranger.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto

from converter.graph.build import FLOAT, INT64, OPSET, GraphBuilder, opset_of, uses
from converter.graph.shrink_trees import forget_missing
from converter.graph.suppress import suppressed
from converter.load.source import Core, StateTensor
from converter.plan import BundlePlan
from edge_runtime.bundle.manifest import INPUT_NAME
from edge_runtime.errors import CommandError

if TYPE_CHECKING:
    from converter.load.tensors import Layout


def normal_form(core: Core, plan: BundlePlan) -> onnx.ModelProto:
    """Wrap a model.

    Raises:
        CommandError: its outputs do not suffice for the task.
    """
    builder = GraphBuilder(max(OPSET, opset_of(core.model)))
    batch = "N" if core.batch_free else 1
    window = builder.input(INPUT_NAME, FLOAT, (batch, *plan.input.tensor_shape))
    builder.reserve("label", "labels", "scores", "value", "score", "boxes", *(tensor.name for tensor in plan.tensors))
    builder.reserve(*(name for state in core.states for name in (state.input, state.output)))
    feeds, arranged = _feeds(builder, window, core, plan)
    for name, array in core.constants.items():
        feeds[name] = builder.constant(array, array.dtype)
        if name in core.expanded:
            feeds[name] = _repeated(builder, feeds[name], array.shape, window)
    for state in core.states:
        feeds[state.input] = _state_in(builder, state, core, batch)
    values = builder.embed(core.model, feeds)
    kinds = {output.name: output.type.tensor_type.elem_type for output in core.model.graph.output}

    def value(role: str) -> str:
        name = core.outputs[role]
        return values[name] if kinds[name] == FLOAT or role == "label" else builder.cast(values[name], FLOAT)

    if plan.task == "classification":
        _classification(builder, core, plan, value, kinds=kinds)
    elif plan.task == "regression":
        if "value" not in core.outputs:
            raise CommandError(f"expected a model that gives values, found one that gives {', '.join(core.outputs)}")
        builder.output("value", _side_by_side(builder, core, plan, value), FLOAT, (batch, len(plan.targets)))
    elif plan.task == "multilabel":
        _several_labels(builder, core, plan, value, values=values)
    elif plan.task == "detection":
        detection = core.extra["detection"]
        parts = [value(f"detection_{place}") for place in range(len(detection.sources))]
        boxes, scores, label = suppressed(builder, detection, parts)
        builder.output("boxes", boxes, FLOAT, (batch, detection.most, 4))
        builder.output("scores", scores, FLOAT, (batch, detection.most))
        builder.output("label", label, INT64, (batch, detection.most))
    elif plan.task in ("tensor", "embedding"):
        for tensor in plan.tensors:
            kind = FLOAT if tensor.dtype == "float32" else INT64
            name = core.outputs[f"tensor_{tensor.name}"]
            found = values[name] if kinds[name] == kind else builder.cast(values[name], kind)
            found = builder.node("Reshape", found, builder.constant([-1, *tensor.shape], np.int64))
            builder.output(tensor.name, found, kind, (batch, *tensor.shape))
    else:
        _anomaly(builder, core, value, arranged)
    for state in core.states:
        _state_out(builder, state, values[state.output], kinds[state.output], batch=batch)
    model = builder.build(plan.name)
    if all(channel.missing == "refused" for channel in plan.input.channels):
        forget_missing(model, INPUT_NAME)
    return model


def _side_by_side(builder: GraphBuilder, core: Core, plan: BundlePlan, value: Any) -> str:
    """The targets of one output, or of several side by side."""
    # Counted from the end, because some converters put the targets of all rows into one axis.
    names = [name for name in core.outputs if name == "value" or name.startswith("value_")]
    if len(names) == 1:
        return builder.node("Reshape", value("value"), builder.constant([-1, len(plan.targets)], np.int64))
    flat = [builder.node("Flatten", value(name), axis=1) for name in names]
    return builder.node("Concat", *flat, axis=1)


def _repeated(builder: GraphBuilder, constant: str, shape: tuple[int, ...], window: str) -> str:
    """Repeat a constant for every window of a batch."""
    count = builder.node("Gather", builder.node("Shape", window), builder.constant([0], np.int64), axis=0)
    sizes = [count, builder.constant(list(shape[1:]), np.int64)] if len(shape) > 1 else [count]
    return builder.node("Expand", constant, builder.node("Concat", *sizes, axis=0))


def _feeds(builder: GraphBuilder, window: str, core: Core, plan: BundlePlan) -> tuple[dict[str, str], str]:
    """Every input that takes a part of the window, and the window in the first input's layout, in float32."""
    if not core.feeds:
        fed, arranged = _feed(
            builder, window, core, core.input, layout=core.arrange, wanted=core.shape, shape=plan.input.tensor_shape
        )
        return {core.input: fed}, arranged
    found, first = {}, ""
    for feed in core.feeds:
        part = window
        if feed.columns is not None:
            part = builder.node("Gather", part, builder.constant(feed.columns, np.int64), axis=2)
        if feed.last:
            part = builder.node("Gather", part, builder.constant([-1], np.int64), axis=1)
        layout = feed.layout
        found[feed.input], arranged = _feed(
            builder, part, core, feed.input, layout=layout, wanted=layout.wanted, shape=layout.window
        )
        first = first or arranged
    return found, first


def _feed(
    builder: GraphBuilder,
    window: str,
    core: Core,
    name: str,
    *,
    layout: "Layout | None",
    wanted: tuple[int, ...],
    shape: tuple[int, ...],
) -> tuple[str, str]:
    """The window, or a part of it, in the layout and type of an input, and the same in float32."""
    value = window
    if layout is not None:
        if (layout.scale, layout.offset) != (1.0, 0.0):
            value = builder.node("Mul", value, builder.constant(layout.scale))
            value = builder.node("Add", value, builder.constant(layout.offset))
        if layout.perm is not None:
            value = builder.node("Transpose", value, perm=list(layout.perm))
            shape = tuple(shape[axis - 1] for axis in layout.perm[1:])
    if shape != wanted:
        value = builder.node("Reshape", value, builder.constant([0, *wanted], np.int64))
    kind = _kind_of(core, name)
    if kind in _STEPS and _is_only_dequantised(core, name):
        # Rounded and limited by one node; onnxruntime then joins it with what follows, as it does between layers.
        zero = builder.constant(0, _STEPS[kind])
        return builder.node("QuantizeLinear", value, builder.constant(1.0), zero), value
    if kind in _INTEGERS:
        fed = builder.node("Round", value)
        if kind in _LIMITS:
            low, high = _LIMITS[kind]
            fed = builder.node("Clip", fed, builder.constant(low), builder.constant(high))
        return builder.cast(fed, kind), value
    return (value if kind == FLOAT else builder.cast(value, kind)), value


# Integers narrower than the range of a float32 window; wider ones hold every whole float32 that sensors give.
_LIMITS: dict[int, tuple[float, float]] = {
    TensorProto.UINT8: (0.0, 255.0),
    TensorProto.INT8: (-128.0, 127.0),
    TensorProto.UINT16: (0.0, 65535.0),
    TensorProto.INT16: (-32768.0, 32767.0),
}

_STEPS: dict[int, type] = {TensorProto.UINT8: np.uint8, TensorProto.INT8: np.int8}
_INTEGERS = (*_LIMITS, TensorProto.INT32, TensorProto.INT64, TensorProto.UINT32, TensorProto.UINT64)


def _is_only_dequantised(core: Core, name: str) -> bool:
    """Whether an input is a rounded value that the model turns into real numbers, and nothing else."""
    readers = [node.op_type for node in core.model.graph.node if name in uses(node)]
    outputs = {output.name for output in core.model.graph.output}
    return bool(readers) and set(readers) == {"DequantizeLinear"} and name not in outputs


def _kind_of(core: Core, name: str) -> int:
    return int(next(item for item in core.model.graph.input if item.name == name).type.tensor_type.elem_type)


def _state_in(builder: GraphBuilder, state: StateTensor, core: Core, batch: str | int) -> str:
    value = builder.input(state.input, FLOAT, (batch, *state.shape))
    if state.batch_axis:
        axes = list(range(1, len(state.shape) + 1))
        axes.insert(state.batch_axis, 0)
        value = builder.node("Transpose", value, perm=axes)
    kind = _kind_of(core, state.input)
    return value if kind == FLOAT else builder.cast(value, kind)


def _state_out(builder: GraphBuilder, state: StateTensor, value: str, kind: int, *, batch: str | int) -> None:
    if kind != FLOAT:
        value = builder.cast(value, FLOAT)
    if state.batch_axis:
        axes = [state.batch_axis, *(axis for axis in range(len(state.shape) + 1) if axis != state.batch_axis)]
        value = builder.node("Transpose", value, perm=axes)
    builder.output(state.output, value, FLOAT, (batch, *state.shape))


def _classification(builder: GraphBuilder, core: Core, plan: BundlePlan, value: Any, *, kinds: dict[str, int]) -> None:
    count = len(plan.labels)
    scores = probabilities(builder, core, count, value)
    label = label_index(builder, core, count, value, kinds=kinds, scores=scores)
    if plan.order != tuple(range(count)):
        scores = builder.node("Gather", scores, builder.constant(plan.order, np.int64), axis=1)
        back = np.argsort(np.array(plan.order))
        label = builder.node("Gather", builder.constant(back, np.int64), label, axis=0)
    builder.output("label", label, INT64, ("N",))
    builder.output("scores", scores, FLOAT, ("N", count))


def _several_labels(builder: GraphBuilder, core: Core, plan: BundlePlan, value: Any, *, values: dict[str, str]) -> None:
    """A score for each label, and whether it is present: by the source's own output, else above one half."""
    count = len(plan.labels)
    if "scores" not in core.outputs:
        raise CommandError(f"expected a model that gives scores, found one that gives {', '.join(core.outputs)}")
    scores = builder.node("Reshape", value("scores"), builder.constant([-1, count], np.int64))
    if core.extra.get("activation", "none") != "none":
        scores = builder.node("Sigmoid", scores)
    if "labels" in core.outputs:
        labels = builder.node("Reshape", values[core.outputs["labels"]], builder.constant([-1, count], np.int64))
    else:
        labels = builder.cast(builder.node("Greater", scores, builder.constant(0.5)), INT64)
    if plan.order != tuple(range(count)):
        order = builder.constant(plan.order, np.int64)
        scores, labels = (builder.node("Gather", part, order, axis=1) for part in (scores, labels))
    builder.output("labels", labels, INT64, ("N", count))
    builder.output("scores", scores, FLOAT, ("N", count))


def label_index(
    builder: GraphBuilder, core: Core, count: int, value: Any, *, kinds: dict[str, int], scores: str = ""
) -> str:
    """The position of the predicted class: by threshold, by the model's own label, or by the largest score."""
    if "label" in core.outputs and "cut" not in core.extra:
        return _class_index(builder, value("label"), kinds[core.outputs["label"]], core)
    scores = scores or probabilities(builder, core, count, value)
    if "cut" in core.extra:
        return _cut(builder, scores, *core.extra["cut"])
    return builder.node("ArgMax", scores, axis=1, keepdims=0)


def _cut(builder: GraphBuilder, scores: str, threshold: float, positive: int) -> str:
    """The label of a classifier with its own threshold."""
    column = builder.node("Gather", scores, builder.constant(positive, np.int64), axis=1)
    yes = builder.node("GreaterOrEqual", column, builder.constant(threshold))
    one, other = builder.constant(positive, np.int64), builder.constant(1 - positive, np.int64)
    return builder.node("Where", yes, one, other)


def probabilities(builder: GraphBuilder, core: Core, count: int, value: Any) -> str:
    """Probabilities of all classes from the model's outputs."""
    if "scores" in core.outputs:
        scores = _activated(builder, str(value("scores")), count, core)
        if core.extra.get("columns", count) == 1 and count == 2:
            positive = builder.node("Reshape", scores, builder.constant([-1, 1], np.int64))
            return _two(builder, positive)
        return builder.node("Reshape", scores, builder.constant([0, count], np.int64))
    if "decisions" in core.outputs:
        raw = str(value("decisions"))
        if count == 2:
            return _squash_two(builder, raw, core.extra.get("columns", 1))
        return builder.node("Softmax", builder.node("Reshape", raw, builder.constant([0, count], np.int64)), axis=1)
    raise CommandError(f"expected a model that gives scores, found one that gives {', '.join(core.outputs)}")


def _activated(builder: GraphBuilder, scores: str, count: int, core: Core) -> str:
    activation = core.extra.get("activation", "none")
    if activation == "none":
        return scores
    columns = core.extra.get("columns", count)
    scores = builder.node("Reshape", scores, builder.constant([0, columns], np.int64))
    if activation == "softmax" and columns > 1:
        return builder.node("Softmax", scores, axis=1)
    return builder.node("Sigmoid", scores)


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


def _anomaly(builder: GraphBuilder, core: Core, value: Any, arranged: str) -> None:
    if "score" in core.outputs:
        score = str(value("score"))
    elif "reconstruction" in core.outputs:
        size = builder.constant([0, int(np.prod(core.shape))], np.int64)
        rebuilt = builder.node("Reshape", value("reconstruction"), size)
        error = builder.node("Sub", rebuilt, builder.node("Reshape", arranged, size))
        squares = builder.node(
            "ReduceSum", builder.node("Mul", error, error), builder.constant([1], np.int64), keepdims=0
        )
        score = builder.node("Div", squares, builder.constant(float(np.prod(core.shape))))
    elif "decision" in core.outputs:
        score = builder.node("Neg", value("decision"))
    else:
        raise CommandError(f"expected a model that gives a score, found one that gives {', '.join(core.outputs)}")
    builder.output("score", builder.node("Reshape", score, builder.constant([-1], np.int64)), FLOAT, ("N",))
