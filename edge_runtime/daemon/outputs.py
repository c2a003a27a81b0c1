"""The further outputs of predictions, beside the upstream: sinks and the edge node of Sparkplug.

Both are imported only if the device file names them. They are made and changed from tables; taps on the pipelines
feed them.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime.bundle.manifest import Manifest
from edge_runtime.config.tables import Config, ModelTable
from edge_runtime.stream.pipeline import AnswerTap, Pipeline
from edge_runtime.system.clock import Clock
from edge_runtime.system.counters import Counters
from edge_runtime.system.loop import Loop

if TYPE_CHECKING:
    from edge_runtime.daemon.sinks import Sinks
    from edge_runtime.daemon.sparkplug import Sparkplug

Facts = Callable[[ModelTable, Manifest], dict[str, Any]]


class Outputs:
    """The further outputs that a configuration names.

    Args:
        loop: the event loop.
        counters: by part.
        folder: of files that are kept over a restart; None if there is none.
        clock: whether the wall clock is set.
        facts: returns the arguments of the payload makers of a model, for its manifest.
        on_fault: called when a fault of a sink begins or ends.
    """

    def __init__(
        self,
        loop: Loop,
        counters: Mapping[str, Counters],
        *,
        folder: Path | None,
        clock: Clock,
        facts: Facts,
        on_fault: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._counters = counters
        self._folder = folder
        self._clock = clock
        self._facts = facts
        self._on_fault = on_fault
        self._sinks: Sinks | None = None
        self._sparkplug: Sparkplug | None = None

    def fit(self, config: Config) -> None:
        """Run the outputs of a configuration; unchanged ones continue."""
        if config.sink or self._sinks is not None:
            if self._sinks is None:
                from edge_runtime.daemon.sinks import Sinks  # noqa: PLC0415 - only where one is configured

                self._sinks = Sinks(self._loop, self._counters, self._folder, self._on_fault)
            self._sinks.fit(config)
        if config.sparkplug is not None or self._sparkplug is not None:
            if self._sparkplug is None:
                from edge_runtime.daemon.sparkplug import Sparkplug  # noqa: PLC0415 - only where it is configured

                self._sparkplug = Sparkplug(self._loop, self._counters)
            self._sparkplug.fit(config)

    def keep(self, models: list[ModelTable]) -> None:
        """Set the models that run from now on."""
        if self._sparkplug is not None:
            self._sparkplug.keep(models)

    def taps(self, pipeline: Pipeline) -> list[AnswerTap]:
        """The taps that deliver the predictions of a pipeline."""
        facts = partial(self._facts, pipeline.config)
        found: list[AnswerTap | None] = []
        if self._sinks is not None:
            found.append(self._sinks.tap(pipeline.config, facts=facts, clock=self._clock))
        if self._sparkplug is not None:
            found.append(self._sparkplug.tap(pipeline.config, pipeline.model.manifest, facts))
        return [tap for tap in found if tap is not None]

    def document(self) -> dict[str, Any]:
        """The members of health: the state of each sink, and that of the edge node if there is one."""
        states = {} if self._sinks is None else self._sinks.states()
        found: dict[str, Any] = {
            "sinks": {
                name: {"state": state, **self._counters[f"sink {name}"].document()} for name, state in states.items()
            }
        }
        node = None if self._sparkplug is None else self._sparkplug.state
        if node is not None:
            found["sparkplug"] = {"state": node, **self._counters["sparkplug"].document()}
        return found

    def drain(self) -> None:
        """Begin a stop: no further predictions are delivered to the sinks."""
        if self._sinks is not None:
            self._sinks.drain()

    def end(self, run_loop: Callable[[Callable[[], bool], float], bool], within: float) -> None:
        """End the sinks, which have `within` seconds for their waiting predictions, and the edge node."""
        sinks = self._sinks
        if sinks is not None:
            run_loop(lambda: sinks.is_safe, max(0.1, within))
            sinks.stop(1.0)
        if self._sparkplug is not None:
            self._sparkplug.stop()
