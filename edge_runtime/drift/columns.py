"""The columns of one stream, judged block by block: stuck, missing, out of range, swapped, or drifted. Pure.

Of a block of more than `MOST_SAMPLED` readings only every so many are looked at. These are held until the block is
whole, and judged at once, since each call of numpy costs more than a reading.

Guarantee: memory does not grow, about 1 kB a column; the figures do not depend on how readings arrive. A state rises
with the block that shows the reason, and falls after `CALM` blocks without it. Weak points: a block is judged when it
is complete, so that a stream that ends is not; a signal that jumps between two values with an even period can look
stuck where only every so many readings are looked at.
"""

from typing import NamedTuple

import numpy as np

from edge_runtime.drift.block_sums import BlockSums
from edge_runtime.drift.column import Cause, Column, SavedColumn, medians_of_others
from edge_runtime.readings import Floats

FIRST_BLOCKS = 4  # before the shape is judged
_SAME_SPREAD = 2.0  # a spread larger or smaller than that is another one's


class SavedColumns(NamedTuple):
    """What outlives a clean stop of the columns of a stream; the block that was begun does not."""

    blocks: int
    bins: list[list[float]]
    columns: list[SavedColumn]


class WatchedColumns:
    """The columns of one stream.

    Args:
        sums: the sums of one block at a time, which all streams of a model share.

    Attributes:
        baseline: what they are compared with.
        room: readings that are wanting to the block.
        wanted: that number at the next reading that is looked at, or that completes the block. As long as `room` is
            higher, whoever has readings one by one may take one off `room` instead of calling.
        held: the last reading before the block, and those of the block that are looked at, as bytes.
        blocks: how many were judged.
        state: the worst of any column, as an index into `STATES`.
        columns: what is remembered of each.
    """

    __slots__ = ("_bins", "_sums", "baseline", "blocks", "columns", "held", "room", "state", "wanted")

    def __init__(self, sums: BlockSums) -> None:
        self._sums = sums
        self.baseline = baseline = sums.base
        self.columns = [Column(each) for each in baseline.columns]
        self.held = bytearray(np.full(len(baseline), np.nan, np.float32).tobytes())
        self._bins = np.zeros(baseline.shares.shape)  # with the weights of the shape
        self.blocks = 0
        self.state = 0
        self.room = self.wanted = baseline.block

    def state_of(self, column: int) -> int:
        """That of one column, as an index into `STATES`."""
        return self.columns[column].state

    def hold(self, value: bytes) -> None:
        """Take one reading that is looked at, and does not complete the block."""
        self.held += value
        room = self.room
        self.room, self.wanted = room - 1, max(room - self.baseline.every, 1)

    def take(self, values: Floats, start: int = 0) -> int:
        """Take `[n, columns]` readings in, from the row `start` to the end of the block at most.

        Returns:
            the row behind the last one that was taken. The block is judged by then if it was whole, and `room` that of
            the next one.
        """
        base, room = self.baseline, self.room
        count = min(len(values) - start, room)
        first = (room - base.block) % base.every
        if first < count:
            self.held += values[start + first : start + count : base.every].tobytes()
        self.room = room - count
        if room > count:
            self.wanted = max(self.room - (self.room - base.block) % base.every, 1)
        else:
            self._judge()
        return start + count

    def _judge(self) -> None:
        """The verdict on a whole block; the next one begins."""
        base, block, columns = self.baseline, self._sums, self.columns
        self.blocks += 1
        self.room = self.wanted = base.block
        found = block.of(self.held)
        self.held = self.held[-4 * len(columns) :]
        self._bins *= base.keeps
        self._bins += block.bins
        far = [column.add(sums) for column, sums in zip(columns, found, strict=True)]
        if base.has_beside:
            for column, others in zip(columns, medians_of_others([each.step for each in columns]), strict=True):
                if column.reference.share:
                    column.add_beside(others)
        if self.blocks >= FIRST_BLOCKS:
            for column, psi in zip(columns, base.shape.index(self._bins).tolist(), strict=True):
                column.psi = psi
        swapped = self._swapped(far) if any(far) and len(far) > 1 else [False] * len(far)
        for column, is_swapped in zip(columns, swapped, strict=True):
            column.judge(is_swapped=is_swapped)
        self.state = max(column.state for column in columns)

    def _swapped(self, are_far: list[bool]) -> list[bool]:
        """Which columns look like another one's training and not like their own; which one is noted."""
        base, columns = self.baseline, self.columns
        far = np.array(are_far)
        offset = np.array([0.0 if each.offset is None else each.offset for each in columns])
        mean = base.centre + offset
        count = np.array([max(each.late_count, 1.0) for each in columns])
        late = np.array([each.late_total for each in columns]) / count
        squares = np.array([each.late_squares for each in columns])
        spread = np.sqrt(np.maximum(squares / count - late**2, 0.0))
        like = (mean[:, np.newaxis] >= base.first) & (mean[:, np.newaxis] <= base.last) & far[:, np.newaxis]
        both = like & like.T
        whole = (
            (np.abs((base.centre + late)[:, np.newaxis] - base.centre) < 0.5 * base.std)
            & (spread[:, np.newaxis] < _SAME_SPREAD * base.std)
            & (spread[:, np.newaxis] * _SAME_SPREAD > base.std)
            & (np.abs(late) > base.far)[:, np.newaxis]
        )
        near = both | (like & whole)
        np.fill_diagonal(near, val=False)
        away = np.abs(mean[:, np.newaxis] - base.centre) / base.std
        other = np.where(near, np.nan_to_num(away, nan=np.inf), np.inf).argmin(axis=1).tolist()
        found: list[bool] = near.any(axis=1).tolist()
        for column, is_swapped, place in zip(columns, found, other, strict=True):
            if is_swapped:
                column.other = place
        return found

    # --- over a restart -----------------------------------------------------------------------------------------

    def save(self) -> SavedColumns:
        """What is known, to go on with after a restart."""
        return SavedColumns(self.blocks, self._bins.tolist(), [each.save() for each in self.columns])

    def restore(self, saved: SavedColumns) -> None:
        """Go on with what was known.

        Raises:
            ValueError: it is of other columns.
        """
        bins = np.array(saved.bins, np.float64)
        if bins.shape != self._bins.shape or len(saved.columns) != len(self.columns):
            raise ValueError
        for column, each in zip(self.columns, saved.columns, strict=True):
            column.restore(each)
        self.blocks, self._bins = saved.blocks, bins
        self.state = max(column.state for column in self.columns)

    # --- what the document shows ------------------------------------------------------------------------------------

    def badness(self, column: int) -> tuple[int, float]:
        """By which columns of several streams are put in order."""
        return self.columns[column].state, self.columns[column].psi


class Figures:
    """What is known of one column after its last block."""

    def __init__(self, watched: WatchedColumns, place: int) -> None:
        base, column = watched.baseline, watched.columns[place]
        count = max(column.late_count, 1.0)
        late = column.late_total / count
        std = float(base.std[place])
        self.column = place
        self.state = column.state
        self.cause = column.cause if column.state else None
        self.missing = column.missing
        self.outside = column.outside
        self.run = column.run * base.every
        self.is_stuck = column.state > 0 and column.cause is Cause.STUCK
        self.other = column.other
        has_spread = watched.blocks > 0 and np.isfinite(std) and column.late_count > 0
        self.offset_sd = late / std if has_spread else None
        spread = float(np.sqrt(max(column.late_squares / count - late**2, 0.0)))
        self.spread = spread / std if has_spread else None
        self.psi = column.psi if watched.blocks >= FIRST_BLOCKS and bool(base.known[place]) else None
        self.last = float(np.frombuffer(watched.held, np.float32, count=place + 1)[place])
        self.rises = column.offsets.up >= column.offsets.down
        self.moves_more_beside = column.besides.up >= column.besides.down
        self.moves_more = column.steps.up >= column.steps.down
