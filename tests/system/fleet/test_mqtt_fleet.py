"""Devices behind a router, in the same inventory and the same tables as those that ssh reaches."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.store.install import Policy
from edge_runtime.store.store import ModelStore
from tests.conftest import MakeDaemon
from tests.support import builders
from tests.support.broker import Mosquitto
from tests.support.daemon import Daemon
from tests.support.devices import stored_device
from tests.support.installed import Installed
from tests.support.namespaces import IMPATIENT
from tests.support.subscriber import Subscriber

pytestmark = [pytest.mark.system, pytest.mark.slow]

Command = Callable[..., Any]


class Fleet:
    """Two devices that only a broker reaches, one that nothing reaches, and a laptop."""

    def __init__(self, folder: Path, broker: Mosquitto, installed: Installed, make_daemon: MakeDaemon) -> None:
        self.folder = folder
        self.keys = builders.signer(folder / "keys")
        self.daemons: dict[str, Daemon] = {}
        self._broker = broker
        self._installed = installed
        self._make = make_daemon
        inventory = f'[broker]\nurl = "{broker.url}"\n[rollout]\ncanaries = 0\n'
        for name in ("hall", "roof", "gone"):
            inventory += f'[[device]]\nname = "{name}"\ntransport = "mqtt"\n'
        (folder / "fleet.toml").write_text(inventory)

    def start(self, name: str, client: Subscriber) -> None:
        """A device that runs version 1.0.0."""
        home = self.folder / name
        home.mkdir()
        ModelStore(home / "store").install(self.bundle("1.0.0"), Policy(allowed_signers=self.keys.allowed))
        more = f'allowed_signers = "{self.keys.allowed}"\nover_mqtt = "signed"\nover_mqtt_rate = 4_000_000'
        text = stored_device(self._broker, home, more).replace('id = "room"', f'id = "{name}"')
        self.daemons[name] = self._make(text).start()
        client.wait_for_text(f"edge/{name}/status", "online")

    def bundle(self, version: str) -> Path:
        """A signed bundle."""
        path = builders.classification(name="comfort", version=version).save(self.folder / f"{version}.onnx")
        self.keys.sign(path)
        return path

    def version(self, name: str) -> str:
        """What the store of a device says."""
        return ModelStore(self.folder / name / "store").slot("comfort").version

    def __call__(self, *words: str | Path) -> tuple[int, dict[str, Any]]:
        """`edge-runtime ... --json`: the exit code and the devices by name."""
        done = self._installed.run(
            self._installed.python, "-c", IMPATIENT, *words, "--json", "--quiet", cwd=self.folder,
            EDGE_FLEET=str(self.folder / "fleet.toml"),
        )  # fmt: skip
        document = json.loads(done.stdout)
        rows = document["devices"] if isinstance(document, dict) else document
        return done.returncode, {each.get("device", each.get("name")): each for each in rows}


@pytest.fixture
def fleet(
    mosquitto: Mosquitto, installed: Installed, make_daemon: MakeDaemon, subscriber: Subscriber, *, tmp_path: Path
) -> Fleet:
    """Two of its three devices are up."""
    made = Fleet(tmp_path, mosquitto, installed, make_daemon)
    for name in ("hall", "roof"):
        made.start(name, subscriber)
    return made


def test_flash_rollback_and_devices_reach_behind_a_router(fleet: Fleet, subscriber: Subscriber) -> None:
    """The same words, tables and exit codes as over ssh; a device that is away is named and counted."""
    newer = fleet.bundle("1.1.0")
    code, found = fleet("flash", newer, "hall", "roof")
    assert (code, found["hall"]["result"], found["roof"]["result"]) == (0, "done", "done")
    assert (fleet.version("hall"), fleet.version("roof")) == ("1.1.0", "1.1.0")
    for name in ("hall", "roof"):
        subscriber.wait_until(
            lambda _, name=name: subscriber.on(f"edge/{name}/models")[-1].document[0]["version"] == "1.1.0",  # type: ignore[misc]
            "the new model at work",
        )
    code, found = fleet("flash", newer, "hall")
    assert (code, found["hall"]["result"]) == (0, "unchanged")

    assert fleet.daemons["roof"].stop() == 0
    code, found = fleet("devices")
    assert code == 3
    row = found["hall"]
    assert (row["reachable"], row["why"], row["service"]) == (True, "", "active")
    assert [(each["name"], each["version"], each["state"]) for each in row["models"]] == [
        ("comfort", "1.1.0", "probation")
    ]
    assert row["uptime_s"] > 0
    assert row["queued"] == 0
    assert (found["roof"]["reachable"], found["roof"]["why"]) == (False, "it is offline, says the broker")
    assert (found["gone"]["reachable"], found["gone"]["why"][:32]) == (False, "the broker knows nothing of it: ")

    code, found = fleet("rollback", "hall", "roof")
    assert code == 1
    assert {name: row["result"] for name, row in found.items()} == {"hall": "refused", "roof": "refused"}
    assert found["hall"]["text"] == "over MQTT an order to go back must be signed: name the key with --sign"
    code, found = fleet("rollback", "hall", "roof", "--sign", fleet.keys.key)
    assert code == 3
    assert found["hall"]["result"] == "done"
    assert found["hall"]["text"].startswith("comfort 1.0.0 (")
    assert found["roof"]["text"] == "it is offline, says the broker"
    assert fleet.version("hall") == "1.0.0"

    code, found = fleet("flash", fleet.bundle("1.2.0"), "hall", "--shadow")
    assert (code, found["hall"]["text"][-12:]) == (0, "it is staged")
    assert [each.shadow for each in ModelStore(fleet.folder / "hall/store").entries() if each.version == "1.2.0"] == [
        True
    ]


def test_what_only_ssh_can_do_is_named(fleet: Fleet) -> None:
    """Unsigned bundles, limits of one's own and provisioning fail in one line for these devices."""
    code, found = fleet("flash", fleet.bundle("1.1.0"), "hall", "--max-latency", "5")
    assert code == 1
    assert found["hall"]["text"].endswith("such wishes need ssh")
    assert fleet.version("hall") == "1.0.0"
