"""The programs of `examples/` at work: beside a real broker, a device, and the other side where there is one."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MakeDaemon, MakeSubscriber
from tests.support import builders
from tests.support.broker import Mosquitto
from tests.support.devices import climate_device
from tests.support.ports import find_free_port, wait_for_listener
from tests.support.subscriber import Subscriber
from tests.support.waiting import patient, wait_until

pytestmark = pytest.mark.system

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
NODE_RED = Path(os.environ.get("EDGE_NODE_RED", ROOT / ".venv" / "node-red" / "node_modules")) / "node-red" / "red.js"
INFLUXD = shutil.which("influxd")
Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a program; its output is in `NAME.out`. It is ended with the test."""
    begun: list[subprocess.Popen[bytes]] = []

    def begin(name: str, *argv: str | Path, **environment: str) -> subprocess.Popen[bytes]:
        with (tmp_path / f"{name}.out").open("wb") as out:
            begun.append(
                subprocess.Popen(
                    list(map(str, argv)),
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **environment},
                    cwd=tmp_path,
                    start_new_session=True,
                )
            )
        return begun[-1]

    yield begin
    for process in begun:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(patient(10))


@pytest.fixture
def home(mosquitto: Mosquitto, make_daemon: MakeDaemon, make_subscriber: MakeSubscriber, tmp_path: Path) -> Subscriber:
    """A device at the broker, with alarms for label `high`, and a client that sends it readings."""
    bundle = builders.classification(name="comfort").save(tmp_path / "comfort.onnx")
    make_daemon(climate_device(mosquitto, bundle, model='alarm_labels = ["high"]')).start()
    found = make_subscriber(mosquitto.port, "edge/#", "alarms/#")
    found.wait_for_text("edge/room/status", "online")
    return found


def _readings(home: Subscriber, *temperatures: float) -> bool:
    """Send them; False, for what is waited for by sending again and again."""
    for temperature in temperatures:
        home.publish("sensors/kitchen/climate", {"temperature": temperature, "humidity": 10.0})
    return False


def _again(home: Subscriber, messages: list[Any]) -> None:
    """Each prediction a second time, as after a broken link."""
    for message in messages:
        home.publish(message.topic, message.payload)


def test_the_subscriber_prints_every_prediction_once_also_after_it_was_away(
    mosquitto: Mosquitto, home: Subscriber, start: Start, tmp_path: Path
) -> None:
    """Repeats and the device's own documents are passed over."""
    argv = (sys.executable, EXAMPLES / "subscriber.py", "127.0.0.1", str(mosquitto.port), "edge/+/+/+")
    first = start("first", *argv)
    log = mosquitto.folder / "mosquitto.log"
    wait_until(lambda: "edge-subscriber" in mosquitto.log, lambda: f"the subscriber in {log}")

    def printed(name: str) -> list[dict[str, Any]]:
        lines = (tmp_path / f"{name}.out").read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    wait_until(lambda: _readings(home, 20.0) or bool(printed("first")), lambda: "a first prediction")
    _readings(home, 21.0, 22.0)
    predictions = list(home.wait_for(3, "edge/room/comfort/kitchen"))
    _again(home, predictions)
    _readings(home, 23.0)
    last = home.wait_for(len(predictions) + 1, "edge/room/comfort/kitchen")[-1].document["id"]
    wait_until(lambda: printed("first")[-1]["seq"] >= 4, lambda: f"the last one {last} in {printed('first')}")
    ids = [each["id"] for each in printed("first")]
    assert len(ids) == len(set(ids))
    first.kill()
    first.wait(patient(10))
    _readings(home, 30.0, 31.0)
    made = {each.document["id"] for each in home.on("edge/room/comfort/kitchen")}
    start("second", *argv)
    wait_until(
        lambda: {each["id"] for name in ("first", "second") for each in printed(name)} >= made,
        lambda: f"{made} in {printed('first') + printed('second')}",
    )


@pytest.mark.skipif(INFLUXD is None, reason="influxd is not installed: see .ci/run")
def test_influxdb_has_every_prediction_once(
    mosquitto: Mosquitto, home: Subscriber, start: Start, tmp_path: Path
) -> None:
    """A real InfluxDB answers what was written; repeats are one point, and what came while it was away is there."""
    port, inner = find_free_port(), find_free_port()
    (tmp_path / "influx.conf").write_text(
        f'reporting-disabled = true\nbind-address = "127.0.0.1:{inner}"\n[meta]\ndir = "{tmp_path}/meta"\n'
        f'[data]\ndir = "{tmp_path}/data"\nwal-dir = "{tmp_path}/wal"\n[http]\nbind-address = "127.0.0.1:{port}"\n'
    )
    url = f"http://127.0.0.1:{port}"
    start("writer", sys.executable, EXAMPLES / "influxdb.py", "127.0.0.1", str(mosquitto.port), f"{url}/write?db=edge")
    wait_until(lambda: "edge-influxdb" in mosquitto.log, lambda: "the writer at the broker")

    def refused() -> bool:
        _readings(home, 20.0)
        return "tried again" in (tmp_path / "writer.out").read_text()

    wait_until(refused, lambda: "a prediction that InfluxDB cannot take yet")
    assert INFLUXD is not None
    start("influxd", INFLUXD, "-config", tmp_path / "influx.conf")
    wait_for_listener(port)

    def ask(query: str) -> Any:
        data = urllib.parse.urlencode({"q": query, "db": "edge"}).encode()
        with urllib.request.urlopen(f"{url}/query", data, timeout=patient(10)) as answer:  # noqa: S310 - loopback
            return json.load(answer)["results"][0].get("series", [])

    ask("CREATE DATABASE edge")
    _again(home, home.on("edge/room/comfort/kitchen"))
    _readings(home, 90.0)
    made = {}

    def is_complete() -> bool:
        made.update({each.document["id"]: each.document for each in home.on("edge/room/comfort/kitchen")})
        points = ask('SELECT id, label, score, "scores.high", alarm FROM prediction')
        rows = [dict(zip(points[0]["columns"], row, strict=True)) for row in points[0]["values"]] if points else []
        stored = {row["id"]: row for row in rows}
        if len(rows) != len(made) or set(stored) != set(made) or "high" not in {row["label"] for row in rows}:
            return False
        return all(
            (row["label"], row["score"], row["scores.high"], row["alarm"])
            == (made[name]["label"], made[name]["score"], made[name]["scores"]["high"], made[name]["alarm"])
            for name, row in stored.items()
        )

    wait_until(is_complete, lambda: f"{len(made)} points", 30.0)
    tags = ask("SHOW TAG KEYS FROM prediction")[0]["values"]
    assert sorted(row[0] for row in tags) == ["device", "key", "model", "version"]


@pytest.mark.skipif(not NODE_RED.exists(), reason="needs Node-RED: make clients")
def test_the_flow_of_node_red_tells_each_alarm_once(
    mosquitto: Mosquitto, home: Subscriber, start: Start, tmp_path: Path
) -> None:
    """In a sentence; repeats and what is no alarm are passed over."""
    port = find_free_port()
    folder = tmp_path / "red"
    folder.mkdir()
    shutil.copy(EXAMPLES / "node-red" / "flow.json", folder / "flow.json")
    start(
        "red", "node", NODE_RED, "--userDir", folder, "--port", str(port), "flow.json",
        EDGE_BROKER_HOST="127.0.0.1", EDGE_BROKER_PORT=str(mosquitto.port),
    )  # fmt: skip
    output = tmp_path / "red.out"
    wait_until(lambda: "Connected to broker" in output.read_text(), output.read_text, 60.0)
    wait_until(lambda: _readings(home, 95.0) or home.on("alarms/edge"), output.read_text)  # it subscribes by and by
    predictions = home.wait_for(2, "edge/room/comfort/kitchen")
    _again(home, predictions)
    _readings(home, 12.0, 60.0)

    def last_is_told(_: object) -> bool:
        alarms = {each.document["id"]: each.document for each in home.on("edge/room/comfort/kitchen")}
        last = list(alarms.values())[-1]["score"]
        return any(str(last) in each.text for each in home.on("alarms/edge"))

    home.wait_until(last_is_told, "the last alarm")
    answered = [re.fullmatch(r"room: comfort says high \((.+)\)", each.text) for each in home.on("alarms/edge")]
    notified = [float(each[1]) for each in answered if each is not None]
    made = {each.document["id"]: each.document for each in home.on("edge/room/comfort/kitchen")}
    alarms = [each["score"] for each in made.values() if each["alarm"]]
    assert len(notified) == len(answered)
    assert notified == alarms[-len(notified) :]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed: see .ci/run")
def test_the_rules_of_prometheus_are_good_and_their_own_test_passes() -> None:
    """Rules, alerts and the scrape, by Prometheus' own judge."""
    for command in (
        ["check", "rules", "edge-rules.yml"],
        ["test", "rules", "edge-rules-test.yml"],
        ["check", "config", "--syntax-only", "prometheus.yml"],
    ):
        done = subprocess.run(
            ["promtool", *command],
            cwd=EXAMPLES / "prometheus",
            capture_output=True,
            text=True,
            timeout=patient(60),
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_metric_that_a_rule_names_is_on_the_page_of_a_device(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, make_subscriber: MakeSubscriber, tmp_path: Path
) -> None:
    """A device with rejected readings, a sink that fails, and lines that are too long for another (by a long name)."""
    port = find_free_port()
    bundle = builders.classification(name="comfort").save(tmp_path / "comfort.onnx")
    more = (
        f'\n[http]\nlisten = "127.0.0.1:{port}"\n[[sink]]\nname = "tight"\ntype = "file"\npath = "t.jsonl"\n'
        'max_bytes = 512\n[[sink]]\nname = "gone"\ntype = "command"\nargv = ["/nowhere/x"]\nwhen = "always"\n'
    )
    text = climate_device(mosquitto, bundle, model='payload = "json"') + more
    make_daemon(text.replace('id = "room"', f'id = "{"room" * 40}"').replace('"room.db"', '"r.db"')).start()
    home = make_subscriber(mosquitto.port, "edge/#")
    home.wait_for_text(f"edge/{'room' * 40}/status", "online")
    home.publish("sensors/kitchen/climate", {"temperature": "warm"})

    def scraped() -> set[str]:
        home.publish("sensors/kitchen/climate", {"temperature": 20.0, "humidity": 10.0})
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=patient(10)) as answer:
            page = answer.read().decode()
        return set(re.findall(r"^(edge_\w+)\{?.* ", page, re.MULTILINE))

    rules = (EXAMPLES / "prometheus" / "edge-rules.yml").read_text()
    named = set(re.findall(r"(?<![:\w])(edge_\w+?)\b(?![:\w])", rules))
    assert len(named) > 5
    wait_until(lambda: scraped() >= named, lambda: f"{named - scraped()} on the page")
