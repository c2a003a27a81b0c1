"""Loads a new active bundle of the store while the daemon runs, and watches it until it is proven.

Guarantee: a reading is neither lost nor answered twice by an exchange. The new bundle is opened, loaded, checked with
its golden answers and run once in a thread, and only then takes the next window. One that does not load, or whose
probation fails (`probation.py`), is reported to the store, which names the previous bundle and refuses that digest from
then on. The store is called only in that thread, so that the loop never waits for a disk; watching costs one `stat` a
model a second. If the store names a shadow, it runs beside the model (`shadow.py`), through restarts and exchanges,
until it is made active, withdrawn, or fails.

Weak points: a bundle with other channels than its predecessor needs its source rewired, which is a reload. A model that
hangs in service is ended by the watchdog, and fails after the store's `MAX_STARTS` of such ends.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edge_runtime.bundle.manifest import Manifest
from edge_runtime.bundle.model import ModelOptions
from edge_runtime.bundle.open import one_line
from edge_runtime.bundle.optimised_copy import chosen, load_model
from edge_runtime.config.tables import StoreTable
from edge_runtime.errors import BundleError, EdgeError
from edge_runtime.store.install import shadow_misfit
from edge_runtime.store.probation import Probation
from edge_runtime.store.records import Slot
from edge_runtime.store.shadow import Shadow
from edge_runtime.store.store import ModelStore
from edge_runtime.stream.pipeline import Pipeline
from edge_runtime.stream.worker import TriedModel, rehearse
from edge_runtime.system.background import run_beside
from edge_runtime.system.log import fields, get_logger
from edge_runtime.system.loop import Loop
from edge_runtime.system.memory import Growth

LOOK_S = 1.0
EXCHANGE_S = 600.0  # to read, check, load and rehearse a bundle, on the slowest board

_log = get_logger("exchange")

Step = Callable[[], None]


@dataclass(slots=True, eq=False)
class _Watched:
    """One pipeline whose bundle comes from the store.

    Attributes:
        stamp: of the last decision read; the daemon's own changes are read once more, without effect.
        probation: judges a new bundle.
        busy: whether a thread is using the store for it.
        begun: whether the store was checked for a shadow.
        why: what happened to the previous bundle.
        shadow: the running shadow.
        last_report: the unpublished result of the last shadow that ended by itself.
        ended: the last shadow that ended by itself, for the list of models.
    """

    pipeline: Pipeline
    slot: Slot
    stamp: tuple[int, int, int]
    probation: Probation
    busy: bool = False
    begun: bool = False
    why: str = ""
    shadow: Shadow | None = None
    last_report: dict[str, Any] | None = None
    ended: dict[str, str] | None = None


class Exchange:
    """Watches the store for the pipelines whose bundles come from it.

    Args:
        loop: the event loop; runs everything except the store and the loading.
        store: the device's store.
        config: the duration and the limits of probation.
        hand_over: gives a pipeline the loaded bundle; False when the source must be rewired for it.
        reload: wires everything anew.
        on_change: called when the state of a model has changed.
    """

    def __init__(
        self,
        loop: Loop,
        store: ModelStore,
        config: StoreTable,
        *,
        hand_over: Callable[[Pipeline, TriedModel], bool],
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
        self._looks = False

    @property
    def is_idle(self) -> bool:
        """Whether no thread is using the store."""
        return not any(watched.busy for watched in self._watched)

    def watch(self, pipeline: Pipeline, slot: Slot) -> None:
        """Follow the slot that a pipeline's bundle was loaded from."""
        probation = Probation(self._config, self._loop.time())
        self._watched.append(_Watched(pipeline, slot, self._store.stamp(slot.name), probation))
        if self._config.max_drift is not None:
            pipeline.watch_drift()

    def watches(self, pipeline: Pipeline) -> bool:
        """Whether the slot of a pipeline is followed."""
        return any(watched.pipeline is pipeline for watched in self._watched)

    def forget(self, pipeline: Pipeline) -> None:
        """Stop following the slot of a pipeline, and end its shadow: a reload exchanges or removes it."""
        for watched in [watched for watched in self._watched if watched.pipeline is pipeline]:
            self._watched.remove(watched)
            if watched.shadow is not None:
                watched.shadow.stop()
                watched.shadow = pipeline.listener = None

    def forget_all(self) -> None:
        """As `forget`, for every pipeline."""
        for watched in list(self._watched):
            self.forget(watched.pipeline)

    def begin(self) -> None:
        """Begin to watch, also pipelines added since the last call."""
        if not self._looks and self._watched:
            self._looks = True
            self._loop.call_later(LOOK_S, self._look)
        for watched in self._watched:
            if not watched.begun:
                watched.begun = True
                self._away(watched, lambda watched=watched: self._look_beside(watched))  # type: ignore[misc]

    def end(self) -> None:
        """Record a clean stop, so that this start does not count for a crash loop. `is_idle` once that is written."""
        self._stopped = True
        for watched in self._watched:
            if watched.shadow is not None:
                watched.shadow.stop()
            if not watched.busy and watched.slot.state == "probation":
                self._pause(watched, watched.slot)

    def standing(self, pipeline: Pipeline) -> tuple[str, str | None]:
        """The state of a pipeline's model for `edge/{device}/models`, and why."""
        for watched in self._watched:
            if watched.pipeline is pipeline:
                return watched.slot.state, watched.why or watched.slot.why or None
        return "active", None

    def beside(self, pipeline: Pipeline) -> dict[str, str | None] | None:
        """The shadow of a pipeline's model for `edge/{device}/models`: version, digest, state, and why."""
        for watched in self._watched:
            if watched.pipeline is not pipeline:
                continue
            if watched.shadow is not None:
                slot = watched.shadow.slot
                return {"version": slot.version, "digest": slot.digest, "state": "staged", "why": None}
            if watched.ended is not None:
                return {**watched.ended}
        return None

    def shadows(self) -> dict[str, dict[str, Any]]:
        """The result of each shadow, by the name of its model; that of an ended shadow is returned once."""
        found = {}
        for watched in self._watched:
            name = watched.pipeline.config.name
            if watched.last_report is not None:
                found[name], watched.last_report = watched.last_report, None
            elif watched.shadow is not None:
                found[name] = watched.shadow.document()
        return found

    def _look(self) -> None:
        if self._stopped:
            return
        for watched in self._watched:
            if watched.busy:
                continue
            if self._store.stamp(watched.slot.name) != watched.stamp:
                self._away(watched, lambda watched=watched: self._follow_both(watched))  # type: ignore[misc]
            elif watched.slot.state == "probation":
                self._judge(watched)
        self._loop.call_later(LOOK_S, self._look)

    # --- in a thread: slow steps. The step that they return runs in the loop's thread -------------------------------

    def _away(self, watched: _Watched, work: Callable[[], Step]) -> None:
        watched.busy = True
        model = watched.slot.name

        def done(then: Step) -> None:
            watched.busy = False
            if watched in self._watched:
                then()

        def failed(error: Exception) -> None:
            watched.busy = False  # after any error: else this model would stay busy
            known = isinstance(error, EdgeError)
            about = fields(model=model, why=one_line(str(error))) if known else fields(model=model)
            _log.error("the model store cannot be followed", extra=about, exc_info=None if known else error)

        what = f"the exchange of model {model}"
        run_beside(
            "exchange",
            self._loop.call_soon_threadsafe,
            work,
            done=done,
            failed=failed,
            what=what,
            most_s=EXCHANGE_S,
        )

    def _follow_both(self, watched: _Watched) -> Step:
        then = self._follow(watched)
        beside = self._look_beside(watched)

        def both() -> None:
            then()
            beside()

        return both

    def _look_beside(self, watched: _Watched) -> Step:
        """Look up the shadow that the store names."""
        slot = self._store.shadow(watched.slot.name)
        return lambda: self._run_shadow(watched, slot)

    def _follow(self, watched: _Watched) -> Step:
        """Load the active bundle after a decision of the store, if it is another one."""
        name = watched.slot.name
        watched.stamp = self._store.stamp(name)  # before reading: a change meanwhile is noticed at the next check
        slot = self._store.slot(name)
        if slot.digest == watched.slot.digest:
            return lambda: self._settle(watched, slot)
        watched.why = ""
        return self._load(watched, self._store.begin(name))

    def _load(self, watched: _Watched, slot: Slot) -> Step:
        config = watched.pipeline.config
        growth = Growth()
        try:
            bundle = self._store.open_slot(slot)  # its signature first, as at a start
            options = ModelOptions(threads=config.threads, max_batch=config.max_batch)
            model = load_model(bundle, options, chosen(config, self._config))
            candidate = rehearse(model, config)
        except EdgeError as error:
            return self._fail(watched, slot, f"cannot be loaded: {one_line(str(error))}")
        return lambda: self._take(watched, slot, candidate, growth)

    def _fail(self, watched: _Watched, slot: Slot, reason: str) -> Step:
        """Report a failure to the store, and load the bundle that it names instead."""
        _log.error("bundle rejected", extra=fields(model=slot.name, version=slot.version, why=reason))
        watched.why = f"{slot.version} {reason}"
        now = self._store.fail(slot.name, slot.digest, reason)
        if now.digest == slot.digest:
            watched.probation.is_last_resort = True  # there is no other bundle; it is not judged again
            return lambda: self._settle(watched, now)
        if now.digest == watched.pipeline.model.bundle.digest:
            return lambda: self._settle(watched, now)  # the failed one never took a window: the old one continues
        return self._load(watched, now)

    def _confirm(self, watched: _Watched) -> Step:
        slot = self._store.confirm(watched.slot.name, watched.slot.digest)
        return lambda: self._proven(watched, slot)

    def _examine(self, slot: Slot, beside: Manifest) -> Manifest:
        """As at an install: another program may have written into the store.

        Raises:
            EdgeError: the shadow may not run.
        """
        manifest = self._store.open_slot(slot).manifest
        problem = shadow_misfit(beside, manifest)
        if problem is not None:
            raise BundleError(f"cannot run beside {beside.version}: {problem}")
        return manifest

    # --- in the loop's thread ---------------------------------------------------------------------------------------

    def _pause(self, watched: _Watched, slot: Slot) -> None:
        def pause() -> Step:
            self._store.pause(slot.name, slot.digest)
            return _nothing

        self._away(watched, pause)

    def _run_shadow(self, watched: _Watched, slot: Slot | None) -> None:
        """Run this shadow beside the model, or none."""
        present, loaded = watched.shadow, watched.pipeline.loaded
        wanted = None if slot is None or self._stopped else (slot.digest, loaded.model.bundle.digest)
        if present is not None and (present.slot.digest, present.active.digest) == wanted:
            return
        if present is not None:
            present.stop()
            watched.shadow = watched.pipeline.listener = None
        if slot is not None and wanted is not None:
            beside, config = loaded.model.manifest, watched.pipeline.config
            watched.ended = watched.last_report = None
            watched.shadow = watched.pipeline.listener = Shadow(
                slot,
                watched.slot,
                beside,
                threshold=config.threshold,
                threads=config.threads,
                check=lambda: self._examine(slot, beside),
                loop=self._loop,
                on_end=lambda why: self._shadow_ended(watched, why),
            )
        if present is not None or wanted is not None:
            self._on_change()

    def _shadow_ended(self, watched: _Watched, why: str) -> None:
        shadow = watched.shadow
        if shadow is None:
            return
        slot = shadow.slot
        _log.error("shadow rejected", extra=fields(model=slot.name, version=slot.version, why=why))
        watched.last_report = shadow.document()
        watched.ended = {"version": slot.version, "digest": slot.digest, "state": "rejected", "why": why}
        watched.shadow = watched.pipeline.listener = None

        def fail() -> Step:
            self._store.fail_shadow(slot.name, slot.digest, why)
            return self._on_change

        self._away(watched, fail)

    def _take(self, watched: _Watched, slot: Slot, candidate: TriedModel, growth: Growth) -> None:
        if self._stopped:
            if slot.state == "probation":
                self._pause(watched, slot)
            return
        before, sample = watched.slot.version, watched.pipeline.loaded.sample
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
        watched.probation = Probation(self._config, self._loop.time(), growth, sample)
        if watched.shadow is not None and watched.shadow.slot.digest != slot.digest:
            self._run_shadow(watched, watched.shadow.slot)  # the statistics restart beside the new one
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
        verdict = watched.probation.judge(watched.pipeline.loaded, self._loop.time())
        if verdict.fault is not None:
            reason = verdict.fault
            self._away(watched, lambda: self._fail(watched, watched.slot, reason))
        elif verdict.is_proven:
            self._away(watched, lambda: self._confirm(watched))


def _nothing() -> None:
    """There is nothing to do."""
