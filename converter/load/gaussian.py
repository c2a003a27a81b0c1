"""Gaussian process classifiers of several classes, which skl2onnx refuses: one binary process a class.

scikit-learn fits one Laplace approximation for each class against the rest (Rasmussen and Williams, Gaussian Processes
for Machine Learning, algorithm 3.2). The probabilities of all are divided by their sum; the label is the first of the
largest. `multi_class="one_vs_one"` gives no probabilities and is refused.
"""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np

from converter.graph.build import DOUBLE, INT64, GraphBuilder
from converter.load.source import Core
from edge_runtime.errors import CommandError


def is_several(estimator: Any) -> bool:
    """Whether it is such a classifier."""
    return type(estimator).__name__ == "GaussianProcessClassifier" and len(estimator.classes_) > 2


def several_core(estimator: Any, columns: int, convert: Callable[[Any], Any], place: str) -> Core:
    """The graph of all processes, with float64 input and output.

    Args:
        estimator: fitted, of more than two classes.
        columns: the number of its input columns.
        convert: a binary classifier -> its ONNX model, with a label and two probabilities.
        place: the file, for messages.

    Raises:
        CommandError: it was fitted one against one.
    """
    if estimator.multi_class != "one_vs_rest":
        raise CommandError(
            f"{place}: GaussianProcessClassifier: expected multi_class='one_vs_rest' for more than two classes, "
            f"found {estimator.multi_class!r}, which gives no probabilities"
        )
    builder = GraphBuilder()
    x = builder.input("x", DOUBLE, ("N", columns))
    parts = []
    for process in estimator.base_estimator_.estimators_:
        binary = copy.copy(estimator)
        binary.base_estimator_, binary.classes_, binary.n_classes_ = process, np.array([0, 1]), 2
        model = convert(binary)
        values = builder.embed(model, {model.graph.input[0].name: x})
        parts.append(
            builder.node("Gather", values[model.graph.output[1].name], builder.constant([1], np.int64), axis=1)
        )
    one_each = builder.node("Concat", *parts, axis=1)
    total = builder.node("ReduceSum", one_each, builder.constant([1], np.int64), keepdims=1)
    builder.output("label", builder.node("ArgMax", one_each, axis=1, keepdims=0), INT64, ("N",))
    builder.output("scores", builder.node("Div", one_each, total), DOUBLE, ("N", len(parts)))
    return Core(
        builder.build("gaussian"),
        "x",
        (columns,),
        {"label": "label", "scores": "scores"},
        extra={"columns": len(parts)},
    )
