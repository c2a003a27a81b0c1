"""The sinks of a daemon: made from their tables, kept over a reload if the table is the same, ended in bounded time.

Imported only if the device file has a `[[sink]]`, or had one before a reload.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edge_runtime.bundle.manifest import Manifest
from edge_runtime.config.tables import Config, ModelTable, SinkTable
from edge_runtime.sinks.kind import RunningSink, SinkContext, SinkKindTable
from edge_runtime.sinks.tap import SinkTap
from edge_runtime.system.clock import Clock
from edge_runtime.system.counters import Counters
from edge_runtime.system.loop import Loop


class Sinks:
    """All running sinks.

    Args:
        loop: the event loop.
        counters: by part; the part of a sink is `sink NAME`.
        folder: of files that are kept over a restart.
        on_state: called when a fault of a sink begins or ends.
    """

    def __init__(
        self, loop: Loop, counters: Mapping[str, Counters], folder: Path | None, on_state: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._counters = counters
        self._folder = folder
        self._on_state = on_state
        self._open: dict[str, tuple[SinkTable, RunningSink]] = {}
        self._taps: dict[str, tuple[object, SinkTap]] = {}

    def fit(self, config: Config) -> None:
        """Run the sinks of a configuration; those whose table changed are ended and made anew."""
        wanted = {table.name: table for table in config.sink}
        for name in [name for name, (table, _) in self._open.items() if wanted.get(name) != table]:
            _, gone = self._open.pop(name)
            gone.drain()
            gone.stop(1.0)
        for name, table in wanted.items():
            if name not in self._open:
                assert isinstance(table, SinkKindTable)
                context = SinkContext(self._loop, self._counters[f"sink {name}"], self._folder, self._on_state)
                self._open[name] = table, table.make(context)

    def tap(self, table: ModelTable, *, facts: Callable[[Manifest], dict[str, Any]], clock: Clock) -> SinkTap | None:
        """The tap that delivers a model's predictions to its sinks; None if it has none."""
        taken = [
            (name, *each) for name, each in self._open.items() if not each[0].models or table.name in each[0].models
        ]
        made_of = (table, [(name, sink) for name, _, sink in taken])
        known = self._taps.get(table.name)
        if known is not None and known[0] == made_of:
            return known[1]  # it holds the last predictions that its sinks took
        self._taps.pop(table.name, None)
        if not taken:
            return None
        pairs = [(sink, sink_table.when) for _, sink_table, sink in taken]
        tap = SinkTap(table, pairs, facts=facts, clock=clock)
        self._taps[table.name] = made_of, tap
        return tap

    def states(self) -> dict[str, str]:
        """A line for people for each sink."""
        return {name: sink.state for name, (_, sink) in self._open.items()}

    @property
    def is_safe(self) -> bool:
        """Whether no sink has predictions that waiting could still save."""
        return all(sink.is_safe for _, sink in self._open.values())

    def drain(self) -> None:
        """Begin a stop."""
        for _, sink in self._open.values():
            sink.drain()

    def stop(self, within: float) -> None:
        """End all sinks for good."""
        for _, sink in self._open.values():
            sink.stop(within / max(1, len(self._open)))
