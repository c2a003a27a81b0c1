"""Build ONNX graphs: nodes, constants and whole models under names that cannot collide.

Opset and IR version are pinned here, for every file that the converter writes.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edge_runtime.errors import CommandError

OPSET = 17
OPSET_ML = 3
IR_VERSION = 8  # the IR of opset 17
# The first onnxruntime release that supports an opset of the default domain (its own compatibility table).
_RUNTIME_OF_OPSET = {17: "1.12", 18: "1.14", 19: "1.15", 20: "1.17", 21: "1.18", 22: "1.20", 23: "1.22"}
_IR_OF_OPSET = {17: 8, 18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11}
PRODUCTS = ("MatMul", "Gemm", "Conv", "ConvTranspose")  # operators that int8 makes faster
STANDARD_DOMAINS = ("", "ai.onnx", "ai.onnx.ml")


class GraphBuilder:
    """A graph under construction. Values are referred to by name."""

    def __init__(self, opset: int = OPSET) -> None:
        self.opset = opset
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._names: set[str] = set()
        self._prefix = ""  # of names inside a body, which stay as they are when the graph is embedded in another
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, kind: int, shape: tuple[int | str, ...]) -> str:
        """Declare an input of the graph."""
        self._inputs.append(helper.make_tensor_value_info(name, kind, list(shape)))
        self._names.add(name)
        return name

    def output(self, name: str, value: str, kind: int, shape: tuple[int | str, ...]) -> None:
        """Declare an output of the graph, which carries `value`."""
        self._nodes.append(helper.make_node("Identity", [value], [name], name=self._fresh(f"to_{name}")))
        self._outputs.append(helper.make_tensor_value_info(name, kind, list(shape)))

    def reserve(self, *names: str) -> None:
        """Reserve names for later inputs and outputs."""
        self._names.update(names)

    def constant(self, value: Any, kind: Any = np.float32) -> str:
        """An initialiser."""
        name = self._fresh("c")
        self._constants.append(numpy_helper.from_array(np.asarray(value, dtype=kind), name))
        return name

    def node(self, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """A node with one output, whose name is returned."""
        return self.nodes(kind, 1, *inputs, domain=domain, **attributes)[0]

    def nodes(self, kind: str, count: int, *inputs: str, domain: str = "", **attributes: Any) -> list[str]:
        """A node with several outputs, whose names are returned."""
        results = [self._fresh(kind.lower()) for _ in range(count)]
        name = self._fresh(f"{results[0]}_node")
        self._nodes.append(helper.make_node(kind, list(inputs), results, name=name, domain=domain, **attributes))
        return results

    def choice(self, condition: str, yes: Callable[[], str], no: Callable[[], str]) -> str:
        """An `If` node: a float32 value that `yes` or `no` computes, of which a session runs only the one it needs.

        Args:
            condition: a single bool.
            yes: adds nodes, which may read every value of this graph, and returns the name of the last one's result.
            no: likewise.
        """
        bodies = [self._body(name, make) for name, make in (("then", yes), ("else", no))]
        return self.node("If", condition, then_branch=bodies[0], else_branch=bodies[1])

    def _body(self, name: str, make: Callable[[], str]) -> onnx.GraphProto:
        outside, before = self._nodes, self._prefix
        self._nodes, self._prefix = [], self._fresh(name)
        value = make()
        nodes, self._nodes, self._prefix = self._nodes, outside, before
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(value, FLOAT, None)])

    def add(self, node: onnx.NodeProto) -> None:
        """Add a finished node under its own names."""
        self._nodes.append(node)
        self._names.update(node.output)

    def cast(self, value: str, kind: int) -> str:
        """Change the element type."""
        return self.node("Cast", value, to=kind)

    def embed(self, model: onnx.ModelProto, feeds: Mapping[str, str]) -> dict[str, str]:
        """Add a whole model; `feeds` maps each of its inputs to a value.

        Returns:
            its outputs: former name -> value in this graph.
        """
        graph = model.graph
        mapping: dict[str, str] = dict(feeds)
        for tensor in graph.initializer:
            mapping.setdefault(tensor.name, self._fresh(tensor.name))
        for sparse in graph.sparse_initializer:
            raise CommandError(f"initialiser {sparse.values.name!r}: sparse tensors are not supported")
        for node in graph.node:
            for name in node.output:
                if name:
                    mapping.setdefault(name, self._fresh(name))
        for tensor in graph.initializer:
            if tensor.name in feeds:
                continue
            copy = onnx.TensorProto()
            copy.CopyFrom(tensor)
            copy.name = mapping[tensor.name]
            self._constants.append(copy)
        for node in graph.node:
            copied = onnx.NodeProto()
            copied.CopyFrom(node)
            rename(copied, mapping)
            copied.name = self._fresh(node.name or f"{node.op_type}_node")
            self._nodes.append(copied)
        return {output.name: mapping[output.name] for output in graph.output}

    def build(self, name: str) -> onnx.ModelProto:
        """The finished model, without nodes and constants that lead to no output."""
        nodes, constants = needed(self._nodes, self._constants, [output.name for output in self._outputs])
        nodes = _without_identities(nodes, {output.name for output in self._outputs})
        graph = helper.make_graph(nodes, name, self._inputs, self._outputs, constants)
        imports = [helper.make_opsetid("", self.opset)]
        if any(node.domain == "ai.onnx.ml" for node in nodes):
            imports.append(helper.make_opsetid("ai.onnx.ml", OPSET_ML))
        model = helper.make_model(graph, opset_imports=imports, ir_version=_IR_OF_OPSET[self.opset])
        model.producer_name, model.producer_version = "edge-convert", ""
        return model

    def _fresh(self, wish: str) -> str:
        wish = self._prefix or wish
        name, count = wish, 0
        while name in self._names:
            count += 1
            name = f"{wish}_{count}"
        self._names.add(name)
        return name


def rename(node: onnx.NodeProto, mapping: Mapping[str, str]) -> None:
    """Rename the values of a node, and those that its subgraphs take from outside."""
    for index, name in enumerate(node.input):
        node.input[index] = mapping.get(name, name)
    for index, name in enumerate(node.output):
        node.output[index] = mapping.get(name, name)
    for attribute in node.attribute:
        for graph in [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else list(attribute.graphs):
            own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
            inner = {name: new for name, new in mapping.items() if name not in own}
            for child in graph.node:
                rename(child, inner)
            for output in graph.output:
                output.name = inner.get(output.name, output.name)


def uses(node: onnx.NodeProto) -> set[str]:
    """Every value that a node reads, subgraphs included."""
    names = set(node.input)
    for attribute in node.attribute:
        for graph in [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else list(attribute.graphs):
            for child in graph.node:
                names |= uses(child)
            names |= {output.name for output in graph.output}
    return names


def needed(
    nodes: list[onnx.NodeProto], constants: list[onnx.TensorProto], outputs: list[str]
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """The nodes and constants that an output needs."""
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if wanted & set(node.output):
            kept.append(node)
            wanted |= uses(node)
    return kept[::-1], [tensor for tensor in constants if tensor.name in wanted]


def replace_contents(
    graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto], constants: Iterable[onnx.TensorProto]
) -> None:
    """Give a graph these nodes and constants, which may be its own, instead of those that it has."""
    rest = onnx.GraphProto()
    rest.node.extend(nodes)
    rest.initializer.extend(constants)
    del graph.node[:], graph.initializer[:]
    graph.MergeFrom(rest)


def readers_of(graph: onnx.GraphProto) -> Counter[str]:
    """The number of nodes and outputs that read each value."""
    found = Counter(name for node in graph.node for name in uses(node))
    found.update(value.name for value in graph.output)
    return found


def _without_identities(nodes: list[onnx.NodeProto], outputs: set[str]) -> list[onnx.NodeProto]:
    """Remove `Identity` nodes; one that names an output stays only where it is needed."""
    mapping: dict[str, str] = {}
    kept: list[onnx.NodeProto] = []
    for node in nodes:
        rename(node, mapping)
        if node.op_type == "Identity" and not node.domain and node.output[0] not in outputs:
            mapping[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    return kept


def requirement(opset: int) -> str:
    """The oldest onnxruntime release that runs an opset."""
    return _RUNTIME_OF_OPSET[opset]


def serialize(model: onnx.ModelProto) -> bytes:
    """The model as bytes; equal models are equal bytes."""
    return bytes(model.SerializeToString(deterministic=True))


def opset_of(model: onnx.ModelProto) -> int:
    """The opset of the default domain."""
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=1)


FLOAT, DOUBLE, INT64 = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT64
