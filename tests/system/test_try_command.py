"""`edge-runtime try`: each frame, what became of it, and why no prediction comes; nothing published, nothing stored."""

import json
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.bringup.trial_report import as_line
from tests.conftest import MakeDaemon, MakePort
from tests.support import builders
from tests.support.broker import Mosquitto
from tests.support.installed import Installed, clean_environment
from tests.support.subscriber import Subscriber
from tests.support.waiting import patient

pytestmark = pytest.mark.system

CHANNELS = ("temperature", "humidity")
Event = dict[str, Any]


class Attempt:
    """A running `try --json`, whose events are read one by one."""

    def __init__(self, installed: Installed, device: Path, *options: str) -> None:
        self.process = subprocess.Popen(
            [str(installed.edge_runtime), "try", str(device), "--json", *options],
            cwd=device.parent,
            env=clean_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.events: list[Event] = []

    def until(self, wanted: Callable[[Event], object]) -> Event:
        """The next event of this kind; the process ends by itself, so that this ends too."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.events.append(json.loads(line))
            if wanted(self.events[-1]):
                return self.events[-1]
        raise AssertionError(f"no such event: {self.events}")

    def stop(self) -> int:
        """Ctrl-C."""
        self.process.send_signal(signal.SIGINT)
        assert self.process.stdout is not None
        self.events += [json.loads(line) for line in self.process.stdout]
        return self.process.wait(patient(20))


@pytest.fixture
def attempt(installed: Installed, tmp_path: Path) -> Iterator[Callable[..., Attempt]]:
    """Begin a trial of a device file: `attempt(source, model, broker)`."""
    begun: list[Attempt] = []

    def begin(source: str, url: str, *options: str, length: int = 1) -> Attempt:
        device = write_device(tmp_path, source, url, length=length)
        begun.append(Attempt(installed, device, "--seconds", "60", *options))
        return begun[-1]

    yield begin
    for each in begun:
        if each.process.poll() is None:
            each.process.kill()
        each.process.communicate()


def write_device(folder: Path, source: str, url: str, *, length: int = 1) -> Path:
    """A device with one source of temperature and humidity, and one model of both."""
    bundle = folder / "comfort.onnx"
    builders.regression(channels=CHANNELS, targets=("comfort",), length=length).save(bundle)
    path = folder / "room.toml"
    path.write_text(
        f'[device]\nid = "room"\n[[source]]\nname = "climate"\n{source}\n'
        f'[[model]]\nname = "m"\nbundle = "{bundle}"\nsource = "climate"\n[upstream]\nurl = "{url}"\n'
    )
    return path


def is_open(event: Event) -> bool:
    """The source is ready."""
    return event["event"] == "state" and bool(event["open"])


MQTT = 'type = "mqtt"\ntopics = ["$share/all/s/{key}", "other"]'


def test_it_shows_frames_readings_refusals_and_predictions_beside_the_daemon(
    mosquitto: Mosquitto,
    attempt: Callable[..., Attempt],
    make_daemon: MakeDaemon,
    subscriber: Subscriber,
    tmp_path: Path,
) -> None:
    """A daemon that shares the topics with others gets every message all the same, and only its predictions go out."""
    source = MQTT.replace(', "other"', "")
    daemon = make_daemon(write_device(tmp_path, source, mosquitto.url).read_text()).start()
    subscriber.wait_for_text("edge/room/status", "online")
    begun = attempt(source, mosquitto.url, "--frames")
    begun.until(is_open)
    subscriber.publish("s/office", {"Temperature": 20, "humidity": 50})
    refused = begun.until(lambda event: event["event"] == "rejected")
    assert (refused["rejected"], refused["where"]) == ("missing_channel", "s/office")
    assert refused["why"] == "no `temperature`, found `Temperature`"
    for number in range(3):
        subscriber.publish("s/office", {"temperature": 20 + number, "humidity": 50})
    predictions = [begun.until(lambda event: event["event"] == "prediction")["prediction"] for _ in range(3)]
    assert begun.stop() == 0
    assert [each["key"] for each in predictions] == ["office"] * 3
    readings = [event for event in begun.events if event["event"] == "reading"]
    assert [event["reading"] for event in readings] == [{"temperature": 20.0 + n, "humidity": 50.0} for n in range(3)]
    frames = [event for event in begun.events if event["event"] == "frame"]
    assert [json.loads(event["frame"])["humidity"] for event in frames] == [50] * 4
    subscriber.wait_for(3, "edge/room/m/office")
    assert daemon.stop() == 0
    assert len(subscriber.on("edge/room/m/office")) == 3, "those of the daemon, and none of the trial"
    own = {message.document["values"]["comfort"] for message in subscriber.on("edge/room/m/office")}
    assert {each["values"]["comfort"] for each in predictions} == own, "the daemon's own answers"


def test_no_broker_keeps_a_session_for_it(mosquitto: Mosquitto, attempt: Callable[..., Attempt]) -> None:
    """A session that stays would make the broker queue messages for a client that never comes back."""
    begun = attempt(MQTT, mosquitto.url)
    begun.until(is_open)
    assert begun.stop() == 1, "nothing came"
    came = re.findall(r"as (edge-try-\S+) \(p2, c(\d)", mosquitto.log)
    assert [clean for _, clean in came] == ["1"], "CONNECT with clean session: the broker forgets it with the link"


def test_a_serial_port_is_read_and_the_window_counted(attempt: Callable[..., Attempt], make_port: MakePort) -> None:
    """Each reading says how full the window is; a line that is none says why."""
    port = make_port("imu")
    keys = f'type = "serial"\nport = "{port.path}"\nfields = ["temperature", "humidity"]'
    begun = attempt(keys, "mqtt://127.0.0.1:1", length=4)
    begun.until(is_open)
    port.write(b"first,\n21.5,40\n21.5,x\n21.6,41\n")
    rejected = begun.until(lambda event: event["event"] == "rejected")
    assert rejected["frame"] == "21.5,x"
    second = begun.until(lambda event: event["event"] == "reading" and event["reading"]["humidity"] == 41)
    assert second["windows"] == {"m": [2, 4]}
    port.write(b"21.7,42\n21.8,43\n")
    begun.until(lambda event: event["event"] == "prediction")
    assert begun.stop() == 0
    last = [event for event in begun.events if event["event"] == "reading"][-1]
    assert last["windows"] == {"m": [4, 4]}


def test_a_port_that_the_daemon_holds_is_named(
    mosquitto: Mosquitto,
    attempt: Callable[..., Attempt],
    make_daemon: MakeDaemon,
    make_port: MakePort,
    subscriber: Subscriber,
    tmp_path: Path,
) -> None:
    """A port has one reader: the trial says that another process holds it."""
    port = make_port("imu")
    keys = f'type = "serial"\nport = "{port.path}"\nfields = ["temperature", "humidity"]'
    make_daemon(write_device(tmp_path, keys, mosquitto.url).read_text()).start()
    subscriber.wait_for_text("edge/room/status", "online")
    begun = attempt(keys, mosquitto.url)
    state = begun.until(lambda event: event["event"] == "state" and "holds the port" in event["state"])
    assert str(port.path) in state["state"]
    assert begun.stop() == 1


def test_the_end_says_why_no_prediction_came(installed: Installed, tmp_path: Path) -> None:
    """A recording shorter than the window: the lines name what the window holds, and how long it would take."""
    recording = tmp_path / "room.csv"
    recording.write_text("temperature,humidity\n" + "21.5,40\n" * 5)
    keys = f'type = "replay"\nfiles = ["{recording}"]\nrate_hz = 50'
    device = write_device(tmp_path, keys, "mqtt://127.0.0.1:1", length=8)
    done = installed.run(installed.edge_runtime, "try", device, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "reading" in done.stdout
    assert "source climate: 5 frames, 5 readings, 0 rejected" in done.stdout
    assert "no prediction yet: the fullest window holds 5 of 8 readings" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["comfort.onnx", "room.csv", "room.toml"]


def test_a_wrong_file_ends_as_check_does(installed: Installed, tmp_path: Path) -> None:
    """Every mistake, a line each, and 78."""
    device = write_device(tmp_path, 'type = "mqtt"\ntopics = []', "mqtt://127.0.0.1:1")
    done = installed.run(installed.edge_runtime, "try", device, "--seconds", "1", cwd=tmp_path)
    assert done.returncode == 78
    assert 'source "climate".topics' in done.stderr or "topics" in done.stderr


def test_what_a_stranger_names_cannot_steer_a_terminal() -> None:
    """Topics and keys are shown as frames are: short, and with escape sequences spelled out."""
    hostile = "s/\x1b[2J\u202e" + 5_000 * "k"
    event = {"event": "rejected", "time": 0.0, "source": "s", "rejected": "bad_key", "why": "no", "where": hostile}
    reading = {"event": "reading", "time": 0.0, "source": "s", "key": hostile, "reading": {"a": 1.0}, "windows": {}}
    for line in (as_line(event), as_line(reading)):
        assert line.isprintable()
        assert r"\x1b" in line
        assert len(line) < 400
