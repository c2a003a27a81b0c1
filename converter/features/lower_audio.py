"""The features of `audio.py` as standard ONNX operators, made known to skl2onnx by `register`.

The graph computes in float64. Matrices (Fourier, mel filters, cosine transform) are written as the few nodes that
compute them: the file stays small, and a session computes them once, when it is created. A transform whose length is a
power of two is a `DFT`; any other is a matrix product, which is faster and rounds less.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from converter.features.audio import MFCC, SPECTRAL_FLOOR, STFT, MelSpectrogram
from converter.features.lower_writer import Writer
from converter.features.mel import hz_to_mel, mel_to_hz


def register() -> None:
    """Make the features known to skl2onnx. May be called again."""
    from skl2onnx import update_registered_converter  # noqa: PLC0415 - heavy

    for kind in (STFT, MelSpectrogram, MFCC):
        update_registered_converter(kind, f"Edge{kind.__name__}", _shape, _convert, overwrite=True)


def _shape(operator: Any) -> None:
    audio: STFT = operator.raw_operator
    kind = operator.inputs[0].type
    blocks = len(audio.summary) or audio.n_frames_
    operator.outputs[0].type = type(kind)([kind.shape[0], audio.window_shape_[1] * blocks * len(audio.column_names())])


def _convert(scope: Any, operator: Any, container: Any) -> None:
    from onnx import TensorProto  # noqa: PLC0415 - heavy
    from skl2onnx.common.data_types import DoubleTensorType  # noqa: PLC0415

    audio: STFT = operator.raw_operator
    write = Writer(scope, container)
    x = operator.inputs[0].full_name
    if not audio.takes_windows_:
        x = write.node("Reshape", x, write.constant([0, *audio.window_shape_], np.int64))
    x = write.node("Transpose", write.node("Cast", x, to=TensorProto.DOUBLE), perm=[0, 2, 1])
    frames = _frames(write, x, audio)
    values = _columns(write, _power(write, frames, audio), audio)
    if audio.summary:
        parts = [_SUMMARY[name](write, values) for name in audio.summary]
        values = write.node("Concat", *parts, axis=2)
    by_frame = write.node("Transpose", values, perm=[0, 2, 1, 3])
    blocks = len(audio.summary) or audio.n_frames_
    width = audio.window_shape_[1] * blocks * len(audio.column_names())
    flat = write.node("Reshape", by_frame, write.constant([-1, width], np.int64))
    double = isinstance(operator.outputs[0].type, DoubleTensorType)
    write.node(
        "Cast", flat, output=operator.outputs[0].full_name, to=TensorProto.DOUBLE if double else TensorProto.FLOAT
    )


def _frames(write: Writer, x: str, audio: STFT) -> str:
    """`[n, channels, length]` -> weighted frames `[n, channels, frames, frame_length]`."""
    if audio.preemphasis:
        last = write.constant([2], np.int64)
        earlier = write.node("Slice", x, write.constant([0], np.int64), write.constant([-1], np.int64), last)
        earlier = write.node("Pad", earlier, write.constant([0, 0, 1, 0, 0, 0], np.int64))
        x = write.node("Sub", x, write.node("Mul", earlier, write.constant(audio.preemphasis)))
    before, after = audio.pads()
    if before or after:
        mode = audio.padding if audio.padding in ("reflect", "edge") else "constant"
        x = write.node("Pad", x, write.constant([0, 0, before, 0, 0, after], np.int64), mode=mode)
    reach = write.range(audio.frame_length)
    at = write.node("Add", write.constant(audio.starts()[:, None], np.int64), reach)
    frames = write.node("Gather", x, at, axis=2)
    weights = audio.weights()
    return frames if (weights == 1.0).all() else write.node("Mul", frames, write.constant(weights))


def _power(write: Writer, frames: str, audio: STFT) -> str:
    """The power of each bin, `[n, channels, frames, bins]`; rounding noise is zero."""
    n = audio.n_fft
    squares = _by_dft(write, frames, audio) if n & (n - 1) == 0 else _by_product(write, frames, audio)
    total = write.sum(write.node("Mul", frames, frames), -1, keep=1)
    floor = write.node("Mul", total, write.constant(SPECTRAL_FLOOR * n))
    power = write.node("Where", write.node("LessOrEqual", squares, floor), write.constant(0.0), squares)
    if audio.power == 2:
        return write.node("Mul", power, write.constant(1.0 / n)) if audio.per_bin else power
    root = write.node("Sqrt", power)
    return write.node("Mul", root, write.constant(1.0 / n)) if audio.per_bin else root


def _by_dft(write: Writer, frames: str, audio: STFT) -> str:
    rows = write.node("Reshape", frames, write.constant([-1, audio.frame_length, 1], np.int64))
    transform = write.node("DFT", rows, write.constant(audio.n_fft, np.int64), axis=1, onesided=1)
    squares = write.sum(write.node("Mul", transform, transform), -1)
    shape = [-1, audio.window_shape_[1], audio.n_frames_, audio.n_fft // 2 + 1]
    return write.node("Reshape", squares, write.constant(shape, np.int64))


def _by_product(write: Writer, frames: str, audio: STFT) -> str:
    from onnx import TensorProto  # noqa: PLC0415 - heavy

    n = audio.n_fft
    time = write.node("Unsqueeze", write.range(audio.frame_length), write.constant([1], np.int64))
    turns = write.node("Mod", write.node("Mul", time, write.range(n // 2 + 1)), write.constant(n, np.int64))
    angle = write.node("Mul", write.node("Cast", turns, to=TensorProto.DOUBLE), write.constant(2.0 * np.pi / n))
    parts = [write.node("MatMul", frames, write.node(wave, angle)) for wave in ("Cos", "Sin")]
    return write.node("Add", *(write.node("Mul", part, part) for part in parts))


def _columns(write: Writer, power: str, audio: STFT) -> str:
    if not isinstance(audio, MelSpectrogram):
        return _logarithm(write, power, audio)
    mel = _logarithm(write, write.node("MatMul", power, _filters(write, audio)), audio)
    if not isinstance(audio, MFCC):
        return mel
    values = write.node("MatMul", mel, _cepstrum(write, audio))
    if not audio.energy:
        return values
    energy = _natural(write, write.sum(power, -1, keep=1), "ln_nonzero", audio.floor)
    axis, end = write.constant([3], np.int64), write.constant([audio.coefficients], np.int64)
    return write.node("Concat", energy, write.node("Slice", values, write.constant([1], np.int64), end, axis), axis=3)


def _filters(write: Writer, audio: MelSpectrogram) -> str:
    """The formula of `mel.mel_filters`; only the corners are stored."""
    from onnx import TensorProto  # noqa: PLC0415 - heavy

    high_hz = audio.high_hz or audio.rate_hz / 2.0
    ends = hz_to_mel([audio.low_hz, high_hz], audio.scale)
    corners = mel_to_hz(np.linspace(ends[0], ends[1], audio.bands + 2), audio.scale)
    bins = write.node("Cast", write.range(audio.n_fft // 2 + 1), to=TensorProto.DOUBLE)
    position = write.node("Unsqueeze", bins, write.constant([1], np.int64))
    if audio.scale == "htk_bins":
        corners_at = np.floor((audio.n_fft + 1) * corners / audio.rate_hz)
    else:
        corners_at = corners
        position = write.node("Mul", position, write.constant(audio.rate_hz))
        position = write.node("Div", position, write.constant(float(audio.n_fft)))
    low, middle, high = (write.constant(at) for at in (corners_at[:-2], corners_at[1:-1], corners_at[2:]))
    rising = write.node("Div", write.node("Sub", position, low), write.node("Sub", middle, low))
    falling = write.node("Div", write.node("Sub", high, position), write.node("Sub", high, middle))
    zero = write.constant(0.0)
    if audio.scale == "htk_bins":
        first = write.node("And", write.node("GreaterOrEqual", position, low), write.node("Less", position, middle))
        second = write.node("And", write.node("GreaterOrEqual", position, middle), write.node("Less", position, high))
        weights = write.node("Where", second, falling, write.node("Where", first, rising, zero))
    else:
        weights = write.node("Max", zero, write.node("Min", rising, falling))
    if audio.norm == "slaney":
        weights = write.node("Mul", weights, write.constant(2.0 / (corners[2:] - corners[:-2])))
    return weights


def _cepstrum(write: Writer, audio: MFCC) -> str:
    """The formula of `mel.cosine_transform`; only the height of each column is stored, lifter included."""
    half = write.constant(np.arange(audio.bands)[:, None] + 0.5)
    angle = write.node("Mul", half, write.constant(np.pi / audio.bands * np.arange(audio.coefficients)))
    height = np.full(audio.coefficients, math.sqrt(2.0 / audio.bands))
    height[0] = math.sqrt(1.0 / audio.bands)
    return write.node("Mul", write.node("Cos", angle), write.constant(height * audio.lifted()))


def _logarithm(write: Writer, values: str, audio: STFT) -> str:
    if audio.log == "none":
        return values
    if audio.log != "db":
        return _natural(write, values, audio.log, audio.floor)
    if audio.power == 1:
        values = write.node("Mul", values, values)
    clipped = write.node("Max", values, write.constant(audio.floor))
    db = write.node("Mul", write.node("Log", clipped), write.constant(10.0 / math.log(10.0)))
    largest = write.node("ReduceMax", db, axes=[2, 3], keepdims=1)
    if audio.range_db is not None:
        db = write.node("Max", db, write.node("Sub", largest, write.constant(audio.range_db)))
    return write.node("Sub", db, largest if audio.reference == "max" else write.constant(audio.reference_db))


def _natural(write: Writer, values: str, kind: str, floor: float) -> str:
    least = write.constant(floor)
    if kind == "ln_offset":
        return write.node("Log", write.node("Add", values, least))
    if kind == "ln":
        return write.node("Log", write.node("Max", values, least))
    return write.node("Log", write.node("Where", write.node("Equal", values, write.constant(0.0)), least, values))


def _over_frames(kind: str) -> Callable[[Writer, str], str]:
    return lambda write, values: write.node(kind, values, axes=[2], keepdims=1)


def _std(write: Writer, values: str) -> str:
    largest, smallest = _over_frames("ReduceMax")(write, values), _over_frames("ReduceMin")(write, values)
    constant = write.node("Equal", write.node("Sub", largest, smallest), write.constant(0.0))
    deviation = write.node("Sub", values, _over_frames("ReduceMean")(write, values))
    root = write.node("Sqrt", _over_frames("ReduceMean")(write, write.node("Mul", deviation, deviation)))
    return write.node("Where", constant, write.constant(0.0), root)


_SUMMARY: dict[str, Callable[[Writer, str], str]] = {
    "mean": _over_frames("ReduceMean"),
    "std": _std,
    "min": _over_frames("ReduceMin"),
    "max": _over_frames("ReduceMax"),
}
