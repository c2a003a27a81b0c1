"""A model on demand and a server of it on a free port of loopback, for tests that dial it."""

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


def activity(folder: Path) -> Served:
    """The model `activity`, which takes temperature and humidity."""
    path = builders.classification().save(folder / "activity.onnx")
    return Served("activity", Model(open_bundle(path)), device="d", start=1)


@contextmanager
def running(served: Served, token: str | None = None, *, may_fail: bool = False) -> Iterator[Server]:
    """A server of a model, beside no loop; its thread must not have failed, where that is not what is tried."""
    made = Server(App([served], Board(), token=token), "127.0.0.1:0")
    made.start()
    yield made
    assert may_fail or made.failures == 0
    made.stop()
