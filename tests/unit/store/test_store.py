import fcntl
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from edge_runtime.bundle.open import open_bundle
from edge_runtime.bundle.selftest import Budget
from edge_runtime.bundle.signature import require_signature
from edge_runtime.errors import BundleError, CommandError, SignatureError
from edge_runtime.store.install import Policy
from edge_runtime.store.permission import PERMISSION_NAMESPACE
from edge_runtime.store.store import MAX_STARTS, ModelStore
from tests.support import builders

Make = Callable[..., Path]


def states(store: ModelStore, name: str = "activity") -> list[tuple[str, str]]:
    """Version and state of every entry of a name."""
    return [(entry.version, entry.state) for entry in store.entries(name)]


def prove(store: ModelStore, name: str = "activity") -> None:
    """What a daemon does with a bundle that behaves."""
    store.confirm(name, store.begin(name).digest)


def test_an_empty_store_lists_nothing(store: ModelStore) -> None:
    """A device without models is no error."""
    assert store.entries() == []
    assert store.names() == []
    assert store.stamp("activity") == (0, 0, 0)


def test_a_first_bundle_is_active_on_probation(store: ModelStore, make: Make, policy: Policy) -> None:
    """What has just been installed serves at once, and has to prove itself."""
    path = make("1.0.0")
    done = store.install(path, policy)
    assert done.changed
    assert states(store) == [("1.0.0", "probation")]
    assert store.active("activity").read_bytes() == path.read_bytes()
    assert open_bundle(store.active("activity")).digest == done.slot.digest


def test_a_confirmed_bundle_is_active(store: ModelStore, make: Make, policy: Policy) -> None:
    """A bundle that served well is active, without reservation."""
    store.install(make("1.0.0"), policy)
    prove(store)
    assert states(store) == [("1.0.0", "active")]


def test_an_upgrade_keeps_the_one_before(store: ModelStore, make: Make, policy: Policy) -> None:
    """There is always a bundle to go back to, and older ones are removed."""
    for version in ("1.0.0", "1.1.0", "1.2.0"):
        store.install(make(version), policy)
        prove(store)
    assert states(store) == [("1.2.0", "active"), ("1.1.0", "previous")]
    assert len(list((store.root / "activity").glob("*.onnx"))) == 2


def test_without_a_daemon_the_previous_bundle_is_the_one_installed_before(
    store: ModelStore, make: Make, policy: Policy
) -> None:
    """Where no probation is watched, a rollback goes back by one install."""
    for version in ("1.0.0", "1.1.0", "1.2.0"):
        store.install(make(version), policy)
    assert store.rollback("activity").version == "1.1.0"


def test_an_install_over_an_unproven_bundle_keeps_the_last_proven_one(
    store: ModelStore, make: Make, policy: Policy
) -> None:
    """Two doubtful bundles in a row do not push the good one out."""
    store.install(make("1.0.0"), policy)
    prove(store)
    store.install(make("1.1.0"), policy)
    store.begin("activity")
    store.install(make("1.2.0"), policy)
    assert states(store) == [("1.2.0", "probation"), ("1.0.0", "previous")]


def test_installing_the_active_bundle_again_succeeds(store: ModelStore, make: Make, policy: Policy) -> None:
    """A flash that is repeated changes nothing, and is no failure."""
    path = make("1.0.0")
    store.install(path, policy)
    before = store.stamp("activity")
    assert not store.install(path, policy).changed
    assert store.stamp("activity") == before


def test_the_stamp_tells_a_change_with_one_stat(store: ModelStore, make: Make, policy: Policy) -> None:
    """A daemon notices a new bundle by looking at one file's metadata."""
    store.install(make("1.0.0"), policy)
    before = store.stamp("activity")
    assert store.stamp("activity") == before
    store.install(make("1.1.0"), policy)
    assert store.stamp("activity") != before


# -- refusals ----------------------------------------------------------------------------------------------------------


def refused(store: ModelStore, path: Path, policy: Policy, error: type[Exception] = BundleError) -> str:
    """Install, expect a refusal, and see that nothing has changed."""
    before = [(entry.version, entry.state, entry.digest) for entry in store.entries()]
    with pytest.raises(error) as caught:
        store.install(path, policy)
    assert [(entry.version, entry.state, entry.digest) for entry in store.entries()] == before
    assert not (store.root / ".staging").exists()
    message = str(caught.value)
    assert "\n" not in message
    assert ".staging" not in message
    return message


def test_an_unsigned_bundle_is_refused(store: ModelStore, make: Make, policy: Policy) -> None:
    """Without BUNDLE.sig nothing gets in, and the message names the file that is missing."""
    path = make("1.0.0")
    path.with_name(path.name + ".sig").unlink()
    assert f"{path.name}.sig" in refused(store, path, policy, SignatureError)


def test_an_unsigned_bundle_needs_an_explicit_setting(store: ModelStore, make: Make, policy: Policy) -> None:
    """A workshop device may take unsigned bundles, but a bad signature is refused there too."""
    path = make("1.0.0")
    signature = path.with_name(path.name + ".sig")
    good = signature.read_bytes()
    signature.write_bytes(b"nonsense")
    open_policy = replace(policy, unsigned="allow")
    refused(store, path, open_policy, SignatureError)
    signature.unlink()
    assert store.install(path, open_policy).changed
    assert good


def test_a_tampered_bundle_is_refused_before_it_is_parsed(
    store: ModelStore, make: Make, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parser is never entered for a file whose signature is wrong."""
    path = make("1.0.0")
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    parsed: list[Path] = []
    monkeypatch.setattr("edge_runtime.store.install.check_bundle", lambda path, *_, **__: parsed.append(path))
    assert "changed after it was signed" in refused(store, path, policy, SignatureError)
    assert parsed == []


def test_an_older_version_is_refused(store: ModelStore, make: Make, policy: Policy) -> None:
    """A bundle that was good last year does not come back by itself."""
    store.install(make("1.1.0"), policy)
    assert "above 1.1.0, found 1.0.9" in refused(store, make("1.0.9"), policy)


def test_the_same_version_with_other_content_is_refused(store: ModelStore, make: Make, policy: Policy) -> None:
    """One version is one content."""
    store.install(make("1.1.0"), policy)
    assert "found 1.1.0 of other content" in refused(store, make("1.1.0", seed=99), policy)


def test_the_floor_outlives_the_slots(store: ModelStore, make: Make, policy: Policy) -> None:
    """Removing a model's folder, or restoring an old backup of it, does not let older versions in."""
    store.install(make("2.0.0"), policy)
    shutil.rmtree(store.root / "activity")
    assert "above 2.0.0" in refused(store, make("1.0.0"), policy)
    assert store.install(make("2.0.0"), policy).changed


def test_a_rollback_does_not_lower_the_floor(store: ModelStore, make: Make, policy: Policy) -> None:
    """After going back, the next install must still be newer than what was there."""
    for version in ("1.0.0", "2.0.0"):
        store.install(make(version), policy)
    store.rollback("activity")
    assert "above 2.0.0" in refused(store, make("1.5.0"), policy)
    assert store.install(make("2.0.1"), policy).changed


def test_a_damaged_floor_falls_back_on_what_is_installed(store: ModelStore, make: Make, policy: Policy) -> None:
    """A floor that a bad disk destroyed is replaced by the versions that are here."""
    store.install(make("1.0.0"), policy)
    store.install(make("2.0.0"), policy)
    (store.root / ".floors" / "activity.json").write_bytes(b"\0" * 40)
    assert "above 2.0.0" in refused(store, make("1.5.0"), policy)


def test_a_bundle_for_another_class_of_device_is_refused(
    store: ModelStore, tmp_path: Path, keys: builders.Signer, policy: Policy
) -> None:
    """A bundle made for a Pi 5 does not get onto a Zero that says what it is."""
    draft = builders.classification()
    draft.manifest["target_device"] = "pi5"
    path = draft.save(tmp_path / "a.onnx")
    keys.sign(path)
    assert "found one for pi5" in refused(store, path, replace(policy, device_class="zero2w"))
    assert store.install(path, replace(policy, device_class="pi5")).changed


def test_a_bundle_that_fails_its_self_test_is_refused(tmp_path: Path, make: Make, policy: Policy) -> None:
    """The golden vectors run in a child before anything changes; too slow is one of the reasons."""
    store = ModelStore(tmp_path / "models")
    store.install(make("1.0.0"), policy)
    slow = replace(policy, budget=Budget(latency_ms=1e-9))
    assert "ms a window" in refused(store, make("1.1.0"), slow)
    assert store.install(make("1.1.0"), policy).measured is not None


def test_a_name_that_would_leave_the_store_stays_inside(
    store: ModelStore, tmp_path: Path, keys: builders.Signer, policy: Policy
) -> None:
    """A name with dots, blanks or letters of other alphabets is a name of a folder in the store, and nothing else."""
    for name in ("..", ".staging", "a b", "Türe", "%2e"):
        path = builders.classification(name=name).save(tmp_path / "a.onnx")
        keys.sign(path)
        store.install(path, policy)
        assert store.active(name).parent.parent == store.root
    assert store.names() == sorted(
        ["..", ".staging", "a b", "Türe", "%2e"], key=lambda name: store.active(name).parent.name
    )


def test_an_endless_name_is_refused(store: ModelStore, make: Make, policy: Policy) -> None:
    """A name that no file system takes is refused in words."""
    assert "at most 230" in refused(store, make("1.0.0", name="x" * 240), policy)


def test_two_installs_at_once_are_told_apart(store: ModelStore, make: Make, policy: Policy) -> None:
    """The second one says that the first is still at work, and changes nothing."""
    store.install(make("1.0.0"), policy)
    with (store.root / ".install.lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(CommandError, match="another install is under way"):
            store.install(make("1.1.0"), policy)
    assert store.install(make("1.1.0"), policy).changed


def test_a_clock_that_was_never_set_refuses_nothing(
    store: ModelStore, make: Make, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In 1970 a good bundle installs as it does today."""
    monkeypatch.setattr(time, "time", lambda: 100.0)
    assert store.install(make("1.0.0"), policy).changed


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to become another user")
def test_a_store_that_cannot_be_written_says_so(store: ModelStore, make: Make, policy: Policy) -> None:
    """For a user without the right to install, the message names the owner."""
    store.install(make("1.0.0"), policy)
    path = make("1.1.0")
    os.seteuid(65534)
    try:
        with pytest.raises(CommandError, match="permission denied"):
            store.install(path, policy)
    finally:
        os.seteuid(0)
    assert store.install(path, policy).changed


# -- permissions -------------------------------------------------------------------------------------------------------


def permit(path: Path, keys: builders.Signer, namespace: str = PERMISSION_NAMESPACE, **changes: str) -> Path:
    """Write and sign BUNDLE.allow-older."""
    bundle = open_bundle(path)
    document = {
        "type": "allow-older",
        "name": bundle.manifest.name,
        "version": bundle.manifest.version,
        "digest": bundle.digest,
        "device": "press-07",
        "nonce": "1",
        **changes,
    }
    permission = path.with_name(path.name + ".allow-older")
    permission.write_bytes(msgspec.json.encode(document))
    keys.sign(permission, namespace=namespace)
    return permission


def test_a_signed_permission_lets_one_older_bundle_in(
    store: ModelStore, make: Make, policy: Policy, keys: builders.Signer
) -> None:
    """An emergency is possible, but only with a signature, and only once."""
    store.install(make("1.0.0"), policy)
    store.install(make("2.0.0"), policy)
    store.install(make("2.1.0"), policy)
    old = make("1.0.0")
    permit(old, keys)
    assert store.install(old, policy).changed
    assert states(store)[0] == ("1.0.0", "probation")
    store.install(make("2.2.0"), policy)
    store.install(make("2.3.0"), policy)
    assert "used before" in refused(store, old, policy)
    permit(old, keys, nonce="2")
    assert store.install(old, policy).changed


@pytest.mark.parametrize(
    "change", [{"device": "press-08"}, {"digest": "0" * 64}, {"version": "0.9.0"}, {"name": "other"}, {"type": "any"}]
)
def test_a_permission_for_something_else_is_none(
    store: ModelStore, make: Make, policy: Policy, keys: builders.Signer, change: dict[str, str]
) -> None:
    """A permission names the one bundle and the one device that it is for."""
    store.install(make("2.0.0"), policy)
    old = make("1.0.0")
    permit(old, keys, **change)
    assert "allow-older" in refused(store, old, policy)


def test_a_permission_that_a_bundle_key_signed_for_another_purpose_is_none(
    store: ModelStore, make: Make, policy: Policy, keys: builders.Signer
) -> None:
    """A signature for a bundle does not make a permission."""
    store.install(make("2.0.0"), policy)
    old = make("1.0.0")
    permit(old, keys, namespace="edge-bundle")
    assert "for another purpose" in refused(store, old, policy, SignatureError)


def test_an_unsigned_permission_is_none(store: ModelStore, make: Make, policy: Policy, keys: builders.Signer) -> None:
    """Not even a device that takes unsigned bundles takes an unsigned permission."""
    store.install(make("2.0.0"), policy)
    old = make("1.0.0")
    permission = permit(old, keys)
    permission.with_name(permission.name + ".sig").unlink()
    refused(store, old, replace(policy, unsigned="allow"), SignatureError)


# -- by hand -----------------------------------------------------------------------------------------------------------


def test_a_rollback_and_the_way_forward_again(store: ModelStore, make: Make, policy: Policy) -> None:
    """What was rolled back stays here, staged, until it is activated again."""
    for version in ("1.0.0", "1.1.0"):
        store.install(make(version), policy)
        prove(store)
    assert store.rollback("activity").version == "1.0.0"
    assert states(store) == [("1.0.0", "active"), ("1.1.0", "staged")]
    assert store.activate("activity", "1.1.0").version == "1.1.0"
    assert states(store) == [("1.1.0", "active"), ("1.0.0", "previous")]


def test_a_rollback_without_a_previous_bundle_says_so(store: ModelStore, make: Make, policy: Policy) -> None:
    """The only bundle there is stays active."""
    store.install(make("1.0.0"), policy)
    with pytest.raises(CommandError, match="expected a previous bundle"):
        store.rollback("activity")
    with pytest.raises(CommandError, match="found nothing: install it first"):
        store.rollback("nothing")
    assert states(store) == [("1.0.0", "probation")]


def test_a_staged_bundle_waits_until_it_is_activated(store: ModelStore, make: Make, policy: Policy) -> None:
    """`--stage` checks and keeps a bundle without switching to it."""
    store.install(make("1.0.0"), policy)
    done = store.install(make("1.1.0"), replace(policy, activate=False))
    assert done.slot.state == "staged"
    assert states(store) == [("1.0.0", "probation"), ("1.1.0", "staged")]
    store.activate("activity", "1.1.0")
    assert states(store) == [("1.1.0", "probation"), ("1.0.0", "previous")]


def test_a_staged_bundle_that_was_overtaken_is_not_activated(store: ModelStore, make: Make, policy: Policy) -> None:
    """Staging is no way around the floor."""
    store.install(make("1.0.0"), policy)
    store.install(make("1.1.0"), replace(policy, activate=False))
    store.install(make("1.2.0"), policy)
    with pytest.raises(CommandError, match=r"1\.2\.0 or above"):
        store.activate("activity", "1.1.0")


def test_an_unknown_version_names_those_that_are_here(store: ModelStore, make: Make, policy: Policy) -> None:
    """A wrong version number is answered with the right ones."""
    store.install(make("1.0.0"), policy)
    store.install(make("1.1.0"), policy)
    with pytest.raises(CommandError, match=r"\(1\.1\.0, 1\.0\.0\), found 3\.0\.0"):
        store.activate("activity", "3.0.0")


def test_a_damaged_previous_bundle_is_not_gone_back_to(store: ModelStore, make: Make, policy: Policy) -> None:
    """A file that the disk spoiled is found out before it is made active."""
    store.install(make("1.0.0"), policy)
    store.install(make("1.1.0"), policy)
    previous = next(entry for entry in store.entries("activity") if entry.state == "previous")
    (store.root / "activity" / f"{previous.digest}.onnx").write_bytes(b"spoiled")
    with pytest.raises(CommandError, match="found it damaged"):
        store.rollback("activity")
    assert states(store)[0] == ("1.1.0", "probation")


# -- probation ---------------------------------------------------------------------------------------------------------


def test_a_bundle_that_fails_on_probation_gives_way_to_the_one_before(
    store: ModelStore, make: Make, policy: Policy
) -> None:
    """The device is back on the old bundle, says why, and does not take the bad one again."""
    store.install(make("1.0.0"), policy)
    prove(store)
    bad = make("1.1.0")
    store.install(bad, policy)
    digest = store.begin("activity").digest
    back = store.fail("activity", digest, "NaN in 3 of 40 windows")
    assert (back.version, back.state) == ("1.0.0", "active")
    assert states(store) == [("1.0.0", "active"), ("1.1.0", "rejected")]
    assert "NaN in 3 of 40 windows" in refused(store, bad, policy)
    assert store.install(bad, replace(policy, rejected="retry")).changed
    assert states(store) == [("1.1.0", "probation"), ("1.0.0", "previous")]


def test_a_bundle_that_was_replaced_meanwhile_can_neither_fail_nor_be_confirmed(
    store: ModelStore, make: Make, policy: Policy
) -> None:
    """A late verdict about a bundle that is not active any more changes nothing."""
    store.install(make("1.0.0"), policy)
    old = store.slot("activity").digest
    store.install(make("1.1.0"), policy)
    store.fail("activity", old, "too late")
    store.confirm("activity", old)
    assert states(store) == [("1.1.0", "probation"), ("1.0.0", "previous")]


def test_a_crash_loop_ends_on_the_bundle_before(store: ModelStore, make: Make, policy: Policy) -> None:
    """A bundle that takes the daemon down with it is given up after a few starts, without anybody's help."""
    store.install(make("1.0.0"), policy)
    prove(store)
    store.install(make("1.1.0"), policy)
    for _ in range(MAX_STARTS):
        assert store.begin("activity").version == "1.1.0"
    slot = store.begin("activity")
    assert (slot.version, slot.state) == ("1.0.0", "active")
    rejected = store.entries("activity")[-1]
    assert rejected.state == "rejected"
    assert f"started {MAX_STARTS} times" in rejected.why


def test_clean_restarts_are_no_crash_loop(store: ModelStore, make: Make, policy: Policy) -> None:
    """A daemon that is restarted by hand during a probation does not count against the bundle."""
    store.install(make("1.0.0"), policy)
    prove(store)
    store.install(make("1.1.0"), policy)
    for _ in range(3 * MAX_STARTS):
        slot = store.begin("activity")
        assert slot.version == "1.1.0"
        store.pause("activity", slot.digest)


def test_a_doubtful_bundle_is_kept_where_there_is_no_other(store: ModelStore, make: Make, policy: Policy) -> None:
    """A first bundle that fails stays, since there is nothing better, and the reason stands beside it."""
    store.install(make("1.0.0"), policy)
    slot = store.fail("activity", store.begin("activity").digest, "slow")
    assert (slot.version, slot.why) == ("1.0.0", "slow")
    for _ in range(3 * MAX_STARTS):
        assert store.begin("activity").version == "1.0.0"


def test_a_failed_bundle_gives_way_to_the_last_proven_one(store: ModelStore, make: Make, policy: Policy) -> None:
    """Of two bundles before it, the one that proved itself is gone back to."""
    store.install(make("1.0.0"), policy)
    prove(store)
    store.install(make("1.1.0"), policy)
    store.install(make("1.2.0"), policy)
    assert states(store) == [("1.2.0", "probation"), ("1.1.0", "previous"), ("1.0.0", "previous")]
    assert store.fail("activity", store.begin("activity").digest, "bad").version == "1.0.0"


# -- damage ------------------------------------------------------------------------------------------------------------


def test_a_damaged_active_bundle_gives_way_to_the_one_before(store: ModelStore, make: Make, policy: Policy) -> None:
    """A daemon that starts on a spoiled file serves with the previous one."""
    for version in ("1.0.0", "1.1.0"):
        store.install(make(version), policy)
        prove(store)
    store.active("activity").write_bytes(b"spoiled")
    assert store.begin("activity").version == "1.0.0"


def test_a_damaged_active_bundle_can_be_installed_again(store: ModelStore, make: Make, policy: Policy) -> None:
    """The very same file mends the store."""
    path = make("1.0.0")
    store.install(path, policy)
    store.active("activity").write_bytes(b"spoiled")
    with pytest.raises(BundleError, match="damaged"):
        store.begin("activity")
    assert store.install(path, policy).changed
    assert store.begin("activity").version == "1.0.0"


@pytest.mark.parametrize("damage", [b"", b"{", b"\0" * 200, b"[" * 100_000, b'{"format": 1}'])
def test_a_damaged_state_is_rebuilt_from_the_bundles(
    store: ModelStore, make: Make, policy: Policy, damage: bytes
) -> None:
    """A state file that a bad disk destroyed costs no service: the newest bundle is active."""
    store.install(make("1.0.0"), policy)
    store.install(make("1.1.0"), policy)
    (store.root / "activity" / "state.json").write_bytes(damage)
    assert states(store) == [("1.1.0", "probation"), ("1.0.0", "previous")]
    assert store.begin("activity").version == "1.1.0"
    assert store.install(make("1.2.0"), policy).changed


def test_the_active_bundle_is_signed_anew_by_installing_it_again(
    store: ModelStore, make: Make, policy: Policy, keys: builders.Signer, tmp_path: Path
) -> None:
    """Before a key is revoked, what it signed gets the signature of its successor; the model itself is not touched."""
    path = make("1.0.0")
    store.install(path, policy)
    successor = builders.signer(tmp_path / "successor", "next@example")
    both = tmp_path / "both"
    both.write_text(keys.allowed.read_text() + successor.allowed.read_text())
    successor.sign(path)
    assert not store.install(path, replace(policy, allowed_signers=both)).changed
    assert require_signature(store.active("activity"), successor.allowed) == "next@example"
