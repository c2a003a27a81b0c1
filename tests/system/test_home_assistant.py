"""A device as Home Assistant finds it at a real broker: discovery, birth, removal, and values by its own templates."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MakeDaemon, MakeSubscriber
from tests.support import builders
from tests.support.broker import Mosquitto
from tests.support.daemon import Daemon
from tests.support.devices import climate_device
from tests.support.subscriber import Message, Subscriber

pytestmark = pytest.mark.system

TOPIC = "homeassistant/device/edge_room/config"
READING = {"temperature": 21.0, "humidity": 40.0}
TABLE = "\n[home_assistant]\n"
SECOND = '\n[[model]]\nname = "strange"\nbundle = "{bundle}"\nsource = "climate"\n'


@pytest.fixture
def home(mosquitto: Mosquitto, make_subscriber: MakeSubscriber) -> Subscriber:
    """What Home Assistant would hear."""
    return make_subscriber(mosquitto.port, "edge/#", "homeassistant/#")


def _newest(home: Subscriber, name: str, *, bare: bool = False) -> dict[str, Any]:
    """The newest document, once it has an entity of this name; with `bare`, once that is to be removed."""
    found: dict[str, Any] = {}

    def has_it(messages: list[Message]) -> bool:
        payloads = [each.payload for each in messages if each.topic == TOPIC and each.payload]
        found.update(json.loads(payloads[-1]) if payloads else {"components": {}})
        component = found["components"].get(name, {})
        return bool(component) and bare == (set(component) == {"platform"})

    home.wait_until(has_it, lambda: f"{name} in {found}")
    return found


def _device(mosquitto: Mosquitto, folder: Path, more: str = TABLE) -> str:
    bundle = builders.classification(name="comfort").save(folder / "comfort.onnx")
    return climate_device(mosquitto, bundle, model='alarm_labels = ["high"]') + more


def test_a_prediction_reaches_its_entities(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, home: Subscriber, tmp_path: Path
) -> None:
    """The document names the topic of a key once the key is seen, and its templates give what the prediction has."""
    jinja2 = pytest.importorskip("jinja2")
    make_daemon(_device(mosquitto, tmp_path)).start()
    home.wait_for_text("edge/room/status", "online")
    home.publish("sensors/kitchen/climate", READING)
    document = _newest(home, "comfort__kitchen__label")
    assert document["availability_topic"] == "edge/room/status"
    home.publish("sensors/kitchen/climate", READING)
    prediction = home.wait_for(2, "edge/room/comfort/kitchen")[-1]
    components = document["components"]

    def value(name: str) -> str:
        component = components[name]
        topic = component["state_topic"]
        (payload,) = {each.payload for each in home.on(topic)[-1:]}
        template = jinja2.Environment(undefined=jinja2.StrictUndefined).from_string(component["value_template"])
        return str(template.render(value_json=json.loads(payload)))

    answered = prediction.document
    assert value("comfort__kitchen__label") == answered["label"]
    assert answered["label"] in components["comfort__kitchen__label"]["options"]
    assert float(value("comfort__kitchen__score")) == answered["score"]
    assert value("comfort__kitchen__alarm") == ("ON" if answered["alarm"] else "OFF")
    home.wait_until(lambda _: float(value("health__predictions")) == 2, "health that counts two predictions")


def test_a_start_of_home_assistant_is_answered(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, make_subscriber: MakeSubscriber, home: Subscriber, tmp_path: Path
) -> None:
    """The document is retained, and comes again with status and health when Home Assistant says `online`."""
    make_daemon(_device(mosquitto, tmp_path)).start()
    _newest(home, "health__queued")
    late = make_subscriber(mosquitto.port, TOPIC)
    assert late.wait_for(1)[0].retained
    home.clear()
    home.publish("homeassistant/status", "offline")
    home.publish("homeassistant/status", "online")
    _newest(home, "health__queued")
    home.wait_for_text("edge/room/status", "online")


def test_a_model_that_is_gone_leaves_and_keys_that_were_seen_stay(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, home: Subscriber, tmp_path: Path
) -> None:
    """Also over a start: what the document of an earlier one had is read back from the broker."""
    channels = ["temperature", "humidity"]
    bundle = builders.anomaly(channels=channels, name="strange").save(tmp_path / "strange.onnx")
    second = SECOND.replace("{bundle}", str(bundle))
    daemon = make_daemon(_device(mosquitto, tmp_path, second + TABLE)).start()
    home.wait_for_text("edge/room/status", "online")
    home.publish("sensors/hall/climate", READING)
    _newest(home, "strange__hall__anomaly")
    daemon.kill()
    daemon.config.write_text(_device(mosquitto, tmp_path))
    home.clear()
    daemon.start()
    document = _newest(home, "strange__hall__anomaly", bare=True)
    assert document["components"]["strange__hall__anomaly"] == {"platform": "binary_sensor"}
    assert document["components"]["comfort__hall__label"]["options"] == ["low", "high"]
    _reload(daemon, _device(mosquitto, tmp_path, second + TABLE))
    home.wait_until(lambda _: len(home.on("edge/room/models")[-1].document) == 2, "both models")
    home.publish("sensors/hall/climate", READING)
    _newest(home, "strange__hall__anomaly")
    _reload(daemon, _device(mosquitto, tmp_path, second))
    home.wait_until(_removed, "the removal of the device")


def _removed(messages: list[Message]) -> bool:
    return [each.payload for each in messages if each.topic == TOPIC][-1:] == [b""]


def _reload(daemon: Daemon, text: str) -> None:
    daemon.config.write_text(text)
    daemon.reload()
