"""Predictions on demand over MQTT 5: a request with a response topic is answered there."""

import json
import queue
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from tests.conftest import MakeDaemon, MakeSubscriber
from tests.support import builders
from tests.support.broker import Mosquitto
from tests.support.devices import climate_device
from tests.support.waiting import patient

pytestmark = pytest.mark.system

READING = b'{"temperature": 21.5, "humidity": 48.25}'


class Requester:
    """A client of MQTT 5 that asks and waits for the answer with its own correlation data."""

    def __init__(self, port: int) -> None:
        self.answers: queue.Queue[tuple[str, bytes, Any]] = queue.Queue()
        self._client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        self._client.on_message = self._on_message
        self._client.connect("127.0.0.1", port)
        self._client.subscribe([("answers/#", 1), ("edge/room/answers/#", 1), ("edge/room/status", 1)])
        self._client.loop_start()
        assert self.wait()[0] == "edge/room/status"

    def ask(self, model: str, payload: bytes, *, to: str | None, correlation: bytes | None = None) -> None:
        """Send a request."""
        properties: Any = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        if to is not None:
            properties.ResponseTopic = to
        if correlation is not None:
            properties.CorrelationData = correlation
        self._client.publish(f"edge/room/predict/{model}", payload, 1, properties=properties)

    def wait(self) -> tuple[str, bytes, Any]:
        """The next answer: topic, payload, correlation data."""
        return self.answers.get(timeout=patient(20))

    def close(self) -> None:
        """Leave."""
        self._client.disconnect()
        self._client.loop_stop()

    def _on_message(self, _client: paho.Client, _userdata: object, message: paho.MQTTMessage) -> None:
        correlation = getattr(message.properties, "CorrelationData", None)
        self.answers.put((message.topic, bytes(message.payload), correlation))


@pytest.fixture
def requester(mosquitto: Mosquitto, make_daemon: MakeDaemon, tmp_path: Path) -> Iterator[Requester]:
    """A client beside a device that answers requests."""
    bundle = builders.classification().save(tmp_path / "comfort.onnx")
    upstream = 'protocol = "5"\nrequests = "answer"\nhealth_topic = "moved/{device}"'
    daemon = make_daemon(climate_device(mosquitto, bundle, upstream=upstream)).start()
    made = Requester(mosquitto.port)
    yield made
    made.close()
    assert daemon.stop() == 0


def test_a_request_is_answered_on_its_response_topic(requester: Requester) -> None:
    """The answer is a prediction as subscribers see it, and brings the request's correlation data back."""
    requester.ask("comfort", READING, to="answers/1", correlation=b"\x00\xff7")
    topic, payload, correlation = requester.wait()
    assert (topic, correlation) == ("answers/1", b"\x00\xff7")
    answer = json.loads(payload)
    expected = builders.classification().run({"window": np.array([[[21.5, 48.25]]], np.float32)})["scores"][0]
    assert [np.float32(answer["scores"][label]) for label in ("low", "high")] == expected.tolist()
    assert (answer["source"], answer["model"]) == ("mqtt", "comfort")
    assert answer["id"].startswith("room/comfort/-/mqtt-")


def test_a_bad_request_is_told_what_is_wrong(requester: Requester) -> None:
    """An unknown model and a broken contract are answered with an `error`, and the reasons."""
    requester.ask("nothing", READING, to="edge/room/answers/me")
    topic, payload, _ = requester.wait()
    assert topic == "edge/room/answers/me"
    assert "expected one of the models comfort" in json.loads(payload)["error"]
    requester.ask("comfort", b'{"temperature": 21.5}', to="answers/2")
    assert json.loads(requester.wait()[1])["reasons"] == {"missing_channel": 1}


def test_a_request_cannot_speak_in_the_name_of_the_device(
    requester: Requester, mosquitto: Mosquitto, make_subscriber: MakeSubscriber
) -> None:
    """A response topic that is one of the device's own, or none at all, is not answered; the next request is."""
    watching = make_subscriber(mosquitto.port, "moved/room")
    requester.ask("comfort", READING, to="edge/room/status")
    requester.ask("comfort", READING, to="moved/room")
    requester.ask("comfort", READING, to=None)
    requester.ask("comfort", READING, to="answers/3")
    assert requester.wait()[0] == "answers/3"
    watching.publish("moved/room", '{"end": true}')
    watching.wait_until(lambda messages: any("end" in each.document for each in messages), "the end")
    assert all({"rss_bytes", "end"} & each.document.keys() for each in watching.messages)
