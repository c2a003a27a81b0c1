"""`type = "command"`: run a program for each prediction, with the prediction on its standard input.

Guarantee: the program starts without a shell, in a session of its own, with only PATH, HOME and LANG in its
environment; one run at a time, at most one in `min_interval`. After `timeout`, after the program's end and at a stop,
its whole process group is killed. At most `MOST_WAITING` predictions wait. Weak points: a failed run is not repeated; a
child that leaves the process group ends only with the service's unit.
"""

import math
import threading
import time
from collections.abc import Iterator
from typing import Annotated

from msgspec import Meta

from edge_runtime.config.rules import Finding, rule
from edge_runtime.config.tables import Seconds, Text
from edge_runtime.sinks.kind import Offered, RunningSink, SinkContext, SinkKindTable, Standing
from edge_runtime.sinks.selection import When
from edge_runtime.sinks.waiting import Waiting
from edge_runtime.system.background import BackgroundThread
from edge_runtime.system.child import CommandEnd, run_command
from edge_runtime.system.loop import Timer

MOST_WAITING = 32
WAITING_BYTES = 1_048_576


class CommandSinkTable(SinkKindTable, frozen=True, kw_only=True, tag="command"):
    """`[[sink]]` with `type = "command"`: a program that is run for each prediction, with its JSON on standard input.

    Attributes:
        argv: The program and its arguments, each an item: `["/usr/local/bin/siren", "--on"]`. There is no shell.
        when: As of every sink, but `alarm` when left out.
        min_interval (s): The least time between the starts of two runs. What comes sooner waits: at most 32
            predictions, of which alarms are kept longest.
        timeout (s): A run that takes longer is ended, with its children.
    """

    argv: tuple[Text, ...]
    when: When = "alarm"
    min_interval: Seconds = 1.0
    timeout: Annotated[float, Meta(gt=0, le=3600)] = 10.0

    def make(self, context: SinkContext) -> RunningSink:
        """Start the sink."""
        return CommandSink(self, context)


@rule(CommandSinkTable, keys=("argv",))
def _a_program(sink: CommandSinkTable) -> Iterator[Finding]:
    if not sink.argv:
        yield "argv", "expected a program and its arguments, found an array of 0"


class CommandSink:
    """One `[[sink]]` of type `command`."""

    def __init__(self, table: CommandSinkTable, context: SinkContext) -> None:
        self._table = table
        self._program = table.argv[0]
        self._loop = context.loop
        self._counts = context.counters.counts
        self._standing = Standing(table.name, f"{self._program}: ready", context)
        self._waiting = Waiting(MOST_WAITING, WAITING_BYTES)
        self._thread = BackgroundThread("sink", context.loop.call_soon_threadsafe)
        self._end_now = threading.Event()
        self._is_running = False
        self._next_start = -math.inf
        self._timer: Timer | None = None

    @property
    def state(self) -> str:
        """The state as one line of text."""
        return self._standing.text

    @property
    def is_safe(self) -> bool:
        """Whether no program runs."""
        return not self._is_running

    def take(self, offered: Offered) -> None:
        """Take a prediction."""
        self._standing.lost("rate_limited", self._waiting.add(offered))
        self._go_on()

    def drain(self) -> None:
        """Start nothing more, and end the running program with its children."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._standing.lost("stopped", len(self._waiting.take()))
        self._next_start = math.inf
        self._end_now.set()

    def stop(self, within: float) -> None:
        """End the thread."""
        self.drain()
        self._thread.stop(within)

    def _go_on(self) -> None:
        if self._is_running or self._timer is not None or not self._waiting:
            return
        now = time.monotonic()
        if now < self._next_start:
            if self._next_start < math.inf:
                self._timer = self._loop.call_later(self._next_start - now, self._on_timer)
            return
        self._next_start = now + self._table.min_interval
        (offered,) = self._waiting.take(1)
        self._is_running = True
        self._thread.submit(
            lambda: run_command(self._table.argv, offered.payload, self._table.timeout, self._end_now),
            self._ended,
            self._not_started,
            most_s=math.inf,
        )

    def _on_timer(self) -> None:
        self._timer = None
        self._go_on()

    def _ended(self, end: CommandEnd) -> None:
        self._is_running = False
        last_words = f": {end.last_line}" if end.last_line else ""
        if end.was_stopped:
            self._standing.lost("stopped", 1)
        elif end.timed_out:
            seconds = f"{self._table.timeout:g} s"
            self._standing.fault("timed_out", f"{self._program}: ended after {seconds} (timeout): it hangs{last_words}")
        elif end.code:
            how = f"signal {-end.code}" if end.code < 0 else f"exit code {end.code}"
            self._standing.fault("failed", f"{self._program}: ended with {how}{last_words}")
        else:
            self._counts["runs"] += 1
            self._standing.well()
        self._go_on()

    def _not_started(self, error: Exception) -> None:
        self._is_running = False
        if not isinstance(error, OSError | ValueError):
            raise error
        why = getattr(error, "strerror", None) or str(error)
        self._standing.fault("not_started", f"{self._program}: cannot be started ({why}): look at argv")
        self._go_on()
