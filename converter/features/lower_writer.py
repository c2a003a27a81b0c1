"""Writing nodes of feature code into a graph of skl2onnx, at the pinned opset."""

from typing import Any

import numpy as np


class Writer:
    """Writes nodes into a skl2onnx container under names that are free."""

    def __init__(self, scope: Any, container: Any) -> None:
        self._scope, self._container = scope, container

    def constant(self, value: Any, kind: type[Any] = np.float64) -> str:
        """An initialiser."""
        from onnx import numpy_helper  # noqa: PLC0415 - heavy

        name = str(self._scope.get_unique_variable_name("wf_c"))
        self._container.initializers.append(numpy_helper.from_array(np.asarray(value, dtype=kind), name))
        return name

    def node(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """A node with one output, whose name is returned."""
        result = output or str(self._scope.get_unique_variable_name("wf_t"))
        name = self._scope.get_unique_operator_name(f"wf_{kind}")
        versions = {"ReduceSum": 13, "Cast": 13, "Max": 13, "Pow": 15, "Where": 16, "GreaterOrEqual": 16,
                    "LessOrEqual": 16, "Slice": 13, "Concat": 13, "Cos": 7, "Sin": 7, "And": 7, "Range": 11,
                    "DFT": 17}  # fmt: skip
        self._container.add_node(
            kind, list(inputs), [result], name=name, op_version=versions.get(kind, 13), **attributes
        )
        return result

    def reduce(self, kind: str, x: str, keep: int = 0) -> str:
        """Over the time axis."""
        if kind == "ReduceSum":
            return self.node(kind, x, self.constant([1], np.int64), keepdims=keep)
        return self.node(kind, x, axes=[1], keepdims=keep)

    def sum(self, x: str, axis: int, keep: int = 0) -> str:
        """Over one axis."""
        return self.node("ReduceSum", x, self.constant([axis], np.int64), keepdims=keep)

    def range(self, end: int) -> str:
        """0, 1, ..., end - 1 as int64: three numbers in the file."""
        return self.node("Range", *(self.constant(value, np.int64) for value in (0, end, 1)))
