"""The counts, sums and runs of each column in whole blocks, by few numpy calls over all columns. Pure.

A call of numpy costs more than the work on a block's readings, so several short blocks are summed up at once, and the
arrays are kept from call to call: one `BlockSums` serves all streams of a model in turn. A reading that is not finite
is missing; only blocks with a missing reading need masks, and nearly every block has none.
"""

import math

import numpy as np

from edge_runtime.drift.baseline import Baseline, Doubles
from edge_runtime.drift.column import ColumnSums


class BlockSums:
    """The sums of `base.together` blocks at a time.

    Args:
        base: the reference of the columns.

    Attributes:
        base: the same.
        bins: `[blocks, columns, bins]`: the number of values in each bin.
    """

    def __init__(self, base: Baseline) -> None:
        count, size, bins, together = len(base), base.size, base.shares.shape[1], base.together
        self.base = base
        self._terms = np.zeros((3, count, together * size + 1))
        self._deviations, self._ways, self._squares = self._terms
        self._flat, self._steps = self._deviations.ravel(), self._ways.ravel()
        self._own = self._terms[:, :, 1:].reshape(3, count, together, size)  # without the reading before the blocks
        self._values = self._own[0, :, np.newaxis]
        self._marks = (base.marks.astype(np.float64) - base.centre[:, np.newaxis, np.newaxis])[:, :, np.newaxis]
        self._above = np.empty((count, bins + 1, together, size), np.bool_)
        # The count of a bin: values at or above its lower edge (all present ones for the first), less those at or above
        # the next edge.
        self._in_bins = np.eye(bins + 1, bins) - np.eye(bins + 1, bins, -1)
        self._in_bins[0, 1:] = self._in_bins[bins] = 0.0
        self._counts = np.zeros((together, count, bins + 1))
        self._sizes = [size] * count
        self._full = [self._sizes] * together
        self.bins: Doubles = np.zeros((together, count, bins))

    def of(self, held: bytearray) -> list[list[ColumnSums]]:
        """Sum up blocks: `[1 + together * size, columns]` float32, the last reading before them and the sampled ones.

        Returns:
            for each block the sums of each column.
        """
        base, deviations, ways, own = self.base, self._deviations, self._ways, self._own
        rows = np.frombuffer(held, np.float32).reshape(-1, len(base))
        np.copyto(deviations, rows.T)
        with np.errstate(invalid="ignore", over="ignore"):  # a reading may be infinite
            deviations -= base.centres
            np.subtract(self._flat[1:], self._flat[:-1], out=self._steps[1:])  # each column's first is no step
            np.abs(ways, out=ways)
            np.multiply(deviations, deviations, out=self._squares)
            sums = np.add.reduce(own, axis=3)
        present = steps = self._full
        runs = self._runs()
        if not math.isfinite(sums.sum()):
            known, moved = np.isfinite(own[0]), np.isfinite(own[1])
            present, steps = known.sum(axis=2).T.tolist(), moved.sum(axis=2).T.tolist()
            for part, mask in zip(own, (known, moved, known), strict=True):
                part[~mask] = 0.0
            sums = np.add.reduce(own, axis=3)
            own[0][~known] = np.nan  # in no bin
        outside = self._count(present)
        total, way, square = sums.transpose(0, 2, 1).tolist()
        return [
            list(zip(self._sizes, *block, strict=True))
            for block in zip(present, total, square, steps, way, outside, runs, strict=True)
        ]

    def _count(self, present: list[list[int]]) -> list[list[int]]:
        """Return the number of values out of range for each block and column, and write the counts of the bins."""
        np.greater_equal(self._values, self._marks, out=self._above)
        counts = self._counts
        counts[:] = np.add.reduce(self._above.view(np.uint8), axis=3, dtype=np.uint8).transpose(2, 0, 1)
        outside = counts[:, :, -1] - counts[:, :, 0]
        counts[:, :, 0] = present
        outside += counts[:, :, 0]
        np.matmul(counts, self._in_bins, out=self.bins)
        found: list[list[int]] = outside.astype(np.int64).tolist()
        return found

    def _runs(self) -> list[list[int]]:
        """The number of equal values at the end of each block and column, 0 for a whole block of them.

        A missing value is not stuck.
        """
        ways = self._own[1]
        if np.logical_and.reduce(ways[:, :, -1], axis=None):  # NaN too
            return [[1] * len(ways)] * ways.shape[1]
        back = ways[:, :, ::-1] != 0.0
        found: list[list[int]] = np.where(back.any(axis=2), back.argmax(axis=2) + 1, 0).T.tolist()
        return found
