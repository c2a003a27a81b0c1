"""Brokers that ask who is there: passwords, access lists, TLS, and both versions of MQTT."""

import json
from pathlib import Path

import pytest
from paho.mqtt.enums import MQTTProtocolVersion

from tests.conftest import MakeBroker, MakeDaemon, MakeSubscriber
from tests.support import builders
from tests.support.broker import CertificateAuthority
from tests.support.devices import climate_device
from tests.support.waiting import wait_until

pytestmark = pytest.mark.system

READING = json.dumps({"temperature": 21.4, "humidity": 48.2})
ACL = """
user hub
topic readwrite #
user room
topic readwrite edge/room/#
topic read sensors/#
"""


@pytest.fixture
def comfort(tmp_path: Path) -> Path:
    """A bundle of single readings."""
    return builders.classification(name="comfort").save(tmp_path / "comfort.onnx")


@pytest.mark.parametrize("protocol", ["3.1.1", "5"])
def test_both_versions_of_mqtt_are_spoken(
    make_mosquitto: MakeBroker, make_daemon: MakeDaemon, make_subscriber: MakeSubscriber, comfort: Path, protocol: str
) -> None:
    """With `protocol` the daemon speaks MQTT 3.1.1 or 5, at QoS 1 in both directions."""
    broker = make_mosquitto()
    version = MQTTProtocolVersion.MQTTv5 if protocol == "5" else MQTTProtocolVersion.MQTTv311
    client = make_subscriber(broker.port, "edge/#", protocol=version)
    daemon = make_daemon(climate_device(broker, comfort, upstream=f'protocol = "{protocol}"')).start()
    client.wait_for_text("edge/room/status", "online")
    client.publish("sensors/a/climate", READING)
    assert client.wait_for(1, "edge/room/comfort/")[0].qos == 1
    assert daemon.stop() == 0
    assert f"as edge-room (p{5 if protocol == '5' else 2}," in broker.log


def test_a_wrong_password_is_said_and_mended_without_a_restart(
    make_mosquitto: MakeBroker, make_daemon: MakeDaemon, make_subscriber: MakeSubscriber, comfort: Path, tmp_path: Path
) -> None:
    """A refused login is no configuration mistake: the daemon stays, says so, and gets in once the file is right."""
    broker = make_mosquitto(users={"hub": "hub-secret", "room": "room-secret"}, acl=ACL)
    password = tmp_path / "broker.password"
    password.write_text("wrong-secret\n")
    password.chmod(0o600)
    login = 'username = "room"\npassword_file = "broker.password"'
    daemon = make_daemon(climate_device(broker, comfort, upstream=login)).start()
    wait_until(
        lambda: "not authori" in daemon.log.lower() or "refuse" in daemon.log.lower(),
        lambda: f"a word about the refused login:\n{daemon.log}",
    )
    assert daemon.returncode is None
    password.write_text("room-secret\n")
    client = make_subscriber(broker.port, "edge/#", login=("hub", "hub-secret"))
    client.wait_for_text("edge/room/status", "online")
    client.publish("sensors/a/climate", READING)
    client.wait_for(1, "edge/room/comfort/")
    assert daemon.stop() == 0
    assert "secret" not in daemon.log, "a password has no place in a log"


def test_predictions_travel_over_tls(
    make_mosquitto: MakeBroker,
    make_daemon: MakeDaemon,
    make_subscriber: MakeSubscriber,
    authority: CertificateAuthority,
    comfort: Path,
) -> None:
    """With `mqtts://` and the site's own authority the daemon speaks TLS to a broker that wants a certificate."""
    broker = make_mosquitto(tls=authority)
    client = make_subscriber(broker.port, "edge/#", ca_file=authority.certificate)
    upstream = f'ca_file = "{authority.certificate}"'
    daemon = make_daemon(climate_device(broker, comfort, upstream=upstream)).start()
    client.wait_for_text("edge/room/status", "online")
    client.publish("sensors/a/climate", READING)
    client.wait_for(1, "edge/room/comfort/")
    assert daemon.stop() == 0


def test_a_client_certificate_opens_a_broker_that_asks_for_one(
    make_mosquitto: MakeBroker, make_daemon: MakeDaemon, authority: CertificateAuthority, comfort: Path
) -> None:
    """`cert_file` and `key_file` are shown to a broker that refuses clients without a certificate."""
    broker = make_mosquitto(tls=authority, client_certificates=True)
    certificate, key = authority.issue("room")
    upstream = f'ca_file = "{authority.certificate}"\ncert_file = "{certificate}"\nkey_file = "{key}"'
    daemon = make_daemon(climate_device(broker, comfort, upstream=upstream)).start()
    daemon.wait_for_log("online")
    assert daemon.stop() == 0


def test_a_broker_that_a_stranger_vouches_for_is_not_spoken_to(
    make_mosquitto: MakeBroker,
    make_daemon: MakeDaemon,
    make_subscriber: MakeSubscriber,
    authority: CertificateAuthority,
    comfort: Path,
    tmp_path: Path,
) -> None:
    """A certificate of an unknown authority is refused, with a line that says so; nothing is sent."""
    stranger = CertificateAuthority(tmp_path / "stranger", "stranger")
    broker = make_mosquitto(tls=authority)
    client = make_subscriber(broker.port, "#", ca_file=authority.certificate)
    daemon = make_daemon(climate_device(broker, comfort, upstream=f'ca_file = "{stranger.certificate}"')).start()
    daemon.wait_for_log("certificate")
    assert daemon.stop() == 0
    assert client.on("edge/") == []
