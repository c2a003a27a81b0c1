"""A rollout as signed desired state, over a real broker: devices follow by themselves, also those that were away."""

import hashlib
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge_runtime.fleet.over_mqtt import sign
from edge_runtime.store.desired_document import DESIRED_NAMESPACE, Desired, Envelope
from edge_runtime.store.install import Policy
from edge_runtime.store.store import ModelStore
from tests.conftest import MakeDaemon
from tests.support import builders
from tests.support.broker import Mosquitto
from tests.support.daemon import Daemon
from tests.support.devices import stored_device
from tests.support.installed import Installed, clean_environment
from tests.support.subscriber import Subscriber
from tests.support.waiting import patient, wait_until

pytestmark = [pytest.mark.system, pytest.mark.slow]


class Fleet:
    """Two devices that follow their desired state, a depot, and a laptop."""

    def __init__(self, folder: Path, broker: Mosquitto, installed: Installed, make_daemon: MakeDaemon) -> None:
        self.folder = folder
        self.keys = builders.signer(folder / "keys")
        self.daemons: dict[str, Daemon] = {}
        self.broker = broker
        self._installed = installed
        self._make = make_daemon
        (folder / "bundles").mkdir()
        inventory = f'[broker]\nurl = "{broker.url}"\n[rollout]\ncanaries = 1\nsoak = 0.0\n'
        for name in ("hall", "roof"):
            inventory += f'[[device]]\nname = "{name}"\ntransport = "mqtt"\nlabels = ["{name}-side"]\n'
        (folder / "fleet.toml").write_text(inventory)

    def make(self, name: str) -> Daemon:
        """A device that runs version 1.0.0; not yet started."""
        home = self.folder / name
        home.mkdir()
        ModelStore(home / "store").install(self.bundle("1.0.0"), Policy(allowed_signers=self.keys.allowed))
        more = f'allowed_signers = "{self.keys.allowed}"\ndesired = "follow"\nover_mqtt_rate = 4_000_000'
        text = stored_device(self.broker, home, more).replace('id = "room"', f'id = "{name}"')
        self.daemons[name] = self._make(text)
        return self.daemons[name]

    def bundle(self, version: str) -> Path:
        """A signed bundle in the depot's folder."""
        path = builders.classification(name="comfort", version=version).save(
            self.folder / "bundles" / f"{version}.onnx"
        )
        self.keys.sign(path)
        return path

    def depot(self) -> "subprocess.Popen[str]":
        """`edge-runtime depot`, serving the folder as it is now."""
        return subprocess.Popen(
            [str(self._installed.edge_runtime), "depot", str(self.folder / "bundles"), "--broker", self.broker.url],
            cwd=self.folder, env=clean_environment(), stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __call__(self, *words: str | Path) -> tuple[int, dict[str, Any]]:
        """`edge-runtime rollout ... --json`: the exit code and the document."""
        done = self._installed.run(
            self._installed.edge_runtime, "rollout", *words, "--json", cwd=self.folder,
            EDGE_FLEET=str(self.folder / "fleet.toml"),
        )  # fmt: skip
        assert done.stdout, done.stderr
        document = json.loads(done.stdout)
        document["results"] = {each["device"]: each["result"] for each in document["devices"]}
        return done.returncode, document

    def version(self, name: str) -> str:
        """What the store of a device says."""
        return ModelStore(self.folder / name / "store").slot("comfort").version


@pytest.fixture
def fleet(mosquitto: Mosquitto, installed: Installed, make_daemon: MakeDaemon, tmp_path: Path) -> Fleet:
    """Nothing of it is started."""
    return Fleet(tmp_path, mosquitto, installed, make_daemon)


@pytest.fixture
def depot(fleet: Fleet) -> Iterator[Callable[[], None]]:
    """`depot()`: serves what is there."""
    made: list[subprocess.Popen[str]] = []

    def start() -> None:
        made.append(fleet.depot())
        assert made[-1].stderr is not None
        assert "serving" in made[-1].stderr.readline()

    yield start
    for each in made:
        each.terminate()
        each.wait(patient(20))
        assert each.stderr is not None
        each.stderr.close()


def test_devices_follow_a_rollout_also_when_they_come_back_later(
    fleet: Fleet, depot: Callable[[], None], subscriber: Subscriber
) -> None:
    """One is online and one asleep; both end with the new version, the second without another command, and go back."""
    fleet.make("hall").start()
    sleeper = fleet.make("roof")
    subscriber.wait_for_text("edge/hall/status", "online")
    newer = fleet.bundle("1.1.0")
    depot()
    code, found = fleet("start", newer, "--all", "--sign", fleet.keys.key, "--detach")
    assert found["state"] == "running"
    wait_until(lambda: fleet.version("hall") == "1.1.0", "the first device", 60.0)
    code, found = fleet("resume", "--sign", fleet.keys.key, "--detach")
    assert found["results"]["hall"] == "done"
    assert (code, found["results"]["roof"]) == (3, "away")
    sleeper.start()
    wait_until(lambda: fleet.version("roof") == "1.1.0", "the device that came back", 90.0)

    def done() -> bool:
        code, found = fleet("status")
        return code == 0 and found["results"] == {"hall": "done", "roof": "done"}

    wait_until(done, "both to be known", 60.0)
    done_things = " ".join(each["what"] for each in fleet("status")[1]["history"])
    assert "started: comfort 1.1.0" in done_things
    assert "published, serial " in done_things
    code, found = fleet("undo", "--sign", fleet.keys.key)
    assert set(found["results"].values()) <= {"done", "busy"}
    wait_until(lambda: [fleet.version(name) for name in ("hall", "roof")] == ["1.0.0"] * 2, "both to be back", 60.0)
    for daemon in fleet.daemons.values():
        assert daemon.stop() == 0


def test_a_document_that_is_old_expired_forged_or_for_another_does_nothing(
    fleet: Fleet, depot: Callable[[], None], subscriber: Subscriber, tmp_path: Path
) -> None:
    """A replayed serial is counted, an expired one is reported, and what no trusted key signed is refused."""
    daemon = fleet.make("hall").start()
    subscriber.wait_for_text("edge/hall/status", "online")
    newer, newest = fleet.bundle("1.1.0"), fleet.bundle("1.2.0")
    depot()
    stranger = builders.signer(tmp_path / "stranger")

    def publish(path: Path, serial: int, key: Path = fleet.keys.key, **changes: Any) -> None:
        content = path.read_bytes()
        desired = Desired(
            device="hall", rollout=f"r{serial}", serial=serial, model="comfort", version=path.stem,
            digest=hashlib.sha256(content).hexdigest(), size=len(content),
            files={".sig": path.with_name(path.name + ".sig").read_text()},
        )  # fmt: skip
        text = msgspec.json.encode(msgspec.structs.replace(desired, **changes)).decode()
        envelope = Envelope(document=text, signature=sign(key, text.encode(), namespace=DESIRED_NAMESPACE))
        subscriber.publish("edge/hall/desired", msgspec.json.encode(envelope), retain=True)

    def reported(rollout: str, state: str) -> Callable[[], bool]:
        def holds() -> bool:
            found = subscriber.on("edge/hall/rollout")
            return bool(found) and (found[-1].document["rollout"], found[-1].document["state"]) == (rollout, state)

        return holds

    publish(newest, 5, stranger.key)
    daemon.wait_for_log("desired state refused")
    publish(newest, 5, device="roof")
    publish(newest, 6, expires=int(time.time()) - 60)
    wait_until(reported("r6", "failed"), "the report of an expired one", 30.0)
    assert "expired" in subscriber.on("edge/hall/rollout")[-1].document["why"]
    publish(newer, 7)
    wait_until(lambda: fleet.version("hall") == "1.1.0", "the good one", 60.0)
    publish(newest, 3)
    publish(newest, 7)
    daemon.kill()
    daemon.start()
    wait_until(reported("r7", "probation"), "the same report after a restart", 60.0)
    assert fleet.version("hall") == "1.1.0"
    assert daemon.stop() == 0
