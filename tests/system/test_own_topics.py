"""Status, models and health where a broker wants them: moved, switched off, and not retained."""

from pathlib import Path

import pytest

from tests.conftest import MakeDaemon, MakeSubscriber
from tests.support import builders
from tests.support.broker import Mosquitto
from tests.support.devices import climate_device
from tests.support.waiting import wait_until

pytestmark = pytest.mark.system

MOVED = """
topic = "devices/{device}/messages/events/{model}"
status_topic = "devices/{device}/messages/events/status"
models_topic = ""
health_topic = "devices/{device}/messages/events/health"
retain = false
"""
READING = {"temperature": 21.0, "humidity": 40.0}
EVENTS = "devices/room/messages/events/"


def test_a_moved_device_publishes_nothing_elsewhere_and_has_nothing_retained(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, make_subscriber: MakeSubscriber, tmp_path: Path
) -> None:
    """As a broker of a cloud wants it, which ends the connection at any other topic or at a retained message."""
    bundle = builders.classification(name="comfort").save(tmp_path / "comfort.onnx")
    everything = make_subscriber(mosquitto.port, "#")
    daemon = make_daemon(climate_device(mosquitto, bundle, upstream=MOVED)).start()
    everything.wait_for_text(f"{EVENTS}status", "online")
    everything.publish("sensors/hall/climate", READING)
    everything.wait_for(1, f"{EVENTS}comfort")
    everything.wait_for(2, f"{EVENTS}health")
    daemon.kill()
    everything.wait_for_text(f"{EVENTS}status", "offline")  # the last will has moved as well
    assert {message.topic for message in everything.messages} == {
        "sensors/hall/climate",
        *(f"{EVENTS}{each}" for each in ("status", "comfort", "health")),
    }
    late = make_subscriber(mosquitto.port, "#")
    late.publish("end", "of what is retained")
    late.wait_for(1, "end")
    assert [message.topic for message in late.messages] == ["end"]


def test_a_device_without_its_topics_leaves_no_will(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, make_subscriber: MakeSubscriber, tmp_path: Path
) -> None:
    """With all three switched off, only predictions leave the device; and a reload switches them on again."""
    bundle = builders.classification(name="comfort").save(tmp_path / "comfort.onnx")
    subscriber = make_subscriber(mosquitto.port, "edge/#")
    off = 'status_topic = ""\nmodels_topic = ""\nhealth_topic = ""\n'
    daemon = make_daemon(climate_device(mosquitto, bundle, upstream=off)).start()
    wait_until(lambda: "Sending SUBACK to edge-room" in mosquitto.log, lambda: mosquitto.log[-2000:])
    subscriber.publish("sensors/hall/climate", READING)
    subscriber.wait_for(1, "edge/room/comfort/hall")
    daemon.kill()
    daemon.start()
    subscriber.publish("sensors/hall/climate", READING)
    subscriber.wait_for(2, "edge/room/comfort/hall")
    assert {message.topic for message in subscriber.messages} == {"edge/room/comfort/hall"}
    daemon.config.write_text(daemon.config.read_text().replace(off, 'models_topic = ""\n'))
    daemon.reload()
    subscriber.wait_for_text("edge/room/status", "online")
    subscriber.wait_for(1, "edge/room/health")
    daemon.kill()
    subscriber.wait_for_text("edge/room/status", "offline")
    assert not subscriber.on("edge/room/models")
