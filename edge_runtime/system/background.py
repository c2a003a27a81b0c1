"""Work beside the event loop: a named thread does blocking work, and the loop delivers its result.

Guarantee: every piece of work ends in exactly one call in the loop's thread: `done` with the result, or `failed` with
the exception; an exception without `failed` is raised in the loop, which ends the daemon instead of leaving it
incomplete. While work runs, the watchdog's register lists it (`watchdog.py`), so that hanging work stops the watchdog's
notifications. Pieces of one `BackgroundThread` run one after the other, in the order of their submission.

Weak points: a piece of work cannot be interrupted; a thread that does not return is abandoned at `stop`, and ends with
the process. Work that is submitted after `stop` does not run.
"""

import queue
import threading
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from edge_runtime.system.watchdog import working

Report = Callable[[Callable[[], object]], None]  # such as `Loop.call_soon_threadsafe`
_Result = TypeVar("_Result")


class BackgroundThread:
    """One thread, started with its first task.

    Args:
        name: of the thread, in a debugger and in the watchdog's log line.
        report: runs a callback in the loop's thread.
        at_end: runs in the thread after `stop`, when all submitted work is done.
    """

    def __init__(self, name: str, report: Report, *, at_end: Callable[[], None] | None = None) -> None:
        self.name = name
        self._report = report
        self._at_end = at_end
        self._asked: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._stopped = False

    @property
    def waiting(self) -> int:
        """The number of pieces of work that have not begun."""
        return self._asked.qsize()

    def submit(
        self,
        work: Callable[[], _Result],
        done: Callable[[_Result], object],
        failed: Callable[[Exception], object] | None = None,
        *,
        what: str = "",
        most_s: float | None = None,
    ) -> None:
        """Run `work` in the thread.

        Args:
            work: what may block.
            done: gets the result, in the loop's thread.
            failed: gets the exception, in the loop's thread; without it the exception is raised there.
            what: its name in the watchdog's line; by default the thread's name.
            most_s: after so many seconds it counts as hanging; `watchdog.HANG_S` when left out.
        """
        if self._stopped:
            return
        self._asked.put(partial(_do, self._report, work, done, failed, what=what or self.name, most_s=most_s))
        if self._thread is None:
            self._thread = start_thread(self.name, self._serve)

    def stop(self, deadline: float = 0.0) -> bool:
        """Finish the submitted work and end; False when the thread has not ended after `deadline` seconds."""
        if not self._stopped:
            self._stopped = True
            self._asked.put(None)
            if self._thread is None and self._at_end is not None:
                self._thread = start_thread(self.name, self._serve)
        if self._thread is None:
            return True
        self._thread.join(deadline)
        return not self._thread.is_alive()

    def _serve(self) -> None:
        while (request := self._asked.get()) is not None:
            request()
        if self._at_end is not None:
            self._at_end()


def run_beside(
    name: str,
    report: Report,
    work: Callable[[], _Result],
    *,
    done: Callable[[_Result], object],
    failed: Callable[[Exception], object] | None = None,
    what: str = "",
    most_s: float | None = None,
) -> None:
    """Do one piece of work in its own thread. The arguments are those of `submit`."""
    start_thread(name, partial(_do, report, work, done, failed, what=what or name, most_s=most_s))


def start_thread(name: str, serve: Callable[[], object]) -> threading.Thread:
    """A thread that ends with `serve`, and does not keep the process from ending.

    For a service without a result; other work uses `run_beside` or `BackgroundThread`.
    """
    thread = threading.Thread(target=serve, name=name, daemon=True)
    thread.start()
    return thread


def _do(
    report: Report,
    work: Callable[[], _Result],
    done: Callable[[_Result], object],
    failed: Callable[[Exception], object] | None,
    *,
    what: str,
    most_s: float | None,
) -> None:
    try:
        with working(what, most_s):
            result = work()
    except Exception as error:  # noqa: BLE001 - the thread's edge: the loop's side decides what it means
        report(partial(failed or _raise, error))
    else:
        report(partial(done, result))


def _raise(error: Exception) -> None:
    raise error
