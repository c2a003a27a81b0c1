"""`devices --accuracy` over a real broker: confusions of two devices, without a reading of theirs."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MakeDaemon
from tests.support import builders
from tests.support.broker import Mosquitto
from tests.support.devices import climate_device
from tests.support.installed import Installed
from tests.support.subscriber import Subscriber
from tests.support.waiting import wait_until

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
