"""Bring channels of very different scale to one scale before the first matrix product.

int8 has one scale for a whole tensor: beside a light sensor in lux, a humidity ratio of 0.004 would round to zero.
Where a window goes directly into a product, the product is rewritten to take standardised values, with the same result:
`x @ W = ((x - m) / s) @ (s * W) + m @ W`. Means and deviations come from calibration rows.
"""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from edge_runtime.bundle.manifest import INPUT_NAME
from edge_runtime.readings import Floats

Doubles = NDArray[np.float64]

_UNEQUAL = 4.0  # a channel within two bits of the widest keeps enough of int8's precision
_SHAPING = ("Reshape", "Flatten", "Identity", "Squeeze", "Unsqueeze")


def equalized(model: onnx.ModelProto, calibration: Floats) -> onnx.ModelProto:
    """A copy with such products rewritten, or the model itself where there are none."""
    columns = calibration.reshape(len(calibration), -1).astype(np.float64)
    mean, deviation = columns.mean(axis=0), columns.std(axis=0)
    reach = np.abs(columns).max(axis=0)
    deviation = np.where(deviation > 1e-6 * np.maximum(reach, 1e-30), deviation, np.maximum(reach, 1e-30))
    if reach.max() <= _UNEQUAL * deviation.min():
        return model
    direct = _values_of_the_window(model)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    found = [
        index
        for index, node in enumerate(model.graph.node)
        if node.op_type == "MatMul" and node.input[0] in direct and _fits(weights.get(node.input[1]), len(mean))
    ]
    if not found:
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    nodes = list(copy.graph.node)
    for index in reversed(found):
        nodes[index : index + 1] = _rewritten(copy, nodes[index], weights, mean, deviation=deviation)
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy


def _values_of_the_window(model: onnx.ModelProto) -> set[str]:
    """The window and its reshaped copies."""
    names = {INPUT_NAME}
    for node in model.graph.node:
        if node.op_type in _SHAPING and node.input[0] in names:
            names.add(node.output[0])
    return names


def _fits(weight: NDArray[Any] | None, rows: int) -> bool:
    return weight is not None and weight.ndim == 2 and weight.shape[0] == rows and weight.dtype == np.float32


def _rewritten(
    model: onnx.ModelProto, node: onnx.NodeProto, weights: dict[str, NDArray[Any]], mean: Doubles, *, deviation: Doubles
) -> list[onnx.NodeProto]:
    weight = weights[node.input[1]].astype(np.float64)
    name = node.name or node.output[0]
    constants = {
        f"{name}_mean": mean,
        f"{name}_scale": 1.0 / deviation,
        f"{name}_weight": weight * deviation[:, None],
        f"{name}_shift": mean @ weight,
    }
    for key, value in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), key))
    if sum(node.input[1] in other.input for other in model.graph.node) == 1:
        kept = [tensor for tensor in model.graph.initializer if tensor.name != node.input[1]]
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)
    return [
        helper.make_node("Sub", [node.input[0], f"{name}_mean"], [f"{name}_centred"], name=f"{name}_centre"),
        helper.make_node("Mul", [f"{name}_centred", f"{name}_scale"], [f"{name}_scaled"], name=f"{name}_rescale"),
        helper.make_node("MatMul", [f"{name}_scaled", f"{name}_weight"], [f"{name}_product"], name=name),
        helper.make_node("Add", [f"{name}_product", f"{name}_shift"], list(node.output), name=f"{name}_restore"),
    ]
