"""Products inside the bodies of If, Loop and Scan: find them, and store their weights as int8.

onnxruntime's static quantiser handles the main graph only, because its calibration has no access to a body. The weights
can be rounded nevertheless, with a scale for each channel and a `DequantizeLinear` in front of the product. The file
shrinks to a quarter, and the product is computed in float32 as before.
"""

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from converter.graph.constants import bodies_of, graphs_of, replace_nodes

# For each operator: the inputs that are weights, and the axis along which each channel has its own scale.
_WEIGHTS: dict[str, dict[int, int]] = {
    "Conv": {1: 0}, "ConvTranspose": {1: 1}, "MatMul": {0: -2, 1: -1}, "Gemm": {1: 1},
    "LSTM": {1: 1, 2: 1}, "GRU": {1: 1, 2: 1}, "RNN": {1: 1, 2: 1},
}  # fmt: skip
_FEW = 256  # with fewer weights the scales take more than is saved


def inner_products(model: onnx.ModelProto) -> int:
    """The number of products with float32 weights in bodies."""
    weights = _float_weights(model)
    return sum(
        any(place < len(node.input) and node.input[place] in weights for place in _WEIGHTS.get(node.op_type, ()))
        for graph in _bodies(model)
        for node in graph.node
    )


def with_int8_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose products inside bodies have int8 weights."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    weights = _float_weights(copy)
    rounded: dict[tuple[str, int], tuple[str, ...]] = {}
    for graph in _bodies(copy):
        nodes: list[onnx.NodeProto] = []
        for node in graph.node:
            for place, axis in _axes(node).items():
                tensor = weights.get(node.input[place]) if place < len(node.input) else None
                if tensor is None or np.prod(tensor[1].dims) < _FEW:
                    continue
                made = rounded.get((node.input[place], axis)) or _rounded(*tensor, axis)
                rounded[node.input[place], axis] = made
                result = f"{node.input[place]}_of_{len(nodes)}_{node.output[0]}"
                dims = len(tensor[1].dims)
                nodes.append(helper.make_node("DequantizeLinear", made, [result], name=result, axis=axis % dims))
                node.input[place] = result
            nodes.append(node)
        if len(nodes) > len(graph.node):
            replace_nodes(graph, nodes)
    _drop_unread(copy)
    return copy


def _bodies(model: onnx.ModelProto) -> list[onnx.GraphProto]:
    return [graph for node in model.graph.node for body in bodies_of(node) for graph in graphs_of(body)]


def _float_weights(model: onnx.ModelProto) -> dict[str, tuple[onnx.GraphProto, TensorProto]]:
    """float32 initialisers, with the graph that holds each; names that occur twice are left out."""
    found: dict[str, tuple[onnx.GraphProto, TensorProto]] = {}
    twice: set[str] = set()
    for graph in graphs_of(model.graph):
        inputs = {value.name for value in graph.input}
        for tensor in graph.initializer:
            if tensor.name in found:
                twice.add(tensor.name)
            if tensor.data_type == TensorProto.FLOAT and tensor.name not in inputs:
                found[tensor.name] = (graph, tensor)
    return {name: place for name, place in found.items() if name not in twice}


def _axes(node: onnx.NodeProto) -> dict[int, int]:
    axes = _WEIGHTS.get(node.op_type, {}) if not node.domain else {}
    if node.op_type == "Gemm" and any(attribute.name == "transB" and attribute.i for attribute in node.attribute):
        return {1: 0}
    return axes


def _rounded(graph: onnx.GraphProto, tensor: TensorProto, axis: int) -> tuple[str, ...]:
    """Add the weights as int8, their scales and zero points; return the three names."""
    values: NDArray[np.float32] = numpy_helper.to_array(tensor)
    others = tuple(place for place in range(values.ndim) if place != axis % values.ndim)
    largest = np.abs(values).max(axis=others, keepdims=True)
    scale = np.where(largest > 0, largest / 127.0, 1.0).astype(np.float32)
    whole = np.clip(np.rint(values / scale), -127, 127).astype(np.int8)
    names = tuple(f"{tensor.name}_{part}" for part in ("int8", "scale", "zero"))
    parts = (whole, scale.reshape(-1), np.zeros(scale.size, np.int8))
    graph.initializer.extend(numpy_helper.from_array(part, name) for part, name in zip(parts, names, strict=True))
    return names


def _drop_unread(model: onnx.ModelProto) -> None:
    read = {name for graph in graphs_of(model.graph) for node in graph.node for name in node.input}
    read |= {output.name for graph in graphs_of(model.graph) for output in graph.output}
    for graph in graphs_of(model.graph):
        kept = onnx.GraphProto()
        kept.initializer.extend(tensor for tensor in graph.initializer if tensor.name in read)
        if len(kept.initializer) < len(graph.initializer):
            del graph.initializer[:]
            graph.initializer.extend(kept.initializer)
