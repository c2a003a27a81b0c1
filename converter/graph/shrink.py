"""Shrink a graph without changing a bit of any answer, and report what each step saved, in bytes.

Runs between the normal form and the search. `shrunk` keeps the names, which reports need. `compact` runs last and
replaces them: inside a graph they serve only readers, and they are a fifth of a small model.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import onnx

from converter.graph.build import needed, rename, replace_contents, serialize
from converter.graph.constants import graphs_of, settle_constants
from converter.graph.int8 import separate
from converter.graph.needless import drop_reshapes, name_outputs
from converter.graph.shrink_trees import OPERATORS, drop_defaults, shrink_trees
from converter.graph.unsigned import unsigned_values


@dataclass(frozen=True, slots=True)
class Saving:
    """What one step removed: the kind, the number, and the bytes."""

    what: str
    count: int
    bytes: int

    def __str__(self) -> str:
        return f"{self.count:,} {self.what} ({self.bytes:,} bytes)"


def shrunk(model: onnx.ModelProto, *, rearranged: bool = True) -> tuple[onnx.ModelProto, tuple[Saving, ...]]:
    """A smaller model with the same answers, and the savings.

    Args:
        model: the graph.
        rearranged: also without the nodes that only arrange values; onnxruntime may then join their neighbours, and
            round otherwise, which the caller has to look at.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    savings = []
    for what, step in (*(_REARRANGING if rearranged else ()), *_STEPS):
        before = len(serialize(copy))
        count = step(copy)
        saved = before - len(serialize(copy))
        if saved > 0:
            savings.append(Saving(what, count, saved))
    return copy, tuple(savings)


def settled(model: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[Saving, ...]]:
    """A copy with constants folded (`constants.py`), and the savings."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    count = settle_constants(copy)
    saved = len(serialize(model)) - len(serialize(copy))
    return copy, (Saving("computations that never change", count, saved),) if count and saved > 0 else ()


def compact(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with short names inside the graph, without doc strings or duplicate constants.

    The constants of int8 products stay separate (`int8.py`).
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    _equal_constants(copy)
    separate(copy)
    graph = copy.graph
    fixed = {value.name for value in (*graph.input, *graph.output)} | _names_in_subgraphs(graph.node)
    mapping: dict[str, str] = {}
    for name in (*(tensor.name for tensor in graph.initializer), *(out for node in graph.node for out in node.output)):
        if name and name not in fixed and name not in mapping:
            mapping[name] = _short(len(mapping), fixed)
    for tensor in graph.initializer:
        tensor.name = mapping.get(tensor.name, tensor.name)
        tensor.doc_string = ""
    for node in graph.node:
        rename(node, mapping)
    for each in graphs_of(graph):
        for node in each.node:
            node.name = node.doc_string = ""
    del graph.value_info[:]
    graph.doc_string = copy.doc_string = ""
    return copy


def _short(number: int, taken: set[str]) -> str:
    """The shortest name for a number, with `_` before it where that is taken."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    name = ""
    number += 1
    while number:
        number, rest = divmod(number - 1, 26)
        name = letters[rest] + name
    while name in taken:
        name = f"_{name}"
    return name


def _names_in_subgraphs(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    """Every name that a body of If, Loop or Scan uses; these are not changed."""
    found: set[str] = set()
    for node in nodes:
        for attribute in node.attribute:
            for graph in [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else list(attribute.graphs):
                found |= {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
                found |= {name for child in graph.node for name in (*child.input, *child.output)}
                found |= {output.name for output in graph.output} | _names_in_subgraphs(graph.node)
    return found


def unasked(model: onnx.ModelProto, outputs: Iterable[str]) -> tuple[Saving, ...]:
    """Nodes and constants of a source's graph that the given outputs do not need; the normal form leaves them out."""
    nodes, constants = needed(list(model.graph.node), list(model.graph.initializer), list(outputs))
    kept = {id(item) for item in (*nodes, *constants)}
    left = [item for item in (*model.graph.node, *model.graph.initializer) if id(item) not in kept]
    if not left:
        return ()
    return (Saving("nodes and constants that no output needs", len(left), sum(item.ByteSize() for item in left)),)


def _ensembles(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.domain == "ai.onnx.ml" and node.op_type in OPERATORS]


def _tree_lists(model: onnx.ModelProto) -> int:
    return sum(map(drop_defaults, _ensembles(model)))


def _tree_nodes(model: onnx.ModelProto) -> int:
    return sum(map(shrink_trees, _ensembles(model)))


def _equal_constants(model: onnx.ModelProto) -> int:
    """Merge constants of equal type, shape and content."""
    first: dict[bytes, str] = {}
    mapping: dict[str, str] = {}
    kept = []
    protected = {value.name for value in (*model.graph.input, *model.graph.output)}
    for tensor in model.graph.initializer:
        name, tensor.name = tensor.name, ""
        content = tensor.SerializeToString(deterministic=True)
        tensor.name = name
        if name not in protected and first.setdefault(content, name) != name:
            mapping[name] = first[content]
        else:
            kept.append(tensor)
    return _replace(model, mapping, list(model.graph.node), kept)


def _equal_nodes(model: onnx.ModelProto) -> int:
    """Merge nodes that compute the same from the same inputs."""
    first: dict[bytes, list[str]] = {}
    mapping: dict[str, str] = {}
    kept = []
    protected = {value.name for value in model.graph.output}
    for node in model.graph.node:
        rename(node, mapping)
        bare = onnx.NodeProto()
        bare.CopyFrom(node)
        bare.name = bare.doc_string = ""
        del bare.output[:]
        content = bare.SerializeToString(deterministic=True) + bytes([len(node.output)])
        outputs = list(node.output)
        if any(attribute.g.node or attribute.graphs for attribute in node.attribute) or protected & set(outputs):
            kept.append(node)
        elif first.setdefault(content, outputs) != outputs:
            mapping.update(zip(outputs, first[content], strict=True))
        else:
            kept.append(node)
    return _replace(model, mapping, kept, list(model.graph.initializer))


def _replace(
    model: onnx.ModelProto, mapping: dict[str, str], nodes: list[onnx.NodeProto], constants: list[onnx.TensorProto]
) -> int:
    if not mapping:
        return 0
    before = len(model.graph.node) + len(model.graph.initializer)
    for node in nodes:
        rename(node, mapping)
    replace_contents(model.graph, nodes, constants)
    return before - len(nodes) - len(constants)


_Steps = tuple[tuple[str, Callable[[onnx.ModelProto], int]], ...]
_REARRANGING: _Steps = (
    ("reshapes that change nothing", drop_reshapes),
    ("nodes that only give a name", name_outputs),
    ("values that int8 fuses badly", unsigned_values),
)
_STEPS: _Steps = (
    ("lists of tree attributes that say nothing", _tree_lists),
    ("tree nodes that decide nothing", _tree_nodes),
    ("constants that are there twice", _equal_constants),
    ("computations that are there twice", _equal_nodes),
)
