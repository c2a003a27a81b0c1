"""How a bundle gets in: each check by itself, at its limit, and what an install leaves behind."""

import errno
import fcntl
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from edge_runtime.bundle.manifest import Manifest
from edge_runtime.bundle.open import open_bundle
from edge_runtime.bundle.release import Release
from edge_runtime.errors import BundleError, CommandError, SignatureError
from edge_runtime.store import install, layout
from edge_runtime.store.floors import Floors
from edge_runtime.store.install import SPARE_BYTES, Policy, shadow_misfit
from edge_runtime.store.layout import StoreFolder
from edge_runtime.store.permission import PERMISSION_NAMESPACE
from edge_runtime.store.records import BundleRecord
from edge_runtime.store.store import ModelStore
from edge_runtime.system.durable import remove
from tests.faults.slots.operations import quick
from tests.support import builders

Make = Callable[..., Path]


def _refused(store: ModelStore, path: Path, policy: Policy, kind: type[Exception] = BundleError) -> str:
    """What an install says; it leaves everything as it was."""
    before = store.entries()
    with pytest.raises(kind) as caught:
        store.install(path, policy)
    assert store.entries() == before
    assert not (store.root / ".staging").exists()
    return str(caught.value)


def _release(path: Path, keys: builders.Signer | None, **changes: Any) -> Path:
    """Write `BUNDLE.release`, and sign it."""
    bundle = open_bundle(path)
    fields: dict[str, Any] = {
        "type": "release",
        "name": bundle.manifest.name,
        "version": bundle.manifest.version,
        "digest": bundle.digest,
        "size": bundle.size,
        "sequence": 5,
    }
    release = path.with_name(path.name + ".release")
    release.write_bytes(msgspec.json.encode(fields | changes))
    if keys is not None:
        keys.sign(release)
    return release


def test_an_install_asks_for_everything_unless_it_is_told_otherwise() -> None:
    """A signature, a bundle that has not failed here, and that it serves at once."""
    policy = Policy()
    assert (policy.unsigned, policy.rejected, policy.signatures, policy.release) == ("refuse", "refuse", 1, "accept")
    assert (policy.activate, policy.shadow, policy.allow_older, policy.device_class) == (True, False, None, None)


# --- what stands on the disk ------------------------------------------------------------------------------------------


def test_an_install_leaves_the_bundle_its_signature_and_no_staging(
    store: ModelStore, make: Make, policy: Policy
) -> None:
    """Byte for byte; when it was let in, by whom, and what it cost are known."""
    path = make("1.0.0")
    before = time.time()
    done = store.install(path, policy)
    kept = store.active("activity")
    assert kept.read_bytes() == path.read_bytes()
    assert kept.with_name(kept.name + ".sig").read_bytes() == path.with_name(path.name + ".sig").read_bytes()
    assert not (store.root / ".staging").exists()
    state = msgspec.json.decode((store.root / "activity" / "state.json").read_bytes())
    assert state["active"]["signers"] == ["builder@example"]
    assert before - 2.0 <= state["active"]["admitted"] <= time.time() + 2.0
    assert state["active"]["size"] == path.stat().st_size
    assert done.measured is not None
    assert done.measured.version == "1.0.0"
    again = store.install(path, policy)
    assert (again.changed, again.measured, again.slot.version) == (False, None, "1.0.0")
    assert not (store.root / ".staging").exists()


def test_a_bundle_that_was_let_in_unsigned_has_the_time_of_its_install(
    store: ModelStore, make: Make, policy: Policy
) -> None:
    """And no signers."""
    path = make("1.0.0")
    path.with_name(path.name + ".sig").unlink()
    before = time.time()
    store.install(path, replace(policy, unsigned="allow"))
    state = msgspec.json.decode((store.root / "activity" / "state.json").read_bytes())
    assert state["active"]["signers"] == []
    assert before <= state["active"]["admitted"] <= time.time()


def test_what_an_earlier_install_has_left_in_staging_is_no_part_of_this_one(
    store: ModelStore, make: Make, policy: Policy
) -> None:
    """Not even a signature that would fit."""
    signed = make("1.0.0")
    unsigned = make("1.1.0")
    signature = unsigned.with_name(unsigned.name + ".sig")
    staging = store.root / ".staging"
    staging.mkdir(parents=True)
    shutil.move(signature, staging / "bundle.onnx.sig")
    _refused(store, unsigned, policy, SignatureError)
    assert store.install(signed, policy).changed


def test_a_disk_needs_room_for_the_bundle_and_a_mebibyte(
    store: ModelStore, make: Make, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the byte; nothing is written where there is less."""
    path = make("1.0.0")
    needed = path.stat().st_size + 1024 * 1024
    assert SPARE_BYTES == 1024 * 1024
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed - 1))
    assert f"found {needed - 1} free" in _refused(store, path, policy, CommandError)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed))
    assert store.install(path, policy).changed


# --- signatures -------------------------------------------------------------------------------------------------------


def test_as_many_different_keys_as_are_asked_for_have_to_sign(
    store: ModelStore, make: Make, policy: Policy, keys: builders.Signer, tmp_path: Path
) -> None:
    """One key twice is one key; both signatures are kept beside the bundle."""
    path = make("1.0.0")
    two = replace(policy, signatures=2)
    _refused(store, path, two, SignatureError)
    second = path.with_name(path.name + ".sig2")
    second.write_bytes(path.with_name(path.name + ".sig").read_bytes())
    _refused(store, path, two, SignatureError)
    other = builders.signer(tmp_path / "other", "other@example")
    both = tmp_path / "both"
    both.write_text(keys.allowed.read_text() + other.allowed.read_text())
    first = path.with_name(path.name + ".sig").read_bytes()
    other.sign(path)
    path.with_name(path.name + ".sig").rename(second)
    path.with_name(path.name + ".sig").write_bytes(first)
    store.install(path, replace(two, allowed_signers=both))
    kept = store.active("activity")
    assert kept.with_name(kept.name + ".sig2").read_bytes() == second.read_bytes()
    state = msgspec.json.decode((store.root / "activity" / "state.json").read_bytes())
    assert sorted(state["active"]["signers"]) == ["builder@example", "other@example"]


def test_a_bad_signature_is_refused_where_none_is_asked_for(
    store: ModelStore, make: Make, policy: Policy, tmp_path: Path
) -> None:
    """`unsigned = "allow"` takes what has no signature, and nothing that has a wrong one."""
    path = make("1.0.0")
    stranger = builders.signer(tmp_path / "stranger")
    stranger.sign(path)
    _refused(store, path, replace(policy, unsigned="allow"), SignatureError)
    path.with_name(path.name + ".sig").unlink()
    message = _refused(store, path, policy, SignatureError)
    assert str(path) in message
    assert store.install(path, replace(policy, unsigned="allow")).changed


def test_installing_the_active_bundle_again_needs_a_good_signature_too(
    store: ModelStore, make: Make, policy: Policy, tmp_path: Path
) -> None:
    """The one that is kept does not give way to a stranger's."""
    path = make("1.0.0")
    store.install(path, policy)
    kept = store.active("activity").with_name(store.active("activity").name + ".sig")
    before = kept.read_bytes()
    builders.signer(tmp_path / "stranger").sign(path)
    _refused(store, path, policy, SignatureError)
    assert kept.read_bytes() == before


# --- the release document ---------------------------------------------------------------------------------------------


def test_a_release_document_is_asked_for_where_the_device_requires_one(
    store: ModelStore, make: Make, policy: Policy, keys: builders.Signer
) -> None:
    """And taken where it does not."""
    path = make("1.0.0")
    strict = replace(policy, release="require")
    message = _refused(store, path, strict)
    assert f"expected {path.name}.release beside it, found none" in message
    _release(path, keys)
    assert store.install(path, strict).changed


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"name": "other"}, "name: the release document says other, found activity"),
        ({"version": "1.0.1"}, r"version: the release document says 1.0.1, found 1.0.0"),
        ({"digest": "0" * 64}, "digest: the release document says 0000"),
        ({"size": 7}, "size: the release document says 7"),
        ({"expires": 1_000_000}, "expired on 1970-01-12"),
        ({"class": "pi4"}, None),  # the manifest says what it was made for
    ],
)
def test_a_release_document_speaks_of_this_bundle(
    store: ModelStore, make: Make, policy: Policy, keys: builders.Signer, changes: dict[str, Any], expected: str | None
) -> None:
    """Name, version, digest and size; and it is current."""
    path = make("1.0.0")
    _release(path, keys, **changes)
    if expected is None:
        assert store.install(path, policy).changed
    else:
        assert expected in _refused(store, path, policy)


def test_an_unsigned_release_document_is_refused_though_it_is_not_required(
    store: ModelStore, make: Make, policy: Policy, tmp_path: Path
) -> None:
    """Nor does a stranger's signature do."""
    path = make("1.0.0")
    release = _release(path, None)
    with pytest.raises(BundleError):
        store.install(path, policy)
    builders.signer(tmp_path / "stranger").sign(release)
    _refused(store, path, policy, SignatureError)


def test_a_release_that_was_replayed_is_refused(
    store: ModelStore, make: Make, policy: Policy, keys: builders.Signer
) -> None:
    """Its number may stay or go up, by a bundle that is installed as by one that is announced."""
    first = make("1.0.0")
    _release(first, keys, sequence=5)
    store.install(first, policy)
    later = make("1.1.0")
    _release(later, keys, sequence=4)
    assert "expected a release of sequence 5 or above, found 4" in _refused(store, later, policy)
    announced = Release(name="activity", version="1.1.0", digest="0" * 64, size=1, sequence=4)
    with pytest.raises(BundleError, match="sequence 5 or above, found 4"):
        store.require_admissible(announced, None)
    store.require_admissible(msgspec.structs.replace(announced, sequence=5), None)
    _release(later, keys, sequence=5)
    assert store.install(later, policy).changed
    newest = make("1.2.0")
    _release(newest, keys, sequence=6)
    assert store.install(newest, policy).changed
    assert Floors(StoreFolder(store.root)).read("activity").sequence == 6


def test_what_an_install_would_refuse_is_refused_by_its_announcement(
    store: ModelStore, make: Make, policy: Policy
) -> None:
    """Before its bytes are sent: another class, a name that is none, an older version, one that has failed here."""
    store.install(make("2.0.0"), policy)
    store.confirm("activity", store.begin("activity").digest)
    bad = store.install(make("2.1.0"), policy).slot.digest
    store.fail("activity", bad, "worse")
    good = Release(name="activity", version="2.2.0", digest="0" * 64, size=1)
    store.require_admissible(good, None)
    store.require_admissible(msgspec.structs.replace(good, device_class="pi4"), "pi4")
    store.require_admissible(msgspec.structs.replace(good, device_class="pi4"), None)
    store.require_admissible(good, "pi4")
    store.require_admissible(msgspec.structs.replace(good, name="other", version="0.0.1"), None)
    for changes, expected in (
        ({"device_class": "pi5"}, "expected a bundle for pi4, found one for pi5"),
        ({"name": "x" * 231}, "at most 230"),
        ({"version": "2.0.9"}, "above 2.1.0, found 2.0.9"),
        ({"version": "2.1.0"}, "found 2.1.0 of other content"),
        ({"digest": bad}, "has not failed here"),
    ):
        with pytest.raises(BundleError, match=expected):
            store.require_admissible(msgspec.structs.replace(good, **changes), "pi4")


# --- what happens meanwhile -------------------------------------------------------------------------------------------


def _store_that_meanwhile(root: Path, act: Callable[[], None]) -> ModelStore:
    """A store during whose self-test something else happens, as the daemon and other commands may do it."""

    def selftest(*arguments: Any) -> Any:
        act()
        return quick(*arguments)

    return ModelStore(root, selftest=selftest)


def test_a_bundle_is_judged_again_by_what_has_changed_during_its_self_test(
    store: ModelStore, make: Make, policy: Policy
) -> None:
    """A self-test takes seconds: the floor may have risen, and the daemon may have gone back."""
    store.install(make("1.0.0"), policy)
    store.confirm("activity", store.begin("activity").digest)
    floors = Floors(StoreFolder(store.root))
    newer = store.slot("activity")

    def overtake() -> None:
        floors.raise_to("activity", BundleRecord(version="1.5.0", digest="0" * 64))

    message = _refused(_store_that_meanwhile(store.root, overtake), make("1.1.0"), policy)
    assert "above 1.5.0, found 1.1.0" in message
    assert store.slot("activity").digest == newer.digest

    store.install(make("1.6.0"), policy)
    digest = store.begin("activity").digest

    def go_back() -> None:
        store.fail("activity", digest, "worse")

    other = _store_that_meanwhile(store.root, go_back)
    other.install(make("1.7.0"), policy)
    assert [(entry.version, entry.state) for entry in store.entries("activity")] == [
        ("1.7.0", "probation"),
        ("1.0.0", "previous"),
        ("1.6.0", "rejected"),
    ]


def test_nothing_changes_while_another_command_holds_the_state(
    store: ModelStore, make: Make, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An activation or the daemon may be at work on the same state: their decision is not overwritten."""
    store.install(make("1.0.0"), policy)
    later = make("1.1.0")
    monkeypatch.setattr(layout, "_LOCK_WAIT_S", 0.0)
    with (store.root / ".lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "expected its lock to be free, found it held" in _refused(store, later, policy, CommandError)
    assert store.install(later, policy).changed


def test_a_second_install_is_refused_without_a_wait(
    store: ModelStore, make: Make, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one may take minutes: who asks for the second hears at once."""
    store.install(make("1.0.0"), policy)
    later = make("1.1.0")
    naps: list[float] = []
    monkeypatch.setattr(time, "sleep", naps.append)
    with (store.root / ".install.lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(CommandError, match="another install is under way"):
            store.install(later, policy)
    assert not naps


def test_an_install_has_succeeded_though_its_staging_cannot_be_emptied(
    store: ModelStore, make: Make, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bundle serves already; the next install empties it."""
    calls: list[Path] = []

    def refused_at_the_end(path: Path) -> None:
        calls.append(path)
        if len(calls) == 2:
            raise OSError(errno.EIO, "Input/output error")
        remove(path)

    monkeypatch.setattr(install, "remove", refused_at_the_end)
    assert store.install(make("1.0.0"), policy).changed
    assert calls == [store.root / ".staging"] * 2
    assert store.install(make("1.1.0"), policy).changed
    assert not (store.root / ".staging").exists()


def test_the_self_test_sees_the_bundle_under_the_name_of_its_source(
    store: ModelStore, make: Make, policy: Policy
) -> None:
    """Its messages name the file that an operator knows."""
    places: list[str] = []

    def selftest(bundle: Any, budget: Any, place: str) -> Any:
        places.append(place)
        assert not store.entries(), "nothing is decided yet"
        return quick(bundle, budget, place)

    path = make("1.0.0")
    ModelStore(store.root, selftest=selftest).install(path, policy)
    assert places == [str(path)]


# --- permissions ------------------------------------------------------------------------------------------------------


def _permit(path: Path, keys: builders.Signer, target: Path | None = None) -> Path:
    bundle = open_bundle(path)
    document = {"type": "allow-older", "name": bundle.manifest.name, "version": bundle.manifest.version}
    document |= {"digest": bundle.digest, "device": "press-07"}
    permission = target or path.with_name(path.name + ".allow-older")
    permission.write_bytes(msgspec.json.encode(document))
    keys.sign(permission, namespace=PERMISSION_NAMESPACE)
    return permission


def test_a_permission_that_a_power_cut_left_open_lets_the_same_install_try_again(
    store: ModelStore, make: Make, policy: Policy, keys: builders.Signer
) -> None:
    """It was noted and its bundle is not in: once more. When it is in, the permission is used up."""
    store.install(make("2.0.0"), policy)
    old = make("1.0.0")
    permission = _permit(old, keys)
    floors = Floors(StoreFolder(store.root))
    floors.use_permission("activity", hashlib.sha256(permission.read_bytes()).hexdigest(), open_bundle(old).digest)
    assert store.install(old, policy).changed
    assert [each.settled for each in floors.read("activity").used] == [True]
    store.install(make("2.1.0"), policy)
    assert "used before" in _refused(store, old, policy)


def test_a_permission_that_was_noted_for_another_bundle_is_used(
    store: ModelStore, make: Make, policy: Policy, keys: builders.Signer
) -> None:
    """Though that one's install was never settled."""
    store.install(make("2.0.0"), policy)
    old = make("1.0.0")
    permission = _permit(old, keys)
    floors = Floors(StoreFolder(store.root))
    floors.use_permission("activity", hashlib.sha256(permission.read_bytes()).hexdigest(), "0" * 64)
    assert "used before" in _refused(store, old, policy)


def test_a_cut_behind_the_decision_settles_the_permission_with_the_next_install(
    store: ModelStore, make: Make, policy: Policy, keys: builders.Signer
) -> None:
    """The bundle was in already: its permission is no second one."""
    store.install(make("2.0.0"), policy)
    old = make("1.0.0")
    _permit(old, keys)
    store.install(old, policy)
    path = store.root / ".floors" / "activity.json"
    path.write_bytes(path.read_bytes().replace(b'"settled":true', b'"settled":false'))
    store.install(make("2.1.0"), policy)
    assert "used before" in _refused(store, old, policy)


def test_a_permission_may_stand_elsewhere(
    store: ModelStore, make: Make, policy: Policy, keys: builders.Signer, tmp_path: Path
) -> None:
    """As it is named; one that is not there is none."""
    store.install(make("2.0.0"), policy)
    old = make("1.0.0")
    elsewhere = _permit(old, keys, tmp_path / "permission.json")
    assert "above 2.0.0" in _refused(store, old, policy)
    assert "above 2.0.0" in _refused(store, old, replace(policy, allow_older=tmp_path / "missing"))
    assert store.install(old, replace(policy, allow_older=elsewhere)).changed


def test_a_permission_is_not_needed_for_a_newer_bundle_and_not_used_up_by_one(
    store: ModelStore, make: Make, policy: Policy, keys: builders.Signer
) -> None:
    """It stands beside the bundle, and is kept for when it is needed."""
    store.install(make("2.0.0"), policy)
    newer = make("2.1.0")
    _permit(newer, keys)
    store.install(newer, policy)
    assert Floors(StoreFolder(store.root)).read("activity").used == []


def test_a_permission_for_too_large_a_text_is_none(
    store: ModelStore, make: Make, policy: Policy, keys: builders.Signer
) -> None:
    """Four kilobytes are more than any needs."""
    store.install(make("2.0.0"), policy)
    for size, is_taken in ((4097, False), (4096, True)):
        old = make("1.0.0")
        bundle = open_bundle(old)
        document = {"type": "allow-older", "name": "activity", "version": "1.0.0", "digest": bundle.digest}
        document |= {"device": "press-07", "nonce": ""}
        document["nonce"] = "x" * (size - len(msgspec.json.encode(document)))
        permission = old.with_name(old.name + ".allow-older")
        permission.write_bytes(msgspec.json.encode(document))
        assert permission.stat().st_size == size
        keys.sign(permission, namespace=PERMISSION_NAMESPACE)
        if is_taken:
            assert store.install(old, policy).changed
        else:
            _refused(store, old, policy)


# --- staging and shadows ----------------------------------------------------------------------------------------------


def test_a_staged_bundle_does_not_raise_the_floor_before_it_serves(
    store: ModelStore, make: Make, policy: Policy
) -> None:
    """It may be left where it is, and a version between the two installed; its activation raises it."""
    store.install(make("1.0.0"), policy)
    store.install(make("1.5.0"), replace(policy, activate=False))
    floors = Floors(StoreFolder(store.root))
    assert floors.read("activity").version == "1.0.0"
    store.activate("activity", "1.5.0")
    assert floors.read("activity").version == "1.5.0"


def test_the_first_bundle_of_a_name_serves_though_it_was_to_be_staged(
    store: ModelStore, make: Make, policy: Policy
) -> None:
    """There is nothing that could serve instead."""
    assert store.install(make("1.0.0"), replace(policy, activate=False)).slot.state == "probation"


def test_a_shadow_needs_an_active_bundle_and_its_shape(
    store: ModelStore, make: Make, policy: Policy, keys: builders.Signer, tmp_path: Path
) -> None:
    """Otherwise there is nothing to compare it with."""
    beside = replace(policy, shadow=True)
    assert "expected an active activity to run beside, found none" in _refused(store, make("1.0.0"), beside)
    store.install(make("1.0.0"), policy)
    odd = builders.classification(name="activity", version="1.1.0", labels=("a", "b", "c", "d")).save(tmp_path / "o")
    keys.sign(odd)
    assert "cannot run beside 1.0.0: expected labels of" in _refused(store, odd, beside)
    done = store.install(make("1.2.0"), beside)
    assert done.slot.state == "staged"
    found = store.shadow("activity")
    assert found is not None
    assert found.version == "1.2.0"
    assert store.slot("activity").version == "1.0.0"
    store.install(make("1.3.0"), replace(policy, activate=False))
    found = store.shadow("activity")
    assert found is not None
    assert found.version == "1.2.0"


@pytest.mark.parametrize("is_noted", [True, False], ids=["noted", "of an earlier release"])
def test_a_shadow_runs_beside_a_bundle_whose_key_has_expired_since(
    store: ModelStore, make: Make, policy: Policy, keys: builders.Signer, tmp_path: Path, *, is_noted: bool
) -> None:
    """The key was good on the day when that bundle came, as the state or the file of its signature says."""
    store.install(make("1.0.0"), policy)
    then = time.time() - 864_000.0
    slot = store.slot("activity")
    state = slot.path.with_name("state.json")
    state.write_text(re.sub(r'"admitted":[0-9.]+', f'"admitted":{then if is_noted else 0.0}', state.read_text()))
    if not is_noted:
        os.utime(slot.path.with_name(slot.path.name + ".sig"), (then, then))
    other = builders.signer(tmp_path / "other", "other@example")
    expired = time.strftime("%Y%m%d", time.gmtime(time.time() - 172_800.0))
    both = tmp_path / "both"
    both.write_text(keys.allowed.read_text().replace(" ", f' valid-before="{expired}" ', 1) + other.allowed.read_text())
    _refused(store, make("1.1.0"), replace(policy, allowed_signers=both, shadow=True), SignatureError)
    candidate = make("1.1.0")
    other.sign(candidate)
    assert store.install(candidate, replace(policy, allowed_signers=both, shadow=True)).slot.state == "staged"
    both.write_text(other.allowed.read_text())
    _refused(store, candidate, replace(policy, allowed_signers=both, shadow=True), SignatureError)


def test_a_shadow_runs_beside_a_bundle_that_was_let_in_unsigned(store: ModelStore, make: Make, policy: Policy) -> None:
    """No signature is asked of it afterwards."""
    path = make("1.0.0")
    path.with_name(path.name + ".sig").unlink()
    store.install(path, replace(policy, unsigned="allow"))
    assert store.install(make("1.1.0"), replace(policy, shadow=True)).slot.state == "staged"


@pytest.mark.parametrize("activate", [True, False])
def test_an_install_removes_the_files_that_no_decision_names_any_more(
    store: ModelStore, make: Make, policy: Policy, *, activate: bool
) -> None:
    """Otherwise each update would cost the disk a bundle for ever."""
    for minor in range(5):
        store.install(make(f"1.{minor}.0"), replace(policy, activate=activate))
        files = {path.name for path in (store.root / "activity").iterdir()} - {"state.json"}
        named = {entry.digest for entry in store.entries("activity")}
        assert files == {f"{digest}.onnx{suffix}" for digest in named for suffix in ("", ".sig")}
    assert len(store.entries("activity")) < 5


def test_each_part_of_the_shape_is_compared() -> None:
    """Task, channels, window, labels, targets, tensors and detections; the first that differs is named."""

    def made(**parts: Any) -> Manifest:
        whole = {
            "task": "classification",
            "channel_names": ("x", "y"),
            "shape": (1, 2, 3),
            "labels": ("a", "b"),
            "targets": (SimpleNamespace(name="t"),),
            "tensors": None,
            "detections": None,
        } | parts
        return SimpleNamespace(  # type: ignore[return-value] # the parts that are compared
            task=whole["task"],
            channel_names=whole["channel_names"],
            input=SimpleNamespace(tensor_shape=whole["shape"]),
            output=SimpleNamespace(
                labels=whole["labels"],
                targets=whole["targets"],
                tensors=whole["tensors"],
                detections=whole["detections"],
            ),
        )

    assert shadow_misfit(made(), made()) is None
    for part, other, expected in (
        ("task", "regression", "expected a task of classification, found regression"),
        ("channel_names", ("x", "z"), "expected channels of x, y, found x, z"),
        ("shape", (1, 2, 4), "expected a window of 1, 2, 3, found 1, 2, 4"),
        ("labels", (), "expected labels of a, b, found none"),
        ("targets", (SimpleNamespace(name="u"),), "expected targets of t, found u"),
        ("tensors", ("m",), "expected tensors of None, found m"),
        ("detections", ("d",), "expected detections of None, found d"),
    ):
        assert shadow_misfit(made(), made(**{part: other})) == expected
    long = shadow_misfit(made(), made(labels=tuple("abcdefgh" * 40)))
    assert long is not None
    assert len(long.partition("found ")[2]) == 100
