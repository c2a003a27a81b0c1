"""A model of the store at work: a new active bundle is picked up while the daemon runs, and watched until it is proven.

Guarantee: a reading is neither lost nor answered twice by an exchange. The new bundle is opened, loaded and asked for
its golden answers in a thread, and only then takes the next window. One that does not load, or whose probation fails
(too many windows that it cannot take, or NaN, or too slow), is given back to the store, which names the bundle before
it and does not take that digest again. One `stat` a model every two seconds is what watching costs.

Weak point: a bundle that wants other channels than its predecessor needs the source rewired, which is a reload.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass

from edge_runtime.errors import EdgeError
from edge_runtime.golden import check_golden
from edge_runtime.log import fields, get_logger
from edge_runtime.loop import Loop
from edge_runtime.model import Model, ModelOptions
from edge_runtime.pipeline import Pipeline
from edge_runtime.settings import Store as StoreConfig
from edge_runtime.slots import Slot, Store

LOOK_S = 2.0

_log = get_logger("exchange")


@dataclass(slots=True, eq=False)
class _Watched:
    """One pipeline whose bundle comes from the store."""

    pipeline: Pipeline
    slot: Slot
    stamp: tuple[int, int, int]
    since: float
    predictions: int = 0
    errors: int = 0
    loading: bool = False
    why: str = ""


class Exchange:
    """Watches the store for the pipelines whose bundles come from it.

    Args:
        loop: the event loop; everything but the loading runs in its thread.
        store: the device's store.
        config: how long probation lasts, and what ends it.
        hand_over: gives a pipeline the loaded bundle; False when the source must be rewired for it.
        reload: wires everything anew.
        on_change: called when there is something new to say about a model.
    """

    def __init__(
        self,
        loop: Loop,
        store: Store,
        config: StoreConfig,
        *,
        hand_over: Callable[[Pipeline, Model], bool],
        reload: Callable[[], None],
        on_change: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._store = store
        self._config = config
        self._hand_over = hand_over
        self._reload = reload
        self._on_change = on_change
        self._watched: list[_Watched] = []
        self._stopped = False

    def watch(self, pipeline: Pipeline, slot: Slot) -> None:
        """Follow the slot that a pipeline's bundle was loaded from."""
        self._watched.append(_Watched(pipeline, slot, self._store.stamp(slot.name), self._loop.time()))

    def begin(self) -> None:
        """Look from now on."""
        if self._watched:
            self._loop.call_later(LOOK_S, self._look)

    def end(self) -> None:
        """A clean stop: a start that ends like this is no part of a crash loop."""
        self._stopped = True
        for watched in self._watched:
            if watched.slot.state == "probation":
                try:
                    self._store.pause(watched.slot.name, watched.slot.digest)
                except EdgeError as error:
                    _log.warning("the store does not take the stop down", extra=fields(why=error))

    def standing(self, pipeline: Pipeline) -> tuple[str, str | None]:
        """The state of a pipeline's model for `edge/{device}/models`, and why."""
        for watched in self._watched:
            if watched.pipeline is pipeline:
                return watched.slot.state, watched.why or watched.slot.why or None
        return "active", None

    def _look(self) -> None:
        if self._stopped:
            return
        for watched in self._watched:
            if watched.loading:
                continue
            stamp = self._store.stamp(watched.slot.name)
            if stamp != watched.stamp:
                watched.stamp = stamp
                self._follow(watched)
            elif watched.slot.state == "probation":
                self._judge(watched)
        self._loop.call_later(LOOK_S, self._look)

    def _follow(self, watched: _Watched) -> None:
        """The store has decided something: load the bundle that is active now, if it is another one."""
        try:
            slot = self._store.slot(watched.slot.name)
            if slot.digest == watched.slot.digest:
                watched.slot = slot
                self._on_change()
                return
            slot = self._store.begin(watched.slot.name)
        except EdgeError as error:
            _log.error("the model store cannot be followed", extra=fields(model=watched.slot.name, why=error))
            return
        watched.stamp = self._store.stamp(slot.name)
        watched.loading = True
        threading.Thread(target=self._load, args=(watched, slot), name="exchange", daemon=True).start()

    def _load(self, watched: _Watched, slot: Slot) -> None:
        """In a thread: everything that takes time."""
        config = watched.pipeline.config
        found: Model | EdgeError
        try:
            found = Model(self._store.open(slot.name), ModelOptions(threads=config.threads, max_batch=config.max_batch))
            check_golden(found)
        except EdgeError as error:
            found = error
        self._loop.call_soon_threadsafe(lambda: self._loaded(watched, slot, found))

    def _loaded(self, watched: _Watched, slot: Slot, found: Model | EdgeError) -> None:
        watched.loading = False
        if self._stopped:
            return
        if isinstance(found, EdgeError):
            self._give_back(watched, slot, f"cannot be loaded: {found}")
            return
        if found.bundle.digest != slot.digest:
            return  # the store has decided anew meanwhile; the next look sees it
        try:
            fits = self._hand_over(watched.pipeline, found)
        except EdgeError as error:
            self._give_back(watched, slot, f"cannot be run: {error}")
            return
        if not fits:
            _log.info("the new bundle wants other channels: reloading", extra=fields(model=slot.name))
            self._reload()
            return
        before = watched.slot.version
        watched.slot = slot
        watched.since = self._loop.time()
        watched.predictions = watched.pipeline.counters.counts["predictions"]
        watched.errors = _errors(watched.pipeline)
        _log.info(
            "bundle exchanged",
            extra=fields(model=watched.pipeline.config.name, before=before, now=slot.version, state=slot.state),
        )
        self._on_change()

    def _judge(self, watched: _Watched) -> None:
        """Probation: has the bundle failed, or proved itself?"""
        errors = _errors(watched.pipeline) - watched.errors
        predictions = watched.pipeline.counters.counts["predictions"] - watched.predictions
        if errors >= self._config.probation_errors:
            self._give_back(watched, watched.slot, f"failed on {errors} of {predictions + errors} windows in service")
            return
        slowest_ms = watched.pipeline.latencies.quantiles_ms().get("p99", 0.0)
        if self._config.max_latency is not None and slowest_ms > 1000 * self._config.max_latency:
            allowed_ms = 1000 * self._config.max_latency
            self._give_back(watched, watched.slot, f"took {slowest_ms:.1f} ms, expected at most {allowed_ms:.1f} ms")
            return
        served = self._loop.time() - watched.since
        long_enough = served >= self._config.probation and predictions > 0
        if long_enough or predictions >= self._config.probation_predictions:
            try:
                watched.slot = self._store.confirm(watched.slot.name, watched.slot.digest)
            except EdgeError as error:
                _log.warning("the store does not take the proof down", extra=fields(why=error))
                return
            watched.stamp = self._store.stamp(watched.slot.name)
            _log.info("bundle proven", extra=fields(model=watched.slot.name, version=watched.slot.version))
            self._on_change()

    def _give_back(self, watched: _Watched, slot: Slot, reason: str) -> None:
        _log.error("bundle rejected", extra=fields(model=slot.name, version=slot.version, why=reason))
        watched.why = f"{slot.version} {reason}"
        try:
            self._store.fail(slot.name, slot.digest, reason)
        except EdgeError as error:
            _log.error("the store does not take the failure down", extra=fields(why=error))
            return
        watched.stamp = (0, 0, 0)  # look at the decision at once, and load what is active now
        self._follow_back(watched)

    def _follow_back(self, watched: _Watched) -> None:
        try:
            now = self._store.slot(watched.slot.name)
        except EdgeError as error:
            _log.error("the model store cannot be followed", extra=fields(model=watched.slot.name, why=error))
            return
        watched.stamp = self._store.stamp(now.name)
        if now.digest == watched.pipeline.model.bundle.digest:
            watched.slot = now  # it never took a window: the old one serves on
            self._on_change()
            return
        watched.loading = True
        threading.Thread(target=self._load, args=(watched, now), name="exchange", daemon=True).start()


def _errors(pipeline: Pipeline) -> int:
    errors = pipeline.counters.errors
    return errors["model_failed"] + errors["model_not_finite"]
