"""A bounded memory of what came last, by name. Pure.

Guarantee: the last `size` things are known, and what is still needed is for as long as it is. Weak point: up to twice
as many are kept, since a whole generation is forgotten at a time.
"""

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Name = TypeVar("Name")
Value = TypeVar("Value")


class Recent(Generic[Name, Value]):
    """The last `size` to `2 * size` things that were put, and those that are still needed.

    Forgetting a whole generation at a time costs less than keeping an order.

    Args:
        size: how many are known at the least.
        is_needed: what is to be kept beyond that; None for nothing.
        looks: call `is_needed` once for each thing of a generation that ends too, so that it may drop parts of it.

    Attributes:
        young: the generation that is put into; whoever puts past `put`, for its cost, turns at the limit.
        old: the one before it.
        limit: how many things a generation has.
    """

    def __init__(self, size: int, is_needed: Callable[[Value], bool] | None = None, *, looks: bool = False) -> None:
        self._size = self.limit = size
        self._is_needed = is_needed
        self._looks = looks
        self.young: dict[Name, Value] = {}
        self.old: dict[Name, Value] = {}

    def __len__(self) -> int:
        return len(self.young) + len(self.old)

    def get(self, name: Name) -> Value | None:
        """What was put under this name last; None when it was not, or long ago."""
        found = self.young.get(name)
        return self.old.get(name) if found is None else found

    def put(self, name: Name, value: Value) -> None:
        """Remember it."""
        self.young[name] = value
        if len(self.young) >= self.limit:
            self.turn()

    def items(self) -> Iterator[tuple[Name, Value]]:
        """Everything, the oldest first."""
        for name, value in self.old.items():
            if name not in self.young:
                yield name, value
        yield from self.young.items()

    def values(self) -> Iterator[Value]:
        """What stands behind the names, the oldest first."""
        return (value for _, value in self.items())

    def turn(self) -> None:
        """Begin a new generation, with what is needed of the oldest one."""
        needed = self._is_needed
        kept = {}
        if needed is not None:
            kept = {name: value for name, value in self.old.items() if name not in self.young and needed(value)}
        self.old, self.young = self.young, kept
        self.limit = self._size + len(kept)
        if needed is not None and self._looks:
            for value in self.old.values():
                needed(value)
