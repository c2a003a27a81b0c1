"""What follows a product, put so that a static int8 form computes it in the product: its bias and its `Relu`.

`with_products` takes `Gemm` apart for the quantisers that know `MatMul` alone. Quantised like that, a layer is five
nodes on the device: the product, its way back to real numbers, the bias, `Relu`, and the rounding for the next layer.
With the bias in a `Gemm`, in whole numbers, and with `Relu` as the lower end of the range, it is one, and rounds once.
"""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from converter.graph.build import PRODUCTS, needed, readers_of, replace_contents, uses


def with_biases(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose products of rows with a matrix take up the constants that are added to them, as `Gemm` nodes.

    The last product keeps its bias outside, in real numbers: scores beyond the calibrated range would become equal
    otherwise, and the label would be the first of them.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    ranks, readers, inner = _ranks(copy), readers_of(graph), _before_products(graph)
    constants = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
    adders = {name: node for node in graph.node if node.op_type == "Add" for name in node.input}
    gone: set[str] = set()
    for node in graph.node:
        weight = constants.get(node.input[1]) if node.op_type == "MatMul" else None
        if weight is None or len(weight.dims) != 2 or ranks.get(node.input[0]) != 2:
            continue
        result, bias, taken = node.output[0], np.zeros(weight.dims[1]), []
        while readers[result] == 1 and result in adders:
            added = _constant_of(adders[result], result, constants)
            if added is None or added.size != bias.size or added.shape[-1:] != bias.shape:
                break
            bias += added.reshape(-1)
            result = adders[result].output[0]
            taken.append(result)
        if result != node.output[0] and result in inner:
            tensor = numpy_helper.from_array(bias.astype(np.float32), f"{node.name or result}_bias_inside")
            graph.initializer.append(tensor)
            node.op_type, node.output[0] = "Gemm", result
            node.input.append(tensor.name)
            gone.update(taken)
    kept = [node for node in graph.node if node.op_type != "Add" or node.output[0] not in gone]
    nodes, tensors = needed(kept, list(graph.initializer), [output.name for output in graph.output])
    replace_contents(graph, nodes, tensors)
    return copy


def _before_products(graph: onnx.GraphProto) -> set[str]:
    """The values that a later product is computed from."""
    found: set[str] = set()
    for node in reversed(graph.node):
        if node.op_type in PRODUCTS or found.intersection(node.output):
            found.update(uses(node))
    return found


def _constant_of(adder: onnx.NodeProto, value: str, constants: dict[str, TensorProto]) -> NDArray[Any] | None:
    """What an `Add` adds to a value, where it is a constant."""
    other = [name for name in adder.input if name != value]
    return numpy_helper.to_array(constants[other[0]]) if other and other[0] in constants else None


def _ranks(model: onnx.ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(model).graph
    return {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in (*graph.input, *graph.value_info)
        if value.type.tensor_type.HasField("shape")
    }


def rectified_first(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which `Relu` comes before the `Transpose` that it reads alone: right behind the product."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    readers = readers_of(graph)
    turned = {node.output[0]: node for node in graph.node if node.op_type == "Transpose"}
    for node in graph.node:
        turn = turned.get(node.input[0]) if node.op_type == "Relu" else None
        if turn is not None and readers[turn.output[0]] == 1:
            node.op_type, turn.op_type = turn.op_type, node.op_type
            node.attribute.extend(turn.attribute)
            del turn.attribute[:]
            node.name, turn.name = turn.name, node.name
    return copy


def with_rectifiers(model: onnx.ModelProto, products: list[str]) -> list[str]:
    """The names of products, and of the `Relu` nodes that alone read one of them."""
    readers = readers_of(model.graph)
    results = {node.output[0] for node in model.graph.node if node.name in products and readers[node.output[0]] == 1}
    return products + [node.name for node in model.graph.node if node.op_type == "Relu" and node.input[0] in results]
