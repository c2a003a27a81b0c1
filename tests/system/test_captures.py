"""Captures of an installed daemon: by its rules and on request, within their budget, on a card that is full too."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from converter.captured import merge
from edge_runtime.capture.folder import FoundWindow, read_captures
from tests.conftest import MakeBroker, MakeDaemon, MakeSubscriber
from tests.support import builders
from tests.support.broker import Mosquitto
from tests.support.daemon import Daemon
from tests.support.devices import climate_device
from tests.support.small_disk import small_disk
from tests.support.subscriber import Subscriber
from tests.support.waiting import wait_until

pytestmark = pytest.mark.system


@pytest.fixture
def card(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own, which only root can have."""
    with small_disk(tmp_path / "card", "256k") as folder:
        yield folder


def _device(broker: Mosquitto, tmp_path: Path, capture: str) -> str:
    bundle = builders.classification(name="comfort", length=2, stride=1).save(tmp_path / "comfort.onnx")
    return climate_device(broker, bundle) + f"\n[capture]\n{capture}\n"


def _say(sensors: Subscriber, key: str, numbers: range) -> None:
    for number in numbers:
        reading = {"temperature": float(number), "humidity": -float(number), "seq": number}
        sensors.publish(f"sensors/{key}/climate", reading)
    sensors.flush()


def _predictions(hub: Subscriber, count: int, daemon: Daemon) -> dict[str, dict[str, object]]:
    def found() -> dict[str, dict[str, object]]:
        return {m.document["id"]: m.document for m in hub.messages if m.topic.startswith("edge/room/comfort/")}

    hub.wait_until(lambda _: len(found()) >= count, f"{count} predictions; {daemon.log[-2000:]}", 60.0)
    return found()


def _capture_part(hub: Subscriber) -> dict[str, object]:
    parts = [m.document["capture"] for m in hub.messages if m.topic == "edge/room/health"]
    return parts[-1] if parts else {}


def test_what_is_asked_for_is_kept_with_the_ids_that_were_published(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, make_subscriber: MakeSubscriber, tmp_path: Path
) -> None:
    """The next windows of each key; after a clean stop they are all there, and each is that of its prediction."""
    hub = make_subscriber(mosquitto.port, "edge/#")
    daemon = make_daemon(_device(mosquitto, tmp_path, 'path = "captures"')).start()
    daemon.wait_for_log("online")
    _say(hub, "attic", range(5))
    _predictions(hub, 4, daemon)
    hub.publish("edge/room/capture/comfort", '{"windows": 0.5}')
    hub.publish("edge/room/capture/comfort", '{"windows": 3}')
    hub.wait_until(lambda _: "comfort" in str(_capture_part(hub).get("requested")), "the request in health")
    _say(hub, "attic", range(5, 10))
    _say(hub, "cellar", range(3))
    published = _predictions(hub, 11, daemon)
    assert daemon.stop() == 0
    windows = _windows(daemon)
    assert [found.entry.key for found in windows] == ["attic"] * 3 + ["cellar"] * 2
    assert [found.entry.window(found.facts).tolist() for found in windows] == [
        [[last - 1, 1 - last], [last, -last]] for last in (5, 6, 7, 1, 2)
    ]
    for found in windows:
        document = published[found.entry.id]
        assert found.entry.label == document["label"]
        assert [np.float32(each) for each in found.entry.answer["scores"]] == [
            np.float32(document["scores"][label])  # type: ignore[index]
            for label in found.facts.labels
        ]
    assert any("a request for captures is refused" in line for line in daemon.log.splitlines())


def test_a_window_whose_truth_comes_is_kept_with_its_label(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, make_subscriber: MakeSubscriber, tmp_path: Path
) -> None:
    """No rule asks for it; a data set has it with what was right."""
    hub = make_subscriber(mosquitto.port, "edge/#")
    daemon = make_daemon(_device(mosquitto, tmp_path, 'path = "captures"')).start()
    daemon.wait_for_log("online")
    _say(hub, "attic", range(5))
    published = _predictions(hub, 4, daemon)
    wanted = sorted(published)[2]
    hub.publish("edge/room/truth/comfort", {"id": wanted, "label": "high"})
    hub.wait_until(lambda _: "truth" in str(_capture_part(hub).get("chosen")), "the truth", 30.0)
    assert daemon.stop() == 0
    merged = merge([daemon.config.parent / "captures"])
    assert [(each.entry.id, each.label) for each in merged.windows] == [(wanted, "high")]


def test_a_full_card_is_named_and_predictions_go_on(
    card: Path, make_mosquitto: MakeBroker, make_daemon: MakeDaemon, make_subscriber: MakeSubscriber, tmp_path: Path
) -> None:
    """Every prediction is published; what the card refused is counted, and with room captures are kept again."""
    broker = make_mosquitto()
    hub = make_subscriber(broker.port, "edge/#")
    text = _device(broker, tmp_path, f'path = "{card}/captures"\nmax_bytes = 2_000_000\nrandom = 1.0')
    daemon = make_daemon(text).start()
    daemon.wait_for_log("online")
    filler = card / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    _say(hub, "attic", range(1001))
    _predictions(hub, 1000, daemon)
    hub.wait_until(lambda _: "No space left on device" in str(_capture_part(hub).get("state")), "the disk", 60.0)
    assert f"{card}/captures: No space left on device" in daemon.log
    filler.unlink()
    _say(hub, "attic", range(1001, 1101))
    published = _predictions(hub, 1100, daemon)
    hub.wait_until(lambda _: _capture_part(hub).get("state") == "ok", "captures again", 60.0)
    assert daemon.stop() == 0
    windows = read_captures(card / "captures").windows
    assert {found.entry.id for found in windows} <= published.keys()
    assert len(windows) >= 100
    lost = _capture_part(hub)["lost"]
    assert isinstance(lost, dict)
    assert len(windows) + sum(lost.values()) == len(published)


def test_a_flood_stays_within_the_budget_over_kills(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, make_subscriber: MakeSubscriber, tmp_path: Path
) -> None:
    """To the byte, whenever it is looked at, and the captures of before are still read."""
    hub = make_subscriber(mosquitto.port, "edge/#")
    budget = 50_000
    text = _device(mosquitto, tmp_path, f'path = "captures"\nmax_bytes = {budget}\nrandom = 1.0')
    daemon = make_daemon(text)
    folder = daemon.config.parent / "captures"
    sizes = []
    for round_ in range(3):
        daemon.start()
        daemon.wait_for_log("online")
        before = set(folder.glob("part-*"))
        _say(hub, "attic", range(round_ * 4000, (round_ + 1) * 4000))

        def moved(before: set[Path] = before) -> bool:
            sizes.append(sum(path.stat().st_size for path in list(folder.glob("part-*")) if path.exists()))
            return bool(set(folder.glob("part-*")) - before)

        wait_until(moved, lambda: daemon.log[-2000:], 60.0)
        daemon.kill()
    assert max(sizes) <= budget
    assert sum(path.stat().st_size for path in folder.iterdir()) <= budget
    assert _windows(daemon)


def _windows(daemon: Daemon) -> list[FoundWindow]:
    return read_captures(daemon.config.parent / "captures").windows
