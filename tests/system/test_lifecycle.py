"""What an operator and systemd see of a running device: status, health, models, readiness, reload."""

from pathlib import Path

import pytest

from tests.conftest import MakeDaemon, MakePort, MakeSubscriber
from tests.support import builders
from tests.support.broker import Mosquitto
from tests.support.devices import climate_device
from tests.support.subscriber import Message, Subscriber

pytestmark = pytest.mark.system

READING = {"temperature": 21.4, "humidity": 48.2}


@pytest.fixture
def comfort(tmp_path: Path) -> Path:
    """A bundle of single readings."""
    return builders.classification(name="comfort").save(tmp_path / "comfort.onnx")


def _newest(messages: list[Message], topic: str) -> Message | None:
    return next((message for message in reversed(messages) if message.topic == topic), None)


def _health(client: Subscriber, device: str = "room") -> dict[str, object]:
    message = _newest(client.on(f"edge/{device}/health"), f"edge/{device}/health")
    assert message is not None
    document: dict[str, object] = message.document
    return document


def test_a_prediction_says_all_that_a_subscriber_needs(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, subscriber: Subscriber, comfort: Path
) -> None:
    """A prediction is one JSON object on `edge/{device}/{model}/{key}` that names model, key, time and scores."""
    make_daemon(climate_device(mosquitto, comfort)).start()
    subscriber.wait_for_text("edge/room/status", "online")
    reading = {**READING, "time": "2026-11-23T11:19:04.123456Z"}
    subscriber.publish("sensors/kitchen/climate", reading)
    message = subscriber.wait_for(1, "edge/room/comfort/")[0]
    prediction = message.document
    assert message.topic == "edge/room/comfort/kitchen"
    assert message.qos == 1
    assert not message.retained
    assert prediction["device"] == "room"
    assert prediction["model"] == "comfort"
    assert prediction["version"] == "1.0.0"
    assert prediction["source"] == "climate"
    assert prediction["key"] == "kitchen"
    assert prediction["time"] == "2026-11-23T11:19:04.123456Z"
    assert prediction["seq"] == 1
    assert prediction["id"].startswith("room/comfort/kitchen/")
    assert set(prediction["scores"]) == {"low", "high"}
    assert prediction["score"] == max(prediction["scores"].values())
    assert prediction["scores"][prediction["label"]] == prediction["score"]
    assert not prediction.get("delayed", False)


def test_status_is_retained_and_turns_offline_when_the_device_dies(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, make_subscriber: MakeSubscriber, comfort: Path
) -> None:
    """`edge/{device}/status` is `online` while the device serves and `offline` after a stop, or by last will."""
    daemon = make_daemon(climate_device(mosquitto, comfort)).start()
    watching = make_subscriber(mosquitto.port, "edge/room/status")
    watching.wait_for_text("edge/room/status", "online")
    late = make_subscriber(mosquitto.port, "edge/room/status")
    assert late.wait_for(1)[0].retained
    daemon.kill()
    watching.wait_for_text("edge/room/status", "offline")
    daemon.start()
    watching.wait_for_text("edge/room/status", "online")
    assert daemon.stop() == 0
    watching.wait_for_text("edge/room/status", "offline")
    assert make_subscriber(mosquitto.port, "edge/room/status").wait_for(1)[0].text == "offline"


def test_models_are_listed_with_their_digest(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, make_subscriber: MakeSubscriber, comfort: Path
) -> None:
    """`edge/{device}/models` is retained JSON that names every model, its version, digest and state."""
    import hashlib  # noqa: PLC0415

    make_daemon(climate_device(mosquitto, comfort)).start()
    client = make_subscriber(mosquitto.port, "edge/room/models")
    (listed,) = client.wait_for(1)[0].document
    assert listed["name"] == "comfort"
    assert listed["version"] == "1.0.0"
    assert listed["digest"] == hashlib.sha256(comfort.read_bytes()).hexdigest()
    assert listed["state"] == "active"


def test_health_counts_what_happened(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, subscriber: Subscriber, comfort: Path
) -> None:
    """`edge/{device}/health` is JSON with the counters; rejections and losses stand there by reason."""
    make_daemon(climate_device(mosquitto, comfort)).start()
    subscriber.wait_for_text("edge/room/status", "online")
    for _ in range(7):
        subscriber.publish("sensors/a/climate", READING)
    subscriber.publish("sensors/a/climate", b"no JSON")
    subscriber.wait_for(7, "edge/room/comfort/")
    subscriber.wait_until(
        lambda messages: (
            (m := _newest(messages, "edge/room/health")) and m.document["published"] == 7 and m.document["rejected"]
        ),
        lambda: f"health with 7 published; {_health(subscriber)}",
    )
    health = _health(subscriber)
    assert health["rejected"] == {"malformed": 1}
    assert health["dropped"] == {}
    assert health["readings"] == 7
    assert health["predictions"] == 7


def test_systemd_is_told_when_the_device_is_ready_and_when_it_stops(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, comfort: Path
) -> None:
    """The daemon sends READY, a STATUS line, the watchdog's pulse, and STOPPING."""
    daemon = make_daemon(climate_device(mosquitto, comfort), WATCHDOG_USEC="400000").start()
    daemon.wait_for_notification("WATCHDOG=1")
    assert any(line.startswith("STATUS=") for line in daemon.notifications)
    assert daemon.stop() == 0
    assert "STOPPING=1" in daemon.notifications


def test_sighup_reads_the_file_again_and_says_what_changed(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, subscriber: Subscriber, comfort: Path
) -> None:
    """After SIGHUP the daemon runs with the changed file, and its log names the changed key with both values."""
    daemon = make_daemon(climate_device(mosquitto, comfort)).start()
    subscriber.wait_for_text("edge/room/status", "online")
    changed = daemon.config.read_text().replace("sensors/{key}/climate", "rooms/{key}")
    daemon.config.write_text(changed)
    subscriber.clear()
    daemon.reload()
    daemon.wait_for_log("rooms/{key}")
    subscriber.wait_for_text("edge/room/status", "online")
    subscriber.publish("rooms/hall", READING)
    assert subscriber.wait_for(1, "edge/room/comfort/")[0].document["key"] == "hall"
    assert daemon.stop() == 0


def test_sighup_with_a_mistake_changes_nothing(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, subscriber: Subscriber, comfort: Path
) -> None:
    """A file that has become wrong is refused with its mistakes, and the daemon goes on as it was."""
    daemon = make_daemon(climate_device(mosquitto, comfort)).start()
    subscriber.wait_for_text("edge/room/status", "online")
    daemon.config.write_text(daemon.config.read_text().replace("stop_timeout", "stop_timeuot"))
    daemon.reload()
    daemon.wait_for_log("stop_timeuot")
    subscriber.publish("sensors/a/climate", READING)
    subscriber.wait_for(1, "edge/room/comfort/")
    assert daemon.stop() == 0


def test_two_sources_and_two_models_do_not_mix(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, make_port: MakePort, subscriber: Subscriber, tmp_path: Path
) -> None:
    """Each model hears its own source alone: one a serial port, the other MQTT topics with keys."""
    climate = builders.classification(name="comfort").save(tmp_path / "comfort.onnx")
    vibration = builders.anomaly(length=4, stride=2).save(tmp_path / "vibration.onnx")
    port = make_port("imu")
    more = f"""
[[source]]
name = "imu"
type = "serial"
port = "{port.path}"
fields = ["accel_x", "accel_y", "accel_z"]

[[model]]
name = "vibration"
bundle = "{vibration}"
source = "imu"

[[model]]
name = "comfort-too"
bundle = "{climate}"
source = "climate"
"""
    daemon = make_daemon(climate_device(mosquitto, climate) + more).start()
    subscriber.wait_for_text("edge/room/status", "online")
    port.write(b"\n" + b"".join(b"%d,0,0\n" % number for number in range(1, 11)))
    subscriber.publish("sensors/a/climate", READING)
    subscriber.publish("sensors/b/climate", READING)
    vibrations = [m.document for m in subscriber.wait_for(4, "edge/room/vibration/-")]
    comforts = [m.document for m in subscriber.wait_for(2, "edge/room/comfort/")]
    both = [m.document for m in subscriber.wait_for(2, "edge/room/comfort-too/")]
    assert daemon.stop() == 0
    # the first line may be cut off by the opening of the port: windows of four, every two readings
    assert [round(p["score"] * 12) for p in vibrations] == [10, 18, 26, 34]
    assert all(p["key"] is None and "scores" not in p for p in vibrations)
    assert sorted(p["key"] for p in comforts) == ["a", "b"] == sorted(p["key"] for p in both)


def test_a_replayed_file_is_predicted_to_its_end(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, subscriber: Subscriber, tmp_path: Path
) -> None:
    """A recording replayed at full speed gives one prediction a reading, at the recorded times."""
    bundle = builders.anomaly(channels=["value"]).save(tmp_path / "level.onnx")
    rows = "".join(f"2026-01-01T00:{minute:02d}:00Z,{minute}.5\n" for minute in range(60))
    (tmp_path / "recording.csv").write_text(f"time,value\n{rows}")
    text = climate_device(mosquitto, bundle).replace('type = "mqtt"', 'type = "replay"')
    text = text.replace('topics = ["sensors/{key}/climate"]', 'files = ["recording.csv"]\nspeed = "full"')
    daemon = make_daemon(text).start()
    predictions = [m.document for m in subscriber.wait_for(60, "edge/room/comfort/-")]
    assert daemon.stop() == 0
    assert [p["score"] for p in predictions] == [minute + 0.5 for minute in range(60)]
    assert predictions[59]["time"] == "2026-01-01T00:59:00.000000Z"
