"""A model that takes seconds runs beside the loop: the link upstream, its keep-alive and its reports go on."""

import time
from pathlib import Path

import numpy as np
import pytest

from edge_runtime.bundle.model import Model
from edge_runtime.bundle.open import open_bundle
from tests.conftest import MakeDaemon
from tests.support import bad_models
from tests.support.broker import Mosquitto
from tests.support.devices import climate_device
from tests.support.subscriber import Subscriber
from tests.support.waiting import wait_until

pytestmark = pytest.mark.system

KEEPALIVE_S = 2  # mosquitto drops a client after one and a half times this
CALL_S = 3 * KEEPALIVE_S
REPORTS_A_SECOND = 2  # as `climate_device` has it
FEW_STEPS = 200_000


def test_a_call_of_seconds_does_not_hold_up_the_keep_alive(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, subscriber: Subscriber, tmp_path: Path
) -> None:
    """While one call takes longer than a keep-alive and a half, health is sent and the broker keeps the connection."""
    bundle = bad_models.dawdling("1.0.0", _steps(tmp_path)).save(tmp_path / "comfort.onnx")
    make_daemon(climate_device(mosquitto, bundle, upstream=f"keepalive = {KEEPALIVE_S}")).start()
    subscriber.wait_for_text("edge/room/status", "online")
    subscriber.publish("sensors/kitchen/climate", {"temperature": bad_models.BAD, "humidity": 48.2})
    before = len(subscriber.on("edge/room/health"))
    wait_until(lambda: subscriber.on("edge/room/comfort/"), "the prediction", deadline=60.0)
    reports = subscriber.on("edge/room/health")[before:]
    assert len(reports) > 1.5 * KEEPALIVE_S * REPORTS_A_SECOND
    assert reports[-1].document["errors"] == {}
    assert {message.payload for message in subscriber.on("edge/room/status")} == {b"online"}


def _steps(folder: Path) -> int:
    """So many that a call takes `CALL_S` of processor time on this machine, and longer where it is busy."""
    path = bad_models.dawdling("1.0.0", FEW_STEPS).save(folder / "few.onnx")
    model = Model(open_bundle(path))
    window = np.array([[[bad_models.BAD, 48.2]]], np.float32)
    took = []
    for _ in range(3):
        began = time.process_time()
        model.run(window)
        took.append(time.process_time() - began)
    return round(FEW_STEPS * CALL_S / min(took))
