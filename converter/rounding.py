"""The comparison with a quantised source: an answer that differs by one rounding step counts as equal.

int8 kernels round each layer to whole steps, and two libraries may round a tie differently. The difference grows
through later layers and changes a label where two scores are nearly equal, so labels alone prove nothing. Two things
are checked: the metric, where the truth is known, and every score in steps of the output: half of the rows within one
step, 99 of 100 within `_STEPS`. Rows beyond one step are counted and named.

Weak point: the step is that of the last rounding in the graph. If the last layers of a source are float32, its scores
move by less than a step.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from converter.load.source import Answer

_STEPS = 4.0
_SLACK = 1e-3  # of a step: float32 holds multiples of it to this precision
_ENDS = ("scores", "value")


@dataclass(frozen=True, slots=True, eq=False)
class Steps:
    """The difference of a converted form from its quantised source, in steps of the output.

    Attributes:
        step: one step, in the units of the scores.
        rows: for each row, the largest difference of its scores.
    """

    step: float
    rows: NDArray[np.float64]

    @property
    def is_rounding(self) -> bool:
        """Whether the differences are no more than rounding."""
        if not len(self.rows):
            return True
        middle, most = np.quantile(self.rows, [0.5, 0.99], method="higher")
        return bool(middle <= 1.0 + _SLACK and most <= _STEPS + _SLACK)

    @property
    def any_beyond(self) -> bool:
        """Whether a row differs by more than one step."""
        return bool((self.rows > 1.0 + _SLACK).any())

    def __str__(self) -> str:
        off = int(np.sum(self.rows > 1.0 + _SLACK))
        return (
            f"{off:,} of {len(self.rows):,} rows differ by more than one step of rounding ({self.step:.3g}), "
            f"by {self.rows.max(initial=0.0):.3g} steps at most"
        )


def steps_between(model: onnx.ModelProto, found: Answer, source: Answer) -> Steps | None:
    """Measure a converted model in steps of its output; None where nothing is rounded before the output."""
    step = step_of(model)
    one, other = (each.scores if each.scores is not None else each.value for each in (found, source))
    if step is None or one is None or other is None:
        return None
    with np.errstate(invalid="ignore", over="ignore"):
        gap = np.abs(one.astype(np.float64) - other).reshape(len(one), -1).max(axis=1, initial=0.0) / step
    return Steps(step, np.where(np.isfinite(gap), gap, np.inf))


def step_of(model: onnx.ModelProto) -> float | None:
    """The largest scale of the roundings directly before scores or values; None for an anomaly."""
    makers = {name: node for node in model.graph.node for name in node.output}
    scales = {tensor.name: tensor for tensor in model.graph.initializer}
    todo: list[str] = [output.name for output in model.graph.output if output.name in _ENDS]
    seen: set[str] = set()
    found: list[float] = []
    while todo:
        name = todo.pop()
        node = makers.get(name)
        if node is None or name in seen:
            continue
        seen.add(name)
        if node.op_type == "DequantizeLinear":
            if node.input[0] in makers and node.input[1] in scales:  # a constant is dequantised exactly
                found.append(float(numpy_helper.to_array(scales[node.input[1]]).max()))
            continue
        todo += _data_inputs(node)
    return max(found, default=None)


def _data_inputs(node: onnx.NodeProto) -> Sequence[str]:
    """The inputs whose values reach the output without amplification; none where they may grow."""
    return node.input if node.op_type in _KEEPS else ()


# Operators that neither enlarge a difference of their inputs nor mix it with weights.
_KEEPS = frozenset({
    "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Cast", "Concat", "Slice", "Gather", "Sub",
    "Softmax", "Sigmoid", "Clip", "Max", "Min",
})  # fmt: skip
