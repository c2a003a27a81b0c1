"""Nodes that compute nothing are left out, and no other; every answer stays the same bits."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from converter.graph.build import serialize
from converter.graph.needless import drop_reshapes, name_outputs
from converter.graph.shrink import shrunk
from converter.session import session_of

SIZES = {
    "rows": [-1, 12], "as it comes": [-1, 3, 4], "other": [-1, 2, 6], "copied": [0, 3, 4], "flat": [0, -1],
    "deep": [-1, 12, 1], "all copied": [0, 0, -1], "four axes": [-1, 1, 3, 4],
}  # fmt: skip
CONSTANTS = {name: np.array(sizes, np.int64) for name, sizes in SIZES.items()}


def model_of(
    nodes: list[onnx.NodeProto], *outputs: str, constants: Mapping[str, Any] = CONSTANTS, shape: Any = ("N", 3, 4)
) -> onnx.ModelProto:
    """A graph with the input `x`, three rows of four numbers for each window."""
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    graph = helper.make_graph(nodes, "g", [x], made, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def answers(model: onnx.ModelProto, rows: int) -> list[tuple[tuple[int, ...], bytes]]:
    """Shape and bytes of every output, for a few windows."""
    x = np.random.default_rng(0).normal(size=(rows, 3, 4)).astype(np.float32)
    return [(part.shape, part.tobytes()) for part in session_of(serialize(model)).run(None, {"x": x})]


def left(model: onnx.ModelProto) -> Counter[str]:
    """How many nodes of each kind there are after the steps."""
    drop_reshapes(model)
    name_outputs(model)
    return Counter(node.op_type for node in model.graph.node)


def reshape(value: str, sizes: str, result: str, **attributes: Any) -> onnx.NodeProto:
    """One reshape to sizes by their name."""
    return helper.make_node("Reshape", [value, sizes], [result], **attributes)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from([*SIZES, "Relu", "Neg"]), min_size=1, max_size=7), st.booleans())
def test_answers_stay_the_same_bits_in_the_same_shape(steps: list[str], twice: bool) -> None:
    """Whatever follows whatever, for one window and for several, and where a value is read a second time."""
    nodes, at = [], "x"
    for number, step in enumerate(steps):
        name = f"v{number}"
        nodes.append(reshape(at, step, name) if step in SIZES else helper.make_node(step, [at], [name]))
        if _can_run(model_of(nodes, name)):
            at = name
        else:
            nodes.pop()  # the sizes do not fit what is there
    if not nodes:
        return
    nodes.append(helper.make_node("Identity", [at], ["y"]))
    if twice:
        nodes.append(helper.make_node("Abs", [nodes[0].output[0]], ["z"]))
    model = model_of(nodes, *(["y", "z"] if twice else ["y"]))
    smaller = onnx.ModelProto()
    smaller.CopyFrom(model)
    count = sum(left(smaller).values())
    assert count <= len(model.graph.node)
    assert drop_reshapes(smaller) == name_outputs(smaller) == 0
    for rows in (1, 5):
        assert answers(smaller, rows) == answers(model, rows)


def _can_run(model: onnx.ModelProto) -> bool:
    """Whether the sizes fit one another."""
    try:
        answers(model, 5)
    except Exception:  # noqa: BLE001 - onnxruntime's exceptions share no base class
        return False
    return True


def test_a_reshape_to_the_shape_that_is_there_is_gone() -> None:
    """Before every layer, as TFLite's fully connected layers ask for it; and its constant with it."""
    weight = np.random.default_rng(1).normal(size=(12, 12)).astype(np.float32)
    nodes = [reshape("x", "rows", "a")]
    for layer in range(3):
        nodes.append(helper.make_node("MatMul", ["a" if not layer else f"r{layer - 1}", "w"], [f"m{layer}"]))
        nodes.append(reshape(f"m{layer}", "rows", f"r{layer}"))
    nodes.append(helper.make_node("Identity", ["r2"], ["y"]))
    model = model_of(nodes, "y", constants={"rows": CONSTANTS["rows"], "w": weight})
    smaller, savings = shrunk(model)
    assert Counter(node.op_type for node in smaller.graph.node) == {"Reshape": 1, "MatMul": 3}
    assert answers(smaller, 4) == answers(model, 4)
    assert {saving.what: saving.count for saving in savings} == {
        "reshapes that change nothing": 3,
        "nodes that only give a name": 1,
    }


def test_of_two_reshapes_the_second_decides() -> None:
    """The first is gone, unless something else reads it or the second copies a size from it."""
    first, second = reshape("x", "rows", "a"), reshape("a", "other", "b")
    end = helper.make_node("Neg", ["b"], ["y"])
    assert left(model_of([first, second, end], "y"))["Reshape"] == 1
    again = helper.make_node("Abs", ["a"], ["z"])
    assert left(model_of([first, second, end, again], "y", "z"))["Reshape"] == 2
    assert left(model_of([reshape("x", "deep", "a"), reshape("a", "flat", "b"), end], "y"))["Reshape"] == 2
    assert left(model_of([first, second, end], "a", "y"))["Reshape"] == 2


@pytest.mark.parametrize("why", ["unknown shape", "another meaning of 0", "sizes that are computed"])
def test_what_is_not_known_stays(why: str) -> None:
    """A reshape is left out only where its shape is certain."""
    shape: tuple[str | int, ...] = ("N", 3, 4)
    nodes = [reshape("x", "copied", "a")]
    if why == "unknown shape":
        shape = ("N", "M", 4)
    elif why == "another meaning of 0":
        nodes = [reshape("x", "as it comes", "a", allowzero=1)]
    else:
        nodes = [helper.make_node("Shape", ["x"], ["s"]), reshape("x", "s", "a")]
    model = model_of([*nodes, helper.make_node("Neg", ["a"], ["y"])], "y", shape=shape)
    assert left(model)["Reshape"] == 1


def test_names_that_bodies_read_and_inputs_that_are_outputs_stay() -> None:
    """An `Identity` goes only where its value can have the output's name."""
    body = helper.make_graph(
        [helper.make_node("Neg", ["a"], ["inner"])], "body", [],
        [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)],
    )  # fmt: skip
    nodes = [
        helper.make_node("Neg", ["x"], ["a"]),
        helper.make_node("Identity", ["a"], ["y"]),
        helper.make_node("Identity", ["x"], ["z"]),
        helper.make_node("If", ["yes"], ["w"], then_branch=body, else_branch=body),
        helper.make_node("Abs", ["x"], ["b"]),
        helper.make_node("Identity", ["b"], ["v"]),
        helper.make_node("Identity", ["b"], ["u"]),
    ]
    model = model_of(nodes, "y", "z", "w", "v", "u", constants={"yes": np.array(True)})
    before = answers(model, 3)
    assert left(model)["Identity"] == 3
    assert answers(model, 3) == before


def test_arranging_nodes_stay_where_that_is_asked_for() -> None:
    """Without them onnxruntime may join other nodes and round otherwise; the rest is still left out."""
    nodes = [
        reshape("x", "copied", "a"), helper.make_node("Neg", ["a"], ["b"]), helper.make_node("Neg", ["a"], ["c"]),
        helper.make_node("Add", ["b", "c"], ["d"]), helper.make_node("Identity", ["d"], ["y"]),
    ]  # fmt: skip
    model = model_of(nodes, "y", constants={"copied": CONSTANTS["copied"]})
    kinds = [
        Counter(node.op_type for node in shrunk(model, rearranged=rearranged)[0].graph.node)
        for rearranged in (True, False)
    ]
    assert kinds == [{"Neg": 1, "Add": 1}, {"Reshape": 1, "Neg": 1, "Add": 1, "Identity": 1}]
