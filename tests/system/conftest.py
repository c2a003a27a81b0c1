"""What only the system tests need: bundles that are converted once a run, and a daemon on a small bundle."""

from collections.abc import Callable
from pathlib import Path

import pytest

from edge_runtime.store.store import ModelStore
from tests.conftest import MakeDaemon
from tests.support import builders
from tests.support.broker import Mosquitto
from tests.support.devices import stored_device
from tests.support.installed import Installed
from tests.support.stored import UNSIGNED, Rig, believed
from tests.support.subscriber import Subscriber
from tests.support.workshop import Workshop


@pytest.fixture(scope="session")
def workshop(installed: Installed, shared_folder: Path) -> Workshop:
    """The workstation: trains, and converts with the installed `edge-convert`."""
    return Workshop(installed, shared_folder / "workshop")


@pytest.fixture
def make_rig(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, subscriber: Subscriber, tmp_path: Path
) -> Callable[[str], Rig]:
    """A device with version 1.0.0, proven; the text is more of its `[store]`."""

    def make(more: str) -> Rig:
        store = ModelStore(tmp_path / "store", believed)
        first = builders.classification(name="comfort", version="1.0.0")
        slot = store.install(first.save(tmp_path / "first.onnx"), UNSIGNED).slot
        store.confirm("comfort", slot.digest)
        text = stored_device(mosquitto, tmp_path, more, device="health_interval = 0.5")
        daemon = make_daemon(text).start()
        subscriber.wait_for_text("edge/room/status", "online")
        return Rig(tmp_path, daemon, subscriber, store)

    return make
