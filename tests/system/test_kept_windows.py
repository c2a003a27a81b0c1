"""Windows and a model's state over a clean stop: the predictions are those of a daemon that never stopped."""

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MakeDaemon
from tests.support import builders
from tests.support.broker import Mosquitto
from tests.support.devices import climate_device
from tests.support.subscriber import Subscriber

pytestmark = pytest.mark.system

READINGS = [(0.1, 0.9), (0.8, 0.2), (0.4, 0.4), (0.9, 0.1), (0.3, 0.7), (0.6, 0.5)]


@pytest.mark.parametrize("stopped_after", [3, 4])
def test_a_clean_stop_keeps_incomplete_windows_and_the_state_of_a_model(
    stopped_after: int, mosquitto: Mosquitto, make_daemon: MakeDaemon, subscriber: Subscriber, tmp_path: Path
) -> None:
    """In the middle of a window, or between two: what the model answers after the start shows no trace of the stop."""
    bundle = builders.stateful(name="comfort", length=2, stride=2).save(tmp_path / "comfort.onnx")
    through = make_daemon(climate_device(mosquitto, bundle, device="through")).start()
    subscriber.wait_for_text("edge/through/status", "online")
    stopped = make_daemon(climate_device(mosquitto, bundle, device="stopped")).start()
    subscriber.wait_for_text("edge/stopped/status", "online")
    for number, (left, right) in enumerate(READINGS, start=1):
        subscriber.publish("sensors/a/climate", {"left": left, "right": right})
        subscriber.wait_until(lambda _, number=number: _readings(subscriber) >= number, "the reading to be taken")  # type: ignore[misc]
        if number == stopped_after:
            assert stopped.stop() == 0
            subscriber.clear()
            stopped.start()
            subscriber.wait_for_text("edge/stopped/status", "online")
    assert through.stop() == 0
    assert stopped.stop() == 0
    last = len(READINGS) // 2 - (stopped_after // 2)
    for device in ("through", "stopped"):
        subscriber.wait_for(last, f"edge/{device}/comfort/")
    assert _scores(subscriber, "stopped") == _scores(subscriber, "through")
    assert "windows restored" in stopped.log


def _readings(subscriber: Subscriber) -> int:
    """How many readings the device that goes on has taken; the other hears the same topics."""
    found = subscriber.on("edge/through/health")
    return int(found[-1].document["readings"]) if found else 0


def _scores(subscriber: Subscriber, device: str) -> list[Any]:
    return [message.document["scores"] for message in subscriber.on(f"edge/{device}/comfort/")]
