"""The counts, sums and runs of each column in one whole block, by few numpy calls over all columns. Pure.

A call of numpy costs more than the work on a block's readings, so the arrays are kept from block to block: one
`BlockSums` serves all streams of a model in turn. A reading that is not finite is missing; only a block with a missing
reading needs masks, and nearly every block has none.
"""

import math

import numpy as np

from edge_runtime.drift.baseline import Baseline
from edge_runtime.drift.column import ColumnSums


class BlockSums:
    """The sums of one block at a time.

    Args:
        base: the reference of the columns.

    Attributes:
        base: the same.
        bins: `[columns, bins]`: the number of values in each bin.
    """

    def __init__(self, base: Baseline) -> None:
        count, size, bins = len(base), base.size, base.shares.shape[1]
        self.base = base
        self._own = np.append(0.0, np.ones(size))  # weights: 0 for the reading before the block
        self._terms = np.zeros((3, count, size + 1))
        self._deviations, self._ways, self._squares = self._terms
        self._flat, self._steps = self._deviations.ravel(), self._ways.ravel()
        self._marks = base.marks.astype(np.float64) - base.centre[:, np.newaxis, np.newaxis]
        self._above = np.empty((count, bins + 1, size), np.bool_)
        # The count of a bin: values at or above its lower edge (all present ones for the first), less those at or above
        # the next edge.
        self._in_bins = np.eye(bins + 1, bins) - np.eye(bins + 1, bins, -1)
        self._in_bins[0, 1:] = self._in_bins[bins] = 0.0
        self._counts = np.zeros((count, bins + 1))
        self._sizes = [size] * count
        self.bins = np.zeros((count, bins))

    def of(self, held: bytearray) -> list[ColumnSums]:
        """Sum up a block: `[1 + size, columns]` float32, the last reading before it and the sampled ones."""
        base, deviations, ways = self.base, self._deviations, self._ways
        rows = np.frombuffer(held, np.float32).reshape(base.size + 1, len(base))
        np.copyto(deviations, rows.T)
        with np.errstate(invalid="ignore", over="ignore"):  # a reading may be infinite
            deviations -= base.centres
            np.subtract(self._flat[1:], self._flat[:-1], out=self._steps[1:])  # each column's first is no step
            np.abs(ways, out=ways)
            np.multiply(deviations, deviations, out=self._squares)
            total, way, square = self._terms.dot(self._own).tolist()
        present = steps = self._sizes
        runs = self._runs()
        if not math.isfinite(sum(total) + sum(way)):
            known, moved = np.isfinite(deviations), np.isfinite(ways)
            known[:, 0] = moved[:, 0] = False
            present, steps = known.sum(axis=1).tolist(), moved.sum(axis=1).tolist()
            for part, mask in ((deviations, known), (ways, moved), (self._squares, known)):
                part[~mask] = 0.0
            total, way, square = self._terms.sum(axis=2).tolist()
            deviations[~known] = np.nan  # in no bin
        outside = self._count(present)
        return list(map(ColumnSums, self._sizes, present, total, square, steps, way, outside, runs))

    def _count(self, present: list[int]) -> list[int]:
        """Return the number of values out of range for each column, and write the counts of the bins."""
        np.greater_equal(self._deviations[:, np.newaxis, 1:], self._marks, out=self._above)
        above = np.add.reduce(self._above.view(np.uint8), axis=2, dtype=np.uint8)
        self._counts[:] = above
        self._counts[:, 0] = present
        np.dot(self._counts, self._in_bins, out=self.bins)
        low: list[int] = above[:, 0].tolist()
        high: list[int] = above[:, -1].tolist()
        return [count - inside + over for count, inside, over in zip(present, low, high, strict=True)]

    def _runs(self) -> list[int]:
        """The number of equal values at the end of each column, 0 for the whole block; a missing value is not stuck."""
        ways = self._ways
        if all(ways[:, -1].tolist()):  # NaN too
            return [1] * len(ways)
        back = ways[:, :0:-1] != 0.0
        found: list[int] = np.where(back.any(axis=1), back.argmax(axis=1) + 1, 0).tolist()
        return found
