"""Stand-ins for the outside world, small enough to be believed; the ones with behaviour have tests of their own."""

import time
from collections.abc import Callable, Sequence

import numpy as np

from edge_runtime.readings import Batch, Receipt
from edge_runtime.system.counters import Counters


class FakeSource:
    """A source that delivers what a test hands it, when the test says so.

    It keeps the contract of `tests/contract/sources/test_every_source.py`, as the real ones do.
    """

    def __init__(self, channels: tuple[str, ...], sink: Callable[[Batch], None], counters: Counters) -> None:
        self.is_open = False
        self.state = "not started"
        self.on_state: Callable[[], None] | None = None
        self._channels = channels
        self._sink = sink
        self._counters = counters

    def start(self) -> None:
        """Be open."""
        self._show("open", is_open=True)

    def stop(self) -> None:
        """Be closed, and deliver nothing more."""
        self._show("stopped", is_open=False)

    def deliver(
        self,
        rows: Sequence[Sequence[float]],
        *,
        keys: Sequence[str | None] | None = None,
        times: Sequence[float] | None = None,
        identities: Sequence[str | None] | None = None,
        receipts: Sequence[Receipt | None] | None = None,
    ) -> None:
        """One wake-up that brought these readings; what is left out is as of a reading that brought nothing."""
        if not self.is_open:
            return
        count = len(rows)
        self._counters.counts["readings"] += count
        self._sink(
            Batch(
                "fake",
                np.array(rows, np.float32).reshape(count, len(self._channels)),
                list(keys or [None] * count),
                list(times or [time.time()] * count),
                list(identities or [None] * count),
                list(receipts or [None] * count),
                time.perf_counter(),
            )
        )

    def _show(self, state: str, *, is_open: bool) -> None:
        self.state, self.is_open = state, is_open
        if self.on_state is not None:
            self.on_state()
