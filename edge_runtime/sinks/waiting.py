"""The queue in front of a sink's thread, bounded in number and bytes. Alarms are dropped last.

For the loop's thread only. Guarantee: never more than the bounds; the number of dropped predictions is returned.
"""

from collections import deque

from edge_runtime.sinks.kind import Offered


class Waiting:
    """A queue with a bound.

    Args:
        most: predictions.
        most_bytes: of their payloads.
    """

    def __init__(self, most: int, most_bytes: int) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._items: deque[Offered] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._items)

    def add(self, offered: Offered) -> int:
        """Add a prediction. Return the number of dropped ones, itself included if it is larger than the bound."""
        self._items.append(offered)
        self._bytes += len(offered.payload)
        gone = 0
        while self._items and (len(self._items) > self._most or self._bytes > self._most_bytes):
            self._drop()
            gone += 1
        return gone

    def take(self, most: int | None = None) -> list[Offered]:
        """Remove and return the oldest predictions."""
        count = len(self._items) if most is None else min(most, len(self._items))
        taken = [self._items.popleft() for _ in range(count)]
        self._bytes -= sum(len(each.payload) for each in taken)
        return taken

    def put_back(self, items: list[Offered]) -> int:
        """Put unprocessed predictions back in front. Return the number of dropped ones."""
        self._items.extendleft(reversed(items))
        self._bytes += sum(len(each.payload) for each in items)
        gone = 0
        while self._items and (len(self._items) > self._most or self._bytes > self._most_bytes):
            self._drop()
            gone += 1
        return gone

    def _drop(self) -> None:
        """Drop the oldest prediction without alarm, or the oldest if all are alarms."""
        place = next((place for place, each in enumerate(self._items) if not each.alarm), 0)
        self._bytes -= len(self._items[place].payload)
        del self._items[place]
