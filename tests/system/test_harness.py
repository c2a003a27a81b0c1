"""The instruments of the system tests themselves: a broken thermometer must not pass for a healthy patient."""

import os
from pathlib import Path

import pytest

from tests.conftest import MakeBroker, MakePort, MakeSubscriber
from tests.support.broker import CertificateAuthority
from tests.support.waiting import wait_until

pytestmark = pytest.mark.system


def test_a_subscriber_hears_what_is_published(make_mosquitto: MakeBroker, make_subscriber: MakeSubscriber) -> None:
    """What one client publishes at QoS 1, another receives, in order."""
    broker = make_mosquitto()
    client = make_subscriber(broker.port, "edge/#")
    for number in range(200):
        client.publish(f"edge/{number}", {"n": number})
    client.flush()
    assert [message.document["n"] for message in client.wait_for(200)] == list(range(200))


def test_a_wait_that_is_in_vain_fails(make_mosquitto: MakeBroker, make_subscriber: MakeSubscriber) -> None:
    """Waiting for more messages than come is an error that says how many came."""
    broker = make_mosquitto()
    client = make_subscriber(broker.port, "edge/#")
    client.publish("edge/a", "1")
    with pytest.raises(AssertionError, match="2 messages under 'edge/'; 1 came"):
        client.wait_for(2, "edge/", deadline=0.5)


def test_a_persistent_broker_keeps_a_retained_message_over_a_kill(
    make_mosquitto: MakeBroker, make_subscriber: MakeSubscriber
) -> None:
    """A broker with persistence comes back on its port with what it had stored."""
    broker = make_mosquitto(persistence=True)
    client = make_subscriber(broker.port)
    client.publish("edge/kept", "yes", retain=True)
    client.flush()
    client.close()
    broker.stop()
    assert not broker.is_running
    broker.start()
    assert make_subscriber(broker.port, "edge/#").wait_for(1)[0].text == "yes"


def test_a_broker_with_users_refuses_strangers(make_mosquitto: MakeBroker, make_subscriber: MakeSubscriber) -> None:
    """Only who has the right password hears anything, and the access list holds."""
    broker = make_mosquitto(
        users={"hub": "right", "dev": "other"}, acl="user hub\ntopic readwrite #\nuser dev\ntopic read edge/dev/#\n"
    )
    hub = make_subscriber(broker.port, "edge/#", login=("hub", "right"))
    with pytest.raises(AssertionError, match="subscription"):
        make_subscriber(broker.port, "edge/#", login=("hub", "wrong"), deadline=1.0)
    assert "not authorised" in broker.log or "password" in broker.log
    dev = make_subscriber(broker.port, login=("dev", "other"))
    dev.publish("edge/hub/1", "forbidden")
    dev.flush()
    hub.publish("edge/hub/2", "allowed")
    assert hub.wait_for(1)[0].text == "allowed"


def test_a_broker_with_tls_shows_a_certificate_of_its_authority(
    make_mosquitto: MakeBroker, make_subscriber: MakeSubscriber, authority: CertificateAuthority
) -> None:
    """A client that trusts the authority is heard over TLS."""
    broker = make_mosquitto(tls=authority)
    client = make_subscriber(broker.port, "edge/#", ca_file=authority.certificate)
    client.publish("edge/a", "1")
    assert client.wait_for(1)[0].text == "1"


def test_a_virtual_port_can_be_unplugged(make_port: MakePort, tmp_path: Path) -> None:
    """A reader gets the bytes, then the end of the file at the unplugging; afterwards the same path works again."""
    port = make_port("imu")
    reader = os.open(port.path, os.O_RDONLY | os.O_NOCTTY)
    port.write(b"1,2\n")
    assert os.read(reader, 100) == b"1,2\n"
    port.unplug()
    assert not port.path.exists()
    assert os.read(reader, 100) == b"", "a hang-up reads as the end of the file"
    os.close(reader)
    port.plug()
    assert (tmp_path / "imu").exists()
    port.write(b"3\n")
    wait_until(lambda: port.pending() == 2, "the bytes to arrive at the other end")
