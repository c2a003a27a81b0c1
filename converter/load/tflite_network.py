"""One TFLite graph on its way to ONNX: tensors and their layouts, constants, activations and variables.

int8 stays int8: quantised tensors become pairs of QuantizeLinear and DequantizeLinear with the file's own scales, which
onnxruntime runs in integers. A variable (`VAR_HANDLE`, or the memory of a recurrent cell) becomes a state: an input and
an output of the graph in real numbers, which convert to the integers without rounding. The operators are in
`tflite_operators.py`.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from converter.graph.build import FLOAT, GraphBuilder
from converter.load.source import StateTensor
from converter.spec import Spec
from edge_runtime.errors import CommandError

TYPES = {"FLOAT32": np.float32, "INT8": np.int8, "UINT8": np.uint8, "INT32": np.int32, "INT64": np.int64}
_INTEGERS = {"INT8": TensorProto.INT8, "UINT8": TensorProto.UINT8}
_WIDE = {"INT32": TensorProto.INT32, "INT64": TensorProto.INT64}
INPUT, OUTPUT = "input", "output"
_ONCE = "CALL_ONCE"
Convert = Callable[["Network", Any], None]


@dataclass(slots=True)
class Variable:
    """A variable, which a network keeps from one call to the next.

    Attributes:
        name: in the file.
        tensor: the last tensor that read or assigned it, for its shape.
        value: its value at this place of the graph.
        is_read: whether it was read before an assignment.
    """

    name: str
    tensor: int
    value: str
    is_read: bool = False


class Network:
    """One TFLite graph on its way to ONNX. Pictures stay channel first between operators that need this.

    Attributes:
        inputs: the graph's inputs by name, and the tensors of the file.
        outputs: its outputs, likewise.
        variables: by name.
    """

    def __init__(self, schema: Any, model: Any, place: str, spec: Spec) -> None:
        self._schema, self._model, self._graph, self._place, self._spec = schema, model, model.subgraphs[0], place, spec
        self._names = {value: key for key, value in vars(schema.TensorType).items() if isinstance(value, int)}
        self._operators = {value: key for key, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
        self.inputs = self._ports(self._graph.inputs, INPUT, "inputs")
        self.outputs = self._ports(self._graph.outputs, OUTPUT, "outputs")
        self._build = GraphBuilder()
        self._build.reserve(*self.inputs, *self.outputs)
        self._plain: dict[int, str] = {}  # tensor -> its value in TFLite's layout
        self._first: dict[int, str] = {}  # tensor -> the same, channel first
        self.variables: dict[str, Variable] = {}
        self._handles: dict[int, str] = {}  # resource tensor -> the variable's name
        self._starts: dict[str, NDArray[Any]] = {}  # what CALL_ONCE assigns

    def convert(self, operators: Mapping[str, Convert]) -> tuple[onnx.ModelProto, tuple[StateTensor, ...]]:
        """The graph in ONNX, with float32 outputs and a free batch, and its states.

        Raises:
            CommandError: it has operators without ONNX form, or a variable that does not begin at zero.
        """
        kinds = list(map(self._name_of, self._graph.operators))
        strange = sorted({name for name in kinds if name not in operators and name != _ONCE})
        if strange:
            raise CommandError(f"{self._place}: no ONNX form is known for the TFLite operators {', '.join(strange)}")
        for name, index in self.inputs.items():
            self._begin(name, index)
        for kind, operator in zip(kinds, self._graph.operators, strict=True):
            if kind == _ONCE:
                self._begin_once(operator)
            else:
                operators[kind](self, operator)
        for name, index in self.outputs.items():
            shape = self.shape(index)
            self._build.output(name, self.value(index), FLOAT, ("N", *shape[1:]))
        states = tuple(self._state(variable) for variable in self.variables.values() if variable.is_read)
        return self._build.build("tflite"), states

    def _ports(self, indexes: Any, single: str, kind: str) -> dict[str, int]:
        """Names of inputs or outputs: the default name for a single one, else those of the signature, or of tensors."""
        tensors = [int(index) for index in indexes]
        if len(tensors) == 1:
            return {single: tensors[0]}
        signatures = self._model.signatureDefs or []
        named = {
            int(each.tensorIndex): each.name.decode() for each in (getattr(signatures[0], kind) if signatures else [])
        }
        return {named.get(index) or self._tensor(index).name.decode(errors="replace"): index for index in tensors}

    def _begin(self, name: str, index: int) -> None:
        tensor = self._tensor(index)
        shape = tuple(int(size) for size in tensor.shape)
        kind = self._names[tensor.type]
        whole = self._spec.frame is not None and self._spec.frame.dtype != "float32"
        if kind in _INTEGERS and whole:
            self._build.input(name, _INTEGERS[kind], ("N", *shape[1:]))
            self._plain[index] = self._build.node("DequantizeLinear", name, *self._scales(tensor))
        elif kind in _WIDE:
            self._build.input(name, _WIDE[kind], ("N", *shape[1:]))
            self._plain[index] = name
        elif kind in _INTEGERS or kind == "FLOAT32":
            self._build.input(name, FLOAT, ("N", *shape[1:]))
            self.give(index, name)
        else:
            raise CommandError(f"{self._place}: expected an input of floats or whole numbers, found {kind}")

    # --- what is kept from call to call -----------------------------------------------------------------------------

    def _begin_once(self, operator: Any) -> None:
        """The initial values of variables."""
        graph = self._model.subgraphs[operator.builtinOptions.initSubgraphIndex]
        handles: dict[int, str] = {}
        for each in graph.operators:
            kind = self._name_of(each)
            if kind == "VAR_HANDLE":
                handles[int(each.outputs[0])] = _handle(each)
            elif kind == "ASSIGN_VARIABLE":
                tensor = graph.tensors[each.inputs[1]]
                data = self._model.buffers[tensor.buffer].data
                if data is None or len(data) == 0:
                    raise CommandError(
                        f"{self._place}: expected variables that begin with constants, found a computation"
                    )
                start = np.frombuffer(bytes(bytearray(data)), dtype=self._type(tensor)).astype(np.float64)
                zero = tensor.quantization.zeroPoint if tensor.quantization is not None else None
                self._starts[handles[int(each.inputs[0])]] = start - (0 if zero is None or not len(zero) else zero[0])
            else:
                raise CommandError(f"{self._place}: no ONNX form is known for {kind} where variables begin")

    def handle(self, operator: Any) -> None:
        """`VAR_HANDLE`: a tensor that stands for a variable."""
        self._handles[int(operator.outputs[0])] = _handle(operator)

    def read_variable(self, operator: Any) -> None:
        """`READ_VARIABLE`: the state at the start of this call, or the last assigned value."""
        index = int(operator.outputs[0])
        self.give(index, self.held(self._handles[int(operator.inputs[0])], index))

    def assign_variable(self, operator: Any) -> None:
        """`ASSIGN_VARIABLE`: the value for later reads, and for the next call."""
        name, index = self._handles[int(operator.inputs[0])], int(operator.inputs[1])
        self.hold(name, self.value(index), index)

    def held(self, name: str, index: int) -> str:
        """The value of a variable at this place, in real numbers; `index` is a tensor of its type and shape."""
        variable = self.variables.get(name)
        if variable is None:
            self._refuse_start(name)
            shape = self.shape(index)
            if shape[:1] != [1]:
                raise CommandError(f"{self._place}: variable {name}: expected a batch of 1, found sizes {shape}")
            port = self._build.input(_port(name), FLOAT, ("N", *shape[1:]))
            variable = self.variables[name] = Variable(name, index, port, is_read=True)
        return variable.value

    def hold(self, name: str, value: str, index: int) -> None:
        """Assign a variable."""
        variable = self.variables.setdefault(name, Variable(name, index, value))
        variable.value, variable.tensor = value, index

    def _refuse_start(self, name: str) -> None:
        if np.any(self._starts.get(name, 0)):
            raise CommandError(
                f"{self._place}: variable {name}: expected one that begins at zero, as the state of a device does, "
                "found another start: export the model with zero states"
            )

    def kept(self) -> dict[str, int]:
        """For each state the tensor of the file that is assigned to it."""
        return {_port(each.name): each.tensor for each in self.variables.values() if each.is_read}

    def _state(self, variable: Variable) -> StateTensor:
        shape = tuple(self.shape(variable.tensor)[1:])
        self._build.output(f"{_port(variable.name)}_next", variable.value, FLOAT, ("N", *shape))
        return StateTensor(_port(variable.name), f"{_port(variable.name)}_next", shape, 0)

    # --- tensors ----------------------------------------------------------------------------------------------------

    @property
    def takes_floats(self) -> bool:
        """Whether the input of the file is float32."""
        return bool(self._names[self._tensor(int(self._graph.inputs[0])).type] == "FLOAT32")

    @property
    def place(self) -> str:
        """The file, for messages."""
        return self._place

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
        """A constant of the file, or None."""
        tensor = self._tensor(index)
        data = self._model.buffers[tensor.buffer].data
        if data is None or len(data) == 0:
            return None
        return np.frombuffer(bytes(bytearray(data)), dtype=self._type(tensor)).reshape(self.shape(index))

    def _type(self, tensor: Any) -> Any:
        kind = self._names[tensor.type]
        if kind not in TYPES:
            raise CommandError(f"{self._place}: weights of type {kind} are not supported")
        return TYPES[kind]

    def is_float(self, index: int) -> bool:
        """Whether a tensor holds float32."""
        return bool(self._names[self._tensor(index).type] == "FLOAT32")

    def _scales(self, tensor: Any, axis: int | None = None) -> tuple[str, str]:
        """Scale and zero point as constants: single numbers, or lists along an axis."""
        scale = np.asarray(tensor.quantization.scale, dtype=np.float32)
        zero = np.asarray(tensor.quantization.zeroPoint).astype(self._type(tensor))
        if len(scale) == 1 or axis is None:
            scale, zero = scale[0], zero[0]
        return self._build.constant(scale), self._build.constant(zero, zero.dtype)

    def weight(self, index: int, turn: tuple[int, ...], axis: int) -> str:
        """A constant operand with permuted axes; `axis` is the axis of per-channel scales afterwards."""
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
        """A result: activated, rounded to the tensor's integers, and stored with its layout."""
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

    def nodes(self, kind: str, count: int, *inputs: str, **attributes: Any) -> list[str]:
        """A node of the graph with several outputs."""
        return self._build.nodes(kind, count, *inputs, **attributes)

    def choice(self, condition: str, yes: Callable[[], str], no: Callable[[], str]) -> str:
        """A node that computes one of two float32 values."""
        return self._build.choice(condition, yes, no)


def _handle(operator: Any) -> str:
    name = operator.builtinOptions.sharedName
    return str(name.decode(errors="replace") if isinstance(name, bytes) else name)


def _port(name: str) -> str:
    """A variable's name as an input of the graph."""
    return "state_" + re.sub(r"\W+", "_", name).strip("_")
