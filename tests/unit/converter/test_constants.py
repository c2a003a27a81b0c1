"""Weights wherever an exporter puts them: `Constant` nodes, computed ones, and the bodies of If and Loop."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from converter.cli import main
from converter.commands.inspect import manifest_of
from converter.graph.body_weights import inner_products, with_int8_weights
from converter.graph.constants import graphs_of, settle_constants
from converter.quantize import products_of
from converter.session import session_of

CHANNELS, LENGTH = 32, 64
ROWS = np.random.default_rng(9).normal(size=(200, 1, LENGTH)).astype(np.float32)


def body(name: str, source: str, seed: int) -> tuple[list[Any], str]:
    """Three convolutions and a product whose weights are `Constant` nodes, the last one transposed as it runs."""
    rng, nodes, value, width = np.random.default_rng(seed), [], source, 1

    def constant(label: str, *shape: int) -> str:
        weights = (rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        nodes.append(helper.make_node("Constant", [], [label], value=numpy_helper.from_array(weights)))
        return label

    for index in range(3):
        weight = constant(f"{name}w{index}", CHANNELS, width, 3)
        nodes += [
            helper.make_node("Conv", [value, weight], [f"{name}c{index}"], pads=[1, 1], name=f"{name}conv{index}"),
            helper.make_node("Relu", [f"{name}c{index}"], [f"{name}r{index}"]),
        ]
        value, width = f"{name}r{index}", CHANNELS
    turned = constant(f"{name}out", 3, CHANNELS)
    nodes += [
        helper.make_node("GlobalAveragePool", [value], [f"{name}p"]),
        helper.make_node("Flatten", [f"{name}p"], [f"{name}f"]),
        helper.make_node("Transpose", [turned], [f"{name}t"], perm=[1, 0]),
        helper.make_node("MatMul", [f"{name}f", f"{name}t"], [f"{name}m"], name=f"{name}product"),
        helper.make_node("Softmax", [f"{name}m"], [f"{name}y"], axis=-1),
    ]
    return nodes, f"{name}y"


def network(kind: str) -> onnx.ModelProto:
    """A network in the main graph, behind an option (`sr`, as Silero has it), or behind a condition of the input."""
    inputs = [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 1, LENGTH])]
    outputs = [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["N", 3])]
    if kind == "plain":
        nodes, end = body("a", "input", 1)
        nodes.append(helper.make_node("Identity", [end], ["output"]))
    else:
        branches = []
        for name, seed in (("a", 1), ("b", 2)):
            inner, end = body(name, "input", seed)
            branches.append(helper.make_graph(inner, name, [], [helper.make_tensor_value_info(end, 1, None)]))
        number = np.array(16000) if kind == "option" else np.array(0.0, np.float32)
        nodes = [helper.make_node("Constant", [], ["number"], value=numpy_helper.from_array(number))]
        if kind == "option":
            inputs.append(helper.make_tensor_value_info("sr", TensorProto.INT64, []))
            nodes.append(helper.make_node("Equal", ["sr", "number"], ["condition"]))
        else:
            nodes.append(helper.make_node("ReduceMean", ["input"], ["mean"], keepdims=0))
            nodes.append(helper.make_node("Greater", ["mean", "number"], ["condition"]))
        node = helper.make_node("If", ["condition"], ["output"], then_branch=branches[0], else_branch=branches[1])
        nodes.append(node)
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def answers(model: onnx.ModelProto, **feeds: Any) -> Any:
    """Of onnxruntime, one row at a time, so that a condition of the input goes both ways."""
    session = session_of(model.SerializeToString())
    return np.concatenate([session.run(None, {"input": row[None], **feeds})[0] for row in ROWS[:20]])


def with_option(model: onnx.ModelProto) -> onnx.ModelProto:
    """The option baked in, as `[constants]` does."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.initializer.append(numpy_helper.from_array(np.array(16000), "sr"))
    del copy.graph.input[1]
    return copy


def test_weights_in_constant_nodes_are_products() -> None:
    """And those that are transposed first; no answer changes by a bit."""
    model = network("plain")
    expected = answers(model)
    assert products_of(model) == []
    assert settle_constants(model) == 5
    assert products_of(model) == ["aconv0", "aconv1", "aconv2", "aproduct"]
    assert answers(model).tobytes() == expected.tobytes()


def test_a_branch_that_an_option_decides_takes_the_place_of_the_condition() -> None:
    """The other branch goes with its weights."""
    model = with_option(network("option"))
    expected = answers(network("option"), sr=np.array(16000))
    before = len(model.SerializeToString())
    settle_constants(model)
    assert not [node for node in model.graph.node if node.op_type in ("If", "Equal", "Constant", "Transpose")]
    assert len(products_of(model)) == 4
    assert len(model.SerializeToString()) < before * 0.6
    assert answers(model).tobytes() == expected.tobytes()


def test_a_condition_of_the_input_stays_and_its_weights_become_int8() -> None:
    """Both branches are a quarter of the bytes, and answer nearly the same."""
    model = network("condition")
    expected = answers(model)
    settle_constants(model)
    assert answers(model).tobytes() == expected.tobytes()
    assert [node.op_type for node in model.graph.node] == ["ReduceMean", "Greater", "If"]
    assert inner_products(model) == 8
    small = with_int8_weights(model)
    assert len(small.SerializeToString()) < len(model.SerializeToString()) * 0.35
    found = answers(small)
    assert 0 < np.abs(found - expected).max() < 5e-3
    kinds = {
        tensor.data_type for graph in graphs_of(small.graph) for tensor in graph.initializer if len(tensor.dims) > 2
    }
    assert kinds == {TensorProto.FLOAT, TensorProto.INT8}


def test_values_that_would_swell_the_file_are_left_to_the_device() -> None:
    """A million zeros from a shape of two numbers stay a node."""
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["zeros"]),
        helper.make_node("Add", ["input", "zeros"], ["output"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1000, 1000]) for name in ("input", "output")]
    shape = numpy_helper.from_array(np.array([1000, 1000]), "shape")
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [shape])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert settle_constants(model) == 0
    assert [node.op_type for node in model.graph.node] == ["ConstantOfShape", "Add"]


@pytest.mark.parametrize(("kind", "form"), [("plain", "int8 static"), ("option", "int8 static"),
                                            ("condition", "int8 weights")])  # fmt: skip
def test_build_finds_something_to_quantise_wherever_the_weights_are(
    kind: str, form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A third of float32's bytes; never "nothing to quantise"."""
    onnx.save(network(kind), tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=ROWS.reshape(len(ROWS), -1))
    spec = 'task = "classification"\nlabels = ["a", "b", "c"]\n[model]\ninput = "input"\n[frame]\nshape = [1, 64]\n'
    (tmp_path / "s.toml").write_text(spec + ("[constants]\nsr = 16000\n" if kind == "option" else ""))
    arguments = ["--spec", str(tmp_path / "s.toml"), "--data", str(tmp_path / "d.npz"), "-o", str(tmp_path / "o.onnx")]
    code = main(["build", str(tmp_path / "m.onnx"), *arguments, "--max-drop", "0.2", "--quantize", "int8"])
    assert code == 0, capsys.readouterr().err
    assert "nothing to quantise" not in capsys.readouterr().out
    record = manifest_of(tmp_path / "o.onnx").quantization
    assert re.match(form, record["name"])
    assert record["bytes"] < record["bytes_float"] * 0.55


@pytest.mark.parametrize("kind", ["Loop", "Scan"])
def test_weights_in_the_body_of_a_loop_become_int8(kind: str) -> None:
    """A product repeated three times over its own result: counted, a third of the bytes, nearly the same answer."""
    weights = numpy_helper.from_array(np.random.default_rng(0).normal(0, 0.1, (32, 32)).astype(np.float32), "w")
    info = helper.make_tensor_value_info
    nodes = [helper.make_node("MatMul", ["before", "w"], ["product"]), helper.make_node("Tanh", ["product"], ["after"])]
    if kind == "Loop":
        ends = [
            info("i", TensorProto.INT64, []),
            info("go", TensorProto.BOOL, []),
            info("before", TensorProto.FLOAT, [1, 32]),
        ]
        nodes.append(helper.make_node("Identity", ["go"], ["on"]))
        outputs = [info("on", TensorProto.BOOL, []), info("after", TensorProto.FLOAT, [1, 32])]
        body = helper.make_graph(nodes, "body", ends, outputs, [weights])
        outer = helper.make_node("Loop", ["three", "", "input"], ["output"], body=body)
    else:
        ends = [info("before", TensorProto.FLOAT, [1, 32]), info("step", TensorProto.FLOAT, [1])]
        nodes.append(helper.make_node("Identity", ["step"], ["passed"]))
        outputs = [info("after", TensorProto.FLOAT, [1, 32]), info("passed", TensorProto.FLOAT, [1])]
        body = helper.make_graph(nodes, "body", ends, outputs, [weights])
        outer = helper.make_node("Scan", ["input", "steps"], ["output", "rest"], body=body, num_scan_inputs=1)
    constants = [
        numpy_helper.from_array(np.array(3, np.int64), "three"),
        numpy_helper.from_array(np.zeros((3, 1), np.float32), "steps"),
    ]
    graph = helper.make_graph(
        [outer],
        "g",
        [info("input", TensorProto.FLOAT, [1, 32])],
        [info("output", TensorProto.FLOAT, [1, 32])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    assert inner_products(model) == 1
    small = with_int8_weights(model)
    assert len(small.SerializeToString()) < 0.5 * len(model.SerializeToString())
    row = np.random.default_rng(1).normal(size=(1, 32)).astype(np.float32)
    expected = row
    for _ in range(3):
        expected = np.tanh(expected @ numpy_helper.to_array(weights))
    exact, found = (
        onnxruntime.InferenceSession(each.SerializeToString()).run(["output"], {"input": row})[0]
        for each in (model, small)
    )
    np.testing.assert_allclose(exact, expected, atol=1e-6)
    assert 0 < np.abs(found - expected).max() < 5e-3
