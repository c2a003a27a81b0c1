"""Readings against the manifest: values that are missing, not finite or out of range never reach the model. Pure.

The manifest's ranges are compared as float32, the type of the model's input, so that a reading exactly at the limit is
inside. With `repair` a missing value may be replaced by the last good one of its channel and key, whichever reading
that came with, and a value out of range by the limit; both are counted too. A missing value of a channel that its
manifest allows to be missing reaches the model as NaN.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from operator import ge, le
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_runtime.bundle.manifest import Channel
from edge_runtime.config.load import RepairTable
from edge_runtime.readings import Floats

MOST_SHOWN = 10  # categories in a message
FEW = 4  # readings; up to so many, a loop over the numbers is cheaper than numpy's calls
FOLD = 64  # readings side by side: numpy compares long rows at ten times the speed of rows of a few channels


class Refusal(NamedTuple):
    """Readings that one `check` refused for one reason: the last of them, and their count."""

    row: int
    number: int


class _Last:
    """The last good value of each channel of one key, each with its own moment; NaN before the first."""

    __slots__ = ("moments", "values")

    def __init__(self, channels: int) -> None:
        self.values: Floats = np.full(channels, np.nan, np.float32)
        self.moments = np.zeros(channels)


class Contract:
    """The rules for the channels of one model.

    Args:
        channels: in the order of the columns given to `check`.
        repair: which faults are corrected instead of rejected.
        max_keys: keys whose last values are kept; at the limit the key that has been silent longest is forgotten.

    Attributes:
        refusals: the refusals of the last `check` that met a bad reading, by reason.
    """

    def __init__(
        self,
        channels: tuple[Channel, ...],
        repair: RepairTable = RepairTable(),  # noqa: B008 - frozen
        *,
        max_keys: int = 10_000,
    ) -> None:
        largest = float(np.finfo(np.float32).max)  # an open side: finite values only
        limits = [channel.limits or (-largest, largest) for channel in channels]
        self._low = np.array([max(low, -largest) for low, _ in limits], np.float32)
        self._high = np.array([min(high, largest) for _, high in limits], np.float32)
        self._lows, self._highs = self._low.tolist(), self._high.tolist()
        self._optional = np.array([channel.missing == "allowed" for channel in channels], np.bool_)
        coded = np.array([bool(channel.categories) for channel in channels], np.bool_)
        self._coded = coded if coded.any() else None
        self._channels = channels
        self._repair = repair
        self._remembers = repair.missing == "last"
        self._max_keys = max_keys
        self._last: dict[str | None, _Last] = {}
        self.refusals: dict[str, Refusal] = {}
        self.rejected: Counter[str] = Counter()
        self.repaired: Counter[str] = Counter()

    def check(
        self, values: Floats, keys: list[str | None], moments: Sequence[float] | None = None
    ) -> NDArray[np.bool_] | None:
        """Judge `[n, channels]` readings, repairing them in place where the configuration says so.

        Args:
            values: one row a reading.
            keys: the stream of each.
            moments: seconds, for `max_age`; None where time does not matter.

        Returns:
            None when every reading is good (the usual and cheapest case), else `[n]`, True where good.
        """
        remembers = self._remembers
        if not remembers and self._are_inside(values):
            return None
        if self._repair.out_of_range == "clip":
            finite = np.isfinite(values)
            clipped = np.clip(values, self._low, self._high)
            if self._coded is not None:  # a category has no nearest valid one: it is not clipped
                clipped = np.where(self._coded, values, clipped)
            self.repaired["repaired_out_of_range"] += int((finite & (clipped != values)).any(axis=1).sum())
            values[finite] = clipped[finite]
        if remembers:
            self._fill_missing(values, keys, [0.0] * len(keys) if moments is None else moments)
        good = np.logical_and.reduce(self._inside(values), axis=1)
        self.refusals = {}
        for row in np.flatnonzero(~good).tolist():
            reason = self._reason(values[row])
            self.rejected[reason] += 1
            number = self.refusals[reason].number + 1 if reason in self.refusals else 1
            self.refusals[reason] = Refusal(row, number)
        return None if good.all() else good

    def explain(self, reason: str, row: Floats) -> str:
        """The expected and the found values, for a reading that is refused for this reason."""
        values = row.tolist()
        names = [channel.name for channel in self._channels]
        if reason == "missing_channel":
            wanted_names = zip(names, values, self._optional.tolist(), strict=True)
            missing = [name for name, value, optional in wanted_names if math.isnan(value) and not optional]
            return "no " + ", ".join(f"`{name}`" for name in missing)
        found = zip(names, values, self._lows, self._highs, self._channels, strict=True)
        for name, value, low, high, channel in found:
            if channel.categories:
                if not math.isnan(value) and (not low <= value <= high or value % 1.0):
                    known = ", ".join(channel.categories[:MOST_SHOWN])
                    return f"`{name}`: expected one of {known}, found another"
            elif not low <= value <= high and not math.isnan(value):
                wanted = f"{_shown(low)} to {_shown(high)}" if math.isfinite(value) else "a finite number"
                return f"`{name}`: expected {wanted}, found {_shown(value)}"
        return ""

    def _are_inside(self, values: Floats) -> bool:
        if len(values) <= FEW and self._coded is None:
            for row in values.tolist():  # noqa: SIM110 - a generator costs half as much again; NaN is on neither side
                if not (all(map(le, self._lows, row)) and all(map(ge, self._highs, row))):
                    return False
            return True
        whole = len(values) // FOLD * FOLD
        if whole and self._coded is None and self._extremes_are_inside(values[:whole]):
            values = values[whole:]
        return bool(self._inside(values).all())

    def _extremes_are_inside(self, values: Floats) -> bool:
        """Whether the least and the largest value of each channel are inside; NaN is neither."""
        folded = np.ascontiguousarray(values).reshape(-1, FOLD * values.shape[1])
        low, high = np.minimum.reduce(folded), np.maximum.reduce(folded)
        shape = (FOLD, values.shape[1])
        return bool((low.reshape(shape) >= self._low).all() and (high.reshape(shape) <= self._high).all())

    def forget(self, keys: Iterable[str | None]) -> None:
        """Drop the last values of forgotten keys."""
        for key in keys:
            self._last.pop(key, None)

    def _fill_missing(self, values: Floats, keys: list[str | None], moments: Sequence[float]) -> None:
        """Repair row by row, so that readings of one batch are repaired as if they had arrived singly."""
        for row, (key, moment) in enumerate(zip(keys, moments, strict=True)):
            last = self._last.pop(key, None)
            reading = values[row]
            good = self._good_channels(reading)
            if last is None:
                last = _Last(len(reading))
                if len(self._last) >= self._max_keys:
                    del self._last[next(iter(self._last))]
            else:
                fill = np.isnan(reading) & ~np.isnan(last.values)
                if self._repair.max_age is not None:
                    fill &= np.abs(moment - last.moments) <= self._repair.max_age
                if fill.any():
                    reading[fill] = last.values[fill]
                    self.repaired["repaired_missing"] += 1
            last.values[good] = reading[good]
            last.moments[good] = moment
            self._last[key] = last  # at the end: the most recent

    def _inside(self, values: Floats) -> NDArray[np.bool_]:
        """Which values may reach the model."""
        inside = (values >= self._low) & (values <= self._high)
        if self._coded is not None:
            inside &= ~self._coded | (values == np.rint(values))
        return np.asarray(inside | (np.isnan(values) & self._optional))

    def _good_channels(self, reading: Floats) -> NDArray[np.bool_]:
        """The channels whose values may be put into later readings."""
        return self._inside(reading) & ~np.isnan(reading)

    def _reason(self, row: Floats) -> str:
        """Why one reading is refused. NaN means a missing channel: codecs refuse a literal NaN."""
        if (np.isnan(row) & ~self._optional).any():
            return "missing_channel"
        if np.isinf(row).any():
            return "not_finite"
        if self._coded is not None and (~self._inside(row) & self._coded).any():
            return "unknown_category"
        return "out_of_range"


def _shown(value: float) -> str:
    """The shortest text that reads back to the same float32."""
    return f"{float(str(np.float32(value))):.9g}"
