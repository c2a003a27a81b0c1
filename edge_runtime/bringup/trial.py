"""A device file -> events for each frame, without publishing or storing anything: `edge-runtime try`.

Sources, codecs, contracts, windows and models are the daemon's, in the daemon's order; a listener replaces the outbox.
Guarantee: nothing is published, no file is written, and no broker keeps a session for it; a running daemon loses
nothing, since shared subscriptions are read as plain ones. Weak points: a serial port has one reader, so a daemon must
release it first; readings are processed one by one, slower than in the daemon.
"""

import math
import secrets
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec

from edge_runtime.bringup.frame_tap import FrameRefusal, tapped
from edge_runtime.config.tables import BrokerTable, Config
from edge_runtime.daemon.links import Links
from edge_runtime.daemon.plan import Plan, PlannedModel, PlannedSource
from edge_runtime.delivery.payloads import convention
from edge_runtime.mqtt.any_connection import AnyConnection
from edge_runtime.mqtt.messages import Message
from edge_runtime.readings import Batch, Receipt
from edge_runtime.stream.codecs import NO_UNITS, Categories, Units
from edge_runtime.stream.pipeline import Pipeline
from edge_runtime.stream.rejections import shortened
from edge_runtime.stream.sources.kind import AnySource, FramedSourceTable, SourceKindTable, Wiring
from edge_runtime.system.clock import Clock
from edge_runtime.system.counters import Counters
from edge_runtime.system.loop import Loop

_LOOK_S = 0.2  # interval between two looks at the states of the sources
_MOST_TOPICS = 10_000  # topics of frames that are not decoded yet

Event = dict[str, Any]


class ModelTrial(msgspec.Struct, eq=False):
    """One model at work in a trial.

    Attributes:
        pipeline: the daemon's own.
        length: readings in a window.
        predictions: their number.
    """

    pipeline: Pipeline
    length: int
    predictions: int = 0

    def filled(self, key: str | None) -> int:
        """The number of readings in a key's current window."""
        return self.length - min(self.length, dict(self.pipeline.windows.open()).get(key, self.length))


class SourceTrial(msgspec.Struct, eq=False):
    """One source in a trial, and its counts.

    Attributes:
        table: its table, as the trial runs it.
        channels: the columns that it delivers.
        categories: the texts of those that hold text.
        counters: its own.
        models: fed by it.
        units: of the channels in the bundles.
        source: made when the trial begins.
        frames: their number.
        readings: the number of good ones.
        rejected: the number of bad frames and readings, by reason.
        why: the last explanation of each reason.
    """

    table: SourceKindTable
    channels: tuple[str, ...]
    categories: Categories
    counters: Counters
    models: list[ModelTrial]
    units: Units = NO_UNITS
    source: AnySource | None = None
    frames: int = 0
    readings: int = 0
    rejected: Counter[str] = msgspec.field(default_factory=Counter)
    why: dict[str, str] = msgspec.field(default_factory=dict)
    shown: Counter[str] = msgspec.field(default_factory=Counter)
    skipped: Counter[str] = msgspec.field(default_factory=Counter)
    topics: dict[bytes, deque[str]] = msgspec.field(default_factory=dict)
    state: str = ""
    is_open: bool = False

    @property
    def name(self) -> str:
        """The name of the source."""
        return self.table.name


class _Shown:
    """Replaces the outbox: each prediction is shown and discarded."""

    def __init__(self, show: Callable[[bytes], None]) -> None:
        self._show = show

    def offer(self, stream: str, topic: str, payload: bytes, *, priority: int, receipt: Receipt | None) -> None:
        del stream, topic, priority
        self._show(payload)
        if receipt is not None:
            receipt.release()


class Trial:
    """The sources and models of a plan, with a listener instead of an outbox.

    Args:
        plan: what to try.
        show: called with each event, in its order: an object with `event`, `time` and `source`, and with `frame`,
            `reading`, `rejected` (and `why`), `skipped`, `prediction` or `state`.
        loop: the event loop.

    Attributes:
        sources: with the counts of each.
    """

    def __init__(self, plan: Plan, show: Callable[[Event], None], loop: Loop) -> None:
        self._config: Config = plan.config
        self._show = show
        self._loop = loop
        self._clock = Clock()
        self._token = secrets.token_hex(4)
        self._stopping = False
        self._links = Links(
            loop, lambda _: Counters(), commit_interval=1.0, on_change=self._look_soon, keeps_session=False
        )
        self.sources = [self._source(each) for each in plan.sources if each.models]

    def run(self, seconds: float | None) -> None:
        """Serve for so many seconds; None: until `stop`, or until every source has ended."""
        for each in self.sources:
            each.source = each.table.make(self._wiring(each))
        self._links.start()
        for each in self.sources:
            assert each.source is not None
            each.source.start()
        until = None if seconds is None else self._loop.time() + seconds
        while not self._stopping and (until is None or self._loop.time() < until):
            rest = _LOOK_S if until is None else min(_LOOK_S, max(0.0, until - self._loop.time()))
            self._loop.run_once(rest)
            self._look()
            if self._is_over:
                break
        for each in self.sources:
            assert each.source is not None
            each.source.stop()
        self._links.keep(())

    def stop(self) -> None:
        """Leave `run` soon; a signal handler may call it."""
        self._stopping = True
        self._loop.wake()

    @property
    def _is_over(self) -> bool:
        """Whether every source is a recording that has been played to its end."""
        return all(getattr(each.source, "finished", False) for each in self.sources)

    # --- making -----------------------------------------------------------------------------------------------------

    def _source(self, planned: PlannedSource) -> SourceTrial:
        made = SourceTrial(planned.config.beside_service(), planned.channels, planned.categories, Counters(), [])
        made.units = planned.units
        if isinstance(made.table, FramedSourceTable):
            made.table = tapped(made.table, partial(self._frame, made))
        made.models = [self._model(made, each) for each in planned.models]
        return made

    def _model(self, source: SourceTrial, planned: PlannedModel) -> ModelTrial:
        manifest = planned.bundle.manifest
        config = msgspec.structs.replace(planned.config, run="loop", acknowledge="entry", publish="always")
        payload = convention("json").make(
            device=self._config.device.id,
            model=config.name,
            source=config.source,
            start=0,
            manifest=manifest,
            threshold=config.threshold if config.threshold is not None else manifest.output.threshold,
        )
        pipeline = Pipeline(
            config,
            planned.model,
            channels=source.channels,
            repair=source.table.repair,
            payload=payload,
            topic="",
            outbox=_Shown(lambda found: self._prediction(source, made, found)),
            loop=self._loop,
            clock=self._clock,
            counters=Counters(),
        )
        length = 1 if manifest.input.shape is not None else manifest.input.window.length
        made = ModelTrial(pipeline, length)
        return made

    def _wiring(self, each: SourceTrial) -> Wiring:
        shape = next((model.pipeline.model.manifest.input.shape for model in each.models), None)
        return Wiring(
            config=self._config,
            channels=each.channels,
            shape=shape,
            categories=each.categories,
            loop=self._loop,
            sink=partial(self._readings, each),
            counters=each.counters,
            on_state=self._look_soon,
            needed=lambda: 1,
            paused=lambda: False,
            max_gap=None,
            connect=partial(self._connect, each),
            is_clock_set=lambda: self._clock.is_synchronised,
            interrupted=lambda: None,
            units=each.units,
        )

    def _connect(self, each: SourceTrial, broker: BrokerTable, name: str) -> AnyConnection:
        """A connection beside the daemon's, with its own client id and without a session."""
        number = len(self._links.all)
        fresh = msgspec.structs.replace(broker, client_id=f"edge-try-{self._token}-{number}")
        connection = self._links.get(fresh, name)
        connection.subscribe(
            list(each.table.subscriptions(self._config)[1].values()), 0, partial(self._note_topics, each)
        )
        return connection

    # --- what happens -----------------------------------------------------------------------------------------------

    def _event(self, kind: str, source: SourceTrial, **members: Any) -> None:
        self._show({"event": kind, "time": time.time(), "source": source.name, **members})

    def _note_topics(self, each: SourceTrial, messages: list[Message]) -> None:
        """Note the topic of a frame: the tap gets only its bytes, in the same order."""
        if len(each.topics) > _MOST_TOPICS:
            each.topics.clear()
        for message in messages:
            each.topics.setdefault(message.payload, deque()).append(message.topic.decode(errors="replace"))

    def _frame(self, each: SourceTrial, frame: bytes, refused: list[FrameRefusal]) -> None:
        each.frames += 1
        topics = each.topics.get(frame)
        place: Event = {"where": topics.popleft()} if topics else {}
        if topics is not None and not topics:
            del each.topics[frame]
        sample = shortened(frame)
        self._event("frame", each, frame=sample, **place)
        for reason, why, count in refused:
            each.shown[reason] += count
            self._rejected(each, reason, why, count=count, frame=sample, **place)

    def _rejected(self, each: SourceTrial, reason: str, why: str, *, count: int = 1, **members: Any) -> None:
        each.rejected[reason] += count
        each.why[reason] = why or reason.replace("_", " ")
        many = {"count": count} if count > 1 else {}
        self._event("rejected", each, rejected=reason, why=each.why[reason], **many, **members)

    def _readings(self, each: SourceTrial, batch: Batch) -> None:
        for row in range(len(batch)):
            self._reading(each, batch, row)

    def _reading(self, each: SourceTrial, batch: Batch, row: int) -> None:
        key = batch.keys[row]
        refusals: list[tuple[str, dict[str, str]]] = []

        def refuse(_row: int, reason: str, why: str, count: int) -> None:
            last = {"why": why, "sample": str(reading)}
            if batch.refuse is not None:  # the source has the frame and its topic
                batch.refuse(row, reason, why, count)
                last = each.counters.last_rejected[reason]
            refusals.append((reason, last))

        alone = _row_of(batch, row, refuse)
        reading: Any = "frame"
        if each.channels:
            values = zip(each.channels, alone.values[0].tolist(), strict=True)
            reading = {name: value for name, value in values if not math.isnan(value)}
        before = [model.predictions for model in each.models]
        later: list[Event] = []
        show, self._show = self._show, later.append  # a prediction is shown after the reading that completes its window
        try:
            for model in each.models:
                model.pipeline.accept(alone)
        finally:
            self._show = show
        if len(refusals) < len(each.models):
            each.readings += 1
            windows = {
                model.pipeline.config.name: [
                    model.length if model.predictions > had else model.filled(key),
                    model.length,
                ]
                for model, had in zip(each.models, before, strict=True)
                if model.length > 1
            }
            self._event("reading", each, reading=reading, key=key, at=alone.times[0], windows=windows)
        for reason, last in dict(refusals).items():  # models of one source need nearly the same channels
            place: Event = {"where": last["where"]} if "where" in last else {}
            self._rejected(each, reason, last["why"], key=key, frame=last["sample"], **place)
        for found in later:
            show(found)

    def _prediction(self, each: SourceTrial, model: ModelTrial, payload: bytes) -> None:
        model.predictions += 1
        self._event("prediction", each, model=model.pipeline.config.name, prediction=msgspec.json.decode(payload))

    def _look_soon(self) -> None:
        self._loop.call_soon(self._look)

    def _look(self) -> None:
        """Show events without a frame: refusals by the framing or the source, and changed states."""
        for each in self.sources:
            if each.source is None:
                continue
            for reason, count in each.counters.rejected.items():
                unseen = count - each.shown[reason]
                if unseen > 0:
                    each.shown[reason] = count
                    last = each.counters.last_rejected.get(reason, {})
                    each.frames += unseen
                    found = {name: last[key] for name, key in (("where", "where"), ("frame", "sample")) if key in last}
                    self._rejected(each, reason, last.get("why", ""), count=unseen, **found)
            for reason, count in each.counters.skipped.items():
                if count > each.skipped[reason]:
                    self._event("skipped", each, skipped=reason, count=count - each.skipped[reason])
                    each.skipped[reason] = count
            state = (each.source.state, each.source.is_open)
            if state != (each.state, each.is_open):
                each.state, each.is_open = state
                self._event("state", each, state=each.state, open=each.is_open)


def _row_of(batch: Batch, row: int, refuse: Callable[[int, str, str, int], None]) -> Batch:
    def one(items: Sequence[Any]) -> list[Any]:
        return [items[row]]

    return Batch(
        batch.source,
        batch.values[row : row + 1].copy(),
        one(batch.keys),
        one(batch.times),
        one(batch.identities),
        one(batch.receipts),
        batch.arrived,
        own_times=batch.own_times,
        refuse=refuse,
    )
