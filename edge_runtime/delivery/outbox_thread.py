"""The outbox's file in its own thread, so that no write blocks the event loop.

Guarantee: requests are served in order, and each is answered once, in the loop's thread. A failure other than an
`OutboxFileError` is a bug, and ends the loop.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

from edge_runtime.delivery.outbox_file import OutboxFile
from edge_runtime.delivery.rows import Committed, NewRow, Opened, OutboxFileError, OutboxRow, SetAside
from edge_runtime.system.background import BackgroundThread

_Answer = TypeVar("_Answer")


class OutboxThread:
    """An `OutboxFile` behind a queue: the loop queues requests, and gets the answers in its own thread.

    Args:
        store: the file, opened in the thread.
        tell: runs a callback in the loop's thread.
    """

    def __init__(self, store: OutboxFile, tell: Callable[[Callable[[], object]], None]) -> None:
        self._store = store
        self._thread = BackgroundThread("outbox", tell, at_end=store.close)

    def open(self, answer: Callable[[Opened | OutboxFileError], None]) -> None:
        """Open or reopen the file."""
        self._ask(self._store.open, answer)

    def commit(
        self,
        rows: Sequence[NewRow],
        delivered: Sequence[int],
        answer: Callable[[Committed | OutboxFileError], None],
    ) -> None:
        """As `OutboxFile.commit`."""
        self._ask(lambda: self._store.commit(rows, delivered), answer)

    def fetch(self, after: int, limit: int, answer: Callable[[list[OutboxRow] | OutboxFileError], None]) -> None:
        """As `OutboxFile.fetch`."""
        self._ask(lambda: self._store.fetch(after, limit), answer)

    def set_aside(
        self, rows: Sequence[SetAside], taken: Sequence[int], answer: Callable[[int | OutboxFileError], None]
    ) -> None:
        """As `OutboxFile.set_aside`."""
        self._ask(lambda: self._store.set_aside(rows, taken), answer)

    def stop(self, deadline: float) -> bool:
        """Finish queued requests and close the file; False if that took longer than `deadline` seconds."""
        return self._thread.stop(deadline)

    def _ask(self, work: Callable[[], _Answer], answer: Callable[[_Answer | OutboxFileError], None]) -> None:
        def failed(error: Exception) -> None:
            if not isinstance(error, OutboxFileError):
                raise error
            answer(error)

        self._thread.submit(work, answer, failed, what="the outbox's disk")
