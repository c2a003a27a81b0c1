"""A plugin of pytest that acknowledges a reading when its prediction is sent: a daemon as it must never be."""

import pytest

from edge_runtime.delivery.outbox import Entry, Outbox

_send = Outbox._send


def _send_and_release(self: Outbox, entry: Entry) -> bool:
    self._release(entry)
    return _send(self, entry)


@pytest.fixture(autouse=True)
def _early_release(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Outbox, "_send", _send_and_release)
