"""Graphs of ONNX files: checks, the producers of a tensor, classes, maps, opsets, batches."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, inliner

from converter.graph.build import OPSET, STANDARD_DOMAINS, opset_of, serialize
from converter.session import session_of
from edge_runtime.bundle.manifest import METADATA_KEY, Manifest, read_manifest
from edge_runtime.errors import CommandError

_NEWEST_OPSET = 22  # of onnxruntime 1.20, the oldest on devices


def check(model: onnx.ModelProto, place: str) -> None:
    """Refuse a model that no device can run.

    Raises:
        CommandError: the model is invalid ONNX, has weights in other files, or operators outside the standard.
    """
    if any(tensor.data_location == TensorProto.EXTERNAL or tensor.external_data for tensor in _all_tensors(model)):
        raise CommandError(f"{place}: weights in other files are not accepted: save the model as one file")
    try:
        onnx.checker.check_model(model)
    except Exception as error:
        text = str(error).strip().splitlines()
        raise CommandError(
            f"{place}: expected an ONNX model, found a damaged, truncated or other file: {text[0] if text else error}"
        ) from error
    strange = sorted({f"{node.domain}.{node.op_type}" for node in _all_nodes(model) if not _is_standard(node, model)})
    if strange:
        raise CommandError(f"{place}: expected standard operators, found {', '.join(strange)}")


def _all_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node of the graph, of functions, and of the bodies of If, Loop and Scan in both."""
    waiting = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    for training in model.training_info:
        waiting += [*training.initialization.node, *training.algorithm.node]
    while waiting:
        node = waiting.pop()
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                waiting += inner.node


def _all_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every constant tensor of the model."""
    graphs = [model.graph]
    for training in model.training_info:
        graphs += [training.initialization, training.algorithm]
    attributes = [each for function in model.functions for each in function.attribute_proto]
    attributes += [each for node in _all_nodes(model) for each in node.attribute]
    for attribute in attributes:
        yield from (attribute.t, *attribute.tensors)
        sparse = (attribute.sparse_tensor, *attribute.sparse_tensors)
        yield from (tensor for each in sparse for tensor in (each.values, each.indices))
        graphs += [attribute.g, *attribute.graphs]
    for graph in graphs:
        yield from graph.initializer
        yield from (tensor for each in graph.sparse_initializer for tensor in (each.values, each.indices))


def _is_standard(node: onnx.NodeProto, model: onnx.ModelProto) -> bool:
    return node.domain in STANDARD_DOMAINS or any(
        (function.domain, function.name) == (node.domain, node.op_type) for function in model.functions
    )


def makers_of(
    name: str, graph: onnx.GraphProto, through: tuple[str, ...], outside: dict[str, onnx.NodeProto] | None = None
) -> set[str]:
    """The operators that produce a tensor, in every branch of an `If`.

    Operators that only round, reshape or select are skipped. Empty where the tensor begins with something else, such as
    an input or a constant. `outside` are the producers of tensors that a branch takes from the graph around it.
    """
    makers = {**(outside or {}), **{output: node for node in graph.node for output in node.output}}
    while name in makers and makers[name].op_type in through:
        name = makers[name].input[0]
    if name not in makers:
        return set()
    node = makers[name]
    if node.op_type != "If":
        return {str(node.op_type)}
    place = list(node.output).index(name)
    found = [makers_of(item.g.output[place].name, item.g, through, makers) for item in node.attribute]
    return set.union(*found) if all(found) else set()


def class_constants(model: onnx.ModelProto, count: int) -> tuple[Any, ...]:
    """The classes in a converted classifier, from an attribute or from its table of labels."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name.startswith("classlabels"):
                names = helper.get_attribute_value(attribute)
                if len(names) == count:
                    return tuple(name.decode() if isinstance(name, bytes) else name for name in names)
        if node.op_type == "ArrayFeatureExtractor" and node.input[0] in constants:
            table = onnx.numpy_helper.to_array(constants[node.input[0]]).reshape(-1).tolist()
            if len(table) == count:
                return tuple(name.decode() if isinstance(name, bytes) else name for name in table)
    return ()


def open_session(model: onnx.ModelProto, place: str) -> Any:
    """A session of the file.

    Raises:
        CommandError: onnxruntime refuses it.
    """
    try:
        return session_of(serialize(model))
    except Exception as error:
        text = str(error).strip().splitlines()[0]
        raise CommandError(f"{place}: onnxruntime cannot load it: {text}") from error


def manifest_of(model: onnx.ModelProto, place: str) -> Manifest | None:
    """The manifest of a bundle; None for any other file."""
    for entry in model.metadata_props:
        if entry.key == METADATA_KEY:
            return read_manifest(entry.value, place)
    return None


def numpy_type(kind: str) -> Any:
    """The numpy type of `tensor(float)`."""
    names = {"float": "float32", "double": "float64"}
    inner = kind.removeprefix("tensor(").removesuffix(")")
    return np.dtype(names.get(inner, inner))


def without_zipmap(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, tuple[Any, ...]]]:
    """A copy with tensors as outputs in place of maps, and the classes that the maps named."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if copy.functions:
        copy = inliner.inline_local_functions(copy)
    classes: dict[str, tuple[Any, ...]] = {}
    outputs = {output.name: output for output in copy.graph.output}
    kept = []
    for node in copy.graph.node:
        if node.op_type == "ZipMap" and node.output[0] in outputs:
            given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
            names = given.get("classlabels_int64s") or [name.decode() for name in given.get("classlabels_strings", [])]
            output = outputs[node.output[0]]
            output.CopyFrom(helper.make_tensor_value_info(node.input[0], TensorProto.FLOAT, ["N", len(names)]))
            classes[node.input[0]] = tuple(names)
        else:
            kept.append(node)
    del copy.graph.node[:]
    copy.graph.node.extend(kept)
    imports = {entry.domain: entry.version for entry in copy.opset_import}  # skl2onnx writes some of them twice
    if not {"", "ai.onnx"} & set(imports):  # nothing but trees inside
        imports[""] = OPSET
    del copy.opset_import[:]
    copy.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in imports.items())
    return copy, classes


def at_opset(model: onnx.ModelProto, place: str) -> onnx.ModelProto:
    """The same model at an opset that devices and the quantiser support."""
    opset = opset_of(model)
    if OPSET <= opset <= _NEWEST_OPSET:
        return model
    try:
        return onnx.version_converter.convert_version(model, OPSET if opset < OPSET else _NEWEST_OPSET)
    except Exception as error:
        text = str(error).strip().splitlines()
        raise CommandError(
            f"{place}: opset {opset} cannot be brought to {OPSET}: {text[0] if text else error}: export it again"
        ) from error


def with_free_batch(model: onnx.ModelProto, inputs: list[str]) -> onnx.ModelProto | None:
    """A copy with a free batch in place of 1, in `Reshape` too; None where a shape is not known."""
    try:
        known = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception:  # noqa: BLE001 - then shapes stay unknown
        known = model
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*known.graph.value_info, *known.graph.output)
    }
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.value_info[:]
    for value in (*copy.graph.input, *copy.graph.output):
        dims = value.type.tensor_type.shape.dim
        if (value.name in inputs or value in copy.graph.output) and len(dims) and dims[0].dim_value == 1:
            dims[0].dim_param = "N"
    for node in copy.graph.node:
        if node.op_type != "Reshape":
            continue
        shape = shapes.get(node.output[0])
        if not shape or shape[0] != 1:
            continue
        if 0 in shape[1:]:
            return None
        name = f"{node.output[0]}_free_shape"
        copy.graph.initializer.append(onnx.numpy_helper.from_array(np.array([-1, *shape[1:]], dtype=np.int64), name))
        node.input[1] = name
    return copy
