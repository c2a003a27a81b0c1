"""The ring of last numbers, against a plain queue of the same length."""

import random
from array import array
from collections import deque

import pytest

from edge_runtime.truth.memory import Forgotten, Ring


@pytest.mark.parametrize("most", [1, 3, 8])
def test_a_ring_holds_the_last_numbers(most: int) -> None:
    """Numbers up to and beyond the length, for several lengths."""
    chance = random.Random(most)
    ring, plain = Ring(array("d"), most), deque[float](maxlen=most)
    for _ in range(5 * most):
        number = chance.random()
        ring.add(number)
        plain.append(number)
        assert sorted(ring.numbers) == sorted(plain)
        assert len(ring) == len(plain)


def test_the_oldest_forgotten_ids_leave() -> None:
    """Three ids in room for two; another id was never there."""
    forgotten = Forgotten(2)
    for tail in ("k/1", "k/2", "k/3"):
        forgotten.add(tail)
    assert [tail in forgotten for tail in ("k/1", "k/2", "k/3", "k/4")] == [False, True, True, False]
    assert len(forgotten) == 2
