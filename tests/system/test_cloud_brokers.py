"""The brokers of two clouds, by their documented rules: a device that is set up for them breaks none."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_runtime.system.child import collect_output
from tests.conftest import MakeDaemon, MakeSubscriber
from tests.support import builders
from tests.support.broker import CertificateAuthority, Mosquitto
from tests.support.cloud_brokers import AwsIotCore, AzureIotHub, sas_token, server_context
from tests.support.waiting import wait_until

pytestmark = pytest.mark.system

READING = {"temperature": 21.0, "humidity": 40.0}
KEY = b"a device's key, which stays on the device"
# What docs/brokers.md gives for Azure: a token of the device's key, with Python's standard library.
TOKEN = Path(__file__).resolve().parents[2] / "examples" / "cloud" / "sas_token.py"


def device(local: Mosquitto, bundle: Path, upstream: str, *, name: str = "press-07") -> str:
    """Readings from a broker on the machine, predictions to the cloud."""
    return f"""
[device]
id = "{name}"
health_interval = 0.5

[[source]]
name = "climate"
type = "mqtt"
url = "{local.url}"
topics = ["sensors/{{key}}/climate"]

[[model]]
name = "comfort"
bundle = "{bundle}"
source = "climate"

[upstream]
reconnect_min = 0.05
reconnect_max = 0.2
{upstream}
"""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    """Signs both sides."""
    return CertificateAuthority(tmp_path_factory.mktemp("ca"))


@pytest.fixture
def aws(authority: CertificateAuthority) -> Iterator[AwsIotCore]:
    """AWS IoT Core with the policy of one thing."""
    context = server_context(*authority.issue("aws"), authority.certificate)
    broker = AwsIotCore(context, "Press_07:Line-A", ("dt/plant/Press_07:Line-A/",))
    yield broker
    broker.close()


def test_a_device_keeps_the_rules_of_aws_iot_core(
    aws: AwsIotCore,
    authority: CertificateAuthority,
    mosquitto: Mosquitto,
    make_daemon: MakeDaemon,
    make_subscriber: MakeSubscriber,
    tmp_path: Path,
) -> None:
    """Certificates and ALPN on one port, the thing's name as client id, and every topic within its policy."""
    bundle = builders.classification(name="comfort").save(tmp_path / "comfort.onnx")
    certificate, key = authority.issue("thing")
    upstream = f"""
url = "mqtts://localhost:{aws.port}"
alpn = "x-amzn-mqtt-ca"
ca_file = "{authority.certificate}"
cert_file = "{certificate}"
key_file = "{key}"
client_id = "Press_07:Line-A"
topic = "dt/plant/Press_07:Line-A/{{model}}/{{key}}"
status_topic = "dt/plant/Press_07:Line-A/status"
models_topic = "dt/plant/Press_07:Line-A/models"
health_topic = "dt/plant/Press_07:Line-A/health"
"""
    make_daemon(device(mosquitto, bundle, upstream)).start()
    wait_until(lambda: "SUBACK" in mosquitto.log, lambda: mosquitto.log[-2000:])
    sensor = make_subscriber(mosquitto.port)
    for number in range(20):
        sensor.publish("sensors/hall/climate", READING | {"seq": number})
    expected = "dt/plant/Press_07:Line-A/comfort/hall"
    wait_until(lambda: sum(each.topic == expected for each in aws.published) >= 20, lambda: str(aws.violations))
    wait_until(lambda: sum(each.topic.endswith("/health") for each in aws.published) >= 2, lambda: str(aws.published))
    assert aws.violations == []
    assert aws.connects == 1
    assert aws.client_ids == ["Press_07:Line-A"]
    assert aws.alpn == [AwsIotCore.ALPN]


def test_a_device_that_is_not_set_up_for_it_is_shut_out(
    aws: AwsIotCore, authority: CertificateAuthority, mosquitto: Mosquitto, make_daemon: MakeDaemon, tmp_path: Path
) -> None:
    """The rules bite: the topics of a device as shipped end the connection, and so does a missing ALPN."""
    bundle = builders.classification(name="comfort").save(tmp_path / "comfort.onnx")
    certificate, key = authority.issue("thing")
    upstream = f"""
url = "mqtts://localhost:{aws.port}"
ca_file = "{authority.certificate}"
cert_file = "{certificate}"
key_file = "{key}"
client_id = "Press_07:Line-A"
"""
    daemon = make_daemon(device(mosquitto, bundle, upstream)).start()
    wait_until(lambda: "no x-amzn-mqtt-ca on the port of HTTPS" in aws.violations, lambda: str(aws.violations))
    text = daemon.config.read_text()
    daemon.config.write_text(text.replace("client_id", 'alpn = "x-amzn-mqtt-ca"\nclient_id'))
    daemon.reload()
    wait_until(lambda: "a will on edge/press-07/status" in aws.violations, lambda: str(aws.violations))


@pytest.mark.parametrize("scheme", ["mqtts", "wss"])
def test_a_device_keeps_the_rules_of_azure_iot_hub(
    scheme: str,
    authority: CertificateAuthority,
    mosquitto: Mosquitto,
    make_daemon: MakeDaemon,
    make_subscriber: MakeSubscriber,
    tmp_path: Path,
) -> None:
    """Tokens are renewed before they expire, one topic takes everything, and no reading is lost or sent anew by it."""
    name = "press(07)@line.A"
    bundle = builders.classification(name="comfort").save(tmp_path / "comfort.onnx")
    path = "/$iothub/websocket" if scheme == "wss" else None
    context = server_context(*authority.issue("azure"), authority.certificate)
    hub = AzureIotHub(context, name, KEY, path=path)
    (tmp_path / "device.key").write_bytes(KEY)
    command = [sys.executable, str(TOKEN), hub.HUB, name, str(tmp_path / "device.key"), "6"]
    upstream = f"""
url = "{scheme}://localhost:{hub.port}{path or ""}"
ca_file = "{authority.certificate}"
client_id = "{name}"
username = "{hub.HUB}/{name}/?api-version=2021-04-12"
password_command = {json.dumps(command)}
password_lifetime = 6.0
topic = "devices/{{device}}/messages/events/model={{model}}&key={{key}}"
status_topic = "devices/{{device}}/messages/events/kind=status"
models_topic = ""
health_topic = "devices/{{device}}/messages/events/kind=health"
retain = false
"""
    make_daemon(device(mosquitto, bundle, upstream, name=name)).start()
    wait_until(lambda: "SUBACK" in mosquitto.log, lambda: mosquitto.log[-2000:])
    sensor = make_subscriber(mosquitto.port)
    sent = 0

    def renewed() -> bool:
        nonlocal sent
        sensor.publish("sensors/hall/climate", READING | {"seq": sent})
        sent += 1
        return len(hub.tokens) >= 3

    wait_until(renewed, lambda: f"{hub.tokens} {hub.violations}", 60)
    topic = f"{hub.events}model=comfort&key=hall"
    wait_until(lambda: sum(each.topic == topic for each in hub.published) >= sent, lambda: str(hub.violations), 30)
    identities = [json.loads(each.payload)["id"] for each in hub.published if each.topic == topic]
    hub.close()
    assert hub.violations == []
    assert hub.expired == 0
    assert len(set(hub.tokens)) == len(hub.tokens)
    assert set(hub.client_ids) == {name}
    assert len(set(identities)) == sent
    assert not any(each.retain for each in hub.published)


def test_the_token_of_the_example_is_the_one_of_the_service(tmp_path: Path) -> None:
    """Computed a second time, and let in: another key, another device or a token that is over is not."""
    (tmp_path / "device.key").write_bytes(KEY)
    words = [sys.executable, str(TOKEN), "hub.azure-devices.net", "d 1", str(tmp_path / "device.key"), "3600"]
    code, output = collect_output(words, most_bytes=10_000, seconds=60.0)
    token = output.decode().strip()
    assert code == 0
    assert token == sas_token("hub.azure-devices.net", "d 1", KEY, float(token.rpartition("se=")[2]))


def test_a_program_that_gives_no_password_is_named_and_asked_again(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, make_subscriber: MakeSubscriber, tmp_path: Path
) -> None:
    """The daemon goes on without a link, says why, and connects when the program can."""
    bundle = builders.classification(name="comfort").save(tmp_path / "comfort.onnx")
    token = tmp_path / "token"
    upstream = f'url = "{mosquitto.url}"\nusername = "x"\npassword_command = ["cat", "{token}"]\n'
    everything = make_subscriber(mosquitto.port, "edge/#")
    daemon = make_daemon(device(mosquitto, bundle, upstream)).start(ready=False)
    sentence = "password_command: cat ended with exit code 1: run it by hand, as the user of this service"
    wait_until(lambda: sentence in daemon.log, lambda: daemon.log[-2000:])
    token.write_text("s3cret\n")
    everything.wait_for_text("edge/press-07/status", "online")
    assert "s3cret" not in daemon.log
