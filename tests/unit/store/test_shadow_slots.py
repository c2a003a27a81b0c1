"""A candidate that runs beside the active bundle: how it gets into the store, and how it leaves."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from edge_runtime.errors import BundleError, CommandError, SignatureError
from edge_runtime.store.install import Policy
from edge_runtime.store.store import ModelStore
from tests.faults.slots.operations import quick
from tests.support import builders

Make = Callable[..., Path]


@pytest.fixture
def beside(policy: Policy) -> Policy:
    """What `models install --shadow` asks for."""
    return replace(policy, shadow=True)


def standing(store: ModelStore) -> list[tuple[str, str, bool]]:
    """Version, state and whether it is the shadow, of every entry."""
    return [(entry.version, entry.state, entry.shadow) for entry in store.entries("activity")]


@pytest.fixture
def shadowed(store: ModelStore, make: Make, policy: Policy, beside: Policy) -> ModelStore:
    """Version 1.0.0 is proven, and 1.1.0 its shadow."""
    store.install(make("1.0.0"), policy)
    store.confirm("activity", store.begin("activity").digest)
    store.install(make("1.1.0"), beside)
    return store


def test_a_shadow_is_staged_and_the_active_one_stays(shadowed: ModelStore, make: Make) -> None:
    """Exactly one bundle is active, the shadow is listed as staged, and both outlive a restart."""
    assert standing(shadowed) == [("1.0.0", "active", False), ("1.1.0", "staged", True)]
    again = ModelStore(shadowed.root, selftest=quick)
    found = again.shadow("activity")
    assert found is not None
    assert (found.version, found.state) == ("1.1.0", "staged")
    assert found.path.read_bytes() == make("1.1.0").read_bytes()
    assert again.begin("activity").version == "1.0.0"


def test_a_shadow_is_promoted_to_probation(shadowed: ModelStore) -> None:
    """`promote` is an activation like any other: probation, and the bundle before it to go back to."""
    assert shadowed.promote("activity").state == "probation"
    assert standing(shadowed) == [("1.1.0", "probation", False), ("1.0.0", "previous", False)]
    assert shadowed.shadow("activity") is None


def test_a_shadow_is_activated_by_its_version(shadowed: ModelStore) -> None:
    """`activate NAME VERSION` promotes it as well."""
    shadowed.activate("activity", "1.1.0")
    assert standing(shadowed)[0] == ("1.1.0", "probation", False)


def test_installing_it_without_shadow_promotes_it(shadowed: ModelStore, make: Make, policy: Policy) -> None:
    """The same flash without --shadow makes it active, on one device or on all."""
    shadowed.install(make("1.1.0"), policy)
    assert standing(shadowed) == [("1.1.0", "probation", False), ("1.0.0", "previous", False)]


def test_a_withdrawn_shadow_stays_staged(shadowed: ModelStore) -> None:
    """Whoever has seen enough ends it; its bundle is still there."""
    shadowed.withdraw("activity")
    assert standing(shadowed) == [("1.0.0", "active", False), ("1.1.0", "staged", False)]
    for order in (shadowed.withdraw, shadowed.promote):
        with pytest.raises(CommandError, match="expected a shadow, found none"):
            order("activity")


def test_a_newer_shadow_takes_the_place_of_the_older(shadowed: ModelStore, make: Make, beside: Policy) -> None:
    """There is one shadow a name."""
    shadowed.install(make("1.2.0"), beside)
    assert standing(shadowed) == [
        ("1.0.0", "active", False),
        ("1.2.0", "staged", True),
        ("1.1.0", "staged", False),
    ]


def test_staging_others_does_not_end_a_shadow(shadowed: ModelStore, make: Make, policy: Policy) -> None:
    """Of what is staged the oldest goes, but the shadow stays."""
    for version in ("1.2.0", "1.3.0", "1.4.0"):
        shadowed.install(make(version), replace(policy, activate=False))
    assert standing(shadowed) == [
        ("1.0.0", "active", False),
        ("1.4.0", "staged", False),
        ("1.1.0", "staged", True),
    ]
    assert shadowed.shadow("activity").path.exists()  # type: ignore[union-attr]


def test_a_shadow_that_failed_is_remembered(shadowed: ModelStore, make: Make, policy: Policy, beside: Policy) -> None:
    """The active bundle stays, and that digest is taken again neither as a shadow nor as the active one."""
    found = shadowed.shadow("activity")
    assert found is not None
    shadowed.fail_shadow("activity", "another", "late news")
    assert shadowed.shadow("activity") is not None
    shadowed.fail_shadow("activity", found.digest, "crashed")
    assert standing(shadowed) == [("1.0.0", "active", False), ("1.1.0", "rejected", False)]
    assert shadowed.entries("activity")[1].why == "as a shadow: crashed"
    for asked in (policy, beside):
        with pytest.raises(BundleError, match=r"has not failed here, found one that has \(as a shadow: crashed"):
            shadowed.install(make("1.1.0"), asked)


def test_a_shadow_needs_an_active_bundle(store: ModelStore, make: Make, beside: Policy) -> None:
    """There is nothing to compare the first bundle of a name with."""
    with pytest.raises(BundleError, match="expected an active activity to run beside, found none"):
        store.install(make("1.0.0"), beside)
    assert store.entries() == []


def test_the_rules_of_signature_and_version_hold_for_a_shadow(shadowed: ModelStore, make: Make, beside: Policy) -> None:
    """Unsigned, tampered and older bundles do not get in by the side door."""
    unsigned = make("1.2.0")
    signature = unsigned.with_name(unsigned.name + ".sig")
    good = signature.read_bytes()
    signature.unlink()
    with pytest.raises(SignatureError, match="found none"):
        shadowed.install(unsigned, beside)
    signature.write_bytes(good)
    unsigned.write_bytes(unsigned.read_bytes() + b"\0")
    with pytest.raises(SignatureError, match="changed after it was signed"):
        shadowed.install(unsigned, beside)
    with pytest.raises(BundleError, match=r"above 1\.0\.0, found 0\.9\.0"):
        shadowed.install(make("0.9.0"), beside)
    assert standing(shadowed)[1] == ("1.1.0", "staged", True)


def test_a_shadow_that_was_overtaken_is_not_promoted(shadowed: ModelStore, make: Make, policy: Policy) -> None:
    """Being a shadow is no way around the floor."""
    shadowed.install(make("1.2.0"), policy)
    with pytest.raises(CommandError, match=r"1\.2\.0 or above"):
        shadowed.promote("activity")


@pytest.mark.parametrize(
    ("draft", "words"),
    [
        (builders.classification(version="1.1.0", length=3), "a window of 1, 2, found 3, 2"),
        (
            builders.classification(version="1.1.0", labels=("low", "mid", "high")),
            "labels of low, high, found low, mid",
        ),
        (builders.regression(name="activity", version="1.1.0"), "a task of classification, found regression"),
    ],
)
def test_what_cannot_be_compared_is_no_shadow(
    store: ModelStore,
    make: Make,
    policy: Policy,
    keys: builders.Signer,
    tmp_path: Path,
    draft: builders.Draft,
    words: str,
) -> None:
    """A shadow takes the windows of the active one and answers in its words; else the install says what differs."""
    store.install(make("1.0.0"), policy)
    path = draft.save(tmp_path / "other.onnx")
    keys.sign(path)
    with pytest.raises(BundleError, match=f"cannot run beside 1.0.0: expected {words}"):
        store.install(path, replace(policy, shadow=True))
    assert [state for _, state, _ in standing(store)] == ["probation"]
