"""Exact int8 products on every processor: the facts of a graph that this needs, and the settings of a session.

x86 processors without VNNI multiply uint8 by int8 with an instruction that saturates at 16 bits (VPMADDUBSW), so that
large sums are too small there. onnxruntime's session entry `session.x64quantprecision` turns int8 weights into uint8 on
such processors, and is left out on others. It derives new names from the old ones: it fails where two products share
an int8 constant, and older releases crash where a constant has no zero point. `int8_of` detects both from the bytes of
a file, for graphs with int8 operators.

Weak point: a file whose constants are shared (written by a release before this one, or by other tools) runs unfused on
such a processor, exactly but slower; where its int8 products are operators of their own (dynamic int8), they saturate
as they did before, and the log says so.
"""

import platform
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from edge_runtime.bundle.int8_operators import EXACT_ENTRY, OPERANDS, Int8, has_int8

# The flags, any line of them, with which onnxruntime takes kernels that add int8 products up in 32 bits.
_VNNI = (
    frozenset({"avx512_vnni", "avx512f", "avx512bw", "avx512dq", "avx512vl"}),
    frozenset({"avx_vnni", "avx2"}),
)
_X86 = frozenset({"x86_64", "AMD64", "i386", "i686"})

# Fields of the protobuf messages (onnx.proto): graph of the model; node and initializer of a graph; input, output,
# op_type and attribute of a node; tensor and graphs of an attribute; data_type and name of a tensor.
_GRAPH, _NODE, _INITIALIZER = 7, 1, 5
_INPUT, _OUTPUT, _OP, _ATTRIBUTE = 1, 2, 4, 5
_ATTRIBUTE_T, _ATTRIBUTE_GRAPHS = 5, (6, 11)
_TENSOR_TYPE, _TENSOR_NAME, _INT8 = 2, 8, 3


class _Node(NamedTuple):
    op: str
    inputs: list[str]
    outputs: list[str]


def int8_of(data: bytes, operators: Any) -> Int8:
    """The state of a model's int8 constants.

    Args:
        data: the bytes of a sound ONNX file (`onnx_file.py` has read it).
        operators: the names of all its operators; without an int8 operator the bytes are not read.
    """
    if not has_int8(operators):
        return "none"
    nodes: list[_Node] = []
    constants: set[str] = set()
    graphs = [span for number, span in _fields(data, 0, len(data)) if number == _GRAPH]
    while graphs:
        for number, span in _fields(data, *graphs.pop()):
            if number == _INITIALIZER:
                _add_constant(data, span, constants)
            elif number == _NODE:
                nodes.append(_node(data, span, constants, graphs))
    changed = Counter(name for node in nodes for pair in _operands(node, constants) for name in pair)
    readers = Counter(name for node in nodes for name in node.inputs)
    for node in nodes:
        for pair in _operands(node, constants):
            if "" in pair or max(changed[name] for name in pair) > 1:
                return "shared"
            # onnxruntime gives each reader of a dequantised constant a copy of the node, with the same constants.
            if node.op == "DequantizeLinear" and readers[node.outputs[0]] > 1:
                return "shared"
    return "apart"


def _operands(node: _Node, constants: set[str]) -> Iterator[tuple[str, str]]:
    """The int8 constants of a node that onnxruntime may change, each with its zero point, or "" where it has none."""
    for values, zero in OPERANDS.get(node.op, ()):
        if values < len(node.inputs) and node.inputs[values] in constants:
            yield node.inputs[values], node.inputs[zero] if zero < len(node.inputs) else ""


def _node(data: bytes, span: tuple[int, int], constants: set[str], graphs: list[tuple[int, int]]) -> _Node:
    node = _Node("", [], [])
    for number, inner in _fields(data, *span):
        if number == _INPUT:
            node.inputs.append(_text(data, inner))
        elif number == _OUTPUT:
            node.outputs.append(_text(data, inner))
        elif number == _OP:
            node = node._replace(op=_text(data, inner))
        elif number == _ATTRIBUTE:
            for field, place in _fields(data, *inner):
                if field in _ATTRIBUTE_GRAPHS:
                    graphs.append(place)
                elif field == _ATTRIBUTE_T:  # of a `Constant`: its name is that of the node's output
                    _add_constant(data, place, constants, node.outputs)
    return node


def _add_constant(data: bytes, span: tuple[int, int], constants: set[str], names: list[str] | None = None) -> None:
    kind, name = 0, ""
    for number, (start, end) in _fields(data, *span):
        if number == _TENSOR_TYPE:
            kind = start
        elif number == _TENSOR_NAME:
            name = _text(data, (start, end))
    if kind == _INT8:
        constants.update([name] if names is None else names)


def _text(data: bytes, span: tuple[int, int]) -> str:
    return data[span[0] : span[1]].decode("utf-8", "replace")


def _fields(data: bytes, start: int, end: int) -> Iterator[tuple[int, tuple[int, int]]]:
    """The fields of one message: number, and the span of the bytes or the number (twice)."""
    while start < end:
        tag, start = _varint(data, start)
        wire = tag & 7
        if wire == 0:
            value, start = _varint(data, start)
            yield tag >> 3, (value, value)
            continue
        size = 4 if wire == 5 else 8
        if wire == 2:
            size, start = _varint(data, start)
        yield tag >> 3, (start, start + size)
        start += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


@cache
def saturates() -> bool:
    """Whether this processor multiplies int8 with saturation: x86 without VNNI, or with unknown flags."""
    if platform.machine() not in _X86:
        return False
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return True
    flags = {word for line in text.splitlines() if line.startswith("flags") for word in line.split()}
    return not any(kind <= flags for kind in _VNNI)


def set_exact(settings: Any, int8: Int8, *, saturating: bool | None = None) -> None:
    """Have a session compute int8 products exactly; on a processor that does so by itself it stays as it is.

    There the entry would only slow it down: where onnxruntime has other kernels for uint8 weights (x86 with VNNI and
    AMX, for one), it changes the weights all the same, and the int8 keywords take 1.6 times as long.

    Args:
        settings: onnxruntime's `SessionOptions`.
        int8: of the model.
        saturating: whether the processor saturates; detected by default.
    """
    if int8 == "none" or not (saturates() if saturating is None else saturating):
        return
    if int8 == "apart":
        settings.add_session_config_entry(*EXACT_ENTRY)
    else:
        import onnxruntime  # noqa: PLC0415 - slow to import: only when a model is really loaded

        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
