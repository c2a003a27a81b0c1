"""Whatever a sensor or a stranger sends: it is counted by its reason, nothing wrong is published, the daemon stays."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import MakeDaemon, MakePort
from tests.support import builders
from tests.support.broker import Mosquitto
from tests.support.devices import climate_device, watch_device
from tests.support.subscriber import Message, Subscriber

pytestmark = pytest.mark.system

GOOD = {"temperature": 21.4, "humidity": 48.2}
FIELDS = ("accel_x", "accel_y", "accel_z")


def _rejected(messages: list[Message], device: str) -> dict[str, int]:
    newest = next((m for m in reversed(messages) if m.topic == f"edge/{device}/health"), None)
    return {} if newest is None else dict(newest.document["rejected"])


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"certainly no JSON", "malformed"),
        (b"", "malformed"),
        (b'"text"', "malformed"),
        (b'{"temperature": 21.4', "malformed"),
        (b"\xff\xfe\x00\x01", "noise"),
        (json.dumps({"temperature": 21.4}).encode(), "missing_channel"),
        (json.dumps({**GOOD, "temperature": "warm"}).encode(), "wrong_type"),
        (json.dumps({**GOOD, "temperature": None}).encode(), "missing_channel"),
        (b'{"temperature": NaN, "humidity": 40}', "not_finite"),
        (b'{"temperature": 1e999, "humidity": 40}', "not_finite"),
        (json.dumps({**GOOD, "temperature": 1e7}).encode(), "out_of_range"),
        (json.dumps({**GOOD, "time": "yesterday"}).encode(), "bad_time"),
        (b"[" * 100_000, "too_long"),
        (b" " * 10_000_000, "too_long"),
    ],
)
def test_a_bad_message_is_counted_and_the_next_good_one_answered(
    mosquitto: Mosquitto,
    make_daemon: MakeDaemon,
    subscriber: Subscriber,
    tmp_path: Path,
    payload: bytes,
    reason: str,
) -> None:
    """A message that is no reading of the contract stands in health under one reason; only good ones are answered."""
    bundle = builders.classification(name="comfort").save(tmp_path / "comfort.onnx")
    daemon = make_daemon(climate_device(mosquitto, bundle)).start()
    subscriber.wait_for_text("edge/room/status", "online")
    subscriber.publish("sensors/a/climate", payload)
    subscriber.publish("sensors/a/climate", {**GOOD, "seq": 7})
    subscriber.wait_until(
        lambda messages: _rejected(messages, "room"),
        lambda: f"a rejection in health; its log:\n{daemon.log}",
    )
    (answer,) = subscriber.wait_for(1, "edge/room/comfort/")
    assert answer.document["id"] == "room/comfort/a/7"
    assert _rejected(subscriber.messages, "room") == {reason: 1}
    assert daemon.stop() == 0
    assert len(subscriber.on("edge/room/comfort/")) == 1


def test_a_topic_that_matches_no_source_is_counted(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, subscriber: Subscriber, tmp_path: Path
) -> None:
    """What a broker still sends for an earlier configuration is no reading, and is counted as `unmatched_topic`."""
    bundle = builders.classification(name="comfort").save(tmp_path / "comfort.onnx")
    daemon = make_daemon(climate_device(mosquitto, bundle)).start()
    subscriber.wait_for_text("edge/room/status", "online")
    assert daemon.stop() == 0
    daemon.config.write_text(daemon.config.read_text().replace("sensors/{key}/climate", "rooms/{key}"))
    subscriber.publish("sensors/a/climate", GOOD)  # the broker keeps it for the session
    subscriber.flush()
    subscriber.clear()
    daemon.start()
    subscriber.wait_for_text("edge/room/status", "online")
    subscriber.publish("rooms/a", {**GOOD, "seq": 7})
    subscriber.wait_until(
        lambda messages: _rejected(messages, "room"), lambda: f"a rejection in health; its log:\n{daemon.log}"
    )
    assert _rejected(subscriber.messages, "room") == {"unmatched_topic": 1}
    (answer,) = subscriber.wait_for(1, "edge/room/comfort/")
    assert answer.document["id"] == "room/comfort/a/7"
    assert daemon.stop() == 0


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"1,2\n", "malformed"),
        (b"one,two,three\n", "wrong_type"),
        (b"1,2,\n", "missing_channel"),
        (b"nan,2,3\n", "not_finite"),
        (b"1,2,9e9\n", "out_of_range"),
        (b"\x80\xfe\xfd\xff\n", "noise"),
    ],
)
def test_a_bad_line_is_counted_and_the_next_good_one_answered(
    mosquitto: Mosquitto,
    make_daemon: MakeDaemon,
    make_port: MakePort,
    subscriber: Subscriber,
    tmp_path: Path,
    line: bytes,
    reason: str,
) -> None:
    """A line that is no reading of the contract stands in health under one reason; only good ones are answered."""
    bundle = builders.anomaly(name="activity", channels=FIELDS).save(tmp_path / "activity.onnx")
    port = make_port("imu")
    daemon = make_daemon(watch_device(mosquitto, bundle, port.path, FIELDS)).start()
    subscriber.wait_for_text("edge/watch/status", "online")
    port.write(b"\n" + line + b"6,6,6\n")
    subscriber.wait_until(
        lambda messages: _rejected(messages, "watch"), lambda: f"a rejection in health; its log:\n{daemon.log}"
    )
    (answer,) = subscriber.wait_for(1, "edge/watch/activity/")
    assert answer.document["score"] == 6.0
    assert _rejected(subscriber.messages, "watch") == {reason: 1}
    assert daemon.stop() == 0


def test_a_line_of_ten_megabytes_is_skipped(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, make_port: MakePort, subscriber: Subscriber, tmp_path: Path
) -> None:
    """A line without end costs one count and no memory; the line after it is read."""
    bundle = builders.anomaly(name="activity", channels=FIELDS).save(tmp_path / "activity.onnx")
    port = make_port("imu")
    daemon = make_daemon(watch_device(mosquitto, bundle, port.path, FIELDS)).start()
    subscriber.wait_for_text("edge/watch/status", "online")
    before = daemon.resident_bytes
    port.write(b"\n")
    for _ in range(10):
        port.write(b"1" * 1_000_000)
    port.write(b"\n6,6,6\n")
    subscriber.wait_for(1, "edge/watch/activity/")
    grown = daemon.resident_bytes - before
    subscriber.wait_until(
        lambda messages: _rejected(messages, "watch") == {"too_long": 1},
        lambda: f"one line too long; {_rejected(subscriber.messages, 'watch')}",
    )
    assert grown < 5_000_000
    assert daemon.stop() == 0


def test_no_field_of_a_prediction_is_ever_nan(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, subscriber: Subscriber, tmp_path: Path
) -> None:
    """Where the model itself gives NaN nothing is published, and the window is counted."""
    bundle = builders.anomaly(channels=["a", "b"])
    bundle.model.graph.node[0].op_type = "Sqrt"  # of a negative reading: NaN
    bundle.refresh_golden(np.ones((4, 1, 2), np.float32))
    path = bundle.save(tmp_path / "root.onnx")
    daemon = make_daemon(climate_device(mosquitto, path)).start()
    subscriber.wait_for_text("edge/room/status", "online")
    subscriber.publish("sensors/a/climate", {"a": -1.0, "b": -1.0, "seq": 1})
    subscriber.publish("sensors/a/climate", {"a": 4.0, "b": 4.0, "seq": 2})
    (answer,) = subscriber.wait_for(1, "edge/room/comfort/")
    assert answer.document["score"] == 2.0
    assert daemon.stop() == 0
    assert len(subscriber.on("edge/room/comfort/")) == 1
