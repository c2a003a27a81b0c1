"""Work beside the event loop, and how it reports back."""

import ast
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge_runtime.daemon.process import PLAN_HANG_S
from edge_runtime.http.over_mqtt import REQUEST_S
from edge_runtime.mqtt.connection import CONNECT_HANG_S
from edge_runtime.store.desired import CHECK_S
from edge_runtime.store.exchange import EXCHANGE_S
from edge_runtime.store.ota import PATIENCE_S
from edge_runtime.system import background, watchdog
from edge_runtime.system.background import BackgroundThread, run_beside
from edge_runtime.system.loop import Loop
from tests.support.waiting import Deadline, wait_until

WAIT_S = 20.0


@pytest.fixture
def loop() -> Iterator[Loop]:
    """An event loop of the test's own."""
    made = Loop()
    yield made
    made.close()


def serve(loop: Loop, condition: Callable[[], bool]) -> None:
    """Serve the loop until something holds."""
    deadline = Deadline(WAIT_S)
    while not condition():
        assert not deadline.over, "the loop was not called back"
        loop.run_once(0.05)


def fail(error: Exception) -> None:
    """Work that fails."""
    raise error


def test_a_result_comes_back_in_the_loops_thread(loop: Loop) -> None:
    """The work runs in the named thread; `done` runs in the thread that serves the loop."""
    found: list[tuple[str, str]] = []
    run_beside(
        "aside",
        loop.call_soon_threadsafe,
        lambda: threading.current_thread().name,
        done=lambda name: found.append((name, threading.current_thread().name)),
    )
    serve(loop, lambda: bool(found))
    assert found == [("aside", threading.current_thread().name)]


def test_a_failure_comes_back_in_the_loops_thread(loop: Loop) -> None:
    """`failed` gets the exception itself, and `done` is not called."""
    wrong = ValueError("no such file")
    found: list[object] = []
    run_beside("aside", loop.call_soon_threadsafe, lambda: fail(wrong), done=found.append, failed=found.append)
    serve(loop, lambda: bool(found))
    assert found == [wrong]


def test_a_failure_that_nothing_takes_ends_the_loop(loop: Loop) -> None:
    """A fault of ours is no silent end of a thread: it is raised where the loop is served."""
    run_beside("aside", loop.call_soon_threadsafe, lambda: fail(KeyError("a fault of ours")), done=print)
    with pytest.raises(KeyError, match="a fault of ours"):
        serve(loop, lambda: False)


def test_pieces_of_work_run_one_after_the_other_in_order(loop: Loop) -> None:
    """A thousand pieces, each of which fails or succeeds: one report each, in the order in which they were asked."""
    thread = BackgroundThread("line", loop.call_soon_threadsafe)
    found: list[object] = []
    wanted: list[object] = []
    running: list[int] = []

    def work(number: int) -> int:
        assert not running
        running.append(number)
        running.pop()
        if number % 7 == 0:
            raise ValueError(number)
        return number

    for number in range(1000):
        thread.submit(lambda number=number: work(number), found.append, lambda error: found.append(error.args[0]))  # type: ignore[misc]
        wanted.append(number)
    serve(loop, lambda: len(found) == len(wanted))
    assert found == wanted
    assert thread.stop(WAIT_S)


def test_no_thread_is_made_before_there_is_work(loop: Loop) -> None:
    """A part that is configured and never used costs no thread."""
    before = threading.active_count()
    thread = BackgroundThread("idle", loop.call_soon_threadsafe)
    assert threading.active_count() == before
    assert thread.stop(0.0)


def test_a_stop_finishes_what_was_asked_for(loop: Loop) -> None:
    """Everything asked for before is done, then `at_end`; what is asked for afterwards is not run."""
    gate = threading.Event()
    done: list[str] = []
    thread = BackgroundThread("store", loop.call_soon_threadsafe, at_end=lambda: done.append("closed"))
    thread.submit(lambda: gate.wait(WAIT_S), lambda _: None)
    thread.submit(lambda: done.append("written"), lambda _: None)
    assert thread.waiting >= 1
    assert not thread.stop(0.0)
    thread.submit(lambda: done.append("late"), lambda _: None)
    gate.set()
    assert thread.stop(WAIT_S)
    assert done == ["written", "closed"]


def test_an_end_without_work_closes_too(loop: Loop) -> None:
    """What is to be done at the end is done even where nothing was asked for."""
    done: list[str] = []
    thread = BackgroundThread("store", loop.call_soon_threadsafe, at_end=lambda: done.append("closed"))
    assert thread.stop(WAIT_S)
    assert done == ["closed"]


def test_work_that_hangs_is_named_for_the_watchdog(loop: Loop) -> None:
    """The register holds what runs for longer than it may, until it comes back."""
    gate = threading.Event()
    back: list[object] = []
    run_beside(
        "aside", loop.call_soon_threadsafe, lambda: gate.wait(WAIT_S), done=back.append, what="a slow disk", most_s=0.0
    )
    wait_until(lambda: "a slow disk" in watchdog.overdue(), lambda: "overdue", WAIT_S)
    gate.set()
    serve(loop, lambda: bool(back))
    assert "a slow disk" not in watchdog.overdue()


def test_every_thread_of_the_daemon_is_seen_by_the_watchdog() -> None:
    """A thread that is started past this module could hang unseen; commands, which have no watchdog, may do so."""
    root = Path(background.__file__).parents[1]
    found = {
        str(path.relative_to(root))
        for path in root.rglob("*.py")
        if re.search(r"threading\.Thread\(|\bstart_thread\(", path.read_text())
        and path.relative_to(root).parts[0] not in {"fleet", "batch", "commands"}
    }
    assert found == {"system/background.py", "http/server.py"}, "the server names what it is at by itself"


def test_only_sinks_and_a_shadow_may_take_for_ever() -> None:
    """What waits for a server or a program of others, or serves until it is stopped; all else counts as a hang."""
    root = Path(background.__file__).parents[1]
    endless: set[str] = set()
    calls = 0
    for path in sorted(root.rglob("*.py")):
        where = path.relative_to(root)
        if where.parts[0] in {"fleet", "batch", "commands"}:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in {"submit", "run_beside"}:
                calls += 1
                most = next((ast.unparse(each.value) for each in node.keywords if each.arg == "most_s"), "")
                endless |= {str(where)} if "inf" in most else set()
    assert calls >= 20
    assert endless == {"sinks/command_sink.py", "sinks/file_sink.py", "sinks/http_sink.py", "store/shadow.py"}
    limits = [watchdog.HANG_S, CONNECT_HANG_S, PLAN_HANG_S, EXCHANGE_S, CHECK_S, REQUEST_S, 5 * PATIENCE_S]
    assert limits == [60.0, 300.0, 600.0, 600.0, 120.0, 1200.0, 600.0]
