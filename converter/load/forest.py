"""A forest of any framework as a `Core`: trees, link function and label, in float32."""

from dataclasses import replace
from typing import Literal

import numpy as np

from converter.graph.build import DOUBLE, FLOAT, INT64, GraphBuilder
from converter.graph.trees import Forest, Transform, exact_thresholds, forest_node
from converter.load.source import Core
from edge_runtime.errors import CommandError

Link = Literal[
    "mean", "sigmoid", "sigmoid_open", "sigmoid_half", "hinge", "softmax", "one_each", "identity", "exp", "logistic",
    "uncertainty", "isolation", "share_each", "label_each",
]  # fmt: skip


def forest_core(
    forest: Forest,
    columns: int,
    link: Link,
    transform: Transform | None = None,
    *,
    prefix: "Core | None" = None,
    divisor: float = 1.0,
    shift: float = 0.0,
    missing: float | None = None,
    raw: bool = False,
) -> Core:
    """Wrap a forest.

    Args:
        forest: the trees.
        columns: the width of their input.
        link: turns sums into answers. `mean`: probabilities, divided by `divisor`. `sigmoid`: one sum, the second
            class from zero on; `sigmoid_open`: above zero; `sigmoid_half`: above one half. `hinge`: the second class
            above zero, for certain. `softmax`: a sum a class. `one_each`: a sum a class, each
            with a probability of its own. `share_each` and `label_each`: each sum is a label of its own, which is there
            above half of `divisor`, or above zero with a sigmoid as its score. `identity`, `exp` and `logistic`:
            values, divided by `divisor`. `uncertainty`: a value and, from the logarithm of its deviation, its variance.
            `isolation`: `2 ** (-sum / divisor) + shift`.
        transform: a scaler before the trees, folded into the thresholds.
        prefix: a graph before the trees, computed in float64.
        divisor: see `link`.
        shift: see `link`.
        missing: a number that stands for a missing value before the trees.
        raw: the sums themselves are asked for, as decision values.
    """
    builder = GraphBuilder()
    # a prefix may use such names inside
    builder.reserve("sums", "label", "labels", "scores", "value", "score", "decisions")
    if prefix is None:
        shape: tuple[int, ...] = (columns,)
        features = exact = builder.input("x", FLOAT, ("N", columns))
    else:
        shape = prefix.shape
        double = builder.cast(builder.input("x", FLOAT, ("N", *shape)), DOUBLE)
        exact = builder.embed(prefix.model, {prefix.input: double})[prefix.outputs["value"]]
        if forest.narrow:
            features = builder.cast(exact, FLOAT)
        else:
            if forest.tiny:
                small = builder.node(
                    "LessOrEqual", builder.node("Abs", exact), builder.constant(forest.tiny, np.float64)
                )
                exact = builder.node("Where", small, builder.constant(0.0, np.float64), exact)
            features, forest = _ranked(builder, exact, forest, columns)
    if missing is not None:
        same = builder.node("Equal", features, builder.constant(missing))
        features = exact = builder.node("Where", same, builder.constant(np.nan), features)
    if forest.sets is not None:
        features = forest.sets.add_to(builder, features, exact)
        columns = forest.sets.width
    builder.add(forest_node(forest, exact_thresholds(forest, columns, transform), features, "sums"))
    if raw:
        builder.output("decisions", builder.node("Identity", "sums"), FLOAT, ("N", forest.outputs))
        roles = {"decisions": "decisions"}
        return Core(builder.build("forest"), "x", shape, roles, extra={"columns": forest.outputs})
    outputs = _link(builder, forest.outputs, link, divisor, shift=shift)
    return Core(builder.build("forest"), "x", shape, outputs)


def _ranked(builder: GraphBuilder, exact: str, forest: Forest, columns: int) -> tuple[str, Forest]:
    """Replace float64 features and thresholds by ranks, so that every comparison has float64's result.

    The rank is the number of a feature's thresholds below a value; "value <= threshold number k" is "rank <= k". A
    missing value stays missing.
    """
    thresholds, blocks = np.zeros(len(forest.threshold)), []
    passed = "Greater" if forest.compare == "<=" else "GreaterOrEqual"
    for feature in range(columns):
        nodes = np.flatnonzero(forest.feature == feature)
        value = builder.node("Gather", exact, builder.constant([feature], np.int64), axis=1)
        if len(nodes):
            distinct, places = np.unique(forest.threshold[nodes], return_inverse=True)
            thresholds[nodes] = places
            reached = builder.node(passed, value, builder.constant(distinct[None], np.float64))
            rank = builder.node("ReduceSum", builder.cast(reached, FLOAT), builder.constant([1], np.int64), keepdims=1)
            rank = builder.node("Where", builder.node("IsNaN", value), builder.constant(np.nan), rank)
        else:
            rank = builder.cast(value, FLOAT)
        blocks.append(rank)
    if forest.sets is not None:
        sets = forest.feature >= columns
        thresholds[sets] = forest.threshold[sets]
    return builder.node("Concat", *blocks, axis=1), replace(
        forest, threshold=thresholds, compare="<=", narrow=True, tiny=0.0
    )


def _link(builder: GraphBuilder, columns: int, link: Link, divisor: float, *, shift: float) -> dict[str, str]:
    if link in ("mean", "softmax", "one_each"):
        label = builder.node("ArgMax", "sums", axis=1, keepdims=0)
        if link == "mean":
            scores = builder.node("Div", "sums", builder.constant(divisor))
        elif link == "softmax":
            scores = builder.node("Softmax", "sums", axis=1)
        else:
            scores = builder.node("Sigmoid", "sums")
        builder.output("label", label, INT64, ("N",))
        builder.output("scores", scores, FLOAT, ("N", columns))
        return {"label": "label", "scores": "scores"}
    if link in ("sigmoid", "sigmoid_open", "sigmoid_half", "hinge"):
        compare = "GreaterOrEqual" if link == "sigmoid" else "Greater"
        yes = builder.node(compare, "sums", builder.constant(0.5 if link == "sigmoid_half" else 0.0))
        label = builder.node("Reshape", builder.cast(yes, INT64), builder.constant([-1], np.int64))
        positive = builder.cast(yes, FLOAT) if link == "hinge" else builder.node("Sigmoid", "sums")
        negative = builder.node("Sub", builder.constant(1.0), positive)
        builder.output("label", label, INT64, ("N",))
        builder.output("scores", builder.node("Concat", negative, positive, axis=1), FLOAT, ("N", 2))
        return {"label": "label", "scores": "scores"}
    if link in ("share_each", "label_each"):
        cut = divisor / 2 if link == "share_each" else 0.0
        there = builder.cast(builder.node("Greater", "sums", builder.constant(cut)), INT64)
        share = builder.node("Div", "sums", builder.constant(divisor))
        builder.output("labels", there, INT64, ("N", columns))
        builder.output(
            "scores", share if link == "share_each" else builder.node("Sigmoid", "sums"), FLOAT, ("N", columns)
        )
        return {"labels": "labels", "scores": "scores"}
    if link in ("identity", "exp", "logistic"):
        value = "sums" if divisor == 1.0 else builder.node("Div", "sums", builder.constant(divisor))
        if link != "identity":
            value = builder.node("Exp" if link == "exp" else "Sigmoid", value)
        builder.output("value", value, FLOAT, ("N", columns))
        return {"value": "value"}
    if link == "uncertainty":
        first, second = (
            builder.node("Gather", "sums", builder.constant([column], np.int64), axis=1) for column in range(2)
        )
        variance = builder.node("Exp", builder.node("Mul", second, builder.constant(2.0)))
        builder.output("value", builder.node("Concat", first, variance, axis=1), FLOAT, ("N", 2))
        return {"value": "value"}
    if link == "isolation":
        exponent = builder.node("Mul", "sums", builder.constant(-np.log(2.0) / divisor))
        score = builder.node("Add", builder.node("Exp", exponent), builder.constant(shift))
        builder.output("score", builder.node("Reshape", score, builder.constant([-1], np.int64)), FLOAT, ("N",))
        return {"score": "score"}
    raise CommandError(f"link function {link!r} of the trees is not known")
