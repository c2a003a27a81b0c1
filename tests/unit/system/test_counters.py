"""Counts by reason: a `Counter` in every respect but the cost of an assignment."""

import random
from collections import Counter

from edge_runtime.system.counters import Tally


def test_a_tally_counts_as_a_counter_does() -> None:
    """Over a random course, with reasons that were read and never counted."""
    generator = random.Random(3)
    tally, plain = Tally(), Counter[str]()
    for _ in range(500):
        reason, count = f"reason {generator.randrange(9)}", generator.randrange(3)
        tally[reason] += count
        plain[reason] += count
        assert tally["never"] == plain["never"] == 0
    assert tally == plain
    assert tally.total() == plain.total()
    assert tally.most_common() == plain.most_common()
    del tally["reason 1"]
    assert "reason 1" not in tally
    assert "never" not in tally


def test_an_assignment_to_a_tally_is_that_of_a_dict() -> None:
    """With a `__delitem__` in Python, as `Counter` has, the interpreter looks every assignment up by its name."""
    assert Tally.__setitem__ is dict.__setitem__
    assert Tally.__delitem__ is dict.__delitem__
