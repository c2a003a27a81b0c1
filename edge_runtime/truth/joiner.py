"""Truth -> the prediction that it belongs to, within bounds. Pure.

The joiner remembers the last `most` published predictions and the last `most` withheld ones, by id, and by key and
time. A truth with an id belongs to that prediction. A truth with key and time belongs to the prediction of that key
with the nearest time, at most `tolerance` away (the earlier one, if two are equally near).

Guarantee: each prediction is judged once. A truth that cannot be joined has one of four reasons: `unknown` (no such
prediction), `late` (the prediction is forgotten, or the truth is older than all remembered predictions of its key),
`twice` (the same truth again), `conflict` (another truth for the same prediction; the first one stands). Weak point: an
id that has left `Forgotten` counts as unknown instead of late.
"""

import math
from bisect import bisect_left, insort
from collections.abc import Iterable
from typing import Literal, cast

import msgspec

from edge_runtime.truth.memory import FORGOTTEN_SHARE, Answer, Forgotten, Noted, tail_of

Unmatched = Literal["unknown", "late", "twice", "conflict"]
UNMATCHED: tuple[Unmatched, ...] = ("unknown", "late", "twice", "conflict")


_KeptAnswer = str | bool | list[float | bool]  # as `Answer`: msgspec wants one kind of list


class Remembered(msgspec.Struct):
    """A prediction, with its truth once that has arrived.

    Attributes:
        tail: the part of its id behind the name of the model, `KEY/IDENTITY` or `KEY/START/SEQ`.
        key: of its stream.
        time: of its window's last reading.
        answer: the model's answer.
        truth: the right answer; None until it arrives.
        withheld: True if it was not published.
    """

    tail: str
    key: str | None
    time: float
    answer: _KeptAnswer
    truth: _KeptAnswer | None = None
    withheld: bool = False


class TruthJoiner:
    """The predictions of one model.

    Args:
        most: the number of predictions to remember.
        tolerance: the largest difference in seconds between the times of a truth and of its prediction.
        start: the number of this start, which is a part of ids.
        forgotten: ids that were forgotten before they arrived here; the joiner adds its own.
    """

    def __init__(self, most: int, tolerance: float, start: int, forgotten: Forgotten | None = None) -> None:
        self._most = most
        self._tolerance = tolerance
        self._start = start
        self._by_tail: dict[str, Remembered] = {}  # in the order of arrival
        self._withheld: dict[str, Remembered] = {}  # the same
        self._by_key: dict[str | None, list[tuple[float, str]]] = {}  # by time
        self._forgotten = Forgotten(FORGOTTEN_SHARE * most) if forgotten is None else forgotten
        self._newest: dict[str, tuple[int, int]] = {}  # by key as in ids: the largest number of this start
        self._identities = 0  # remembered predictions whose id is an identity of a reading
        self._horizon: dict[str | None, float] = {}  # by key: predictions up to this time were forgotten

    def __len__(self) -> int:
        return len(self._by_tail) + len(self._withheld)

    def add(self, noted: Iterable[Noted], *, withheld: bool = False) -> None:
        """Remember predictions, and forget the oldest beyond the bound."""
        for each in noted:
            answer = cast("_KeptAnswer", each.answer)
            self.restore(Remembered(tail_of(each, self._start), each.key, each.time, answer, withheld=withheld))

    def restore(self, remembered: Remembered) -> None:
        """Remember one prediction, for example of an earlier start."""
        tail = remembered.tail
        if tail in self._by_tail or tail in self._withheld:
            return  # an id that arrives twice is one prediction
        kind = self._withheld if remembered.withheld else self._by_tail
        kind[tail] = remembered
        insort(self._by_key.setdefault(remembered.key, []), (remembered.time, tail))
        number, start, key = _counted(tail)
        if number is None:
            self._identities += 1
        elif start == self._start:
            self._newest[key] = max(number, self._newest.get(key, number))
        while len(kind) > self._most:
            self._forget(next(iter(kind)), kind)

    def forget_all(self) -> None:
        """Forget every prediction, since another bundle is in use: a truth for one of them is late from now on."""
        for kind in (self._by_tail, self._withheld):
            for tail in list(kind):
                self._forget(tail, kind)

    @property
    def remembered(self) -> list[Remembered]:
        """The remembered predictions, the oldest first: the published ones, then the withheld ones."""
        return [*self._by_tail.values(), *self._withheld.values()]

    def is_early(self, key: str | None, time: float) -> bool:
        """Whether this time is after every prediction of the key, so that its own prediction may still arrive."""
        known = self._by_key.get(key)
        return time > max(known[-1][0] if known else -math.inf, self._horizon.get(key, -math.inf))

    def may_follow(self, tail: str) -> bool:
        """Whether the prediction of this unknown id may still be made: `tail` is the id from the key on.

        An id with a number may, if the number is above those of its key in this start. An identity of a reading may,
        unless the known predictions show that readings bring none.
        """
        number, start, key = _counted(tail)
        if number is None:
            return self._identities > 0 or not len(self)
        return start == self._start and number > self._newest.get(key, (0, 0))

    def distance(self, key: str | None, time: float) -> float | None:
        """Seconds from this time to the nearest remembered prediction of the key; None without one."""
        return min((known - time for known, _ in self._near(key, time)), key=abs, default=None)

    def _near(self, key: str | None, time: float) -> list[tuple[float, str]]:
        """The predictions of the key on either side of a time."""
        known = self._by_key.get(key, [])
        place = bisect_left(known, (time, ""))
        return known[max(0, place - 1) : place + 1]

    def by_id(self, tail: str) -> Remembered | Unmatched:
        """The prediction with this id; `tail` is the id from the key on."""
        found = self._by_tail.get(tail) or self._withheld.get(tail)
        if found is not None:
            return found
        return "late" if tail in self._forgotten or self._is_of_an_earlier_time(tail) else "unknown"

    def by_time(self, key: str | None, time: float) -> Remembered | Unmatched:
        """The prediction of this key that is nearest in time."""
        near = self._near(key, time)
        if near:
            nearest = min(near, key=lambda each: (abs(each[0] - time), each[0]))
            if abs(nearest[0] - time) <= self._tolerance:
                return self._by_tail.get(nearest[1]) or self._withheld[nearest[1]]
        known = self._by_key.get(key)
        oldest = max(known[0][0] if known else -math.inf, self._horizon.get(key, -math.inf))
        return "late" if time <= oldest else "unknown"

    def settle(self, found: Remembered, truth: Answer) -> Unmatched | None:
        """Note the truth of a prediction; None if it is the first, else the reason not to count it."""
        if found.truth is not None:
            return "twice" if found.truth == truth else "conflict"
        found.truth = cast("_KeptAnswer", truth)
        return None

    def _forget(self, tail: str, kind: dict[str, Remembered]) -> None:
        gone = kind.pop(tail)
        self._identities -= _counted(tail)[0] is None
        times = self._by_key[gone.key]
        del times[bisect_left(times, (gone.time, tail))]
        if not times:
            del self._by_key[gone.key]
            self._newest.pop("-" if gone.key is None else gone.key, None)
            if len(self._horizon) > self._most:
                self._horizon.clear()  # too many keys: a late truth by key and time counts as unknown then
        self._horizon[gone.key] = max(gone.time, self._horizon.get(gone.key, -math.inf))
        self._forgotten.add(tail)

    def _is_of_an_earlier_time(self, tail: str) -> bool:
        """Whether an id with start and number is older than all remembered predictions."""
        place, from_start, key = _counted(tail)
        if place is None or from_start is None or from_start > self._start or from_start < 1:
            return False
        if from_start < self._start:
            return True
        number, beside = place
        if beside:
            head, _, first = next(iter(self._withheld), "").rpartition("/")
            oldest = (_numbers(first) or (0, None))[1] if head.endswith(f"/{self._start}") else None
            return oldest is not None and beside < oldest
        known = self._by_key.get(None if key == "-" else key, [])
        oldest = next((found for _, each in known if (found := self._number_of(each)) is not None), None)
        return oldest is not None and number < oldest

    def _number_of(self, tail: str) -> int | None:
        """The number of a published prediction of this start."""
        head, _, number = tail.rpartition("/")
        return _whole(number) if head.endswith(f"/{self._start}") else None


def _counted(tail: str) -> tuple[tuple[int, int] | None, int | None, str]:
    """The numbers, the start and the key of an id with a number; without numbers and start for an identity."""
    head, _, rest = tail.rpartition("/")
    key, slash, start = head.rpartition("/")
    number = _numbers(rest)
    from_start = _whole(start)
    if not slash or number is None or from_start is None:
        return None, None, tail.partition("/")[0]
    return number, from_start, key


def _numbers(text: str) -> tuple[int, int] | None:
    """The numbers of an id: `17`, which is 17 and 0, for a published prediction, `17.3` for a withheld one after it."""
    number, dot, beside = text.partition(".")
    published, withheld = _whole(number), _whole(beside) if dot else 0
    return None if published is None or withheld is None else (published, withheld)


def _whole(text: str) -> int | None:
    return int(text) if text.isdecimal() and text.isascii() and len(text) < 16 else None
