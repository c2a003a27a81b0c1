"""What every kind of sink gives: its table, and an object that takes predictions and never makes its caller wait.

Guarantee: whatever a sink does, it does in a thread of its own; it holds a bounded number of predictions, counts what
it loses by reason, and reports a fault once, in one sentence.
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
        alarm: it is an alarm, which goes last when room is short.
    """

    stream: str
    payload: bytes
    alarm: bool


class RunningSink(Protocol):
    """One `[[sink]]` at work; every method belongs to the loop's thread and returns at once."""

    @property
    def state(self) -> str:
        """One line for people."""

    @property
    def is_safe(self) -> bool:
        """Nothing would be lost by an end now that waiting could save."""

    def take(self, offered: Offered) -> None:
        """Take a prediction."""

    def drain(self) -> None:
        """A stop has begun: nothing more comes, and what is held is to be made safe."""

    def stop(self, within: float) -> None:
        """End for good, at most so many seconds later."""


class SinkContext(msgspec.Struct, frozen=True, eq=False):
    """What a sink is made with.

    Attributes:
        loop: the event loop.
        counters: its own.
        folder: for what is to survive a restart; None where there is none.
        on_state: called when a fault begins or ends.
    """

    loop: Loop
    counters: Counters
    folder: Path | None
    on_state: Callable[[], None]


class SinkKindTable(SinkTable, frozen=True, kw_only=True, tag="sink"):
    """A table of one kind, which makes the sink."""

    def make(self, context: SinkContext) -> RunningSink:
        """The sink, at work."""
        raise NotImplementedError


class Standing:
    """The state of a sink as one line, and its faults: each is counted, and logged when it begins.

    Args:
        name: of the sink.
        good: its line while all is well.
        context: counters, and who wants to know.
    """

    def __init__(self, name: str, good: str, context: SinkContext) -> None:
        self.text = good
        self._name = name
        self._good = good
        self._context = context
        self._reason = ""

    def fault(self, reason: str, text: str, *, count: int = 1) -> None:
        """Something went wrong: `text` is the sentence."""
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
        """Predictions that are gone; the first ones of a reason are logged."""
        if count:
            if not self._context.counters.dropped[reason]:
                _log.warning("predictions are lost to a sink", extra=fields(sink=self._name, reason=reason))
                self._context.on_state()
            self._context.counters.dropped[reason] += count

    def well(self) -> None:
        """All is well, again."""
        if self._reason:
            self._reason = ""
            _log.info("the sink works again", extra=fields(sink=self._name))
            self._context.on_state()
        self.text = self._good
