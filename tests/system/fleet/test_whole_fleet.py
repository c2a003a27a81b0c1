"""Eight devices that run the real daemon: a bad link that is cut in the middle, a full disk, a dead one, five others.

Right result and right table for each, and no device stops answering readings.
With `EDGE_TORTURE=long` the eight are fresh, and provisioned over ssh first; else they have the runtime already.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from tests.support.namespaces import Device, Lan
from tests.support.waiting import patient, wait_until
from tests.system.fleet.test_fleet import MEGABYTE, MakeLan, make_bundle, outcomes, why
from tests.system.fleet.test_provision import SYSTEMCTL, answer_of

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(1800)]

LONG = os.environ.get("EDGE_TORTURE") == "long"
BAD_LINK, FULL, DEAD = "d1", "d2", "d3"
WELL = ["d0", "d4", "d5", "d6", "d7"]

DEVICE_FILE = """
[device]
id = "{name}"
[[source]]
name = "climate"
type = "mqtt"
topics = ["sensors/{name}/climate"]
[[model]]
name = "m"
bundle = "m"
source = "climate"
[upstream]
url = "mqtt://{hub}:1883"
reconnect_max = 1.0
[store]
allowed_signers = "/etc/edge-runtime/allowed_signers"
"""


class Broker:
    """mosquitto at the hub, and a client that listens to everything there."""

    def __init__(self, lan: Lan) -> None:
        self._within = ["ip", "netns", "exec", lan.hub]
        self.host = f"10.77.{lan.subnet}.1"
        self._heard = lan.folder / "heard"
        config = lan.folder / "mosquitto.conf"
        config.write_text(f"listener 1883 {self.host}\nallow_anonymous true\nuser root\n")
        self._running = [self._start("mosquitto", "-c", config)]
        wait_until(lambda: self._client("pub", "-t", "up", "-n").returncode == 0, "the broker", 20)
        with self._heard.open("wb") as out:
            self._running.append(self._start("mosquitto_sub", "-h", self.host, "-v", "-t", "edge/#", out=out))

    def publish(self, topic: str, payload: str) -> None:
        """One message, acknowledged."""
        assert self._client("pub", "-q", "1", "-t", topic, "-m", payload).returncode == 0

    def last(self, topic: str) -> str:
        """The newest payload of a topic; empty without one."""
        found = [line for line in self._heard.read_text().splitlines() if line.startswith(f"{topic} ")]
        return found[-1].removeprefix(f"{topic} ") if found else ""

    def stop(self) -> None:
        """End both."""
        for each in self._running:
            each.kill()
            each.wait(patient(10))

    def _start(self, *words: str | Path, out: int | IO[bytes] = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*self._within, *map(str, words)],
            stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def _client(self, what: str, *words: str) -> subprocess.CompletedProcess[bytes]:
        command = [*self._within, f"mosquitto_{what}", "-h", self.host, *words]
        return subprocess.run(command, capture_output=True, check=False, timeout=patient(30), stdin=subprocess.DEVNULL)


class Fleet:
    """The eight, their broker, and the laptop at the hub."""

    def __init__(self, lan: Lan, broker: Broker) -> None:
        self.lan = lan
        self.broker = broker
        self.readings = 0

    def device(self, name: str) -> Device:
        """By name."""
        return next(each for each in self.lan.devices if each.name == name)

    def answers(self, name: str) -> str:
        """Send one reading to a device, and return the version that answered it."""
        self.readings += 1
        number = self.readings
        reading = {"temperature": 1.0, "humidity": 2.0, "id": number}
        self.broker.publish(f"sensors/{name}/climate", json.dumps(reading))
        topic = f"edge/{name}/m/-"

        def answered() -> bool:
            text = self.broker.last(topic)
            return bool(text) and json.loads(text)["id"] == f"{name}/m/-/{number}"

        wait_until(answered, lambda: f"an answer of {name}: {answer_of(self.device(name))[-1500:]}", 60)
        return str(json.loads(self.broker.last(topic))["version"])

    def wait_for(self, name: str, version: str) -> None:
        """Until the daemon itself says that it runs a version."""
        topic = f"edge/{name}/models"
        wait_until(
            lambda: f'"version":"{version}"' in self.broker.last(topic),
            lambda: f"{version} on {name}: {self.broker.last(topic)} {answer_of(self.device(name))[-1500:]}",
            60,
        )

    def table(self) -> dict[str, tuple[bool, str]]:
        """Of `devices --json`: whether each was reached, and the version that it runs."""
        rows = json.loads(self.lan.command("devices", "--json").stdout)
        serving = {"active", "probation"}
        return {
            row["name"]: (
                row["reachable"],
                "".join(each["version"] for each in row["models"] if each["state"] in serving),
            )
            for row in rows
        }


@pytest.fixture
def fleet(make_lan: MakeLan, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Fleet]:
    """Eight devices with the runtime and a device file, none of which has a model yet."""
    missing = [each for each in ("mosquitto", "mosquitto_sub", "mosquitto_pub", "nft") if shutil.which(each) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    wheelhouse: Path | None = request.getfixturevalue("wheelhouse") if LONG else None
    lan = make_lan(0)
    for number in range(8):
        lan.add(number, disk_bytes=(600 if LONG else 64) * MEGABYTE, fresh=LONG)
    broker = Broker(lan)
    try:
        made = Fleet(lan, broker)
        _equip(made, tmp_path, wheelhouse)
        yield made
    finally:
        broker.stop()


def _equip(fleet: Fleet, folder: Path, wheelhouse: Path | None) -> None:
    """Provision them over ssh, or write what provisioning would write."""
    stub = SYSTEMCTL if LONG else SYSTEMCTL.replace("runuser -u edge-runtime -- env", "env")
    (folder / "systemctl").write_text(stub)
    path = fleet.lan.write_inventory(account="edge-runtime" if LONG else "root")
    text = path.read_text()
    for device in fleet.lan.devices:
        file = folder / f"{device.name}.toml"
        file.write_text(DEVICE_FILE.format(name=device.name, hub=fleet.broker.host))
        text = text.replace(f'name = "{device.name}"\n', f'name = "{device.name}"\nconfig = "{file}"\n')
        device.run(f"install -m 755 {folder}/systemctl /usr/local/bin/systemctl")
        if not LONG:
            device.run(f"cp {file} /etc/edge-runtime/; touch /run/edge-runtime/enabled")
    path.write_text(text)
    if wheelhouse is None:
        return
    words: list[str | Path] = ["provision", "--all", "--json", "--quiet", "--wheelhouse", wheelhouse, "--limit", "2"]
    answer = fleet.lan.command(*words, "--allowed-signers", folder / "allowed_signers", timeout=1200)
    assert set(outcomes(answer.stdout).values()) == {"done"}, answer.stdout + answer.stderr
    assert len(outcomes(answer.stdout)) == 8


def test_eight_devices_one_bad_link_one_full_disk_one_dead(fleet: Fleet, tmp_path: Path) -> None:
    """What can be flashed is; what cannot says why in one line and serves on; the same command mends the rest."""
    lan = fleet.lan
    first = lan.command("flash", make_bundle(tmp_path, "1.0.0"), "--all", "--json", "--quiet")
    assert outcomes(first.stdout) == dict.fromkeys((each.name for each in lan.devices), "done"), first.stdout
    for device in lan.devices:
        fleet.wait_for(device.name, "1.0.0")
        assert fleet.answers(device.name) == "1.0.0"

    bad, full, dead = (fleet.device(name) for name in (BAD_LINK, FULL, DEAD))
    bad.slow_down("16mbit")  # with 0.4 s of queue: delay
    bad.lose(3)
    full.run("dd if=/dev/zero of=/var/lib/filler bs=1M 2>/dev/null; truncate -s -256K /var/lib/filler")
    dead.stop()
    dead.link("down")
    newer = make_bundle(tmp_path, "1.1.0", padding=4 * MEGABYTE)
    flash = lan.begin("flash", newer, "--all", "--json", "--quiet")

    def arrived() -> int:
        parts = "cat /var/lib/edge-runtime/incoming/*/*.part* 2>/dev/null | wc -c"
        return int(bad.run(parts, check=False) or 0)

    wait_until(lambda: arrived() > MEGABYTE, "a megabyte behind the bad link", 120)
    bad.link("down")
    out, err = flash.communicate(timeout=300)
    assert flash.returncode == 1, out + err
    assert outcomes(out) == dict.fromkeys(WELL, "done") | dict.fromkeys((BAD_LINK, DEAD), "away") | {FULL: "failed"}, (
        out
    )
    assert (json.loads(out)["failed"], json.loads(out)["away"]) == ([FULL], [BAD_LINK, DEAD])
    assert "\n" not in "".join(why(out, name) for name in (BAD_LINK, FULL, DEAD))
    assert why(out, DEAD) in {"it does not answer", "there is no way to it"}
    assert why(out, FULL).startswith("no space is left on the device in ")
    assert why(out, BAD_LINK) in {"it does not answer", "there is no way to it", "the connection broke"}
    for name in WELL:
        fleet.wait_for(name, "1.1.0")
        assert fleet.answers(name) == "1.1.0"
    assert fleet.answers(FULL) == "1.0.0", "a full disk is no reason to stop serving"
    expected = dict.fromkeys(WELL, (True, "1.1.0")) | {FULL: (True, "1.0.0")}
    assert fleet.table() == expected | {BAD_LINK: (False, ""), DEAD: (False, "")}

    bad.link("up")
    full.run("rm /var/lib/filler")
    wait_until(lambda: fleet.table()[BAD_LINK][0], "the device behind the bad link", 120)
    again = lan.command("flash", newer, "--all", "--json", "--quiet", "--keep-going", timeout=300)
    assert again.returncode == 3, again.stdout
    assert outcomes(again.stdout) == dict.fromkeys(WELL, "unchanged") | {
        BAD_LINK: "done",
        FULL: "done",
        DEAD: "away",
    }
    for name in (BAD_LINK, FULL):
        fleet.wait_for(name, "1.1.0")
        assert fleet.answers(name) == "1.1.0"
    assert fleet.table() == dict.fromkeys([*WELL, BAD_LINK, FULL], (True, "1.1.0")) | {DEAD: (False, "")}
