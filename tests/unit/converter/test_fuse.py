"""A layer of a static int8 form is one node on the device: product, bias and `Relu` in whole numbers."""

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from converter.graph.build import serialize
from converter.graph.fuse import rectified_first, with_biases, with_rectifiers
from converter.quantize import Recipe, candidate
from converter.session import session_of
from edge_runtime.bundle.int8_operators import EXACT_ENTRY

RNG = np.random.default_rng(0)
WIDTHS = (6, 24, 16, 3)


def model_of(
    nodes: list[onnx.NodeProto], constants: dict[str, NDArray[Any]], shape: tuple[Any, ...]
) -> onnx.ModelProto:
    """A graph from `window` to `value`."""
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    window = helper.make_tensor_value_info("window", TensorProto.FLOAT, ["N", *shape])
    value = helper.make_tensor_value_info("value", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [window], [value], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def layers(kind: str) -> onnx.ModelProto:
    """Three layers, as `Gemm` or as `MatMul` and `Add`."""
    nodes, constants, at = [], {}, "window"
    for layer, (rows, columns) in enumerate(itertools.pairwise(WIDTHS)):
        weight, bias = f"w{layer}", f"b{layer}"
        constants[weight] = RNG.normal(size=(rows, columns)).astype(np.float32)
        constants[bias] = RNG.normal(size=columns).astype(np.float32)
        last = layer == len(WIDTHS) - 2
        made = "value" if last else f"s{layer}"
        if kind == "Gemm":
            nodes.append(helper.make_node("Gemm", [at, weight, bias], [made], name=f"layer{layer}"))
        else:
            nodes.append(helper.make_node("MatMul", [at, weight], [f"p{layer}"], name=f"layer{layer}"))
            nodes.append(helper.make_node("Add", [bias, f"p{layer}"], [made], name=f"add{layer}"))
        if not last:
            nodes.append(helper.make_node("Relu", [made], [f"h{layer}"], name=f"relu{layer}"))
            at = f"h{layer}"
    return model_of(nodes, constants, (WIDTHS[0],))


def on_the_device(model: bytes, folder: Path) -> Counter[str]:
    """What onnxruntime makes of a graph."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry(*EXACT_ENTRY)
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node)


@pytest.mark.parametrize("kind", ["Gemm", "MatMul"])
@pytest.mark.parametrize("per_channel", [False, True])
def test_a_layer_is_one_node(kind: str, per_channel: bool, tmp_path: Path) -> None:
    """Whichever way the source writes it; and the answers are those of the float form, but for the rounding."""
    model = layers(kind)
    rows = RNG.normal(size=(200, WIDTHS[0])).astype(np.float32)
    form = candidate(model, Recipe("int8", per_channel=per_channel), rows)
    assert on_the_device(form.model, tmp_path) == {
        "QuantizeLinear": 1, "QGemm": 2, "QLinearMatMul": 1, "DequantizeLinear": 1, "Add": 1,
    }  # fmt: skip
    exact, found = (session_of(part).run(None, {"window": rows})[0] for part in (serialize(model), form.model))
    assert np.abs(exact - found).max() < 0.05 * np.abs(exact).max()


@pytest.mark.parametrize("per_channel", [False, True])
def test_scores_beyond_the_calibrated_range_do_not_become_equal(per_channel: bool) -> None:
    """The last bias is added in real numbers: else two scores at the range's end are one, and the first label wins."""
    constants = {"w": np.ones((2, 2), np.float32), "b": np.array([0.0, 0.2], np.float32)}
    model = model_of([helper.make_node("Gemm", ["window", "w", "b"], ["value"], name="product")], constants, (2,))
    each = np.linspace(-1.0, 1.0, 101, dtype=np.float32)
    one_at_a_time = np.vstack([np.stack([each, 0 * each], axis=1), np.stack([0 * each, each], axis=1)])
    form = candidate(model, Recipe("int8", per_channel=per_channel), one_at_a_time)
    ((first, second),) = session_of(form.model).run(None, {"window": np.ones((1, 2), np.float32)})[0]
    assert second > first


def test_constants_that_are_added_one_after_the_other_become_one() -> None:
    """As behind a product whose channels were brought to one scale; another sum behind it stays."""
    constants: dict[str, NDArray[Any]] = {
        "w": RNG.normal(size=(4, 5)).astype(np.float32), "a": RNG.normal(size=5).astype(np.float32),
        "b": RNG.normal(size=(1, 5)).astype(np.float32), "c": np.array([2.0], np.float32),
        "v": RNG.normal(size=(5, 2)).astype(np.float32),
    }  # fmt: skip
    nodes = [
        helper.make_node("MatMul", ["window", "w"], ["p"], name="product"),
        helper.make_node("Add", ["p", "a"], ["q"]),
        helper.make_node("Add", ["b", "q"], ["r"]),
        helper.make_node("Add", ["r", "c"], ["s"]),
        helper.make_node("MatMul", ["s", "v"], ["value"]),
    ]
    model = model_of(nodes, constants, (4,))
    joined = with_biases(model)
    assert [node.op_type for node in joined.graph.node] == ["Gemm", "Add", "MatMul"]
    assert {tensor.name for tensor in joined.graph.initializer} == {"w", "c", "v", "product_bias_inside"}
    rows = RNG.normal(size=(9, 4)).astype(np.float32)
    exact, found = (session_of(serialize(part)).run(None, {"window": rows})[0] for part in (model, joined))
    np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("why", ["three axes", "read twice", "no constant", "an output", "the last"])
def test_what_is_no_bias_of_rows_stays(why: str) -> None:
    """A `Gemm` has two axes and one reader's worth of bias."""
    constants = {"w": RNG.normal(size=(4, 4)).astype(np.float32), "a": RNG.normal(size=4).astype(np.float32)}
    nodes = [helper.make_node("MatMul", ["window", "w"], ["p"]), helper.make_node("Add", ["p", "a"], ["q"])]
    nodes.append(helper.make_node("Relu" if why == "the last" else "MatMul", ["q", "w"], ["value"]))
    if why == "the last":
        del nodes[2].input[1]
    if why == "no constant":
        nodes[1].input[1] = "window"
    elif why == "read twice":
        nodes[1].input[1] = "p"
    model = model_of(nodes, constants, (7, 4) if why == "three axes" else (4,))
    if why == "an output":
        model.graph.output.append(helper.make_tensor_value_info("p", TensorProto.FLOAT, None))
    assert [node.op_type for node in with_biases(model).graph.node][:2] == ["MatMul", "Add"]


def test_relu_comes_before_a_transpose_that_it_reads_alone() -> None:
    """The answers are the same bits, and the rectifier then stands behind its product."""
    constants = {"w": RNG.normal(size=(5, 3, 3)).astype(np.float32)}
    nodes = [
        helper.make_node("Conv", ["window", "w"], ["a"], name="product"),
        helper.make_node("Transpose", ["a"], ["b"], perm=[0, 2, 1], name="turn"),
        helper.make_node("Relu", ["b"], ["value"], name="cut"),
    ]
    model = model_of(nodes, constants, (3, 8))
    turned = rectified_first(model)
    assert [(node.op_type, node.name) for node in turned.graph.node] == [
        ("Conv", "product"), ("Relu", "cut"), ("Transpose", "turn"),
    ]  # fmt: skip
    assert with_rectifiers(turned, ["product"]) == ["product", "cut"]
    assert with_rectifiers(model, ["product"]) == ["product"]
    rows = RNG.normal(size=(4, 3, 8)).astype(np.float32)
    one, other = (session_of(serialize(part)).run(None, {"window": rows})[0] for part in (model, turned))
    assert one.tobytes() == other.tobytes()
