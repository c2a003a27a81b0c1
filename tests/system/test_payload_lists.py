"""Several payload conventions at once, through a real broker by MQTT 3.1.1 and 5."""

import json
from pathlib import Path

import msgspec
import pytest

from tests.conftest import MakeDaemon, MakeSubscriber
from tests.support import builders
from tests.support.broker import Mosquitto
from tests.support.devices import climate_device

pytestmark = pytest.mark.system


@pytest.mark.parametrize("protocol", ["3.1.1", "5"])
def test_every_convention_says_the_same_on_its_own_topic(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, make_subscriber: MakeSubscriber, tmp_path: Path, protocol: str
) -> None:
    """In order, with the same numbers."""
    bundle = builders.classification(name="comfort").save(tmp_path / "comfort.onnx")
    daemon = make_daemon(
        climate_device(
            mosquitto, bundle, model='payload = ["json", "msgpack", "values"]', upstream=f'protocol = "{protocol}"'
        )
    ).start()
    home = make_subscriber(mosquitto.port, "edge/#")
    home.wait_for_text("edge/room/status", "online")
    for number in range(3):
        home.publish("sensors/kitchen/climate", {"temperature": 20.0 + number, "humidity": 40.0, "seq": number})
    topic = "edge/room/comfort/kitchen"
    home.wait_until(lambda _: len([each for each in home.on(topic) if each.topic == topic]) == 3, "three predictions")
    documents = [each.document for each in home.on(topic) if each.topic == topic]
    packed = [msgspec.msgpack.decode(each.payload) for each in home.on(f"{topic}/msgpack")]
    assert packed == documents
    assert [each.text for each in home.on(f"{topic}/label")] == [each["label"] for each in documents]
    for member in ("score", "scores/low", "scores/high"):
        name, _, label = member.partition("/")
        expected = [each[name][label] if label else each[name] for each in documents]
        assert [
            json.loads(each.text) for each in home.on(f"{topic}/{member}") if each.topic == f"{topic}/{member}"
        ] == (expected)
    assert [each.text for each in home.on(f"{topic}/id")] == [f"room/comfort/kitchen/{number}" for number in range(3)]
    assert daemon.stop() == 0
