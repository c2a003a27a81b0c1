"""Reports a source that delivers no reading for too long. One timer per source, whatever the number of readings."""

from collections.abc import Callable

from edge_runtime.system import log
from edge_runtime.system.counters import Counters
from edge_runtime.system.loop import Loop, Timer

_logger = log.get_logger("source")


class SilenceWatch:
    """Reports once when a source has delivered no good reading for `patience` seconds, and once when it does again.

    Args:
        loop: the event loop.
        patience: seconds; 0 disables the watch.
        counters: takes the error `silent`.
        source: the name of the source.
        where: port, topics or files, for the log.
        remedy: what to check.
        changed: called when `is_silent` changes.
        can_hear: whether readings can arrive at all; while they cannot, another fault is reported.

    Attributes:
        is_silent: whether no good reading has arrived for too long.
    """

    def __init__(
        self,
        loop: Loop,
        patience: float,
        counters: Counters,
        *,
        source: str,
        where: str,
        remedy: str,
        changed: Callable[[], None],
        can_hear: Callable[[], bool] = lambda: True,
    ) -> None:
        self.is_silent = False
        self._loop = loop
        self._patience = patience
        self._counters = counters
        self._source = source
        self._where = where
        self._remedy = remedy
        self._changed = changed
        self._can_hear = can_hear
        self._heard = 0.0
        self._timer: Timer | None = None

    @property
    def text(self) -> str:
        """The fault, for people."""
        return f"{self._where}: no reading for {self._patience:g} s: {self._remedy}"

    def start(self) -> None:
        """Start watching: the source can deliver readings from now on."""
        self.stop()
        self._heard = self._loop.time()
        if self._patience > 0:
            self._timer = self._loop.call_later(self._patience, self._check)

    def stop(self) -> None:
        """Stop watching: no reading can arrive, which the source reports itself."""
        self.is_silent = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def heard(self) -> None:
        """Note that good readings have arrived."""
        self._heard = self._loop.time()
        if self.is_silent:
            self.is_silent = False
            _logger.info("readings come again", extra=log.fields(source=self._source, where=self._where))
            self._changed()

    def _check(self) -> None:
        if not self._can_hear():
            self._heard = self._loop.time()
        quiet = self._loop.time() - self._heard
        if quiet >= self._patience and not self.is_silent:
            self.is_silent = True
            self._counters.errors["silent"] += 1
            _logger.warning(self.text, extra=log.fields(source=self._source))
            self._changed()
        self._timer = self._loop.call_later(
            self._patience - quiet if quiet < self._patience else self._patience, self._check
        )
