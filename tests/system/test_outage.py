"""Dead brokers and dead daemons: predictions wait, arrive in order, and every message is accounted for."""

from pathlib import Path

import pytest

from tests.conftest import MakeBroker, MakeDaemon, MakePort, MakeSubscriber
from tests.support import builders
from tests.support.broker import Mosquitto
from tests.support.devices import climate_device, watch_device
from tests.support.subscriber import Message, Subscriber
from tests.support.waiting import wait_until

pytestmark = pytest.mark.system

FIELDS = ("accel_x", "accel_y", "accel_z")


@pytest.fixture
def comfort(tmp_path: Path) -> Path:
    """A bundle of single readings."""
    return builders.classification(name="comfort").save(tmp_path / "comfort.onnx")


def _publish(client: Subscriber, numbers: range, key: str = "a") -> None:
    for number in numbers:
        reading = {"temperature": number * 0.01, "humidity": 40.0, "seq": number}
        client.publish(f"sensors/{key}/climate", reading)


def _identities(client: Subscriber, device: str = "room") -> list[int]:
    return [int(m.document["id"].rpartition("/")[2]) for m in client.on(f"edge/{device}/comfort/")]


def _is_open(messages: list[Message]) -> bool | None:
    newest = next((message for message in reversed(messages) if message.topic == "edge/watch/health"), None)
    return None if newest is None else bool(newest.document["sources"]["imu"]["open"])


def _first_of_each(numbers: list[int]) -> list[int]:
    return list(dict.fromkeys(numbers))


def test_predictions_wait_for_a_broker_that_is_down_at_the_start(
    make_mosquitto: MakeBroker,
    make_daemon: MakeDaemon,
    make_port: MakePort,
    make_subscriber: MakeSubscriber,
    tmp_path: Path,
) -> None:
    """The daemon starts without its broker, predicts meanwhile, and delivers everything later, marked as delayed."""
    broker = make_mosquitto(start=False)
    bundle = builders.anomaly(name="activity", channels=FIELDS).save(tmp_path / "activity.onnx")
    port = make_port("imu")
    daemon = make_daemon(watch_device(broker, bundle, port.path, FIELDS)).start()
    daemon.wait_for_log("imu")
    port.write(b"".join(b"%d,0,0\n" % number for number in range(301)))
    daemon.wait_for_log(str(broker.port))
    broker.start()
    client = make_subscriber(broker.port, "edge/#")
    predictions = [m.document for m in client.wait_for(300, "edge/watch/activity/")]
    assert [p["seq"] for p in predictions] == sorted(p["seq"] for p in predictions)
    assert predictions[0].get("delayed") is True
    client.wait_for_text("edge/watch/status", "online")
    assert daemon.stop() == 0


def test_a_broker_restart_loses_nothing(
    make_mosquitto: MakeBroker, make_daemon: MakeDaemon, make_subscriber: MakeSubscriber, comfort: Path
) -> None:
    """Readings at QoS 1 before, during and after a restart of the broker are all answered, in order."""
    broker = make_mosquitto(persistence=True)
    client = make_subscriber(broker.port, "edge/#", client_id="tests")
    daemon = make_daemon(climate_device(broker, comfort)).start()
    client.wait_for_text("edge/room/status", "online")
    _publish(client, range(200))
    client.wait_for(100, "edge/room/comfort/")
    broker.restart()
    _publish(client, range(200, 400))
    client.flush()
    client.wait_until(
        lambda _: set(_identities(client)) == set(range(400)),
        lambda: f"400 predictions; missing {sorted(set(range(400)) - set(_identities(client)))[:20]}",
        deadline=40,
    )
    assert daemon.stop() == 0
    assert _first_of_each(_identities(client)) == list(range(400))


def test_a_killed_daemon_answers_every_reading_and_repeats_can_be_told(
    make_mosquitto: MakeBroker, make_daemon: MakeDaemon, make_subscriber: MakeSubscriber, comfort: Path
) -> None:
    """`kill -9` amid a stream at QoS 1: after the restart every reading is answered, and a repeat has the same id."""
    broker = make_mosquitto()
    client = make_subscriber(broker.port, "edge/#")
    daemon = make_daemon(climate_device(broker, comfort)).start()
    client.wait_for_text("edge/room/status", "online")
    _publish(client, range(1000))
    client.wait_for(150, "edge/room/comfort/")
    daemon.kill()
    client.wait_for_text("edge/room/status", "offline")
    client.flush()
    daemon.start()
    client.wait_until(
        lambda _: set(_identities(client)) == set(range(1000)),
        lambda: f"1000 predictions; missing {sorted(set(range(1000)) - set(_identities(client)))[:20]}",
        deadline=40,
    )
    assert daemon.stop() == 0
    by_id: dict[str, str] = {}
    for message in client.on("edge/room/comfort/"):
        prediction = message.document
        label = by_id.setdefault(prediction["id"], prediction["label"])
        assert label == prediction["label"], "a repeat says the same"
    assert len(by_id) == 1000


def test_sigterm_delivers_what_is_held(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, make_port: MakePort, make_subscriber: MakeSubscriber, tmp_path: Path
) -> None:
    """Asked to stop, the daemon delivers what it has predicted, says that it stops, and says goodbye as offline."""
    bundle = builders.anomaly(name="activity", channels=FIELDS).save(tmp_path / "activity.onnx")
    port = make_port("imu")
    client = make_subscriber(mosquitto.port, "edge/#")
    daemon = make_daemon(watch_device(mosquitto, bundle, port.path, FIELDS)).start()
    client.wait_for_text("edge/watch/status", "online")
    port.write(b"".join(b"%d,0,0\n" % number for number in range(501)))
    client.wait_for(1, "edge/watch/activity/")
    assert daemon.stop() == 0
    assert any(line.startswith("STOPPING=1") for line in daemon.notifications)
    client.wait_for_text("edge/watch/status", "offline")
    seqs = [m.document["seq"] for m in client.on("edge/watch/activity/")]
    assert seqs == list(range(1, len(seqs) + 1)), "in order, none missing"


def test_sigterm_writes_down_what_a_silent_broker_has_not_acknowledged(
    make_mosquitto: MakeBroker,
    make_daemon: MakeDaemon,
    make_port: MakePort,
    make_subscriber: MakeSubscriber,
    tmp_path: Path,
) -> None:
    """However long `commit_interval` is: what cannot be delivered is on the disk when the daemon has ended."""
    broker = make_mosquitto()
    bundle = builders.anomaly(name="activity", channels=FIELDS).save(tmp_path / "activity.onnx")
    port = make_port("imu")
    client = make_subscriber(broker.port, "edge/#")
    text = watch_device(broker, bundle, port.path, FIELDS).replace("commit_interval = 0.1", "commit_interval = 3600")
    daemon = make_daemon(text.replace("health_interval = 0.5", "health_interval = 0.5\nstop_timeout = 5.0")).start()
    client.wait_for_text("edge/watch/status", "online")
    broker.pause()
    try:
        port.write(b"".join(b"%d,0,0\n" % number for number in range(2001)))
        wait_until(lambda: port.unread == 0, "the daemon to read what was written")
        assert daemon.stop() == 0
    finally:
        broker.resume()
    client.clear()
    daemon.start()
    delivered = client.wait_for(1900, "edge/watch/activity/")
    assert daemon.stop() == 0
    first = [int(m.document["seq"]) for m in delivered if m.document.get("delayed")]
    assert sorted(set(first)) == list(range(1, len(set(first)) + 1)), "none missing"
    assert "predictions are lost" not in daemon.log


def test_an_unplugged_port_comes_back(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, make_port: MakePort, make_subscriber: MakeSubscriber, tmp_path: Path
) -> None:
    """Pull the plug: the daemon stays, says so, and reads on when the port is there again."""
    bundle = builders.anomaly(name="activity", channels=FIELDS).save(tmp_path / "activity.onnx")
    port = make_port("imu")
    client = make_subscriber(mosquitto.port, "edge/#")
    daemon = make_daemon(watch_device(mosquitto, bundle, port.path, FIELDS)).start()
    client.wait_for_text("edge/watch/status", "online")
    port.write(b"\n1,1,1\n2,2,2\n")
    before = len(client.wait_for(2, "edge/watch/activity/"))
    port.unplug()
    client.wait_until(lambda messages: _is_open(messages) is False, "a health document that says the port is gone")
    port.plug()
    client.wait_until(_is_open, "a health document that says the port is back")
    port.write(b"\n3,3,3\n")
    assert client.wait_for(before + 1, "edge/watch/activity/")[-1].document["score"] == 3.0
    assert daemon.stop() == 0
