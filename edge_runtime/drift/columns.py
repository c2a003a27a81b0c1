"""The columns of one stream, judged block by block: stuck, missing, out of range, swapped, or drifted. Pure.

Few readings at a time are held until there are enough to be summed up at once, since each call of numpy costs more than
a reading. Of a block of more than `MOST_SAMPLED` readings only every so many are looked at.

Guarantee: memory does not grow, about 600 bytes a column. A state rises with the block that shows the reason, and falls
after `CALM` blocks without it. Weak points: a block is judged when it is complete, so that a stream that ends is not; a
signal that jumps between two values with an even period can look stuck where only every so many readings are looked at.
"""

import math
from collections.abc import Iterator
from enum import IntEnum
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edge_runtime.drift.baseline import MEMORY, Baseline, Doubles, stability_index
from edge_runtime.readings import Floats

State = Literal["ok", "watch", "alarm"]
STATES: tuple[State, ...] = ("ok", "watch", "alarm")

CHUNK = 64  # readings that are summed up at once
MOST_SAMPLED = 64  # of a block
_MOST_AT_ONCE = 1024
CALM = 2  # blocks without a reason, before a state falls
RELEASE = 0.7  # of what raised a state: below that the reason is gone
FIRST_BLOCKS = 4  # before the shape is judged

MISSING_ALARM = 0.1  # of the readings, more than in training; half of it to watch
OUTSIDE_ALARM = 0.05  # the same for values out of the range
_FAR = 3.0  # standard deviations: no longer the channel itself, where it is asked whether it is another one
_SAME_SPREAD = 2.0  # a spread larger or smaller than that is another one's


class Cause(IntEnum):
    """Why a column is not `ok`; where several say so equally, the first one is named."""

    MISSING = 0
    STUCK = 1
    SWAPPED = 2
    OUTSIDE = 3
    OFFSET = 4
    SHAPE = 5
    STEP = 6


class _Row(IntEnum):
    """What is remembered of each column."""

    PRESENT = 0  # of the block: values, sums of deviations and their squares, steps, values out of range
    TOTAL = 1
    SQUARES = 2
    STEPS = 3
    STEP_COUNT = 4
    OUTSIDE = 5
    RUN = 6  # equal values up to now
    LONGEST = 7  # of the block
    UP = 8  # the CUSUMs
    DOWN = 9
    STEP_UP = 10
    STEP_DOWN = 11
    LATE_COUNT = 12  # with the weights of late
    LATE_TOTAL = 13
    LATE_SQUARES = 14
    PSI = 15  # the verdict
    MISSING_SHARE = 16
    OUTSIDE_SHARE = 17
    STATE = 18
    CALM = 19
    CAUSE = 20
    OTHER = 21  # the column that it looks like
    SHAPE_COUNT = 22  # values, with the weights of the shape


class WatchedColumns:
    """The columns of one stream.

    Args:
        baseline: what they are compared with.

    Attributes:
        room: readings that are wanting to the block.
        blocks: how many were judged.
        rows: what is remembered, by `_Row`.
    """

    __slots__ = ("_bins", "_every", "_held", "_last", "_most_held", "_summed", "baseline", "blocks", "room", "rows")

    def __init__(self, baseline: Baseline) -> None:
        self.baseline = baseline
        count = len(baseline)
        self._every = max(1, baseline.block // MOST_SAMPLED)
        self._summed = 0
        self._held = bytearray()
        self._most_held = 4 * count * CHUNK
        self._last: Floats = np.full(count, np.nan, np.float32)
        self._bins = np.zeros((2, *baseline.edges.shape))  # at or above each edge: in the block, and of late
        self.rows = np.zeros((len(_Row), count))
        self.rows[_Row.OTHER] = -1
        self.blocks = 0
        self.room = baseline.block

    @property
    def state(self) -> int:
        """The worst of any column, as an index into `STATES`."""
        return int(self.rows[_Row.STATE].max())

    def state_of(self, column: int) -> int:
        """That of one column, as an index into `STATES`."""
        return int(self.rows[_Row.STATE, column])

    @property
    def sums(self) -> Doubles:
        """The two CUSUMs of the offset, `[2, columns]`: above and below the training."""
        return self.rows[_Row.UP : _Row.DOWN + 1].copy()

    def take(self, values: Floats) -> Iterator[tuple[int, int, bool]]:
        """Take `[n, columns]` readings in, block by block.

        Yields:
            of each part its first row, the row behind it, and whether it completed a block, which is judged by then.
        """
        start, total = 0, len(values)
        while start < total:
            stop = min(total, start + self.room)
            self._add(values[start:stop])
            is_whole = self.room == 0
            if is_whole:
                self._judge()
            yield start, stop, is_whole
            start = stop

    def hold(self, values: Floats) -> bool:
        """Keep readings until there are enough to be summed up. False where `take` has to have them now."""
        count, every, room = len(values), self._every, self.room
        if room <= count or count > CHUNK * every:
            return False
        self.room = room - count
        if every > 1:
            first = (room - self.baseline.block) % every
            if first >= count:
                return True  # none of them is looked at
            values = values[first::every]
        self._held += values.tobytes()
        if len(self._held) >= self._most_held:
            self._sum_held()
        return True

    def _sampled(self, values: Floats) -> Floats:
        """Those of the next readings of a block that are looked at."""
        every, before = self._every, self.room
        self.room -= len(values)
        return values if every == 1 else values[(before - self.baseline.block) % every :: every]

    def _sum_held(self) -> None:
        if self._held:
            values = np.frombuffer(bytes(self._held), np.float32).reshape(-1, len(self.baseline))
            self._held.clear()
            self._sum_up(values)

    def _add(self, values: Floats) -> None:
        """Readings of one block."""
        self._sum_held()
        sampled = self._sampled(values)
        for start in range(0, len(sampled), _MOST_AT_ONCE):
            self._sum_up(sampled[start : start + _MOST_AT_ONCE])

    @np.errstate(invalid="ignore", over="ignore")  # a reading may be infinite, and counts as missing
    def _sum_up(self, values: Floats) -> None:
        """Add readings to the sums of the block."""
        base, rows, count = self.baseline, self.rows, len(values)
        self._bins[0] += (values[:, :, np.newaxis] >= base.edges).sum(axis=0)
        lowest, highest = np.fmin.reduce(values, axis=0), np.fmax.reduce(values, axis=0)  # of those that are there
        if (lowest < base.low).any() or (highest > base.high).any():
            outside = ((values < base.low) | (values > base.high)) & np.isfinite(values)
            rows[_Row.OUTSIDE] += outside.sum(axis=0)
        deviations = values - base.centre
        signed = np.empty_like(values)
        np.subtract(values[1:], values[:-1], out=signed[1:])
        np.subtract(values[0], self._last, out=signed[0])
        steps = np.abs(signed)
        total, way = deviations.sum(axis=0), steps.sum(axis=0, dtype=np.float64)
        if math.isfinite(total.sum() + way.sum()):
            rows[_Row.PRESENT] += count
            rows[_Row.STEP_COUNT] += count
        else:
            known, whole = np.isfinite(deviations), np.isfinite(steps)
            rows[_Row.PRESENT] += known.sum(axis=0)
            rows[_Row.STEP_COUNT] += whole.sum(axis=0)
            deviations = np.where(known, deviations, 0.0)
            total, way = deviations.sum(axis=0), np.where(whole, steps, 0.0).sum(axis=0, dtype=np.float64)
        rows[_Row.TOTAL] += total
        rows[_Row.SQUARES] += np.einsum("ij,ij->j", deviations, deviations)
        rows[_Row.STEPS] += way
        if base.is_stuck_possible:
            self._count_equal(signed, count)
        self._last = values[-1].copy()
        self._summed += count

    def _count_equal(self, steps: Floats, count: int) -> None:
        """How long each column has had the same value; one that is missing is not stuck."""
        rows = self.rows
        moved = steps != 0.0  # NaN too
        back = moved[::-1]
        ever = back.any(axis=0)
        run = np.where(ever, back.argmax(axis=0) + 1.0, rows[_Row.RUN] + count)
        rows[_Row.RUN] = run
        np.maximum(rows[_Row.LONGEST], run, out=rows[_Row.LONGEST])

    def _judge(self) -> None:
        """The verdict on a whole block; the sums begin anew."""
        base, rows, size = self.baseline, self.rows, self._summed
        self.blocks += 1
        self.room = base.block
        present = rows[_Row.PRESENT]
        enough = present >= size / 2.0
        counted = np.maximum(present, 1.0)
        offset = rows[_Row.TOTAL] / counted
        keep = 1.0 - 1.0 / MEMORY
        self._bins[1] = base.keep * self._bins[1] + self._bins[0]
        rows[_Row.SHAPE_COUNT] = base.keep * rows[_Row.SHAPE_COUNT] + present
        rows[_Row.LATE_COUNT : _Row.LATE_SQUARES + 1] *= keep
        rows[_Row.LATE_COUNT : _Row.LATE_SQUARES + 1] += rows[_Row.PRESENT : _Row.SQUARES + 1]
        z = np.where(enough, offset / base.sd, 0.0)
        rows[_Row.UP], rows[_Row.DOWN] = base.offset.step(rows[_Row.UP], rows[_Row.DOWN], z)
        step = np.log(np.maximum(rows[_Row.STEPS] / np.maximum(rows[_Row.STEP_COUNT], 1.0), base.least_step))
        z = np.where(rows[_Row.STEP_COUNT] >= size / 2.0, (step - base.step) / base.step_sd, 0.0)
        rows[_Row.STEP_UP], rows[_Row.STEP_DOWN] = base.stepping.step(rows[_Row.STEP_UP], rows[_Row.STEP_DOWN], z)
        rows[_Row.PSI] = self._stability()
        rows[_Row.MISSING_SHARE] = 1.0 - present / size
        rows[_Row.OUTSIDE_SHARE] = rows[_Row.OUTSIDE] / counted
        self._conclude(self._severities(enough, offset))
        rows[_Row.PRESENT : _Row.OUTSIDE + 1] = 0.0
        rows[_Row.LONGEST] = rows[_Row.RUN]
        self._bins[0] = 0.0
        self._summed = 0

    def _stability(self) -> Doubles:
        """The PSI of late; 0 while there is too little to say."""
        base = self.baseline
        if self.blocks < FIRST_BLOCKS or not base.known.any():
            return np.zeros(len(base))
        late = base.shares_of(self._bins[1], self.rows[_Row.SHAPE_COUNT])
        return stability_index(base.shares, late)

    def _severities(self, enough: NDArray[np.bool_], offset: Doubles) -> Doubles:
        """How far each column is from `ok` for each cause: 0.5 and more to watch, 1 and more for an alarm."""
        base, rows = self.baseline, self.rows
        found = np.zeros((len(Cause), len(base)))
        found[Cause.MISSING] = (rows[_Row.MISSING_SHARE] - base.missing) / MISSING_ALARM
        found[Cause.STUCK] = rows[_Row.LONGEST] * self._every / base.stuck_after
        found[Cause.OUTSIDE] = rows[_Row.OUTSIDE_SHARE] / OUTSIDE_ALARM
        if len(base) > 1:
            found[Cause.SWAPPED] = self._swapped(enough, offset)
        if base.is_calibrated:
            found[Cause.OFFSET] = _statistical(np.maximum(rows[_Row.UP], rows[_Row.DOWN]) / base.offset.limit)
            found[Cause.SHAPE] = _statistical(rows[_Row.PSI] / base.psi_limit)
            found[Cause.STEP] = _statistical(np.maximum(rows[_Row.STEP_UP], rows[_Row.STEP_DOWN]) / base.stepping.limit)
        return found

    def _swapped(self, enough: NDArray[np.bool_], offset: Doubles) -> Doubles:
        """1 where a column looks like another one's training and not like its own; which one is noted."""
        base, rows = self.baseline, self.rows
        found = np.zeros(len(base))
        far = enough & (np.abs(offset) > _FAR * base.std)
        if not far.any():
            return found
        mean = base.centre + offset
        count = np.maximum(rows[_Row.LATE_COUNT], 1.0)
        late = rows[_Row.LATE_TOTAL] / count
        spread = np.sqrt(np.maximum(rows[_Row.LATE_SQUARES] / count - late**2, 0.0))
        like = (mean[:, np.newaxis] >= base.first) & (mean[:, np.newaxis] <= base.last) & far[:, np.newaxis]
        both = like & like.T
        whole = (
            (np.abs((base.centre + late)[:, np.newaxis] - base.centre) < 0.5 * base.std)
            & (spread[:, np.newaxis] < _SAME_SPREAD * base.std)
            & (spread[:, np.newaxis] * _SAME_SPREAD > base.std)
            & (np.abs(late) > _FAR * base.std)[:, np.newaxis]
        )
        near = both | (like & whole)
        np.fill_diagonal(near, val=False)
        away = np.abs(mean[:, np.newaxis] - base.centre) / base.std
        other = np.where(near, np.nan_to_num(away, nan=np.inf), np.inf).argmin(axis=1)
        found[near.any(axis=1)] = 1.0
        rows[_Row.OTHER] = np.where(found > 0.0, other, rows[_Row.OTHER])
        return found

    def _conclude(self, severities: Doubles) -> None:
        """Raise states at once, and let them fall after some calm blocks."""
        rows = self.rows
        state = rows[_Row.STATE]
        watch = np.where(state >= 1.0, 0.5 * RELEASE, 0.5)
        alarm = np.where(state >= 2.0, RELEASE, 1.0)
        level = (severities >= watch).astype(np.float64) + (severities >= alarm)
        worst = level.max(axis=0)
        calm = np.where(worst < state, rows[_Row.CALM] + 1.0, 0.0)
        falls = calm >= CALM
        rows[_Row.CAUSE] = np.where((worst > 0.0) & (worst >= state), level.argmax(axis=0), rows[_Row.CAUSE])
        rows[_Row.STATE] = np.where((worst >= state) | falls, worst, state)
        rows[_Row.CALM] = np.where(falls, 0.0, calm)

    # --- what the document shows ------------------------------------------------------------------------------------

    def badness(self, column: int) -> tuple[float, float]:
        """By which columns of several streams are put in order."""
        return float(self.rows[_Row.STATE, column]), float(self.rows[_Row.PSI, column])


class Figures:
    """What is known of one column after its last block."""

    def __init__(self, columns: WatchedColumns, column: int) -> None:
        base, rows = columns.baseline, columns.rows[:, column]
        count = max(float(rows[_Row.LATE_COUNT]), 1.0)
        judged = columns.blocks > 0
        late = float(rows[_Row.LATE_TOTAL]) / count
        self.column = column
        self.state = int(rows[_Row.STATE])
        self.cause = Cause(int(rows[_Row.CAUSE])) if self.state else None
        self.missing = float(rows[_Row.MISSING_SHARE])
        self.outside = float(rows[_Row.OUTSIDE_SHARE])
        self.run = int(rows[_Row.LONGEST]) * columns._every  # noqa: SLF001 - of our own kind
        self.is_stuck = self.state > 0 and self.cause is Cause.STUCK
        self.other = int(rows[_Row.OTHER])
        has_spread = judged and bool(np.isfinite(base.std[column])) and rows[_Row.LATE_COUNT] > 0
        self.offset_sd = late / float(base.std[column]) if has_spread else None
        spread = float(np.sqrt(max(float(rows[_Row.LATE_SQUARES]) / count - late**2, 0.0)))
        self.spread = spread / float(base.std[column]) if has_spread else None
        self.psi = float(rows[_Row.PSI]) if columns.blocks >= FIRST_BLOCKS and bool(base.known[column]) else None
        self.last = float(columns._last[column])  # noqa: SLF001
        self.rises = rows[_Row.UP] >= rows[_Row.DOWN]
        self.moves_more = rows[_Row.STEP_UP] >= rows[_Row.STEP_DOWN]


def _statistical(ratio: Doubles) -> Doubles:
    """The severity of a statistic by its share of the limit: to watch from three quarters of it on."""
    return 2.0 * ratio - 1.0
