"""Parts of readings -> whole readings: the latest value of each channel, for each key.

Guarantee: a reading consists only of received values, none older than `max_age`; if one is older, the reading is not
made and counts as `stale`. Weak points: values are held in memory only, so that after a start every channel has to
arrive again; a message that completes no reading is acknowledged at once; of more than 10,000 keys the one without
values for longest is forgotten.
"""

import time
from collections.abc import Callable

import numpy as np

from edge_runtime.readings import Batch, Floats

MOST_KEYS = 10_000
ANY, ALL = "any", "all"  # of `when`; any other word is the name of a part


class _Held:
    """The latest values of one key."""

    __slots__ = ("came", "fresh", "values")

    def __init__(self, width: int) -> None:
        self.values: Floats = np.full(width, np.nan, np.float32)
        self.came = [0.0] * width
        self.fresh = [False] * width


class Joiner:
    """Makes whole readings from batches of parts, in which an absent channel is NaN.

    Args:
        channels: of a whole reading.
        when: `any` makes one at each new value once every channel has one, `all` when every channel has a new value, a
            name when that part sends.
        max_age: seconds after which a value is no longer used; None for no limit.
        sink: takes the whole readings.
        stale: called with key and message when a reading is not made because a value is too old.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        channels: tuple[str, ...],
        when: str,
        max_age: float | None,
        sink: Callable[[Batch], None],
        *,
        stale: Callable[[str | None, str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._channels = channels
        self._when = when
        self._max_age = max_age
        self._sink = sink
        self._stale = stale
        self._clock = clock
        self._held: dict[str | None, _Held] = {}

    def take(self, batch: Batch, name: str | None = None) -> None:
        """Hold the values of a batch, and pass on the readings that they complete.

        Args:
            batch: of parts.
            name: of the part, if `when` may name it; else each channel in the batch is its own part.
        """
        rows: list[int] = []
        values: list[Floats] = []
        now = self._clock()
        for row, key in enumerate(batch.keys):
            held = self._of_key(key)
            came = np.flatnonzero(~np.isnan(batch.values[row])).tolist()
            for column in came:
                held.values[column] = batch.values[row, column]
                held.came[column] = now
                held.fresh[column] = True
            if not came or not self._is_due(held, came, name) or not self._is_young(held, key, now):
                continue
            held.fresh = [False] * len(self._channels)
            rows.append(row)
            values.append(held.values.copy())
        if rows:
            self._sink(_chosen(batch, rows, values))

    def _of_key(self, key: str | None) -> _Held:
        held = self._held.pop(key, None)
        if held is None:
            held = _Held(len(self._channels))
            if len(self._held) >= MOST_KEYS:
                del self._held[next(iter(self._held))]
        self._held[key] = held  # ordered by the latest value
        return held

    def _is_due(self, held: _Held, came: list[int], name: str | None) -> bool:
        if np.isnan(held.values).any():
            return False
        if self._when == ANY:
            return True
        if self._when == ALL:
            return all(held.fresh)
        return self._when == name or any(self._channels[column] == self._when for column in came)

    def _is_young(self, held: _Held, key: str | None, now: float) -> bool:
        if self._max_age is None:
            return True
        for channel, came in zip(self._channels, held.came, strict=True):
            if now - came > self._max_age:
                why = f"expected values at most {self._max_age:g} s old, found `{channel}` of {now - came:.3g} s ago"
                self._stale(key, why)
                return False
        return True


def _chosen(batch: Batch, rows: list[int], values: list[Floats]) -> Batch:
    refuse = batch.refuse
    return Batch(
        batch.source,
        np.stack(values),
        [batch.keys[row] for row in rows],
        [batch.times[row] for row in rows],
        [batch.identities[row] for row in rows],
        [batch.receipts[row] for row in rows],
        batch.arrived,
        batch.own_times,
        None if refuse is None else lambda row, reason, why, count: refuse(rows[row], reason, why, count),
    )
