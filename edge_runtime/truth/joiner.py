"""Truth -> the prediction that it belongs to, within bounds. Pure.

The last `most` predictions are remembered, by id, and by key and time. A truth that names an id belongs to that
prediction; one that names key and time to the prediction of that key whose time is nearest, and at most `tolerance`
away (the earlier one, where two are equally near).

Guarantee: each prediction is judged once. What cannot be joined is one of four words: `unknown` (no such prediction),
`late` (remembered once, or older than anything of its key that is remembered), `twice` (the same truth again),
`conflict` (another truth for the same prediction; the first one stands). Weak point: beyond what `Forgotten` holds a
late truth may count as unknown.
"""

import math
from bisect import bisect_left, insort
from collections.abc import Iterable
from typing import Literal

import msgspec

from edge_runtime.truth.memory import FORGOTTEN_SHARE, Answer, Forgotten, Noted, tail_of

Unmatched = Literal["unknown", "late", "twice", "conflict"]
UNMATCHED: tuple[Unmatched, ...] = ("unknown", "late", "twice", "conflict")


class Remembered(msgspec.Struct):
    """A prediction that waits for its truth, or has it.

    Attributes:
        tail: the part of its id behind the name of the model, `KEY/IDENTITY` or `KEY/START/SEQ`.
        key: of its stream.
        time: of its window's last reading.
        answer: what it said.
        truth: what was right, once that is known.
    """

    tail: str
    key: str | None
    time: float
    answer: Answer
    truth: Answer | None = None


class TruthJoiner:
    """The predictions of one model.

    Args:
        most: how many are remembered.
        tolerance: seconds between the time of a truth and that of its prediction, at the most.
        start: the number of this start, which is a part of ids.
        forgotten: ids that were forgotten before they came here; others are added.
    """

    def __init__(self, most: int, tolerance: float, start: int, forgotten: Forgotten | None = None) -> None:
        self._most = most
        self._tolerance = tolerance
        self._start = start
        self._by_tail: dict[str, Remembered] = {}  # in the order of their coming
        self._by_key: dict[str | None, list[tuple[float, str]]] = {}  # by time
        self._forgotten = Forgotten(FORGOTTEN_SHARE * most) if forgotten is None else forgotten
        self._horizon: dict[str | None, float] = {}  # up to this time predictions of a key were forgotten

    def __len__(self) -> int:
        return len(self._by_tail)

    def add(self, noted: Iterable[Noted]) -> None:
        """Remember predictions, and forget the oldest beyond the bound."""
        for each in noted:
            self.restore(Remembered(tail_of(each, self._start), each.key, each.time, each.answer))

    def restore(self, remembered: Remembered) -> None:
        """Remember one, such as of an earlier start."""
        if remembered.tail in self._by_tail:
            return  # an id that came twice names one prediction
        self._by_tail[remembered.tail] = remembered
        insort(self._by_key.setdefault(remembered.key, []), (remembered.time, remembered.tail))
        while len(self._by_tail) > self._most:
            self._forget(next(iter(self._by_tail)))

    def forget_all(self) -> None:
        """From now on every truth for what is remembered is late: another bundle answers."""
        for tail in list(self._by_tail):
            self._forget(tail)

    @property
    def remembered(self) -> list[Remembered]:
        """What is remembered, the oldest first."""
        return list(self._by_tail.values())

    def by_id(self, tail: str) -> Remembered | Unmatched:
        """The prediction with this id, without what stands before the key."""
        found = self._by_tail.get(tail)
        if found is not None:
            return found
        return "late" if tail in self._forgotten or self._is_of_an_earlier_time(tail) else "unknown"

    def by_time(self, key: str | None, time: float) -> Remembered | Unmatched:
        """The prediction of this key that is nearest in time."""
        known = self._by_key.get(key, [])
        place = bisect_left(known, (time, ""))
        near = known[max(0, place - 1) : place + 1]
        if near:
            nearest = min(near, key=lambda each: (abs(each[0] - time), each[0]))
            if abs(nearest[0] - time) <= self._tolerance:
                return self._by_tail[nearest[1]]
        oldest = max(known[0][0] if known else -math.inf, self._horizon.get(key, -math.inf))
        return "late" if time <= oldest else "unknown"

    def settle(self, found: Remembered, truth: Answer) -> Unmatched | None:
        """Note the truth of a prediction; None where it is the first, else what it is."""
        if found.truth is not None:
            return "twice" if found.truth == truth else "conflict"
        found.truth = truth
        return None

    def _forget(self, tail: str) -> None:
        gone = self._by_tail.pop(tail)
        times = self._by_key[gone.key]
        del times[bisect_left(times, (gone.time, tail))]
        if not times:
            del self._by_key[gone.key]
            if len(self._horizon) > self._most:
                self._horizon.clear()  # keys are many: a late truth by key and time counts as unknown then
        self._horizon[gone.key] = max(gone.time, self._horizon.get(gone.key, -math.inf))
        self._forgotten.add(tail)

    def _is_of_an_earlier_time(self, tail: str) -> bool:
        """Whether an id with a number of a start is older than anything of its key that is remembered."""
        key, _, rest = tail.rpartition("/")
        key, _, start = key.rpartition("/")
        number = _whole(rest)
        from_start = _whole(start)
        if number is None or from_start is None or from_start > self._start or from_start < 1:
            return False
        if from_start < self._start:
            return True
        known = self._by_key.get(None if key == "-" else key, [])
        oldest = self._number_of(known[0][1]) if known else None
        return oldest is not None and number < oldest

    def _number_of(self, tail: str) -> int | None:
        head, _, number = tail.rpartition("/")
        return _whole(number) if head.endswith(f"/{self._start}") else None


def _whole(text: str) -> int | None:
    return int(text) if text.isdecimal() and text.isascii() and len(text) < 16 else None
