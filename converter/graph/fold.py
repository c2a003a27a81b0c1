"""Fold the scaling and shifting of channels into the product or convolution in front of it.

Exporters write a batch normalisation as four operators behind the product: `((x @ W + b) - mean) * gain + beta`. Folded
into W and b, in float64, it costs the device nothing, and three roundings are gone: the error of MLPerf Tiny's anomaly
model, which magnifies rounding, is halved.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Doubles = NDArray[np.float64]

_PRODUCTS = ("MatMul", "Gemm", "Conv")
_AFFINE = ("Add", "Sub", "Mul", "Div", "BatchNormalization")


@dataclass(slots=True)
class _Chain:
    """The chain behind a product: `value * scale + shift`, a number for each channel, and its nodes."""

    scale: Doubles
    shift: Doubles
    nodes: list[int]


def folded(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with such chains folded, or the model itself where there are none. Only float32 weights are touched."""
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
    readers = _readers(graph)
    ranks = _ranks(model)
    chains = {}
    for index, node in enumerate(graph.node):
        weight = constants.get(node.input[1]) if node.op_type in _PRODUCTS and len(node.input) > 1 else None
        if weight is not None and _is_plain(node, weight, constants):
            chain = _chain_after(node, _channels(node, weight), graph, constants, readers=readers, ranks=ranks)
            # A chain of only a bias stays.
            if len(chain.nodes) > 1 or (chain.scale != 1.0).any():
                chains[index] = chain
    return _rewritten(model, chains, constants) if chains else model


def _readers(graph: onnx.GraphProto) -> dict[str, list[int]]:
    """The nodes that read each value; -1 stands for the graph's own output and for graphs inside nodes."""
    readers: dict[str, list[int]] = {}
    for index, node in enumerate(graph.node):
        for name in node.input:
            readers.setdefault(name, []).append(index)
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else list(attribute.graphs):
                for child in inner.node:
                    for name in child.input:
                        readers.setdefault(name, []).append(-1)
    for output in graph.output:
        readers.setdefault(output.name, []).append(-1)
    return readers


def _ranks(model: onnx.ModelProto) -> dict[str, int]:
    try:
        known = onnx.shape_inference.infer_shapes(model)
    except Exception:  # noqa: BLE001 - then only what needs no rank is folded
        return {}
    return {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in known.graph.value_info
        if value.type.tensor_type.HasField("shape")
    }


def _is_plain(node: onnx.NodeProto, weight: onnx.TensorProto, constants: dict[str, onnx.TensorProto]) -> bool:
    if node.op_type == "MatMul":
        return len(weight.dims) == 2
    if len(node.input) > 2 and node.input[2]:
        bias = constants.get(node.input[2])
        if bias is None or np.prod(bias.dims) not in (1, _channels(node, weight)):
            return False
    if node.op_type == "Gemm":
        given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        return bool(given.get("alpha", 1.0) == 1.0 and given.get("beta", 1.0) == 1.0)
    return True


def _turned(node: onnx.NodeProto) -> bool:
    return node.op_type == "Gemm" and any(item.name == "transB" and item.i for item in node.attribute)


def _channels(node: onnx.NodeProto, weight: onnx.TensorProto) -> int:
    return int(weight.dims[0] if node.op_type == "Conv" or _turned(node) else weight.dims[1])


def _chain_after(
    node: onnx.NodeProto, channels: int, graph: onnx.GraphProto, constants: dict[str, Any],
    *, readers: dict[str, list[int]], ranks: dict[str, int],
) -> _Chain:  # fmt: skip
    """Follow a product's result through transpositions while it is only scaled and shifted by channel."""
    chain = _Chain(np.ones(channels), np.zeros(channels), [])
    value = node.output[0]
    rank = 4 if node.op_type == "Conv" else 2 if node.op_type == "Gemm" else ranks.get(value, 0)
    rank = len(constants[node.input[1]].dims) if node.op_type == "Conv" else rank
    # Counted from the end, so that a product of unknown rank has one too; MatMul has at least two axes.
    axis = 1 - rank if node.op_type == "Conv" else -1
    while len(readers.get(value, ())) == 1 and (index := readers[value][0]) >= 0:
        follower = graph.node[index]
        if -1 in readers.get(follower.output[0], ()):
            break
        if follower.op_type == "Transpose" and rank:
            order = next((list(item.ints) for item in follower.attribute if item.name == "perm"), None)
            order = order or list(range(rank))[::-1]
            axis = order.index(axis % rank) - rank
        elif follower.op_type not in _AFFINE or not _absorb(
            follower, value, chain, axis, rank=rank, constants=constants
        ):
            break
        else:
            chain.nodes.append(index)
        value = follower.output[0]
    return chain


def _absorb(
    node: onnx.NodeProto, value: str, chain: _Chain, axis: int, *, rank: int, constants: dict[str, Any]
) -> bool:
    """Add one operator to the chain, if its constant has one number for each channel."""
    if node.op_type == "BatchNormalization":
        names = list(node.input)[1:]
        if not rank or axis % rank != 1 or node.input[0] != value or any(name not in constants for name in names):
            return False
        gain, beta, mean, variance = (numpy_helper.to_array(constants[name]).astype(np.float64) for name in names)
        given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        if given.get("training_mode") or len(node.output) > 1:
            return False
        gain = gain / np.sqrt(variance + given.get("epsilon", 1e-5))
        chain.scale, chain.shift = chain.scale * gain, (chain.shift - mean) * gain + beta
        return True
    first = node.input[0] == value
    other = node.input[1] if first else node.input[0]
    if other not in constants or (node.op_type in ("Sub", "Div") and not first):
        return False
    numbers = _by_channel(numpy_helper.to_array(constants[other]), len(chain.scale), axis, rank)
    if numbers is None or (node.op_type == "Div" and not numbers.all()):
        return False
    if node.op_type in ("Add", "Sub"):
        chain.shift = chain.shift + (numbers if node.op_type == "Add" else -numbers)
    else:
        factor = numbers if node.op_type == "Mul" else 1.0 / numbers
        chain.scale, chain.shift = chain.scale * factor, chain.shift * factor
    return True


def _by_channel(constant: NDArray[Any], channels: int, axis: int, rank: int) -> Doubles | None:
    """A constant as one number for each channel; None where it is not, or changes the rank."""
    if constant.ndim > (rank or 2):
        return None
    if constant.size == 1:
        return np.full(channels, float(constant.reshape(-1)[0]))
    if constant.size != channels or constant.ndim < -axis or constant.shape[axis] != channels:
        return None
    return np.asarray(constant.reshape(-1), dtype=np.float64)


def _rewritten(
    model: onnx.ModelProto, chains: dict[int, _Chain], constants: dict[str, onnx.TensorProto]
) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    gone = {index for chain in chains.values() for index in chain.nodes}
    renamed: dict[str, str] = {}
    nodes: list[onnx.NodeProto] = []
    for index, node in enumerate(copy.graph.node):
        for position, name in enumerate(node.input):
            node.input[position] = renamed.get(name, name)
        if index in gone:
            value = next(name for name in node.input if name not in constants)
            renamed[node.output[0]] = value
        elif index in chains:
            nodes += _scaled(copy, node, chains[index], constants)
        else:
            nodes.append(node)
    final = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del copy.graph.node[:]
    copy.graph.node.extend(final)
    return copy


def _scaled(
    model: onnx.ModelProto, node: onnx.NodeProto, chain: _Chain, constants: dict[str, onnx.TensorProto]
) -> list[onnx.NodeProto]:
    """The product with the chain folded into its weights and its bias."""
    weight = numpy_helper.to_array(constants[node.input[1]]).astype(np.float64)
    by_row = node.op_type == "Conv" or _turned(node)
    shape = (-1,) + (1,) * (weight.ndim - 1) if by_row else (-1,)
    bias = chain.shift
    if len(node.input) > 2 and node.input[2]:
        own = numpy_helper.to_array(constants[node.input[2]])
        bias = bias + own.astype(np.float64).reshape(-1) * chain.scale
    names = [f"{node.output[0]}_{part}" for part in ("folded_weight", "folded_bias")]
    for name, array in zip(names, (weight * chain.scale.reshape(shape), bias), strict=True):
        model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array, dtype=np.float32), name))
    if node.op_type != "MatMul":
        del node.input[1:]
        node.input.extend(names)
        return [node]
    product = f"{node.output[0]}_product"
    add = helper.make_node("Add", [product, names[1]], [node.output[0]], name=f"{node.name or node.output[0]}_bias")
    node.input[1], node.output[0] = names[0], product
    return [node, add]
