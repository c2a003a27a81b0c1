"""Scaling and shifting behind a product goes into its weights, and only where that changes no answer."""

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from converter.graph.fold import folded

FLOAT = TensorProto.FLOAT


def noise(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    """Seeded noise, away from zero."""
    made = np.random.default_rng(seed).uniform(0.5, 1.5, size=shape)
    return (made * np.where(np.random.default_rng(seed + 1).random(shape) < 0.5, -1, 1)).astype(np.float32)


def graph_of(nodes: list[Any], shape: list[Any], constants: dict[str, NDArray[Any]]) -> onnx.ModelProto:
    """A model with input x and output y."""
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", FLOAT, shape)], [helper.make_tensor_value_info("y", FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def kinds_of(model: onnx.ModelProto) -> list[str]:
    """The operators, in order."""
    return [node.op_type for node in model.graph.node]


def assert_same(model: onnx.ModelProto, x: NDArray[Any]) -> list[str]:
    """Both forms answer alike; the operators of the folded one are handed back."""
    new = folded(model)
    before, after = (onnxruntime.InferenceSession(m.SerializeToString()).run(None, {"x": x})[0] for m in (model, new))
    assert before.shape == after.shape
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)
    return kinds_of(new)


def node(kind: str, *names: str, **attributes: Any) -> Any:
    """The last name is the result."""
    return helper.make_node(kind, list(names[:-1]), [names[-1]], **attributes)


NORMALISED = [node("Sub", "p", "mean", "q"), node("Mul", "q", "gain", "r"), node("Add", "beta", "r", "s")]
AFTER = [node("Relu", "s", "y")]


@pytest.mark.parametrize("shape", [(3,), (1, 3)])
def test_a_batch_normalisation_behind_a_product_costs_nothing(shape: tuple[int, ...]) -> None:
    """Four operators behind a MatMul are one bias."""
    constants = {"w": noise(4, 3), **{name: noise(*shape, seed=i) for i, name in enumerate(("mean", "gain", "beta"))}}
    model = graph_of([node("MatMul", "x", "w", "p"), *NORMALISED, *AFTER], ["N", 4], constants)
    assert assert_same(model, noise(5, 4, seed=9)) == ["MatMul", "Add", "Relu"]


@pytest.mark.parametrize("turned", [0, 1])
def test_a_gemm_keeps_its_own_bias(turned: int) -> None:
    """The bias that was there is scaled too, whichever way the weights lie."""
    constants = {"w": noise(3, 4) if turned else noise(4, 3), "b": noise(3, seed=5),
                 **{name: noise(3, seed=i) for i, name in enumerate(("mean", "gain", "beta"))}}  # fmt: skip
    model = graph_of([node("Gemm", "x", "w", "b", "p", transB=turned), *NORMALISED, *AFTER], ["N", 4], constants)
    assert assert_same(model, noise(5, 4, seed=9)) == ["Gemm", "Relu"]


@pytest.mark.parametrize("turned", [True, False])
def test_a_convolution_takes_it_over_through_a_transposition(turned: bool) -> None:
    """Channels last, as Keras has them, or first."""
    shape = (1, 1, 1, 3) if turned else (3, 1, 1)
    constants = {"w": noise(3, 2, 2, 1), **{n: noise(*shape, seed=i) for i, n in enumerate(("mean", "gain", "beta"))}}
    nodes = [node("Conv", "x", "w", "c"), node("Transpose", "c", "p", perm=[0, 2, 3, 1])]
    nodes = [*nodes, *NORMALISED, *AFTER] if turned else [node("Conv", "x", "w", "p"), *NORMALISED, *AFTER]
    kinds = assert_same(graph_of(nodes, ["N", 2, 5, 5], constants), noise(3, 2, 5, 5, seed=9))
    assert kinds == (["Conv", "Transpose", "Relu"] if turned else ["Conv", "Relu"])


def test_the_operator_for_batch_normalisation_is_taken_over_too() -> None:
    """With its own epsilon, and a division behind it."""
    constants = {"w": noise(3, 2, 1), "b": noise(3, seed=7), "two": np.array(2.0, dtype=np.float32),
                 **{name: noise(3, seed=i) for i, name in enumerate(("gain", "beta", "mean"))},
                 "variance": np.abs(noise(3, seed=4))}  # fmt: skip
    nodes = [node("Conv", "x", "w", "b", "p"),
             node("BatchNormalization", "p", "gain", "beta", "mean", "variance", "q", epsilon=0.1),
             node("Div", "q", "two", "s"), *AFTER]  # fmt: skip
    assert assert_same(graph_of(nodes, ["N", 2, 5], constants), noise(3, 2, 5, seed=9)) == ["Conv", "Relu"]


@pytest.mark.parametrize(
    ("nodes", "constants"),
    [
        # a constant a position and not a channel; one that adds an axis; one that is subtracted from; a divisor of zero
        ([node("Mul", "p", "k", "s")], {"k": noise(5, 1)}),
        ([node("Mul", "p", "k", "s")], {"k": noise(1, 1, 3)}),
        ([node("Sub", "k", "p", "q"), node("Mul", "q", "k", "s")], {"k": noise(3)}),
        ([node("Div", "p", "k", "s")], {"k": np.array([1.0, 0.0, 2.0], dtype=np.float32)}),
        # the value in between is used elsewhere
        ([node("Mul", "p", "k", "q"), node("Add", "q", "p", "s")], {"k": noise(3)}),
        # a bias alone
        ([node("Add", "p", "k", "s")], {"k": noise(3)}),
    ],
)
def test_what_is_no_scale_of_a_channel_stays(nodes: list[Any], constants: dict[str, NDArray[Any]]) -> None:
    """Whatever is not one number a channel, or is wanted elsewhere, is left as it is."""
    model = graph_of([node("MatMul", "x", "w", "p"), *nodes, *AFTER], [5, 4], {"w": noise(4, 3), **constants})
    assert kinds_of(folded(model)) == kinds_of(model)


def test_a_result_of_the_graph_itself_stays() -> None:
    """The last operator keeps the name that the graph gives, and what another output needs is kept."""
    constants = {"w": noise(4, 3), "k": noise(3)}
    model = graph_of([node("MatMul", "x", "w", "p"), node("Mul", "p", "k", "y")], ["N", 4], constants)
    assert assert_same(model, noise(2, 4)) == ["MatMul", "Mul"]


def _inner(kind: str) -> tuple[list[Any], dict[str, NDArray[Any]]]:
    """A node whose inner graphs read `p`, by its name alone."""
    if kind == "If":
        then, other = (
            helper.make_graph([node(op, "p", name)], "g", [], [helper.make_tensor_value_info(name, FLOAT, None)])
            for op, name in (("Abs", "one"), ("Neg", "two"))
        )
        return [node("If", "yes", "z", then_branch=then, else_branch=other)], {"yes": np.array(True)}
    body = helper.make_graph(
        [node("Identity", "on", "on2"), node("Add", "before", "p", "after")], "g",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []),
         helper.make_tensor_value_info("on", TensorProto.BOOL, []),
         helper.make_tensor_value_info("before", FLOAT, None)],
        [helper.make_tensor_value_info("on2", TensorProto.BOOL, []),
         helper.make_tensor_value_info("after", FLOAT, None)],
    )  # fmt: skip
    loop = helper.make_node("Loop", ["times", "yes", "begin"], ["z"], body=body)
    return [loop], {"yes": np.array(True), "times": np.array(2, np.int64), "begin": noise(1, 3)}


@pytest.mark.parametrize("kind", ["If", "Loop"])
def test_a_value_that_an_inner_graph_reads_stays(kind: str) -> None:
    """The body of an If or a Loop reads the outer values by name: folding would change what it sees."""
    inner, constants = _inner(kind)
    nodes = [node("MatMul", "x", "w", "p"), node("Mul", "p", "k", "s"), *inner, node("Add", "s", "z", "y")]
    model = graph_of(nodes, [2, 4], {"w": noise(4, 3), "k": noise(3), **constants})
    assert assert_same(model, noise(2, 4, seed=9)) == kinds_of(model)
