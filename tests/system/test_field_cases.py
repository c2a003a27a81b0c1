"""What sensors and senders in the field really do: each case leaves a line that a newcomer understands, or works."""

import json
from pathlib import Path

import pytest

from tests.conftest import MakeDaemon, MakePort
from tests.support import builders
from tests.support.broker import Mosquitto
from tests.support.subscriber import Subscriber

pytestmark = pytest.mark.system

CHANNELS = ("temperature", "humidity")


def device(broker: Mosquitto, folder: Path, source: str, model: str = "") -> str:
    """A device with one source of temperature and humidity, and one model of both."""
    bundle = builders.regression(channels=CHANNELS, targets=("comfort",)).save(folder / "comfort.onnx")
    return (
        f'[device]\nid = "field"\nhealth_interval = 0.5\n[[source]]\nname = "climate"\n{source}\n'
        f'[[model]]\nname = "m"\nbundle = "{bundle}"\nsource = "climate"\n{model}\n[upstream]\nurl = "{broker.url}"\n'
    )


def source_of_health(subscriber: Subscriber, reason: str) -> dict[str, str]:
    """The example that health holds of a reason, once it is there."""
    found: dict[str, str] = {}

    def has_come(messages: object) -> bool:
        for message in subscriber.messages:
            if message.topic == "edge/field/health":
                last = message.document["sources"]["climate"]["last_rejected"]
                found.update(last.get(reason, {}))
        return bool(found)

    subscriber.wait_until(has_come, f"health with {reason}")
    return found


def test_a_misnamed_channel_is_a_warning_with_topic_expected_and_found(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, subscriber: Subscriber, tmp_path: Path
) -> None:
    """A hundred misnamed readings left no line in the journal; now the first one says what to rename."""
    daemon = make_daemon(device(mosquitto, tmp_path, 'type = "mqtt"\ntopics = ["s/{key}"]')).start()
    subscriber.wait_for_text("edge/field/status", "online")
    for number in range(100):
        subscriber.publish("s/office", {"Temperature": 20 + number, "humidity": 50})
    last = source_of_health(subscriber, "missing_channel")
    assert daemon.stop() == 0
    assert (last["where"], last["why"]) == ("s/office", "no `temperature`, found `Temperature`")
    assert last["sample"].startswith('{"Temperature": ')
    lines = [line for line in daemon.log.splitlines() if "no `temperature`, found `Temperature`" in line]
    assert len(lines) == 1, "one line, and not a hundred"
    assert "WARNING" in lines[0]
    assert 'source "climate": s/office: ' in lines[0]


def test_a_sender_of_bare_carriage_returns_is_not_invisible(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, make_port: MakePort, subscriber: Subscriber, tmp_path: Path
) -> None:
    """2,890 bytes, `online`, and nothing counted: now a warning names the key that reads them, and with it they are."""
    port = make_port("cr")
    keys = f'type = "serial"\nport = "{port.path}"\nfields = ["temperature", "humidity"]\n'
    lines = b"".join(b"21.%d,48\r" % number for number in range(300))
    daemon = make_daemon(device(mosquitto, tmp_path, keys)).start()
    subscriber.wait_for_text("edge/field/status", "online")
    port.write(lines)
    assert 'set line_end = "cr" or "any"' in source_of_health(subscriber, "wrong_line_end")["why"]
    assert daemon.stop() == 0
    assert 'set line_end = "cr" or "any"' in daemon.log


def test_lines_with_bare_carriage_returns_are_read_where_that_is_set(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, make_port: MakePort, subscriber: Subscriber, tmp_path: Path
) -> None:
    """The same bytes with `line_end`: every line but the first one, which may have lost its beginning."""
    port = make_port("cr")
    keys = f'type = "serial"\nport = "{port.path}"\nfields = ["temperature", "humidity"]\nline_end = "cr"\n'
    daemon = make_daemon(device(mosquitto, tmp_path, keys)).start()
    subscriber.wait_for_text("edge/field/status", "online")
    port.write(b"".join(b"21.%d,48\r" % number for number in range(300)))
    subscriber.wait_for(299, "edge/field/m/")
    assert daemon.stop() == 0


def test_channels_that_come_in_turn_make_whole_readings(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, subscriber: Subscriber, tmp_path: Path
) -> None:
    """Alternating temperature and humidity messages were rejected for ever; now nine of ten are answered."""
    keys = (
        'type = "mqtt"\ntopics = ["s/{key}/temperature", "s/{key}/humidity"]\nrepair = {missing = "last", max_age = 60}'
    )
    daemon = make_daemon(device(mosquitto, tmp_path, keys)).start()
    subscriber.wait_for_text("edge/field/status", "online")
    for number in range(5):
        subscriber.publish("s/a/temperature", {"temperature": 20 + number})
        subscriber.publish("s/a/humidity", {"humidity": 50 + number})
    subscriber.wait_for(9, "edge/field/m/")
    assert daemon.stop() == 0


def test_a_regression_with_a_threshold_says_whether_it_is_an_alarm(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, subscriber: Subscriber, tmp_path: Path
) -> None:
    """Every prediction of it carries `alarm`, true exactly where its value is above the threshold."""
    keys = 'type = "mqtt"\ntopics = ["s/{key}"]'
    daemon = make_daemon(device(mosquitto, tmp_path, keys, "threshold = 0.0")).start()
    subscriber.wait_for_text("edge/field/status", "online")
    for number in range(-5, 5):
        subscriber.publish("s/a", json.dumps({"temperature": 20 * number, "humidity": -30 * number}))
    found = [message.document for message in subscriber.wait_for(10, "edge/field/m/")]
    assert daemon.stop() == 0
    assert {document["alarm"] for document in found} == {True, False}
    assert all(document["alarm"] == (document["values"]["comfort"] > 0.0) for document in found)
