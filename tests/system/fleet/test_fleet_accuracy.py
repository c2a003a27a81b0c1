"""`devices --accuracy` over a real broker and over real ssh: confusions of devices, without a reading of theirs."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from tests.conftest import MakeDaemon
from tests.support import builders
from tests.support.broker import Mosquitto
from tests.support.devices import climate_device
from tests.support.installed import Installed
from tests.support.namespaces import Device
from tests.support.subscriber import Subscriber
from tests.support.waiting import wait_until
from tests.system.fleet.conftest import MakeLan

pytestmark = pytest.mark.system


def test_the_confusions_of_two_devices_are_summed(
    mosquitto: Mosquitto, installed: Installed, make_daemon: MakeDaemon, subscriber: Subscriber, tmp_path: Path
) -> None:
    """From what the broker retains and health; one device that is gone has a line with the reason."""
    bundle = builders.classification().save(tmp_path / "comfort.onnx")
    for name in ("hall", "roof"):
        make_daemon(climate_device(mosquitto, bundle, device=name)).start()
        subscriber.wait_for_text(f"edge/{name}/status", "online")
    for number in range(6):
        reading = {"temperature": number - 3, "humidity": 1, "id": f"r{number}"}
        subscriber.publish("sensors/a/climate", reading)
    expected: dict[str, dict[str, int]] = {}
    for name, count in (("hall", 6), ("roof", 2)):
        made = [message.document for message in subscriber.wait_for(6, f"edge/{name}/comfort/a")]
        for each in made[:count]:
            subscriber.publish(f"edge/{name}/truth/comfort", {"id": each["id"], "label": "low"})
            expected.setdefault("low", {}).setdefault(each["label"], 0)
            expected["low"][each["label"]] += 1
        wait_for_judged(subscriber, name, count)
    (tmp_path / "fleet.toml").write_text(
        f'[broker]\nurl = "{mosquitto.url}"\n'
        + "".join(f'[[device]]\nname = "{name}"\ntransport = "mqtt"\n' for name in ("hall", "roof", "gone"))
    )

    def ask(*more: str) -> Any:
        words, inventory = ["devices", "--accuracy", *more], str(tmp_path / "fleet.toml")
        return installed.run(installed.edge_runtime, *words, cwd=tmp_path, EDGE_FLEET=inventory)

    done = ask("--json")
    found = json.loads(done.stdout)
    assert done.returncode == 3, done.stderr
    assert [each["name"] for each in found["devices"]] == ["hall", "roof", "gone"]
    (total,) = found["models"]
    assert (total["model"], total["devices"], total["n"]) == ("comfort", 2, 8)
    assert total["confusion"] == expected
    shown = ask().stdout
    assert "2 devices  comfort  1.0.0    8" in shown
    assert "a row is the truth, a column the prediction" in shown
    assert "was it ever online?" in shown


def wait_for_judged(client: Subscriber, name: str, count: int) -> None:
    """Until so many predictions of a device have their truth."""

    def judged() -> int:
        found = client.on(f"edge/{name}/accuracy/comfort")
        return int(found[-1].document["n"]) if found else 0

    wait_until(lambda: judged() == count, lambda: f"{count} judged, found {judged()}", 15)


ALONE = """
[device]
id = "{name}"
health_interval = 0.5
[[source]]
name = "s"
type = "replay"
files = ["{folder}/{name}.csv"]
speed = "full"
[[model]]
name = "comfort"
bundle = "{folder}/comfort.onnx"
source = "s"
publish = "change"
[upstream]
url = "mqtt://127.0.0.1"
[http]
listen = "127.0.0.1:8088"
"""
POST = """
import json, sys, urllib.request
for document in json.load(open(sys.argv[1])):
    body = json.dumps(document).encode()
    asked = urllib.request.Request("http://127.0.0.1:8088/truth/comfort", body, {"Content-Type": "application/json"})
    try:
        urllib.request.urlopen(asked, timeout=10)
    except urllib.error.HTTPError as refused:
        assert refused.code == 404 and "id" in document, refused.read()
"""


@pytest.mark.slow
def test_the_figures_of_devices_that_ssh_reaches_are_a_plain_sum(make_lan: MakeLan, tmp_path: Path) -> None:
    """Three daemons without a broker: what their truth says is added up as a list of all windows would be."""
    lan = make_lan(4)
    for device in lan.devices:
        device.run("mount -t tmpfs shm /dev/shm")  # else the status of other daemons of this machine is found there
    bundle = builders.classification().save(tmp_path / "comfort.onnx")
    session = onnxruntime.InferenceSession(str(bundle))
    names = ("low", "high")
    (tmp_path / "post.py").write_text(POST)
    rng = np.random.default_rng(4)
    counted: dict[str, dict[str, int]] = {}
    judged = right = 0
    for device, rows in zip(lan.devices[:3], (7, 40, 3), strict=True):
        x = rng.normal(size=(rows, 2)).round(3).astype(np.float32)
        answered = [names[int(session.run(["label"], {"window": row[None, None]})[0][0])] for row in x]
        truth = [name if rng.random() < 0.8 else "low" for name in answered]
        times = [1_800_000_000 + 10 * place for place in range(rows)]
        lines = [f"{time},{row[0]},{row[1]}" for time, row in zip(times, x.tolist(), strict=True)]
        (tmp_path / f"{device.name}.csv").write_text("\n".join(["time,temperature,humidity", *lines, ""]))
        (tmp_path / f"{device.name}.toml").write_text(ALONE.format(name=device.name, folder=tmp_path))
        notified = [{"time": time, "label": name} for time, name in zip(times, truth, strict=True)]
        (tmp_path / f"{device.name}.json").write_text(
            json.dumps([*notified, {"id": "of another device", "label": "low"}])
        )
        for one, other in zip(truth, answered, strict=True):
            counted.setdefault(one, {}).setdefault(other, 0)
            counted[one][other] += 1
            judged, right = judged + 1, right + (one == other)
        _start(device, tmp_path, rows)
        device.run(f"{sys.executable} {tmp_path}/post.py {tmp_path}/{device.name}.json")
        _wait_for_judged(device, rows)
    answer = lan.command("devices", "--accuracy", "--json", "--quiet")
    found = json.loads(answer.stdout)
    assert [bool(each["accuracy"]) for each in found["devices"]] == [True, True, True, False]
    (total,) = found["models"]
    assert (total["devices"], total["n"]) == (3, judged)
    assert total["confusion"] == counted
    assert total["accuracy"] == pytest.approx(right / judged, abs=1e-5)
    assert total["withheld"] > 0
    assert total["unmatched"] == {"unknown": 3, "late": 0, "twice": 0, "conflict": 0}
    shown = lan.command("devices", "--accuracy").stdout
    assert f"3 devices  comfort  1.0.0    {judged}" in shown


def _start(device: Device, folder: Path, rows: int) -> None:
    """Start its daemon, and wait until it has predicted for so many readings."""
    file, log = folder / f"{device.name}.toml", folder / f"{device.name}.log"
    daemon = "RUNTIME_DIRECTORY=/run/edge-runtime nohup /opt/edge-runtime/bin/edge-runtime run"
    device.run(f"{daemon} {file} > {log} 2>&1 &")
    wait_until(
        lambda: _status(device).get("models", {}).get("comfort", {}).get("predictions") == rows, log.read_text, 60
    )


def _wait_for_judged(device: Device, rows: int) -> None:
    """Until its status, which is written after each health document, knows so many truths and the unknown one."""

    def is_known() -> bool:
        found = _status(device).get("accuracy", {}).get("comfort", {})
        return bool(found.get("n") == rows and found.get("unmatched", {}).get("unknown") == 1)

    wait_until(is_known, lambda: str(_status(device).get("accuracy")), 60)


def _status(device: Device) -> Any:
    text = device.run("/opt/edge-runtime/bin/edge-runtime status --json", check=False)
    found = json.loads(text) if text.strip() else []
    return found[0] if found else {}
