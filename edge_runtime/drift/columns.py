"""The columns of one stream, judged block by block: stuck, missing, out of range, swapped, or drifted. Pure.

A long block is sampled: one of every so many readings is held, at least `MOST_SAMPLED` of a block. The held readings
are judged together when the block is complete, since each call of numpy costs more than a reading.

Guarantee: memory is constant, about 1 kB a column; the figures do not depend on how readings arrive. A state rises
with the block that shows the reason, and falls after `CALM` blocks without it. Weak points: the last, incomplete block
of a stream is not judged; a sampled signal that alternates between two values with an even period can look stuck.
"""

from typing import NamedTuple

import numpy as np

from edge_runtime.drift.block_sums import BlockSums
from edge_runtime.drift.column import Cause, Column, SavedColumn, medians_of_others
from edge_runtime.readings import Floats

FIRST_BLOCKS = 4  # before the shape is judged
_SAME_SPREAD = 2.0  # a ratio of spreads beyond that rules a channel out


class SavedColumns(NamedTuple):
    """The state of a stream's columns that a clean stop saves, without the incomplete block."""

    blocks: int
    bins: list[list[float]]
    columns: list[SavedColumn]


class WatchedColumns:
    """The columns of one stream.

    Args:
        sums: the sums of one block at a time, shared by all streams of a model.

    Attributes:
        baseline: their reference.
        room: the number of readings still missing to a complete block.
        wanted: the value of `room` at the next reading that is sampled or completes the block. While `room` is higher,
            a caller with single readings may decrement `room` instead of calling.
        held: the last reading before the block, and its sampled readings, as bytes.
        blocks: the number of judged blocks.
        state: the worst state of any column, as an index into `STATES`.
        columns: the running figures of each column.
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
        """The state of one column, as an index into `STATES`."""
        return self.columns[column].state

    def hold(self, value: bytes) -> None:
        """Hold one sampled reading that does not complete the block."""
        self.held += value
        room = self.room
        self.room, self.wanted = room - 1, max(room - self.baseline.every, 1)

    def take(self, values: Floats, start: int = 0) -> int:
        """Take rows of `[n, columns]` readings from the row `start` on, at most to the end of the block.

        Returns:
            the row after the last taken one. A complete block is judged, and `room` is then that of the next block.
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
        """Judge a complete block, and begin the next one."""
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
        """Return for each column whether it looks like another one's training and not its own; note the other one."""
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
        """The state to continue from after a restart."""
        return SavedColumns(self.blocks, self._bins.tolist(), [each.save() for each in self.columns])

    def restore(self, saved: SavedColumns) -> None:
        """Continue from a saved state.

        Raises:
            ValueError: it belongs to other columns.
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
        """The sort key of a column among several streams."""
        return self.columns[column].state, self.columns[column].psi


class Figures:
    """The figures of one column after its last block."""

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
