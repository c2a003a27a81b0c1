"""The receipts of a model with `acknowledge = "window"`: what its windows still need is not acknowledged. Pure.

Guarantee: the receipt of a reading is released when no open window of its key needs the reading any more, and every
prediction that was made of it is safe or withheld on purpose; so after a kill its broker brings it again, and the
windows are built anew. A window that is given up (a gap, a key that is forgotten) gives its readings back.

Weak point: a broker must let as many messages be unacknowledged as open windows hold, and take their acknowledgements
in another order than it sent them, since keys fill their windows at their own pace.
"""

from collections import deque
from collections.abc import Iterable, Sequence

import msgspec

from edge_runtime.readings import NOTHING, Receipt
from edge_runtime.stream.windows import Completed


class _Made(msgspec.Struct, eq=False):
    """A window that was completed, by the number of its first reading; `safe` once its prediction is."""

    begin: int
    safe: bool = False


class _Key:
    """The readings of one key, numbered from 0 since it was met; those before `base` are given back."""

    __slots__ = ("base", "count", "made", "receipts", "start")

    def __init__(self, receipts: Iterable[Receipt | None] = (), start: int = 0) -> None:
        self.receipts = deque(receipts)
        self.base = -len(self.receipts)
        self.count = 0
        self.start = start  # of the open window
        self.made: deque[_Made] = deque()

    def give_back(self) -> None:
        """Release what neither the open window nor one whose prediction is not safe needs."""
        while self.made and self.made[0].safe:
            self.made.popleft()
        floor = min(self.start, self.made[0].begin) if self.made else self.start
        while self.receipts and self.base < floor:
            receipt = self.receipts.popleft()
            self.base += 1
            if receipt is not None:
                receipt.release()


class Holding:
    """The receipts that one model holds.

    Args:
        length: readings of a window.
        stride: from the start of one window to the start of the next.
    """

    def __init__(self, length: int, stride: int) -> None:
        self._length = length
        self._stride = stride
        self._keys: dict[str | None, _Key] = {}

    def __len__(self) -> int:
        """How many messages wait because of it, as far as each has one reading."""
        return sum(len(key.receipts) for key in self._keys.values())

    def take(
        self, keys: Sequence[str | None], receipts: Sequence[Receipt | None], done: Completed
    ) -> list[Receipt | None]:
        """Hold the receipts of readings that have just entered their windows.

        Args:
            keys: of each reading.
            receipts: of each reading.
            done: what the windows made of them.

        Returns:
            For each completed window the receipt that its prediction owes; None where none of its readings has one.
        """
        owed: list[Receipt | None] = []
        anew, completed = set(done.anew), set(done.rows)
        for row, (key, receipt) in enumerate(zip(keys, receipts, strict=True)):
            held = self._keys.get(key)
            if held is None:
                held = self._keys[key] = _Key()
            elif row in anew:
                held.start = held.count
                held.give_back()
            if receipt is not None:
                receipt.hold()
            held.receipts.append(receipt)
            held.count += 1
            if row in completed:
                owed.append(self._complete(held))
            elif held.count <= held.start:  # between two windows
                held.give_back()
        return owed

    def _complete(self, held: _Key) -> Receipt | None:
        begin = held.count - self._length
        held.start = begin + self._stride
        if all(receipt is None for receipt in held.receipts):
            held.give_back()
            return None
        made = _Made(begin)
        held.made.append(made)

        def safe() -> None:
            made.safe = True
            held.give_back()

        return Receipt(safe)

    def forget(self, keys: Iterable[str | None]) -> None:
        """Give back what the open windows of keys need that are gone."""
        for key in keys:
            held = self._keys.pop(key, None)
            if held is not None:
                held.start = held.count
                held.give_back()

    def release_all(self) -> None:
        """Give everything back that waits for an open window: they are given up."""
        self.forget(list(self._keys))

    def receipts(self, key: str | None) -> list[Receipt | None] | None:
        """What the open window of a key holds; None where a window of it is not safe yet: nothing may be kept."""
        held = self._keys.get(key)
        if held is None:
            return []
        return None if held.made else list(held.receipts)

    def restore(self, key: str | None, receipts: Sequence[Receipt | None], until: int) -> None:
        """Take back what `receipts` gave at the last stop; the open window is complete after `until` more readings."""
        self._keys[key] = _Key(receipts, until - self._length)
        self._keys[key].give_back()


class OwedReceipts:
    """Receipts over a stop: by number in the file, and after the start until the broker sends their messages again."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}
        self._kept: list[Receipt] = []  # so that no other receipt gets the place of one that has gone
        self._waiting: dict[int, Receipt] = {}

    def number(self, receipt: Receipt | None) -> int:
        """The number of a receipt that is not released, given to it now where it has none; -1 for nothing owed."""
        if receipt is None or receipt.is_released:
            return -1
        if id(receipt) not in self._numbers:
            self._numbers[id(receipt)] = len(self._kept)
            self._kept.append(receipt)
        return self._numbers[id(receipt)]

    def known(self, receipt: Receipt) -> int | None:
        """The number of a receipt that a window holds; None for any other."""
        return self._numbers.get(id(receipt))

    def hold(self, number: int) -> Receipt | None:
        """After the start: what stands for a receipt that a window held, held once more."""
        if number < 0:
            return None
        receipt = self._waiting.get(number)
        if receipt is None:
            # A message of an earlier connection is owed nothing itself.
            receipt = self._waiting[number] = Receipt(NOTHING)
        else:
            receipt.hold()
        return receipt

    def held(self, number: int) -> Receipt | None:
        """What stands for a receipt, if a window has taken it back."""
        return self._waiting.get(number)
