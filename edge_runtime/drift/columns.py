"""The columns of one stream, judged block by block: stuck, missing, out of range, swapped, or drifted. Pure.

A long block is sampled: one of every so many readings is held, at least `MOST_SAMPLED` of a block. The held readings
are summed up together when the block is complete, or some blocks of a fast stream, since each call of numpy costs more
than a reading; then each block is judged by itself.

Guarantee: memory is constant, about 1 kB a column; the figures do not depend on how readings arrive. A state rises
with the block that shows the reason, and falls after `baseline.calm` blocks without it. Weak points: the last,
incomplete block of a stream is not judged; a sampled signal that alternates between two values with an even period can
look stuck.
"""

from typing import NamedTuple

import numpy as np

from edge_runtime.drift.block_sums import BlockSums
from edge_runtime.drift.column import IS_FAR, IS_NEAR, Cause, Column, ColumnSums, SavedColumn, medians_of_others
from edge_runtime.readings import Floats

FIRST_BLOCKS = 4  # before the shape is judged
MOST_FAR = 64  # columns that are compared with all others in one block
_SAME_SPREAD = 2.0  # a ratio of spreads beyond that rules a channel out


class SavedColumns(NamedTuple):
    """The state of a stream's columns that a clean stop saves, without the incomplete block."""

    blocks: int
    bins: list[list[float]]
    columns: list[SavedColumn]


class WatchedColumns:
    """The columns of one stream.

    Args:
        sums: the sums of blocks, shared by all streams of a model.

    Attributes:
        baseline: their reference.
        room: the number of readings still missing to the next judgement.
        wanted: the value of `room` at the next reading that is sampled or completes its blocks. While `room` is higher,
            a caller with single readings may decrement `room` instead of calling.
        held: the last reading before these blocks, and their sampled readings, as bytes.
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
        self._bins = baseline.first_counts.copy()  # with the weights of the shape
        self.blocks = 0
        self.state = 0
        self.room = self.wanted = baseline.span

    def state_of(self, column: int) -> int:
        """The state of one column, as an index into `STATES`."""
        return self.columns[column].state

    def hold(self, value: bytes) -> None:
        """Hold one sampled reading that does not complete the blocks."""
        self.held += value
        room = self.room
        self.room, self.wanted = room - 1, max(room - self.baseline.every, 1)

    def take(self, values: Floats, start: int = 0) -> int:
        """Take rows of `[n, columns]` readings from the row `start` on, at most `room` of them.

        Returns:
            the row after the last taken one. Complete blocks are judged, and `room` is then that of the next ones.
        """
        every, room, span = self.baseline.every, self.room, self.baseline.span
        count = min(len(values) - start, room)
        first = (room - span) % every
        if first < count:
            self.held += values[start + first : start + count : every].tobytes()
        self.room = room = room - count
        if room:
            self.wanted = max(room - (room - span) % every, 1)
        else:
            self._judge()
        return start + count

    def _judge(self) -> None:
        """Judge complete blocks, one after another, and begin the next ones."""
        base, sums, columns = self.baseline, self._sums, self.columns
        self.room = self.wanted = base.span
        found, counts, bins = sums.of(self.held), sums.bins, self._bins
        self.held = self.held[-4 * len(columns) :]
        for block in counts:
            bins *= base.keeps
            bins += block
            block[:] = bins  # the counts of late, after this block
        for block, psis in zip(found, base.shape.index(counts).tolist(), strict=True):
            self.blocks += 1
            self._judge_block(block, psis if self.blocks >= FIRST_BLOCKS else [0.0] * len(psis))
        self.state = max([column.state for column in columns])

    def _judge_block(self, found: list[ColumnSums], psis: list[float]) -> None:
        """Judge one block by its sums."""
        base, columns = self.baseline, self.columns
        found_at = [column.add(sums, psi) for column, sums, psi in zip(columns, found, psis, strict=True)]
        if base.has_beside:
            others = medians_of_others([each.step for each in columns])
            for place, column in enumerate(columns):
                if column.reference.share:
                    found_at[place] |= IS_NEAR * column.add_beside(others[place])
        far = [at >= IS_FAR for at in found_at]
        if True in far and len(far) > 1:
            for column, is_swapped in zip(columns, self._swapped(far), strict=True):
                column.judge(is_swapped=is_swapped)
            return
        for column, at in zip(columns, found_at, strict=True):
            if column.state or at:
                column.judge(is_swapped=False)

    def _swapped(self, are_far: list[bool]) -> list[bool]:
        """Return for each column whether it looks like another one's training and not its own; note the other one.

        Only the first `MOST_FAR` columns that are far from their own training are compared with all.
        """
        base, columns = self.baseline, self.columns
        rows = np.flatnonzero(are_far)[:MOST_FAR]
        far = [columns[row] for row in rows.tolist()]
        mean = (base.centre[rows] + np.array([each.offset for each in far]))[:, np.newaxis]
        count = np.array([max(each.late_count, 1.0) for each in far])
        late = np.array([each.late_total for each in far]) / count
        squares = np.array([each.late_squares for each in far])
        spread = np.sqrt(np.maximum(squares / count - late**2, 0.0))[:, np.newaxis]
        like = (mean >= base.first) & (mean <= base.last)  # [far, columns]
        whole = (
            (np.abs((base.centre[rows] + late)[:, np.newaxis] - base.centre) < 0.5 * base.std)
            & (spread < _SAME_SPREAD * base.std)
            & (spread * _SAME_SPREAD > base.std)
            & (np.abs(late) > base.far[rows])[:, np.newaxis]
        )
        near = like & whole
        near[:, rows] |= like[:, rows] & like[:, rows].T
        near[np.arange(len(rows)), rows] = False
        away = np.nan_to_num(np.abs(mean - base.centre) / base.std, nan=np.inf)
        other = np.where(near, away, np.inf).argmin(axis=1).tolist()
        found = [False] * len(columns)
        for row, column, is_swapped, place in zip(rows.tolist(), far, near.any(axis=1).tolist(), other, strict=True):
            if is_swapped:
                column.other = place
                found[row] = True
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
        self.cause = column.reason.cause if column.state else None
        self.missing = column.missing
        self.outside = column.outside
        self.why_missing, self.why_outside = column.reason.missing, column.reason.outside
        self.run = column.run * base.every
        self.is_stuck = column.state > 0 and column.reason.cause is Cause.STUCK
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
