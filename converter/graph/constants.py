"""Constant folding: `Constant` nodes, computations on constants, and conditions that are known.

Exporters put weights into `Constant` nodes, transpose them at run time, or put the whole network into the branch of an
`If` whose condition is an option of the model. onnxruntime folds this each time it loads a model, but quantisation
looks at initialisers only, and would find no products. onnxruntime itself computes every value, so that no bit differs.
`Loop`, `Scan` and conditions that depend on the input are not changed.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from converter.graph.build import needed, rename, serialize
from edge_runtime.errors import CommandError

# A folded value may be no larger than its inputs, or than this, so that the file does not grow.
_SMALL_BYTES = 1024
_KEPT = frozenset({  # operators that stay: random ones, and those behind quantised weights
    "DequantizeLinear", "QuantizeLinear", "RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike",
    "Bernoulli", "Multinomial", "Dropout", "If", "Loop", "Scan", "Identity",
})  # fmt: skip


def graphs_of(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and every body of If, Loop and Scan in it."""
    yield graph
    for node in graph.node:
        for body in bodies_of(node):
            yield from graphs_of(body)


def bodies_of(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The graphs inside a node."""
    return [
        body
        for attribute in node.attribute
        for body in ([attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else list(attribute.graphs))
    ]


def lift_constants(graph: onnx.GraphProto, kind: int | None = None) -> int:
    """Turn `Constant` nodes into initialisers, in place; only of one element type, where it is given.

    Returns:
        how many.
    """
    kept, count = [], 0
    for node in graph.node:
        value = _value_of(node) if node.op_type == "Constant" and not node.domain else None
        if value is None or (kind is not None and value.data_type != kind):
            kept.append(node)
            continue
        tensor = graph.initializer.add()
        tensor.CopyFrom(value)
        tensor.name = node.output[0]
        count += 1
    if count:
        replace_nodes(graph, kept)
    return count


def replace_nodes(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    """Replace the nodes of a graph; some may be its own."""
    rest = onnx.GraphProto()
    rest.node.extend(nodes)
    del graph.node[:]
    graph.node.extend(rest.node)


def _value_of(node: onnx.NodeProto) -> TensorProto | None:
    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute)
        if attribute.name == "value":
            tensor: TensorProto = attribute.t
            return tensor
        if attribute.name in ("value_float", "value_floats"):
            return numpy_helper.from_array(np.array(value, dtype=np.float32))
        if attribute.name in ("value_int", "value_ints"):
            return numpy_helper.from_array(np.array(value, dtype=np.int64))
    return None


def settle_constants(model: onnx.ModelProto) -> int:
    """Fold constants, in place.

    Returns:
        the number of removed nodes.
    """
    before = sum(len(graph.node) for graph in graphs_of(model.graph))
    while True:
        for graph in graphs_of(model.graph):
            lift_constants(graph)
        if not _compute(model, model.graph, []) and not _inline(model):
            break
    _drop_unread(model.graph)
    return before - sum(len(graph.node) for graph in graphs_of(model.graph))


def _drop_unread(graph: onnx.GraphProto) -> None:
    """Remove nodes and constants that lead to no output, in bodies first."""
    for node in graph.node:
        for body in bodies_of(node):
            _drop_unread(body)
    nodes, constants = needed(list(graph.node), list(graph.initializer), [output.name for output in graph.output])
    if len(constants) < len(graph.initializer):
        kept = onnx.GraphProto()
        kept.initializer.extend(constants)
        del graph.initializer[:]
        graph.initializer.extend(kept.initializer)
    if len(nodes) < len(graph.node):
        replace_nodes(graph, nodes)


def _compute(model: onnx.ModelProto, graph: onnx.GraphProto, outer: list[TensorProto]) -> bool:
    """Replace the results of nodes that read constants only, bodies included; return whether there were any.

    Args:
        model: the whole.
        graph: the main graph, or a body.
        outer: the constants of the graphs around it.
    """
    inputs = {value.name for value in graph.input}
    mine = [tensor for tensor in graph.initializer if tensor.name not in inputs]
    hidden = inputs | {name for node in graph.node for name in node.output} | {tensor.name for tensor in mine}
    scope = [*(tensor for tensor in outer if tensor.name not in hidden), *mine]
    inner = [_compute(model, body, scope) for node in graph.node for body in bodies_of(node)]
    known = {tensor.name: tensor.ByteSize() for tensor in scope}
    found: list[onnx.NodeProto] = []
    for node in graph.node:
        reads = [name for name in node.input if name]
        plain = not node.domain and node.op_type not in _KEPT and not bodies_of(node)
        if plain and reads and all(name in known for name in reads):
            found.append(node)
            known.update(dict.fromkeys(node.output, max(_SMALL_BYTES, sum(known[name] for name in reads))))
    if not found:
        return any(inner)
    made = [name for node in found for name in node.output if name]
    outputs = {output.name for output in graph.output}
    values = _run(model, found, [name for name in made if name not in outputs], scope)
    fit = {name: value for name, value in values.items() if value.nbytes <= known[name]}
    # A node is removed when each of its results is known; so are its inputs that no other node reads.
    settled = {id(node) for node in found if all(name in fit for name in node.output if name)}
    if not settled:
        return any(inner)
    kept = [node for node in graph.node if id(node) not in settled]
    read = {name for node in kept for name in (*node.input, *_read_inside(node))}
    graph.initializer.extend(
        numpy_helper.from_array(fit[name], name)
        for node in found
        if id(node) in settled
        for name in node.output
        if name in read
    )
    replace_nodes(graph, kept)
    return True


def _read_inside(node: onnx.NodeProto) -> Iterator[str]:
    for body in bodies_of(node):
        for graph in graphs_of(body):
            yield from (name for child in graph.node for name in child.input)
            yield from (output.name for output in graph.output)


def _run(
    model: onnx.ModelProto, nodes: list[onnx.NodeProto], outputs: list[str], scope: list[TensorProto]
) -> Mapping[str, np.ndarray]:
    """The results of nodes that need no input, computed by onnxruntime."""
    from converter.session import session_of  # noqa: PLC0415 - sessions read graphs through this package

    graph = helper.make_graph(nodes, "constants", [], [onnx.ValueInfoProto(name=name) for name in outputs], scope)
    part = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    try:
        found = session_of(serialize(part)).run(outputs, {})
    except Exception as error:
        raise CommandError(f"constants of the model cannot be computed: {str(error).splitlines()[0]}") from error
    return {name: value for name, value in zip(outputs, found, strict=True) if isinstance(value, np.ndarray)}


def _inline(model: onnx.ModelProto) -> bool:
    """Replace an `If` by the branch that is always taken; return whether there was one."""
    graph = model.graph
    known = {tensor.name: tensor for tensor in graph.initializer}
    names = {name for each in graphs_of(graph) for name in _names(each)}
    nodes: list[onnx.NodeProto] = []
    found = False
    for node in graph.node:
        condition = known.get(node.input[0]) if node.op_type == "If" and not node.domain else None
        if condition is None:
            nodes.append(node)
            continue
        found = True
        wanted = "then_branch" if numpy_helper.to_array(condition).reshape(-1)[0] else "else_branch"
        branch = next(attribute.g for attribute in node.attribute if attribute.name == wanted)
        nodes += _branch_as_nodes(graph, branch, node, names)
    if found:
        replace_nodes(graph, nodes)
    return found


def _branch_as_nodes(
    graph: onnx.GraphProto, branch: onnx.GraphProto, node: onnx.NodeProto, names: set[str]
) -> list[onnx.NodeProto]:
    own = [*(tensor.name for tensor in branch.initializer), *(out for each in branch.node for out in each.output)]
    mapping = {name: _fresh(name, names) for name in own if name}
    for tensor in branch.initializer:
        copy = graph.initializer.add()
        copy.CopyFrom(tensor)
        copy.name = mapping[tensor.name]
    nodes = []
    for each in branch.node:
        copied = onnx.NodeProto()
        copied.CopyFrom(each)
        rename(copied, mapping)
        copied.name = _fresh(each.name or each.op_type, names)
        nodes.append(copied)
    for output, result in zip(branch.output, node.output, strict=True):
        if result:
            value = mapping.get(output.name, output.name)
            nodes.append(helper.make_node("Identity", [value], [result], name=_fresh("taken", names)))
    return nodes


def _names(graph: onnx.GraphProto) -> Iterator[str]:
    yield from (value.name for value in (*graph.input, *graph.output))
    yield from (tensor.name for tensor in graph.initializer)
    for node in graph.node:
        yield node.name
        yield from node.output


def _fresh(wish: str, names: set[str]) -> str:
    number, name = 0, wish
    while name in names:
        number += 1
        name = f"{wish}_{number}"
    names.add(name)
    return name
