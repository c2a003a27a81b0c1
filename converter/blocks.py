"""Recordings cut into the blocks by which a device judges drift, with the statistics of each block (those of `drift/`).

A block never crosses the border of a session (a recording, a key, or a pause). Where sessions are shorter than a block,
neighbouring sessions with the same label count as one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.drift.baseline import LEAST_STEP, MOST_SAMPLED, Doubles

_UNIX_SECONDS = (1e8, 1e11)  # numbers in this range count as seconds since 1970
_MOST_TIMED = 100  # groups by which the rate is judged


@dataclass(frozen=True, slots=True, eq=False)
class Blocks:
    """The statistics of each block of some recordings, for each column.

    Attributes:
        mean: `[blocks, columns]`; NaN where more than half of the values are missing.
        step: the logarithm of the mean step.
        above: `[blocks, columns, edges]`: how many values are at or above each inner edge.
        present: the number of values that are not missing.
        session: `[blocks]`: the number of each block's session, ascending.
    """

    mean: Doubles
    step: Doubles
    above: NDArray[np.int64]
    present: NDArray[np.int64]
    session: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.mean)

    def take(self, rows: NDArray[Any]) -> "Blocks":
        """Some of them."""
        return Blocks(self.mean[rows], self.step[rows], self.above[rows], self.present[rows], self.session[rows])


def sessions_of(groups: NDArray[Any] | None, count: int) -> list[NDArray[np.int64]]:
    """The rows of each session, in the order of the data; a single session where there are no groups."""
    if groups is None:
        return [np.arange(count)]
    names, places = np.unique(groups, return_inverse=True)
    order = np.argsort(places, kind="stable")
    parts = np.split(order, np.cumsum(np.bincount(places, minlength=len(names)))[:-1])
    return sorted((part for part in parts if len(part)), key=lambda part: int(part[0]))


def cut(
    values: NDArray[np.floating], sessions: Sequence[NDArray[np.int64]], block: int, *, edges: NDArray[np.floating],
    std: Doubles,
) -> Blocks:  # fmt: skip
    """Cut recordings into blocks.

    Args:
        values: `[readings, columns]`.
        sessions: the rows of each.
        block: readings of each block.
        edges: `[columns, edges]`, infinite where there is none.
        std: of each column, for the floor of a step.
    """
    every = max(1, block // MOST_SAMPLED)
    size = -(-block // every)
    parts: list[tuple[Doubles, Doubles, NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]] = []
    for number, rows in enumerate(sessions):
        count = len(rows) // block
        if not count:
            continue
        whole = values[rows[: count * block]].astype(np.float64)
        shaped = whole.reshape(count, block, -1)[:, ::every]
        flat = shaped.reshape(count * size, -1)
        steps = np.abs(np.diff(flat, axis=0, prepend=np.nan)).reshape(count, size, -1)
        known, moved = np.isfinite(shaped), np.isfinite(steps)
        present = known.sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = np.where(known, shaped, 0.0).sum(axis=1) / present
            step = np.where(moved, steps, 0.0).sum(axis=1) / moved.sum(axis=1)
        mean[present < size / 2] = np.nan
        step[moved.sum(axis=1) < size / 2] = np.nan
        above = np.stack(
            [(shaped >= edges[:, place].astype(np.float64)).sum(axis=1) for place in range(edges.shape[1])], axis=-1
        ) if edges.shape[1] else np.zeros((*present.shape, 0), np.int64)  # fmt: skip
        log = np.log(np.maximum(step, LEAST_STEP * std))
        parts.append((mean, log, above, present, np.full(count, number)))
    if not parts:
        columns = values.shape[1]
        nothing = np.zeros((0, columns))
        return Blocks(
            nothing, nothing, np.zeros((0, columns, edges.shape[1]), np.int64), nothing.astype(np.int64),
            np.zeros(0, np.int64),
        )  # fmt: skip
    mean, log, above, present, session = (np.concatenate(each) for each in zip(*parts, strict=True))
    return Blocks(mean, log, above, present, session)


def longest_runs(values: NDArray[np.floating], sessions: Sequence[NDArray[np.int64]], *, every: int = 1) -> list[int]:
    """The longest run of equal values, for each column; in readings, of which one in `every` is looked at."""
    longest = [0] * values.shape[1]
    for rows in sessions:
        for column in range(values.shape[1]):
            part = values[rows[::every], column]
            ends = np.flatnonzero(np.append(part[1:] != part[:-1], True))
            most = int(np.diff(ends, prepend=-1).max(initial=0))
            longest[column] = max(longest[column], (most - 1) * every + 1)
    return longest


def rate_of(times: NDArray[Any], groups: NDArray[Any] | None) -> float | None:
    """Readings a second in one group, by their sorted times; None where the unit of numbers is unknown."""
    if times.dtype == np.int64:  # microseconds
        seconds = times.astype(np.float64) * 1e-6
    elif len(times) and _UNIX_SECONDS[0] < times[0] < _UNIX_SECONDS[1]:
        seconds = times.astype(np.float64)
    else:
        return None
    parts = [seconds] if groups is None else [seconds[groups == name] for name in np.unique(groups)[:_MOST_TIMED]]
    spans = np.concatenate([np.diff(part) for part in parts])
    forward = spans[spans > 0.0]
    return float(f"{1.0 / np.median(forward):.6g}") if len(forward) else None
