"""A store whose self-test is quick, and signed bundles for it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from edge_runtime.store.install import Policy
from edge_runtime.store.store import ModelStore
from tests.faults.slots.operations import quick
from tests.support import builders

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> builders.Signer:
    """The key that the device trusts."""
    return builders.signer(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def policy(keys: builders.Signer) -> Policy:
    """What the device asks for."""
    return Policy(allowed_signers=keys.allowed, device="press-07")


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    """An empty store whose self-test is quick."""
    return ModelStore(tmp_path / "models", selftest=quick)


@pytest.fixture
def make(tmp_path: Path, keys: builders.Signer) -> Make:
    """Builds a signed bundle of a version."""

    def build(version: str, name: str = "activity", seed: int | None = None) -> Path:
        folder = tmp_path / "outbox"
        folder.mkdir(exist_ok=True)
        seed = sum(version.encode()) if seed is None else seed
        draft = builders.classification(name=name, version=version, seed=seed)
        path = draft.save(folder / f"{name.replace('/', '_')[:40]}-{version}-{seed}.onnx")
        keys.sign(path)
        return path

    return build
