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


def test_a_truth_is_early_behind_everything_that_is_known_of_its_key() -> None:
    """Remembered or forgotten; at the time of the last one it is not, and of a key without any it always is."""
    known = joiner(noted(1), noted(3), noted(7, key="other"), most=2)
    assert [known.is_early("k", time) for time in (0.0, 2.9, 3.0, 3.1)] == [False, False, False, True]
    assert known.is_early("new", 0.0)
    known.forget_all()
    assert [known.is_early("k", time) for time in (3.0, 3.1)] == [False, True]


def test_the_distance_to_the_nearest_prediction_has_a_sign() -> None:
    """Later ones are ahead; of a key without any there is none."""
    known = joiner(noted(1), noted(5), noted(20))
    assert [known.distance("k", time) for time in (0.0, 2.0, 4.0, 5.0, 10.0, 99.0)] == [
        1.0,
        -1.0,
        1.0,
        0.0,
        -5.0,
        -79.0,
    ]
    assert known.distance("other", 1.0) is None


def withheld(*numbers: tuple[int, int], key: str = "k", start: int = START) -> list[Noted]:
    """Predictions that were withheld: the number of the published one before, and their own."""
    return [Noted(key, 100.0 + own, seq, f"{start}/{seq}.{own}", f"withheld {own}") for seq, own in numbers]


def test_withheld_predictions_have_a_bound_and_ids_of_their_own() -> None:
    """They push out no published one and none pushes out them; what is forgotten is late, by id and by time."""
    known = joiner(noted(1), noted(2), most=2)
    known.add(withheld((1, 1), (1, 2), (2, 3), (2, 4)), withheld=True)
    known.add([noted(3)])
    assert len(known) == 4
    assert [each.answer for each in known.remembered] == ["answer 2", "answer 3", "withheld 3", "withheld 4"]
    assert [each.withheld for each in known.remembered] == [False, False, True, True]
    for tail, found in (
        (f"k/{START}/2.3", "withheld 3"),
        (f"k/{START}/1.2", "late"),
        (f"other/{START}/1.2", "late"),
        (f"k/{START}/9.9", "unknown"),
        (f"k/{START}/2.x", "unknown"),
        (f"k/{START}/x.2", "unknown"),
        (f"k/{START}/2.", "unknown"),
        (f"other/{START}/2.3", "unknown"),
        (f"k/{START - 1}/9.9", "late"),
        (f"k/{START + 1}/1.1", "unknown"),
        (f"k/{START}/1", "late"),
        (f"k/{START}/0", "late"),
        (f"k/{START}/4", "unknown"),
    ):
        hit = known.by_id(tail)
        assert (hit.answer if isinstance(hit, Remembered) else hit) == found, tail
    assert (known.by_time("k", 102.0), known.by_time("k", 102.4)) == ("late", "unknown")
    hit = known.by_time("k", 103.4)
    assert isinstance(hit, Remembered)
    assert hit.answer == "withheld 3"


def test_numbers_of_an_earlier_start_say_nothing_of_this_one() -> None:
    """What is remembered over a stop stands in front, and a number of this start that is lower is unknown, not late."""
    known = joiner(most=10)
    for each in withheld((5, 40), start=START - 1):
        known.restore(Remembered(f"k/{each.identity}", "k", each.time, "before", withheld=True))
    known.add(withheld((1, 3)), withheld=True)
    assert known.by_id(f"k/{START}/1.2") == "unknown"
    assert known.by_id(f"k/{START - 1}/5.39") == "late"


@pytest.mark.parametrize(
    ("tail", "found"),
    [
        (f"k/{START}/3", "late"),
        (f"k/{START}/000000000000003", "late"),
        (f"k/{START}/0000000000000003", "unknown"),
        (f"k/{START}/\u0663", "unknown"),
        (f"k/{START}/5.", "unknown"),
        (f"k/{START + 1}/3", "unknown"),
        ("k/1/3", "late"),
        ("k/0/3", "unknown"),
        ("k/x/3", "unknown"),
        ("k/-1/3", "unknown"),
    ],
)
def test_a_number_that_none_of_this_start_has_is_old_or_none(tail: str, found: str) -> None:
    """Digits of ASCII, fifteen at the most, and a start that there was; nothing else is guessed at."""
    assert joiner(noted(5), noted(6)).by_id(tail) == found


def test_what_comes_again_by_its_identity_is_one_prediction() -> None:
    """Published or withheld, also where it comes back as the other; the first one stands."""
    known = joiner(noted(1, identity="a"))
    known.add([noted(2, identity="b")], withheld=True)
    known.add([noted(3, identity="a"), noted(4, identity="b")])
    known.add([noted(5, identity="a"), noted(6, identity="b")], withheld=True)
    assert [(each.answer, each.withheld) for each in known.remembered] == [("answer 1", False), ("answer 2", True)]
    known.restore(Remembered("k/c", "k", 9.0, "of an earlier release"))
    assert not known.remembered[1].withheld


def test_a_published_prediction_is_old_beside_withheld_ones_in_front() -> None:
    """The first number of the key that was published counts, whatever was withheld before it in time."""
    known = joiner(most=5)
    known.add([Noted("k", 1.0, 1, f"{START}/1.1", "w")], withheld=True)
    known.add([noted(5, time=2.0), noted(6, time=3.0)])
    assert known.by_id(f"k/{START}/4") == "late"
    assert known.by_id(f"k/{START}/7") == "unknown"


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
