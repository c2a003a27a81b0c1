"""Channels of unequal scale are brought to one scale, and nothing else changes."""

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from converter.evaluate import judge, truth_of
from converter.graph.equalize import equalized
from converter.quantize import Recipe, candidate
from converter.session import run, session_of

SCALES = np.array([0.001, 1.0, 1000.0, 20.0])


def network() -> Any:
    """A linear classifier over channels that are worlds apart, in normal form."""
    rng = np.random.default_rng(0)
    weights = (rng.normal(size=(4, 3)) / SCALES[:, None]).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Reshape", ["window", "flat"], ["x"], name="reshape"),
            helper.make_node("MatMul", ["x", "w"], ["logits"], name="product"),
            helper.make_node("Softmax", ["logits"], ["scores"], name="softmax"),
            helper.make_node("ArgMax", ["logits"], ["label"], name="best", axis=1, keepdims=0),
        ],
        "g",
        [helper.make_tensor_value_info("window", TensorProto.FLOAT, ["N", 1, 4])],
        [
            helper.make_tensor_value_info("label", TensorProto.INT64, ["N"]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 3]),
        ],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(np.array([0, 4]), "flat")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def rows(n: int = 600) -> Any:
    """Readings whose channels differ by a factor of a million."""
    return (np.random.default_rng(1).normal(size=(n, 1, 4)) * SCALES + SCALES * 3).astype(np.float32)


def answer(model: bytes, x: Any) -> Any:
    """Label and scores."""
    return run(session_of(model), x)


def test_the_float_answers_stay_as_they_are() -> None:
    """The rewritten product computes the same, and the old weights are gone from the file."""
    model, x = network(), rows()
    other = equalized(model, x)
    onnx.checker.check_model(other)
    assert "w" not in {tensor.name for tensor in other.graph.initializer}
    expected, found = answer(model.SerializeToString(), x), answer(other.SerializeToString(), x)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)


@pytest.mark.parametrize("method", ["int8", "dynamic"])
def test_int8_keeps_the_labels_of_channels_that_are_worlds_apart(method: Any) -> None:
    """Without it the small channels would round to nothing; with it one row in fifty may change."""
    model, x = network(), rows()
    expected = answer(model.SerializeToString(), x[200:])
    form = candidate(model, Recipe(method), x[:200])
    truth = truth_of(None, "classification", "abc", "abc", place="x")
    seen = judge(answer(form.model, x[200:]), expected, truth, "classification")
    assert seen.differing <= 8


def test_channels_of_one_scale_are_left_alone() -> None:
    """A model that needs nothing is not touched."""
    model = network()
    x = np.random.default_rng(1).uniform(-1, 1, size=(100, 1, 4)).astype(np.float32)
    assert equalized(model, x) is model
