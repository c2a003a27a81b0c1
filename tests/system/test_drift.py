"""Drift on a running daemon: a sensor that is stuck is named on its topic, on the page and in the metrics."""

import json
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import MakeDaemon, MakeSubscriber
from tests.support import builders, drifting
from tests.support.broker import Mosquitto
from tests.support.devices import climate_device
from tests.support.ports import find_free_port
from tests.support.subscriber import Subscriber
from tests.support.waiting import patient

pytestmark = pytest.mark.system

TOPIC = "edge/room/drift/comfort"


def last(client: Subscriber) -> dict[str, Any]:
    """The newest report."""
    found = client.on(TOPIC)
    return dict(found[-1].document) if found else {}


def send(client: Subscriber, values: Any, key: str = "hall") -> None:
    """A message a reading."""
    for temperature, pressure in values.tolist():
        client.publish(f"sensors/{key}/climate", {"temperature": temperature, "pressure": pressure})


def test_a_stuck_sensor_is_named_where_an_operator_looks(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, make_subscriber: MakeSubscriber, tmp_path: Path
) -> None:
    """On the retained topic, in health, in the metrics and in the log; the other key stays ok, and it recovers."""
    rng = np.random.default_rng(5)
    made = drifting.draft(drifting.readings(rng, 4000))
    made.manifest["drift"]["rate_hz"] = None  # this test sends as fast as it can
    bundle = made.save(tmp_path / "comfort.onnx")
    client = make_subscriber(mosquitto.port, "edge/#")
    port = find_free_port()
    daemon = make_daemon(climate_device(mosquitto, bundle) + f'\n[http]\nlisten = "127.0.0.1:{port}"\n').start()
    client.wait_for_text("edge/room/status", "online")
    send(client, drifting.readings(rng, 2 * drifting.BLOCK), "yard")
    stuck = drifting.readings(rng, 2 * drifting.BLOCK)
    stuck[:, 0] = 20.5
    send(client, stuck)
    client.wait_until(lambda _: last(client).get("state") == "alarm", "the alarm")
    document = last(client)
    assert document["channels"]["temperature"]["stuck"]
    assert document["channels"]["pressure"]["state"] == "ok"
    assert document["keys"] == {"hall": "alarm"}
    late = make_subscriber(mosquitto.port, TOPIC)
    late.wait_for(1, TOPIC)
    assert late.messages[0].document["state"] == "alarm"
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=patient(10)) as answer:
        metrics = answer.read().decode()
    assert 'edge_drift_state{model="comfort"} 2' in metrics
    assert 'edge_drift_channel_state{model="comfort",channel="temperature"} 2' in metrics
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health.json", timeout=patient(10)) as answer:
        health = json.load(answer)
    assert health["models"]["comfort"]["drift"]["why"].startswith("temperature: stuck: 20.5 in ")
    daemon.wait_for_log("drift: temperature: stuck: 20.5 in ")
    send(client, drifting.readings(rng, 40 * drifting.BLOCK))
    client.wait_until(lambda _: last(client).get("state") == "ok", "the recovery")


def test_an_alarm_outlives_a_clean_restart(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, make_subscriber: MakeSubscriber, tmp_path: Path
) -> None:
    """One more reading after the start, and the report says again what was wrong."""
    rng = np.random.default_rng(5)
    made = drifting.draft(drifting.readings(rng, 4000))
    made.manifest["drift"]["rate_hz"] = None
    bundle = made.save(tmp_path / "comfort.onnx")
    client = make_subscriber(mosquitto.port, "edge/#")
    daemon = make_daemon(climate_device(mosquitto, bundle)).start()
    client.wait_for_text("edge/room/status", "online")
    stuck = drifting.readings(rng, 2 * drifting.BLOCK)
    stuck[:, 0] = 20.5
    send(client, stuck)
    client.wait_until(lambda _: last(client).get("state") == "alarm", "the alarm")
    assert daemon.stop() == 0
    daemon.start()
    client.wait_until(lambda _: last(client).get("state") == "ok", "the first report of the next start")
    send(client, stuck[:1])
    client.wait_until(lambda _: last(client).get("state") == "alarm", "the alarm again")
    assert last(client)["channels"]["temperature"]["stuck"]
    assert last(client)["blocks"] == 0


def test_a_bundle_without_a_reference_publishes_nothing_and_says_so(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, make_subscriber: MakeSubscriber, tmp_path: Path
) -> None:
    """One sentence in the log; a reload that asks for it has the same bundle watched for what needs no reference."""
    bundle = builders.classification(name="comfort").save(tmp_path / "comfort.onnx")
    client = make_subscriber(mosquitto.port, "edge/#")
    daemon = make_daemon(climate_device(mosquitto, bundle)).start()
    daemon.wait_for_log("drift is not watched: the bundle has no reference of its training data")
    client.wait_for_text("edge/room/status", "online")
    client.publish("sensors/hall/climate", {"temperature": 21.0, "humidity": 40.0})
    client.wait_for(1, "edge/room/comfort/hall")
    assert client.on(TOPIC) == []
    daemon.config.write_text(
        daemon.config.read_text().replace('source = "climate"', 'source = "climate"\ndrift = "watch"')
    )
    daemon.reload()
    client.wait_for(1, TOPIC)
    for _ in range(128):
        client.publish("sensors/hall/climate", {"temperature": 21.0})
    client.wait_until(lambda _: last(client).get("state") == "alarm", "the alarm")
    assert last(client)["channels"]["humidity"]["why"] == "missing in 100% of the readings, in training in 0%"
