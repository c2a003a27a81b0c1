"""The stand-ins behave as what they stand in for."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.delivery.outbox_file import OutboxFile
from edge_runtime.delivery.outbox_thread import OutboxThread
from edge_runtime.delivery.rows import NewRow, OutboxFileError
from edge_runtime.system.loop import Loop
from tests.support.stepped import SteppedLink, SteppedLoop, SteppedStore
from tests.support.waiting import wait_until


@pytest.fixture(params=["real", "stepped"])
def run(request: pytest.FixtureRequest) -> Iterator[tuple[Loop, Callable[[float], None]]]:
    """A loop, and a way to let time pass on it."""
    if request.param == "stepped":
        stepped = SteppedLoop()
        yield stepped.as_loop, stepped.advance
        return
    loop = Loop()

    def advance(seconds: float) -> None:
        until = loop.time() + seconds
        while (left := until - loop.time()) > 0:
            loop.run_once(left)

    yield loop, advance
    loop.close()


def test_timers_run_in_the_order_of_their_times(run: tuple[Loop, Callable[[float], None]]) -> None:
    """Equal times in the order in which they were asked for; a cancelled one never."""
    loop, advance = run
    seen: list[str] = []
    now = loop.time()
    loop.call_at(now + 0.02, lambda: seen.append("second"))
    loop.call_at(now + 0.01, lambda: seen.append("first"))
    loop.call_at(now + 0.02, lambda: seen.append("third"))
    loop.call_at(now + 0.015, lambda: seen.append("never")).cancel()
    loop.call_later(9.0, lambda: seen.append("later"))
    advance(0.05)
    assert seen == ["first", "second", "third"]


def test_a_callback_for_soon_runs_after_those_before_it(run: tuple[Loop, Callable[[float], None]]) -> None:
    """Also one that is asked for by a callback."""
    loop, advance = run
    seen: list[str] = []
    loop.call_soon(lambda: (seen.append("one"), loop.call_soon(lambda: seen.append("three"))))  # type: ignore[func-returns-value]
    loop.call_soon_threadsafe(lambda: seen.append("from a thread"))
    loop.call_soon(lambda: seen.append("two"))
    advance(0.01)
    assert sorted(seen) == ["from a thread", "one", "three", "two"]
    assert seen.index("one") < seen.index("two") < seen.index("three")


@pytest.mark.parametrize("kind", ["real", "stepped"])
def test_a_store_answers_in_order(kind: str, tmp_path: Path) -> None:
    """Open, commit, fetch: each answer comes once, in the order of the questions."""
    answers: list[Any] = []
    row = NewRow("m/a", 1, 1.0, "t", b"{}")
    loop = Loop() if kind == "real" else None
    if loop is not None:
        store = OutboxThread(OutboxFile(tmp_path / "o.db", 1 << 20, 1e12), loop.call_soon_threadsafe)
        stepped = None
    else:
        stepped = SteppedStore(tmp_path / "o.db")
        store = stepped.as_thread
    store.open(answers.append)
    store.commit([row, row], (), answers.append)
    store.fetch(0, 10, answers.append)
    store.fetch(1, 10, answers.append)
    if loop is None:
        assert stepped is not None
        stepped.work()
    else:
        for _ in range(100):
            if len(answers) == 4:
                break
            loop.run_once(1.0)
        assert store.stop(5.0)
        loop.close()
    opened, committed, rows, rest = answers
    assert opened.rows == 0
    assert committed.ids == [1, 2]
    assert [found.id for found in rows] == [1, 2]
    assert [found.id for found in rest] == [2]


@pytest.mark.parametrize(("fault", "kept"), [("before", 0), ("after", 1)])
def test_a_stepped_disk_fails_before_or_after_its_work(fault: Any, kept: int, tmp_path: Path) -> None:
    """Either way the caller hears of a failure, and the file has to be opened anew."""
    answers: list[Any] = []
    store = SteppedStore(tmp_path / "o.db")
    store.open(answers.append)
    store.work()
    store.fault = fault
    store.commit([NewRow("m/a", 1, 1.0, "t", b"{}")], (), answers.append)
    store.fetch(0, 10, answers.append)
    store.work()
    assert all(isinstance(answer, OutboxFileError) for answer in answers[1:])
    store.fault = ""
    store.open(answers.append)
    store.work()
    assert answers[-1].rows == kept
    store.store.close()


def test_a_broken_link_takes_nothing_and_acknowledges_nothing() -> None:
    """Messages may arrive without their sender ever hearing of it."""
    link = SteppedLink()
    heard: list[bool] = []
    assert not link.publish("t", b'{"id":1}', qos=1, outcome=heard.append)
    link.connected = True
    for number in range(3):
        assert link.publish("t", b'{"id":%d}' % number, qos=1, outcome=heard.append)
    link.acknowledge(1)
    link.break_down(arriving=1)
    assert [document["id"] for document in link.arrived] == [0, 1]
    assert heard == [True]


def test_a_store_thread_that_meets_the_unexpected_says_so(tmp_path: Path) -> None:
    """A fault of ours in the disk's thread comes up in the loop, and is never silent."""
    loop = Loop()
    store = OutboxThread(OutboxFile(tmp_path / "o.db", 1 << 20, 1e12), loop.call_soon_threadsafe)
    store.open(lambda _: None)
    store.commit([NewRow("\ud800", 1, 1.0, "t", b"{}")], (), lambda _: None)
    raised: list[Exception] = []

    def turn() -> bool:
        try:
            loop.run_once(0.05)
        except UnicodeEncodeError as error:
            raised.append(error)
        return bool(raised)

    wait_until(turn, "the fault to come up")
    assert store.stop(5.0)
    loop.close()
