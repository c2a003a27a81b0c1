"""A bundle over the MQTT connection that the device has: a real broker, cut links, a killed daemon, and readings on."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper

from edge_runtime.errors import CommandError, EdgeError
from edge_runtime.fleet.broker_line import Login
from edge_runtime.fleet.mqtt_transport import BundleSender
from edge_runtime.store.install import Policy
from edge_runtime.store.store import ModelStore
from tests.conftest import MakeDaemon
from tests.support import builders
from tests.support.broker import Mosquitto
from tests.support.daemon import Daemon
from tests.support.devices import stored_device
from tests.support.installed import Installed
from tests.support.lossy_link import LossyLink
from tests.support.subscriber import Subscriber
from tests.support.waiting import Deadline, wait_until

pytestmark = [pytest.mark.system, pytest.mark.slow]

BALLAST_BYTES = 1_000_000
LONG = os.environ.get("EDGE_TORTURE") == "long"
LOSSY_BYTES = 5_000_000 if LONG else 700_000  # a transfer through a link that loses packets and is cut twice
LOST_PERCENT = 2


@dataclass
class Rig:
    """A device that takes signed bundles over MQTT, and a signer."""

    folder: Path
    broker: Mosquitto
    daemon: Daemon
    client: Subscriber
    signer: builders.Signer
    store: ModelStore

    def bundle(self, version: str, ballast: int = BALLAST_BYTES) -> Path:
        """A signed bundle that is as large as a real one."""
        draft = builders.classification(name="comfort", version=version)
        noise = np.random.default_rng(7).normal(size=ballast // 4).astype(np.float32)
        draft.model.graph.initializer.append(numpy_helper.from_array(noise, "ballast"))
        path = draft.save(self.folder / f"comfort-{version}.onnx")
        self.signer.sign(path)
        return path

    def sender(self) -> BundleSender:
        """Whoever brings bundles."""
        return BundleSender(Login(url=self.broker.url), "room")

    def wait_for_version(self, version: str) -> None:
        """Return when the device says that it runs this version."""

        def running() -> Any:
            found = self.client.on("edge/room/models")
            return found[-1].document[0]["version"] if found else None

        wait_until(lambda: running() == version, f"version {version}", 30.0)


@pytest.fixture
def rig(mosquitto: Mosquitto, make_daemon: MakeDaemon, subscriber: Subscriber, tmp_path: Path) -> Rig:
    """Version 1.0.0 runs."""
    signer = builders.signer(tmp_path / "keys")
    store = ModelStore(tmp_path / "store")
    first = builders.classification(name="comfort", version="1.0.0").save(tmp_path / "first.onnx")
    signer.sign(first)
    store.install(first, Policy(allowed_signers=signer.allowed))
    daemon = make_daemon(_device(mosquitto, tmp_path, signer)).start()
    subscriber.wait_for_text("edge/room/status", "online")
    return Rig(tmp_path, mosquitto, daemon, subscriber, signer, store)


def _device(broker: Mosquitto, folder: Path, signer: builders.Signer) -> str:
    store = f'allowed_signers = "{signer.allowed}"\nover_mqtt = "signed"\nover_mqtt_rate = 200_000'
    return stored_device(broker, folder, store, upstream="reconnect_min = 0.2\nreconnect_max = 1.0")


class Sending:
    """A transfer in a thread of its own, and what came of it."""

    def __init__(self, rig: Rig, bundle: Path) -> None:
        self.outcome: Any = None
        self._client = rig.client
        self._thread = threading.Thread(target=self._send, args=(rig, bundle))
        self._thread.start()

    def _send(self, rig: Rig, bundle: Path) -> None:
        try:
            self.outcome = rig.sender().send(bundle, _silent)
        except EdgeError as error:
            self.outcome = error

    def wait_for_share(self, share: float, size: int = BALLAST_BYTES) -> None:
        """Return when so much has arrived."""

        def there() -> bool:
            wanted = self._client.on("edge/room/ota/want")
            return bool(wanted) and wanted[-1].document["offset"] >= share * size

        wait_until(lambda: there() or self.outcome is not None, "the transfer", 60.0)
        assert self.outcome is None, self.outcome

    def wait(self, deadline: float = 90.0) -> Any:
        """The device's last word."""
        self._thread.join(deadline)
        assert not self._thread.is_alive()
        return self.outcome


def test_a_bundle_comes_over_the_connection_that_is_there(rig: Rig, record_property: Callable[..., None]) -> None:
    """A signed bundle of a megabyte arrives and runs, and every reading meanwhile is answered once."""
    calm = _latencies(rig, lambda: len(rig.client.on("edge/room/comfort/")) >= 300)
    rig.client.clear()
    sending = Sending(rig, rig.bundle("1.1.0"))
    busy = _latencies(rig, lambda: any(each.document["state"] == "installing" for each in _statuses(rig)))
    done = sending.wait()
    assert (done["state"], done["version"]) == ("installed", "1.1.0")
    rig.wait_for_version("1.1.0")
    p99 = [round(1000 * float(np.quantile(each, 0.99)), 1) for each in (calm, busy)]
    record_property("p99_ms", p99)
    print(f"p99 without {p99[0]} ms ({len(calm)}), during the transfer {p99[1]} ms ({len(busy)})")  # noqa: T201
    assert rig.daemon.stop() == 0


def _statuses(rig: Rig) -> list[Any]:
    return rig.client.on("edge/room/ota/status")


def _latencies(rig: Rig, done: Callable[[], bool], deadline: float = 60.0) -> list[float]:
    """Send a hundred readings a second until something has happened; from publishing to the answer, in seconds."""
    sent: dict[str, float] = {}
    started, until = time.monotonic(), Deadline(deadline)
    while not done():
        assert not until.over, rig.daemon.log[-2000:]
        number = f"{started}-{len(sent)}"
        sent[f"room/comfort/k/{number}"] = time.monotonic()
        rig.client.publish("sensors/k/climate", {"temperature": 0.2, "humidity": 0.2, "id": number})
        time.sleep(0.01)  # the sensor's own pace
    rig.client.wait_until(lambda _: len(_arrivals(rig, sent)) == len(sent), "every answer", 30.0)
    answered = [each.document["id"] for each in rig.client.on("edge/room/comfort/") if each.document["id"] in sent]
    assert len(answered) == len(set(answered))
    return [arrived - sent[name] for name, arrived in _arrivals(rig, sent).items()]


def _arrivals(rig: Rig, sent: dict[str, float]) -> dict[str, float]:
    return {
        each.document["id"]: each.arrived for each in rig.client.on("edge/room/comfort/") if each.document["id"] in sent
    }


def test_a_broken_link_and_a_killed_daemon_cost_no_chunk_twice(rig: Rig) -> None:
    """The broker restarts twice and the daemon is killed in the middle; the transfer goes on where it was."""
    sending = Sending(rig, rig.bundle("1.1.0"))
    sending.wait_for_share(0.2)
    rig.broker.restart()
    sending.wait_for_share(0.5)
    rig.daemon.kill()
    rig.daemon.start()
    sending.wait_for_share(0.7)
    rig.broker.restart()
    assert sending.wait()["state"] == "installed"
    rig.wait_for_version("1.1.0")
    wanted = [each.document["offset"] for each in rig.client.on("edge/room/ota/want")]
    assert wanted == sorted(wanted), "never back to what was there"
    assert rig.daemon.stop() == 0


@pytest.fixture
def lossy_rig(rig: Rig, make_daemon: MakeDaemon) -> Iterator[tuple[Rig, LossyLink]]:
    """The same device, behind a link that loses packets both ways."""
    assert rig.daemon.stop() == 0
    link = LossyLink(rig.broker.port, LOST_PERCENT)
    text = (
        rig.daemon.config.read_text()
        .replace(rig.broker.url, link.url)
        .replace("[upstream]", "[upstream]\nkeepalive = 5")
    )
    rig.daemon = make_daemon(text)
    rig.daemon.within = link.within
    rig.client.clear()
    rig.daemon.start()
    rig.client.wait_for_text("edge/room/status", "online", 60.0)
    yield rig, link
    link.remove()


@pytest.mark.timeout(600)
def test_a_lossy_link_that_is_cut_twice_costs_time_and_nothing_else(
    lossy_rig: tuple[Rig, LossyLink], record_property: Callable[..., None]
) -> None:
    """Through 2 % of loss and two cuts a bundle arrives whole and once, and readings are answered meanwhile."""
    rig, link = lossy_rig
    calm = _latencies(rig, lambda: len(rig.client.on("edge/room/comfort/")) >= (3000 if LONG else 500), 120.0)
    rig.client.clear()
    before = link.lost
    began = time.monotonic()
    sending = Sending(rig, rig.bundle("1.1.0", LOSSY_BYTES))
    busy: list[float] = []
    for share in (0.35, 0.7):
        busy += _latencies(rig, lambda share=share: _arrived(rig) >= share * LOSSY_BYTES, 300.0)  # type: ignore[misc]
        link.cut()
        rig.client.wait_for_text("edge/room/status", "offline", 120.0)
        link.mend()
        rig.client.wait_for_text("edge/room/status", "online", 120.0)
    busy += _latencies(rig, lambda: any(each.document["state"] == "installing" for each in _statuses(rig)), 300.0)
    done = sending.wait(300.0)
    took = time.monotonic() - began
    assert (done["state"], done["version"]) == ("installed", "1.1.0")
    rig.wait_for_version("1.1.0")
    wanted = [each.document["offset"] for each in rig.client.on("edge/room/ota/want")]
    assert wanted == sorted(wanted), "never back to what was there"
    assert link.lost > before
    p99 = [round(1000 * float(np.quantile(each, 0.99)), 1) for each in (calm, busy)]
    record_property("lossy_p99_ms", p99)
    print(  # noqa: T201 - a figure to read
        f"{LOSSY_BYTES} bytes in {took:.1f} s, {link.lost - before} packets lost; p99 without {p99[0]} ms "
        f"({len(calm)}), during the transfer {p99[1]} ms ({len(busy)}): {p99[1] / p99[0]:.2f} times"
    )
    assert rig.daemon.stop() == 0


def _arrived(rig: Rig) -> int:
    """Up to where the device has asked."""
    wanted = rig.client.on("edge/room/ota/want")
    return int(wanted[-1].document["offset"]) if wanted else 0


def test_only_whom_the_device_trusts_can_send(rig: Rig) -> None:
    """Unsigned, tampered, and signed by a stranger: refused in words, and the old model serves on."""
    path = rig.bundle("1.1.0", 40_000)
    good = path.with_name(path.name + ".sig").read_bytes()
    stranger = builders.signer(rig.folder / "stranger")
    stranger.sign(path)
    with pytest.raises(CommandError, match="key of a stranger"):
        rig.sender().send(path, _silent)
    path.with_name(path.name + ".sig").write_bytes(b"")
    with pytest.raises(CommandError, match="only signed bundles"):
        rig.sender().send(path, _silent)
    path.with_name(path.name + ".sig").write_bytes(good)
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(CommandError, match="sign"):
        rig.sender().send(path, _silent)
    assert rig.store.slot("comfort").version == "1.0.0"
    assert rig.daemon.stop() == 0


def test_flash_reaches_a_device_over_the_broker(rig: Rig, installed: Installed) -> None:
    """`edge-runtime flash --over mqtt --broker URL` needs no ssh; wishes that only ssh can grant are refused."""
    fleet = rig.folder / "fleet.toml"
    fleet.write_text('[[device]]\nname = "room"\naddress = "nowhere.invalid"\n')
    path = rig.bundle("1.1.0", 40_000)
    words = ["flash", str(path), "room", "--over", "mqtt", "--broker", rig.broker.url]
    refused = installed.run(installed.edge_runtime, *words, "--retry-rejected", cwd=rig.folder, EDGE_FLEET=str(fleet))
    assert refused.returncode == 1
    assert "such wishes need ssh" in refused.stdout
    done = installed.run(installed.edge_runtime, *words, cwd=rig.folder, EDGE_FLEET=str(fleet))
    assert done.returncode == 0, done.stderr + done.stdout
    assert "comfort 1.1.0" in done.stdout
    rig.wait_for_version("1.1.0")
    assert rig.daemon.stop() == 0


def test_what_the_next_start_would_refuse_is_not_taken_while_running(rig: Rig) -> None:
    """Where signatures are asked for, an unsigned bundle that was forced into the store goes back by itself."""
    path = rig.bundle("1.1.0", 40_000)
    path.with_name(path.name + ".sig").unlink()
    rig.store.install(path, Policy(unsigned="allow"))
    wait_until(lambda: rig.store.slot("comfort").version == "1.0.0", "the way back", 30.0)
    rig.daemon.wait_for_log("expected its signature")
    rig.daemon.kill()
    rig.daemon.start()
    assert rig.daemon.stop() == 0


def _silent(_done: int, _total: int) -> None:
    """Progress that is not shown."""


def test_an_offer_that_was_retained_begins_nothing(rig: Rig) -> None:
    """A retained offer is given to the device at each connection; it is greeted, and nothing else happens."""
    offer = {"transfer": "old", "size": 1000, "sha256": "0" * 64, "signature": "-----BEGIN SSH SIGNATURE-----"}
    rig.client.publish("edge/room/ota/offer", offer, retain=True)
    rig.client.wait_until(lambda _: _statuses(rig), "the greeting")
    rig.broker.restart()
    rig.client.wait_until(lambda _: len(rig.client.on("edge/room/status")) >= 1, "the device to be back", 30.0)
    assert rig.sender().send(rig.bundle("1.1.0", 40_000), _silent)["state"] == "installed"
    assert {each.document["state"] for each in _statuses(rig) if each.document["transfer"] == "old"} == {"greeting"}
    assert rig.daemon.stop() == 0
