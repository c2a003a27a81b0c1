"""Linear models as plain matrix products.

skl2onnx writes `LinearClassifier` and `LinearRegressor`, which no quantiser supports.
"""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_ACTIVATION = {b"NONE": None, b"LOGISTIC": "Sigmoid", b"SOFTMAX": "Softmax"}


def lower_linear(model: onnx.ModelProto) -> onnx.ModelProto:
    """Replace float32 linear operators in place by `MatMul`, `Add` and standard activations; others stay."""
    if any(item.type.tensor_type.elem_type != TensorProto.FLOAT for item in model.graph.input):
        return model
    nodes: list[onnx.NodeProto] = []
    for index, node in enumerate(model.graph.node):
        nodes += _lowered(node, f"linear_{index}", model) or [node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def _lowered(node: onnx.NodeProto, prefix: str, model: onnx.ModelProto) -> list[onnx.NodeProto] | None:
    if node.domain != "ai.onnx.ml" or node.op_type not in ("LinearClassifier", "LinearRegressor"):
        return None
    given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    activation = given.get("post_transform", b"NONE")
    if activation not in _ACTIVATION:
        return None
    classifier = node.op_type == "LinearClassifier"
    coefficients = np.asarray(given["coefficients"], dtype=np.float32)
    rows = len(given["intercepts"]) if given.get("intercepts") else int(given.get("targets", 1))
    if classifier and not _lowerable_labels(given, rows):
        return None
    scores = node.output[1] if classifier else node.output[0]
    weights, bias = f"{prefix}_weights", f"{prefix}_bias"
    model.graph.initializer.append(
        numpy_helper.from_array(np.ascontiguousarray(coefficients.reshape(rows, -1).T), weights)
    )
    intercepts = np.asarray(given.get("intercepts") or [0.0] * rows, dtype=np.float32)
    model.graph.initializer.append(numpy_helper.from_array(intercepts, bias))
    product, summed = f"{prefix}_product", f"{prefix}_sum"
    kind = _ACTIVATION[activation]
    result = [
        helper.make_node("MatMul", [node.input[0], weights], [product], name=product),
        helper.make_node("Add", [product, bias], [summed if kind or classifier else scores], name=summed),
    ]
    if kind:
        extra: dict[str, Any] = {"axis": 1} if kind == "Softmax" else {}
        result.append(helper.make_node(kind, [summed], [scores], name=f"{prefix}_scores", **extra))
    elif classifier:
        result.append(helper.make_node("Identity", [summed], [scores], name=f"{prefix}_scores"))
    return result + (_label(node, given, prefix, summed, model=model) if classifier else [])


def _lowerable_labels(given: dict[str, object], rows: int) -> bool:
    labels = given.get("classlabels_ints") or given.get("classlabels_strings") or []
    return isinstance(labels, list) and len(labels) == rows


def _label(
    node: onnx.NodeProto, given: dict[str, list[bytes]], prefix: str, summed: str, *, model: onnx.ModelProto
) -> list[onnx.NodeProto]:
    """The class of the largest sum, as the model's own label."""
    classes = given.get("classlabels_ints") or given["classlabels_strings"]
    words = f"{prefix}_classes"
    if given.get("classlabels_ints"):
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(classes, dtype=np.int64), words))
    else:
        model.graph.initializer.append(
            numpy_helper.from_array(np.array([name.decode() for name in classes], dtype=object), words)
        )
    best = f"{prefix}_best"
    return [
        helper.make_node("ArgMax", [summed], [best], name=best, axis=1, keepdims=0),
        helper.make_node("Gather", [words, best], [node.output[0]], name=f"{prefix}_label", axis=0),
    ]
