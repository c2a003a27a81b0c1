"""The arrangement of a window in a model's input tensor: the same in numpy, for the source, and in the graph."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.spec import Spec
from edge_runtime.errors import CommandError
from edge_runtime.readings import Floats


@dataclass(frozen=True, slots=True)
class Layout:
    """From the bundle's window to the model's input.

    Attributes:
        window: the bundle's window or frame, without the batch axis.
        shape: of the model's input, as a window; None for frames.
        perm: the permutation of the axes, batch first; None without one.
        wanted: the model's input, without the batch axis.
        scale: values are multiplied by it,
        offset: and this is added.
    """

    window: tuple[int, ...]
    shape: tuple[int, ...] | None
    perm: tuple[int, ...] | None
    wanted: tuple[int, ...]
    scale: float = 1.0
    offset: float = 0.0

    def arrange(self, windows: Floats, kind: Any) -> NDArray[Any]:
        """Windows in the model's arrangement, in numpy."""
        value = windows.reshape(len(windows), *self.window)
        if (self.scale, self.offset) != (1.0, 0.0):
            value = value * np.float32(self.scale) + np.float32(self.offset)
        if self.perm is not None:
            value = value.transpose(self.perm)
        value = value.reshape(len(windows), *self.wanted)
        if np.dtype(kind).kind in "iu":
            limits = np.iinfo(kind)
            value = np.clip(np.rint(value), limits.min, limits.max)
        return value.astype(kind)


def layout_of(dims: tuple[int, ...], spec: Spec, place: str) -> Layout:
    """Find the arrangement of the specification's window in an input.

    Args:
        dims: the input's sizes without the batch axis; 0 where the file leaves one open.
        spec: the specification.
        place: the model file, for messages.

    Raises:
        CommandError: the specification lacks open sizes.
    """
    if spec.frame is not None:
        return _frame(dims, spec, place)
    length, channels = spec.length, len(spec.channel)
    if 0 in dims:
        dims = _filled(dims, length, channels, spec, place=place)
    size = int(np.prod(dims))
    squeezed = tuple(size for size in dims if size != 1) or (1,)
    wants = spec.model.layout
    if not channels and (spec.window is not None or len(squeezed) < 2) and size % length == 0:
        channels = size // length
    if length * channels == size and (spec.window is not None or spec.channel or len(squeezed) < 2):
        swapped = wants == "channel_first" or (
            wants is None and squeezed == (channels, length) and squeezed != (length, channels) and length > 1
        )
        flat = len(squeezed) < 2 and not swapped
        shape: tuple[int, ...] = (size,) if flat else (length, channels)
        return Layout((length, channels), shape, (0, 2, 1) if swapped else None, dims)
    if len(squeezed) == 2 and not spec.channel and spec.window is None:
        first, second = squeezed
        if wants == "channel_first":
            return Layout((second, first), (second, first), (0, 2, 1), dims)
        return Layout((first, second), (first, second), None, dims)
    shape = squeezed if len(squeezed) != 2 or wants != "channel_first" else squeezed[::-1]
    return Layout(shape, shape, None, dims)


def _filled(dims: tuple[int, ...], length: int, channels: int, spec: Spec, *, place: str) -> tuple[int, ...]:
    """Open sizes, from the specification."""
    known = int(np.prod([size for size in dims if size]))
    if dims.count(0) == 1 and channels and (length * channels) % known == 0:
        return tuple(size or length * channels // known for size in dims)
    if dims.count(0) == 2 and len(dims) == 2 and channels:
        return (channels, length) if spec.model.layout == "channel_first" else (length, channels)
    raise CommandError(
        f"{place}: the input leaves sizes open ({', '.join(str(size or '?') for size in dims)}): "
        "expected [[channel]] and [window] in the specification to give them"
    )


def _frame(dims: tuple[int, ...], spec: Spec, place: str) -> Layout:
    frame = spec.frame
    assert frame is not None
    shape, size = frame.shape, int(np.prod(frame.shape))
    perm = None
    arranged = shape
    has, wants = frame.layout, spec.model.layout
    if len(shape) == 3 and (has, wants) in (("hwc", "chw"), ("chw", "hwc")):
        perm = (0, 3, 1, 2) if wants == "chw" else (0, 2, 3, 1)
        arranged = tuple(shape[axis - 1] for axis in perm[1:])
    if 0 in dims:
        dims = arranged if len(dims) == len(arranged) else tuple(dims)
        dims = dims if 0 not in dims else _one_open(dims, size, place)
    if int(np.prod(dims)) != size:
        raise CommandError(
            f"{place}: frame.shape: the specification says {list(shape)}, which makes {size} values; "
            f"the model takes {list(dims)}"
        )
    return Layout(shape, None, perm, dims, frame.scale, frame.offset)


def _one_open(dims: tuple[int, ...], size: int, place: str) -> tuple[int, ...]:
    known = int(np.prod([item for item in dims if item]))
    if dims.count(0) != 1 or size % known:
        raise CommandError(f"{place}: the input leaves sizes open, and the frame does not fill them")
    return tuple(item or size // known for item in dims)


def squash(raw: NDArray[np.float64], activation: str) -> NDArray[np.float64]:
    """A model's output as a probability for each class; a single column belongs to the second class."""
    if activation == "softmax" and raw.shape[1] > 1:
        power = np.exp(raw - raw.max(axis=1, keepdims=True))
        return np.asarray(power / power.sum(axis=1, keepdims=True), dtype=np.float64)
    scores = 1.0 / (1.0 + np.exp(-raw)) if activation in ("sigmoid", "softmax") else raw
    return np.concatenate([1.0 - scores, scores], axis=1) if scores.shape[1] == 1 else scores
