"""A model's answers -> the sinks that select them: each prediction is encoded once, as the JSON of the upstream.

Guarantee: a prediction has the same `id` here as at the broker. A prediction that `publish` withholds takes no number:
its `id` ends in the number of the prediction published before it and a number of its own (`1234.7`), and is unique.
"""

from collections.abc import Callable, Sequence
from typing import Any

from edge_runtime.bundle.manifest import Manifest
from edge_runtime.bundle.model import Scores
from edge_runtime.config.tables import ModelTable
from edge_runtime.delivery.json_payload import JsonPayload
from edge_runtime.readings import Prediction
from edge_runtime.sinks.kind import Offered, RunningSink
from edge_runtime.sinks.selection import Selection, When
from edge_runtime.stream.worker import LoadedBundle, ModelCall
from edge_runtime.system.clock import Clock


class SinkTap:
    """The sinks of one model, as an `AnswerTap` of its pipeline.

    Args:
        table: of the model.
        sinks: each with its `when`.
        facts: the arguments of the model's `JsonPayload` for a manifest.
        clock: shows whether the wall clock is set.
    """

    def __init__(
        self,
        table: ModelTable,
        sinks: Sequence[tuple[RunningSink, When]],
        *,
        facts: Callable[[Manifest], dict[str, Any]],
        clock: Clock,
    ) -> None:
        self._name = table.name
        self._sinks = [(sink, Selection(when, table.hysteresis)) for sink, when in sinks]
        self._facts = facts
        self._clock = clock
        self._loaded: LoadedBundle | None = None

    def take(self, call: ModelCall, row: int, scores: Scores, prediction: Prediction | None) -> None:
        """Pass an answer to each sink that selects it."""
        del scores
        loaded = call.loaded
        found = loaded.decider.withheld if prediction is None else prediction
        if found is None:
            return
        takers = [sink for sink, selection in self._sinks if selection.wants(found)]
        if not takers:
            return
        if self._loaded is not loaded:
            facts = self._facts(loaded.model.manifest)
            self._loaded, self._start, self._payload = loaded, facts["start"], JsonPayload(**facts)
        if prediction is None:
            loaded.decider.identify_withheld(call.identities[row], self._start)
        payload = self._payload.encode(found, synchronised=self._clock.is_synchronised)
        key = "-" if found.key is None else found.key
        offered = Offered(f"{self._name}/{key}", payload, found.alarm)
        for sink in takers:
            sink.take(offered)
