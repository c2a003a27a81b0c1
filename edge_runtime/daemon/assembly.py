"""The wiring: makes the stages of a configuration, starts and stops them, and applies the changes of a reload.

::

    sources ──batches──> pipelines ──predictions──> outbox ──> connection ──> broker
       │                                              │ outbox thread            ▲
       └── MQTT sources share their broker's connection ────────────────────────┘

Started from right to left, so that every stage has its consumer first; stopped from left to right: no new readings,
held predictions are delivered or committed, then `offline` and DISCONNECT.

A reload compares tables: a source, a link or a model with an unchanged table keeps running, with its port, session,
windows and counters. Weak point: a change of the device id, outbox, QoS or a device topic affects everything, so then
everything is restarted (`can_change_to`).

A class of more than 400 lines, on purpose: the orders of start, reload and stop are read side by side.
"""

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

from edge_runtime.bundle.manifest import Manifest
from edge_runtime.bundle.model import Model
from edge_runtime.config.load import upstream_broker
from edge_runtime.config.tables import BrokerTable, Config, ModelTable
from edge_runtime.daemon.documents import CaptureState, Standings, health_document, models_document
from edge_runtime.daemon.extras import DaemonContext, Extras
from edge_runtime.daemon.feed import Feed, pipelines_of
from edge_runtime.daemon.links import Links
from edge_runtime.daemon.outputs import Outputs
from edge_runtime.daemon.plan import Plan, PlannedModel, PlannedSource
from edge_runtime.daemon.state import StateFolder, outbox_thread, restore_windows, save_windows, state_folder
from edge_runtime.delivery.device_topics import Upstream, own_topics
from edge_runtime.delivery.outbox import Outbox
from edge_runtime.delivery.payloads import Encoders, Payload, convention, first_of
from edge_runtime.mqtt.any_connection import AnyConnection
from edge_runtime.stream.decide import Sequences
from edge_runtime.stream.pipeline import Pipeline
from edge_runtime.stream.sources.kind import AnySource, Remembering, Wiring
from edge_runtime.stream.worker import TriedModel, rehearse
from edge_runtime.system.clock import Clock
from edge_runtime.system.counters import Counters
from edge_runtime.system.log import fields, get_logger
from edge_runtime.system.loop import Loop

FINISH_SHARE = 0.5  # of the stop's time-out, for acknowledgements of messages in flight; then these are committed

_log = get_logger("daemon")


class Assembly:
    """One configuration, wired.

    Args:
        plan: what is to run.
        loop: the event loop.
        clock: reports whether the wall clock is set.
        started: when the process began, by the monotonic clock.
        last_start: the number of the assembly before this one in this process, or 0.
        on_change: called whenever the link or a source changed.
        reload: requests a reload, for a bundle that needs other channels than its source delivers.
    """

    def __init__(
        self,
        plan: Plan,
        loop: Loop,
        *,
        clock: Clock,
        started: float,
        last_start: int,
        on_change: Callable[[], None],
        reload: Callable[[], None],
    ) -> None:
        config = plan.config
        self.config = config
        self._loop = loop
        self._clock = clock
        self._on_change = on_change
        self.folder = StateFolder(state_folder(config), config.device.id)
        self.started = started
        self.start_number = self.folder.next_start(above=last_start)
        self.counters: defaultdict[str, Counters] = defaultdict(Counters)
        self._sequences: defaultdict[str, Sequences] = defaultdict(Sequences)
        self.store = outbox_thread(config, loop)
        self.outbox = Outbox(
            loop,
            self.counters["outbox"],
            store=self.store,
            commit_interval=config.outbox.commit_interval,
            max_memory_bytes=config.outbox.max_memory_bytes,
            qos=config.upstream.qos,
            unsendable=self._unsendable,
        )
        self.outbox.on_state = self._outbox_state
        self.outbox.on_full.append(self._outbox_full)
        self._links = Links(
            loop,
            self.counters.__getitem__,
            commit_interval=config.outbox.commit_interval,
            on_change=self._changed,
        )
        self.feeds: list[Feed] = []
        self._retired: list[Pipeline] = []  # still finishing their windows
        self._extras = Extras(
            DaemonContext(
                start=self.start_number,
                files=self.folder,
                loop=loop,
                clock=clock,
                counters=self.counters,
                health=partial(health_document, self),
                hand_over=self._hand_over,
                reload=reload,
                on_state=self._source_changed,
                on_models=self._models_changed,
                on_ask=lambda: self.upstream.publish_health_soon(),  # noqa: PLW0108 - a reload exchanges it
                keys=lambda: {each.config.name: (key for key, _ in each.windows.open()) for each in self.pipelines},
                tell_again=self._tell_again,
                facts=self._facts,
                folder=state_folder(config),
            )
        )
        self._attach_upstream()
        self._extras.make(config, self.upstream_connection, uses_store=plan.uses_store)
        for planned in plan.sources:
            feed = self._new_feed(planned)
            self._make_source(feed)
            feed.pipelines = [self._make_pipeline(feed, model) for model in planned.models]
            self.feeds.append(feed)

    # --- for the documents -------------------------------------------------------------------------------------------

    @property
    def pipelines(self) -> list[Pipeline]:
        """The pipeline of every running model."""
        return list(pipelines_of(self.feeds))

    @property
    def sources(self) -> list[tuple[str, AnySource]]:
        """Every source, with its name."""
        return [(feed.name, feed.source) for feed in self.feeds]

    @property
    def exchange(self) -> Standings | None:
        """The watch over the store; None without one."""
        return self._extras.exchange

    @property
    def captures(self) -> CaptureState | None:
        """The captures of windows to be labelled; None without them."""
        return self._extras.capture

    @property
    def outputs(self) -> Outputs:
        """The outputs beside the upstream."""
        return self._extras.outputs

    @property
    def accuracy(self) -> dict[str, dict[str, Any]]:
        """The accuracy of each model, if known."""
        return self._extras.accuracy()

    @property
    def connections(self) -> list[AnyConnection]:
        """Every connection."""
        return self._links.all

    def is_ready(self) -> bool:
        """Whether every port is open, every subscription is granted, and HTTP, if configured, listens."""
        return (
            self._extras.is_ready
            and all(connection.ready for connection in self._links.all)
            and all(feed.source.is_open for feed in self.feeds)
        )

    # --- life -------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start everything; returns at once."""
        restore_windows(self.folder, self.pipelines, self._remembering(), self._loop.time())
        self._begin_new_parts()

    def end(self, run_loop: Callable[[Callable[[], bool], float], bool]) -> bool:
        """Stop everything within the configured time; True if everything was delivered or committed.

        Args:
            run_loop: serves the loop until a condition holds, at most for so many seconds.
        """
        deadline = self._loop.time() + self.config.device.stop_timeout
        for feed in self.feeds:
            feed.source.stop()
        self._extras.end(FINISH_SHARE * self.config.device.stop_timeout)
        for connection in self.connections:
            connection.acknowledge_at_once()
        run_loop(self._is_finished, FINISH_SHARE * self.config.device.stop_timeout)
        self._extras.close()
        for pipeline in (*self.pipelines, *self._retired):
            pipeline.stop()
        self.outbox.drain()
        self.outputs.drain()
        safe = run_loop(lambda: self.outbox.is_safe, max(0.1, deadline - self._loop.time()))
        if not safe:
            _log.error("predictions are lost with this stop", extra=fields(lost=self.outbox.queued))
        save_windows(self.folder, self.pipelines, self._remembering())
        self.outputs.end(run_loop, deadline - self._loop.time())
        self.upstream.say_goodbye()
        for connection in self.connections:
            connection.on_change.clear()
        self._links.keep(())
        if self.store is not None:
            self.store.stop(max(1.0, deadline - self._loop.time()))
        return safe

    def housekeeping(self) -> None:
        """Forget silent keys, and save the state of truth."""
        self._extras.housekeeping()
        for pipeline in self.pipelines:
            pipeline.expire()
        self._retired = [pipeline for pipeline in self._retired if not pipeline.is_idle]

    def running(self) -> list[PlannedModel]:
        """The running models, so that a plan need not load them again."""
        return [PlannedModel(each.config, each.model.bundle, each.model) for each in self.pipelines]

    # --- a reload ---------------------------------------------------------------------------------------------------

    def can_change_to(self, config: Config) -> bool:
        """Whether a configuration differs only in parts that can be changed one by one."""
        old = self.config
        whole, wanted = (
            (each.device.id, each.outbox, each.upstream.qos, own_topics(each.device.id, each.upstream))
            for each in (old, config)
        )
        return whole == wanted

    def change(self, plan: Plan) -> None:
        """Run another plan from now on; unchanged parts keep running."""
        old, self.config = self.config, plan.config
        config = plan.config
        stale = {upstream_broker(old), upstream_broker(config)}
        if len(stale) == 1:
            stale.clear()
        feeds = {feed.name: feed for feed in self.feeds}
        for gone in [feeds[name] for name in feeds.keys() - {planned.config.name for planned in plan.sources}]:
            gone.planned.config.withdraw(gone.source)
            self._fit_pipelines(gone, [])
        within = FINISH_SHARE * config.device.stop_timeout
        changes = {"uses_store": plan.uses_store, "link_changed": bool(stale)}
        self._extras.end_changed(old, config, **changes, within=within)
        if stale:
            self.upstream.say_goodbye()
            self._attach_upstream()
        self._extras.make(config, self.upstream_connection, uses_store=plan.uses_store)
        self.feeds = []
        for planned in plan.sources:
            feed = feeds.get(planned.config.name) or self._new_feed(planned)
            self._fit_source(feed, planned, old, stale)
            self._fit_pipelines(feed, planned.models)
            self.feeds.append(feed)
        self._links.keep({upstream_broker(config)}.union(*(each.config.links(config) for each in plan.sources)))
        if stale:
            self.outbox.link_changed()  # messages in flight on the old link are sent again over the new one
        self.upstream.publish_every(config.device.health_interval)
        self._begin_new_parts()
        self.upstream.publish_models()
        self.upstream.publish_health_soon()

    def _fit_source(self, feed: Feed, planned: PlannedSource, old: Config, stale: set[BrokerTable]) -> None:
        """Keep the source of a feed if its table and its links are the same, else replace it."""
        before = feed.planned
        feed.plan(planned)
        links = planned.config.links(self.config)
        if before.config == planned.config and before.config.links(old) == links and not stale.intersection(links):
            wanted, had = (planned.channels, planned.shape), (before.channels, before.shape)
            if wanted == had and before == feed.planned:
                return
            if planned.config.rewire(feed.source, self._wiring(feed)):
                return
        gone = feed.source
        before.config.withdraw(gone)
        self._make_source(feed)
        if isinstance(feed.source, Remembering):
            feed.source.take_over(gone)  # messages of the old link may be repeated over the new one

    def _fit_pipelines(self, feed: Feed, models: list[PlannedModel]) -> None:
        """Keep each model whose table, bundle and repair are the same; the others end when they are idle."""
        before = {pipeline.config.name: pipeline for pipeline in feed.pipelines}
        feed.pipelines = [self._fitted(feed, model, before.pop(model.config.name, None)) for model in models]
        for gone in before.values():
            self._retire(gone)

    def _fitted(self, feed: Feed, model: PlannedModel, present: Pipeline | None) -> Pipeline:
        if present is None:
            return self._make_pipeline(feed, model)
        repair = feed.planned.config.repair
        if (present.config, present.repair) == (model.config, repair):
            loaded = model.model
            if present.model.bundle.digest == model.bundle.digest:
                loaded = present.model
            else:
                present.swap(rehearse(loaded, model.config), self._payload(model.config, loaded))
                self._extras.tend_copy(present, self.config)
                self._extras.forget(present)
            present.rewire(
                feed.planned.channels, self._topic(model.config), payload=self._payload(model.config, loaded)
            )
            self._extras.follow(present, model)
            return present
        made = self._make_pipeline(feed, model)
        made.take_over(present)
        self._retire(present)
        return made

    def _retire(self, pipeline: Pipeline) -> None:
        """Stop a pipeline from taking readings; those that it has are still answered."""
        self._extras.forget(pipeline)
        pipeline.retire()
        if not pipeline.is_idle:
            self._retired.append(pipeline)

    def _remembering(self) -> dict[str, Remembering]:
        """The sources that remember their received readings."""
        return {name: source for name, source in self.sources if isinstance(source, Remembering)}

    # --- making -----------------------------------------------------------------------------------------------------

    def _attach_upstream(self) -> None:
        """Deliver over the connection of the configuration."""
        config = self.config
        topics = own_topics(config.device.id, config.upstream)
        connection = self._links.get(upstream_broker(config), "upstream", topics.will)
        connection.on_change.insert(0, self.outbox.link_changed)
        self.upstream_connection = connection
        self.outbox.attach(connection)
        self.upstream = Upstream(
            topics,
            connection,
            self._loop,
            interval=config.device.health_interval,
            is_ready=self.is_ready,
            health=partial(health_document, self),
            models=partial(models_document, self),
            shadows=self._extras.shadows,
        )

    def _begin_new_parts(self) -> None:
        """Start new parts; HTTP and requests over MQTT answer for the models that run now."""
        self._extras.begin([(pipeline.config, pipeline.model) for pipeline in self.pipelines])
        for pipeline in self.pipelines:
            pipeline.taps = self._extras.taps(pipeline)
        self._extras.watch_drift(self.feeds, self.config, self.upstream_connection)
        self._links.start()
        http = self._extras.http
        if not all(feed.is_started for feed in self.feeds):
            self.upstream.announce_again()
        for feed in self.feeds:
            feed.watch = None if http is None else http.note_readings
            if not feed.is_started:
                feed.is_started = True
                feed.source.start()
        self._changed()

    def _new_feed(self, planned: PlannedSource) -> Feed:
        return Feed(planned, self.counters[f"source {planned.config.name}"])

    def _make_source(self, feed: Feed) -> None:
        feed.source = feed.planned.config.make(self._wiring(feed))
        feed.is_started = False

    def _wiring(self, feed: Feed) -> Wiring:
        return Wiring(
            config=self.config,
            channels=feed.planned.channels,
            shape=feed.planned.shape,
            loop=self._loop,
            sink=feed.accept,
            counters=feed.counters,
            on_state=self._source_changed,
            needed=feed.needed,
            paused=lambda: self.outbox.is_full or not feed.has_room,
            max_gap=feed.planned.max_gap,
            connect=self._links.get,
            is_clock_set=lambda: self._clock.is_synchronised,
            interrupted=feed.interrupt,
            holds_windows=feed.planned.holds_windows,
            categories=feed.planned.categories,
            units=feed.planned.units,
        )

    def _make_pipeline(self, feed: Feed, model: PlannedModel) -> Pipeline:
        pipeline = Pipeline(
            model.config,
            model.model,
            channels=feed.planned.channels,
            repair=feed.planned.config.repair,
            payload=self._payload(model.config, model.model),
            topic=self._topic(model.config),
            outbox=self.outbox,
            loop=self._loop,
            clock=self._clock,
            counters=self.counters[f"model {model.config.name}"],
            sequences=self._sequences[model.config.name],
        )
        pipeline.warm_up()
        self._extras.tend_copy(pipeline, self.config)
        self._extras.follow(pipeline, model)
        return pipeline

    def _topic(self, model: ModelTable) -> str:
        device = self.config.device.id
        return self.config.upstream.topic.replace("{device}", device).replace("{model}", model.name)

    def _payload(self, config: ModelTable, model: Model) -> Payload | Encoders:
        facts = self._facts(config, model.manifest)
        http = self._extras.http
        if config.payloads == (first_of(config.payloads),):
            payload = convention(config.payloads[0]).make(**facts)
            return payload if http is None else http.tap(payload, **facts)
        from edge_runtime.delivery.further_payloads import encoders_of  # noqa: PLC0415 - only where there are several

        found = encoders_of(config.payloads, facts, None if http is None else http.watch_answers(**facts))
        return found if http is None or found.first is None else found._replace(first=http.tap(found.first, **facts))

    def _facts(self, config: ModelTable, manifest: Manifest) -> dict[str, Any]:
        """The arguments for the payloads of a model."""
        return {
            "device": self.config.device.id,
            "model": config.name,
            "source": config.source,
            "start": self.start_number,
            "manifest": manifest,
            "threshold": config.threshold if config.threshold is not None else manifest.output.threshold,
        }

    # --- bundles ----------------------------------------------------------------------------------------------------

    def _hand_over(self, pipeline: Pipeline, candidate: TriedModel) -> bool:
        """Give a pipeline another bundle; False if its source lacks a channel of that one."""
        model = candidate.model
        planned = next(feed.planned for feed in self.feeds if pipeline in feed.pipelines)
        if model.manifest.input.shape != planned.shape or set(model.manifest.channel_names) - set(planned.channels):
            return False
        if any(each.categories != planned.categories.get(each.name, ()) for each in model.manifest.input.channels):
            return False
        units = planned.units
        if units and any(each.unit != units.get(each.name, each.unit) for each in model.manifest.input.channels):
            return False
        pipeline.swap(candidate, self._payload(pipeline.config, model))
        self._extras.tend_copy(pipeline, self.config)
        self._extras.exchanged(pipeline.config, model)
        self._extras.watch_drift(self.feeds, self.config, self.upstream_connection)
        return True

    # --- reports of the parts -----------------------------------------------------------------------------------------

    def _models_changed(self) -> None:
        self.upstream.publish_models()
        self.upstream.publish_health_soon()
        self._on_change()

    def _is_finished(self) -> bool:
        """Whether waiting longer would deliver nothing more."""
        if not all(pipeline.is_idle for pipeline in (*self.pipelines, *self._retired)):
            return False
        if not self._extras.is_idle:
            return False
        return self.outbox.is_delivered or not self.upstream_connection.connected

    def _tell_again(self) -> None:
        self.upstream.announce_again()
        self.upstream.publish_models()
        self.upstream.publish_health()

    def _source_changed(self) -> None:
        self._loop.call_soon(self._changed)

    def _changed(self) -> None:
        self.upstream.link_changed()
        self._extras.link_changed()
        self._on_change()

    def _unsendable(self, topic: str, size: int) -> str | None:
        """`unsendable` of the present upstream connection, which a reload may change."""
        return self.upstream_connection.unsendable(topic, size)

    def _outbox_full(self, full: bool) -> None:
        """Stop reading from source brokers while the outbox is full, not from the upstream: its PUBACKs free room."""
        for connection in self._links.all:
            if connection is not self.upstream_connection:
                connection.hold(held=full)

    def _outbox_state(self, state: str) -> None:
        level = _log.info if state == "ok" else _log.error
        level("outbox", extra=fields(state=state))
        self.upstream.publish_health_soon()
