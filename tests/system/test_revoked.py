"""A broker that takes a device's rights away while it works, and gives them back."""

from pathlib import Path

import pytest

from tests.conftest import MakeBroker, MakeDaemon, MakeSubscriber
from tests.support import builders
from tests.support.devices import climate_device
from tests.support.load import answered
from tests.support.subscriber import Subscriber
from tests.support.waiting import wait_until

pytestmark = pytest.mark.system

USERS = {"room": "p1", "hub": "p2"}
HUB = "user hub\ntopic readwrite #\n"
ALL = HUB + "user room\ntopic readwrite #\n"
NOT_A = HUB + "user room\ntopic deny edge/room/comfort/a\ntopic readwrite #\n"
LOGIN = 'username = "room"\npassword_file = "password"\n'


@pytest.fixture
def comfort(tmp_path: Path) -> Path:
    """A bundle of single readings, and the device's password beside it."""
    (tmp_path / "password").write_text("p1")
    return builders.classification(name="comfort").save(tmp_path / "comfort.onnx")


@pytest.mark.parametrize("extra", ["", "max_queued_messages 1000"], ids=["closes behind a refusal", "stays"])
def test_a_revoked_topic_holds_up_no_other_and_is_delivered_when_it_is_granted_again(
    make_mosquitto: MakeBroker, make_daemon: MakeDaemon, make_subscriber: MakeSubscriber, comfort: Path, extra: str
) -> None:
    """With MQTT 5 the device learns of it: it keeps these predictions, says so, and tries again; nothing is lost."""
    broker = make_mosquitto(users=USERS, acl=ALL, extra=extra)
    daemon = make_daemon(climate_device(broker, comfort, upstream=f'protocol = "5"\n{LOGIN}')).start()
    hub = make_subscriber(broker.port, "edge/#", login=("hub", "p2"))
    daemon.wait_for_log("online")
    for number in range(60):
        if number == 20:
            hub.wait_for(20, "edge/room/comfort/")
            broker.allow(NOT_A)
        reading = {"temperature": 1.0, "humidity": 2.0, "seq": number}
        hub.publish(f"sensors/{'ab'[number % 2]}/climate", reading)
    others = set(range(1, 60, 2))
    hub.wait_until(lambda _: others <= set(answered(hub)), "the other key's predictions", 60.0)
    wait_until(lambda: _errors(hub).get("refused_by_broker"), lambda: f"the refusal in health: {_errors(hub)}")
    assert set(answered(hub)) - others == set(range(0, 20, 2))
    broker.allow(ALL)
    hub.wait_until(lambda _: set(answered(hub)) == set(range(60)), lambda: f"all: {sorted(answered(hub))}", 90.0)
    assert daemon.stop() == 0


def _errors(hub: Subscriber) -> dict[str, int]:
    found = hub.on("edge/room/health")
    return dict(found[-1].document["errors"]) if found else {}


def test_without_mqtt_5_a_revoked_topic_goes_unnoticed(
    make_mosquitto: MakeBroker, make_daemon: MakeDaemon, make_subscriber: MakeSubscriber, comfort: Path
) -> None:
    """MQTT 3.1.1 has no word for a refusal: mosquitto acknowledges what its list denies, and throws it away.

    No promise of ours, and here so that the page of guarantees says what is so.
    """
    # 1000 is mosquitto's default; with 0, as in other tests, mosquitto 2.0 closes the connection behind a refusal
    broker = make_mosquitto(users=USERS, acl=NOT_A, extra="max_queued_messages 1000")
    daemon = make_daemon(climate_device(broker, comfort, upstream=LOGIN)).start()
    hub = make_subscriber(broker.port, "edge/#", login=("hub", "p2"))
    daemon.wait_for_log("online")
    for key in "ab":
        hub.publish(f"sensors/{key}/climate", {"temperature": 1.0, "humidity": 2.0})
    hub.wait_for(1, "edge/room/comfort/b")
    wait_until(
        lambda: (found := hub.on("edge/room/health")) and found[-1].document["published"] == 2,
        "both to count as delivered",
    )
    assert hub.on("edge/room/comfort/a") == []
    assert daemon.stop() == 0
