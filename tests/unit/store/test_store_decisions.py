"""What the store decides, one bundle at a time, as it stands in `state.json` and on the disk afterwards."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge_runtime.bundle.release import Release
from edge_runtime.errors import BundleError, CommandError
from edge_runtime.store import layout
from edge_runtime.store.install import Policy
from edge_runtime.store.records import Slot
from edge_runtime.store.store import MAX_STARTS, ModelStore
from edge_runtime.system.durable import locked

Make = Callable[..., Path]
NAME = "activity"


def _state(store: ModelStore) -> Any:
    return msgspec.json.decode((store.root / NAME / "state.json").read_bytes())


def _starts(store: ModelStore) -> int:
    return int(_state(store)["active"]["starts"])


def _files(store: ModelStore) -> set[str]:
    return {path.stem for path in (store.root / NAME).glob("*.onnx")}


def _put(store: ModelStore, make: Make, policy: Policy, *versions: str, proven: bool = True) -> list[Slot]:
    """Install these versions one after the other."""
    slots = []
    for version in versions:
        slots.append(store.install(make(version), policy).slot)
        if proven:
            store.confirm(NAME, store.begin(NAME).digest)
    return slots


def _spoil(slot: Slot) -> None:
    """A byte of the bundle's file is changed by the disk; its size stays."""
    content = bytearray(slot.path.read_bytes())
    content[len(content) // 2] ^= 1
    slot.path.write_bytes(content)


# -- lists ---------------------------------------------------------------------------------------------------------


def test_names_without_a_bundle_are_left_out_of_the_list(store: ModelStore, make: Make, policy: Policy) -> None:
    """A state that cannot be rebuilt, because its bundles are gone, does not hide the other names."""
    store.install(make("1.0.0", "aaa"), policy)
    _put(store, make, policy, "1.0.0")
    (store.root / "aaa" / "state.json").write_bytes(b"damaged")
    for path in (store.root / "aaa").glob("*.onnx"):
        path.unlink()
    assert [(entry.name, entry.state) for entry in store.entries()] == [(NAME, "active")]
    assert store.entries("aaa") == []
    assert store.entries("unknown") == []


def test_only_a_staged_bundle_is_listed_as_the_shadow(store: ModelStore, make: Make, policy: Policy) -> None:
    """A state that names a digest as shadow which is active, as an older release may have left it, has none."""
    _put(store, make, policy, "1.0.0")
    state = _state(store)
    state["shadow"] = state["active"]["digest"]
    (store.root / NAME / "state.json").write_bytes(msgspec.json.encode(state))
    assert [entry.shadow for entry in store.entries()] == [False]
    assert store.shadow(NAME) is None


def test_the_class_of_the_device_is_kept_in_the_store(store: ModelStore, make: Make, policy: Policy) -> None:
    """An install by hand then checks it."""
    _put(store, make, policy, "1.0.0")
    store.note_device_class("pi5")
    assert (store.root / ".class").read_text() == "pi5"


# -- starts on probation -------------------------------------------------------------------------------------------


def test_three_starts_without_an_answer_are_a_crash_loop(store: ModelStore, make: Make, policy: Policy) -> None:
    """Three starts get the new bundle, as often as it says in the reference; the fourth gets the one before."""
    assert MAX_STARTS == 3
    old, new = _put(store, make, policy, "1.0.0")[0], store.install(make("1.1.0"), policy).slot
    for count in (1, 2, 3):
        assert store.begin(NAME).digest == new.digest
        assert _starts(store) == count
    slot = store.begin(NAME)
    assert (slot.digest, slot.state) == (old.digest, "active")
    assert "started 3 times on probation" in slot.why
    assert _state(store)["active"]["digest"] == old.digest  # on the disk, so that the next start knows it
    assert [(entry.version, entry.state) for entry in store.entries()] == [("1.0.0", "active"), ("1.1.0", "rejected")]


def test_the_only_bundle_is_started_again_for_ever(store: ModelStore, make: Make, policy: Policy) -> None:
    """There is no other one; its starts are counted on."""
    only = store.install(make("1.0.0"), policy).slot
    for count in range(1, 6):
        assert store.begin(NAME).digest == only.digest
        assert _starts(store) == count


def test_starts_of_a_proven_bundle_are_not_counted(store: ModelStore, make: Make, policy: Policy) -> None:
    """Nor is anything written, since a daemon may be restarted often."""
    _put(store, make, policy, "1.0.0")
    before = store.stamp(NAME)
    store.begin(NAME)
    assert store.stamp(NAME) == before


def test_a_damaged_bundle_is_left_at_the_start(store: ModelStore, make: Make, policy: Policy) -> None:
    """The decision is kept, so that the damaged file is not read again at each start, and reported."""
    old, new = _put(store, make, policy, "1.0.0", "1.1.0")
    _spoil(new)
    assert store.begin(NAME).digest == old.digest
    assert _state(store)["active"]["digest"] == old.digest
    assert [each["digest"] for each in _state(store)["rejected"]] == [new.digest]
    _spoil(old)
    with pytest.raises(BundleError):
        store.begin(NAME)


def test_two_damaged_bundles_in_a_row_are_left_together(store: ModelStore, make: Make, policy: Policy) -> None:
    """The last sound one of three is the one to run."""
    sound = _put(store, make, policy, "1.0.0")[0]
    store.install(make("1.1.0"), policy)  # never started, so it may be gone back to
    newest = store.install(make("1.2.0"), policy).slot
    between = next(entry for entry in store.entries() if entry.version == "1.1.0")
    _spoil(replace(newest, path=store.root / NAME / f"{between.digest}.onnx"))
    _spoil(newest)
    assert store.begin(NAME).digest == sound.digest


# -- the end of a probation ----------------------------------------------------------------------------------------


def test_a_confirmed_bundle_has_no_starts_to_count(store: ModelStore, make: Make, policy: Policy) -> None:
    """After a way back by hand it begins anew, and a second confirmation writes nothing."""
    slot = _put(store, make, policy, "1.0.0", proven=False)[0]
    store.begin(NAME)
    assert store.confirm(NAME, slot.digest).state == "active"
    assert (_state(store)["active"]["proven"], _starts(store)) == (True, 0)
    before = store.stamp(NAME)
    assert store.confirm(NAME, slot.digest).state == "active"
    assert store.stamp(NAME) == before


def test_a_clean_stop_takes_one_start_back(store: ModelStore, make: Make, policy: Policy) -> None:
    """Exactly one, and none below zero: else a crash loop would be found later than it should be."""
    slot = _put(store, make, policy, "1.0.0", proven=False)[0]
    for _ in range(3):
        store.begin(NAME)
    store.pause(NAME, slot.digest)
    assert _starts(store) == 2
    for _ in range(3):
        store.pause(NAME, slot.digest)
    assert _starts(store) == 0
    before = store.stamp(NAME)
    store.pause(NAME, slot.digest)
    assert store.stamp(NAME) == before


def test_a_clean_stop_of_another_bundle_takes_nothing_back(store: ModelStore, make: Make, policy: Policy) -> None:
    """It was replaced meanwhile: the new one has its own starts."""
    old = _put(store, make, policy, "1.0.0")[0]
    store.install(make("1.1.0"), policy)
    store.begin(NAME)
    store.pause(NAME, old.digest)
    assert _starts(store) == 1


def test_a_clean_stop_of_a_proven_bundle_writes_nothing(store: ModelStore, make: Make, policy: Policy) -> None:
    """Whatever its record says of starts."""
    slot = _put(store, make, policy, "1.0.0")[0]
    state = _state(store)
    state["active"]["starts"] = 2
    (store.root / NAME / "state.json").write_bytes(msgspec.json.encode(state))
    before = store.stamp(NAME)
    store.pause(NAME, slot.digest)
    assert store.stamp(NAME) == before


def test_the_reason_of_the_only_bundle_s_failure_is_kept_short(store: ModelStore, make: Make, policy: Policy) -> None:
    """It is published at every start: 300 characters of it."""
    slot = _put(store, make, policy, "1.0.0", proven=False)[0]
    assert store.fail(NAME, slot.digest, "x" * 400).why == "x" * 300
    assert store.slot(NAME).why == "x" * 300


def test_what_no_decision_names_is_removed_with_the_decision(store: ModelStore, make: Make, policy: Policy) -> None:
    """A failed bundle's file takes no space on the card."""
    old = _put(store, make, policy, "1.0.0")[0]
    new = store.install(make("1.1.0"), policy).slot
    assert _files(store) == {old.digest, new.digest}
    store.fail(NAME, new.digest, "too slow")
    assert _files(store) == {old.digest}


# -- shadows -------------------------------------------------------------------------------------------------------


def test_a_verdict_on_a_shadow_that_is_gone_changes_nothing(store: ModelStore, make: Make, policy: Policy) -> None:
    """It was withdrawn, or never was one; another one runs by now."""
    old = _put(store, make, policy, "1.0.0")[0]
    store.fail_shadow(NAME, old.digest, "crashed")
    first = store.install(make("1.1.0"), replace(policy, activate=False, shadow=True)).slot
    second = store.install(make("1.2.0"), replace(policy, activate=False, shadow=True)).slot
    before = _state(store)
    store.fail_shadow(NAME, first.digest, "crashed")
    assert _state(store) == before
    store.fail_shadow(NAME, second.digest, "crashed")
    assert _state(store)["rejected"][0]["why"] == "as a shadow: crashed"
    assert _state(store)["active"]["digest"] == old.digest


# -- by hand -------------------------------------------------------------------------------------------------------


def test_a_damaged_staged_bundle_is_not_activated(store: ModelStore, make: Make, policy: Policy) -> None:
    """It is found out before it is active, and the floor stays as it was."""
    _put(store, make, policy, "1.0.0")
    staged = store.install(make("1.2.0"), replace(policy, activate=False)).slot
    _spoil(staged)
    with pytest.raises((BundleError, CommandError)):
        store.activate(NAME, "1.2.0")
    assert store.slot(NAME).version == "1.0.0"
    assert store.install(make("1.1.0"), policy).changed


def test_an_activated_bundle_is_the_floor_from_then_on(store: ModelStore, make: Make, policy: Policy) -> None:
    """What was staged and is made active by hand counts as much as what was installed."""
    _put(store, make, policy, "1.0.0")
    store.install(make("1.5.0"), replace(policy, activate=False))
    store.activate(NAME, "1.5.0")
    with pytest.raises(BundleError, match=r"above 1\.5\.0"):
        store.install(make("1.4.0"), policy)


def test_an_activated_bundle_has_all_its_starts_before_it(store: ModelStore, make: Make, policy: Policy) -> None:
    """Going forward again begins the probation anew, without the reason of the way back."""
    _put(store, make, policy, "1.0.0")
    store.install(make("1.1.0"), policy)
    store.begin(NAME)
    store.rollback(NAME)
    slot = store.activate(NAME, "1.1.0")
    assert (_starts(store), slot.why, slot.state) == (0, "", "probation")


def test_what_an_install_would_refuse_is_refused_before_its_bytes_come(
    store: ModelStore, make: Make, policy: Policy
) -> None:
    """A release document with an older version, judged alone."""
    _put(store, make, policy, "1.1.0")
    release = Release(name=NAME, version="1.0.0", digest="aa" * 32, size=10)
    with pytest.raises(BundleError, match=r"above 1\.1\.0"):
        store.require_admissible(release, None)


CHANGES: dict[str, Callable[[ModelStore, str], object]] = {
    "begin": lambda store, _digest: store.begin(NAME),
    "confirm": lambda store, digest: store.confirm(NAME, digest),
    "pause": lambda store, digest: store.pause(NAME, digest),
    "fail": lambda store, digest: store.fail(NAME, digest, "slow"),
    "fail_shadow": lambda store, _digest: store.fail_shadow(NAME, "0" * 64, "slow"),
    "rollback": lambda store, _digest: store.rollback(NAME),
    "activate": lambda store, _digest: store.activate(NAME, "1.0.0"),
    "withdraw": lambda store, _digest: store.withdraw(NAME),
}


@pytest.mark.parametrize("change", list(CHANGES))
def test_no_decision_is_taken_beside_another_one(
    store: ModelStore, make: Make, policy: Policy, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """The daemon and a command on the host read, decide and write under one lock, so that neither undoes the other."""
    _put(store, make, policy, "1.0.0")
    _put(store, make, policy, "1.1.0", proven=False)
    slot = store.install(make("1.2.0"), replace(policy, activate=False, shadow=True)).slot
    assert slot.state == "staged"
    monkeypatch.setattr(layout, "_LOCK_WAIT_S", 0.0)
    before = store.stamp(NAME)
    with locked(store.root / ".lock", "busy", 0.0), pytest.raises(CommandError, match="its lock to be free"):
        CHANGES[change](store, store.slot(NAME).digest)
    assert store.stamp(NAME) == before
    CHANGES[change](store, store.slot(NAME).digest)
    assert (store.root / NAME / "state.json").exists()
