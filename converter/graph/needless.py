"""Nodes that compute nothing, left out: reshapes to the shape that is there, reshapes that another follows, and names.

onnxruntime pays about 0.3 us for each node, however little it does: half of the time of a small network whose file
reshapes before every layer. Shapes come from ONNX's own inference; where it does not know one, the node stays.
"""

import onnx
from onnx import numpy_helper

from converter.graph.build import needed, readers_of, rename, replace_contents, uses

_Shape = list[int | str | None]


def drop_reshapes(model: onnx.ModelProto) -> int:
    """Leave out `Reshape` nodes that change no shape, and those whose only reader reshapes again; in place.

    Returns:
        how many.
    """
    count = 0
    while found := _needless(model):
        _bypass(model, found)
        count += len(found)
    return count


def name_outputs(model: onnx.ModelProto) -> int:
    """Leave out `Identity` nodes that only give an output of the graph its name, in place.

    Returns:
        how many.
    """
    graph = model.graph
    outputs = {value.name for value in graph.output}
    made = {name for node in graph.node for name in node.output if name}
    inside = _names_in_bodies(graph)
    mapping: dict[str, str] = {}
    kept = []
    for node in graph.node:
        source = node.input[0] if node.op_type == "Identity" and not node.domain else ""
        is_name = source in made and source not in outputs and source not in inside and source not in mapping
        if is_name and node.output[0] in outputs:
            mapping[source] = node.output[0]
        else:
            kept.append(node)
    if mapping:
        _replace(graph, kept, mapping)
    return len(mapping)


def _needless(model: onnx.ModelProto) -> dict[str, str]:
    """Values that reshapes make needlessly, and what may be read in their place."""
    graph = model.graph
    targets = {tensor.name: tensor for tensor in graph.initializer}
    nodes = [
        node
        for node in graph.node
        if node.op_type == "Reshape" and node.input[1] in targets and not any(one.i for one in node.attribute)
    ]  # the one attribute, `allowzero`, gives 0 another meaning
    if not nodes:
        return {}
    shapes = _shapes(model)
    outputs = {value.name for value in graph.output}
    readers = readers_of(graph)
    wanted = {node.output[0]: [int(size) for size in numpy_helper.to_array(targets[node.input[1]])] for node in nodes}
    found: dict[str, str] = {}
    for node in nodes:
        source, result = node.input[0], node.output[0]
        if result in outputs:
            continue
        if _is_same(shapes.get(source), wanted[result]):
            found[result] = source
        elif source in wanted and readers[source] == 1 and 0 not in wanted[result]:
            found[source] = next(other.input[0] for other in nodes if other.output[0] == source)
    return {result: source for result, source in found.items() if source not in found}


def _is_same(shape: _Shape | None, wanted: list[int]) -> bool:
    """Whether a value of a shape has the one that is wanted: at most one size may be left to follow from the others."""
    if shape is None or len(shape) != len(wanted):
        return False
    return all(size in (0, -1, known) for known, size in zip(shape, wanted, strict=True)) and wanted.count(-1) <= 1


def _shapes(model: onnx.ModelProto) -> dict[str, _Shape]:
    try:
        graph = onnx.shape_inference.infer_shapes(model).graph
    except Exception:  # noqa: BLE001 - then every reshape stays
        return {}
    return {
        value.name: [size.dim_value or size.dim_param or None for size in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.HasField("shape")
    }


def _bypass(model: onnx.ModelProto, found: dict[str, str]) -> None:
    kept = [node for node in model.graph.node if node.op_type != "Reshape" or node.output[0] not in found]
    _replace(model.graph, kept, found)


def _replace(graph: onnx.GraphProto, nodes: list[onnx.NodeProto], mapping: dict[str, str]) -> None:
    """Other nodes for a graph, in which values have other names; constants that none of them reads go."""
    for node in nodes:
        rename(node, mapping)
    _, kept = needed(nodes, list(graph.initializer), [output.name for output in graph.output])
    replace_contents(graph, nodes, kept)


def _names_in_bodies(graph: onnx.GraphProto) -> set[str]:
    """Values that bodies of If, Loop and Scan take from outside or make themselves: these keep their names."""
    return {name for node in graph.node for name in uses(node) - set(node.input)}
