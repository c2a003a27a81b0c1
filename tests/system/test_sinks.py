"""A device with every kind of sink at a real broker: what each gets, and that a broken one harms nothing else."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MakeDaemon, MakeSubscriber
from tests.support import builders
from tests.support.broker import Mosquitto
from tests.support.devices import climate_device
from tests.support.ports import find_free_port
from tests.support.post_server import PostServer
from tests.support.subscriber import Message
from tests.support.waiting import wait_until

pytestmark = pytest.mark.system


@pytest.fixture
def server() -> Iterator[PostServer]:
    """Takes every POST."""
    found = PostServer()
    yield found
    found.stop()


def _device(mosquitto: Mosquitto, folder: Path, sinks: str, *, publish: str = "alarm") -> str:
    bundle = builders.classification(name="comfort").save(folder / "comfort.onnx")
    return climate_device(mosquitto, bundle, model=f'alarm_labels = ["high"]\npublish = "{publish}"') + sinks


def _reading(temperature: float) -> dict[str, float]:
    return {"temperature": temperature, "humidity": 10.0}


def _documents(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_each_sink_gets_what_it_asks_for(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, make_subscriber: MakeSubscriber, server: PostServer, tmp_path: Path
) -> None:
    """Everything to the file, changes to the server, alarms to the program and the broker; with the same ids."""
    out = tmp_path / "alarms"
    write = f"open({str(out)!r}, 'a').write(sys.stdin.read() + chr(10))"
    argv = json.dumps([sys.executable, "-c", f"import sys; {write}"])
    daemon = make_daemon(
        _device(
            mosquitto,
            tmp_path,
            f'\n[[sink]]\nname = "log"\ntype = "file"\npath = "log/p.jsonl"\n'
            f'\n[[sink]]\nname = "web"\ntype = "http"\nurl = "{server.url}"\nwhen = "change"\n'
            f'\n[[sink]]\nname = "siren"\ntype = "command"\nargv = {argv}\nmin_interval = 0\n',
        )
    ).start()
    home = make_subscriber(mosquitto.port, "edge/#")
    home.wait_for_text("edge/room/status", "online")
    for temperature in (10.0, 11.0, 90.0, 91.0, 12.0):
        home.publish("sensors/kitchen/climate", _reading(temperature))
    log = daemon.config.parent / "log" / "p.jsonl"
    wait_until(lambda: len(_documents(log)) == 5, lambda: f"five lines in {_documents(log)}\n{daemon.log}")
    wait_until(lambda: len(server.accepted) == 3, lambda: f"three predictions in {server.accepted}")
    wait_until(lambda: len(_documents(out)) == 2, lambda: f"two alarms in {_documents(out)}")
    published = [each.document for each in home.wait_for(2, "edge/room/comfort/kitchen")]
    labels = [each["label"] for each in _documents(log)]
    assert labels == ["low", "low", "high", "high", "low"]
    assert [each["label"] for each in server.accepted] == ["low", "high", "low"]
    assert [each for each in _documents(log) if each["alarm"]] == published == _documents(out)
    assert [each["seq"] for each in published] == [1, 2]
    assert [each["seq"] for each in _documents(log)] == [0, 0, 1, 2, 2]
    assert len({each["id"] for each in _documents(log)}) == 5
    home.wait_until(lambda found: '"written":5' in found[-1].text, "health of the sinks")


def test_broken_sinks_are_named_and_harm_nothing_else(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, make_subscriber: MakeSubscriber, tmp_path: Path
) -> None:
    """A server that is away, a program that is missing, one that hangs, a path that leads nowhere; and a reload."""
    port = find_free_port()
    hanging = json.dumps([sys.executable, "-c", "import time; time.sleep(1000)"])
    broken = (
        f'\n[[sink]]\nname = "web"\ntype = "http"\nurl = "http://127.0.0.1:{port}/"\n'
        '\n[[sink]]\nname = "gone"\ntype = "command"\nargv = ["/nowhere/siren"]\nwhen = "always"\n'
        f'\n[[sink]]\nname = "stuck"\ntype = "command"\nargv = {hanging}\nwhen = "always"\ntimeout = 1000.0\n'
        '\n[[sink]]\nname = "lost"\ntype = "file"\npath = "/proc/nowhere/p.jsonl"\n'
    )
    good = '\n[[sink]]\nname = "log"\ntype = "file"\npath = "p.jsonl"\n'
    daemon = make_daemon(_device(mosquitto, tmp_path, broken + good, publish="always")).start()
    home = make_subscriber(mosquitto.port, "edge/#")
    home.wait_for_text("edge/room/status", "online")
    for number in range(20):
        home.publish("sensors/kitchen/climate", _reading(number))
    predictions = [each.document for each in home.wait_for(20, "edge/room/comfort/kitchen")]
    log = daemon.config.parent / "p.jsonl"
    wait_until(lambda: len(_documents(log)) == 20, lambda: f"twenty lines\n{daemon.log}")
    assert [each["id"] for each in _documents(log)] == [each["id"] for each in predictions]

    def faults(messages: list[Message]) -> set[str]:
        health = [each.document for each in messages if each.topic == "edge/room/health"][-1:]
        return {reason for each in health for sink in each["sinks"].values() for reason in sink.get("errors", {})}

    home.wait_until(lambda found: faults(found) >= {"no_answer", "not_started", "sink_disk"}, "three sinks in health")
    assert daemon.log.count("/nowhere/siren: cannot be started") == 1
    daemon.config.write_text(_device(mosquitto, tmp_path, good, publish="always"))
    daemon.reload()
    daemon.wait_for_log('sink "web" was removed')
    home.publish("sensors/kitchen/climate", _reading(1.0))
    wait_until(lambda: len(_documents(log)) == 21, lambda: f"another line\n{daemon.log}")
    assert daemon.stop() == 0
