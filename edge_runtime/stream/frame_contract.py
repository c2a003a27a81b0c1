"""Whole frames against the manifest: refuses values out of range, and fractions where whole numbers are wanted. Pure.

The window is float32, which holds every whole number up to 2^24; a frame of int32 or int64 (tokens, bytes, counters) is
therefore refused where a value is at or beyond it, because two neighbouring numbers would become the same there. Frames
of 8 and 16 bits without a `range` are not checked here: their graph rounds and clips.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from edge_runtime.bundle.manifest import Input
from edge_runtime.readings import Floats
from edge_runtime.stream.contract import Refusal

LARGEST_WHOLE = 2**24 - 1  # float32 has 24 bits of mantissa; 2^24 itself may have been 2^24 + 1
_WIDE = ("int32", "int64")


class FrameContract:
    """The rules for the frames of one model, with the interface of `Contract`.

    Attributes:
        refusals: the refusals of the last `check` that met a bad frame, by reason.
    """

    def __init__(self, wanted: Input) -> None:
        self.low, self.high = limits_of(wanted)
        self._whole = wanted.dtype in _WIDE
        self.refusals: dict[str, Refusal] = {}
        self.rejected: Counter[str] = Counter()
        self.repaired: Counter[str] = Counter()

    def check(
        self, values: Floats, keys: list[str | None], moments: Sequence[float] | None = None
    ) -> NDArray[np.bool_] | None:
        """Judge `[n, *shape]` frames: None when every one is good, else `[n]`, True where good."""
        del keys, moments
        flat = values.reshape(len(values), -1)
        inside = (flat >= self.low) & (flat <= self.high)
        if self._whole:
            inside &= flat == np.rint(flat)
        good: NDArray[np.bool_] = np.logical_and.reduce(inside, axis=1)
        if good.all():
            return None
        self.refusals = {}
        for row in np.flatnonzero(~good).tolist():
            reason = self.reason(flat[row])
            self.rejected[reason] += 1
            number = self.refusals[reason].number + 1 if reason in self.refusals else 1
            self.refusals[reason] = Refusal(row, number)
        return good

    def explain(self, reason: str, frame: Floats) -> str:
        """The expected and the found values, for a frame that is refused for this reason."""
        flat = frame.ravel()
        if reason == "not_finite":
            return f"expected finite numbers, found {flat[~np.isfinite(flat)][0]:g} in the frame"
        if reason == "wrong_type":
            place = int(np.flatnonzero(flat != np.rint(flat))[0])
            return f"expected whole numbers, found {flat[place]:.9g} at number {place} of the frame"
        place = int(np.flatnonzero((flat < self.low) | (flat > self.high))[0])
        return f"expected {self.low:.9g} to {self.high:.9g}, found {flat[place]:.9g} at number {place} of the frame"

    def forget(self, keys: Iterable[str | None]) -> None:
        """Do nothing: frames have no state for each key."""

    def reason(self, frame: Floats) -> str:
        """Why one frame is refused."""
        flat = frame.ravel()
        if not np.isfinite(flat).all():
            return "not_finite"
        return "out_of_range" if ((flat < self.low) | (flat > self.high)).any() else "wrong_type"


def frame_contract(wanted: Input) -> FrameContract | None:
    """The rules for the frames of a bundle; None if there are none, or if the bundle takes channels."""
    if wanted.shape is None or (wanted.dtype not in _WIDE and wanted.range is None):
        return None
    return FrameContract(wanted)


def limits_of(wanted: Input) -> tuple[float, float]:
    """The lowest and the highest value that a frame may hold, as float32."""
    largest = float(LARGEST_WHOLE) if wanted.dtype in _WIDE else float(np.finfo(np.float32).max)
    low, high = wanted.range or (-largest, largest)
    return float(np.float32(max(low, -largest))), float(np.float32(min(high, largest)))
