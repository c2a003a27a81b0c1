"""TFLite files, float and int8: the operators of small networks, each as its ONNX counterpart.

int8 stays int8: quantised tensors become pairs of QuantizeLinear and DequantizeLinear with the file's own scales, which
onnxruntime runs in integers. What has no counterpart here (recurrent cells, variables, custom operators) is
refused by name. The truth is the TFLite interpreter. A model with integer input takes whole numbers where the
specification has a [frame] of an integer type, and real numbers, quantised inside the graph, otherwise.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from converter.graph.build import FLOAT, GraphBuilder
from converter.load.kind import Loader, ModelFile
from converter.load.onnx import OnnxModel
from converter.load.optional import require
from converter.spec import Spec
from edge_runtime.errors import CommandError
from edge_runtime.readings import Floats

_TYPES = {"FLOAT32": np.float32, "INT8": np.int8, "UINT8": np.uint8, "INT32": np.int32, "INT64": np.int64}
_INTEGERS = {"INT8": TensorProto.INT8, "UINT8": TensorProto.UINT8}
_WIDE = {"INT32": TensorProto.INT32, "INT64": TensorProto.INT64}
_INPUT, _OUTPUT = "input", "output"


def load(path: Path, spec: Spec) -> "TfliteModel":
    """Load a TFLite file.

    Raises:
        CommandError: ai-edge-litert is not installed, or the file is damaged or has parts without ONNX form.
    """
    schema = require("ai_edge_litert.schema_py_generated", path, "tflite")
    interpreters = require("ai_edge_litert.interpreter", path, "tflite")
    data = path.read_bytes()
    try:
        model = schema.ModelT.InitFromPackedBuf(data, 0)
        widened = _widen(schema, model)
        if widened:
            data = _packed(model)
        network = _Network(schema, model, model.subgraphs[0], str(path), spec)
    except CommandError:
        raise
    except Exception as error:
        raise CommandError(f"{path}: expected a TFLite model, found a damaged, truncated or other file") from error
    converted = network.convert()
    try:
        interpreter = _interpreter(interpreters, data, network.takes_floats)
        interpreter.allocate_tensors()
    except Exception as error:
        text = str(error).strip().splitlines()[0]
        raise CommandError(f"{path}: the TFLite interpreter refuses it: {text}") from error
    loaded = TfliteModel(converted, spec, str(path), interpreter)
    if widened:
        loaded.notes.append(
            f"{widened} weights are int8 and their activations float: TFLite rounds the activations as it runs; "
            "the model is judged by the same weights without that rounding"
        )
    return loaded


def _interpreter(interpreters: Any, data: bytes, floats: bool) -> Any:
    """TFLite as it comes; for floats without its delegate, whose sums are further from the exact ones.

    Measured on the 196 scores of the anomaly model against the same network in float64: with the delegate one score
    is 1.3e-4 off, with the library's own kernels none more than 4.7e-5.
    """
    kinds = interpreters.OpResolverType
    resolver = kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES if floats else kinds.AUTO
    return interpreters.Interpreter(model_content=data, num_threads=1, experimental_op_resolver_type=resolver)


def _widen(schema: Any, model: Any) -> int:
    """Turn int8 weights of operators that work on floats into float32, in place; how many there were."""
    graph, kinds, count = model.subgraphs[0], schema.TensorType, 0
    for operator in graph.operators:
        if len(operator.inputs) < 2 or graph.tensors[operator.inputs[0]].type != kinds.FLOAT32:
            continue
        tensor = graph.tensors[operator.inputs[1]]
        if tensor.type != kinds.INT8 or tensor.quantization is None or tensor.quantization.scale is None:
            continue
        whole = np.frombuffer(bytes(bytearray(model.buffers[tensor.buffer].data)), dtype=np.int8)
        values = whole.reshape([int(size) for size in tensor.shape]).astype(np.float32)
        shape = [1] * values.ndim
        shape[tensor.quantization.quantizedDimension] = -1
        scale = np.asarray(tensor.quantization.scale, dtype=np.float32)
        values = values * (scale.reshape(shape) if len(scale) > 1 else scale[0])
        model.buffers[tensor.buffer].data = np.frombuffer(values.tobytes(), dtype=np.uint8)
        tensor.type, tensor.quantization = kinds.FLOAT32, None
        count += 1
    return count


def _packed(model: Any) -> bytes:
    builder = require("flatbuffers", "TFLite", "tflite").Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


class TfliteModel(OnnxModel):
    """A TFLite model: its ONNX form, and its interpreter as the truth."""

    framework = "TFLite"

    def __init__(self, model: onnx.ModelProto, spec: Spec, place: str, interpreter: Any) -> None:
        self._interpreter = interpreter
        super().__init__(model, spec, place)
        self.version = "3"

    def _run(self, windows: Floats, session: Any = None) -> dict[str, NDArray[Any]]:
        if session is not None and session is not self._session:
            return super()._run(windows, session)
        given, wanted = self._interpreter.get_input_details()[0], self._interpreter.get_output_details()[0]
        kind = np.int8 if "int8" in self._inputs[self._input].type else np.float32
        fed = self._layout.arrange(windows, np.uint8 if "uint8" in self._inputs[self._input].type else kind)
        if fed.dtype == np.float32 and given["dtype"] != np.float32:
            scale, zero = given["quantization"]
            limits = np.iinfo(given["dtype"])
            fed = np.clip(np.rint(fed / np.float32(scale)) + zero, limits.min, limits.max)
        results = []
        for row in fed.astype(given["dtype"]):
            self._interpreter.set_tensor(given["index"], row.reshape(given["shape"]))
            self._interpreter.invoke()
            results.append(self._interpreter.get_tensor(wanted["index"]).reshape(-1))
        found = np.stack(results)
        if wanted["dtype"] != np.float32:
            scale, zero = wanted["quantization"]
            found = (found.astype(np.float32) - np.float32(zero)) * np.float32(scale)
        return {_OUTPUT: found}


class _Network:
    """One TFLite graph on its way to ONNX. Pictures stay channel first between operators that want them so."""

    def __init__(self, schema: Any, model: Any, graph: Any, place: str, spec: Spec) -> None:
        self._schema, self._model, self._graph, self._place, self._spec = schema, model, graph, place, spec
        self._names = {value: key for key, value in vars(schema.TensorType).items() if isinstance(value, int)}
        self._operators = {value: key for key, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
        self._build = GraphBuilder()
        self._build.reserve(_INPUT, _OUTPUT)
        self._plain: dict[int, str] = {}  # tensor -> its value as TFLite has it
        self._first: dict[int, str] = {}  # tensor -> the same, channel first

    def convert(self) -> onnx.ModelProto:
        """The graph in ONNX, float32 out, batch free.

        Raises:
            CommandError: it has operators without ONNX form, or several inputs or outputs.
        """
        strange = sorted({name for name in map(self._name_of, self._graph.operators) if name not in _OPERATORS})
        if strange:
            raise CommandError(f"{self._place}: no ONNX form is known for the TFLite operators {', '.join(strange)}")
        if len(self._graph.inputs) != 1 or len(self._graph.outputs) != 1:
            raise CommandError(
                f"{self._place}: expected one input and one output, "
                f"found {len(self._graph.inputs)} and {len(self._graph.outputs)}"
            )
        self._begin(int(self._graph.inputs[0]))
        for operator in self._graph.operators:
            _OPERATORS[self._name_of(operator)](self, operator)
        last = int(self._graph.outputs[0])
        shape = [int(size) for size in self._tensor(last).shape]
        self._build.output(_OUTPUT, self.value(last), FLOAT, ("N", *shape[1:]))
        return self._build.build("tflite")

    def _begin(self, index: int) -> None:
        tensor = self._tensor(index)
        shape = tuple(int(size) for size in tensor.shape)
        kind = self._names[tensor.type]
        whole = self._spec.frame is not None and self._spec.frame.dtype != "float32"
        if kind in _INTEGERS and whole:
            name = self._build.input(_INPUT, _INTEGERS[kind], ("N", *shape[1:]))
            self._plain[index] = self._build.node("DequantizeLinear", name, *self._scales(tensor))
        elif kind in _WIDE:
            self._build.input(_INPUT, _WIDE[kind], ("N", *shape[1:]))
            self._plain[index] = _INPUT
        elif kind in _INTEGERS or kind == "FLOAT32":
            self._build.input(_INPUT, FLOAT, ("N", *shape[1:]))
            self.give(index, _INPUT)
        else:
            raise CommandError(f"{self._place}: expected an input of floats or whole numbers, found {kind}")

    @property
    def takes_floats(self) -> bool:
        """Whether the input of the file is float32."""
        return bool(self._names[self._tensor(int(self._graph.inputs[0])).type] == "FLOAT32")

    def _name_of(self, operator: Any) -> str:
        code = self._model.operatorCodes[operator.opcodeIndex]
        name = self._operators[max(code.builtinCode, code.deprecatedBuiltinCode)]
        return str(code.customCode.decode(errors="replace") if name == "CUSTOM" else name)

    def _tensor(self, index: int) -> Any:
        return self._graph.tensors[index]

    def shape(self, index: int) -> list[int]:
        """Sizes of a tensor, with the batch of the file."""
        return [int(size) for size in self._tensor(index).shape]

    def array(self, index: int) -> NDArray[Any] | None:
        """A constant as it stands in the file, or None."""
        tensor = self._tensor(index)
        data = self._model.buffers[tensor.buffer].data
        if data is None or len(data) == 0:
            return None
        kind = self._names[tensor.type]
        if kind not in _TYPES:
            raise CommandError(f"{self._place}: weights of type {kind} are not supported")
        return np.frombuffer(bytes(bytearray(data)), dtype=_TYPES[kind]).reshape(self.shape(index))

    def _scales(self, tensor: Any, axis: int | None = None) -> tuple[str, str]:
        """Scale and zero point as constants: one each, or a list along an axis."""
        scale = np.asarray(tensor.quantization.scale, dtype=np.float32)
        zero = np.asarray(tensor.quantization.zeroPoint).astype(_TYPES[self._names[tensor.type]])
        if len(scale) == 1 or axis is None:
            scale, zero = scale[0], zero[0]
        return self._build.constant(scale), self._build.constant(zero, zero.dtype)

    def weight(self, index: int, turn: tuple[int, ...], axis: int) -> str:
        """A constant operand, its axes turned; `axis` is the one that per-channel scales lie along, afterwards."""
        array = self.array(index)
        if array is None:
            raise CommandError(f"{self._place}: expected constant weights, found computed ones")
        tensor = self._tensor(index)
        turned = np.ascontiguousarray(array.transpose(turn)) if turn else array
        name = self._build.constant(turned, turned.dtype)
        if turned.dtype == np.float32:
            return name
        per_channel = len(tensor.quantization.scale) > 1
        scales = self._scales(tensor, axis if per_channel else None)
        extra: dict[str, Any] = {"axis": axis} if per_channel else {}
        return self._build.node("DequantizeLinear", name, *scales, **extra)

    def value(self, index: int) -> str:
        """A tensor in float32, in TFLite's own layout."""
        if index not in self._plain:
            if index in self._first:
                self._plain[index] = self._build.node("Transpose", self._first[index], perm=[0, 2, 3, 1])
            else:
                self._plain[index] = self.weight(index, (), 0)
        return self._plain[index]

    def picture(self, index: int) -> str:
        """A tensor in float32, channel first."""
        if index not in self._first:
            self._first[index] = self._build.node("Transpose", self.value(index), perm=[0, 3, 1, 2])
        return self._first[index]

    def give(self, index: int, value: str, activation: int = 0, first: bool = False) -> None:
        """A result: activated, rounded to the tensor's own integers, and remembered in the layout that it has."""
        value = self._activated(value, activation)
        tensor = self._tensor(index)
        if self._names[tensor.type] in _INTEGERS:
            scales = self._scales(tensor)
            value = self._build.node("QuantizeLinear", value, *scales)
            value = self._build.node("DequantizeLinear", value, *scales)
        (self._first if first else self._plain)[index] = value

    def _activated(self, value: str, activation: int) -> str:
        kinds = self._schema.ActivationFunctionType
        if activation == kinds.NONE:
            return value
        if activation == kinds.RELU:
            return self._build.node("Relu", value)
        if activation == kinds.RELU6:
            return self._build.node("Clip", value, self._build.constant(0.0), self._build.constant(6.0))
        if activation == kinds.TANH:
            return self._build.node("Tanh", value)
        raise CommandError(f"{self._place}: no ONNX form is known for activation {activation}")

    def pads(
        self, operator: Any, kernel: tuple[int, int], strides: tuple[int, int], steps: tuple[int, int]
    ) -> list[int]:
        """Explicit pads for SAME and VALID."""
        if operator.builtinOptions.padding == self._schema.Padding.VALID:
            return [0, 0, 0, 0]
        sizes = self.shape(operator.inputs[0])[1:3]
        before, after = [], []
        for size, width, stride, step in zip(sizes, kernel, strides, steps, strict=True):
            reach = (width - 1) * step + 1
            total = max(0, (-(-size // stride) - 1) * stride + reach - size)
            before.append(total // 2)
            after.append(total - total // 2)
        return before + after

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """A node of the graph."""
        return self._build.node(kind, *inputs, **attributes)

    def constant(self, value: Any, kind: Any = np.float32) -> str:
        """A constant of the graph."""
        return self._build.constant(value, kind)


def _convolution(network: _Network, operator: Any, depthwise: bool) -> None:
    options, (x, w, *bias) = operator.builtinOptions, operator.inputs
    kernel = network.shape(w)[1:3]
    strides, steps = (options.strideH, options.strideW), (options.dilationHFactor, options.dilationWFactor)
    weight = network.weight(w, (3, 0, 1, 2) if depthwise else (0, 3, 1, 2), 0)
    inputs = [network.picture(x), weight]
    if bias and bias[0] >= 0:
        inputs.append(network.weight(bias[0], (), 0))
    result = network.node(
        "Conv",
        *inputs,
        kernel_shape=kernel,
        strides=list(strides),
        dilations=list(steps),
        pads=network.pads(operator, (kernel[0], kernel[1]), strides, steps),
        group=network.shape(x)[3] if depthwise else 1,
    )
    network.give(operator.outputs[0], result, options.fusedActivationFunction, first=True)


def _fully_connected(network: _Network, operator: Any) -> None:
    x, w, *bias = operator.inputs
    columns = network.shape(w)[1]
    flat = network.node("Reshape", network.value(x), network.constant([-1, columns], np.int64))
    inputs = [flat, network.weight(w, (1, 0), 1)]
    if bias and bias[0] >= 0:
        inputs.append(network.weight(bias[0], (), 0))
    result = network.node("Gemm", *inputs) if len(inputs) == 3 else network.node("MatMul", *inputs)
    network.give(operator.outputs[0], result, operator.builtinOptions.fusedActivationFunction)


def _pool(kind: str) -> Callable[[_Network, Any], None]:
    def convert(network: _Network, operator: Any) -> None:
        options = operator.builtinOptions
        kernel, strides = (options.filterHeight, options.filterWidth), (options.strideH, options.strideW)
        pads = network.pads(operator, kernel, strides, (1, 1))
        result = network.node(
            kind, network.picture(operator.inputs[0]), kernel_shape=list(kernel), strides=list(strides), pads=pads
        )
        network.give(operator.outputs[0], result, options.fusedActivationFunction, first=True)

    return convert


def _reshape(network: _Network, operator: Any) -> None:
    shape = network.shape(operator.outputs[0])
    target = network.constant([-1, *shape[1:]], np.int64)
    network.give(operator.outputs[0], network.node("Reshape", network.value(operator.inputs[0]), target))


def _elementwise(kind: str) -> Callable[[_Network, Any], None]:
    def convert(network: _Network, operator: Any) -> None:
        inputs = [network.value(index) for index in operator.inputs]
        activation = getattr(operator.builtinOptions, "fusedActivationFunction", 0) or 0
        network.give(operator.outputs[0], network.node(kind, *inputs), activation)

    return convert


def _softmax(network: _Network, operator: Any) -> None:
    if abs(operator.builtinOptions.beta - 1.0) > 1e-6:
        scaled = network.node("Mul", network.value(operator.inputs[0]), network.constant(operator.builtinOptions.beta))
    else:
        scaled = network.value(operator.inputs[0])
    network.give(operator.outputs[0], network.node("Softmax", scaled, axis=-1))


def _mean(network: _Network, operator: Any) -> None:
    axes = network.array(operator.inputs[1])
    keep = int(operator.builtinOptions.keepDims)
    assert axes is not None
    result = network.node(
        "ReduceMean", network.value(operator.inputs[0]), axes=axes.reshape(-1).tolist(), keepdims=keep
    )
    network.give(operator.outputs[0], result)


def _pad(network: _Network, operator: Any) -> None:
    pads = network.array(operator.inputs[1])
    assert pads is not None
    amounts = network.constant(pads.T.reshape(-1), np.int64)
    network.give(operator.outputs[0], network.node("Pad", network.value(operator.inputs[0]), amounts))


def _concatenation(network: _Network, operator: Any) -> None:
    values = [network.value(index) for index in operator.inputs]
    result = network.node("Concat", *values, axis=operator.builtinOptions.axis)
    network.give(operator.outputs[0], result, operator.builtinOptions.fusedActivationFunction)


def _same(network: _Network, operator: Any) -> None:
    network.give(operator.outputs[0], network.value(operator.inputs[0]))


_OPERATORS: dict[str, Callable[[_Network, Any], None]] = {
    "CONV_2D": lambda network, operator: _convolution(network, operator, depthwise=False),
    "DEPTHWISE_CONV_2D": lambda network, operator: _convolution(network, operator, depthwise=True),
    "FULLY_CONNECTED": _fully_connected,
    "AVERAGE_POOL_2D": _pool("AveragePool"),
    "MAX_POOL_2D": _pool("MaxPool"),
    "RESHAPE": _reshape,
    "SQUEEZE": _reshape,
    "EXPAND_DIMS": _reshape,
    "SOFTMAX": _softmax,
    "LOGISTIC": _elementwise("Sigmoid"),
    "TANH": _elementwise("Tanh"),
    "RELU": _elementwise("Relu"),
    "ADD": _elementwise("Add"),
    "SUB": _elementwise("Sub"),
    "MUL": _elementwise("Mul"),
    "MEAN": _mean,
    "PAD": _pad,
    "CONCATENATION": _concatenation,
    "QUANTIZE": _same,
    "DEQUANTIZE": _same,
}


def _recognise(file: ModelFile) -> str | None:
    return "tflite" if file.head[4:8] == b"TFL3" or file.suffix == ".tflite" else None


LOADER = Loader("TFLite", _recognise, lambda path, spec, _kind, _trust: load(path, spec))
