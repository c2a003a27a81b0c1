"""Truth and the prediction that it belongs to: against a plain list that forgets nothing, and by hand at the bounds."""

import random

import pytest

from edge_runtime.truth.joiner import Remembered, TruthJoiner
from edge_runtime.truth.memory import Noted

START = 1_795_000_000


def joiner(*noted: Noted, most: int = 100, tolerance: float = 0.5) -> TruthJoiner:
    """One that remembers these."""
    made = TruthJoiner(most, tolerance, START)
    made.add(noted)
    return made


def noted(seq: int, *, key: str | None = "k", time: float | None = None, identity: str | None = None) -> Noted:
    """The prediction with this number; by default one a second."""
    return Noted(key, float(seq) if time is None else time, seq, identity, f"answer {seq}")


@pytest.mark.parametrize(
    ("tail", "found"),
    [
        (f"k/{START}/2", "answer 2"),
        (f"-/{START}/3", "answer 3"),
        ("a/b/own-id", "answer 4"),
        ("k/own-id", "unknown"),
        (f"k/{START}/9", "unknown"),
        (f"other/{START}/1", "unknown"),
        (f"k/{START - 1}/1", "late"),
        (f"k/{START + 1}/1", "unknown"),
        ("", "unknown"),
        ("k", "unknown"),
    ],
)
def test_an_id_names_one_prediction(tail: str, found: str) -> None:
    """With and without a key, with an identity of its own, of an earlier start, and of none."""
    known = joiner(noted(1), noted(2), noted(3, key=None), noted(4, key="a/b", identity="own-id"))
    hit = known.by_id(tail)
    assert (hit.answer if isinstance(hit, Remembered) else hit) == found


@pytest.mark.parametrize(
    ("key", "time", "found"),
    [
        ("k", 2.0, "answer 2"),
        ("k", 2.5, "answer 2"),
        ("k", 2.51, "answer 3"),
        ("k", 3.5, "answer 3"),
        ("k", 3.75, "unknown"),
        ("k", 9.0, "unknown"),
        ("k", 0.25, "late"),
        ("other", 2.0, "unknown"),
        (None, 2.0, "unknown"),
    ],
)
def test_key_and_time_name_the_nearest_prediction_within_the_tolerance(
    key: str | None, time: float, found: str
) -> None:
    """The earlier one where two are equally near; none beyond the tolerance."""
    known = joiner(noted(1), noted(2), noted(3), noted(5))
    hit = known.by_time(key, time)
    assert (hit.answer if isinstance(hit, Remembered) else hit) == found


def test_a_prediction_is_judged_once() -> None:
    """The same truth again is `twice`, another one is a `conflict`, and the first one stands."""
    known = joiner(noted(1))
    found = known.by_id(f"k/{START}/1")
    assert isinstance(found, Remembered)
    assert known.settle(found, "a") is None
    assert known.settle(found, "a") == "twice"
    assert known.settle(found, "b") == "conflict"
    assert known.settle(found, "a") == "twice"
    assert found.truth == "a"


def test_what_is_forgotten_is_late_by_id_and_by_time() -> None:
    """Also with identities that tell no order."""
    known = joiner(*(noted(number, identity=f"id-{number}") for number in range(10)), most=4)
    assert len(known) == 4
    assert known.by_id("k/id-5") == "late"
    assert known.by_time("k", 5.0) == "late"
    assert isinstance(known.by_id("k/id-6"), Remembered)
    assert known.by_id("k/id-10") == "unknown"


def test_after_all_is_forgotten_truth_is_late() -> None:
    """As when another bundle answers."""
    known = joiner(noted(1), noted(2))
    known.forget_all()
    assert len(known) == 0
    assert known.by_id(f"k/{START}/1") == "late"
    assert known.by_time("k", 1.0) == "late"


def test_memory_is_bounded_whatever_the_keys() -> None:
    """A hundred thousand predictions of as many keys leave what the bound allows, in every table."""
    known = joiner(most=50)
    known.add(noted(number, key=f"k{number}") for number in range(100_000))
    assert len(known) == 50
    sizes = [len(part) for part in (known._by_key, known._horizon, known._forgotten)]
    assert max(sizes) <= 8 * 50


@pytest.mark.parametrize("seed", range(20))
def test_any_order_of_predictions_and_truth_is_joined_as_a_plain_list_would(seed: int) -> None:
    """Late readings, repeated times and several keys, beside a list that is searched from end to end."""
    rng = random.Random(seed)
    known, plain, most, tolerance = joiner(most=30, tolerance=0.3), list[Noted](), 30, 0.3
    for number in range(200):
        each = noted(number, key=rng.choice(["a", "b", None]), time=round(rng.uniform(0, 20), 1))
        known.add([each])
        plain.append(each)
        time, key = round(rng.uniform(-1, 21), 1), rng.choice(["a", "b", None])
        near = [(abs(one.time - time), one.time, one.answer) for one in plain[-most:] if one.key == key]
        near = [one for one in near if one[0] <= tolerance]
        hit = known.by_time(key, time)
        if not near:
            assert not isinstance(hit, Remembered)
        else:
            best = min(near)[:2]
            assert isinstance(hit, Remembered)
            assert (abs(hit.time - time), hit.time) == best
