"""Forests: every comparison of the ONNX form goes as the source's does, for every float32 reading."""

from typing import Any, Literal

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from converter.graph.trees import Forest, ForestBuilder, exact_thresholds, forest_node
from converter.session import session_of

Compare = Literal["<=", "<"]


def stumps(thresholds: list[float], compare: Compare, narrow: bool) -> Forest:
    """One tree a threshold: 1 where the comparison holds, else 0."""
    builder = ForestBuilder(1, compare, narrow)
    for threshold in thresholds:
        builder.add(
            np.array([0, -1, -1]), np.array([threshold, 0, 0]), np.array([1, -1, -1]), np.array([2, -1, -1]),
            weights=np.array([[0.0], [1.0], [0.0]]),
        )  # fmt: skip
    return builder.build()


def neighbours(value: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The float32 numbers around a value."""
    middle = np.float32(np.clip(value, -3e38, 3e38))
    return np.array(
        [np.nextafter(middle, np.float32(-np.inf)), middle, np.nextafter(middle, np.float32(np.inf)), 0.0, -0.0],
        dtype=np.float32,
    )


@settings(max_examples=300)
@given(
    st.floats(-1e30, 1e30, allow_nan=False, allow_subnormal=True),
    st.sampled_from(["<=", "<"]),
    st.booleans(),
    st.sampled_from([(1.0, 0.0), (0.1, 3.7), (1234.5, -1e-3), (1e-7, 1e5)]),
)
def test_a_threshold_splits_every_reading_as_the_source_does(
    threshold: float, compare: Compare, narrow: bool, scaling: tuple[float, float]
) -> None:
    """For readings around the threshold the float32 comparison agrees with the scaled float64 one."""
    scale, offset = scaling
    forest = stumps([threshold], compare, narrow)

    def transform(x: Any) -> Any:
        return (x - offset) / scale

    found = exact_thresholds(forest, 1, transform)[0]
    readings = np.concatenate([neighbours(threshold * scale + offset), neighbours(float(found))])
    values = transform(readings.astype(np.float64))
    if narrow:
        with np.errstate(over="ignore"):
            values = values.astype(np.float32).astype(np.float64)
    expected = values <= threshold if compare == "<=" else values < threshold
    np.testing.assert_array_equal(readings <= found, expected)


def test_comparisons_that_never_or_always_hold_are_kept() -> None:
    """A threshold beyond all readings is minus infinity or the largest number."""
    low, high = exact_thresholds(stumps([-1e300, 1e300], "<=", narrow=False), 1)[[0, 3]]
    assert low == -np.inf
    assert high == np.finfo(np.float32).max


@pytest.mark.parametrize("compare", ["<=", "<"])
def test_a_forest_runs_in_onnxruntime(compare: Compare) -> None:
    """The node sums the leaves of all trees, on top of the base value."""
    rng = np.random.default_rng(0)
    thresholds = rng.normal(size=50).tolist()
    forest = stumps(thresholds, compare, narrow=False)
    node = forest_node(forest, exact_thresholds(forest, 1), "x", "y")
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 1])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    onnx.checker.check_model(model)
    x = np.concatenate([rng.normal(size=200), thresholds]).astype(np.float32)
    found = session_of(model.SerializeToString()).run(None, {"x": x[:, None]})[0][:, 0]
    wide = x.astype(np.float64)[:, None]
    expected = (wide <= np.array(thresholds)) if compare == "<=" else (wide < np.array(thresholds))
    np.testing.assert_array_equal(found, expected.sum(axis=1))
