"""Whether the wall clock is to be believed."""

import time

import pytest

from edge_runtime.system import clock
from edge_runtime.system.clock import Clock


def test_a_clock_is_asked_now_and_then_until_it_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each question is a system call, so that it is not asked for every prediction; once set it stays set."""
    answers = [False, True]
    asked: list[bool] = []

    def ask() -> bool:
        asked.append(answers.pop(0))
        return asked[-1]

    found = Clock(ask)
    assert not found.is_synchronised
    assert not found.is_synchronised
    assert asked == [False]
    monkeypatch.setattr(time, "monotonic", lambda: found._next)
    assert found.is_synchronised
    assert found.is_synchronised
    assert asked == [False, True]


def test_the_kernel_can_be_asked() -> None:
    """Whatever it says here, it is an answer."""
    assert clock.kernel_says_set() in {True, False}
