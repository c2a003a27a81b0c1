"""A model of the store at work: a new active bundle is picked up while the daemon runs, and watched until it is proven.

Guarantee: a reading is neither lost nor answered twice by an exchange. The new bundle is opened, loaded, asked for
its golden answers and run once in a thread, and only then takes the next window. One that does not load, or whose
probation fails (too many windows that it cannot take, or NaN, or too slow), is given back to the store, which names
the bundle before it and does not take that digest again. The store is only ever asked in that thread, so that the loop
never waits for a disk; one `stat` a model every two seconds is what watching costs.

Weak points: a bundle that wants other channels than its predecessor needs the source rewired, which is a reload. A
model that hangs in service is ended by the watchdog, and given back after the store's `MAX_STARTS` of that.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edge_runtime.bundle import one_line
from edge_runtime.errors import EdgeError
from edge_runtime.golden import check_golden
from edge_runtime.log import fields, get_logger
from edge_runtime.loop import Loop
from edge_runtime.model import Model, ModelOptions
from edge_runtime.pipeline import Candidate, Pipeline, rehearse
from edge_runtime.progress import working
from edge_runtime.settings import Store as StoreConfig
from edge_runtime.signature import require_signature
from edge_runtime.slots import Slot, Store

LOOK_S = 2.0
EXCHANGE_S = 600.0  # to read, check, load and rehearse a bundle, on the slowest board
ENOUGH_TO_JUDGE = 20  # windows before a 99th percentile says something; a proof judges whatever there is

_log = get_logger("exchange")

Step = Callable[[], None]


@dataclass(slots=True, eq=False)
class _Watched:
    """One pipeline whose bundle comes from the store.

    Attributes:
        stamp: of the decision that was read last; what we write ourselves is read once more, and is nothing new.
        since: when the bundle took its first window.
        busy: a thread is at the store for it.
        last_resort: it has failed, and there is none before it.
        why: what happened to the bundle before this one.
    """

    pipeline: Pipeline
    slot: Slot
    stamp: tuple[int, int, int]
    since: float
    busy: bool = False
    last_resort: bool = False
    why: str = ""


class Exchange:
    """Watches the store for the pipelines whose bundles come from it.

    Args:
        loop: the event loop; everything but the store and the loading is done in its thread.
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
        hand_over: Callable[[Pipeline, Candidate], bool],
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

    @property
    def is_idle(self) -> bool:
        """No thread is at the store."""
        return not any(watched.busy for watched in self._watched)

    def watch(self, pipeline: Pipeline, slot: Slot) -> None:
        """Follow the slot that a pipeline's bundle was loaded from."""
        self._watched.append(_Watched(pipeline, slot, self._store.stamp(slot.name), self._loop.time()))

    def begin(self) -> None:
        """Look from now on."""
        if self._watched:
            self._loop.call_later(LOOK_S, self._look)

    def end(self) -> None:
        """A clean stop: a start that ends like this is no part of a crash loop. `is_idle` once that is written."""
        self._stopped = True
        for watched in self._watched:
            if not watched.busy and watched.slot.state == "probation":
                self._pause(watched, watched.slot)

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
            if watched.busy:
                continue
            if self._store.stamp(watched.slot.name) != watched.stamp:
                self._away(watched, lambda watched=watched: self._follow(watched))  # type: ignore[misc]
            elif watched.slot.state == "probation":
                self._judge(watched)
        self._loop.call_later(LOOK_S, self._look)

    # --- in a thread: everything that takes time. What it returns is done in the loop's thread ----------------------

    def _away(self, watched: _Watched, work: Callable[[], Step]) -> None:
        watched.busy = True

        def run() -> None:
            try:
                with working(f"the exchange of model {watched.slot.name}", EXCHANGE_S):
                    then = work()
            except EdgeError as error:
                why = one_line(str(error))
                then = lambda: _log.error(  # noqa: E731 - one of three ways to end
                    "the model store cannot be followed", extra=fields(model=watched.slot.name, why=why)
                )
            except Exception:  # noqa: BLE001 - a fault of ours; else this model would be busy for ever
                _log.exception("the model store cannot be followed", extra=fields(model=watched.slot.name))
                then = _nothing
            self._loop.call_soon_threadsafe(lambda: self._back(watched, then))

        threading.Thread(target=run, name="exchange", daemon=True).start()

    def _back(self, watched: _Watched, then: Step) -> None:
        watched.busy = False
        then()

    def _follow(self, watched: _Watched) -> Step:
        """The store has decided something: load the bundle that is active now, if it is another one."""
        name = watched.slot.name
        watched.stamp = self._store.stamp(name)  # before reading: what changes meanwhile is seen at the next look
        slot = self._store.slot(name)
        if slot.digest == watched.slot.digest:
            return lambda: self._settle(watched, slot)
        watched.why = ""
        return self._load(watched, self._store.begin(name))

    def _load(self, watched: _Watched, slot: Slot) -> Step:
        config = watched.pipeline.config
        try:
            bundle = self._store.open(slot.name)
            if bundle.digest != slot.digest:
                return _nothing  # the store has decided anew meanwhile; the next look sees it
            if self._config.allowed_signers is not None:  # as at a start, which would refuse what we let in here
                require_signature(bundle.path, Path(self._config.allowed_signers))
            model = Model(bundle, ModelOptions(threads=config.threads, max_batch=config.max_batch))
            check_golden(model)
            candidate = rehearse(model, config)
        except EdgeError as error:
            return self._fail(watched, slot, f"cannot be loaded: {one_line(str(error))}")
        return lambda: self._take(watched, slot, candidate)

    def _fail(self, watched: _Watched, slot: Slot, reason: str) -> Step:
        """Tell the store, and load what it names instead."""
        _log.error("bundle rejected", extra=fields(model=slot.name, version=slot.version, why=reason))
        watched.why = f"{slot.version} {reason}"
        now = self._store.fail(slot.name, slot.digest, reason)
        if now.digest == slot.digest:
            watched.last_resort = True  # a doubtful model is all there is; it is not judged again
            return lambda: self._settle(watched, now)
        if now.digest == watched.pipeline.model.bundle.digest:
            return lambda: self._settle(watched, now)  # the bad one never took a window: the old one serves on
        return self._load(watched, now)

    def _confirm(self, watched: _Watched) -> Step:
        slot = self._store.confirm(watched.slot.name, watched.slot.digest)
        return lambda: self._proven(watched, slot)

    # --- in the loop's thread -------------------------------------------------------------------------------------

    def _pause(self, watched: _Watched, slot: Slot) -> None:
        def pause() -> Step:
            self._store.pause(slot.name, slot.digest)
            return _nothing

        self._away(watched, pause)

    def _take(self, watched: _Watched, slot: Slot, candidate: Candidate) -> None:
        if self._stopped:
            if slot.state == "probation":
                self._pause(watched, slot)
            return
        before = watched.slot.version
        try:
            fits = self._hand_over(watched.pipeline, candidate)
        except EdgeError as error:
            reason = f"cannot be run: {one_line(str(error))}"
            self._away(watched, lambda: self._fail(watched, slot, reason))
            return
        watched.slot = slot
        if not fits:
            _log.info("the new bundle wants other channels: reloading", extra=fields(model=slot.name))
            self._reload()
            return
        watched.since = self._loop.time()
        watched.last_resort = False
        _log.info(
            "bundle exchanged",
            extra=fields(model=watched.pipeline.config.name, before=before, now=slot.version, state=slot.state),
        )
        self._on_change()

    def _settle(self, watched: _Watched, slot: Slot) -> None:
        if watched.slot != slot or watched.why:
            watched.slot = slot
            self._on_change()

    def _proven(self, watched: _Watched, slot: Slot) -> None:
        if slot.digest == watched.slot.digest:
            _log.info("bundle proven", extra=fields(model=slot.name, version=slot.version))
            self._settle(watched, slot)

    def _judge(self, watched: _Watched) -> None:
        """Probation: has the bundle failed, or proved itself?"""
        if watched.last_resort:
            return
        did = watched.pipeline.maker
        served = self._loop.time() - watched.since
        is_enough = did.answered >= self._config.probation_predictions
        is_enough = is_enough or (served >= self._config.probation and did.answered > 0)
        reason = self._fault(watched.pipeline, is_enough=is_enough)
        if reason is not None:
            self._away(watched, lambda: self._fail(watched, watched.slot, reason))
        elif is_enough:
            self._away(watched, lambda: self._confirm(watched))

    def _fault(self, pipeline: Pipeline, *, is_enough: bool) -> str | None:
        did = pipeline.maker
        if did.failed >= self._config.probation_errors:
            return f"failed on {did.failed} of {did.answered + did.failed} windows in service"
        if self._config.max_latency is None or not (is_enough or did.answered >= ENOUGH_TO_JUDGE):
            return None
        slowest_ms, allowed_ms = did.latencies.quantiles_ms().get("p99", 0.0), 1000 * self._config.max_latency
        return None if slowest_ms <= allowed_ms else f"took {slowest_ms:.1f} ms, expected at most {allowed_ms:.1f} ms"


def _nothing() -> None:
    """There is nothing to do."""
