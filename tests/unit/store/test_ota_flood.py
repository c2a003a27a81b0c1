"""What a flood of offers and orders costs at most: waiting checks, repetitions, answers and greetings."""

import pytest

from edge_runtime.store.ota_flood import MOST_PENDING, FloodGuard


def test_four_checks_of_each_kind_may_wait() -> None:
    """Orders have places of their own, so that a flood of offers keeps no operator out."""
    guard = FloodGuard()
    assert MOST_PENDING == 4
    assert [guard.may_check("offer", b"%d" % number) for number in range(5)] == [True] * 4 + [False]
    assert [guard.may_check("order", b"%d" % number) for number in range(5)] == [True] * 4 + [False]
    guard.checked("offer")
    assert [guard.may_check("offer", b"a"), guard.may_check("offer", b"b")] == [True, False]
    assert not guard.may_check("order", b"c")
    guard.checked("order")
    assert guard.pending == {"offer": 4, "order": 3}


def test_places_are_given_back_after_a_check_without_a_result() -> None:
    """After a reset both kinds have four again."""
    guard = FloodGuard()
    for number in range(4):
        guard.may_check("offer", b"%d" % number)
        guard.may_check("order", b"%d" % number)
    guard.reset()
    assert guard.pending == {"offer": 0, "order": 0}
    assert [guard.may_check("order", b"%d" % number) for number in range(5)] == [True] * 4 + [False]


def test_the_last_refused_payloads_are_not_checked_again() -> None:
    """256 of them are remembered; the oldest is forgotten first."""
    guard = FloodGuard()
    for number in range(256):
        guard.remember_refused(b"%d" % number)
    assert not guard.may_check("offer", b"0")
    assert not guard.may_check("order", b"255")
    assert guard.pending == {"offer": 0, "order": 0}
    guard.remember_refused(b"256")
    assert guard.may_check("offer", b"0")
    assert not guard.may_check("offer", b"1")
    assert not guard.may_check("offer", b"256")


@pytest.mark.parametrize("kind", ["may_reply", "may_greet"])
def test_twenty_at_once_and_then_two_a_second(kind: str) -> None:
    """The budget fills up again, to twenty at most; a half of one is none."""
    guard = FloodGuard()
    take = getattr(guard, kind)
    assert [take(100.0) for _ in range(21)] == [True] * 20 + [False]
    assert not take(100.25)
    assert [take(100.5) for _ in range(2)] == [True, False]
    assert [take(102.0) for _ in range(4)] == [True] * 3 + [False]
    assert [take(10_000.0) for _ in range(21)] == [True] * 20 + [False]


def test_a_device_that_has_just_started_has_the_whole_budget() -> None:
    """The clock of the loop is the time since the boot, which may be 0."""
    guard = FloodGuard()
    assert [guard.may_greet(0.0) for _ in range(21)] == [True] * 20 + [False]


def test_greetings_and_answers_have_budgets_of_their_own() -> None:
    """A sender cannot begin without a greeting, whatever was refused before."""
    guard = FloodGuard()
    while guard.may_reply(5.0):
        pass
    assert guard.may_greet(5.0)


def test_an_answer_that_must_be_sent_takes_its_share_of_the_budget() -> None:
    """`always` is True with an empty budget, and costs one where there is one."""
    guard = FloodGuard()
    assert all(guard.may_reply(5.0, always=True) for _ in range(20))
    assert not guard.may_reply(5.0)
    assert guard.may_reply(5.0, always=True)
