"""TFLite files, float and int8: the operators of small networks, each as its ONNX counterpart.

int8 stays int8: quantised tensors become pairs of QuantizeLinear and DequantizeLinear with the file's own scales, which
onnxruntime runs in integers. Variables become states. Operators without a counterpart here (signal operators, recurrent
cells of integers, loops, custom operators) are refused by name. The reference is the TFLite interpreter. A model with
integer input takes whole numbers where the specification has a [frame] of an integer type, and real numbers, quantised
inside the graph, otherwise.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from converter.load.kind import Loader, ModelFile
from converter.load.onnx import OnnxModel
from converter.load.optional import require
from converter.load.source import StateTensor
from converter.load.tflite_merge import merge_parts
from converter.load.tflite_network import Network
from converter.load.tflite_operators import OPERATORS
from converter.spec import Spec
from edge_runtime.errors import CommandError
from edge_runtime.readings import Floats


def load(path: Path, spec: Spec) -> "TfliteModel":
    """Load a TFLite file.

    Raises:
        CommandError: ai-edge-litert is not installed, the file is damaged, or has parts without ONNX form.
    """
    schema = require("ai_edge_litert.schema_py_generated", path, "tflite")
    interpreters = require("ai_edge_litert.interpreter", path, "tflite")
    data = path.read_bytes()
    try:
        model = schema.ModelT.InitFromPackedBuf(data, 0)
        widened = _widen(schema, model)
        if widened:
            data = _packed(model)
        merge_parts(schema, model)
        network = Network(schema, model, str(path), spec)
    except CommandError:
        raise
    except Exception as error:
        raise CommandError(f"{path}: expected a TFLite model, found a damaged, truncated or other file") from error
    converted, states = network.convert(OPERATORS)

    def interpreter() -> Any:
        made = _interpreter(interpreters, data, network.takes_floats, keeps=bool(states))
        made.allocate_tensors()
        return made

    try:
        interpreter()
    except Exception as error:
        text = str(error).strip().splitlines()[0]
        raise CommandError(f"{path}: the TFLite interpreter refuses it: {text}") from error
    loaded = TfliteModel(converted, spec, str(path), interpreter=interpreter, network=network, states=states)
    if states:
        names = ", ".join(state.input for state in states)
        loaded.notes.append(f"the model keeps {len(states)} variables from call to call, which become states: {names}")
    if widened:
        loaded.notes.append(
            f"{widened} weights are int8 and their activations float: TFLite rounds the activations as it runs; "
            "the model is judged by the same weights without that rounding"
        )
    return loaded


def _interpreter(interpreters: Any, data: bytes, floats: bool, *, keeps: bool) -> Any:
    """The TFLite interpreter; for floats without its delegate, whose sums are less exact.

    Measured on the 196 scores of the anomaly model against the same network in float64: with the delegate one score
    is 1.3e-4 off, with the library's own kernels none more than 4.7e-5.
    """
    kinds = interpreters.OpResolverType
    resolver = kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES if floats else kinds.AUTO
    return interpreters.Interpreter(
        model_content=data, num_threads=1, experimental_op_resolver_type=resolver,
        experimental_preserve_all_tensors=keeps,  # so that assigned variables can be read
    )  # fmt: skip


def _widen(schema: Any, model: Any) -> int:
    """Turn int8 weights of operators on floats into float32, in place; return their number."""
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
    """A TFLite model: its ONNX form, and its interpreter as the reference.

    An interpreter keeps its variables from call to call and cannot reset them: each window that begins a stream has its
    own interpreter.
    """

    framework = "TFLite"

    def __init__(
        self,
        model: onnx.ModelProto,
        spec: Spec,
        place: str,
        *,
        interpreter: Callable[[], Any],
        network: Network,
        states: Sequence[StateTensor],
    ) -> None:
        self._make, self._network = interpreter, network
        self._interpreter = interpreter()
        super().__init__(model, spec, place, states)
        self.version = "3"

    def _ask(self, windows: Floats) -> dict[str, NDArray[Any]]:
        fed = self._fed(windows, self._expanded)
        rows = []
        for row in range(len(windows)):
            interpreter = self._make() if self._states else self._interpreter
            interpreter.reset_all_variables()
            rows.append(self._invoke(interpreter, {name: fed[name][row : row + 1] for name in self._network.inputs}))
        return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}

    def _run_stream(self, windows: Floats) -> Iterator[dict[str, NDArray[Any]]]:
        interpreter = self._make()
        details = {item["index"]: item for item in interpreter.get_tensor_details()}
        outputs = {state.input: state.output for state in self._states}
        for row in range(len(windows)):
            fed = self._fed(windows[row : row + 1], self._expanded)
            found = self._invoke(interpreter, {name: fed[name] for name in self._network.inputs})
            for name, index in self._network.kept().items():
                found[outputs[name]] = _in_numbers(interpreter.get_tensor(index), details[index])
            yield found

    def _invoke(self, interpreter: Any, fed: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """One window: the input is quantised and the output dequantised, by the scales of the file."""
        details = {item["index"]: item for item in interpreter.get_input_details()}
        for name, index in self._network.inputs.items():
            given, values = details[index], fed[name]
            if values.dtype == np.float32 and given["dtype"] != np.float32:
                scale, zero = given["quantization"]
                limits = np.iinfo(given["dtype"])
                values = np.clip(np.rint(values / np.float32(scale)) + zero, limits.min, limits.max)
            interpreter.set_tensor(index, values.reshape(given["shape"]).astype(given["dtype"]))
        interpreter.invoke()
        results = {}
        wanted = {item["index"]: item for item in interpreter.get_output_details()}
        for name, index in self._network.outputs.items():
            found = _in_numbers(interpreter.get_tensor(index), wanted[index])
            results[name] = found.reshape(1, *found.shape[1:]) if found.shape[:1] == (1,) else found.reshape(1, -1)
        return results


def _in_numbers(found: NDArray[Any], detail: dict[str, Any]) -> NDArray[Any]:
    """The values of a tensor, dequantised where it has a scale."""
    scale, zero = detail["quantization"]
    if detail["dtype"] == np.float32 or not scale:
        return found
    return np.asarray((found.astype(np.float32) - np.float32(zero)) * np.float32(scale))


def _recognise(file: ModelFile) -> str | None:
    return "tflite" if file.head[4:8] == b"TFL3" or file.suffix == ".tflite" else None


LOADER = Loader("TFLite", _recognise, lambda path, spec, _kind, _trust: load(path, spec))
