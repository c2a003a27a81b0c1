"""One column of one stream: its running figures, and its state after each block. Pure.

Plain Python numbers, since a call of numpy costs more than the work of one block on one column.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from enum import IntEnum
from typing import Literal, NamedTuple

State = Literal["ok", "watch", "alarm"]
STATES: tuple[State, ...] = ("ok", "watch", "alarm")

MEMORY = 8.0  # blocks: the weight of a block in the recent figures falls by 1/8 with each further block
CALM = 2  # blocks without a reason, at least, before a state falls
RELEASE = 0.7  # share of the limit that raised a state: below it the reason is gone
MISSING_ALARM = 0.1  # share of missing readings above that of training for an alarm; half of it for `watch`
OUTSIDE_ALARM = 0.05  # the same for values out of range
NEAR = 0.75 * (1.0 - 1e-9)  # share of a limit: below it there is no `watch`; a little low, for rounding
IS_NEAR, IS_FAR = 1, 2
_LATE = 1.0 - 1.0 / MEMORY


class Cause(IntEnum):
    """The reason why a column is not `ok`; of several equally severe reasons, the first is shown."""

    MISSING = 0
    STUCK = 1
    SWAPPED = 2
    OUTSIDE = 3
    OFFSET = 4
    SHAPE = 5
    STEP = 6
    BESIDE = 7


class Reason(NamedTuple):
    """The cause of a state, and the shares missing and out of range in the last block that showed it."""

    cause: Cause
    missing: float
    outside: float


NO_REASON = Reason(Cause.MISSING, 0.0, 0.0)


class Statistic(NamedTuple):
    """A figure of a block in training: its mean and standard deviation over blocks, and the limits of its CUSUM.

    Without limits, `sd` and `limit` are infinite.
    """

    mean: float = 0.0
    sd: float = math.inf
    slack: float = 0.0
    limit: float = math.inf


class Cusum:
    """Two one-sided sums over blocks: above and below the training (Page, 1954)."""

    __slots__ = ("down", "statistic", "up")

    def __init__(self, statistic: Statistic) -> None:
        self.statistic = statistic
        self.up = self.down = 0.0

    def add(self, figure: float) -> bool:
        """Add the figure of one more block. Return whether a sum is high enough for `watch`.

        The figure is capped, so that no block raises an alarm alone. The sums are capped at twice the limit, so that an
        alarm ends soon after its reason.
        """
        mean, sd, slack, limit = self.statistic
        z, most = (figure - mean) / sd, slack + limit / 2.0
        if not -most <= z <= most:
            z = most if z > 0.0 else -most
        up, down = self.up + z - slack, self.down - z - slack
        near = NEAR * limit
        if up < near and down < near:  # nearly always
            self.up = self.down = 0.0
            if up > 0.0:
                self.up = up
            if down > 0.0:
                self.down = down
            return False
        self.up = 0.0 if up < 0.0 else min(up, 2.0 * limit)
        self.down = 0.0 if down < 0.0 else min(down, 2.0 * limit)
        return True


class ColumnReference(NamedTuple):
    """The reference of a column.

    Attributes:
        offset: of the mean deviation from the training's mean.
        step: of the logarithm of the mean step from one reading to the next.
        beside: of the same, less `share` of the median of the other columns.
        share: 0 if this is not watched.
        least_step: the floor of a mean step.
        missing: share of the readings.
        stuck_after: equal sampled values in a row; infinite if any number is usual.
        far: the deviation beyond which the column is tested for being another one; NaN if it is never tested.
        psi_limit: for an alarm.
        calm: the number of blocks without a reason, before a state falls.
        quiet: what `least` returns, made once.
    """

    offset: Statistic
    step: Statistic
    beside: Statistic
    share: float
    least_step: float
    missing: float
    stuck_after: float
    far: float
    psi_limit: float
    calm: int = CALM
    quiet: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)

    def least(self) -> tuple[float, float, float, float]:
        """The least missing share, run, share out of range and PSI for `watch`; a little low, for rounding."""
        figures = (
            self.missing + 0.5 * MISSING_ALARM, 0.5 * self.stuck_after, 0.5 * OUTSIDE_ALARM, 0.75 * self.psi_limit
        )  # fmt: skip
        missing, run, outside, psi = (figure * (1.0 - 1e-9) for figure in figures)
        return missing, run, outside, psi


class SavedColumn(NamedTuple):
    """The state of a column that a clean stop saves."""

    state: int
    calm: int
    cause: int
    other: int
    run: int
    late: tuple[float, float, float]
    offset: tuple[float, float]
    step: tuple[float, float]
    psi: float
    missing: float
    outside: float
    beside: tuple[float, float] = (0.0, 0.0)


# The sums of one block for a column, a plain tuple since many are made:
#   size     the number of sampled readings
#   present  the number of them with a value
#   total    the sum of their deviations from the training's mean
#   squares  the sum of the squared deviations
#   steps    the number of steps from one reading to the next
#   way      the sum of the steps' absolute sizes
#   outside  the number of values out of the channel's range
#   run      the number of equal values at the end; 0 if the whole block continues a run from before
ColumnSums = tuple[int, int, float, float, int, float, int, int]


def medians_of_others(values: Sequence[float | None]) -> list[float | None]:
    """For each place the median of the values at the other places, without those that are None."""
    known = sorted(value for value in values if value is not None)
    return [_median(known, None if value is None else bisect_left(known, value)) for value in values]


def _median(ordered: Sequence[float], without: int | None) -> float | None:
    """The median of ordered values, one of which is left out."""
    count = len(ordered) - (without is not None)
    if not count:
        return None
    low, high = (
        ordered[place + (without is not None and place >= without)] for place in ((count - 1) // 2, count // 2)
    )
    return (low + high) / 2.0


class Column:
    """The running figures of a column.

    Attributes:
        late_count, late_total, late_squares: weighted sums of values, deviations and their squares; recent ones weigh
            more.
        offset: the mean deviation of the last block; None if half of it is missing.
        step: the logarithm of the mean step of the last block; None likewise.
        run: the number of equal values up to now.
        other: the column that it looks like; -1 for none.
        reason: of the state.
    """

    __slots__ = (
        "besides", "calm", "late_count", "late_squares", "late_total", "missing", "offset",
        "offsets", "other", "outside", "psi", "reason", "reference", "run", "state", "step", "steps",
    )  # fmt: skip

    def __init__(self, reference: ColumnReference) -> None:
        self.reference = reference
        self.late_count = self.late_total = self.late_squares = 0.0
        self.missing = self.outside = self.psi = 0.0
        self.offset: float | None = None
        self.step: float | None = None
        self.besides = Cusum(reference.beside)
        self.offsets, self.steps = Cusum(reference.offset), Cusum(reference.step)
        self.run = 0
        self.state = self.calm = 0
        self.reason = NO_REASON
        self.other = -1

    def add(self, sums: ColumnSums, psi: float) -> int:
        """Add the sums of one more block, and the PSI up to it.

        Returns:
            0, `IS_NEAR` if a figure is high enough for `watch`, and `IS_FAR` if this may be another column, added up.
        """
        size, present, total, squares, steps, way, outside, run = sums
        reference = self.reference
        self.psi = psi
        self.late_count = _LATE * self.late_count + present
        self.late_total = _LATE * self.late_total + total
        self.late_squares = _LATE * self.late_squares + squares
        self.missing = missing = 1.0 - present / size
        self.outside = share = outside / (present or 1)
        self.run = run = run or self.run + size
        step = offset = None
        if 2 * steps >= size:
            least, mean = reference.least_step, way / steps
            step = math.log(max(mean, least))
        if 2 * present >= size:
            offset = total / present
        self.step, self.offset = step, offset
        is_near = self.steps.add(reference.step.mean if step is None else step)
        is_near |= self.offsets.add(reference.offset.mean if offset is None else offset)
        most_missing, most_run, most_outside, most_psi = reference.quiet
        is_near = is_near or missing >= most_missing or run >= most_run or share >= most_outside or psi >= most_psi
        is_far = offset is not None and (offset > reference.far or -offset > reference.far)
        return IS_NEAR * is_near + IS_FAR * is_far

    def add_beside(self, others: float | None) -> bool:
        """Add its step relative to the median step of the others; None if that is unknown. Return as `Cusum.add`."""
        reference = self.reference
        if self.step is None or others is None:
            return self.besides.add(reference.beside.mean)
        return self.besides.add(self.step - reference.share * others)

    def judge(self, *, is_swapped: bool) -> None:
        """Raise the state at once, or let it fall after some calm blocks; needless if it is ok and nothing near."""
        reference, offsets, steps, besides = self.reference, self.offsets, self.steps, self.besides
        severities = (  # 0.5 is `watch`, 1 `alarm`; for a statistic with a limit, 3/4 of the limit and the limit
            (self.missing - reference.missing) / MISSING_ALARM,
            self.run / reference.stuck_after,
            float(is_swapped),
            self.outside / OUTSIDE_ALARM,
            2.0 * max(offsets.up, offsets.down) / offsets.statistic.limit - 1.0,
            2.0 * self.psi / reference.psi_limit - 1.0,
            2.0 * max(steps.up, steps.down) / steps.statistic.limit - 1.0,
            2.0 * max(besides.up, besides.down) / besides.statistic.limit - 1.0,
        )
        highest = max(severities)
        state = self.state
        level = int(highest >= (0.5 * RELEASE if state else 0.5)) + int(highest >= (RELEASE if state == 2 else 1.0))
        if not state and not level:
            return
        if level < state:
            self.calm += 1
            if self.calm >= reference.calm:
                self.state, self.calm = level, 0
            return
        self.state, self.calm = level, 0
        bound = (RELEASE if state == 2 else 1.0) if level == 2 else 0.5 * RELEASE if state else 0.5
        cause = Cause(next(place for place, each in enumerate(severities) if each >= bound))
        self.reason = Reason(cause, self.missing, self.outside)

    def save(self) -> SavedColumn:
        """The state to continue from after a restart."""
        return SavedColumn(
            state=self.state,
            calm=self.calm,
            cause=int(self.reason.cause),
            other=self.other,
            run=self.run,
            late=(self.late_count, self.late_total, self.late_squares),
            offset=(self.offsets.up, self.offsets.down),
            step=(self.steps.up, self.steps.down),
            psi=self.psi,
            missing=self.missing,
            outside=self.outside,
            beside=(self.besides.up, self.besides.down),
        )

    def restore(self, saved: SavedColumn) -> None:
        """Continue from a saved state.

        Raises:
            ValueError: there is no such cause.
        """
        self.state, self.calm, self.other, self.run = saved.state, saved.calm, saved.other, saved.run
        self.reason = Reason(Cause(saved.cause), saved.missing, saved.outside)
        self.late_count, self.late_total, self.late_squares = saved.late
        self.offsets.up, self.offsets.down = saved.offset
        self.steps.up, self.steps.down = saved.step
        self.besides.up, self.besides.down = saved.beside
        self.psi, self.missing, self.outside = saved.psi, saved.missing, saved.outside
