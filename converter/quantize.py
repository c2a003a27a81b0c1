"""The candidates: the float32 model as float16, as dynamic int8 and as static int8 (QDQ).

Only matrix products and convolutions in float32 are touched; everything else, float64 feature code included,
stays as it is. Every candidate is a whole model; `build` judges each and keeps one.
"""

import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnx

from converter.graph import FLOAT, serialize
from edge_runtime.errors import CommandError
from edge_runtime.manifest import INPUT_NAME
from edge_runtime.readings import Floats

Method = Literal["none", "int8", "dynamic", "float16"]
PRODUCTS = ("MatMul", "Gemm", "Conv", "ConvTranspose")
_CALIBRATION_ROWS = 512  # more move no range that matters, and calibration keeps every tensor of every row


@dataclass(frozen=True, slots=True)
class Candidate:
    """One form of the model."""

    method: Method
    name: str
    model: bytes


def products_of(model: onnx.ModelProto) -> list[str]:
    """The names of the nodes that can be quantised: float32 products with a constant operand."""
    weights = {tensor.name for tensor in model.graph.initializer if tensor.data_type == FLOAT}
    return [
        node.name
        for node in model.graph.node
        if node.op_type in PRODUCTS and any(name in weights for name in node.input)
    ]


def candidate(model: onnx.ModelProto, method: Method, calibration: Floats) -> Candidate:
    """One form of a float32 model.

    Args:
        model: in normal form.
        method: which.
        calibration: windows that show static quantisation the range of every tensor.

    Raises:
        CommandError: the quantiser failed.
    """
    if method == "none":
        return Candidate("none", "float32", serialize(model))
    logging.getLogger().addFilter(_is_not_advice)
    try:
        if method == "float16":
            return Candidate(method, "float16", _float16(model))
        with tempfile.TemporaryDirectory(prefix="edge-convert-") as folder:
            before, after = Path(folder) / "before.onnx", Path(folder) / "after.onnx"
            onnx.save_model(_prepared(model), before)
            if method == "dynamic":
                _dynamic(before, after, products_of(model))
            else:
                _static(before, after, products_of(model), calibration)
            quantised = onnx.load_model(after)
    except Exception as error:
        raise CommandError(f"quantisation to {method} failed: {type(error).__name__}: {error}") from error
    finally:
        logging.getLogger().removeFilter(_is_not_advice)
    return Candidate(method, "int8 static" if method == "int8" else "int8 dynamic", serialize(_clean(quantised, model)))


def _is_not_advice(record: logging.LogRecord) -> bool:
    """The quantiser advises a pre-processing that we have done, or that opsets would not survive."""
    return "pre-processing" not in record.getMessage()


def _prepared(model: onnx.ModelProto) -> onnx.ModelProto:
    """With the shapes of inner tensors, which the quantiser wants."""
    return onnx.shape_inference.infer_shapes(model)


def _clean(quantised: onnx.ModelProto, model: onnx.ModelProto) -> onnx.ModelProto:
    """Only the imports that are used, no leftovers in metadata or inner shapes, inputs and outputs as before."""
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
    return quantised


def _dynamic(before: Path, after: Path, nodes: list[str]) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic  # noqa: PLC0415 - heavy

    quantize_dynamic(before, after, nodes_to_quantize=nodes, weight_type=QuantType.QInt8, per_channel=False)


class _Reader:
    """Feeds calibration windows one by one, as onnxruntime's calibrators want them."""

    def __init__(self, windows: Floats) -> None:
        self._windows = windows
        self._items = self._each()

    def _each(self) -> Iterator[dict[str, Any]]:
        for index in range(len(self._windows)):
            yield {INPUT_NAME: self._windows[index : index + 1]}

    def get_next(self) -> dict[str, Any] | None:
        return next(self._items, None)


def _static(before: Path, after: Path, nodes: list[str], calibration: Floats) -> None:
    from onnxruntime.quantization import (  # noqa: PLC0415 - heavy
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(_Reader, CalibrationDataReader):  # type: ignore[misc]
        """The base class is checked for by name."""

    step = max(1, len(calibration) // _CALIBRATION_ROWS)
    quantize_static(
        before,
        after,
        Reader(calibration[::step][:_CALIBRATION_ROWS]),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        per_channel=False,
        nodes_to_quantize=nodes,
    )


def _float16(model: onnx.ModelProto) -> bytes:
    from onnxruntime.transformers.float16 import convert_float_to_float16  # noqa: PLC0415 - heavy

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    half = convert_float_to_float16(copy, keep_io_types=True)
    return serialize(_clean(half, model))
