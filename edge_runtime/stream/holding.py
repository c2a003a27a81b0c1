"""The receipts of a model with `acknowledge = "window"`: readings that a window still needs stay unacknowledged. Pure.

Guarantee: the receipt of a reading is released when no open window of its key needs the reading any more, and every
prediction made from it is safe or withheld by configuration. So after a kill the broker sends it again, and the windows
are rebuilt. A window that is given up (a gap, a forgotten key) releases its readings.

Weak point: the broker must allow as many unacknowledged messages as open windows hold, and accept acknowledgements out
of order, since keys fill their windows at different rates.
"""

from collections import deque
from collections.abc import Iterable, Sequence

import msgspec

from edge_runtime.readings import NOTHING, Receipt
from edge_runtime.stream.windows import Completed


class _Made(msgspec.Struct, eq=False):
    """A completed window, by the number of its first reading; `safe` once its prediction is safe."""

    begin: int
    safe: bool = False


class _Key:
    """The readings of one key, numbered from 0 since its first one; those before `base` are released."""

    __slots__ = ("base", "count", "made", "receipts", "start")

    def __init__(self, receipts: Iterable[Receipt | None] = (), start: int = 0) -> None:
        self.receipts = deque(receipts)
        self.base = -len(self.receipts)
        self.count = 0
        self.start = start  # of the open window
        self.made: deque[_Made] = deque()

    def give_back(self) -> None:
        """Release readings that no open window and no window with an unsafe prediction needs."""
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
        """How many messages stay unacknowledged because of it, if each has one reading."""
        return sum(len(key.receipts) for key in self._keys.values())

    def take(
        self, keys: Sequence[str | None], receipts: Sequence[Receipt | None], done: Completed
    ) -> list[Receipt | None]:
        """Hold the receipts of readings that have just entered their windows.

        Args:
            keys: of each reading.
            receipts: of each reading.
            done: the windows that they completed.

        Returns:
            For each completed window the receipt to release when its prediction is safe; None if no reading of it has
            one.
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
        """Release the readings in the open windows of forgotten keys."""
        for key in keys:
            held = self._keys.pop(key, None)
            if held is not None:
                held.start = held.count
                held.give_back()

    def release_all(self) -> None:
        """Release the readings of all open windows, which are given up."""
        self.forget(list(self._keys))

    def receipts(self, key: str | None) -> list[Receipt | None] | None:
        """The receipts of a key's open window; None while a window of the key is not safe, and nothing may be saved."""
        held = self._keys.get(key)
        if held is None:
            return []
        return None if held.made else list(held.receipts)

    def restore(self, key: str | None, receipts: Sequence[Receipt | None], until: int) -> None:
        """Restore what `receipts` returned at the last stop; the open window completes after `until` more readings."""
        self._keys[key] = _Key(receipts, until - self._length)
        self._keys[key].give_back()


class OwedReceipts:
    """Receipts kept over a stop: by number in the file, and after the start until the broker resends their messages."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}
        self._kept: list[Receipt] = []  # kept alive, so that no new receipt reuses an address
        self._waiting: dict[int, Receipt] = {}

    def number(self, receipt: Receipt | None) -> int:
        """The number of an unreleased receipt, assigned now if it has none; -1 if nothing is owed."""
        if receipt is None or receipt.is_released:
            return -1
        if id(receipt) not in self._numbers:
            self._numbers[id(receipt)] = len(self._kept)
            self._kept.append(receipt)
        return self._numbers[id(receipt)]

    def known(self, receipt: Receipt) -> int | None:
        """The number of a receipt held by a window; None for any other."""
        return self._numbers.get(id(receipt))

    def hold(self, number: int) -> Receipt | None:
        """After the start: the placeholder for a receipt that a window held, with one more hold."""
        if number < 0:
            return None
        receipt = self._waiting.get(number)
        if receipt is None:
            # A message of an earlier connection needs no acknowledgement itself.
            receipt = self._waiting[number] = Receipt(NOTHING)
        else:
            receipt.hold()
        return receipt

    def held(self, number: int) -> Receipt | None:
        """The placeholder for a receipt, if a restored window holds it."""
        return self._waiting.get(number)
