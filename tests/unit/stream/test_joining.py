"""Parts into whole readings: what makes one, what is held, and what is too old."""

from collections.abc import Sequence

import numpy as np
import pytest

from edge_runtime.readings import Batch, Receipt
from edge_runtime.stream.joining import Joiner
from edge_runtime.stream.sources.join import BoundJoinTable
from edge_runtime.stream.sources.mqtt import MqttSourceTable
from edge_runtime.stream.sources.replay import ReplaySourceTable

NAN = float("nan")


class Bench:
    """A joiner of two channels with a clock of its own."""

    def __init__(self, when: str, max_age: float | None = None) -> None:
        self.now = 0.0
        self.made: list[tuple[str | None, list[float]]] = []
        self.batches: list[Batch] = []
        self.stale: list[str] = []
        self.joiner = Joiner(
            ("t", "h"),
            when,
            max_age,
            self._take,
            stale=lambda _key, why: self.stale.append(why),
            clock=lambda: self.now,
        )

    def _take(self, batch: Batch) -> None:
        self.batches.append(batch)
        self.made += list(zip(batch.keys, batch.values.tolist(), strict=True))

    def say(self, *parts: tuple[str | None, float, float], name: str | None = None) -> None:
        """One batch of parts: key, t, h."""
        count = len(parts)
        receipts: Sequence[Receipt | None] = [None] * count
        self.refused: list[int] = []
        batch = Batch(
            "s",
            np.array([part[1:] for part in parts], np.float32),
            [part[0] for part in parts],
            [float(index) for index in range(count)],
            [None] * count,
            list(receipts),
            refuse=lambda row, _reason, _why, _count: self.refused.append(row),
        )
        self.joiner.take(batch, name)


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        ("any", [[1, 5], [2, 5], [2, 6]]),
        ("all", [[1, 5], [2, 6]]),
        ("h", [[1, 5], [2, 6]]),
        ("t", [[2, 5]]),
    ],
)
def test_what_makes_a_reading(when: str, expected: list[list[float]]) -> None:
    """Against a list on paper: each word makes its readings of the same values."""
    bench = Bench(when)
    for part in ((1, NAN), (NAN, 5), (2, NAN), (NAN, 6)):
        bench.say(("a", *part))
    assert [values for _, values in bench.made] == expected


def test_each_key_has_values_of_its_own() -> None:
    """A value of one room never completes a reading of another."""
    bench = Bench("any")
    bench.say(("a", 1, NAN), ("b", NAN, 5))
    assert bench.made == []
    bench.say(("b", 2, NAN))
    assert bench.made == [("b", [2, 5])]


def test_a_value_that_is_too_old_makes_no_reading() -> None:
    """It is counted with its channel and age, and the next value of that channel makes one again."""
    bench = Bench("any", max_age=10)
    bench.say(("a", 1, NAN))
    bench.now = 10.5
    bench.say(("a", NAN, 5))
    assert bench.made == []
    assert bench.stale == ["expected values at most 10 s old, found `t` of 10.5 s ago"]
    bench.say(("a", 2, NAN))
    assert bench.made == [("a", [2, 5])]


def test_a_value_of_just_the_age_is_used() -> None:
    """The age counts from the moment at which the value came, and not from the start."""
    bench = Bench("any", max_age=10)
    bench.now = 100.0
    bench.say(("a", 1, NAN))
    bench.now = 110.0
    bench.say(("a", NAN, 5))
    assert bench.made == [("a", [1, 5])]
    bench.now = 110.25
    bench.say(("a", NAN, 6))
    assert bench.made == [("a", [1, 5])]
    assert bench.stale == ["expected values at most 10 s old, found `t` of 10.2 s ago"]


def test_a_message_without_a_value_makes_no_reading() -> None:
    """What is held is not reported again."""
    bench = Bench("any")
    bench.say(("a", 1, 5), ("a", NAN, NAN), ("a", 2, NAN))
    assert bench.made == [("a", [1, 5]), ("a", [2, 5])]


def test_a_source_may_be_what_makes_a_reading() -> None:
    """`when` names a part: only what that part brings makes one."""
    bench = Bench("power")
    bench.say((None, 1, NAN), name="climate")
    bench.say((None, NAN, 5), name="power")
    bench.say((None, 2, NAN), name="climate")
    assert bench.made == [(None, [1, 5])]


def test_a_refusal_leads_back_to_the_message() -> None:
    """A model that refuses the second reading refuses the message that completed it."""
    bench = Bench("all")
    bench.say(("a", 1, NAN), ("a", NAN, 5), ("a", 2, NAN), ("a", NAN, 6))
    (batch,) = bench.batches
    assert batch.refuse is not None
    batch.refuse(1, "out_of_range", "", 1)
    assert bench.refused == [3]


def test_what_is_held_is_bounded() -> None:
    """Of more than ten thousand the key without values for longest is forgotten, and the others are kept."""
    bench = Bench("any")
    bench.say(*[(str(number), 1.0, NAN) for number in range(10_000)])
    bench.say(("0", 2, NAN))
    bench.say(("new", 1, NAN))
    bench.say(("1", NAN, 5), ("0", NAN, 5))
    assert bench.made == [("0", [2, 5])]


def test_a_join_with_a_recording_is_recorded() -> None:
    """Its times may be of then, so that drift does not compare them with the clock."""
    recorded = ReplaySourceTable(name="a", files=("a.csv",))
    live = MqttSourceTable(name="b", topics=("t",))
    for parts, expected in (((live, recorded), True), ((live, live), False)):
        assert BoundJoinTable(name="j", of=("a", "b"), parts=parts).is_recorded is expected
