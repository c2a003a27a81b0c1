"""What the fleet's commands do at a real broker, with stand-ins for the devices: few commands see many of them."""

import json
import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from edge_runtime.fleet.broker_line import BrokerLine, Login
from edge_runtime.fleet.broker_view import look_at
from edge_runtime.fleet.inventory import load_inventory, select
from tests.conftest import MakeSubscriber
from tests.support import builders
from tests.support.broker import Mosquitto
from tests.support.installed import Installed, clean_environment
from tests.support.namespaces import ROOT
from tests.support.subscriber import Subscriber
from tests.support.waiting import patient, wait_until

pytestmark = [pytest.mark.system, pytest.mark.slow]

MODEL = [{"name": "m", "bundle": "m", "version": "1.1.0", "digest": "d" * 64, "state": "active", "why": None}]

EXAMPLE: dict[str, Any] = json.loads((ROOT / "docs" / "schemas" / "health.json").read_text())["examples"][0]


def write_inventory(folder: Path, broker: Mosquitto, names: list[str]) -> Path:
    """Devices that only their broker reaches; one canary, and one device a wave."""
    text = f'[broker]\nurl = "{broker.url}"\n[rollout]\ncanaries = 1\nwave = 1\nsoak = 0.0\n'
    text += "".join(f'[[device]]\nname = "{name}"\ntransport = "mqtt"\n' for name in names)
    (folder / "fleet.toml").write_text(text)
    return folder / "fleet.toml"


@pytest.fixture
def answering(mosquitto: Mosquitto) -> Iterator[list[str]]:
    """A client that publishes the health of each device whose name is in this list, when it is asked."""
    names: list[str] = []

    def answer(client: mqtt.Client, _userdata: object, message: mqtt.MQTTMessage) -> None:
        name = message.topic.split("/")[1]
        if name in names:
            machine = EXAMPLE["machine"] | {"id": f"id-{name}", "uptime_s": 60.0}
            health = EXAMPLE | {"runtime": "1.2.3", "queued": 0, "machine": machine}
            client.publish(f"edge/{name}/health", json.dumps(health))

    client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="stand-ins")
    client.on_message = answer
    client.connect("127.0.0.1", mosquitto.port)
    client.subscribe("edge/+/ota/ask")
    client.loop_start()
    yield names
    client.disconnect()
    client.loop_stop()


def test_devices_asks_two_hundred_by_one_connection_and_three_subscriptions(
    mosquitto: Mosquitto, installed: Installed, subscriber: Subscriber, answering: list[str], tmp_path: Path
) -> None:
    """Every device has its row; the broker saw one client with three wildcards; those without a model are counted."""
    names = [f"press-{number:03}" for number in range(200)]
    inventory = write_inventory(tmp_path, mosquitto, names)
    for number, name in enumerate(names):
        is_away = number % 20 == 3
        subscriber.publish(f"edge/{name}/status", "offline" if is_away else "online", retain=True)
        subscriber.publish(f"edge/{name}/models", json.dumps([] if number % 20 == 5 else MODEL), retain=True)
        if not is_away:
            answering.append(name)
    subscriber.flush()
    before = len(mosquitto.log)
    done = installed.run(
        installed.edge_runtime, "devices", cwd=tmp_path, EDGE_FLEET=str(inventory)
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    rows = [line.split()[:3] for line in done.stdout.splitlines()[1:]]
    expected = [
        [name, "no" if number % 20 == 3 else "yes", "m"] for number, name in enumerate(names) if number % 20 != 5
    ]
    assert [row for row in rows if row[2] == "m"] == expected
    assert len(rows) == 200
    assert done.stderr.startswith("200 devices: 180 m 1.1.0, 10 not reachable, 10 no model; 190 done, 10 away (")
    seen = mosquitto.log[before:]
    clients = set(re.findall(r"New client connected from \S+ as (\S+) ", seen))
    assert len(clients) == 1, "one connection for all of them"
    (client,) = clients
    subscribed = re.findall(rf": {re.escape(client)} [01] (edge/\S+)", seen)
    assert sorted(subscribed) == ["edge/+/health", "edge/+/models", "edge/+/status"]


class Operator:
    """Whoever calls `edge-runtime rollout` on a machine with this inventory."""

    def __init__(self, folder: Path, installed: Installed, inventory: Path) -> None:
        self.keys = builders.signer(folder / "keys")
        self._folder = folder
        self._installed = installed
        self._inventory = str(inventory)

    def __call__(self, *words: str | Path) -> dict[str, Any]:
        """A command to its end: the document that it prints, with the exit code and the results in it."""
        done = self._installed.run(
            self._installed.edge_runtime, "rollout", *words, "--json", cwd=self._folder, EDGE_FLEET=self._inventory
        )
        assert done.stdout, done.stderr
        return read(done.stdout) | {"code": done.returncode}

    def begin(self, *words: str | Path) -> "subprocess.Popen[str]":
        """A command that goes on."""
        return subprocess.Popen(
            [str(self._installed.edge_runtime), "rollout", *map(str, words), "--json", "--quiet"],
            cwd=self._folder, env=clean_environment() | {"EDGE_FLEET": self._inventory},
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip


def read(text: str) -> dict[str, Any]:
    """The JSON of a rollout, with `results` by device."""
    document: dict[str, Any] = json.loads(text)
    document["results"] = {each["device"]: each["result"] for each in document["devices"]}
    return document


def retained(mosquitto: Mosquitto, make_subscriber: MakeSubscriber) -> dict[str, str]:
    """Which devices the broker keeps a document for, and of which serial: read by a client that has just come."""
    client = make_subscriber(mosquitto.port, "edge/+/desired", "done")
    client.publish("done", "x")
    client.wait_for_text("done", "x")
    found = {each.topic.split("/")[1]: each.payload for each in client.on("edge/") if each.payload}
    client.close()
    return {name: json.loads(json.loads(payload)["document"])["serial"] for name, payload in found.items()}


def confirm(subscriber: Subscriber, name: str) -> None:
    """The stand-in of a device reports that it follows its document, and that its probation is over."""
    wait_until(lambda: bool(subscriber.on(f"edge/{name}/desired")), f"a document for {name}", 60.0)
    document = json.loads(subscriber.on(f"edge/{name}/desired")[-1].document["document"])
    keys = ("rollout", "serial", "model", "version", "digest")
    report = {key: document[key] for key in keys} | {"state": "confirmed", "why": None, "before": None}
    report |= {"received": document["size"], "size": document["size"]}
    subscriber.publish(f"edge/{name}/rollout", report, retain=True)
    subscriber.flush()


def test_a_pause_holds_back_the_next_wave_and_an_abort_takes_back_what_has_not_begun(
    mosquitto: Mosquitto,
    installed: Installed,
    subscriber: Subscriber,
    make_subscriber: MakeSubscriber,
    tmp_path: Path,
) -> None:
    """Two operators: one runs the rollout, the other pauses it, goes on, and aborts it; the broker tells the truth."""
    inventory = write_inventory(tmp_path, mosquitto, ["a", "b", "c", "d"])
    operator = Operator(tmp_path, installed, inventory)
    bundle = builders.classification(name="m", version="1.1.0").save(tmp_path / "m.onnx")
    operator.keys.sign(bundle)
    running = operator.begin("start", bundle, "--all", "--sign", operator.keys.key)
    try:
        wait_until(lambda: bool(subscriber.on("edge/a/desired")), "the canary's document", 60.0)
        assert operator("pause")["state"] == "paused"
        confirm(subscriber, "a")
        out, _ = running.communicate(timeout=patient(60))
    finally:
        running.kill()
        running.wait(patient(20))
    assert read(out)["state"] == "paused"
    status = operator("status")
    assert (status["state"], status["code"]) == ("paused", 1)
    assert status["results"] == {"a": "done", "b": "not tried", "c": "not tried", "d": "not tried"}
    assert set(retained(mosquitto, make_subscriber)) == {"a"}, "nothing was published after the pause"

    resumed = operator("resume", "--sign", operator.keys.key, "--detach")
    assert (resumed["state"], resumed["results"]["b"]) == ("running", "away")
    confirm(subscriber, "b")
    operator("resume", "--sign", operator.keys.key, "--detach")
    kept = retained(mosquitto, make_subscriber)
    assert set(kept) == {"a", "b", "c"}
    assert kept["a"] < kept["b"] < kept["c"]

    aborted = operator("abort")
    assert (aborted["state"], aborted["code"]) == ("aborted", 1)
    assert aborted["results"] == {"a": "done", "b": "done", "c": "not tried", "d": "not tried"}
    assert aborted["devices"][2]["text"] == "its document was taken back before it began"
    assert retained(mosquitto, make_subscriber) == {"a": kept["a"], "b": kept["b"]}, "what is confirmed is kept"
    what = [each["what"] for each in operator("status")["history"] if not each["device"]]
    assert what[1:] == ["paused", "resumed", "aborted"]
    refused = installed.run(
        installed.edge_runtime, "rollout", "resume", "--sign", operator.keys.key, cwd=tmp_path,
        EDGE_FLEET=str(inventory),
    )  # fmt: skip
    assert refused.returncode == 1
    assert "expected it paused or stopped, found it aborted" in refused.stderr


def test_thousands_of_messages_are_published_without_a_pause(mosquitto: Mosquitto) -> None:
    """Acknowledgements come in another thread while the next ones go out: neither waits for the other for ever."""
    with BrokerLine(Login(url=mosquitto.url), ["x"]) as line:
        assert line.hear(20.0) is not None

        def publish() -> None:
            for number in range(4000):
                line.publish(f"d{number}/x", b"x" * 100)

        thread = threading.Thread(target=publish, name="publishes", daemon=True)
        thread.start()
        thread.join(60.0)
        assert not thread.is_alive()
        wait_until(lambda: line.is_settled, "every acknowledgement", 60.0)


def test_a_broker_that_keeps_few_messages_for_a_subscriber_hides_no_device(
    tmp_path: Path, make_subscriber: MakeSubscriber
) -> None:
    """Mosquitto as shipped drops what is retained beyond 1,000 messages; here it drops nearly everything."""
    broker = Mosquitto(tmp_path / "broker", extra="max_queued_messages 10\nmax_inflight_messages 5").start()
    try:
        names = [f"press-{number:03}" for number in range(150)]
        inventory = write_inventory(tmp_path, broker, names)
        client = make_subscriber(broker.port, "done")
        for name in names:
            client.publish(f"edge/{name}/status", "online", retain=True)
            client.publish(f"edge/{name}/models", json.dumps(MODEL), retain=True)
        client.flush()
        fleet = load_inventory(inventory)
        known = look_at(select(fleet, [], everything=True))
        assert {each.status for each in known.values()} == {"online"}
        assert all(each.models for each in known.values())
    finally:
        broker.stop()
