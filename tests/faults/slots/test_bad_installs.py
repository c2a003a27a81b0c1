"""Bundles that must not get in, by the thousand, and disks that do not let them."""

import os
import random
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from edge_runtime.bundle.selftest import Budget
from edge_runtime.errors import BundleError, CommandError, EdgeError
from edge_runtime.store.install import Policy
from edge_runtime.store.store import ModelStore
from tests.faults.slots.operations import quick
from tests.support import builders
from tests.support.small_disk import small_disk

# The long form takes a sixteenth of a second for each.
ATTEMPTS = 10_000 if os.environ.get("EDGE_TORTURE") == "long" else 300
SEED = 20261123


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> builders.Signer:
    """The key that the device trusts."""
    return builders.signer(tmp_path_factory.mktemp("keys"))


@pytest.mark.timeout(3600)
def test_no_changed_bundle_or_signature_ever_gets_in(tmp_path: Path, keys: builders.Signer) -> None:
    """Any change of the bundle or its signature, and any older bundle, is refused, also as a shadow."""
    store = ModelStore(tmp_path / "models", selftest=quick)
    policy = Policy(allowed_signers=keys.allowed)
    files = {}
    for version in ("1.0.0", "2.0.0", "3.0.0"):
        path = builders.classification(version=version, seed=int(version[0])).save(tmp_path / f"{version}.onnx")
        keys.sign(path)
        files[version] = (path.read_bytes(), path.with_name(path.name + ".sig").read_bytes())
    store.install(tmp_path / "2.0.0.onnx", policy)
    active = store.slot("activity").digest
    rng = random.Random(SEED)
    target = tmp_path / "attempt.onnx"
    signature = tmp_path / "attempt.onnx.sig"
    accepted = []
    refusals: set[str] = set()
    for number in range(ATTEMPTS):
        beside = bool(rng.randrange(2))
        bundle, sig = files["3.0.0"]
        match rng.randrange(8):
            case 0 | 1 | 2:
                bundle = _flipped(bundle, rng)
            case 3:
                bundle = bundle[: rng.randrange(len(bundle))]
            case 4:
                bundle += rng.randbytes(rng.randint(1, 64))
            case 5:
                sig = _flipped(sig, rng)
            case 6:
                sig = files[rng.choice(("1.0.0", "2.0.0"))][1]
            case _:
                bundle, sig = files["1.0.0"]
        target.write_bytes(bundle)
        signature.write_bytes(sig)
        try:
            store.install(target, replace(policy, shadow=beside))
            accepted.append(number)
        except EdgeError as error:
            refusals.add(str(error))
    print(f"{ATTEMPTS} attempts, {len(accepted)} accepted, {len(refusals)} different refusals")  # noqa: T201 - to read
    assert accepted == []
    assert [text for text in refusals if not text.isprintable()] == []
    assert store.slot("activity").digest == active
    assert [entry.state for entry in store.entries()] == ["probation"]


def _flipped(data: bytes, rng: random.Random) -> bytes:
    spoiled = bytearray(data)
    spoiled[rng.randrange(len(spoiled))] ^= 1 << rng.randrange(8)
    return bytes(spoiled)


@pytest.mark.parametrize("bad", ["wrong answers", "without golden vectors", "slow", "large", "unloadable"])
def test_a_bad_model_leaves_the_good_one_active(tmp_path: Path, keys: builders.Signer, bad: str) -> None:
    """Whatever the self-test finds, the device goes on with what it had, and a corrected bundle is accepted."""
    store = ModelStore(tmp_path / "models")
    budget = {"slow": Budget(latency_ms=1e-9), "large": Budget(memory_bytes=1)}.get(bad, Budget())
    policy = Policy(allowed_signers=keys.allowed)
    good = builders.classification().save(tmp_path / "good.onnx")
    keys.sign(good)
    store.install(good, policy)
    draft = builders.classification(version="1.1.0", seed=2)
    if bad == "wrong answers":
        draft.manifest["selftest"] = builders.classification(seed=3).manifest["selftest"]
    if bad == "without golden vectors":
        del draft.manifest["selftest"]
    if bad == "unloadable":
        draft.model.graph.node[1].input[1] = "bias"
    path = draft.save(tmp_path / "bad.onnx")
    keys.sign(path)
    with pytest.raises(BundleError, match=rf"^{path}: [^/]*$"):  # the user's file, and no other path
        store.install(path, Policy(allowed_signers=keys.allowed, budget=budget))
    assert store.slot("activity").version == "1.0.0"
    mended = builders.classification(version="1.1.0", seed=2).save(tmp_path / "mended.onnx")
    keys.sign(mended)
    assert store.install(mended, policy).changed


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB, which only root can have."""
    with small_disk(tmp_path / "disk", "3m") as folder:
        yield folder


def test_a_full_disk_refuses_in_words_and_the_old_bundle_serves_on(
    tmp_path: Path, disk: Path, keys: builders.Signer
) -> None:
    """No room is no harm: the active bundle stays, and with room again the same install succeeds."""
    store = ModelStore(disk / "models", selftest=quick)
    policy = Policy(allowed_signers=keys.allowed)
    for version in ("1.0.0", "1.1.0"):
        keys.sign(builders.classification(version=version, seed=int(version[2])).save(tmp_path / f"{version}.onnx"))
    store.install(tmp_path / "1.0.0.onnx", policy)
    for left in (0, 4096, 512 * 1024):
        filler = disk / "filler"
        statistics = os.statvfs(disk)
        filler.write_bytes(bytes(max(0, statistics.f_bavail * statistics.f_frsize - left)))
        with pytest.raises(CommandError, match=r"expected room|the disk is full"):
            store.install(tmp_path / "1.1.0.onnx", policy)
        assert store.begin("activity").version == "1.0.0" if left else store.slot("activity").version == "1.0.0"
        filler.unlink()
    assert store.install(tmp_path / "1.1.0.onnx", policy).changed


def test_a_read_only_disk_refuses_in_words(tmp_path: Path, disk: Path, keys: builders.Signer) -> None:
    """A file system that the kernel made read-only is named, and what is on it can still be read."""
    store = ModelStore(disk / "models", selftest=quick)
    policy = Policy(allowed_signers=keys.allowed)
    for version in ("1.0.0", "1.1.0"):
        keys.sign(builders.classification(version=version, seed=int(version[2])).save(tmp_path / f"{version}.onnx"))
    store.install(tmp_path / "1.0.0.onnx", policy)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    with pytest.raises(CommandError, match="read-only"):
        store.install(tmp_path / "1.1.0.onnx", policy)
    assert store.active("activity").exists()
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    assert store.install(tmp_path / "1.1.0.onnx", policy).changed
