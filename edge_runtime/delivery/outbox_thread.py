"""The outbox's file in a thread of its own, so that no write holds up the event loop.

Guarantee: requests are served one after the other, and each is answered once, in the loop's thread.
"""

import functools
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from edge_runtime.delivery.outbox_file import OutboxFile
from edge_runtime.delivery.rows import Committed, NewRow, Opened, OutboxFileError, Row

_Answer = TypeVar("_Answer")


class OutboxThread:
    """An `OutboxFile` behind a queue: the loop asks, and the answer comes in its own thread.

    Args:
        store: opened in the thread, not before.
        tell: runs a callback in the loop's thread.
    """

    def __init__(self, store: OutboxFile, tell: Callable[[Callable[[], None]], None]) -> None:
        self._store = store
        self._tell = tell
        self._busy_since: float | None = None
        self._requests: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="outbox", daemon=True)
        self._thread.start()

    def open(self, answer: Callable[[Opened | OutboxFileError], None]) -> None:
        """Open the file, again if need be."""
        self._ask(self._store.open, answer)

    def commit(
        self,
        rows: Sequence[NewRow],
        delivered: Sequence[int],
        answer: Callable[[Committed | OutboxFileError], None],
    ) -> None:
        """As `OutboxFile.commit`."""
        self._ask(lambda: self._store.commit(rows, delivered), answer)

    def fetch(self, after: int, limit: int, answer: Callable[[list[Row] | OutboxFileError], None]) -> None:
        """As `OutboxFile.fetch`."""
        self._ask(lambda: self._store.fetch(after, limit), answer)

    def busy_for(self, now: float) -> float:
        """Seconds of monotonic time that the present call has taken; 0 when there is none."""
        since = self._busy_since
        return 0.0 if since is None else now - since

    def stop(self, deadline: float) -> bool:
        """Finish what was asked and close the file; False when that took longer than `deadline` seconds."""
        self._requests.put(None)
        self._thread.join(deadline)
        return not self._thread.is_alive()

    def _ask(self, work: Callable[[], _Answer], answer: Callable[[_Answer | OutboxFileError], None]) -> None:
        def request() -> None:
            found: _Answer | OutboxFileError
            self._busy_since = time.monotonic()
            try:
                found = work()
            except OutboxFileError as error:
                found = error
            except Exception as error:  # noqa: BLE001 - a fault of ours: it ends the loop, and not this thread in silence
                self._tell(functools.partial(_raise, error))
                return
            finally:
                self._busy_since = None
            self._tell(lambda: answer(found))

        self._requests.put(request)

    def _serve(self) -> None:
        while (request := self._requests.get()) is not None:
            request()
        self._store.close()


def _raise(error: Exception) -> None:
    raise error
