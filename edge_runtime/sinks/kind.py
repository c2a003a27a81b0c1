"""The interface of every kind of sink: its table, and an object that takes predictions and never blocks its caller.

Guarantee: a sink does its work in a thread of its own. It holds a bounded number of predictions, counts losses by
reason, and reports a fault once, in one sentence.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import msgspec

from edge_runtime.config.tables import SinkTable
from edge_runtime.system.counters import Counters
from edge_runtime.system.log import fields, get_logger
from edge_runtime.system.loop import Loop

_log = get_logger("sink")


class Offered(msgspec.Struct, frozen=True):
    """One prediction for a sink.

    Attributes:
        stream: model and key.
        payload: the JSON object.
        alarm: whether it is an alarm; alarms are dropped last.
    """

    stream: str
    payload: bytes
    alarm: bool


class RunningSink(Protocol):
    """One running `[[sink]]`; every method must be called in the loop's thread, and returns at once."""

    @property
    def state(self) -> str:
        """The state as one line of text."""

    @property
    def is_safe(self) -> bool:
        """Whether an end now loses nothing that waiting would save."""

    def take(self, offered: Offered) -> None:
        """Take a prediction."""

    def drain(self) -> None:
        """A stop has begun: no further prediction arrives; make the waiting ones safe."""

    def stop(self, within: float) -> None:
        """End for good, within so many seconds."""


class SinkContext(msgspec.Struct, frozen=True, eq=False):
    """The device's objects for a sink.

    Attributes:
        loop: the event loop.
        counters: of this sink.
        folder: for data that survives a restart; None without one.
        on_state: called when a fault begins or ends.
    """

    loop: Loop
    counters: Counters
    folder: Path | None
    on_state: Callable[[], None]


class SinkKindTable(SinkTable, frozen=True, kw_only=True, tag="sink"):
    """The table of one kind, with the method that makes the sink."""

    def make(self, context: SinkContext) -> RunningSink:
        """Start the sink."""
        raise NotImplementedError


class Standing:
    """The state of a sink as one line, and its faults: each is counted, and logged when it begins.

    Args:
        name: of the sink.
        good: the line without a fault.
        context: with the counters and the callback.
    """

    def __init__(self, name: str, good: str, context: SinkContext) -> None:
        self.text = good
        self._name = name
        self._good = good
        self._context = context
        self._reason = ""

    def fault(self, reason: str, text: str, *, count: int = 1) -> None:
        """Count a fault, and log the sentence `text` when it begins."""
        self._context.counters.errors[reason] += count
        self.text = text
        if reason != self._reason:
            self._reason = reason
            _log.warning(text, extra=fields(sink=self._name, reason=reason))
            self._context.on_state()

    def note(self, text: str) -> None:
        """Log a sentence that is counted elsewhere."""
        _log.warning(text, extra=fields(sink=self._name))

    def lost(self, reason: str, count: int) -> None:
        """Count lost predictions; the first loss of a reason is logged."""
        if count:
            if not self._context.counters.dropped[reason]:
                _log.warning("predictions are lost to a sink", extra=fields(sink=self._name, reason=reason))
                self._context.on_state()
            self._context.counters.dropped[reason] += count

    def well(self) -> None:
        """The fault, if any, has ended."""
        if self._reason:
            self._reason = ""
            _log.info("the sink works again", extra=fields(sink=self._name))
            self._context.on_state()
        self.text = self._good
