"""The event loop: timers, descriptors, and calls from other threads."""

import os
import signal
import socket
import threading
from collections.abc import Iterator

import pytest

from edge_runtime.system.loop import Loop, Poll


@pytest.fixture
def loop() -> Iterator[Loop]:
    """A loop, closed at the end."""
    made = Loop()
    yield made
    made.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of a line."""
    near, far = socket.socketpair()
    near.setblocking(False)
    yield near, far
    near.close()
    far.close()


def test_a_call_from_another_thread_ends_the_wait(loop: Loop) -> None:
    """It is served at once, however long the loop wanted to wait, and in the loop's own thread."""
    seen: list[int] = []

    def wake() -> None:
        loop.call_soon_threadsafe(lambda: (seen.append(threading.get_ident()), loop.stop()))  # type: ignore[func-returns-value]

    loop.call_later(30.0, lambda: pytest.fail("it waited"))
    thread = threading.Thread(target=wake)
    thread.start()
    loop.run()
    thread.join()
    assert seen == [threading.get_ident()]


def test_calls_from_many_threads_are_all_served_once(loop: Loop) -> None:
    """Also when there are more of them than the pipe holds wake-ups."""
    seen: list[int] = []

    def call(start: int) -> None:
        for number in range(start, start + 20_000):
            loop.call_soon_threadsafe(lambda number=number: seen.append(number))  # type: ignore[misc]

    threads = [threading.Thread(target=call, args=(start,)) for start in (0, 20_000, 40_000, 60_000)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads) or len(seen) < 80_000:
        loop.run_once(5.0)
    assert sorted(seen) == list(range(80_000))
    for start in (0, 20_000, 40_000, 60_000):
        mine = [number for number in seen if start <= number < start + 20_000]
        assert mine == sorted(mine)


def test_a_late_thread_finds_a_closed_loop_and_does_no_harm() -> None:
    """After `close` a wake-up goes nowhere, and into no descriptor that took the number since."""
    loop = Loop()
    loop.close()
    with open("/dev/null", "rb"), open("/dev/null", "rb"):  # noqa: PTH123
        loop.call_soon_threadsafe(lambda: None)


def test_a_loop_is_not_closed_under_a_thread_that_wakes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its look and its write the number of the pipe could become that of another file."""
    loop = Loop()
    closer, open_at_write = threading.Thread(target=loop.close), list[bool]()
    write = os.write

    def slow_write(fd: int, data: bytes) -> int:
        closer.start()
        closer.join(0.1)
        open_at_write.append(os.fstat(fd).st_ino > 0)
        return write(fd, data)

    monkeypatch.setattr(os, "write", slow_write)
    loop.call_soon_threadsafe(lambda: None)
    closer.join(10.0)
    assert open_at_write == [True]


def test_a_reader_that_is_removed_in_a_callback_is_not_called_again(
    loop: Loop, pair: tuple[socket.socket, socket.socket]
) -> None:
    """Even when its descriptor is ready in the same pass."""
    near, far = pair
    other, another = socket.socketpair()
    calls: list[str] = []

    def first(name: str) -> None:
        calls.append(name)
        loop.remove_reader(near.fileno())
        loop.remove_reader(other.fileno())

    loop.add_reader(near.fileno(), lambda: first("near"))
    loop.add_reader(other.fileno(), lambda: first("other"))
    far.send(b"x")
    another.send(b"x")
    for _ in range(3):
        loop.run_once(0.01)
    assert len(calls) == 1
    other.close()
    another.close()


def test_a_descriptor_that_was_closed_can_be_removed(loop: Loop) -> None:
    """The kernel forgets a closed descriptor by itself; removing it afterwards is harmless."""
    near, far = socket.socketpair()
    number = near.fileno()
    loop.add_reader(number, lambda: None)
    loop.add_writer(number, lambda: None)
    near.close()
    far.close()
    loop.remove_reader(number)
    loop.remove_writer(number)
    loop.remove_reader(number)
    loop.run_once(0.0)


def test_the_other_end_hanging_up_wakes_the_reader(loop: Loop, pair: tuple[socket.socket, socket.socket]) -> None:
    """End of file is something to read."""
    near, far = pair
    seen: list[bytes] = []
    loop.add_reader(near.fileno(), lambda: seen.append(near.recv(10)))
    far.close()
    loop.run_once(5.0)
    assert seen == [b""]


def test_a_writer_is_called_while_it_is_registered(loop: Loop, pair: tuple[socket.socket, socket.socket]) -> None:
    """Reader and writer of one descriptor come and go apart from one another."""
    near, far = pair
    calls: list[str] = []
    loop.add_reader(near.fileno(), lambda: (calls.append("read"), near.recv(10)))  # type: ignore[func-returns-value]
    loop.add_writer(near.fileno(), lambda: (calls.append("write"), loop.remove_writer(near.fileno())))  # type: ignore[func-returns-value]
    loop.run_once(1.0)
    assert calls == ["write"]
    far.send(b"x")
    loop.run_once(1.0)
    assert calls == ["write", "read"]


def test_an_exception_of_a_callback_ends_the_loop_and_is_seen(loop: Loop) -> None:
    """Nothing fails in silence."""
    loop.call_soon({}.popitem)
    with pytest.raises(KeyError):
        loop.run()


def test_progress_rises_with_every_pass(loop: Loop) -> None:
    """The watchdog is fed by it."""
    before = loop.progress
    loop.run_once(0.0)
    assert loop.progress == before + 1


def test_a_loop_leaves_no_descriptor_behind() -> None:
    """Closing gives all of them back."""
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(20):
        Loop().close()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_a_signal_just_before_the_wait_ends_it(loop: Loop) -> None:
    """Its handler only notes it: the wait ends because the signal itself has written into the pipe."""
    seen: list[int] = []

    def signalled_before(poll: Poll, patience: float | None) -> list[tuple[int, int]]:
        signal.raise_signal(signal.SIGUSR1)
        return poll(patience)

    before = signal.signal(signal.SIGUSR1, lambda number, _frame: seen.append(number))
    try:
        loop.wake_on_signals()
        loop.call_later(30.0, lambda: pytest.fail("it waited"))
        loop.wait_through(signalled_before)
        loop.run_once()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert seen == [signal.SIGUSR1]


def test_a_closed_loop_leaves_signals_alone() -> None:
    """Its pipe's number may belong to another file by then."""
    closed = Loop()
    closed.wake_on_signals()
    closed.close()
    assert signal.set_wakeup_fd(-1) == -1
