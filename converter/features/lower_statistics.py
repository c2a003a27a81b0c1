"""The features of `features.py` as standard ONNX operators, made known to skl2onnx by `register`.

The graph computes in float64 for any input type, and returns the type that skl2onnx expects.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.features.lower_writer import Writer
from converter.features.statistics import POWER_FLOOR, WindowFeatures


def register() -> None:
    """Make the features known to skl2onnx. May be called again."""
    from skl2onnx import update_registered_converter  # noqa: PLC0415 - heavy

    update_registered_converter(WindowFeatures, "EdgeWindowFeatures", _shape, _convert, overwrite=True)


def _shape(operator: Any) -> None:
    features: WindowFeatures = operator.raw_operator
    kind = operator.inputs[0].type
    columns = features.window_shape_[1] * (len(features.statistics) + len(features.bands))
    operator.outputs[0].type = type(kind)([kind.shape[0], columns])


def _convert(scope: Any, operator: Any, container: Any) -> None:
    from onnx import TensorProto  # noqa: PLC0415 - heavy
    from skl2onnx.common.data_types import DoubleTensorType  # noqa: PLC0415

    features: WindowFeatures = operator.raw_operator
    write = Writer(scope, container)
    x = operator.inputs[0].full_name
    if not features.takes_windows_:
        x = write.node("Reshape", x, write.constant([0, *features.window_shape_], np.int64))
    x = write.node("Cast", x, to=TensorProto.DOUBLE)
    blocks = [_STATISTIC[name](write, x) for name in features.statistics]
    if len(features.bands):
        blocks += _powers(write, x, features)
    double = isinstance(operator.outputs[0].type, DoubleTensorType)
    joined = write.node("Concat", *blocks, axis=1)
    target = TensorProto.DOUBLE if double else TensorProto.FLOAT
    write.node("Cast", joined, output=operator.outputs[0].full_name, to=target)


def _range(write: Writer, x: str) -> str:
    return write.node("Sub", write.reduce("ReduceMax", x), write.reduce("ReduceMin", x))


def _constant_channel(write: Writer, x: str) -> str:
    return write.node("Equal", _range(write, x), write.constant(0.0))


def _deviation(write: Writer, x: str) -> str:
    return write.node("Sub", x, write.reduce("ReduceMean", x, keep=1))


def _variance(write: Writer, deviation: str) -> str:
    return write.reduce("ReduceMean", write.node("Mul", deviation, deviation))


def _std(write: Writer, x: str) -> str:
    root = write.node("Sqrt", _variance(write, _deviation(write, x)))
    return write.node("Where", _constant_channel(write, x), write.constant(0.0), root)


def _rms(write: Writer, x: str) -> str:
    return write.node("Sqrt", write.reduce("ReduceMean", write.node("Mul", x, x)))


def _moment(order: int, shift: float) -> Callable[[Writer, str], str]:
    def lower(write: Writer, x: str) -> str:
        constant = _constant_channel(write, x)
        deviation = _deviation(write, x)
        variance = write.node("Where", constant, write.constant(1.0), _variance(write, deviation))
        root = write.node("Unsqueeze", write.node("Sqrt", variance), write.constant([1], np.int64))
        ratio = write.node("Div", deviation, root)
        power = ratio
        for _ in range(order - 1):
            power = write.node("Mul", power, ratio)
        moment = write.node("Sub", write.reduce("ReduceMean", power), write.constant(shift))
        return write.node("Where", constant, write.constant(0.0), moment)

    return lower


def _zero_crossings(write: Writer, x: str) -> str:
    from onnx import TensorProto  # noqa: PLC0415 - heavy

    sign = write.node("Cast", write.node("GreaterOrEqual", x, write.constant(0.0)), to=TensorProto.DOUBLE)
    axis = write.constant([1], np.int64)
    end = write.constant([np.iinfo(np.int64).max], np.int64)
    later = write.node("Slice", sign, write.constant([1], np.int64), end, axis)
    earlier = write.node("Slice", sign, write.constant([0], np.int64), write.constant([-1], np.int64), axis)
    return write.reduce("ReduceSum", write.node("Abs", write.node("Sub", later, earlier)))


def _angles(write: Writer, length: int, bins: NDArray[np.int64]) -> str:
    """The angles of the transform, `[length, bins]`. As nodes they are a few bytes; a session computes them once."""
    from onnx import TensorProto  # noqa: PLC0415 - heavy

    time = write.constant(np.arange(length)[:, None], np.int64)
    turns = write.node("Mod", write.node("Mul", time, write.constant(bins, np.int64)), write.constant(length, np.int64))
    return write.node("Mul", write.node("Cast", turns, to=TensorProto.DOUBLE), write.constant(2.0 * np.pi / length))


def _powers(write: Writer, x: str, features: WindowFeatures) -> list[str]:
    bins, weight = features.spectrum()
    if not weight.size:  # the bands lie between two bins
        zero = write.node("Mul", write.reduce("ReduceMean", x), write.constant(0.0))
        return [zero] * len(features.bands)
    by_channel = write.node("Transpose", x, perm=[0, 2, 1])
    angle = _angles(write, features.window_shape_[0], bins)
    squares = []
    for wave in ("Cos", "Sin"):
        part = write.node("MatMul", by_channel, write.node(wave, angle))
        squares.append(write.node("Mul", part, part))
    power = write.node("MatMul", write.node("Add", *squares), write.constant(weight))
    mean_square = write.reduce("ReduceMean", write.node("Mul", x, x))
    floor = write.node("Unsqueeze", write.node("Mul", mean_square, write.constant(POWER_FLOOR)),
                       write.constant([2], np.int64))  # fmt: skip
    clean = write.node("Where", write.node("LessOrEqual", power, floor), write.constant(0.0), power)
    by_band = write.node("Transpose", clean, perm=[0, 2, 1])
    columns = features.window_shape_[1] * len(features.bands)
    return [write.node("Reshape", by_band, write.constant([0, columns], np.int64))]


_STATISTIC: dict[str, Callable[[Writer, str], str]] = {
    "mean": lambda write, x: write.reduce("ReduceMean", x),
    "std": _std,
    "rms": _rms,
    "min": lambda write, x: write.reduce("ReduceMin", x),
    "max": lambda write, x: write.reduce("ReduceMax", x),
    "ptp": _range,
    "skewness": _moment(3, 0.0),
    "kurtosis": _moment(4, 3.0),
    "zero_crossings": _zero_crossings,
}
