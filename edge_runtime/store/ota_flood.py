"""Bounds the cost of a flood of offers and orders: waiting checks, repetitions of refused ones, and answers. Pure.

Guarantee: at most `MOST_PENDING` of each kind wait for their signatures to be checked; a refused one is not checked
again while it is among the last `_KNOWN_BAD`; at most `_REPLIES` answers are sent at once, and then `_REPLIES_PER_S`,
and the same numbers of greetings.
"""

import hashlib
from collections import deque
from typing import Literal

MOST_PENDING = 4  # offers and orders, each
_REPLIES = 20
_REPLIES_PER_S = 2.0
_GREETINGS_PER_S = 2.0
_KNOWN_BAD = 256

Kind = Literal["offer", "order"]


class FloodGuard:
    """The bounds of one device."""

    def __init__(self) -> None:
        self.pending: dict[Kind, int] = {"offer": 0, "order": 0}
        self._refused: deque[bytes] = deque(maxlen=_KNOWN_BAD)
        self._replies, self._greetings = _Budget(_REPLIES, _REPLIES_PER_S), _Budget(_REPLIES, _GREETINGS_PER_S)

    def may_check(self, kind: Kind, payload: bytes) -> bool:
        """Take a place in the queue; False if there is none, or the same payload was refused before."""
        if self.pending[kind] >= MOST_PENDING or _digest(payload) in self._refused:
            return False
        self.pending[kind] += 1
        return True

    def checked(self, kind: Kind) -> None:
        """Give the place back."""
        self.pending[kind] -= 1

    def reset(self) -> None:
        """Give all places back, after a check ended without a result."""
        self.pending = {"offer": 0, "order": 0}

    def remember_refused(self, payload: bytes) -> None:
        """Do not check this payload again."""
        self._refused.append(_digest(payload))

    def may_reply(self, now: float, *, always: bool = False) -> bool:
        """Take one answer from the budget; `always` takes it in any case."""
        return self._replies.take(now) or always

    def may_greet(self, now: float) -> bool:
        """Take one greeting. They have a budget of their own, since a sender cannot begin without one."""
        return self._greetings.take(now)


class _Budget:
    """So many at once, and then so many a second."""

    def __init__(self, most: int, per_s: float) -> None:
        self._most, self._per_s = float(most), per_s
        self._left, self._at = self._most, 0.0

    def take(self, now: float) -> bool:
        self._left = min(self._most, self._left + (now - self._at) * self._per_s)
        self._at = now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


def _digest(payload: bytes) -> bytes:
    return hashlib.sha256(payload).digest()
