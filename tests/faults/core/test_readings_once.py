"""The installed daemon and a real mosquitto: each reading in each window once, whatever is cut, stopped or killed."""

import os
import random
import signal
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, cast

import pytest

from tests.conftest import MakeBroker, MakeDaemon, MakeSubscriber
from tests.support import builders
from tests.support.broker import Mosquitto
from tests.support.daemon import Daemon
from tests.support.devices import climate_device
from tests.support.disk_faults import LONG, report
from tests.support.fault_proxy import FaultProxy
from tests.support.subscriber import Subscriber
from tests.support.waiting import wait_until

CUTS = 200 if LONG else 10
RESTARTS = 100 if LONG else 6
KILLS = 200 if LONG else 6
LENGTH = 5
KEYS = ("a", "b", "c")

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(3600 if LONG else 280)]


class _Stream:
    """What is published, and what was made of it. The identity is a sequence number, or there is none."""

    def __init__(self, client: Subscriber, rng: random.Random, *, identified: bool) -> None:
        self.client = client
        self.sent: dict[str, list[float]] = defaultdict(list)
        self.count = 0
        self._rng = rng
        self._identified = identified

    def publish(self, most: int = 12) -> None:
        """Some readings, of any keys; without an identity a value comes up to three times."""
        for _ in range(self._rng.randint(1, most)):
            key = self._rng.choice(KEYS)
            number = len(self.sent[key]) + 1
            document: dict[str, Any] = {"number": number, "other": 0, "seq": number}
            if not self._identified:
                document = {"number": number // 3, "other": 0}
            self.sent[key].append(float(document["number"]))
            self.count += 1
            self.client.publish(f"sensors/{key}/climate", document)

    def windows(self, key: str) -> list[tuple[float, ...]]:
        """Those of a key that were predicted, each `id` once, in the order in which they were made."""
        found = {}
        for message in self.client.on(f"edge/room/comfort/{key}"):
            document = message.document
            found[document["id"]] = (document["id"].split("/")[-2:], document["seq"], document["values"])
        return [tuple(values.values()) for _, _, values in found.values()]

    def expected(self, key: str) -> list[tuple[float, ...]]:
        """Every window of a plain list of what was published."""
        readings = self.sent[key]
        return [tuple(readings[begin : begin + LENGTH]) for begin in range(len(readings) - LENGTH + 1)]

    def wait_for_all(self) -> None:
        """Return when there are as many windows as there have to be."""
        wait_until(
            lambda: all(len(self.windows(key)) >= len(self.expected(key)) for key in KEYS),
            lambda: str({key: (len(self.windows(key)), len(self.expected(key))) for key in KEYS}),
            deadline=120.0,
        )


def _health(client: Subscriber) -> dict[str, Any]:
    return cast("dict[str, Any]", client.on("edge/room/health")[-1].document)


def _echo(folder: Path) -> Path:
    return builders.echo(name="comfort", length=LENGTH, stride=1).save(folder / "comfort.onnx")


@pytest.mark.parametrize("identified", [True, False])
def test_a_link_that_is_cut_again_and_again_makes_no_window_wrong(
    identified: bool, tmp_path: Path, mosquitto: Mosquitto, make_daemon: MakeDaemon, make_subscriber: MakeSubscriber
) -> None:
    """Around PUBACKs, reset, delayed, dripping: every window once, and every reading counted once."""
    rng = random.Random(20261128)
    client = make_subscriber(mosquitto.port, "edge/room/#")
    stream = _Stream(client, rng, identified=identified)
    proxy = FaultProxy(mosquitto.port, rng)
    try:
        daemon = make_daemon(climate_device(cast("Mosquitto", proxy), _echo(tmp_path))).start()
        daemon.wait_for_log("online")
        while proxy.faults < CUTS:
            stream.publish()
            time.sleep(0.02)  # the pace of the readings
        proxy.calm_down()
        stream.wait_for_all()
        wait_until(lambda: _health(client)["readings"] == stream.count, lambda: str(_health(client)), deadline=30.0)
    finally:
        proxy.close()
    for key in KEYS:
        assert stream.windows(key) == stream.expected(key)
    skipped = _health(client)["skipped"]
    assert set(skipped) <= {"redelivered"}
    report(f"{proxy.faults} cuts, {stream.count} readings, 0 wrong windows, 0 missing, skipped {skipped}")
    assert daemon.stop() == 0


def test_restarts_of_broker_and_daemon_make_no_window_wrong(
    tmp_path: Path, make_mosquitto: MakeBroker, make_daemon: MakeDaemon, make_subscriber: MakeSubscriber
) -> None:
    """Clean stops of either, while readings come and while none does: every window once."""
    broker = make_mosquitto(persistence=True)
    client = make_subscriber(broker.port, "edge/room/#", client_id="account")
    stream = _Stream(client, random.Random(20261128), identified=True)
    daemon = make_daemon(climate_device(broker, _echo(tmp_path))).start()
    daemon.wait_for_log("online")
    for turn in range(RESTARTS):
        stream.publish()
        if turn % 3 == 0:
            broker.restart()
            client.wait_for_text("edge/room/status", "online")
        else:
            assert daemon.stop() == 0
            stream.publish()
            daemon.start()
        stream.publish()
    stream.wait_for_all()
    for key in KEYS:
        assert stream.windows(key) == stream.expected(key)
    report(f"{RESTARTS} restarts, {stream.count} readings, 0 wrong windows, 0 missing")
    assert daemon.stop() == 0


def test_a_kill_costs_no_window_where_windows_are_acknowledged(
    tmp_path: Path, make_mosquitto: MakeBroker, make_daemon: MakeDaemon, make_subscriber: MakeSubscriber
) -> None:
    """SIGKILL at any moment: the broker brings what open windows need, and no window is missing or wrong."""
    broker = make_mosquitto(extra="max_inflight_messages 100")
    client = make_subscriber(broker.port, "edge/room/#")
    rng = random.Random(20261128)
    stream = _Stream(client, rng, identified=True)
    text = climate_device(broker, _echo(tmp_path), model='acknowledge = "window"')
    daemon: Daemon = make_daemon(text).start()
    daemon.wait_for_log("online")
    for _ in range(KILLS):
        stream.publish()
        time.sleep(rng.uniform(0.0, 0.3))  # the random moment is the fault itself
        stream.publish()
        daemon.kill()
        stream.publish()
        daemon.start()
    stream.wait_for_all()
    for key in KEYS:
        found = stream.windows(key)
        assert set(found) == set(stream.expected(key))
        assert len(found) == len(set(found))  # what was made twice has one id
    report(f"{KILLS} kills, {stream.count} readings, 0 wrong windows, 0 missing")
    assert daemon.stop() == 0


def test_every_reading_once_on_a_broker_that_sends_a_copy_for_each_filter(
    tmp_path: Path, make_mosquitto: MakeBroker, make_daemon: MakeDaemon, make_subscriber: MakeSubscriber
) -> None:
    """Mosquitto with `allow_duplicate_messages true`, and topics of which one covers the other."""
    broker = make_mosquitto(extra="allow_duplicate_messages true")
    client = make_subscriber(broker.port, "edge/room/#")
    stream = _Stream(client, random.Random(20261128), identified=False)
    text = climate_device(broker, _echo(tmp_path)).replace(
        'topics = ["sensors/{key}/climate"]', 'topics = ["sensors/{key}/climate", "sensors/#"]'
    )
    daemon = make_daemon(text).start()
    daemon.wait_for_log("online")
    for _ in range(10):
        stream.publish()
    stream.wait_for_all()
    for key in KEYS:
        assert stream.windows(key) == stream.expected(key)
    assert daemon.stop() == 0


def test_topics_that_were_changed_while_the_daemon_was_stopped_bring_no_copy(
    tmp_path: Path, make_mosquitto: MakeBroker, make_daemon: MakeDaemon, make_subscriber: MakeSubscriber
) -> None:
    """The broker's session remembers the old filter, and sends a copy for each."""
    broker = make_mosquitto(extra="allow_duplicate_messages true")
    client = make_subscriber(broker.port, "edge/room/#")
    stream = _Stream(client, random.Random(20261128), identified=False)
    text = climate_device(broker, _echo(tmp_path))
    daemon = make_daemon(text).start()
    daemon.wait_for_log("online")
    stream.publish()
    assert daemon.stop() == 0
    daemon.config.write_text(text.replace("sensors/{key}/climate", "sensors/{key}/+"))
    stream.publish()
    daemon.start()
    client.wait_for_text("edge/room/status", "online")
    for _ in range(5):
        stream.publish()
    stream.wait_for_all()
    for key in KEYS:
        assert stream.windows(key) == stream.expected(key)
    wait_until(lambda: _health(client)["readings"] == stream.count, lambda: str(_health(client)), deadline=30.0)
    assert daemon.stop() == 0


def test_two_daemons_share_a_stream_and_one_is_killed(
    tmp_path: Path, make_mosquitto: MakeBroker, make_daemon: MakeDaemon, make_subscriber: MakeSubscriber
) -> None:
    """Each reading goes to one of them; what the killed one had is answered when it is back."""
    broker = make_mosquitto()
    client = make_subscriber(broker.port, "edge/#")
    bundle = builders.echo(name="comfort", length=1).save(tmp_path / "one.onnx")
    texts = [
        climate_device(broker, bundle, device=name).replace('"sensors/{key}', '"$share/gateways/sensors/{key}')
        for name in ("left", "right")
    ]
    left, right = (make_daemon(text).start() for text in texts)
    for name in ("left", "right"):
        client.wait_for_text(f"edge/{name}/status", "online")
    for number in range(1, 201):
        if number == 81:  # it has readings in its hands that it cannot answer any more
            wait_until(lambda: len(_answered(client)) == 80, lambda: str(len(_answered(client))), deadline=60.0)
            os.kill(left.pid, signal.SIGSTOP)
        client.publish("sensors/a/climate", {"number": number, "other": 0, "seq": number})
        if number == 120:
            wait_until(lambda: len(_answered(client)) > 80, lambda: str(len(_answered(client))), deadline=60.0)
            left.kill()
    before = len(client.on("edge/left/comfort/"))
    left.start()
    wait_until(lambda: len(_answered(client)) == 200, lambda: str(len(_answered(client))), deadline=60.0)
    assert len(client.on("edge/left/comfort/")) > before, "the killed one has had none in its hands"
    assert all(any(d == name for d, _ in _answered(client, by_device=True)) for name in ("left", "right"))
    assert left.stop() == 0
    assert right.stop() == 0


def _answered(client: Subscriber, *, by_device: bool = False) -> set[Any]:
    found = [message.document for name in ("left", "right") for message in client.on(f"edge/{name}/comfort/")]
    return {(d["device"], d["seq"]) if by_device else d["values"]["t0"] for d in found}
