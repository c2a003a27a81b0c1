"""The optional parts of a device: HTTP, requests, truth, Home Assistant, bundles from store or MQTT, optimised copies.

Each is imported only if the device file names it. A reload ends a part whose table or link changed, and makes it anew;
the others continue, with the new list of models.
"""

import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edge_runtime.bundle.model import Model
from edge_runtime.bundle.optimised_copy import chosen, is_settled, wants_copy
from edge_runtime.config.tables import CaptureTable, Config, HttpTable, ModelTable
from edge_runtime.daemon.feed import Feed
from edge_runtime.daemon.outputs import Facts, Outputs
from edge_runtime.daemon.plan import PlannedModel, capture_folder, open_store
from edge_runtime.daemon.state import StateFolder
from edge_runtime.delivery.device_topics import own_topics
from edge_runtime.mqtt.any_connection import AnyConnection
from edge_runtime.stream.pipeline import AnswerTap, Pipeline
from edge_runtime.stream.worker import LoadedBundle, TriedModel
from edge_runtime.system.clock import Clock
from edge_runtime.system.counters import Counters
from edge_runtime.system.log import fields, get_logger
from edge_runtime.system.loop import Loop

if TYPE_CHECKING:
    from edge_runtime.bundle.optimised_copy_maker import Copies
    from edge_runtime.capture.captures import Captures
    from edge_runtime.delivery.home_assistant import HomeAssistant
    from edge_runtime.drift.publishing import DriftReports
    from edge_runtime.http.in_daemon import Attached
    from edge_runtime.http.over_mqtt import Requests
    from edge_runtime.store.desired import DesiredState
    from edge_runtime.store.exchange import Exchange
    from edge_runtime.store.ota import Ota
    from edge_runtime.truth.live import Joined, LiveTruth
    from edge_runtime.truth.model_truth import TruthOutcome

_log = get_logger("daemon")
LEAVING_S = 0.25  # between two checks whether a server has answered everything


class DaemonContext(msgspec.Struct, frozen=True, eq=False):
    """The objects and functions of the daemon that the parts use.

    Attributes:
        start: the number of this start.
        files: keeps small files over a restart.
        loop: the event loop.
        clock: whether the wall clock is set.
        counters: by part.
        health: makes the health document.
        hand_over: gives a pipeline another bundle; False when its source must be rewired for it.
        reload: requests a reload.
        on_state: called when HTTP begins to listen.
        on_models: called when the state of a model has changed.
        on_ask: called when a fleet command requests the health document.
        keys: the keys that each model has seen, by its name.
        tell_again: publishes status, models and health again.
        facts: returns the arguments of the payload makers of a model, for its manifest.
        folder: of files that are kept over a restart; None if there is none.
    """

    start: int
    files: StateFolder
    loop: Loop
    clock: Clock
    counters: Mapping[str, Counters]
    health: Callable[[], dict[str, Any]]
    hand_over: Callable[[Pipeline, TriedModel], bool]
    reload: Callable[[], None]
    on_state: Callable[[], None]
    on_models: Callable[[], None]
    on_ask: Callable[[], None]
    keys: Callable[[], dict[str, Iterable[str | None]]]
    tell_again: Callable[[], None]
    facts: Facts
    folder: Path | None


class Extras:
    """The optional parts that a configuration names."""

    def __init__(self, context: DaemonContext) -> None:
        self._context = context
        self.http: Attached | None = None
        self._leaving_http: list[Attached] = []  # servers whose table has changed, while they answer requests in flight
        self._kept_listener: socket.socket | None = None
        self.requests: Requests | None = None
        self.exchange: Exchange | None = None
        self.ota: Ota | None = None
        self.desired: DesiredState | None = None
        self.copies: Copies | None = None
        self.home_assistant: HomeAssistant | None = None
        self.capture: Captures | None = None
        self.drift: DriftReports | None = None
        self._not_watched: dict[str, LoadedBundle] = {}
        self.outputs = Outputs(
            context.loop,
            context.counters,
            folder=context.folder,
            clock=context.clock,
            facts=context.facts,
            on_fault=context.on_ask,
        )
        self.truth: LiveTruth | None = None

    # --- start and stop ---------------------------------------------------------------------------------------------

    def make(self, config: Config, upstream: AnyConnection, *, uses_store: bool) -> None:
        """Make the parts that the configuration names, unless they exist."""
        if config.http is not None and self.http is None:
            self.http = self._make_http(config.http, config.device.id)
        if config.upstream.requests != "off" and self.requests is None:
            self.requests = self._make_requests(config.device.id, upstream)
        if self.requests is not None:
            moved = own_topics(config.device.id, config.upstream)
            self.requests.own = frozenset((moved.status, moved.models, moved.health))
        if config.home_assistant is not None:
            self.home_assistant = self.home_assistant or self._make_home_assistant(upstream)
            self.home_assistant.configure(config)
        if config.capture is not None and self.capture is None:
            self.capture = self._make_capture(config, config.capture, upstream)
        self.outputs.fit(config)
        if wants_truth(config) and self.truth is None:
            self.truth = self._make_truth(config, upstream)
        if uses_store and self.exchange is None:
            self.exchange = self._make_exchange(config)
        store = config.store
        is_wanted = store.over_mqtt != "off" or store.desired == "follow"
        if is_wanted and store.allowed_signers is not None and self.ota is None:
            self._make_ota(config, Path(store.allowed_signers), upstream)

    def begin(self, models: list[tuple[ModelTable, Model]]) -> None:
        """Start the new parts; only these models answer requests from now on."""
        if self.requests is not None:
            self.requests.begin(models)
        if self.http is not None:
            self.http.begin(models)
        if self.capture is not None:
            self.capture.begin((config.name for config, _ in models), labels_come=self.truth is not None)
        if self.exchange is not None:
            self.exchange.begin()
        if self.home_assistant is not None:
            self.home_assistant.begin(models)
        self.outputs.keep([table for table, _ in models])
        if self.truth is not None:
            self.truth.begin(models)

    def end_changed(
        self, old: Config, new: Config, *, uses_store: bool, link_changed: bool, within: float = 0.0
    ) -> None:
        """End the parts whose tables changed or were removed.

        Args:
            old: the configuration until now.
            new: the configuration from now on.
            uses_store: whether a model of the new one comes from the store.
            link_changed: whether the link upstream is another one.
            within: seconds that HTTP has for requests in flight.
        """
        if self.http is not None and old.http != new.http:
            self._leave_http(self.http, old.http, new.http, within)
            self.http = None
        if self.requests is not None and (link_changed or new.upstream.requests == "off"):
            self.requests.leave()
            self.requests = None
        if self.home_assistant is not None and (link_changed or old.home_assistant != new.home_assistant):
            self.home_assistant.leave(for_good=old.home_assistant != new.home_assistant)
            self.home_assistant = None
        if self.capture is not None and (link_changed or old.capture != new.capture):
            self.capture.leave()
            self.capture = None
        if self.truth is not None and (link_changed or old.truth != new.truth or not wants_truth(new)):
            self.truth.leave()
            self.truth = None
        if self.ota is not None and (link_changed or (old.store, old.device) != (new.store, new.device)):
            self.ota.leave()
            self.ota = None
            if self.desired is not None:
                self.desired.leave()
                self.desired = None
        if self.exchange is not None and (old.store != new.store or not uses_store):
            self.exchange.end()
            self.exchange.forget_all()
            self.exchange = None

    def _leave_http(self, http: "Attached", old: HttpTable | None, new: HttpTable | None, within: float) -> None:
        kept = http.leave(within)
        if kept is not None and (old is None or new is None or old.listen != new.listen):
            kept.close()
            kept = None
        self._kept_listener = kept
        self._leaving_http.append(http)
        self._tend_leaving()

    def _tend_leaving(self) -> None:
        """End the servers that have answered everything."""
        for http in [each for each in self._leaving_http if each.is_drained]:
            http.end()
            self._leaving_http.remove(http)
        if self._leaving_http:
            self._context.loop.call_later(LEAVING_S, self._tend_leaving)

    def end(self, within: float) -> None:
        """Begin a clean stop; HTTP answers requests in flight for `within` seconds. `close` has to follow."""
        if self.http is not None:
            self.http.drain(within)
        parts = (
            self.requests, self.exchange, self.desired, self.ota, self.copies, self.home_assistant, self.drift,
            self.truth,
        )  # fmt: skip
        for part in parts:
            if part is not None:
                part.end()

    def close(self) -> None:
        """Stop answering requests and keeping captures."""
        for http in (*self._leaving_http, *([] if self.http is None else [self.http])):
            http.end()
        self._leaving_http.clear()
        if self.capture is not None:
            self.capture.end()

    # --- for the daemon ---------------------------------------------------------------------------------------------

    @property
    def is_ready(self) -> bool:
        """Whether HTTP listens, if it is configured."""
        return self.http is None or self.http.is_listening

    @property
    def is_idle(self) -> bool:
        """Whether no thread uses the store and, once a stop has begun, no HTTP request is in flight."""
        http = (*self._leaving_http, *([] if self.http is None else [self.http]))
        return (self.exchange is None or self.exchange.is_idle) and all(each.is_drained for each in http)

    def shadows(self) -> dict[str, dict[str, Any]]:
        """The results of each shadow, by the name of its model."""
        return {} if self.exchange is None else self.exchange.shadows()

    def link_changed(self) -> None:
        """Handle that the link upstream came up or went down."""
        for part in (self.ota, self.desired, self.home_assistant, self.drift, self.truth):
            if part is not None:
                part.link_changed()

    # --- truth ------------------------------------------------------------------------------------------------------

    def _keep_label(self, joined: "Joined") -> None:
        """Give a window with known truth to the captures, if there are any."""
        if self.capture is not None:
            self.capture.label(joined.model, joined.id, joined.label, joined.values)

    def accuracy(self) -> dict[str, dict[str, Any]]:
        """The accuracy of each model, by its name, as far as it is known."""
        return {} if self.truth is None else self.truth.report()

    def housekeeping(self) -> None:
        """Save the state of truth."""
        if self.truth is not None:
            self.truth.housekeeping()

    def take_truth(self, model: str, body: bytes) -> "TruthOutcome | None":
        """Join a truth received over HTTP, in any thread; None if no truth is taken."""
        return None if self.truth is None else self.truth.take(model, body)

    # --- bundles ----------------------------------------------------------------------------------------------------

    def follow(self, pipeline: Pipeline, model: PlannedModel) -> None:
        """Watch the store for the bundle of a pipeline, unless it is watched already."""
        if self.exchange is not None and model.slot is not None and not self.exchange.watches(pipeline):
            self.exchange.watch(pipeline, model.slot)

    def forget(self, pipeline: Pipeline) -> None:
        """Stop watching the store for a pipeline."""
        if self.exchange is not None:
            self.exchange.forget(pipeline)

    def watch_drift(self, feeds: Sequence[Feed], config: Config, upstream: AnyConnection) -> None:
        """Compare the inputs and outputs of each model with the reference of its bundle, if it has one."""
        watched = {pipeline.config.name for feed in feeds for pipeline in feed.pipelines if self._watches(pipeline)}
        if watched and self.drift is None:
            from edge_runtime.drift.publishing import DriftReports  # noqa: PLC0415 - only where there is a reference

            self.drift = DriftReports(self._context.loop, self._context.clock, self._context.files)
            self.drift.listeners.append(self._keep_drifted)
        if self.drift is None:
            return
        self.drift.attach(upstream, own_topics(config.device.id, config.upstream), config.device.health_interval)
        self.drift.keep(watched)
        for feed in feeds:
            for pipeline in feed.pipelines:
                if pipeline.config.name in watched:
                    self.drift.follow(pipeline, is_recorded=feed.planned.config.is_recorded)

    def _keep_drifted(self, model: str, key: str | None, state: str) -> None:
        """Note a drift alarm for the captures: windows received during it are worth a label."""
        if state == "alarm" and self.capture is not None:
            self.capture.note_alarm(model, key)

    def _watches(self, pipeline: Pipeline) -> bool:
        """Whether drift of a model is watched; if not for lack of a reference, this is logged once for each bundle."""
        manifest, asked = pipeline.model.manifest, pipeline.config.drift
        if asked == "watch" or (asked == "auto" and (manifest.reference or manifest.score_reference)):
            return True
        pipeline.drift = None
        if asked == "auto" and pipeline.loaded is not self._not_watched.get(pipeline.config.name):
            self._not_watched[pipeline.config.name] = pipeline.loaded
            _log.info(
                "drift is not watched: the bundle has no reference of its training data: convert it with --data",
                extra=fields(model=pipeline.config.name),
            )
        return False

    def taps(self, pipeline: Pipeline) -> tuple[AnswerTap, ...]:
        """The parts that get every answer of a pipeline."""
        table = pipeline.config
        taps: list[AnswerTap] = [] if self.capture is None else [self.capture.tap(table.name)]
        remembered = None if self.truth is None else self.truth.memory(table.name)
        taps += [] if remembered is None else [remembered]
        taps += self.outputs.taps(pipeline)
        return tuple(taps)

    def exchanged(self, config: ModelTable, model: Model) -> None:
        """Let another bundle answer requests from now on."""
        parts: Sequence[Attached | Requests | HomeAssistant | LiveTruth | None] = (
            self.http, self.requests, self.home_assistant, self.truth,
        )  # fmt: skip
        for part in parts:
            if part is not None:
                part.exchange(config, model)

    def tend_copy(self, pipeline: Pipeline, config: Config) -> None:
        """Maintain the optimised copy of a pipeline's bundle."""
        model, keep = pipeline.model, chosen(pipeline.config, config.store)
        if is_settled(model, keep):
            return
        if self.copies is None:
            from edge_runtime.bundle.optimised_copy_maker import Copies  # noqa: PLC0415 - only where a copy is missing, or too many

            self.copies = Copies(self._context.loop)
        self.copies.tend(model.bundle, wanted=wants_copy(model.bundle, keep))

    # --- making -----------------------------------------------------------------------------------------------------

    def _make_http(self, table: HttpTable, device: str) -> "Attached":
        from edge_runtime.http.in_daemon import Attached  # noqa: PLC0415 - an extra, only where it is configured

        listener, self._kept_listener = self._kept_listener, None
        return Attached(
            table,
            device=device,
            start=self._context.start,
            loop=self._context.loop,
            health=self._health_and_drift,
            counters=self._context.counters["http"],
            on_change=self._context.on_state,
            truth=self.take_truth,
            listener=listener,
            follows=bool(self._leaving_http),
        )

    def _health_and_drift(self) -> dict[str, Any]:
        """Health with drift of every channel, for the live page and metrics."""
        health = self._context.health()
        return health if self.drift is None else {**health, "drift": self.drift.documents()}

    def _make_requests(self, device: str, upstream: AnyConnection) -> "Requests":
        from edge_runtime.http.over_mqtt import Requests  # noqa: PLC0415 - only where it is configured

        return Requests(
            device, self._context.start, upstream, self._context.loop, counters=self._context.counters["requests"]
        )

    def _make_home_assistant(self, upstream: AnyConnection) -> "HomeAssistant":
        from edge_runtime.delivery.home_assistant import HomeAssistant  # noqa: PLC0415 - only where it is configured

        context = self._context
        return HomeAssistant(upstream, context.loop, keys=context.keys, on_birth=context.tell_again)

    def _make_capture(self, config: Config, table: CaptureTable, upstream: AnyConnection) -> "Captures":
        from edge_runtime.capture.captures import Captures  # noqa: PLC0415 - only where it is configured

        folder = capture_folder(config)
        assert folder is not None, "the plan refuses it"
        context = self._context
        return Captures(
            table,
            folder,
            device=config.device.id,
            start=context.start,
            connection=upstream,
            loop=context.loop,
            clock=context.clock,
            counters=context.counters["capture"],
        )

    def _make_truth(self, config: Config, upstream: AnyConnection) -> "LiveTruth":
        from edge_runtime.truth.live import LiveTruth  # noqa: PLC0415 - only where it is wanted

        context = self._context
        made = LiveTruth(
            config.truth,
            device=config.device.id,
            start=context.start,
            connection=upstream,
            loop=context.loop,
            counters=context.counters["truth"],
            retain=config.upstream.retain,
            listens=hears_truth(config),
            below=own_topics(config.device.id, config.upstream).below,
            read=lambda: context.files.read("truth"),
            write=lambda data: context.files.write("truth", data),
        )
        made.on_joined.append(self._keep_label)
        return made

    def _make_ota(self, config: Config, signers: Path, upstream: AnyConnection) -> None:
        from edge_runtime.store.install import Policy  # noqa: PLC0415 - only where it is configured
        from edge_runtime.store.ota import Ota  # noqa: PLC0415
        from edge_runtime.store.ota_parts import Incoming  # noqa: PLC0415

        store, device = config.store, config.device.id
        policy = Policy(
            allowed_signers=signers,
            device=device,
            device_class=config.device.class_,
            signatures=store.signatures,
            release=store.release,
        )
        counters = self._context.counters["ota"]
        self.ota = Ota(
            device,
            upstream,
            self._context.loop,
            incoming=Incoming(open_store(config), policy),
            rate=store.over_mqtt_rate,
            counters=counters,
            on_ask=self._context.on_ask,
            takes_offers=store.over_mqtt != "off",
        )
        if store.desired == "off":
            return
        from edge_runtime.store.desired import DesiredFile, DesiredState  # noqa: PLC0415 - only where it is configured

        self.desired = DesiredState(
            device,
            upstream,
            self._context.loop,
            ota=self.ota,
            file=DesiredFile(open_store(config), policy),
            counters=counters,
        )

    def _make_exchange(self, config: Config) -> "Exchange":
        from edge_runtime.store.exchange import Exchange  # noqa: PLC0415 - and the store with it

        return Exchange(
            self._context.loop,
            open_store(config),
            config.store,
            hand_over=self._context.hand_over,
            reload=self._context.reload,
            on_change=self._context.on_models,
        )


def wants_truth(config: Config) -> bool:
    """Whether truth can be received at all."""
    return config.truth.remember > 0 and (hears_truth(config) or config.http is not None)


def hears_truth(config: Config) -> bool:
    """Whether to subscribe to truth: not by default if the device's own topics are renamed."""
    device = config.device.id
    is_usual = own_topics(device, config.upstream).below == f"edge/{device}"
    return config.truth.listen == "on" or (config.truth.listen == "auto" and is_usual)
