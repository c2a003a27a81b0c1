"""An exchange while the daemon runs, step by step: the store, the loading, the threads and the clock move by hand."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import pytest

from edge_runtime.bundle.manifest import Input, Manifest, Output
from edge_runtime.config.tables import StoreTable
from edge_runtime.errors import BundleError, CommandError, SignatureError
from edge_runtime.store import exchange as module
from edge_runtime.store.exchange import EXCHANGE_S, LOOK_S, Exchange
from edge_runtime.store.records import Slot
from edge_runtime.store.store import ModelStore
from edge_runtime.stream.pipeline import Pipeline
from edge_runtime.stream.worker import LoadedBundle
from edge_runtime.system.memory import Growth
from tests.support.stepped import SteppedLoop, SteppedThread

CONFIG = StoreTable(probation=600.0, probation_predictions=100, probation_errors=3)


def _slot(version: str, state: str = "active", why: str = "") -> Slot:
    return Slot("comfort", version, f"digest-{version}", Path(f"{version}.onnx"), state, why)


def _manifest(version: str = "1.0.0", labels: tuple[str, ...] = ("a", "b")) -> Manifest:
    return Manifest(name="comfort", version=version, task="classification", input=Input(), output=Output(labels=labels))


def _model(version: str) -> Any:
    return SimpleNamespace(bundle=SimpleNamespace(digest=f"digest-{version}"), manifest=_manifest(version))


@dataclass
class Store:
    """Stands in for `ModelStore`: what it decides is set by a test, and what is asked of it is noted."""

    now: Slot
    stamps: int = 1
    beside: Slot | None = None
    failed_over_to: Slot | None = None
    asked: list[tuple[Any, ...]] = field(default_factory=list)
    faults: dict[str, Exception] = field(default_factory=dict)
    manifests: dict[str, Manifest] = field(default_factory=dict)

    def _note(self, what: str, *values: Any) -> None:
        self.asked.append((what, *values))
        if what in self.faults:
            raise self.faults[what]

    def decide(self, slot: Slot) -> None:
        """Another decision."""
        self.now = slot
        self.stamps += 1

    def stamp(self, name: str) -> tuple[int, int, int]:
        """As `ModelStore.stamp`."""
        assert name == "comfort"
        return (self.stamps, 0, 0)

    def slot(self, _name: str) -> Slot:
        """As `ModelStore.slot`."""
        self._note("slot")
        return self.now

    def begin(self, _name: str) -> Slot:
        """As `ModelStore.begin`."""
        self._note("begin")
        return self.now

    def shadow(self, _name: str) -> Slot | None:
        """As `ModelStore.shadow`."""
        self._note("shadow")
        return self.beside

    def confirm(self, _name: str, digest: str) -> Slot:
        """As `ModelStore.confirm`."""
        self._note("confirm", digest)
        self.stamps += 1
        if digest == self.now.digest:
            self.now = replace(self.now, state="active")
        return self.now

    def pause(self, _name: str, digest: str) -> None:
        """As `ModelStore.pause`."""
        self._note("pause", digest)

    def fail(self, _name: str, digest: str, reason: str) -> Slot:
        """As `ModelStore.fail`."""
        self._note("fail", digest, reason)
        self.stamps += 1
        self.now = self.failed_over_to or replace(self.now, why=reason)
        return self.now

    def fail_shadow(self, _name: str, digest: str, reason: str) -> None:
        """As `ModelStore.fail_shadow`."""
        self._note("fail_shadow", digest, reason)
        self.stamps += 1
        self.beside = None

    def open_slot(self, slot: Slot) -> Any:
        """As `ModelStore.open_slot`."""
        self._note("open", slot.version)
        return SimpleNamespace(slot=slot, manifest=self.manifests.get(slot.version, _manifest(slot.version)))

    def calls(self, what: str) -> list[tuple[Any, ...]]:
        """What was asked of this kind."""
        return [each for each in self.asked if each[0] == what]


class FakeShadow:
    """Stands in for `Shadow`."""

    made: ClassVar[list["FakeShadow"]] = []

    def __init__(self, slot: Slot, active: Slot, beside: Manifest, **more: Any) -> None:
        self.slot, self.active, self.beside, self.more = slot, active, beside, more
        self.stopped = False
        FakeShadow.made.append(self)

    def stop(self) -> None:
        """As `Shadow.stop`."""
        self.stopped = True

    def document(self) -> dict[str, Any]:
        """As `Shadow.document`."""
        return {"shadow": self.slot.version}


class Device:
    """A daemon with one pipeline whose bundle comes from the store."""

    def __init__(self, slot: Slot, config: StoreTable = CONFIG) -> None:
        self.loop, self.store = SteppedLoop(), Store(slot)
        self.thread = SteppedThread("exchange", self.loop.call_soon_threadsafe)
        self.handed: list[Any] = []
        self.fits: bool | Exception = True
        self.reloads = self.changes = self.drifts = 0
        self.pipeline = self.make_pipeline(slot.version)
        self.exchange = Exchange(
            self.loop.as_loop,
            cast("ModelStore", self.store),
            config,
            hand_over=self._hand_over,
            reload=self._reload,
            on_change=self._change,
        )

    def make_pipeline(self, version: str) -> Pipeline:
        """One that runs this version."""

        def watch_drift() -> None:
            self.drifts += 1

        model = _model(version)
        loaded = LoadedBundle(model, cast("Any", None), None)
        table = SimpleNamespace(name="model", threads=2, max_batch=7, threshold=0.25)
        made = SimpleNamespace(config=table, model=model, loaded=loaded, listener=None, watch_drift=watch_drift)
        return cast("Pipeline", made)

    def _hand_over(self, pipeline: Pipeline, candidate: Any) -> bool:
        assert pipeline is self.pipeline
        self.handed.append(candidate)
        if isinstance(self.fits, Exception):
            raise self.fits
        if self.fits:
            made = cast("Any", pipeline)
            made.model, made.loaded = candidate.model, LoadedBundle(candidate.model, cast("Any", None), None)
        return self.fits

    def _reload(self) -> None:
        self.reloads += 1

    def _change(self) -> None:
        self.changes += 1

    def start(self) -> "Device":
        """Watch, begin, and look for a shadow once."""
        self.exchange.watch(self.pipeline, self.store.now)
        self.exchange.begin()
        self.work()
        return self

    def work(self) -> None:
        """Let the threads and the loop do what they have to do now."""
        while self.thread.work():
            self.loop.settle()

    def look(self, seconds: int = 1) -> None:
        """Let so many seconds pass, with the threads at work after each."""
        for _ in range(seconds):
            self.loop.advance(1.0)
            self.work()

    @property
    def version(self) -> str:
        """What serves."""
        return str(self.pipeline.model.manifest.version)

    def did(self, answered: int = 0, failed: int = 0) -> None:
        """What the bundle has done."""
        self.pipeline.loaded.answered, self.pipeline.loaded.failed = answered, failed


@pytest.fixture(autouse=True)
def _stepped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads work when a device says so, and a model is loaded without a file."""
    FakeShadow.made = []
    monkeypatch.setattr(module, "Shadow", FakeShadow)
    monkeypatch.setattr(
        module, "load_model", lambda bundle, options, kept: (_model(bundle.slot.version), options, kept)
    )
    monkeypatch.setattr(module, "chosen", lambda config, table: (config.name, table))
    monkeypatch.setattr(
        module, "rehearse", lambda loaded, _config: SimpleNamespace(model=loaded[0], options=loaded[1], kept=loaded[2])
    )


@pytest.fixture(autouse=True)
def _threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def beside(name: str, report: Callable[..., Any], work: Callable[[], Any], **more: Any) -> None:
        owner = cast("Any", report).__self__
        assert name == "exchange"
        THREADS[id(owner)].submit(work, more["done"], more["failed"], what=more["what"], most_s=more["most_s"])

    monkeypatch.setattr(module, "run_beside", beside)
    THREADS.clear()


THREADS: dict[int, SteppedThread] = {}


def _device(slot: Slot | None = None, config: StoreTable = CONFIG) -> Device:
    made = Device(slot or _slot("1.0.0"), config)
    THREADS[id(made.loop)] = made.thread
    return made


@pytest.fixture
def device() -> Device:
    """Version 1.0.0 is active and proven."""
    return _device().start()


# -- another decision ----------------------------------------------------------------------------------------------


def test_a_new_bundle_takes_the_next_window(device: Device, caplog: pytest.LogCaptureFixture) -> None:
    """Noticed within a second, begun in the store, loaded with the model's own options, and handed over once."""
    caplog.set_level(logging.INFO)
    assert (LOOK_S, EXCHANGE_S) == (1.0, 600.0)
    device.look()
    assert device.store.calls("slot") == []  # one `stat` a second, while nothing has changed
    device.store.decide(_slot("1.1.0", "probation"))
    device.look()
    assert device.version == "1.1.0"
    assert (device.store.calls("begin"), device.store.calls("open")) == ([("begin",)], [("open", "1.1.0")])
    assert (device.handed[0].options.threads, device.handed[0].options.max_batch) == (2, 7)
    assert device.handed[0].kept == ("model", CONFIG)
    assert (len(device.handed), device.changes, device.reloads) == (1, 1, 0)
    assert device.exchange.standing(device.pipeline) == ("probation", None)
    assert "bundle exchanged" in [each.message for each in caplog.records]
    assert {bound for _, bound in device.thread.bounds} == {600.0}
    device.look()
    assert (len(device.handed), len(device.store.calls("slot"))) == (1, 1)


def test_a_decision_that_names_the_same_bundle_changes_only_its_state(device: Device) -> None:
    """A confirmation by hand, or a shadow; nothing is loaded, and without a difference nothing is published."""
    device.store.decide(_slot("1.0.0", "active"))
    device.look()
    assert (device.handed, device.changes) == ([], 0)
    device.store.decide(_slot("1.0.0", "active", "rebuilt"))
    device.look()
    assert (device.handed, device.changes) == ([], 1)
    assert device.exchange.standing(device.pipeline) == ("active", "rebuilt")


def test_a_bundle_that_does_not_load_is_reported_and_the_old_one_goes_on(
    device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    """The store names what to run instead: the one that serves, which never stopped."""
    device.store.decide(_slot("1.1.0", "probation"))
    device.store.failed_over_to = _slot("1.0.0", "active", "went back")
    device.store.faults["open"] = SignatureError("key\nrevoked")
    device.look()
    assert device.store.calls("fail") == [("fail", "digest-1.1.0", "cannot be loaded: key; revoked")]
    assert (device.version, device.handed, device.changes) == ("1.0.0", [], 1)
    assert device.exchange.standing(device.pipeline) == ("active", "1.1.0 cannot be loaded: key; revoked")
    assert [each.message for each in caplog.records] == ["bundle rejected"]
    device.store.faults.clear()
    device.look()
    device.look()
    assert (device.handed, len(device.store.calls("fail"))) == ([], 1)


def test_a_bundle_that_does_not_load_gives_way_to_a_third_one(device: Device) -> None:
    """The store goes back to another one than the one that serves: that is loaded."""
    device.store.decide(_slot("1.2.0", "probation"))
    device.store.failed_over_to = _slot("0.9.0", "active")
    fault = BundleError("bad")
    opened = device.store.open_slot

    def open_slot(slot: Slot) -> Any:
        if slot.version == "1.2.0":
            raise fault
        return opened(slot)

    device.store.open_slot = open_slot  # type: ignore[method-assign]
    device.look()
    assert device.version == "0.9.0"
    assert device.exchange.standing(device.pipeline) == ("active", "1.2.0 cannot be loaded: bad")


def test_the_reason_of_an_earlier_failure_ends_with_the_next_exchange(device: Device) -> None:
    """It was of another bundle."""
    device.store.decide(_slot("1.1.0", "probation"))
    device.store.failed_over_to = _slot("1.0.0", "active")
    device.store.faults["open"] = BundleError("bad")
    device.look()
    assert device.exchange.standing(device.pipeline)[1] is not None
    assert device.changes == 1  # the same slot as before, and a reason to publish
    device.store.faults.clear()
    device.look()
    device.store.decide(_slot("1.2.0", "probation"))
    device.look()
    assert (device.version, device.exchange.standing(device.pipeline)) == ("1.2.0", ("probation", None))


def test_a_bundle_that_cannot_be_run_is_reported(device: Device) -> None:
    """The pipeline refuses it at the hand-over."""
    device.fits = BundleError("other\nshape")
    device.store.decide(_slot("1.1.0", "probation"))
    device.store.failed_over_to = _slot("1.0.0", "active")
    device.look()
    assert device.store.calls("fail") == [("fail", "digest-1.1.0", "cannot be run: other; shape")]
    assert device.version == "1.0.0"


def test_a_bundle_with_other_channels_wires_its_source_anew(device: Device) -> None:
    """By a reload, which loads it again; nothing is published before."""
    device.fits = False
    device.store.decide(_slot("1.1.0", "probation"))
    device.look()
    assert (device.reloads, device.changes) == (1, 0)
    assert device.exchange.standing(device.pipeline) == ("probation", None)
    device.look()
    assert (device.reloads, len(device.handed)) == (1, 1)


def test_an_error_of_the_store_is_logged_and_the_next_decision_is_followed(
    device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    """One of ours without a traceback, a bug with one; the model is not left busy."""
    for error, has_traceback in ((CommandError("disk\nfull"), False), (KeyError("a bug"), True)):
        caplog.clear()
        device.store.faults["slot"] = error
        device.store.decide(_slot("1.0.0"))
        device.look()
        assert [bool(each.exc_info) for each in caplog.records] == [has_traceback]
        assert getattr(caplog.records[0], "fields", {}).get("why", "disk; full") == "disk; full"
        assert device.exchange.is_idle
    device.store.faults.clear()
    device.store.decide(_slot("1.1.0"))
    device.look()
    assert device.version == "1.1.0"


def test_a_change_while_the_store_is_read_is_noticed_afterwards(device: Device) -> None:
    """The stamp is taken before the state is read."""
    device.store.decide(_slot("1.1.0"))
    slot = device.store.slot

    def read(_name: str) -> Slot:
        found = slot(_name)
        device.store.slot = slot  # type: ignore[method-assign]
        device.store.decide(_slot("1.2.0"))
        return found

    device.store.slot = read  # type: ignore[method-assign]
    begin = device.store.begin

    def begun(_name: str) -> Slot:
        return _slot("1.1.0") if device.version == "1.0.0" else begin(_name)

    device.store.begin = begun  # type: ignore[method-assign]
    device.look()
    assert device.version == "1.1.0"
    device.look()
    assert device.version == "1.2.0"


def test_a_busy_model_is_not_looked_at(device: Device) -> None:
    """One thread a model; the loop never waits for it."""
    device.store.decide(_slot("1.1.0"))
    device.loop.advance(5.0)
    assert not device.exchange.is_idle
    assert len(device.thread.asked) == 1
    device.work()
    assert device.exchange.is_idle
    assert len(device.handed) == 1


# -- probation -----------------------------------------------------------------------------------------------------


def _on_probation(**limits: Any) -> Device:
    table = {name: getattr(CONFIG, name) for name in CONFIG.__struct_fields__}
    device = _device(config=StoreTable(**(table | limits))).start()
    device.store.decide(_slot("1.1.0", "probation"))
    device.look()
    assert device.version == "1.1.0"
    device.changes = 0
    return device


def test_a_bundle_that_serves_well_is_confirmed() -> None:
    """After its predictions; the change is published once, and the confirmation is read without effect."""
    device = _on_probation()
    device.did(99)
    device.look()
    assert device.store.calls("confirm") == []
    device.did(100)
    device.look()
    assert device.store.calls("confirm") == [("confirm", "digest-1.1.0")]
    assert device.exchange.standing(device.pipeline) == ("active", None)
    assert device.changes == 1
    device.look(5)
    assert (device.changes, len(device.store.calls("confirm")), len(device.handed)) == (1, 1, 1)


def test_the_time_of_a_probation_begins_with_the_first_window() -> None:
    """Ten minutes from the hand-over, not from the start of the daemon."""
    device = _on_probation()
    device.did(1)
    device.look(599)
    assert device.store.calls("confirm") == []
    device.look(2)
    assert len(device.store.calls("confirm")) == 1


def test_a_bundle_that_fails_gives_way_to_the_one_before() -> None:
    """It is loaded again, with the reason at hand for `models`."""
    device = _on_probation()
    device.store.failed_over_to = _slot("1.0.0", "active")
    device.did(2, 3)
    device.look()
    reason = "failed on 3 of 5 windows in service"
    assert device.store.calls("fail") == [("fail", "digest-1.1.0", reason)]
    assert device.version == "1.0.0"
    assert device.exchange.standing(device.pipeline) == ("active", f"1.1.0 {reason}")
    assert device.changes == 1


def test_the_only_bundle_stays_and_is_not_judged_again() -> None:
    """The store keeps it: it is reported once."""
    device = _on_probation()
    device.did(2, 3)
    device.look()
    assert len(device.store.calls("fail")) == 1
    assert device.version == "1.1.0"
    device.did(1000, 30)
    device.look(5)
    assert (len(device.store.calls("fail")), device.store.calls("confirm")) == (1, [])


def test_a_bundle_that_was_replaced_is_not_confirmed() -> None:
    """The store answers with another one by then: that one is followed, and nothing is called proven."""
    device = _on_probation()
    device.did(100)

    def confirm(_name: str, digest: str) -> Slot:
        assert digest == "digest-1.1.0"
        return _slot("1.2.0", "probation")

    device.store.confirm = confirm  # type: ignore[method-assign]
    device.look()
    assert device.exchange.standing(device.pipeline) == ("probation", None)
    assert device.changes == 0


def test_a_proven_bundle_is_not_judged(device: Device) -> None:
    """Whatever it does afterwards, it is an operator's matter."""
    device.did(0, 100)
    device.look(5)
    assert device.store.calls("fail") == []


def test_a_start_on_probation_is_watched() -> None:
    """From the start of the watch on, with memory measured from there."""
    device = _device(_slot("1.0.0", "probation")).start()
    device.did(100)
    device.look()
    assert device.store.calls("confirm") == [("confirm", "digest-1.0.0")]


@pytest.mark.parametrize("limit", [None, 0.25])
def test_drift_is_watched_where_it_is_configured(limit: float | None) -> None:
    """It costs a copy of the answers, so only then."""
    device = _device(config=StoreTable(max_drift=limit)).start()
    assert device.drifts == (0 if limit is None else 1)


def test_memory_and_scores_of_the_one_before_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory counts from before the loading, so that what the model itself takes is part of it."""
    made: list[str] = []
    device = _device(config=StoreTable(max_drift=0.25)).start()
    device.pipeline.loaded.sample = cast("Any", "the old sample")

    class Noted(Growth):
        def __init__(self) -> None:
            made.append(device.version if not device.store.calls("open") else "opened")

    monkeypatch.setattr(module, "Growth", Noted)
    device.store.decide(_slot("1.1.0", "probation"))
    device.look(1)
    probation = device.exchange._watched[0].probation
    assert made == ["1.0.0"]
    assert isinstance(probation.growth, Noted)
    assert probation.before == cast("Any", "the old sample")
    assert probation.config.max_drift == 0.25


# -- the stop ------------------------------------------------------------------------------------------------------


def test_a_clean_stop_is_recorded_for_a_bundle_on_probation() -> None:
    """So that this start does not count for a crash loop; a proven one needs nothing."""
    device = _on_probation()
    device.exchange.end()
    assert not device.exchange.is_idle
    device.work()
    assert device.exchange.is_idle
    assert device.store.calls("pause") == [("pause", "digest-1.1.0")]
    device.did(100)
    device.look(10)
    assert device.store.calls("confirm") == []
    proven = _device().start()
    proven.exchange.end()
    proven.work()
    assert proven.store.calls("pause") == []


def test_a_bundle_that_was_loaded_when_the_stop_came_is_paused() -> None:
    """It was begun in the store, and takes no window."""
    device = _device().start()
    device.store.decide(_slot("1.1.0", "probation"))
    device.loop.advance(1.0)
    device.exchange.end()
    assert device.store.calls("pause") == []
    device.work()
    assert device.handed == []
    assert device.store.calls("pause") == [("pause", "digest-1.1.0")]
    other = _device().start()
    other.store.decide(_slot("1.1.0", "active"))
    other.loop.advance(1.0)
    other.exchange.end()
    other.work()
    assert (other.handed, other.store.calls("pause")) == ([], [])


def test_a_stop_while_the_store_is_asked_asks_nothing_more() -> None:
    """A bundle that is being confirmed is not paused as well."""
    device = _on_probation()
    device.did(100)
    device.loop.advance(1.0)
    device.exchange.end()
    device.work()
    assert (len(device.store.calls("confirm")), device.store.calls("pause")) == (1, [])


def test_a_pipeline_that_is_forgotten_is_not_followed(device: Device) -> None:
    """A reload exchanges or removes it; what a thread finishes for it has no effect."""
    assert device.exchange.watches(device.pipeline)
    device.store.decide(_slot("1.1.0"))
    device.loop.advance(1.0)
    device.exchange.forget(device.pipeline)
    device.work()
    assert not device.exchange.watches(device.pipeline)
    assert device.handed == []
    assert device.exchange.standing(device.pipeline) == ("active", None)
    device.look(5)
    assert device.thread.asked == type(device.thread.asked)()


def test_each_pipeline_is_followed_by_itself(device: Device) -> None:
    """One is forgotten, the others stay; all are forgotten together."""
    other = device.make_pipeline("1.0.0")
    device.exchange.watch(other, _slot("1.0.0", "probation", "why"))
    device.exchange.begin()
    assert len(device.thread.asked) == 1  # the second one only
    device.work()
    assert device.exchange.standing(other) == ("probation", "why")
    assert device.exchange.standing(device.pipeline) == ("active", None)
    device.exchange.forget(device.pipeline)
    assert device.exchange.watches(other)
    assert not device.exchange.watches(device.pipeline)
    device.exchange.watch(device.pipeline, _slot("1.0.0"))
    device.exchange.forget_all()
    assert not device.exchange.watches(other)
    assert not device.exchange.watches(device.pipeline)


def test_the_looks_begin_once_and_only_where_something_is_watched() -> None:
    """A daemon without a store costs nothing."""
    device = _device()
    device.exchange.begin()
    device.loop.advance(10.0)
    assert device.loop.served == 0
    device.exchange.watch(device.pipeline, device.store.now)
    for _ in range(3):
        device.exchange.begin()
    device.work()
    before = device.loop.served
    device.loop.advance(10.0)
    assert device.loop.served - before == 10


# -- shadows -------------------------------------------------------------------------------------------------------


def _shadowed() -> Device:
    device = _device()
    device.store.beside = _slot("2.0.0", "staged")
    return device.start()


def test_a_shadow_runs_beside_from_the_start() -> None:
    """With the model's own threshold and threads, and as the listener of its pipeline; the list is published."""
    device = _shadowed()
    shadow = FakeShadow.made[0]
    assert (shadow.slot.version, shadow.active.version, shadow.beside.version) == ("2.0.0", "1.0.0", "1.0.0")
    assert (shadow.more["threshold"], shadow.more["threads"]) == (0.25, 2)
    assert cast("Any", device.pipeline).listener is shadow
    assert device.changes == 1
    assert device.exchange.beside(device.pipeline) == {
        "version": "2.0.0", "digest": "digest-2.0.0", "state": "staged", "why": None,
    }  # fmt: skip
    assert device.exchange.shadows() == {"model": {"shadow": "2.0.0"}}
    device.store.decide(_slot("1.0.0"))
    device.look()
    assert (len(FakeShadow.made), device.changes) == (1, 1)


def test_without_a_shadow_there_is_none(device: Device) -> None:
    """Nor a change to publish."""
    assert (FakeShadow.made, device.changes) == ([], 0)
    assert device.exchange.beside(device.pipeline) is None
    assert device.exchange.shadows() == {}
    assert device.exchange.beside(device.make_pipeline("1.0.0")) is None


def test_the_shadow_of_another_pipeline_is_not_shown(device: Device) -> None:
    """The first one has none, the second one has."""
    other = device.make_pipeline("1.0.0")
    device.exchange.watch(other, _slot("1.0.0"))
    device.store.beside = _slot("2.0.0", "staged")
    device.exchange.begin()
    device.work()
    assert device.exchange.beside(device.pipeline) is None
    found = device.exchange.beside(other)
    assert found is not None
    assert found["version"] == "2.0.0"


def test_a_shadow_that_is_withdrawn_ends() -> None:
    """And another one takes its place where the store names one."""
    device = _shadowed()
    device.store.beside = _slot("2.1.0", "staged")
    device.store.decide(_slot("1.0.0"))
    device.look()
    first, second = FakeShadow.made
    assert (first.stopped, second.stopped, second.slot.version) == (True, False, "2.1.0")
    assert cast("Any", device.pipeline).listener is second
    device.store.beside = None
    device.store.decide(_slot("1.0.0"))
    device.look()
    assert second.stopped
    assert cast("Any", device.pipeline).listener is None
    assert device.exchange.beside(device.pipeline) is None
    assert device.changes == 3


def test_a_shadow_is_examined_as_at_an_install() -> None:
    """In its own thread; one that cannot be compared is refused, with the reason."""
    device = _shadowed()
    check = FakeShadow.made[0].more["check"]
    assert check().version == "2.0.0"
    assert device.store.calls("open") == [("open", "2.0.0")]
    device.store.manifests["2.0.0"] = _manifest("2.0.0", ("a", "c"))
    with pytest.raises(BundleError, match=r"cannot run beside 1\.0\.0: "):
        check()


def test_a_shadow_starts_anew_beside_another_bundle() -> None:
    """The statistics of both would mix otherwise; the shadow that became active itself is no shadow any more."""
    device = _shadowed()
    device.store.decide(_slot("1.1.0", "active"))
    device.look()
    first, second = FakeShadow.made
    assert (first.stopped, second.active.version, second.beside.version) == (True, "1.1.0", "1.1.0")
    device.store.beside = None
    device.store.decide(_slot("2.0.0", "probation"))
    device.look()
    assert len(FakeShadow.made) == 2
    assert second.stopped
    assert cast("Any", device.pipeline).listener is None


def test_a_shadow_starts_anew_at_once_where_its_model_goes_back() -> None:
    """Not with the next look at the store: the windows until then would be counted to the wrong model."""
    device = _on_probation()
    device.store.beside = _slot("2.0.0", "staged")
    device.store.decide(device.store.now)
    device.look()
    device.store.failed_over_to = _slot("1.0.0", "active")
    device.did(2, 3)
    device.look()
    assert device.version == "1.0.0"
    assert [(each.active.version, each.stopped) for each in FakeShadow.made] == [("1.1.0", True), ("1.0.0", False)]


def test_the_end_of_a_shadow_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    """To the store, to the list of models, and with its last figures; the active model goes on."""
    device = _shadowed()
    device.changes = 0
    FakeShadow.made[0].more["on_end"]("crashed")
    assert [each.message for each in caplog.records] == ["shadow rejected"]
    assert cast("Any", device.pipeline).listener is None
    device.work()
    assert device.store.calls("fail_shadow") == [("fail_shadow", "digest-2.0.0", "crashed")]
    assert device.changes == 1
    expected = {"version": "2.0.0", "digest": "digest-2.0.0", "state": "rejected", "why": "crashed"}
    found = device.exchange.beside(device.pipeline)
    assert found == expected
    found["why"] = "changed by a reader"
    assert device.exchange.beside(device.pipeline) == expected
    assert device.exchange.shadows() == {"model": {"shadow": "2.0.0"}}
    assert device.exchange.shadows() == {}
    FakeShadow.made[0].more["on_end"]("crashed again")
    device.work()
    assert len(device.store.calls("fail_shadow")) == 1


def test_a_new_shadow_takes_the_place_of_one_that_ended() -> None:
    """Its own figures are shown, and the end of the other one no more."""
    device = _shadowed()
    FakeShadow.made[0].more["on_end"]("crashed")
    device.work()
    device.store.beside = _slot("2.1.0", "staged")
    device.store.decide(_slot("1.0.0"))
    device.look()
    assert device.exchange.shadows() == {"model": {"shadow": "2.1.0"}}
    found = device.exchange.beside(device.pipeline)
    assert found is not None
    assert found["version"] == "2.1.0"
    device.store.beside = None
    device.store.decide(_slot("1.0.0"))
    device.look()
    assert device.exchange.beside(device.pipeline) is None


def test_a_stop_and_a_reload_end_the_shadow() -> None:
    """Its process would live on otherwise; and none begins afterwards."""
    stopped = _shadowed()
    stopped.exchange.end()
    assert FakeShadow.made[0].stopped
    forgotten = _shadowed()
    forgotten.exchange.forget(forgotten.pipeline)
    assert FakeShadow.made[1].stopped
    assert cast("Any", forgotten.pipeline).listener is None
    late = _device()
    late.store.beside = _slot("2.0.0", "staged")
    late.exchange.watch(late.pipeline, late.store.now)
    late.exchange.begin()
    late.exchange.end()
    late.work()
    assert len(FakeShadow.made) == 2
