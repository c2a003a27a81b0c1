"""Separate int8 constants: each product has its own weights and zero point, so that onnxruntime can change them.

On a processor whose int8 products saturate, onnxruntime turns int8 weights and their zero points into uint8, and
derives the new names from the old ones. Two products that share a constant then fail with "Attempt to replace the
existing tensor", and a constant without zero point gives a wrong graph or a crash (1.20 to 1.23). A zero point takes a
few bytes; weights are rarely shared. `edge_runtime/bundle/int8_operators.py` holds the list of operators; the device's
`int8.py` looks for the same.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from converter.graph.constants import graphs_of, lift_constants, replace_nodes
from edge_runtime.bundle.int8_operators import OPERANDS


def separate(model: onnx.ModelProto) -> int:
    """Give each int8 product its own constants, in place.

    Returns:
        the number of added constants and nodes.
    """
    before = sum(len(graph.node) + len(graph.initializer) for graph in graphs_of(model.graph))
    for graph in graphs_of(model.graph):
        lift_constants(graph, TensorProto.INT8)
    names = {name for graph in graphs_of(model.graph) for name in _names(graph)}
    constants = {tensor.name: tensor for graph in graphs_of(model.graph) for tensor in graph.initializer}
    for graph in graphs_of(model.graph):
        _own_dequantisers(graph, constants, names)
    taken: set[str] = set()
    for graph in graphs_of(model.graph):
        for node in graph.node:
            for values, zero in _operands(node, constants):
                _complete(node, values, zero, constants, graph=graph, names=names)
                for place in (values, zero):
                    name = node.input[place]
                    if name in constants and name in taken:
                        node.input[place] = _copy(graph, constants, name, names)
                    taken.add(node.input[place])
    return sum(len(graph.node) + len(graph.initializer) for graph in graphs_of(model.graph)) - before


def _names(graph: onnx.GraphProto) -> Iterable[str]:
    yield from (value.name for value in graph.input)
    yield from (tensor.name for tensor in graph.initializer)
    for node in graph.node:
        yield from node.output


def _operands(node: onnx.NodeProto, constants: dict[str, TensorProto]) -> Iterator[tuple[int, int]]:
    """The inputs of a node that are int8 constants, with their zero points."""
    for values, zero in OPERANDS.get(node.op_type, ()):
        tensor = constants.get(node.input[values]) if values < len(node.input) else None
        if tensor is not None and tensor.data_type == TensorProto.INT8:
            yield values, zero


def _own_dequantisers(graph: onnx.GraphProto, constants: dict[str, TensorProto], names: set[str]) -> None:
    """Give each reader of a dequantised constant its own `DequantizeLinear`, as onnxruntime does."""
    makers = {
        node.output[0]: node
        for node in graph.node
        if node.op_type == "DequantizeLinear" and next(_operands(node, constants), None)
    }
    if not makers:
        return
    seen: set[str] = {value.name for value in graph.output}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name not in makers:
                continue
            if name in seen:
                copy = onnx.NodeProto()
                copy.CopyFrom(makers[name])
                copy.output[0] = _fresh(name, names)
                copy.name = copy.output[0] if copy.name else ""
                node.input[place] = copy.output[0]
                nodes.append(copy)
            seen.add(name)
        nodes.append(node)
    if len(nodes) > len(graph.node):
        replace_nodes(graph, nodes)


def _complete(
    node: onnx.NodeProto,
    values: int,
    zero: int,
    constants: dict[str, TensorProto],
    *,
    graph: onnx.GraphProto,
    names: set[str],
) -> None:
    """Add a zero point of zeros where there is none, in the shape of the scale where that is known."""
    if zero < len(node.input) and node.input[zero]:
        return
    has_scale = node.op_type in ("DequantizeLinear", "DynamicQuantizeLSTM")
    scale = constants.get(node.input[zero - 1]) if has_scale else None
    shape = tuple(scale.dims) if scale is not None else ()
    tensor = numpy_helper.from_array(np.zeros(shape, dtype=np.int8), _fresh(f"{node.input[values]}_zero", names))
    graph.initializer.append(tensor)
    constants[tensor.name] = tensor
    node.input.extend([""] * (zero + 1 - len(node.input)))
    node.input[zero] = tensor.name


def _copy(graph: onnx.GraphProto, constants: dict[str, TensorProto], name: str, names: set[str]) -> str:
    tensor = graph.initializer.add()
    tensor.CopyFrom(constants[name])
    tensor.name = _fresh(name, names)
    constants[tensor.name] = tensor
    return str(tensor.name)


def _fresh(wish: str, names: set[str]) -> str:
    number = 1
    while f"{wish}_{number}" in names:
        number += 1
    names.add(f"{wish}_{number}")
    return f"{wish}_{number}"
