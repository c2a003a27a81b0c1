"""The figures of one column and its state, worked out on paper: each limit at its place, and how it falls."""

import math
import random
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec
import pytest

from edge_runtime.drift.column import (
    CALM,
    IS_FAR,
    IS_NEAR,
    NEAR,
    Cause,
    Column,
    ColumnReference,
    Cusum,
    SavedColumn,
    Statistic,
    medians_of_others,
)

WATCHED = Statistic(mean=10.0, sd=2.0, slack=0.5, limit=4.0)
PLAIN = ColumnReference(
    offset=Statistic(),
    step=Statistic(),
    beside=Statistic(),
    share=0.0,
    least_step=0.25,
    missing=0.0,
    stuck_after=math.inf,
    far=math.nan,
    psi_limit=math.inf,
)


class Sums(NamedTuple):
    """As `ColumnSums`, with names."""

    size: int
    present: int
    total: float
    squares: float
    steps: int
    way: float
    outside: int
    run: int


SUMS = Sums(size=64, present=64, total=0.0, squares=0.0, steps=63, way=63.0, outside=0, run=1)


# --- sums over blocks ---------------------------------------------------------------------------------------------


def test_a_sum_grows_by_what_is_beyond_the_slack_and_never_falls_below_nought() -> None:
    """In standard deviations of the training; one sum for each direction."""
    found, sums = [], Cusum(WATCHED)
    for figure in (13.0, 7.0, 7.0, 11.5, 10.0):
        sums.add(figure)
        found.append((sums.up, sums.down))
    assert found == [(1.0, 0.0), (0.0, 1.0), (0.0, 2.0), (0.25, 0.75), (0.0, 0.25)]


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_no_block_reaches_the_limit_alone_and_no_sum_goes_beyond_twice_the_limit(sign: float) -> None:
    """Half of the limit a block, however far off it is; exactly so far off is not cut."""
    for figure in (1e9, math.inf, 15.0):
        sums = Cusum(WATCHED)
        found = []
        for _ in range(5):
            sums.add(10.0 + sign * (figure - 10.0))
            found.append((sums.up, sums.down) if sign > 0 else (sums.down, sums.up))
        assert found == [(2.0, 0.0), (4.0, 0.0), (6.0, 0.0), (8.0, 0.0), (8.0, 0.0)]


def test_a_block_beyond_a_small_limit_counts_to_its_own_side() -> None:
    """Also with a limit below one standard deviation: half of it a block."""
    sums = Cusum(Statistic(mean=0.0, sd=1.0, slack=0.125, limit=0.5))
    sums.add(0.75)
    assert (sums.up, sums.down) == (0.25, 0.0)


def test_both_sums_stand_while_one_is_near_its_limit() -> None:
    """A small one to the other side is not lost."""
    sums = Cusum(Statistic(mean=0.0, sd=1.0, slack=0.0, limit=8.0))
    for up, down in ((7.0, 0.75), (0.75, 7.0)):
        sums.up, sums.down = up, down
        assert sums.add(0.0)
        assert (sums.up, sums.down) == (up, down)


def test_a_figure_without_limits_sums_nothing() -> None:
    """Its deviation is infinite."""
    sums = Cusum(Statistic())
    for figure in (5.0, -1e300):
        sums.add(figure)
        assert (sums.up, sums.down) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("values", "medians"),
    [
        ([], []),
        ([1.0], [None]),
        ([None], [None]),
        ([1.0, 5.0], [5.0, 1.0]),
        ([1.0, None, 5.0], [5.0, 3.0, 1.0]),
        ([4.0, 1.0, 3.0, 2.0], [2.0, 3.0, 2.0, 3.0]),
        ([2.0, 2.0, 2.0, 9.0], [2.0, 2.0, 2.0, 2.0]),
    ],
)
def test_the_median_of_the_others_leaves_out_its_own_place(
    values: list[float | None], medians: list[float | None]
) -> None:
    """And those that are not there; of an even number it is the middle of two."""
    assert medians_of_others(values) == medians


# --- the figures of a block ---------------------------------------------------------------------------------------


def test_recent_blocks_weigh_more() -> None:
    """Each block's weight falls by an eighth with every further one."""
    column = Column(PLAIN)
    column.add(SUMS._replace(present=32, total=8.0, squares=80.0), 0.0)
    column.add(SUMS._replace(present=64, total=-16.0, squares=16.0), 0.0)
    assert (column.late_count, column.late_total, column.late_squares) == (64 + 28.0, -16.0 + 7.0, 16.0 + 70.0)


def test_shares_are_those_of_the_last_block() -> None:
    """Missing ones of its readings, and those out of range of what is there."""
    column = Column(PLAIN)
    column.add(SUMS._replace(present=48, outside=12), 0.0)
    assert (column.missing, column.outside) == (0.25, 0.25)
    column.add(SUMS._replace(present=0, steps=0, outside=0), 0.0)
    assert (column.missing, column.outside) == (1.0, 0.0)


def test_equal_values_are_counted_over_blocks() -> None:
    """A block that is one run goes on with the one before it."""
    column = Column(PLAIN)
    found = []
    for run in (5, 0, 0, 1):
        column.add(SUMS._replace(run=run), 0.0)
        found.append(column.run)
    assert found == [5, 69, 133, 1]


def test_a_block_of_which_half_is_there_has_a_mean_and_a_step() -> None:
    """Less than half says nothing of either; the sums then stand still but for the slack."""
    reference = PLAIN._replace(offset=WATCHED._replace(mean=0.5), step=WATCHED._replace(mean=math.log(2.0)))
    column = Column(reference)
    column.add(SUMS._replace(present=32, total=128.0, steps=32, way=256.0), 0.0)
    assert (column.offset, column.step) == (4.0, math.log(8.0))
    assert column.offsets.up == (4.0 - 0.5) / 2.0 - 0.5
    assert column.steps.up == pytest.approx(math.log(4.0) / 2.0 - 0.5)
    before = column.offsets.up, column.steps.up
    column.add(SUMS._replace(present=31, total=1e6, steps=31, way=1e6), 0.0)
    assert (column.offset, column.step) == (None, None)
    assert (column.offsets.up, column.steps.up) == (before[0] - 0.5, max(0.0, before[1] - 0.5))


def test_a_step_has_a_floor() -> None:
    """A block that stands still has no logarithm."""
    column = Column(PLAIN)
    column.add(SUMS._replace(way=0.0), 0.0)
    assert column.step == math.log(0.25)


@pytest.mark.parametrize(
    ("total", "far", "is_far"),
    [(64.0, 0.99, True), (64.0, 1.0, False), (-64.0, 0.99, True), (-64.0, 1.0, False), (64.0, math.nan, False)],
)
def test_a_column_far_from_its_training_may_be_another_one(total: float, far: float, *, is_far: bool) -> None:
    """To either side; one that is never tested is not."""
    column = Column(PLAIN._replace(far=far))
    assert column.add(SUMS._replace(total=total), 0.0) == IS_NEAR + (IS_FAR if is_far else 0)
    assert not column.add(SUMS._replace(total=1e9, present=10), 0.0) & IS_FAR


def test_a_step_is_compared_with_a_share_of_the_others() -> None:
    """Where either is not known, the sum stands still but for the slack."""
    column = Column(PLAIN._replace(beside=WATCHED._replace(mean=0.0), share=0.5))
    column.add(SUMS._replace(way=63.0 * math.e**4), 0.0)
    column.add_beside(2.0)
    assert column.besides.up == pytest.approx((4.0 - 1.0) / 2.0 - 0.5)
    column.add_beside(None)
    assert column.besides.up == pytest.approx(0.5)
    column.add(SUMS._replace(steps=0), 0.0)
    column.add_beside(-100.0)
    assert column.besides.up == pytest.approx(0.0)
    assert column.besides.down == 0.0


# --- the state ----------------------------------------------------------------------------------------------------


@dataclass
class _Severity:
    """How a column is made as severe as a number: 0.5 is `watch`, 1 `alarm`."""

    cause: Cause

    def reference(self) -> ColumnReference:
        limited = Statistic(mean=0.0, sd=1.0, slack=0.0, limit=8.0)
        given: dict[Cause, dict[str, Any]] = {
            Cause.MISSING: {"missing": 0.25},
            Cause.STUCK: {"stuck_after": 1000.0},
            Cause.OFFSET: {"offset": limited},
            Cause.SHAPE: {"psi_limit": 0.5},
            Cause.STEP: {"step": limited},
            Cause.BESIDE: {"beside": limited},
        }
        return PLAIN._replace(**given.get(self.cause, {}))

    def put(self, column: Column, severity: float) -> None:
        sums = {Cause.OFFSET: column.offsets, Cause.STEP: column.steps, Cause.BESIDE: column.besides}
        if self.cause == Cause.MISSING:
            column.missing = 0.25 + 0.1 * severity
        elif self.cause == Cause.STUCK:
            column.run = round(1000 * severity)
        elif self.cause == Cause.OUTSIDE:
            column.outside = 0.05 * severity
        elif self.cause == Cause.SHAPE:
            column.psi = 0.5 * (severity + 1.0) / 2.0
        else:
            sums[self.cause].up = 8.0 * (severity + 1.0) / 2.0


@pytest.mark.parametrize("cause", [cause for cause in Cause if cause != Cause.SWAPPED])
@pytest.mark.parametrize(
    ("severities", "states"),
    [
        ((0.495, 0.505, 0.995, 1.005), (0, 1, 1, 2)),
        ((0.505, 0.355, 0.355), (1, 1, 1)),  # the reason is not gone before 0.7 of the limit
        ((0.505, 0.345, 0.345, 0.345), (1, 1, 0, 0)),
        ((0.505, 0.345, 0.355, 0.345, 0.345), (1, 1, 1, 1, 0)),  # calm blocks are counted one after the other
        ((1.005, 0.705, 0.705), (2, 2, 2)),
        ((1.005, 0.695, 0.695, 0.695), (2, 2, 1, 1)),
        ((1.005, 0.345, 0.345), (2, 2, 0)),
        ((1.005, 0.695, 0.695, 0.345, 0.345), (2, 2, 1, 1, 0)),  # each step down needs its own calm blocks
        ((0.505, 0.705, 0.995), (1, 1, 1)),
        ((1.005, 0.345, 0.705, 0.345, 0.345), (2, 2, 2, 2, 0)),
        ((1.005, 0.345, 0.345, 0.345, 0.505, 0.345, 0.345), (2, 2, 0, 0, 1, 1, 0)),
    ],
)
def test_a_state_rises_at_once_and_falls_after_calm_blocks(
    cause: Cause, severities: tuple[float, ...], states: tuple[int, ...]
) -> None:
    """For each reason by itself; a reason that raised the state has to fall below 0.7 of its limit."""
    assert CALM == 2
    how = _Severity(cause)
    column = Column(how.reference())
    found = []
    for severity in severities:
        how.put(column, severity)
        column.judge(is_swapped=False)
        found.append(column.state)
        if column.state:
            assert column.reason.cause == cause
    assert tuple(found) == states


def test_exactly_at_its_limit_a_reason_counts() -> None:
    """To watch from half of it on, an alarm from the whole on."""
    column = Column(PLAIN._replace(stuck_after=1000.0))
    for run, state in ((499, 0), (500, 1), (999, 1), (1000, 2)):
        column.run = run
        column.judge(is_swapped=False)
        assert column.state == state


@pytest.mark.parametrize("name", ["offsets", "steps", "besides"])
def test_a_sum_counts_in_both_directions(name: str) -> None:
    """Down as up, the larger of the two."""
    limited = Statistic(mean=0.0, sd=1.0, slack=0.0, limit=8.0)
    for up, down in ((1.0, 8.0), (8.0, 1.0)):
        column = Column(PLAIN._replace(offset=limited, step=limited, beside=limited))
        sums = getattr(column, name)
        sums.up, sums.down = up, down
        column.judge(is_swapped=False)
        assert column.state == 2


def test_a_column_that_looks_like_another_one_is_an_alarm() -> None:
    """At once; and of several severe reasons the first one is shown."""
    column = Column(PLAIN)
    found = []
    for missing, outside, is_swapped in (
        (0.0, 0.0, True),
        (0.0, 1.0, True),
        (0.0, 1.0, False),
        (0.06, 0.036, False),  # an alarm stays for 0.72 of a limit; what is missing is only to watch
    ):
        column.missing, column.outside = missing, outside
        column.judge(is_swapped=is_swapped)
        found.append((column.state, column.reason.cause))
    assert found == [(2, Cause.SWAPPED), (2, Cause.SWAPPED), (2, Cause.OUTSIDE), (2, Cause.OUTSIDE)]


def test_a_reason_to_watch_is_shown_until_it_is_gone() -> None:
    """And another one that comes meanwhile, if it comes before it."""
    column = Column(PLAIN)
    column.outside = 0.03
    column.judge(is_swapped=False)
    assert (column.state, column.reason.cause) == (1, Cause.OUTSIDE)
    column.missing = 0.034  # below 0.35: no reason
    column.judge(is_swapped=False)
    assert column.reason.cause == Cause.OUTSIDE
    column.missing = 0.036
    column.judge(is_swapped=False)
    assert (column.state, column.reason.cause) == (1, Cause.MISSING)


def test_a_column_begins_well() -> None:
    """Nothing is known, and nothing is wrong."""
    column = Column(PLAIN)
    column.judge(is_swapped=False)
    assert column.save() == SavedColumn(0, 0, 0, -1, 0, (0.0,) * 3, (0.0,) * 2, (0.0,) * 2, 0.0, 0.0, 0.0, (0.0, 0.0))


# --- over a stop --------------------------------------------------------------------------------------------------


def test_every_figure_is_kept_over_a_stop() -> None:
    """Each at its own place; a cause that is not known is refused."""
    saved = SavedColumn(
        state=1,
        calm=1,
        cause=4,
        other=3,
        run=7,
        late=(1.0, 2.0, 3.0),
        offset=(4.0, 5.0),
        step=(6.0, 7.0),
        psi=8.0,
        missing=9.0,
        outside=10.0,
        beside=(11.0, 12.0),
    )
    column = Column(PLAIN)
    column.restore(saved)
    assert column.save() == saved
    assert (column.reason.cause, column.offsets.up, column.steps.down, column.besides.up) == (
        Cause.OFFSET,
        4.0,
        7.0,
        11.0,
    )
    with pytest.raises(ValueError, match="99"):
        Column(PLAIN).restore(saved._replace(cause=99))


# --- what need not be judged --------------------------------------------------------------------------------------


def test_a_column_that_is_ok_and_not_near_a_limit_need_not_be_judged() -> None:
    """One that is judged only where `add` says so has the states of one that is judged after every block."""
    limited = Statistic(mean=0.0, sd=1.0, slack=0.25, limit=4.0)
    reference = PLAIN._replace(
        offset=limited, step=limited, beside=limited, share=0.5, stuck_after=300.0, psi_limit=0.4, missing=0.02
    )
    reference = reference._replace(quiet=reference.least())
    always, needed = Column(reference), Column(reference)
    rng, skipped, states = random.Random(1), 0, set()
    for _ in range(3000):
        sums = SUMS._replace(
            present=64 - rng.choice([0, 0, 0, 0, 0, 4, 5, 9]),
            total=64.0 * rng.gauss(0.0, 0.8),
            outside=rng.choice([0, 0, 0, 1, 2, 4]),
            way=63.0 * math.exp(rng.gauss(0.0, 0.8)),
            run=rng.choice([1, 1, 0]),
        )
        psi, others = rng.uniform(0.0, 0.32), rng.gauss(0.0, 1.0)
        always.add(sums, psi)
        always.add_beside(others)
        always.judge(is_swapped=False)
        at = needed.add(sums, psi) | IS_NEAR * needed.add_beside(others)
        if at or needed.state:
            needed.judge(is_swapped=False)
        else:
            skipped += 1
        assert needed.save() == always.save()
        states.add(always.state)
    assert states == {0, 1, 2}
    assert skipped > 100


def test_a_sum_is_near_from_three_quarters_of_its_limit_on() -> None:
    """A little below, since the severity is rounded otherwise; to either side."""
    for sign in (1.0, -1.0):
        sums = Cusum(Statistic(mean=0.0, sd=1.0, slack=0.0, limit=8.0))
        assert [sums.add(sign * figure) for figure in (4.0, 1.999, 0.001, 4.0)] == [False, False, True, True]
        assert max(sums.up, sums.down) == pytest.approx(10.0)
    assert 0.7499 < NEAR < 0.75


@pytest.mark.parametrize(
    ("sums", "psi", "is_near"),
    [
        (SUMS, 0.0, False),
        (SUMS._replace(present=48), 0.0, True),  # exactly a quarter is missing
        (SUMS._replace(present=49), 0.0, False),
        (SUMS._replace(run=50), 0.0, True),
        (SUMS._replace(run=49), 0.0, False),
        (SUMS._replace(outside=8), 0.0, True),  # exactly an eighth
        (SUMS._replace(outside=7), 0.0, False),
        (SUMS, 0.15, True),
        (SUMS, 0.149, False),
    ],
)
def test_each_figure_is_near_from_its_own_least_on(sums: Sums, psi: float, *, is_near: bool) -> None:
    """By itself, and exactly there."""
    column = Column(PLAIN._replace(quiet=(0.25, 50.0, 0.125, 0.15)))
    assert bool(column.add(sums, psi) & IS_NEAR) == is_near


LIMITED = Statistic(mean=0.0, sd=1.0, slack=0.0, limit=4.0)


@pytest.mark.parametrize("reference", [PLAIN._replace(offset=LIMITED), PLAIN._replace(step=LIMITED)])
def test_a_sum_that_is_near_its_limit_is_near(reference: ColumnReference) -> None:
    """Each of the two by itself, whatever the other figures are."""
    column = Column(reference._replace(quiet=(math.inf, math.inf, math.inf, math.inf)))
    sums = SUMS._replace(total=64.0 * 9.0, way=63.0 * math.e**9)
    assert [bool(column.add(sums, 0.0) & IS_NEAR) for _ in range(2)] == [False, True]


def test_the_least_figures_for_watch_are_half_of_an_alarm() -> None:
    """And three quarters of the limit of the PSI; all a little low, so that none is missed."""
    reference = PLAIN._replace(missing=0.02, stuck_after=300.0, psi_limit=0.4)
    exact = (0.07, 150.0, 0.025, 0.3)
    least = reference.least()
    assert least == pytest.approx(exact, rel=1e-8)
    assert all(one < other for one, other in zip(least, exact, strict=True))


def test_a_state_that_was_saved_before_columns_were_compared_is_taken_up() -> None:
    """It has no sums of the step beside the others, which begin at nought; and a new column has no reason."""
    column = Column(PLAIN)
    assert column.reason == (Cause.MISSING, 0.0, 0.0)
    old = (1, 1, 4, 3, 7, (1.0, 2.0, 3.0), (4.0, 5.0), (6.0, 7.0), 8.0, 9.0, 10.0)
    column.besides.up = column.besides.down = 5.0
    column.restore(msgspec.convert(old, SavedColumn))
    assert (column.besides.up, column.besides.down, column.steps.down) == (0.0, 0.0, 7.0)
    assert column.reason == (Cause.OFFSET, 9.0, 10.0)
