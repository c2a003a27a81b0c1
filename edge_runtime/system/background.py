"""Work beside the event loop: a named thread does what would block, and its result comes back through the loop.

Guarantee: every piece of work ends in exactly one call in the loop's thread: `done` with the result, or `failed` with
the exception; an exception that nothing takes is raised in the loop, which ends the daemon instead of leaving half of
it. While work runs, the watchdog's register names it (`watchdog.py`), so that work that hangs starves the watchdog.
Pieces of one `BackgroundThread` run one after the other, in the order in which they were asked for.

Weak points: a piece of work cannot be interrupted; a thread that does not come back is left behind at `stop`, and ends
with the process. What is asked for after `stop` is not run.
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
        name: of the thread, as a debugger and the watchdog's log line show it.
        report: runs a callback in the loop's thread.
        at_end: run in the thread after `stop`, when all that was asked for is done.
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
        """How many pieces of work have not been begun."""
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
        """Have `work` done in the thread.

        Args:
            work: what may block.
            done: gets the result, in the loop's thread.
            failed: gets the exception, in the loop's thread; without it the exception is raised there.
            what: what the watchdog's line calls it; the thread's name when left out.
            most_s: after so many seconds it counts as hanging; `watchdog.HANG_S` when left out.
        """
        if self._stopped:
            return
        self._asked.put(partial(_do, self._report, work, done, failed, what=what or self.name, most_s=most_s))
        if self._thread is None:
            self._thread = start_thread(self.name, self._serve)

    def stop(self, deadline: float = 0.0) -> bool:
        """Finish what was asked for and end; False when the thread is not at its end after `deadline` seconds."""
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
    """Do one piece of work in a thread of its own, beside whatever else runs. The arguments are those of `submit`."""
    start_thread(name, partial(_do, report, work, done, failed, what=what or name, most_s=most_s))


def start_thread(name: str, serve: Callable[[], object]) -> threading.Thread:
    """A thread that lives for as long as `serve`, and does not keep the process from ending.

    For a service that reports nothing; what has a result uses `run_beside` or `BackgroundThread`.
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
