"""A real daemon under a flood of forged offers and orders, while the operator's bundle comes."""

import json
import threading
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from edge_runtime.fleet.broker_line import Login
from edge_runtime.fleet.mqtt_transport import BundleSender
from edge_runtime.store.install import Policy
from edge_runtime.store.store import ModelStore
from tests.conftest import MakeDaemon
from tests.support import builders
from tests.support.broker import Mosquitto
from tests.support.devices import stored_device
from tests.support.subscriber import Subscriber
from tests.support.waiting import patient, wait_until

pytestmark = [pytest.mark.system, pytest.mark.slow]

MIB = 1024 * 1024


class Flood:
    """Publishes forged offers and orders as fast as the broker takes them, until it is ended.

    Args:
        port: of the broker.
        token: of the device, which anyone knows who may read.
        signature: a recorded one, of another bundle, so that the form and the key are right.
    """

    def __init__(self, port: int, token: str, signature: str) -> None:
        self.sent = 0
        self._token = token
        self._signature = signature
        self._ended = threading.Event()
        self._client = paho.Client(CallbackAPIVersion.VERSION2)
        self._client.max_inflight_messages_set(200)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        offer = {"size": 8 * MIB, "sha256": "0" * 64}
        nonsense = "-----BEGIN SSH SIGNATURE-----nonsense" + "A" * 2000
        while not self._ended.is_set():
            number = self.sent
            order = {"type": "rollback", "device": "room", "model": "comfort", "digest": "0" * 64, "nonce": str(number)}
            text = json.dumps({**order, "token": self._token})
            self._publish("rollback", {"transfer": "x", "order": text, "signature": nonsense})
            forged = {"sha512": f"{number:0128x}", "signature": self._signature, "token": self._token}
            self._publish("offer", {**offer, "transfer": f"f{number}", **forged})
            last = self._publish("offer", {**offer, "transfer": f"g{number}", "signature": "nonsense"})
            self.sent += 3
            if self.sent % 150 == 0:
                last.wait_for_publish(20)

    def _publish(self, what: str, document: dict[str, object]) -> paho.MQTTMessageInfo:
        return self._client.publish(f"edge/room/ota/{what}", json.dumps(document), qos=1)

    def end(self) -> None:
        """Publish no more."""
        self._ended.set()
        self._thread.join(patient(20))
        self._client.disconnect()
        self._client.loop_stop()


def test_a_flood_neither_grows_the_daemon_nor_keeps_the_operator_out(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, subscriber: Subscriber, tmp_path: Path
) -> None:
    """Thousands of forged offers and orders: memory stays flat, nothing is written, and a signed bundle comes in."""
    signer = builders.signer(tmp_path / "keys")
    first = builders.classification(name="comfort", version="1.0.0").save(tmp_path / "first.onnx")
    recorded = signer.sign(first).read_text()
    store = ModelStore(tmp_path / "store")
    store.install(first, Policy(allowed_signers=signer.allowed))
    more = f'allowed_signers = "{signer.allowed}"\nover_mqtt = "signed"\nover_mqtt_rate = 4_000_000'
    daemon = make_daemon(stored_device(mosquitto, tmp_path, more)).start()
    subscriber.wait_for_text("edge/room/status", "online")
    subscriber.publish("edge/room/ota/offer", {"transfer": "q", "size": 1, "sha256": "0" * 64, "signature": "s"})
    subscriber.wait_until(lambda _: subscriber.on("edge/room/ota/status"), "the token")
    flood = Flood(mosquitto.port, subscriber.on("edge/room/ota/status")[-1].document["token"], recorded)
    try:
        wait_until(lambda: flood.sent > 500, "the flood", 60.0)
        before = daemon.resident_bytes
        wait_until(lambda: flood.sent > 4500, "four thousand forged messages", 120.0)
        assert daemon.resident_bytes - before < 16 * MIB
        assert not (store.root / ".incoming").exists()
        newer = builders.classification(name="comfort", version="1.1.0").save(tmp_path / "newer.onnx")
        signer.sign(newer)
        done = BundleSender(Login(url=mosquitto.url), "room").send(newer, lambda _done, _total: None)
    finally:
        flood.end()
    assert (done["state"], done["version"]) == ("installed", "1.1.0")
    assert len(subscriber.on("edge/room/ota/status")) < flood.sent / 4
    assert daemon.stop() == 0
