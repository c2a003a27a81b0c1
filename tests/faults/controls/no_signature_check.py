"""A plugin of pytest that takes the check of signatures out of the model store: a store as it must never be."""

import pytest

from edge_runtime.store import install


@pytest.fixture(autouse=True)
def _no_signature_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "require_signatures", lambda *_, **__: [])
