"""Two models on the same rows: between what bounds the difference of their metric lies, and whether it may be chance.

    interval   paired bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 13 and 16):
               `RESAMPLES` times as many units as there are, drawn with replacement; both models are judged on the rows
               of the same units, and the 2.5 % and 97.5 % quantiles of the difference are the interval
    p          McNemar's test in its exact form, of the rows that one model alone gets right (McNemar, Psychometrika 12,
               1947; Dietterich, Neural Computation 10, 1998, recommends it for two classifiers on one set of rows): how
               often a fair coin would share them out as unevenly as that

A unit is a group of the data (a recording), where there are at least `FEWEST_UNITS`; else a block of neighbours where
windows share readings; else a row. McNemar's test takes rows for independent, so that it is given for units of one row
only. Pure, with a seed. Weak point: few units give an interval that is too narrow.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
MOST_CELLS = 40_000_000  # rows in all resamples together: more rows need fewer of them
FEWEST_UNITS = 8  # fewer recordings have too few combinations to be drawn from
BLOCKS = 20
SEED = 0

Rows = NDArray[np.int64]


class PairedDifference(NamedTuple):
    """The difference of a metric, the second model's less the first one's.

    Attributes:
        value: on all rows.
        low: of the interval of 95 %.
        high: of the same.
        units: what was drawn, in words, such as `60 rows`.
        only_first: rows that the first model alone gets right; None where rows are not right or wrong by themselves.
        only_second: the same of the second.
        p: McNemar's; None where there is none.
    """

    value: float
    low: float
    high: float
    units: str
    only_first: int | None = None
    only_second: int | None = None
    p: float | None = None

    @property
    def may_be_chance(self) -> bool:
        """The interval holds zero."""
        return self.low <= 0.0 <= self.high


def paired_difference(
    metrics: Callable[[Rows], tuple[float, float]],
    count: int,
    *,
    groups: NDArray[np.generic] | None,
    overlapping: bool,
    right: tuple[NDArray[np.bool_], NDArray[np.bool_]] | None = None,
) -> PairedDifference:
    """Judge two models on resamples of their rows.

    Args:
        metrics: both models' metric on some rows; NaN where it does not exist, such as an AUC of one class.
        count: of the rows.
        groups: of each row; None where there are none.
        overlapping: neighbours share readings.
        right: which rows each model gets right, where a row is right or wrong by itself.
    """
    units = _units(count, groups, overlapping=overlapping)
    drawn_from = count if units is None else len(units)
    rng = np.random.default_rng(SEED)
    found = []
    for _ in range(max(200, min(RESAMPLES, MOST_CELLS // max(1, count)))):
        drawn = rng.integers(0, drawn_from, drawn_from)
        rows = drawn if units is None else np.concatenate([units[place] for place in drawn.tolist()])
        one, other = metrics(rows)
        if math.isfinite(one) and math.isfinite(other):
            found.append(other - one)
    one, other = metrics(np.arange(count))
    low, high = np.quantile(found, [0.025, 0.975]).tolist() if found else (-math.inf, math.inf)
    units_said = f"{drawn_from} {'rows' if units is None else 'groups or blocks of neighbours'}"
    difference = PairedDifference(other - one, low, high, units_said)
    if right is None:
        return difference
    only_first, only_second = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    p = mcnemar(only_first, only_second) if units is None else None
    return difference._replace(only_first=only_first, only_second=only_second, p=p)


def mcnemar(one: int, other: int) -> float:
    """The exact p of both tails, of rows that only the one model and only the other get right."""
    n, fewer = one + other, min(one, other)
    if one == other:
        return 1.0
    logs = [
        math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2) for k in range(fewer + 1)
    ]
    return min(1.0, 2.0 * math.fsum(math.exp(each) for each in logs))


def in_words(name: str, difference: PairedDifference) -> list[str]:
    """For people."""
    chance = ": this may be chance" if difference.may_be_chance else ""
    between = f"{difference.low:+.4f} to {difference.high:+.4f} (paired bootstrap over {difference.units})"
    lines = [f"{name} of B less that of A: {difference.value:+.4f}, 95 %: {between}{chance}"]
    if difference.only_first is not None:
        tested = "" if difference.p is None else f"; McNemar's exact p = {difference.p:.2g}"
        lines.append(f"right by A only: {difference.only_first} rows, by B only: {difference.only_second}{tested}")
    return lines


def _units(count: int, groups: NDArray[np.generic] | None, *, overlapping: bool) -> list[Rows] | None:
    """The rows of each unit; None where every row is one."""
    order: Rows = np.arange(count)
    if groups is not None:
        names, places = np.unique(groups, return_inverse=True)
        if len(names) < count:
            order = np.argsort(places, kind="stable")
            if len(names) >= FEWEST_UNITS:
                return np.split(order, np.cumsum(np.bincount(places))[:-1])
            overlapping = True
    return np.array_split(order, min(BLOCKS, count)) if overlapping else None
