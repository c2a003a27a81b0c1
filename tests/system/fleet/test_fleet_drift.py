"""`devices --accuracy` over a real broker and over real ssh: where the same drift shows."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_runtime.drift.monitor import Monitor
from edge_runtime.readings import Floats
from tests.conftest import MakeDaemon
from tests.support import drifting
from tests.support.broker import Mosquitto
from tests.support.devices import climate_device
from tests.support.installed import Installed
from tests.support.subscriber import Subscriber
from tests.support.waiting import wait_until
from tests.system.fleet.conftest import MakeLan

pytestmark = pytest.mark.system

STUCK = {"hall": True, "roof": True, "shed": False}


def made_bundle(folder: Path) -> Path:
    """One that takes each reading by itself, and says nothing of the rate."""
    made = drifting.draft(drifting.readings(np.random.default_rng(5), 4000))
    made.manifest["drift"]["rate_hz"] = None
    return made.save(folder / "comfort.onnx")


def readings(name: str) -> Floats:
    """Three blocks of a device, whose temperature may be stuck."""
    found = drifting.readings(np.random.default_rng(len(name)), 3 * drifting.BLOCK)
    if STUCK[name]:
        found[:, 0] = 20.5
    return found


def wait_for_report(client: Subscriber, name: str) -> None:
    """Until the report of a device says what its readings hold."""
    wanted = (3, "alarm" if STUCK[name] else "ok")

    def found() -> list[tuple[int, str]]:
        return [(each.document["blocks"], each.document["state"]) for each in client.on(f"edge/{name}/drift/comfort")]

    wait_until(lambda: wanted in found(), lambda: f"{wanted} of {name}, found {found()}", 30)


def test_the_same_drift_of_several_devices_is_one_line(
    mosquitto: Mosquitto, installed: Installed, make_daemon: MakeDaemon, subscriber: Subscriber, tmp_path: Path
) -> None:
    """Three daemons, one device that only its retained report stands for, and one that was never there."""
    bundle = made_bundle(tmp_path)
    for name in STUCK:
        device = climate_device(mosquitto, bundle, device=name).replace(
            "sensors/{key}/climate", f"sensors/{name}/climate"
        )
        make_daemon(device).start()
        subscriber.wait_for_text(f"edge/{name}/status", "online")
        for temperature, pressure in readings(name).tolist():
            subscriber.publish(f"sensors/{name}/climate", {"temperature": temperature, "pressure": pressure})
    for name in STUCK:
        wait_for_report(subscriber, name)
    monitor = Monitor(drifting.manifest(drifting.readings(np.random.default_rng(5), 4000)))
    monitor.take(readings("hall"), [None] * (3 * drifting.BLOCK), None, 0.0)
    stands_in = json.dumps({"model": "comfort", **monitor.document(), "version": "1.0.0"})
    for topic, payload in (("status", b"online"), ("models", b"[]"), ("drift/comfort", stands_in)):
        subscriber.publish(f"edge/barn/{topic}", payload, retain=True)
    subscriber.flush()
    names = [*STUCK, "barn", "gone"]
    (tmp_path / "fleet.toml").write_text(
        f'[broker]\nurl = "{mosquitto.url}"\n'
        + "".join(f'[[device]]\nname = "{name}"\ntransport = "mqtt"\n' for name in names)
    )

    def ask(*more: str) -> str:
        words, inventory = ["devices", "--accuracy", *more], str(tmp_path / "fleet.toml")
        return installed.run(installed.edge_runtime, *words, cwd=tmp_path, EDGE_FLEET=inventory).stdout

    (total,) = json.loads(ask("--json"))["models"]
    assert total["drift"] == {"alarm": ["hall", "roof", "barn"], "ok": ["shed"]}
    assert total["same_drift"] == [
        {"at": "temperature", "cause": "stuck", "state": "alarm", "devices": ["barn", "hall", "roof"], "of": 4}
    ]
    shown = ask()
    assert "comfort 1.0.0: where the same drift shows" in shown
    assert "temperature  stuck  alarm  3 of 4   barn, hall, roof" in shown


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
"""


@pytest.mark.slow
def test_the_same_drift_of_devices_that_ssh_reaches(make_lan: MakeLan, tmp_path: Path) -> None:
    """Three daemons without a broker, by their `status`, and a fourth device on which nothing runs."""
    lan = make_lan(4)
    made_bundle(tmp_path)
    named = dict(zip(STUCK, lan.devices[:3], strict=True))
    for device in lan.devices:
        device.run("mount -t tmpfs shm /dev/shm")  # else the status of other daemons of this machine is found there
    for place, device in named.items():
        lines = [f"{1_800_000_000 + row},{a},{b}" for row, (a, b) in enumerate(readings(place).tolist())]
        (tmp_path / f"{device.name}.csv").write_text("\n".join(["time,temperature,pressure", *lines, ""]))
        (tmp_path / f"{device.name}.toml").write_text(ALONE.format(name=device.name, folder=tmp_path))
        start = f"RUNTIME_DIRECTORY=/run/edge-runtime nohup /opt/edge-runtime/bin/edge-runtime run {tmp_path}"
        device.run(f"{start}/{device.name}.toml > {tmp_path}/{device.name}.log 2>&1 &")
    for place, device in named.items():
        log, wanted = tmp_path / f"{device.name}.log", "alarm" if STUCK[place] else "ok"
        wait_until(
            lambda device=device, wanted=wanted: _drift_of(device) == (3 * drifting.BLOCK, wanted),  # type: ignore[misc]
            lambda log=log: log.read_text(),  # type: ignore[misc]
            60,
        )
    (total,) = json.loads(lan.command("devices", "--accuracy", "--json", "--quiet").stdout)["models"]
    assert total["same_drift"] == [
        {
            "at": "temperature", "cause": "stuck", "state": "alarm", "of": 3,
            "devices": sorted(device.name for place, device in named.items() if STUCK[place]),
        }
    ]  # fmt: skip
    assert "temperature  stuck  alarm  2 of 3" in lan.command("devices", "--accuracy").stdout


def _drift_of(device: Any) -> tuple[int, str]:
    """How many predictions a device has made, and how its drift stands."""
    text = device.run("/opt/edge-runtime/bin/edge-runtime status --json", check=False)
    found = json.loads(text)[0]["models"].get("comfort", {}) if text.strip() else {}
    return int(found.get("predictions", 0)), str(found.get("drift", {}).get("state"))
