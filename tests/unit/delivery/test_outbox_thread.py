"""The outbox's file behind a thread: requests in order, each answered once in the loop's thread."""

import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.delivery.outbox_file import OutboxFile
from edge_runtime.delivery.outbox_thread import OutboxThread
from edge_runtime.delivery.rows import Committed, NewRow, Opened, OutboxFileError, SetAside
from tests.support.waiting import patient


class _Desk:
    """The loop's side: callbacks arrive here, and run in the test's thread."""

    def __init__(self) -> None:
        self.queue: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self.answers: list[Any] = []

    def answer(self, found: object) -> None:
        """Note an answer, and the thread that gives it."""
        assert threading.current_thread() is threading.main_thread()
        self.answers.append(found)

    def serve(self, count: int) -> list[Any]:
        """Wait for so many callbacks, and return their answers."""
        for _ in range(count):
            self.queue.get(timeout=patient(30))()
        found, self.answers = self.answers, []
        return found


@pytest.fixture
def desk() -> _Desk:
    """The loop's side."""
    return _Desk()


@pytest.fixture
def thread(path: Path, desk: _Desk) -> Iterator[OutboxThread]:
    """A thread around a real file."""
    made = OutboxThread(OutboxFile(path, 1 << 20, 1e12), desk.queue.put)
    yield made
    assert made.stop(30)


def _row(number: int) -> NewRow:
    return NewRow(f"s{number}", 0, 1.0, f"t{number}", b"payload %d" % number)


def test_each_request_is_answered_as_the_file_answers(thread: OutboxThread, desk: _Desk) -> None:
    """In the order of the requests: open, commit, fetch, set aside, fetch."""
    thread.open(desk.answer)
    thread.commit([_row(1), _row(2), _row(3)], [], desk.answer)
    opened, committed = desk.serve(2)
    assert isinstance(opened, Opened)
    assert isinstance(committed, Committed)
    first, second, third = committed.ids
    thread.fetch(0, 2, desk.answer)
    thread.fetch(second, 10, desk.answer)
    thread.commit([], [first], desk.answer)
    thread.fetch(0, 10, desk.answer)
    two, rest, _, after = desk.serve(4)
    assert [row.id for row in two] == [first, second]
    assert [row.id for row in rest] == [third]
    assert [row.topic for row in after] == ["t2", "t3"]
    thread.set_aside([SetAside("s3", 1.0, "t3", b"payload 3", "refused")], [third], desk.answer)
    thread.fetch(0, 10, desk.answer)
    count, last = desk.serve(2)
    assert count == 1
    assert [row.topic for row in last] == ["t2"]


def test_an_error_of_the_file_is_an_answer(tmp_path: Path, desk: _Desk) -> None:
    """The loop decides what a failed disk means; the thread goes on serving."""
    blocked = tmp_path / "no-folder"
    blocked.write_text("a file where the folder would be")
    thread = OutboxThread(OutboxFile(blocked / "outbox.db", 1 << 20, 1e12), desk.queue.put)
    thread.open(desk.answer)
    thread.fetch(0, 1, desk.answer)
    found = desk.serve(2)
    assert len(found) == 2
    assert all(isinstance(each, OutboxFileError) for each in found)
    assert thread.stop(30)


def test_any_other_error_is_raised_in_the_loop(
    thread: OutboxThread, desk: _Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a bug: the daemon ends instead of going on without its outbox."""

    def broken(_self: OutboxFile) -> Opened:
        raise KeyError("a bug")

    monkeypatch.setattr(OutboxFile, "open", broken)
    thread.open(desk.answer)
    with pytest.raises(KeyError, match="a bug"):
        desk.serve(1)
    assert desk.answers == []


def test_a_stop_finishes_what_is_queued_and_closes_the_file(path: Path, desk: _Desk) -> None:
    """A row that was handed in before the stop is in the file afterwards."""
    thread = OutboxThread(OutboxFile(path, 1 << 20, 1e12), desk.queue.put)
    thread.open(desk.answer)
    thread.commit([_row(1)], [], desk.answer)
    assert thread.stop(30)
    assert not path.with_name(path.name + "-wal").exists()  # SQLite removes it when the last connection closes
    again = OutboxFile(path, 1 << 20, 1e12)
    assert again.open().rows == 1
    again.close()


def test_a_stop_that_takes_too_long_is_reported(path: Path, desk: _Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that hangs does not hold the daemon's end up for ever."""
    going_on = threading.Event()
    monkeypatch.setattr(OutboxFile, "open", lambda _self: going_on.wait(30))
    thread = OutboxThread(OutboxFile(path, 1 << 20, 1e12), desk.queue.put)
    thread.open(desk.answer)
    assert not thread.stop(0.0)
    going_on.set()
    assert thread.stop(30)
