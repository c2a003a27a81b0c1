"""A plugin of pytest that takes the check of signatures out of the model store: a store as it must never be."""

import pytest

from edge_runtime.store import store as slots


@pytest.fixture(autouse=True)
def _no_signature_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "require_signature", lambda *_, **__: None)
