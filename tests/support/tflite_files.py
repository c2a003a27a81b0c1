"""Small TFLite files, written by the schema that the interpreter's package brings: no TensorFlow is needed."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


class TfliteFile:
    """One file in the making; tensors are spoken of by their numbers."""

    def __init__(self) -> None:
        from ai_edge_litert import schema_py_generated  # noqa: PLC0415 - an extra

        self._schema = schema_py_generated
        self._model = self._schema.ModelT()
        self._model.version, self._model.buffers = 3, [self._schema.BufferT()]
        self._model.operatorCodes, self._model.subgraphs = [], []

    def graph(self) -> Any:
        """A new graph of the file; the first is the one that is run."""
        graph = self._schema.SubGraphT()
        graph.tensors, graph.operators, graph.inputs, graph.outputs = [], [], [], []
        self._model.subgraphs.append(graph)
        return graph

    def tensor(self, graph: Any, name: str, kind: str, shape: Sequence[int], *, value: Any = None) -> int:
        """A tensor, constant where it has a value."""
        tensor = self._schema.TensorT()
        tensor.name, tensor.shape, tensor.type = name, list(shape), getattr(self._schema.TensorType, kind)
        tensor.buffer = 0
        if value is not None:
            buffer = self._schema.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(value).tobytes(), np.uint8)
            tensor.buffer = len(self._model.buffers)
            self._model.buffers.append(buffer)
        graph.tensors.append(tensor)
        return len(graph.tensors) - 1

    def quantize(self, graph: Any, index: int, scale: Sequence[float], *, zero: int = 0, axis: int = 0) -> int:
        """Give a tensor its scale, or one for each channel along an axis; returns the tensor."""
        found = self._schema.QuantizationParametersT()
        found.scale, found.zeroPoint = list(scale), [zero] * len(scale)
        found.quantizedDimension = axis
        graph.tensors[index].quantization = found
        return index

    def operator(
        self, graph: Any, kind: str, inputs: Sequence[int], outputs: Sequence[int], *, options: str = "", **values: Any
    ) -> None:
        """An operator, with its options by name."""
        code = self._schema.OperatorCodeT()
        number = getattr(self._schema.BuiltinOperator, kind)
        code.builtinCode, code.deprecatedBuiltinCode, code.version = number, min(number, 127), 1
        self._model.operatorCodes.append(code)
        operator = self._schema.OperatorT()
        operator.opcodeIndex = len(self._model.operatorCodes) - 1
        operator.inputs, operator.outputs = list(inputs), list(outputs)
        if options:
            operator.builtinOptionsType = getattr(self._schema.BuiltinOptions, options)
            operator.builtinOptions = getattr(self._schema, f"{options}T")()
            for name, value in values.items():
                setattr(operator.builtinOptions, name, value)
        graph.operators.append(operator)

    def save(self, path: Path) -> Path:
        """Write it."""
        builder = importlib.import_module("flatbuffers").Builder(1024)  # it comes with the interpreter
        builder.Finish(self._model.Pack(builder), b"TFL3")
        path.write_bytes(bytes(builder.Output()))
        return path
