"""What a flood of offers and orders may cost: checks that wait, repetitions of what was refused, and answers. Pure.

Guarantee: at most `MOST_PENDING` of each kind wait for their signatures to be checked; what was refused is not checked
again while it is among the last `_KNOWN_BAD`; answers are `_REPLIES` at once, and then `_REPLIES_PER_S`.
"""

import hashlib
from collections import deque
from typing import Literal

MOST_PENDING = 4  # offers and orders, each
_REPLIES = 20
_REPLIES_PER_S = 2.0
_KNOWN_BAD = 256

Kind = Literal["offer", "order"]


class FloodGuard:
    """The bounds of one device."""

    def __init__(self) -> None:
        self.pending: dict[Kind, int] = {"offer": 0, "order": 0}
        self._refused: deque[bytes] = deque(maxlen=_KNOWN_BAD)
        self._budget, self._budget_at = float(_REPLIES), 0.0

    def may_check(self, kind: Kind, payload: bytes) -> bool:
        """Take a place among those that wait; False when there is none, or the very same was refused already."""
        if self.pending[kind] >= MOST_PENDING or _digest(payload) in self._refused:
            return False
        self.pending[kind] += 1
        return True

    def checked(self, kind: Kind) -> None:
        """Give the place back."""
        self.pending[kind] -= 1

    def reset(self) -> None:
        """Give all places back: a check ended without a result."""
        self.pending = {"offer": 0, "order": 0}

    def remember_refused(self, payload: bytes) -> None:
        """Check this no more."""
        self._refused.append(_digest(payload))

    def may_reply(self, now: float, *, always: bool = False) -> bool:
        """Take one answer of those that are allowed by now; `always` takes it in any case."""
        self._budget = min(float(_REPLIES), self._budget + (now - self._budget_at) * _REPLIES_PER_S)
        self._budget_at = now
        if self._budget < 1.0 and not always:
            return False
        self._budget = max(0.0, self._budget - 1.0)
        return True


def _digest(payload: bytes) -> bytes:
    return hashlib.sha256(payload).digest()
