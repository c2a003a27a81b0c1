"""A bounded memory of the latest things, by name. Pure.

Guarantee: the last `size` things are kept, and a thing that is still needed stays as long as it is needed. Weak point:
up to twice as many are kept, since a whole generation is forgotten at a time.
"""

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Name = TypeVar("Name")
Value = TypeVar("Value")


class Recent(Generic[Name, Value]):
    """The last `size` to `2 * size` things, and older ones that are still needed.

    Forgetting a whole generation at a time costs less than keeping an order.

    Args:
        size: the least number that is kept.
        is_needed: whether an older thing is kept; None keeps none.
        looks: call `is_needed` once also for each thing of the generation that becomes the old one, to let it drop
            parts.

    Attributes:
        young: the generation that takes new things; a caller that adds to it directly, to save the call of `put`, must
            call `turn` at the limit.
        old: the generation before it.
        limit: the size of a generation.
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
        """The last thing put under this name; None if there is none, or it was forgotten."""
        found = self.young.get(name)
        return self.old.get(name) if found is None else found

    def put(self, name: Name, value: Value) -> None:
        """Keep a thing under a name."""
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
        """The things without their names, the oldest first."""
        return (value for _, value in self.items())

    def turn(self) -> None:
        """Begin a new generation, with the needed things of the oldest one."""
        needed = self._is_needed
        kept = {}
        if needed is not None:
            kept = {name: value for name, value in self.old.items() if name not in self.young and needed(value)}
        self.old, self.young = self.young, kept
        self.limit = self._size + len(kept)
        if needed is not None and self._looks:
            for value in self.old.values():
                needed(value)
