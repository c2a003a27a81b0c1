"""int8 values between layers as uint8: the same bits, and graphs that onnxruntime joins."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from converter.graph.build import serialize
from converter.graph.unsigned import unsigned_values
from converter.session import session_of

ODD = np.array([0.0, -0.0, 1e-30, 0.5, 1.5, -2.5, 127.49, 127.5, -128.5, 1e9, -1e9, np.inf, -np.inf, 3e38], np.float32)


def model_of(nodes: list[onnx.NodeProto], constants: dict[str, Any], *outputs: tuple[str, int]) -> onnx.ModelProto:
    """A graph with the input `x`, rows of 14 numbers."""
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 14])
    made = [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs]
    graph = helper.make_graph(nodes, "g", [x], made, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def rounded(value: str, result: str, scale: str = "s", zero: str = "z") -> list[onnx.NodeProto]:
    """A value rounded to int8 and taken back."""
    whole = f"{result}_whole"
    return [
        helper.make_node("QuantizeLinear", [value, scale, zero], [whole]),
        helper.make_node("DequantizeLinear", [whole, scale, zero], [result]),
    ]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(-128, 127), st.floats(1e-6, 1e6), st.floats(1e-3, 1e3))
def test_every_number_is_rounded_to_the_same_real_number(zero: int, scale: float, other: float) -> None:
    """Ties, numbers out of range and infinity included, through a slice and a second rounding."""
    nodes = [
        *rounded("x", "a"),
        helper.make_node("Slice", ["a", "from", "to", "axis"], ["b"]),
        *rounded("b", "y", "t", "u"),
        *rounded("b", "w", "t", "u"),
    ]
    constants = {
        "s": np.float32(scale), "z": np.int8(zero), "t": np.float32(scale * other), "u": np.int8(-zero - 1),
        "from": np.array([1], np.int64), "to": np.array([13], np.int64), "axis": np.array([1], np.int64),
    }  # fmt: skip
    model = model_of(nodes, constants, ("y", TensorProto.FLOAT), ("w", TensorProto.FLOAT))
    with np.errstate(over="ignore"):
        x = np.stack([ODD, ODD * np.float32(scale), np.roll(ODD, 5) * np.float32(scale * other)])
    before = session_of(serialize(model)).run(None, {"x": x})
    assert unsigned_values(model) == 3
    assert unsigned_values(model) == 0
    zeros = [tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.UINT8]
    assert sorted(int(numpy_helper.to_array(tensor)) for tensor in zeros) == sorted([zero + 128, -zero + 127])
    assert not any(tensor.data_type == TensorProto.INT8 for tensor in model.graph.initializer)
    after = session_of(serialize(model)).run(None, {"x": x})
    assert [part.tobytes() for part in after] == [part.tobytes() for part in before]


@pytest.mark.parametrize(
    "why", ["an output", "arithmetic on the whole numbers", "no zero point", "uint8 already", "nothing between layers"]
)
def test_other_whole_numbers_stay_what_they_are(why: str) -> None:
    """Only what is rounded and taken back can be counted from 0, and only a cut or a join needs it."""
    nodes, outputs = rounded("x", "y"), [("y", TensorProto.FLOAT)]
    constants: dict[str, Any] = {"s": np.float32(0.1), "z": np.int8(3)}
    if why != "nothing between layers":
        nodes.append(helper.make_node("Concat", ["y", "y"], ["v"], axis=1))
        outputs.append(("v", TensorProto.FLOAT))
    if why == "an output":
        outputs.append(("y_whole", TensorProto.INT8))
    elif why == "arithmetic on the whole numbers":
        nodes.append(helper.make_node("Sign", ["y_whole"], ["w"]))
        outputs.append(("w", TensorProto.INT8))
    elif why == "no zero point":
        del nodes[1].input[2], nodes[0].input[2], constants["z"]
    else:
        constants["z"] = np.uint8(3)
    model = model_of(nodes, constants, *outputs)
    before = serialize(model)
    assert unsigned_values(model) == 0
    assert serialize(model) == before


def test_layers_around_a_slice_are_joined(tmp_path: Path) -> None:
    """As in a streaming network: two convolutions with a cut between them run in whole numbers, on every processor."""
    rng = np.random.default_rng(0)
    constants: dict[str, Any] = {
        "s": np.float32(0.05), "z": np.int8(-3), "ws": np.float32(0.01), "wz": np.int8(0), "ws1": np.float32(0.01),
        "wz1": np.int8(0), "from": np.array([1], np.int64), "to": np.array([9], np.int64),
        "axis": np.array([3], np.int64), "four": np.array([0, 1, 1, 14], np.int64),
        "w": rng.integers(-127, 128, (4, 1, 1, 3)).astype(np.int8),
        "w1": rng.integers(-127, 128, (4, 4, 1, 3)).astype(np.int8),
    }  # fmt: skip
    nodes = [
        *rounded("x", "a0"),
        helper.make_node("Reshape", ["a0", "four"], ["a"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wf"]),
        helper.make_node("Conv", ["a", "wf"], ["b"]),
        *rounded("b", "c"),
        helper.make_node("Slice", ["c", "from", "to", "axis"], ["d0"]),
        *rounded("d0", "d"),
        helper.make_node("DequantizeLinear", ["w1", "ws1", "wz1"], ["wf1"]),
        helper.make_node("Conv", ["d", "wf1"], ["e"]),
        *rounded("e", "y"),
    ]
    model = model_of(nodes, constants, ("y", TensorProto.FLOAT))
    before = session_of(serialize(model)).run(None, {"x": ODD[None]})[0]
    assert unsigned_values(model) == 4
    assert session_of(serialize(model)).run(None, {"x": ODD[None]})[0].tobytes() == before.tobytes()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.add_session_config_entry("session.x64quantprecision", "1")
    onnxruntime.InferenceSession(serialize(model), options, providers=["CPUExecutionProvider"])
    found = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert (found["QLinearConv"], found["QuantizeLinear"], found["DequantizeLinear"]) == (2, 1, 1)
