"""int8 values between layers as uint8, the same steps counted from 0: cut and joined layers fuse on x86 as well then.

`QuantizeLinear` to int8 with zero point z and to uint8 with z + 128 give whole numbers that are 128 apart, and
`DequantizeLinear` takes both back to the same float32. onnxruntime joins such pairs with the layers around them; on x86
it does so for int8 only where it can make uint8 of it itself, which it cannot across a Slice, Split or Concat. So only
graphs that have one of these between their layers are changed: elsewhere x86 gains nothing, and arm64 with dot products
would take up to 15 % more instructions. Weights stay int8.
"""

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from converter.graph.build import needed, replace_contents, uses

_SHIFT = 128
_BETWEEN = ("Slice", "Split", "Concat")


def unsigned_values(model: onnx.ModelProto) -> int:
    """Make values uint8 that are rounded to int8 and only turned back to real numbers, in place.

    Returns:
        how many; none where no layers are cut or joined between.
    """
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    real = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    if not any(node.op_type in _BETWEEN and real.intersection(node.input) for node in graph.node):
        return 0
    readers: dict[str, list[onnx.NodeProto | None]] = {output.name: [None] for output in graph.output}
    for node in graph.node:
        for name in uses(node):
            readers.setdefault(name, []).append(node if name in node.input else None)
    shifted: dict[str, str] = {}
    count = 0
    for node in graph.node:
        if node.op_type != "QuantizeLinear" or not _has_int8_zero(node, constants):
            continue
        after = readers.get(node.output[0], [])
        if all(reader is not None and _takes_back(reader, node.output[0], constants) for reader in after):
            for each in (node, *(reader for reader in after if reader is not None)):
                each.input[2] = _shifted(graph, constants, each.input[2], shifted)
            count += 1
    _, kept = needed(list(graph.node), list(graph.initializer), [output.name for output in graph.output])
    replace_contents(graph, graph.node, kept)
    return count


def _has_int8_zero(node: onnx.NodeProto, constants: dict[str, TensorProto]) -> bool:
    zero = constants.get(node.input[2]) if len(node.input) > 2 else None
    return zero is not None and zero.data_type == TensorProto.INT8


def _takes_back(node: onnx.NodeProto, value: str, constants: dict[str, TensorProto]) -> bool:
    return node.op_type == "DequantizeLinear" and node.input[0] == value and _has_int8_zero(node, constants)


def _shifted(graph: onnx.GraphProto, constants: dict[str, TensorProto], zero: str, known: dict[str, str]) -> str:
    """The constant of a zero point of uint8 for one of int8."""
    if zero not in known:
        name = f"{zero}_unsigned"
        while name in constants:
            name += "_"
        values = numpy_helper.to_array(constants[zero]).astype(np.int16) + _SHIFT
        constants[name] = numpy_helper.from_array(values.astype(np.uint8), name)
        graph.initializer.append(constants[name])
        known[zero] = name
    return known[zero]
