"""Where a quantised form loses precision: compare every tensor of the float graph with the same tensor of the form.

Both graphs run on the same rows with their inner tensors as outputs. Where the form rounds a tensor, the rounded tensor
is compared, as the next layer reads it. Errors accumulate from layer to layer. Tensors that are outputs keep
onnxruntime from fusing some operators, so the figures describe the arithmetic of the graph, not the last bit of the
kernels on a device.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from converter.graph.build import serialize
from converter.session import session_of, start_of
from edge_runtime.bundle.manifest import INPUT_NAME, State
from edge_runtime.readings import Floats

_ROWS = 64  # with more rows the power of a tensor changes by less than a tenth of a decibel
_AT_ONCE = 16
_ROUNDED = "_DequantizeLinear_Output"  # the suffix that onnxruntime's quantiser gives to a rounded tensor


@dataclass(frozen=True, slots=True)
class Layer:
    """One tensor: its node, its operator, and the ratio of error power to signal power."""

    name: str
    operator: str
    noise: float

    @property
    def sqnr_db(self) -> float:
        """The signal-to-error ratio in decibels; infinite without error."""
        return -10.0 * math.log10(self.noise) if self.noise > 0.0 else math.inf


def layer_errors(
    exact: onnx.ModelProto, form: onnx.ModelProto, rows: Floats, states: Sequence[State] = (), *, together: bool = True
) -> tuple[Layer, ...]:
    """Compare two graphs tensor by tensor.

    Args:
        exact: the float graph.
        form: the quantised one, with the names of the first.
        rows: windows to run.
        states: of a recurrent model, at the start of a stream.
        together: whether rows may run in one batch.

    Returns:
        the tensors that both have, in the order of the float graph.
    """
    makers = {name: node for node in exact.graph.node for name in node.output if name}
    there = {name for node in form.graph.node for name in node.output}
    pairs = {name: f"{name}{_ROUNDED}" if f"{name}{_ROUNDED}" in there else name for name in makers}
    pairs = {name: other for name, other in pairs.items() if other in there}
    sessions = session_of(_opened(exact, pairs)), session_of(_opened(form, pairs.values()))
    start = start_of(states)
    power = dict.fromkeys(pairs, 0.0)
    error = dict.fromkeys(pairs, 0.0)
    picked = rows[:: max(1, len(rows) // _ROWS)][:_ROWS]
    step = _AT_ONCE if together else 1
    for begin in range(0, len(picked), step):
        piece = picked[begin : begin + step]
        feeds: dict[str, Any] = {INPUT_NAME: piece}
        for name, state in start.items():
            feeds[name] = np.zeros((len(piece), *state.shape), dtype=np.float32)
        right, found = sessions[0].run(list(pairs), feeds), sessions[1].run(list(pairs.values()), feeds)
        for name, one, other in zip(pairs, right, found, strict=True):
            if getattr(one, "dtype", np.dtype(object)).kind != "f" or one.shape != other.shape:
                power.pop(name, None)
            elif name in power:
                wide = one.astype(np.float64)
                power[name] += float(np.sum(wide**2))
                error[name] += float(np.sum((wide - other.astype(np.float64)) ** 2))
    return tuple(
        Layer(makers[name].name or name, makers[name].op_type, error[name] / total)
        for name, total in power.items()
        if total > 0.0
    )


def added_noise(exact: onnx.ModelProto, layers: Sequence[Layer]) -> dict[str, float]:
    """For each node, the noise of its result less that of its noisiest input: the node's own contribution."""
    noise = {layer.name: layer.noise for layer in layers}
    makers = {name: node.name or name for node in exact.graph.node for name in node.output}
    return {
        node.name: noise[node.name] - max((noise.get(makers.get(name, ""), 0.0) for name in node.input), default=0.0)
        for node in exact.graph.node
        if node.name in noise
    }


def _opened(model: onnx.ModelProto, names: Any) -> bytes:
    """The model with some inner tensors as additional outputs."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    known = {output.name for output in copy.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    return serialize(copy)


def worst_of(layers: Sequence[Layer], count: int = 5) -> list[Layer]:
    """The layers with the largest errors, the worst first; layers without error are left out."""
    return sorted((layer for layer in layers if layer.noise > 0.0), key=lambda layer: -layer.noise)[:count]
