"""The candidates: the float32 model as float16, as dynamic int8 and as static int8 (QDQ), in several ways.

Only float32 matrix products and convolutions are changed; all else, float64 feature code included, stays. Every
candidate is a whole model; `build` measures each and keeps one. onnxruntime's calibrator `Distribution` is left out: it
was measured to break models (98 % error on a small network).
"""

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx

from converter.graph.body_weights import inner_products, with_int8_weights
from converter.graph.build import FLOAT, PRODUCTS, serialize
from converter.graph.equalize import equalized
from converter.graph.fuse import rectified_first, with_biases, with_rectifiers
from converter.graph.shrink import compact
from edge_runtime.bundle.manifest import INPUT_NAME, State
from edge_runtime.errors import CommandError
from edge_runtime.readings import Floats

_LEAST_WEIGHTS = 8  # with fewer, the node that converts them back takes more bytes than they save
Method = Literal["none", "int8", "dynamic", "float16"]
Request = Literal["auto", "none", "int8", "dynamic", "float16"]
Calibrator = Literal["MinMax", "Entropy", "Percentile"]
_CALIBRATION_ROWS = 512  # more rows hardly change a range, and calibration keeps every tensor of every row in memory
_HISTOGRAM_ROWS = 128  # fewer, since these calibrators also keep a histogram of every tensor
_RANKED_NODES = 24


@dataclass(frozen=True, slots=True)
class Recipe:
    """One way to make a candidate; `spared` are the nodes that stay in float.

    Where all products are in bodies, only weights are rounded.
    """

    method: Method
    per_channel: bool = False
    calibrator: Calibrator = "MinMax"
    spared: tuple[str, ...] = ()
    weights_only: bool = False

    @property
    def name(self) -> str:
        """Its name in the table."""
        if self.method == "none":
            return "float32"
        if self.method == "float16":
            return "float16"
        if self.weights_only:
            return "int8 weights"
        words = ["int8 static" if self.method == "int8" else "int8 dynamic"]
        if self.per_channel:
            words.append("per channel")
        if self.calibrator != "MinMax":
            words.append(self.calibrator.lower())
        if self.spared:
            words.append(f"{len(self.spared)} in float")
        return ", ".join(words)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One form of the model: as shipped, and with the source's names of its layers."""

    recipe: Recipe
    model: bytes
    readable: bytes

    @property
    def method(self) -> Method:
        """Its recipe in words."""
        return self.recipe.method

    @property
    def name(self) -> str:
        """Its name in the table."""
        return self.recipe.name


def stages(request: Request, *, inside: bool = False) -> list[list[Recipe]]:
    """The recipes in stages; a later stage is tried when no form of an earlier one keeps the metric.

    The sensitive nodes are known only after a measurement, so `sparing` makes the last stage, `spared`.

    Args:
        request: what was asked for.
        inside: whether all products are in bodies of If, Loop and Scan, where only weights can be rounded.
    """
    if inside:
        return [[Recipe("int8", per_channel=True, weights_only=True)]] if request in ("auto", "int8") else []
    static = [Recipe("int8"), Recipe("int8", per_channel=True)]
    calibrators: tuple[Calibrator, ...] = ("Percentile", "Entropy")
    careful = [Recipe("int8", per_channel=fine, calibrator=name) for name in calibrators for fine in (False, True)]
    if request == "auto":
        return [[Recipe("float16"), Recipe("dynamic"), *static], careful]
    if request == "int8":
        return [static, careful]
    if request == "dynamic":
        return [[Recipe("dynamic")], [Recipe("dynamic", per_channel=True)]]
    return [[Recipe("float16")]] if request == "float16" else []


def products_of(model: onnx.ModelProto) -> list[str]:
    """The names of the nodes that can be quantised: float32 products with a constant operand."""
    weights = {tensor.name for tensor in model.graph.initializer if tensor.data_type == FLOAT}
    return [
        node.name
        for node in model.graph.node
        if node.op_type in PRODUCTS and any(name in weights for name in node.input)
    ]


def has_products(model: onnx.ModelProto) -> bool:
    """Whether there is something to quantise, in the main graph or in a body."""
    return bool(products_of(model)) or inner_products(model) > 0


def with_products(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose plain `Gemm` nodes are `MatMul` and `Add`, which every quantiser knows."""
    found = {
        index
        for index, node in enumerate(model.graph.node)
        if node.op_type == "Gemm" and _is_plain(node) and node.input[1] in {t.name for t in model.graph.initializer}
    }
    if not found:
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    weights = {tensor.name: tensor for tensor in copy.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for index, node in enumerate(model.graph.node):
        if index not in found:
            nodes.append(node)
            continue
        name, product = node.name or node.output[0], f"{node.output[0]}_product"
        weight = node.input[1]
        if any(attribute.name == "transB" and attribute.i for attribute in node.attribute):
            turned = onnx.numpy_helper.to_array(weights[weight]).T
            weight = f"{weight}_turned"
            copy.graph.initializer.append(onnx.numpy_helper.from_array(np.ascontiguousarray(turned), weight))
        biased = len(node.input) > 2 and bool(node.input[2])
        result = product if biased else node.output[0]
        nodes.append(onnx.helper.make_node("MatMul", [node.input[0], weight], [result], name=name))
        if biased:
            nodes.append(onnx.helper.make_node("Add", [product, node.input[2]], list(node.output), name=f"{name}_bias"))
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in copy.graph.initializer if tensor.name in used or _in_subgraphs(nodes)]
    del copy.graph.initializer[:], copy.graph.node[:]
    copy.graph.initializer.extend(kept)
    copy.graph.node.extend(nodes)
    return copy


def _is_plain(node: onnx.NodeProto) -> bool:
    given = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    return given.get("alpha", 1.0) == 1.0 and given.get("beta", 1.0) == 1.0 and not given.get("transA", 0)


def _in_subgraphs(nodes: list[onnx.NodeProto]) -> bool:
    return any(attribute.type == onnx.AttributeProto.GRAPH for node in nodes for attribute in node.attribute)


def sparing(model: onnx.ModelProto, calibration: Floats, states: Sequence[State], like: Recipe) -> list[Recipe]:
    """Variants of a recipe that leave the most sensitive nodes in float: one, then two, four, and so on.

    A node's sensitivity is the error when only it is quantised, measured on calibration rows. In a large model only the
    nodes that add the most noise in the fully quantised form are measured.
    """
    from converter.layers import added_noise, layer_errors  # noqa: PLC0415 - heavy
    from converter.session import run, session_of, start_of  # noqa: PLC0415 - heavy

    nodes = products_of(model)
    if len(nodes) < 2:
        return []
    rows, start = calibration[:_HISTOGRAM_ROWS], start_of(states)
    suspects = nodes
    if len(nodes) > _RANKED_NODES:
        form = candidate(model, like, rows, states)
        layers = layer_errors(model, onnx.load_model_from_string(form.readable), rows, states)
        added = added_noise(model, layers)
        suspects = sorted(nodes, key=lambda name: -added.get(name, 0.0))[:_RANKED_NODES]
    exact = run(session_of(serialize(model)), rows, 1, start).tensors()
    errors: dict[str, float] = {}
    for name in suspects:
        spared = tuple(other for other in nodes if other != name)
        form = candidate(model, replace(like, spared=spared), rows, states)
        found = run(session_of(form.model), rows, 1, start).tensors()
        errors[name] = sum(float(np.abs(found[part] - exact[part]).mean()) for part in exact if part != "label")
    ranked = sorted(suspects, key=lambda name: -errors[name])
    counts = [count for count in (1, 2, 4, 8, 16) if count < len(nodes)]
    return [replace(like, spared=tuple(sorted(ranked[:count]))) for count in counts]


def candidate(model: onnx.ModelProto, recipe: Recipe, calibration: Floats, states: Sequence[State] = ()) -> Candidate:
    """One form of a float32 model.

    Args:
        model: in normal form.
        recipe: how to make it.
        calibration: windows that show static quantisation the range of every tensor.
        states: of a recurrent model; calibration runs at the start of a stream.

    Raises:
        CommandError: the quantiser failed.
    """
    if recipe.method == "none":
        return _made(recipe, model)
    logging.getLogger().addFilter(_is_not_advice)
    try:
        if recipe.method == "float16":
            return _made(recipe, _float16(model))
        with tempfile.TemporaryDirectory(prefix="edge-convert-") as folder:
            before, after = Path(folder) / "before.onnx", Path(folder) / "after.onnx"
            ready = equalized(with_products(model), calibration)
            if recipe.method == "int8":
                ready = rectified_first(with_biases(ready))
            ready = onnx.shape_inference.infer_shapes(ready)
            onnx.save_model(ready, before)
            nodes = [name for name in products_of(ready) if name not in recipe.spared]
            if recipe.method == "int8":
                nodes = with_rectifiers(ready, nodes)
            if not nodes:
                quantised = ready
            else:
                if recipe.method == "dynamic":
                    _dynamic(before, after, nodes, recipe)
                else:
                    _static(before, after, nodes, recipe, calibration=calibration, states=states)
                quantised = onnx.load_model(after)
            if recipe.method == "int8":
                quantised = with_int8_weights(quantised)
    except Exception as error:
        raise CommandError(f"{recipe.name}: quantisation failed: {type(error).__name__}: {error}") from error
    finally:
        logging.getLogger().removeFilter(_is_not_advice)
    return _made(recipe, _clean(quantised, model))


def _made(recipe: Recipe, model: onnx.ModelProto) -> Candidate:
    return Candidate(recipe, serialize(compact(model)), serialize(model))


def _is_not_advice(record: logging.LogRecord) -> bool:
    """Suppress the quantiser's advice to preprocess the model: this is done already, or would break the opset."""
    return "pre-processing" not in record.getMessage()


def _clean(quantised: onnx.ModelProto, model: onnx.ModelProto) -> onnx.ModelProto:
    """Keep only the used opset imports; remove metadata and inner shapes; restore inputs and outputs."""
    used = {node.domain for node in quantised.graph.node}
    imports = {
        entry.domain: entry.version for entry in quantised.opset_import if entry.domain in used or not entry.domain
    }
    del quantised.opset_import[:]
    quantised.opset_import.extend(
        onnx.helper.make_opsetid(domain, version) for domain, version in sorted(imports.items())
    )
    del quantised.graph.value_info[:]
    del quantised.metadata_props[:]
    quantised.producer_name, quantised.producer_version = model.producer_name, model.producer_version
    quantised.ir_version = model.ir_version
    return quantised


def _dynamic(before: Path, after: Path, nodes: list[str], recipe: Recipe) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic  # noqa: PLC0415 - heavy

    quantize_dynamic(
        before, after, nodes_to_quantize=nodes, weight_type=QuantType.QInt8, per_channel=recipe.per_channel
    )


class _Reader:
    """Feeds calibration windows one by one, as onnxruntime's calibrators require."""

    def __init__(self, windows: Floats, states: Sequence[State]) -> None:
        self._windows = windows
        self._start = {state.input: np.zeros((1, *state.shape), dtype=np.float32) for state in states}
        self._items = self._each()

    def _each(self) -> Iterator[dict[str, Any]]:
        for index in range(len(self._windows)):
            yield {INPUT_NAME: self._windows[index : index + 1], **self._start}

    def get_next(self) -> dict[str, Any] | None:
        return next(self._items, None)


def _static(
    before: Path, after: Path, nodes: list[str], recipe: Recipe, *, calibration: Floats, states: Sequence[State]
) -> None:
    from onnxruntime.quantization import (  # noqa: PLC0415 - heavy
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(_Reader, CalibrationDataReader):  # type: ignore[misc]
        """onnxruntime checks for this base class."""

    most = _CALIBRATION_ROWS if recipe.calibrator == "MinMax" else _HISTOGRAM_ROWS
    step = max(1, len(calibration) // most)
    with contextlib.redirect_stdout(io.StringIO()):  # the calibrator prints its progress
        quantize_static(
            before,
            after,
            Reader(calibration[::step][:most], states),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            per_channel=recipe.per_channel,
            nodes_to_quantize=nodes,
            calibrate_method=getattr(CalibrationMethod, recipe.calibrator),
        )


def _float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with weights in float16 and arithmetic in float32.

    It takes half the bytes, and no reading overflows: float16 ends at 65504, and buses send 65535 for "not available".
    Processors of small boards compute in float32 anyway; onnxruntime turns the weights back as it loads them.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    limit = float(np.finfo(np.float16).max)
    casts: list[onnx.NodeProto] = []
    taken = {name for node in copy.graph.node for name in (*node.input, *node.output)}
    for tensor in copy.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        values = onnx.numpy_helper.to_array(tensor)
        if values.size < _LEAST_WEIGHTS or not (np.abs(values) <= limit).all():
            continue
        name = f"{tensor.name}_half"
        while name in taken:
            name += "_"
        taken.add(name)
        casts.append(
            onnx.helper.make_node("Cast", [name], [tensor.name], name=f"{name}_cast", to=onnx.TensorProto.FLOAT)
        )
        tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float16), name))
    nodes = [*casts, *copy.graph.node]
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return _clean(copy, model)
