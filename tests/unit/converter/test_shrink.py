"""What is left out of a graph, and that no bit of any answer changes by it."""

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from converter.graph.build import serialize
from converter.graph.shrink import compact, shrunk, unasked
from converter.graph.shrink_trees import shrink_trees
from converter.session import session_of

MODES = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GT", "BRANCH_GTE", "BRANCH_EQ", "BRANCH_NEQ")
FEATURES, TARGETS = 2, 2
# Few thresholds and few weights: paths that contradict themselves and equal leaves are then the rule.
THRESHOLDS = (-1.0, -0.0, 0.0, 0.5, 1.0, 3.4028234663852886e38)
WEIGHTS = (0.0, 1.0, -2.5, 0.1)
INPUTS = np.array(
    [
        (a, b)
        for a in (*THRESHOLDS, np.nextafter(np.float32(0.5), 1), -0.3, 2.0, np.nan, np.inf, -np.inf)
        for b in (*THRESHOLDS, np.nextafter(np.float32(-1), -2), 0.7, np.nan, np.inf, -np.inf)
    ],
    dtype=np.float32,
)


class Ensemble:
    """Attributes of an ensemble in the making."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        names = ("treeids", "nodeids", "featureids", "modes", "values", "truenodeids", "falsenodeids",
                 "missing_value_tracks_true", "hitrates")  # fmt: skip
        self.nodes: dict[str, list[Any]] = {f"nodes_{name}": [] for name in names}
        self.leaves: dict[str, list[Any]] = {f"{kind}_{name}": [] for name in ("treeids", "nodeids", "ids", "weights")}

    def add(self, tree: int, number: int, *rest: Any) -> None:
        for name, value in zip(self.nodes, (tree, number, *rest, 1.0), strict=True):
            self.nodes[name].append(value)

    def leaf(self, tree: int, number: int, weights: tuple[float, ...]) -> None:
        self.add(tree, number, 0, "LEAF", 0.0, 0, 0, 0)
        for column, weight in enumerate(weights):
            for name, value in zip(self.leaves, (tree, number, column, weight), strict=True):
                self.leaves[name].append(value)

    def model(self) -> onnx.ModelProto:
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", FEATURES])
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", TARGETS])
        common: dict[str, Any] = {**self.nodes, **self.leaves, "post_transform": "NONE"}
        if self.kind == "target":
            node = helper.make_node("TreeEnsembleRegressor", ["x"], ["y"], domain="ai.onnx.ml", n_targets=TARGETS,
                                    aggregate_function="SUM", base_values=[0.0] * TARGETS, **common)  # fmt: skip
            outputs = [y]
        else:
            node = helper.make_node("TreeEnsembleClassifier", ["x"], ["label", "y"], domain="ai.onnx.ml",
                                    classlabels_int64s=list(range(TARGETS)), **common)  # fmt: skip
            outputs = [helper.make_tensor_value_info("label", TensorProto.INT64, ["N"]), y]
        graph = helper.make_graph([node], "g", [x], outputs)
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)


@st.composite
def ensembles(draw: st.DrawFn) -> onnx.ModelProto:
    """Full trees of some depth, with nodes that nothing leads to among them."""
    ensemble = Ensemble(draw(st.sampled_from(["target", "class"])))
    modes = draw(st.sampled_from([MODES[:1], MODES[:2], MODES[2:4], MODES[:4], MODES]))
    for tree in range(draw(st.integers(1, 3))):
        depth = draw(st.integers(0, 4))
        inner = 2**depth - 1
        for number in range(inner):
            ensemble.add(
                tree, number, draw(st.integers(0, FEATURES - 1)), draw(st.sampled_from(modes)),
                draw(st.sampled_from(THRESHOLDS)), 2 * number + 1, 2 * number + 2, draw(st.integers(0, 9)) // 9,
            )  # fmt: skip
        for number in range(inner, 2 * inner + 1):
            ensemble.leaf(tree, number, tuple(draw(st.sampled_from(WEIGHTS)) for _ in range(TARGETS)))
    return ensemble.model()


def answers(model: onnx.ModelProto) -> list[bytes]:
    """Every output for every input, as bytes: NaN equals NaN, and -0.0 is not 0.0."""
    return [part.tobytes() for part in session_of(serialize(model)).run(None, {"x": INPUTS})]


@settings(max_examples=400, deadline=None, derandomize=True)
@given(ensembles())
def test_smaller_trees_answer_every_input_to_the_same_bit(model: onnx.ModelProto) -> None:
    """Whatever the trees compare, with NaN and infinity among the inputs, and never with more bytes."""
    smaller, savings = shrunk(model)
    onnx.checker.check_model(smaller)
    assert answers(smaller) == answers(model)
    assert answers(compact(smaller)) == answers(model)
    assert sum(saving.bytes for saving in savings) == len(serialize(model)) - len(serialize(smaller))


def nodes_of(model: onnx.ModelProto) -> int:
    """How many tree nodes there are."""
    return sum(len(attribute.ints) for attribute in model.graph.node[0].attribute if attribute.name == "nodes_nodeids")


def test_what_decides_nothing_is_gone() -> None:
    """A split that its path has decided, a split of two equal sides, and nodes that nothing leads to."""
    ensemble = Ensemble("target")
    ensemble.add(0, 0, 0, "BRANCH_LEQ", 1.0, 1, 2, 0)
    ensemble.add(0, 1, 0, "BRANCH_LEQ", 2.0, 3, 4, 0)  # decided: what is at most 1 is at most 2
    ensemble.add(0, 2, 1, "BRANCH_LEQ", 0.0, 5, 6, 0)  # both sides add the same
    for number, weight in ((3, 1.0), (4, 9.0), (5, 2.0), (6, 2.0), (7, 5.0)):  # nothing leads to 7
        ensemble.leaf(0, number, (weight, 0.0))
    model = ensemble.model()
    smaller, savings = shrunk(model)
    assert (nodes_of(model), nodes_of(smaller)) == (8, 3)
    answered = {saving.what: saving.count for saving in savings}
    assert answered == {"tree nodes that decide nothing": 5, "lists of tree attributes that say nothing": 5}
    names = {attribute.name for attribute in smaller.graph.node[0].attribute}
    assert not names & {"nodes_hitrates", "nodes_missing_value_tracks_true", "base_values", "post_transform"}
    assert answers(smaller) == answers(model)


def test_equal_trees_stay_as_many_as_they_were() -> None:
    """One tree with doubled leaves would round differently, so that nothing is merged that is summed."""
    ensemble = Ensemble("target")
    for tree in range(3):
        ensemble.leaf(tree, 0, (0.1, 0.3))
    assert nodes_of(shrunk(ensemble.model())[0]) == 3


@pytest.mark.parametrize("spoil", ["shared child", "cycle", "interleaved", "nowhere"])
def test_an_ensemble_that_is_no_row_of_trees_is_left_alone(spoil: str) -> None:
    """Nodes with two parents, circles, trees in pieces, and children that are not there."""
    ensemble = Ensemble("target")
    left = {"shared child": 2, "cycle": 0, "nowhere": 77}.get(spoil, 1)
    ensemble.add(0, 0, 0, "BRANCH_LEQ", 1.0, left, 2, 0)
    ensemble.leaf(0, 1, (1.0, 2.0))
    if spoil == "interleaved":
        ensemble.leaf(1, 0, (1.0, 2.0))
    ensemble.add(0, 2, 1, "BRANCH_LEQ", 1.0, 3, 4, 0)
    ensemble.leaf(0, 3, (1.0, 2.0))
    ensemble.leaf(0, 4, (1.0, 3.0))
    node = ensemble.model().graph.node[0]
    assert shrink_trees(node) == 0


def doubled() -> onnx.ModelProto:
    """Two equal constants, two equal sums of them, and a product that is not used."""
    value = np.arange(6, dtype=np.float32).reshape(2, 3)
    constants = [numpy_helper.from_array(value[:, :2].copy(), name) for name in ("one", "two")]
    nodes = [
        helper.make_node("Add", ["x", "one"], ["first"], name="a long name", doc_string="a remark"),
        helper.make_node("Add", ["x", "two"], ["second"]),
        helper.make_node("Mul", ["first", "second"], ["y"]),
        helper.make_node("Mul", ["first", "first"], ["unasked"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])
    graph = helper.make_graph(nodes, "g", [x], [y], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_constants_and_computations_that_are_there_twice_become_one() -> None:
    """Each is counted with its bytes, and the answers stay."""
    model = doubled()
    smaller, savings = shrunk(model)
    assert [saving.count for saving in savings] == [1, 1]
    assert [node.op_type for node in smaller.graph.node] == ["Add", "Mul", "Mul"]
    x = np.array([[1.0, 2.0], [3.0, 4.0]], dtype=np.float32)
    for form in (smaller, compact(smaller)):
        found = session_of(serialize(form)).run(None, {"x": x})[0]
        np.testing.assert_array_equal(found, session_of(serialize(model)).run(None, {"x": x})[0])
    assert unasked(model, ["y"])[0].count == 1
    assert unasked(model, ["y", "unasked"]) == ()


def test_compact_takes_names_and_remarks_but_not_those_of_inputs_and_outputs() -> None:
    """Names inside a graph are for readers; bodies of `If` keep theirs, since they share them with the graph."""
    small = compact(doubled())
    assert [value.name for value in (*small.graph.input, *small.graph.output)] == ["x", "y"]
    assert {node.name + node.doc_string for node in small.graph.node} == {""}
    assert max(len(name) for node in small.graph.node for name in (*node.input, *node.output)) == 1
    body = [helper.make_graph([helper.make_node(kind, ["inner"], ["out"])], kind, [],
            [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)]) for kind in ("Neg", "Abs")]  # fmt: skip
    nodes = [
        helper.make_node("Add", ["x", "x"], ["inner"]),
        helper.make_node("ReduceSum", ["inner"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["yes"]),
        helper.make_node("If", ["yes"], ["y"], then_branch=body[0], else_branch=body[1]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])
    zero = numpy_helper.from_array(np.array(0, dtype=np.float32), "zero")
    graph = helper.make_graph(nodes, "g", [x], [y], [zero])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    rows = np.array([[1.0, 2.0]], dtype=np.float32)
    found = session_of(serialize(compact(shrunk(model)[0]))).run(None, {"x": rows})[0]
    np.testing.assert_array_equal(found, [[-2.0, -4.0]])
