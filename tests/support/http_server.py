"""A model on demand and a server of it on a free port of loopback, for tests that dial it."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edge_runtime.bundle.model import Model
from edge_runtime.bundle.open import open_bundle
from edge_runtime.http.app import App
from edge_runtime.http.live_view import Board
from edge_runtime.http.served_model import Served
from edge_runtime.http.server import Server
from tests.support import builders
from tests.support.waiting import patient


def activity(folder: Path) -> Served:
    """The model `activity`, which takes temperature and humidity."""
    path = builders.classification().save(folder / "activity.onnx")
    return Served("activity", Model(open_bundle(path)), device="d", start=1)


def served_models(folder: Path, **further: builders.Draft) -> list[Served]:
    """One served model of each kind, and further ones by their names."""
    drafts = {
        "activity": builders.classification(),
        "motion": builders.classification(name="motion", length=3),
        "power": builders.regression(),
        "vibration": builders.anomaly(threshold=1.0),
        "drowsy": builders.stateful(),
        "picture": builders.frame(),
        **further,
    }
    return [
        Served(name, Model(open_bundle(draft.save(folder / f"{name}.onnx"))), device="d", start=3)
        for name, draft in drafts.items()
    ]


def dial(server: Server) -> socket.socket:
    """A connection to a server."""
    return socket.create_connection(("127.0.0.1", server.port), timeout=patient(20))


@contextmanager
def running(served: Served, token: str | None = None, *, may_fail: bool = False) -> Iterator[Server]:
    """A server of a model, beside no loop; its thread must not have failed, where that is not what is tried."""
    made = Server(App([served], Board(), token=token), "127.0.0.1:0")
    made.start()
    yield made
    assert may_fail or made.failures == 0
    made.stop()
