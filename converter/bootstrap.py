"""Limits for drift from recordings: how far a device's statistics go by chance alone, by block bootstrap.

Readings depend on one another and on the hour. Therefore runs of neighbouring blocks are drawn (Kuensch, 1989), a day
long where the recordings hold several days, and joined to courses. A device's CUSUMs and PSI are computed over many
courses. Their maxima closely follow a Gumbel law, since the run length of a CUSUM grows exponentially with its limit
(Siegmund, 1985). The law gives the limit for the desired rate of false alarms.

Weak points: courses of some hundred blocks represent months, so the law is extrapolated far beyond the simulated range;
and the recordings hold neither other seasons nor other machines.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from converter.blocks import Blocks
from edge_runtime.drift.baseline import Doubles, stability_index
from edge_runtime.drift.column import MEMORY
from edge_runtime.drift.columns import FIRST_BLOCKS

PATHS = 96
MOST_STEPS = 256  # blocks of a course
SLACKS = (0.25, 0.5, 1.0, 2.0)
SHIFTS_SD = (1.0, 3.0)  # standard deviations of the readings: the offsets whose delays decide between slacks and blocks
SHIFTS_STEP = (0.4, 1.1)  # the same of the logarithm of the step: half as much again, and three times as much
MEMORIES = (MEMORY, 4.0 * MEMORY, 16.0 * MEMORY)  # blocks; of the shape
GOOD_PSI = 0.5  # a limit that finds most changes of the shape; a longer memory is taken only where it is higher
NEVER = 1e5  # blocks after which a shift counts as not found
MARGIN = 2.0  # the calibration aims at half the rate: over years of simulated readings, that keeps the stated rate
_LEAST_LIMIT = 2.0
_LEAST_PSI = 0.02
_MOST_TRAINED = 2048  # blocks
MANY_SESSIONS = 8  # with so many recordings, parts are whole ones
PARTS = 8  # that are left out in turn; they overlap
LEFT_OUT = 0.3  # of the blocks: the share that a device's recordings are checked by, too
_RUN_SHARE = 8  # a run is at most this part of the blocks
_EULER = 0.5772156649


@dataclass(frozen=True, slots=True, eq=False)
class ColumnLimits:
    """For each column: slack and limit of the two CUSUMs, and the limit of the PSI.

    `memory` is that of the PSI, in blocks; `delays` are the numbers of blocks until the offsets `SHIFTS_SD` raise an
    alarm, in the median column.
    """

    slack: Doubles
    limit: Doubles
    step_slack: Doubles
    step_limit: Doubles
    beside_slack: Doubles
    beside_limit: Doubles
    psi: Doubles
    memory: float
    delays: tuple[float, ...]


def limits_of(
    blocks: Blocks, *, mean: Doubles, sd: Doubles, std: Doubles, step: Doubles, step_sd: Doubles, counts: Doubles,
    beside: Doubles | None, alarms: float, day: float | None, seed: int = 0,
) -> ColumnLimits:  # fmt: skip
    """Calibrate.

    Args:
        blocks: those of the recordings that calibrate.
        mean: of each column.
        sd: of the means of blocks.
        std: of the readings.
        step: mean of the logarithms of the steps.
        step_sd: and their standard deviation.
        beside: `[blocks, columns]`: how each moved beside the others, in standard deviations; None for none of them.
        counts: `[columns, bins]` of the reference; NaN where a column has fewer bins.
        alarms: false alarms allowed for each block, over all columns and statistics.
        day: blocks a day; None where that is not known.
        seed: of the bootstrap.
    """
    rng = np.random.default_rng(seed)
    steps = min(MOST_STEPS, max(32, 2 * len(blocks)))
    plans = [_mixed(blocks.session, steps, day, rng), *_parted(blocks.session)]
    statistics = 3.0 if beside is None else 4.0
    share = alarms / (MARGIN * statistics * max(1, len(mean)))  # of one statistic of one column, in one block
    offsets = [_as_trained((blocks.mean - mean) / sd, plan) for plan in plans]
    moves = [_as_trained((blocks.step - step) / step_sd, plan) for plan in plans]
    slack, limit, delays = _cusum_limits(plans, offsets, share, [shift * std / sd for shift in SHIFTS_SD])
    step_slack, step_limit, _ = _cusum_limits(plans, moves, share, [shift / step_sd for shift in SHIFTS_STEP])
    beside_slack, beside_limit = np.zeros((2, len(mean)))
    if beside is not None:
        likewise = [_as_trained(beside, plan) for plan in plans]
        beside_slack, beside_limit, _ = _cusum_limits(plans, likewise, share, [np.full(len(mean), 1.5)])
    memory, psi = MEMORIES[0], np.full(len(counts), np.inf)
    for each in MEMORIES:
        if each > len(blocks) / 2.0:
            break
        found = np.max([_psi_limit(blocks, plan, counts, share=share, memory=each) for plan in plans], axis=0)
        if np.median(found) < np.median(psi):
            memory, psi = each, found
        if np.median(psi) <= GOOD_PSI:
            break
    return ColumnLimits(
        slack, limit, step_slack, step_limit, beside_slack, beside_limit, psi, memory,
        tuple(np.median(delays, axis=1).tolist()),
    )  # fmt: skip


class _Plan(NamedTuple):
    """Courses of blocks, and the recordings that each of them is compared with; as indexes of blocks."""

    drawn: NDArray[np.int64]  # [paths, steps]
    trained: NDArray[np.int64]  # [paths, blocks]
    is_drawn: bool  # else the courses are parts of the recording as it is

    def limit(self, most: Doubles, share: float) -> Doubles:
        """The limit for `share` alarms in a block, from `[..., paths, columns]`, the largest values of the courses.

        Of parts as they are there are too few for a law: none of them shall raise an alarm.
        """
        return _tail(most, self.drawn.shape[1], share) if self.is_drawn else np.asarray(most.max(axis=-2))


def _mixed(session: NDArray[np.int64], steps: int, day: float | None, rng: np.random.Generator) -> _Plan:
    """Courses and recordings of runs from the whole recording."""
    trained = min(len(session), _MOST_TRAINED)
    return _Plan(_courses(session, steps, day, rng), _courses(session, trained, day, rng), is_drawn=True)


def _parted(session: NDArray[np.int64]) -> list[_Plan]:
    """Parts of the recording in their own order, each compared with the rest; none where there are many sessions.

    Runs that are drawn from the whole recording are as much alike as it is; its parts differ from one another as a
    later recording will differ from it. A part is taken from every session, since sessions may differ by their label.
    """
    places = [np.flatnonzero(session == each) for each in np.unique(session)]
    lengths = [int(LEFT_OUT * len(rows)) for rows in places]
    if len(places) >= MANY_SESSIONS or not sum(lengths):
        return []
    parts, rests = [], []
    for share in np.linspace(0.0, 1.0, PARTS):
        firsts = [round(share * (len(rows) - length)) for rows, length in zip(places, lengths, strict=True)]
        part = [rows[first : first + length] for rows, first, length in zip(places, firsts, lengths, strict=True)]
        parts.append(np.concatenate(part))
        rests.append(np.setdiff1d(np.arange(len(session)), parts[-1]))
    return [_Plan(np.array(parts), np.array(rests), is_drawn=False)]


def _courses(session: NDArray[np.int64], steps: int, day: float | None, rng: np.random.Generator) -> NDArray[np.int64]:
    """`[PATHS, steps]`: indexes of blocks, in runs of neighbours of one session."""
    count = len(session)
    run = max(1, min(count // _RUN_SHARE, steps))
    if day is not None:
        run = min(run, max(round(day), round(count ** (1.0 / 3.0))))
    ends = np.append(np.flatnonzero(np.diff(session)) + 1, count)
    last = ends[np.searchsorted(ends, np.arange(count), side="right")]  # the end of each block's session
    found = np.empty((PATHS, steps), np.int64)
    place = rng.integers(count, size=PATHS)
    left = rng.integers(1, run + 1, size=PATHS)
    for step in range(steps):
        over = (left <= 0) | (place >= last[np.minimum(place, count - 1)]) | (place >= count)
        fresh = rng.integers(count, size=PATHS)
        place, left = np.where(over, fresh, place), np.where(over, run, left)
        found[:, step] = place
        place, left = place + 1, left - 1
        crossed = (place < count) & (session[np.minimum(place, count - 1)] != session[found[:, step]])
        left = np.where(crossed, 0, left)
    return found


def _as_trained(z: Doubles, plan: _Plan) -> Doubles:
    """Courses standardised by the mean and spread of other recordings of the same length.

    Mean and spread are estimates; with their own, courses would vary too little, and limits would be too low.
    """
    z = np.nan_to_num(z)
    recorded = z[plan.trained]
    spread = np.maximum(recorded.std(axis=1, keepdims=True), 0.1)
    return np.asarray((z[plan.drawn] - recorded.mean(axis=1, keepdims=True)) / spread)


def _cusum_limits(
    plans: Sequence[_Plan], courses: Sequence[Doubles], share: float, shifts: Sequence[Doubles]
) -> tuple[Doubles, Doubles, Doubles]:
    """For each column the slack and limit that find shifts soonest, and the number of blocks that each shift takes."""
    slacks = np.array(SLACKS)[:, np.newaxis, np.newaxis]
    limits = np.max([plan.limit(_most(z, slacks), share) for z, plan in zip(courses, plans, strict=True)], axis=0)
    limits = np.maximum(limits, _LEAST_LIMIT)  # [slacks, columns]
    room = np.maximum(np.array(shifts)[:, np.newaxis] - slacks[:, :, 0], limits / NEVER)
    delays = np.maximum(limits / room, 2.0)  # [shifts, slacks, columns]
    best = np.log(delays).sum(axis=0).argmin(axis=0)
    columns = np.arange(len(best))
    return np.array(SLACKS)[best], limits[best, columns], delays[:, best, columns]


def _most(z: Doubles, slacks: Doubles) -> Doubles:
    """`[slacks, paths, columns]`: the largest value of either sum in each course."""
    up = np.zeros((len(SLACKS), len(z), z.shape[2]))
    down, most = up.copy(), up.copy()
    for step in range(z.shape[1]):
        now = z[:, step]
        up = np.maximum(up + now - slacks, 0.0)
        down = np.maximum(down - now - slacks, 0.0)
        np.maximum(most, up, out=most)
        np.maximum(most, down, out=most)
    return most


def _psi_limit(blocks: Blocks, plan: _Plan, counts: Doubles, *, share: float, memory: float) -> Doubles:
    """The limit of the recent PSI for each column, of courses compared with other recordings of the same length."""
    there = np.isfinite(counts)
    if not there.shape[1]:
        return np.full(len(counts), np.inf)
    bins = np.maximum(there.sum(axis=1), 1)
    own = np.concatenate([blocks.present[:, :, np.newaxis], blocks.above], axis=2).astype(np.float64)
    own[:, :, :-1] -= own[:, :, 1:]
    own *= there  # a missing edge is infinite and counts nothing
    often = np.array([np.bincount(path, minlength=len(own)) for path in plan.trained], np.float64)  # [paths, blocks]
    training = _shares((often @ own.reshape(len(own), -1)).reshape(len(plan.trained), *counts.shape), there, bins)
    size = float(blocks.present.max(initial=1))
    late = np.where(there, training, 0.0) * size * memory  # as on a device
    most = np.zeros((len(plan.drawn), len(counts)))
    steps = plan.drawn.shape[1]
    for step in range(steps):
        late = (1.0 - 1.0 / memory) * late + own[plan.drawn[:, step]]
        if step + 1 >= FIRST_BLOCKS:
            np.maximum(most, stability_index(training, _shares(late, there, bins)), out=most)
    return np.maximum(plan.limit(most, share), _LEAST_PSI)


def _shares(counts: Doubles, there: NDArray[np.bool_], bins: NDArray[np.int64]) -> Doubles:
    """Shares of `[paths, columns, bins]`, with half a count more in each; 1 for a bin that a column does not have."""
    return np.where(there, (counts + 0.5) / (counts.sum(axis=2) + 0.5 * bins)[:, :, np.newaxis], 1.0)


def _tail(most: Doubles, steps: int, share: float) -> Doubles:
    """The limit that a course's maximum exceeds at this rate: a Gumbel law, fitted over the paths and extrapolated.

    Args:
        most: `[..., paths, columns]`: the largest values of courses.
        steps: number of blocks in a course.
        share: alarms allowed for each block.
    """
    scale = most.std(axis=-2) * np.sqrt(6.0) / np.pi
    place = most.mean(axis=-2) - _EULER * scale
    seldom = max(1.0 / (steps * share), 1.0)
    law = np.asarray(place + scale * np.log(seldom))
    return np.maximum(law, most.max(axis=-2)) if seldom > PATHS else law
