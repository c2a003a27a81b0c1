"""The wiring: makes the stages that one configuration wants, starts them and stops them.

::

    sources ──batches──> pipelines ──predictions──> outbox ──> connection ──> broker
       │                                              │ store thread             ▲
       └── MQTT sources share their broker's connection ────────────────────────┘

Started from the right to the left, so that nothing is made that cannot be taken; stopped from the left to the right:
no new readings, what is held is finished and delivered or committed, then goodbye.
"""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edge_runtime.bundle.model import Model
from edge_runtime.bundle.optimised_copy import chosen, is_settled, wants_copy
from edge_runtime.config.load import read_password, upstream_broker
from edge_runtime.config.tables import BrokerTable, Config, ModelTable
from edge_runtime.daemon.documents import health_document, models_document
from edge_runtime.daemon.plan import Plan, PlannedSource
from edge_runtime.daemon.state import StateFolder, restore_windows, save_windows
from edge_runtime.delivery.device_topics import Upstream, last_will
from edge_runtime.delivery.outbox import Outbox
from edge_runtime.delivery.outbox_file import OutboxFile
from edge_runtime.delivery.outbox_thread import OutboxThread
from edge_runtime.delivery.payloads import Payload, convention
from edge_runtime.mqtt.ack_coalescing import ACK_DELAY_S
from edge_runtime.mqtt.connection import Connection
from edge_runtime.mqtt.failover import AnyConnection, Failover
from edge_runtime.readings import Batch
from edge_runtime.stream.pipeline import Candidate, Pipeline
from edge_runtime.stream.sources.kind import AnySource, Remembering, Wiring
from edge_runtime.system.clock import Clock
from edge_runtime.system.counters import Counters
from edge_runtime.system.log import fields, get_logger
from edge_runtime.system.loop import Loop

if TYPE_CHECKING:
    from edge_runtime.bundle.optimised_copy_maker import Copies
    from edge_runtime.http.in_daemon import Attached
    from edge_runtime.http.over_mqtt import Requests
    from edge_runtime.store.exchange import Exchange
    from edge_runtime.store.ota import Ota

FINISH_SHARE = 0.5  # of the stop's time-out: what is in flight may be acknowledged; then it is committed

_log = get_logger("daemon")


class Assembly:
    """One configuration, wired. A reload makes a new one.

    Args:
        plan: what is to run.
        loop: the event loop.
        clock: tells whether the wall clock is set.
        started: when the process began, by the monotonic clock.
        last_start: the number of the assembly before this one in this process, or 0.
        on_change: called whenever the link or a source changed.
        reload: asks for a reload; for a bundle that needs other channels than its source delivers.
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
        self.plan = plan
        self.config = config
        self._loop = loop
        self._on_change = on_change
        self.folder = StateFolder(_state_folder(config), config.device.id)
        self.started = started
        self.start_number = self.folder.next_start(above=last_start)
        self.counters: dict[str, Counters] = {"upstream": Counters(), "outbox": Counters()}
        self.connections: dict[BrokerTable, AnyConnection] = {}
        self.upstream_connection = self._connection(upstream_broker(config), "upstream", is_upstream=True)
        self.store = _store_thread(config, loop)
        self.outbox = Outbox(
            loop,
            self.counters["outbox"],
            store=self.store,
            commit_interval=config.outbox.commit_interval,
            max_memory_bytes=config.outbox.max_memory_bytes,
            qos=config.upstream.qos,
        )
        self.outbox.on_state = self._outbox_state
        self.outbox.attach(self.upstream_connection)
        self.http = self._http()
        self.requests = self._requests()
        self.exchange = self._make_exchange(reload)
        self.ota = self._ota()
        self.copies: Copies | None = None
        self.pipelines: list[Pipeline] = []
        self.sources: list[tuple[str, AnySource]] = []
        for planned in plan.sources:
            self._add_source(planned, clock)
        self.upstream = Upstream(
            config.device.id,
            self.upstream_connection,
            loop,
            interval=config.device.health_interval,
            is_ready=self.is_ready,
            health=partial(health_document, self),
            models=partial(models_document, self),
            shadows=lambda: {} if self.exchange is None else self.exchange.shadows(),
        )

    def begin(self) -> None:
        """Start everything; returns at once."""
        restore_windows(self.folder, self.pipelines, self._remembering(), self._loop.time())
        self.upstream_connection.on_change.append(self.outbox.link_changed)
        models = [(pipeline.config, pipeline.model) for pipeline in self.pipelines]
        if self.requests is not None:
            self.requests.begin(models)
        for connection in self.connections.values():
            connection.on_change.append(self._changed)
            connection.start()
        if self.http is not None:
            self.http.begin(models)
        if self.exchange is not None:
            self.exchange.begin()
        for _, source in self.sources:
            source.start()
        self._changed()

    def end(self, run_loop: Callable[[Callable[[], bool], float], bool]) -> bool:
        """Stop everything within the configured time; True when nothing was left undelivered or uncommitted.

        Args:
            run_loop: serves the loop until a condition holds, at most for so many seconds.
        """
        deadline = self._loop.time() + self.config.device.stop_timeout
        if self.http is not None:
            self.http.end()
        if self.requests is not None:
            self.requests.end()
        for _, source in self.sources:
            source.stop()
        if self.exchange is not None:
            self.exchange.end()
        if self.ota is not None:
            self.ota.end()
        if self.copies is not None:
            self.copies.end()
        for connection in self.connections.values():
            connection.acknowledge_at_once()
        run_loop(self._is_finished, FINISH_SHARE * self.config.device.stop_timeout)
        for pipeline in self.pipelines:
            pipeline.stop()
        self.outbox.drain()
        safe = run_loop(lambda: self.outbox.is_safe, max(0.1, deadline - self._loop.time()))
        if not safe:
            _log.error("predictions are lost with this stop", extra=fields(lost=self.outbox.queued))
        save_windows(self.folder, self.pipelines, self._remembering())
        self.upstream.say_goodbye()
        for connection in self.connections.values():
            connection.on_change.clear()
            connection.stop()
        if self.store is not None:
            self.store.stop(max(1.0, deadline - self._loop.time()))
        return safe

    def _remembering(self) -> dict[str, Remembering]:
        """The sources that remember which readings were here."""
        return {name: source for name, source in self.sources if isinstance(source, Remembering)}

    def is_ready(self) -> bool:
        """Every port is open, every subscription granted, and HTTP, where it is wanted, listens."""
        if self.http is not None and not self.http.is_listening:
            return False
        return all(connection.ready for connection in self.connections.values()) and all(
            source.is_open for _, source in self.sources
        )

    def housekeeping(self) -> None:
        """Forget silent keys."""
        for pipeline in self.pipelines:
            pipeline.expire()

    def _connection(self, settings: BrokerTable, name: str, *, is_upstream: bool = False) -> AnyConnection:
        """The connection to a broker, or to the first of several that answers; equal ones are shared."""
        found = self.connections.get(settings)
        if found is not None:
            return found
        counters = self.counters.setdefault(name, Counters())
        will = last_will(self.config.device.id) if is_upstream else None

        def connect(url: str) -> Connection:
            return Connection(
                msgspec.structs.replace(settings, url=url, urls=()),
                name=name,
                client_id=settings.client_id or f"edge-{self.config.device.id}",
                password=lambda: read_password(settings),
                loop=self._loop,
                counters=counters,
                will=will,
                # seen well before the outbox takes a prediction for one that has to be kept
                ack_patience=min(ACK_DELAY_S, self.config.outbox.commit_interval / 2 or ACK_DELAY_S),
            )

        made: AnyConnection = connect(settings.url)
        if settings.urls:
            made = Failover(
                (settings.url, *settings.urls),
                connect,
                name=name,
                return_after=settings.return_after,
                loop=self._loop,
                counters=counters,
                will=will,
            )
        self.connections[settings] = made
        return made

    def _http(self) -> "Attached | None":
        if self.config.http is None:
            return None
        from edge_runtime.http.in_daemon import Attached  # noqa: PLC0415 - an extra, only where it is configured

        return Attached(
            self.config.http,
            device=self.config.device.id,
            start=self.start_number,
            loop=self._loop,
            health=partial(health_document, self),
            counters=self.counters.setdefault("http", Counters()),
            on_change=self._source_changed,
        )

    def _requests(self) -> "Requests | None":
        if self.config.upstream.requests == "off":
            return None
        from edge_runtime.http.over_mqtt import Requests  # noqa: PLC0415 - only where it is configured

        counters = self.counters["requests"] = Counters()
        return Requests(self.config.device.id, self.start_number, self.upstream_connection, self._loop, counters)

    def _ota(self) -> "Ota | None":
        store, device = self.config.store, self.config.device.id
        if store.over_mqtt == "off" or store.allowed_signers is None:
            return None
        from edge_runtime.store.install import Policy  # noqa: PLC0415
        from edge_runtime.store.ota import Ota  # noqa: PLC0415
        from edge_runtime.store.ota_parts import Incoming  # noqa: PLC0415 - only where it is configured
        from edge_runtime.store.store import ModelStore  # noqa: PLC0415

        return Ota(
            device,
            self.upstream_connection,
            self._loop,
            incoming=Incoming(
                ModelStore(Path(store.path)), Policy(allowed_signers=Path(store.allowed_signers), device=device)
            ),
            rate=store.over_mqtt_rate,
            counters=self.counters.setdefault("ota", Counters()),
            on_ask=self._asked,
        )

    def _asked(self) -> None:
        self.upstream.publish_health_soon()

    def _add_source(self, planned: PlannedSource, clock: Clock) -> None:
        source = planned.config
        pipelines = [self._pipeline(planned, position, clock) for position in range(len(planned.models))]
        self.pipelines += pipelines
        counters = self.counters[f"source {source.name}"] = Counters()

        http = self.http

        def sink(batch: Batch) -> None:
            if http is not None:
                http.note_readings(batch, planned.channels)
            for pipeline in pipelines:
                try:
                    pipeline.accept(batch)
                except Exception:  # noqa: BLE001 - a fault of ours: set aside, or their broker sends them for ever
                    counters.errors["crashed"] += 1
                    _log.exception("readings are set aside", extra=fields(source=source.name, readings=len(batch)))

        gaps = [model.config.max_gap for model in planned.models if model.config.max_gap is not None]
        made = source.make(
            Wiring(
                config=self.config,
                channels=planned.channels,
                shape=planned.shape,
                loop=self._loop,
                sink=sink,
                counters=counters,
                on_state=self._source_changed,
                needed=lambda: min((pipeline.needed for pipeline in pipelines), default=1),
                paused=lambda: self.outbox.is_full or not all(pipeline.has_room for pipeline in pipelines),
                max_gap=min(gaps, default=None),
                connect=self._connection,
                is_clock_set=lambda: clock.is_synchronised,
            )
        )
        self.sources.append((source.name, made))

    def _pipeline(self, planned: PlannedSource, position: int, clock: Clock) -> Pipeline:
        model = planned.models[position]
        counters = self.counters[f"model {model.config.name}"] = Counters()
        pipeline = Pipeline(
            model.config,
            model.model,
            channels=planned.channels,
            repair=planned.config.repair,
            payload=self._payload(model.config, model.model),
            topic=self.config.upstream.topic.replace("{device}", self.config.device.id).replace(
                "{model}", model.config.name
            ),
            outbox=self.outbox,
            loop=self._loop,
            clock=clock,
            counters=counters,
        )
        pipeline.warm_up()
        self._tend_copy(pipeline)
        if self.exchange is not None and model.slot is not None:
            self.exchange.watch(pipeline, model.slot)
        return pipeline

    def _payload(self, config: ModelTable, model: Model) -> Payload:
        manifest = model.manifest
        facts: dict[str, Any] = {
            "device": self.config.device.id,
            "model": config.name,
            "source": config.source,
            "start": self.start_number,
            "manifest": manifest,
            "threshold": config.threshold if config.threshold is not None else manifest.output.threshold,
        }
        payload = convention(config.payload).make(**facts)
        return payload if self.http is None else self.http.tap(payload, **facts)

    def _make_exchange(self, reload: Callable[[], None]) -> "Exchange | None":
        """Only for a device that takes a model from the store."""
        if all(model.slot is None for source in self.plan.sources for model in source.models):
            return None
        from edge_runtime.store.exchange import Exchange  # noqa: PLC0415 - and the store with it
        from edge_runtime.store.store import ModelStore  # noqa: PLC0415

        return Exchange(
            self._loop,
            ModelStore(Path(self.config.store.path)),
            self.config.store,
            hand_over=self._hand_over,
            reload=reload,
            on_change=self._models_changed,
        )

    def _hand_over(self, pipeline: Pipeline, candidate: Candidate) -> bool:
        """Give a pipeline another bundle; False when its source does not deliver what that one wants."""
        model = candidate.model
        planned = next(each for each in self.plan.sources if each.config.name == pipeline.config.source)
        if model.manifest.input.shape != planned.shape or set(model.manifest.channel_names) - set(planned.channels):
            return False
        pipeline.swap(candidate, self._payload(pipeline.config, model))
        self._tend_copy(pipeline)
        if self.http is not None:
            self.http.exchange(pipeline.config, model)
        if self.requests is not None:
            self.requests.exchange(pipeline.config, model)
        return True

    def _tend_copy(self, pipeline: Pipeline) -> None:
        """See to the optimised copy of the bundle that a pipeline runs."""
        model, keep = pipeline.model, chosen(pipeline.config, self.config.store)
        if is_settled(model, keep):
            return
        if self.copies is None:
            from edge_runtime.bundle.optimised_copy_maker import Copies  # noqa: PLC0415 - only where a copy is missing, or too many

            self.copies = Copies(self._loop)
        self.copies.tend(model.bundle, wanted=wants_copy(model.bundle, keep))

    def _models_changed(self) -> None:
        self.upstream.publish_models()
        self.upstream.publish_health_soon()
        self._on_change()

    def _is_finished(self) -> bool:
        """Nothing is left to do that waiting could do."""
        if not all(pipeline.is_idle for pipeline in self.pipelines):
            return False
        if self.exchange is not None and not self.exchange.is_idle:
            return False
        return self.outbox.is_delivered or not self.upstream_connection.connected

    def _source_changed(self) -> None:
        self._loop.call_soon(self._changed)

    def _changed(self) -> None:
        self.upstream.link_changed()
        if self.ota is not None:
            self.ota.link_changed()
        self._on_change()

    def _outbox_state(self, state: str) -> None:
        level = _log.info if state == "ok" else _log.error
        level("outbox", extra=fields(state=state))
        self.upstream.publish_health_soon()


def _state_folder(config: Config) -> Path | None:
    """Beside the outbox, else where systemd says, else nowhere."""
    if config.outbox.path is not None:
        return Path(config.outbox.path).parent
    folder = os.environ.get("STATE_DIRECTORY", "").split(":")[0]
    return Path(folder) if folder else None


def _store_thread(config: Config, loop: Loop) -> OutboxThread | None:
    path = config.outbox.path
    if path is None and (folder := _state_folder(config)) is not None:
        path = str(folder / "outbox.db")
    if path is None:
        return None
    store = OutboxFile(Path(path), config.outbox.max_bytes, config.outbox.max_age)
    return OutboxThread(store, loop.call_soon_threadsafe)
