"""Bundles whose graphs onnxruntime rewrites in different ways: fused, folded, laid out anew for the processor, or not.

Each is a regression on windows of eight readings of two channels, with random weights.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from tests.support import builders

LENGTH, CHANNELS = 8, ("left", "right")


def _draft(nodes: Sequence[Any], constants: dict[str, NDArray[Any]], *, ml: bool = False) -> builders.Draft:
    draft = builders.regression(name="kind", length=LENGTH, channels=CHANNELS, targets=("value",))
    graph = draft.model.graph
    del graph.node[:]
    del graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    if ml:
        draft.model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    draft.refresh_golden(np.random.default_rng(8).normal(size=(4, LENGTH, len(CHANNELS))).astype(np.float32))
    return draft


def _normal(*shape: int, seed: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0.0, 0.5, shape).astype(np.float32)


def convolutions(blocks: int = 3) -> builders.Draft:
    """Convolutions with normalisation and a shortcut: fused, and their weights laid out for the processor."""
    constants: dict[str, NDArray[Any]] = {
        "axis": np.array([1], np.int64),
        "out": _normal(16, 1),
        "first": _normal(16, 1, 3, 3),
    }
    nodes = [
        helper.make_node("Unsqueeze", ["window", "axis"], ["image"]),
        helper.make_node("Conv", ["image", "first"], ["b0"], pads=[1] * 4),
    ]
    for block in range(blocks):
        constants[f"w{block}"] = _normal(16, 16, 3, 3, seed=block) / 6
        for name in ("scale", "bias", "mean", "variance"):
            constants[f"{name}{block}"] = np.abs(_normal(16, seed=block)) + np.float32(0.5)
        statistics = [f"{name}{block}" for name in ("scale", "bias", "mean", "variance")]
        nodes += [
            helper.make_node("Conv", [f"b{block}", f"w{block}"], [f"c{block}"], pads=[1] * 4),
            helper.make_node("BatchNormalization", [f"c{block}", *statistics], [f"n{block}"]),
            helper.make_node("Add", [f"n{block}", f"b{block}"], [f"s{block}"]),
            helper.make_node("Relu", [f"s{block}"], [f"b{block + 1}"]),
        ]
    nodes += [
        helper.make_node("GlobalAveragePool", [f"b{blocks}"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "out"], ["value"]),
    ]
    return _draft(nodes, constants)


def quantised() -> builders.Draft:
    """A matrix product between quantised numbers, which becomes one integer operator."""
    rng = np.random.default_rng(3)
    constants: dict[str, NDArray[Any]] = {
        "step": np.array(0.05, np.float32),
        "zero": np.array(0, np.int8),
        "weights": rng.integers(-127, 128, (LENGTH * len(CHANNELS), 1)).astype(np.int8),
    }
    nodes = [
        helper.make_node("Flatten", ["window"], ["flat"], axis=1),
        helper.make_node("QuantizeLinear", ["flat", "step", "zero"], ["flat_q"]),
        helper.make_node("DequantizeLinear", ["flat_q", "step", "zero"], ["flat_d"]),
        helper.make_node("DequantizeLinear", ["weights", "step", "zero"], ["weights_d"]),
        helper.make_node("MatMul", ["flat_d", "weights_d"], ["product"]),
        helper.make_node("QuantizeLinear", ["product", "step", "zero"], ["product_q"]),
        helper.make_node("DequantizeLinear", ["product_q", "step", "zero"], ["value"]),
    ]
    return _draft(nodes, constants)


def recurrent() -> builders.Draft:
    """An LSTM over the window."""
    constants: dict[str, NDArray[Any]] = {
        "w": _normal(1, 16, 2),
        "r": _normal(1, 16, 4, seed=2),
        "out": _normal(4, 1),
        "axis": np.array([0], np.int64),
    }
    nodes = [
        helper.make_node("Transpose", ["window"], ["steps"], perm=[1, 0, 2]),
        helper.make_node("LSTM", ["steps", "w", "r"], ["", "last"], hidden_size=4),
        helper.make_node("Squeeze", ["last", "axis"], ["state"]),
        helper.make_node("MatMul", ["state", "out"], ["value"]),
    ]
    return _draft(nodes, constants)


def attention() -> builders.Draft:
    """Normalisation, attention of the readings to one another, and GELU spelt out: what a transformer is made of."""
    constants = {
        "gain": np.abs(_normal(2)) + np.float32(0.5),
        "bias": _normal(2),
        "q": _normal(2, 4),
        "k": _normal(2, 4, seed=2),
        "v": _normal(2, 4, seed=3),
        "half": np.array(0.5, np.float32),
        "root": np.array(2**0.5, np.float32),
        "one": np.array(1.0, np.float32),
        "out": _normal(4, 1),
    }
    nodes = [helper.make_node("LayerNormalization", ["window", "gain", "bias"], ["x"])]
    nodes += [helper.make_node("MatMul", ["x", name], [f"x{name}"]) for name in "qkv"]
    nodes += [
        helper.make_node("Transpose", ["xk"], ["kt"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["xq", "kt"], ["alike"]),
        helper.make_node("Mul", ["alike", "half"], ["scaled"]),
        helper.make_node("Softmax", ["scaled"], ["heed"], axis=-1),
        helper.make_node("MatMul", ["heed", "xv"], ["seen"]),
        helper.make_node("Div", ["seen", "root"], ["d"]),
        helper.make_node("Erf", ["d"], ["e"]),
        helper.make_node("Add", ["e", "one"], ["e1"]),
        helper.make_node("Mul", ["seen", "e1"], ["m"]),
        helper.make_node("Mul", ["m", "half"], ["gelu"]),
        helper.make_node("ReduceMean", ["gelu"], ["mean"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["mean", "out"], ["value"]),
    ]
    return _draft(nodes, constants)


def trees() -> builders.Draft:
    """Two small trees."""
    nodes = [
        helper.make_node("Flatten", ["window"], ["flat"], axis=1),
        helper.make_node(
            "TreeEnsembleRegressor", ["flat"], ["value"], domain="ai.onnx.ml", n_targets=1,
            nodes_treeids=[0, 0, 0, 1, 1, 1], nodes_nodeids=[0, 1, 2, 0, 1, 2], nodes_featureids=[3, 0, 0, 7, 0, 0],
            nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"] * 2, nodes_values=[0.1, 0.0, 0.0, -0.2, 0.0, 0.0],
            nodes_truenodeids=[1, 0, 0, 1, 0, 0], nodes_falsenodeids=[2, 0, 0, 2, 0, 0],
            target_treeids=[0, 0, 1, 1], target_nodeids=[1, 2, 1, 2], target_ids=[0] * 4,
            target_weights=[0.3, -1.25, 2.5, 0.7],
        ),
    ]  # fmt: skip
    return _draft(nodes, {}, ml=True)


KINDS: tuple[Callable[[], builders.Draft], ...] = (
    convolutions, quantised, recurrent, attention, trees,
    builders.classification, builders.regression, builders.anomaly, builders.stateful, builders.frame,
)  # fmt: skip
