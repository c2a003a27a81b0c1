"""The courses of the way-in machine over a socket: a real mosquitto, and a broker as hostile as MQTT allows.

A device of real parts (loop, connection, source, windows) is cut, stopped, killed and reloaded at random, with a fixed
seed; each reading is in each window once, and is counted once.
"""

import json
import random
import socket
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec
import pytest

from edge_runtime.config.tables import BrokerTable
from edge_runtime.mqtt.connection import Connection
from edge_runtime.readings import Batch
from edge_runtime.stream.decide import Sequences
from edge_runtime.stream.holding import OwedReceipts
from edge_runtime.stream.sources.mqtt import MqttSource, MqttSourceTable
from edge_runtime.system.counters import Counters
from edge_runtime.system.loop import Loop
from tests.conftest import MakeBroker, MakeSubscriber
from tests.support.disk_faults import LONG
from tests.support.session_broker import SessionBroker
from tests.support.tables import table
from tests.support.waiting import Deadline
from tests.support.way_in import LENGTH, OutboxDoor, make_pipeline

STEPS = 2000 if LONG else 120
KEYS = ("a", "b")

Publish = Callable[[bytes, bytes], None]


class _Device:
    """Everything of a device that a reading passes, in this process."""

    def __init__(self, url: str, acknowledge: str, **settings: Any) -> None:
        self.url, self.acknowledge = url, acknowledge
        self.settings = settings
        self.counters = Counters()
        self.sequences = Sequences()
        self.made: list[tuple[str, tuple[float, ...], str]] = []
        self.starts = 0
        self.start()

    def start(self, saved: tuple[Any, Any] | None = None) -> None:
        self.starts += 1
        self.loop, self.outbox, self.sequences = Loop(), OutboxDoor(), Sequences()
        settings = msgspec.convert(
            {"url": self.url, "reconnect_min": 0.01, "reconnect_max": 0.02, **self.settings}, BrokerTable
        )
        self.connection = Connection(
            settings,
            name="s",
            client_id="way-in",
            password=lambda: None,
            loop=self.loop,
            counters=Counters(),
            will=None,
            ack_patience=0.01,
        )
        self.pipeline = self._make_pipeline()
        self.source = self._make_source()
        if saved is not None:
            owed = OwedReceipts()
            self.pipeline.restore_windows(saved[0], owed, self.loop.time())
            self.source.restore(saved[1], owed)
        self.connection.start()

    def _make_pipeline(self) -> Any:
        return make_pipeline(
            self.loop,
            self.outbox,
            stride=1,
            acknowledge=self.acknowledge,
            start=self.starts,
            sequences=self.sequences,
        )

    def _make_source(self) -> MqttSource:
        return MqttSource(
            table(MqttSourceTable, name="s", topics=["s/{key}"], max_ahead=1e9),
            ("v",),
            None,
            connection=self.connection,
            sink=self._accept,
            counters=self.counters,
            held_at_most=(1000, "it") if self.acknowledge == "window" else None,
        )

    def _accept(self, batch: Batch) -> None:
        self.pipeline.accept(batch)

    def serve(self, seconds: float) -> None:
        """Let the loop run."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.loop.run_once(min(left, 0.005))

    def cut(self) -> None:
        """The network is gone: what is on its way is lost."""
        if self.connection._path is not None:
            with suppress(OSError):
                self.connection._path.wrapped._wrapped.shutdown(socket.SHUT_RDWR)

    def reload(self, *, model: bool) -> None:
        """As SIGHUP with another table of the model, or of the source."""
        if model:
            old, self.pipeline = self.pipeline, self._make_pipeline()
            self.pipeline.take_over(old)
            old.retire()
        else:
            earlier, self.source = self.source, self._make_source()
            self.source.take_over(earlier)
            earlier.unsubscribe()
            earlier.stop()

    def stop(self) -> tuple[Any, Any]:
        """SIGTERM; what is kept over it."""
        self.source.stop()
        self.outbox.safe(len(self.outbox.unsafe))
        owed = OwedReceipts()
        saved = self.pipeline.save_windows(owed), self.source.save(owed)
        self.connection.stop()
        self._end()
        return saved

    def kill(self) -> None:
        """SIGKILL: the kernel closes the socket, and nothing is kept."""
        if self.connection._path is not None:
            self.connection._path.wrapped._wrapped.close()
        self._end()

    def _end(self) -> None:
        self.made += self.outbox.made
        self.loop.close()


def _run(
    url: str,
    publish: Publish,
    rng: random.Random,
    *,
    identity: str,
    acknowledge: str,
    broker: SessionBroker | None = None,
) -> tuple[_Device, dict[str, list[float]], bool]:
    """A course of random events, and then quiet until everything is there."""
    device = _Device(url, acknowledge)
    published: dict[str, list[float]] = {key: [] for key in KEYS}
    last: dict[str, bytes] = {}
    moment, step, killed = time.time() - 1e6, 1.0, False
    device.serve(0.2)
    for _ in range(STEPS):
        event = rng.random()
        if event < 0.55:
            for _ in range(rng.randint(1, 4)):
                key = rng.choice(KEYS)
                readings = published[key]
                readings.append((readings[-1] if readings else 0.0) + rng.randint(0, 1))
                moment += step
                own: dict[str, Any] = {"seq": len(readings), "time": moment}
                document = {"v": readings[-1]} | {name: own[name] for name in own if name == identity}
                last[key] = json.dumps(document).encode()
                publish(f"s/{key}".encode(), last[key])
        elif event < 0.6 and identity != "none" and last:
            key = rng.choice(list(last))
            publish(f"s/{key}".encode(), last[key])  # the sender repeats
        elif event < 0.7:
            (broker or device).cut() if rng.random() < 0.5 else device.cut()
        elif event < 0.76:
            device.start(device.stop())
        elif event < 0.8 and acknowledge == "window":
            killed = True
            device.kill()
            device.start()
        elif event < 0.86:
            device.reload(model=rng.random() < 0.5)
        elif event < 0.9:
            step = rng.choice((0.1, 1.0, 20.0))
        else:
            device.outbox.safe(rng.randint(1, 5))
        device.serve(rng.choice((0.0, 0.0, 0.01, 0.05)))
    end = Deadline(60.0)
    while not end.over and not _is_complete(device, published):
        device.outbox.safe(len(device.outbox.unsafe))
        device.serve(0.05)
        if broker is not None and end.left < 45.0:
            broker.calm = True  # what a long course has left in its queue would take minutes between its cuts
    device.serve(0.3)  # what is too many comes too
    device.stop()
    return device, published, killed


def _windows(readings: list[float]) -> list[tuple[float, ...]]:
    return [tuple(readings[begin : begin + LENGTH]) for begin in range(len(readings) - LENGTH + 1)]


def _is_complete(device: _Device, published: dict[str, list[float]]) -> bool:
    made = Counter((key, window) for key, window, _ in (*device.made, *device.outbox.made))
    wanted = Counter((key, window) for key, readings in published.items() for window in _windows(readings))
    return made >= wanted


def _account(device: _Device, published: dict[str, list[float]], *, killed: bool) -> None:
    ids: dict[str, tuple[str, tuple[float, ...]]] = {}
    for key, window, identity in device.made:
        assert ids.setdefault(identity, (key, window)) == (key, window)  # one id, one prediction
    for key, readings in published.items():
        found = [window for name, window, _ in device.made if name == key]
        if killed:  # at least once, and under the same id
            once = list(dict.fromkeys(identity for name, _, identity in device.made if name == key))
            assert [ids[identity][1] for identity in once] == _windows(readings)
        else:
            assert found == _windows(readings)
    assert not device.counters.rejected
    assert set(device.counters.skipped) <= {"redelivered", "retained"}
    if not killed:
        assert device.counters.counts["readings"] == sum(map(len, published.values()))


COURSES = [("seq", "entry"), ("seq", "window"), ("time", "window"), ("none", "entry")]


@pytest.mark.parametrize(("identity", "acknowledge"), COURSES)
def test_each_reading_is_in_each_window_once_on_a_hostile_broker(identity: str, acknowledge: str) -> None:
    """Cuts in the middle of a packet, lost acknowledgements, DUP with new packet ids, stops, kills, reloads."""
    rng = random.Random(f"{identity} {acknowledge}")
    broker = SessionBroker(random.Random(rng.random()), renumbers=identity != "none")
    try:
        device, published, killed = _run(
            broker.url, broker.publish, rng, identity=identity, acknowledge=acknowledge, broker=broker
        )
    finally:
        broker.close()
    assert broker.cuts
    assert not broker.violations
    _account(device, published, killed=killed)


@pytest.mark.system
@pytest.mark.parametrize(("identity", "acknowledge"), COURSES)
def test_each_reading_is_in_each_window_once_on_mosquitto(
    identity: str, acknowledge: str, make_mosquitto: MakeBroker, make_subscriber: MakeSubscriber
) -> None:
    """The same courses, as far as a broker that keeps to its own rules can be brought to them."""
    broker = make_mosquitto(extra="max_inflight_messages 100")
    sensor = make_subscriber(broker.port, "none")

    def publish(topic: bytes, payload: bytes) -> None:
        sensor.publish(topic.decode(), payload)

    device, published, killed = _run(
        f"mqtt://127.0.0.1:{broker.port}",
        publish,
        random.Random(f"{identity} {acknowledge}"),
        identity=identity,
        acknowledge=acknowledge,
    )
    _account(device, published, killed=killed)


def _silent_key(device: _Device, publish: Publish) -> None:
    """Two readings of a key that then is silent, and many of another one, until all of those are answered."""
    device.serve(0.3)
    for number in range(2):
        publish(b"s/b", json.dumps({"v": number, "seq": number}).encode())
    for number in range(100):
        publish(b"s/a", json.dumps({"v": number, "seq": number}).encode())
    end = Deadline(30.0)
    while not end.over and len(device.outbox.made) < 100 - LENGTH + 1:
        device.serve(0.02)
        device.outbox.safe(100)
    device.serve(0.3)
    assert [window[0] for _, window, _ in device.outbox.made] == list(range(100 - LENGTH + 1))


@pytest.mark.parametrize("acknowledge", ["entry", "window"])
def test_a_silent_key_holds_up_no_other_key(acknowledge: str) -> None:
    """With a limit of 20 unacknowledged messages: windows acknowledge each key by itself, and what is left is open.

    MQTT-4.6.0-2 wants PUBACKs in the order of arrival: they are, but for readings that wait for their windows.
    """
    broker = SessionBroker(random.Random(1), most_in_flight=20, calm=True)
    try:
        device = _Device(broker.url, acknowledge)
        _silent_key(device, broker.publish)
        left = [json.loads(payload) for payload in broker.unacknowledged()]
        device.stop()
    finally:
        broker.close()
    if acknowledge == "entry":
        assert broker.out_of_order == 0
        assert left == []
    else:
        assert broker.out_of_order > 0
        assert [each["v"] for each in left] == [0, 1, 98, 99]  # the open windows of both keys
    assert not broker.violations


@pytest.mark.system
@pytest.mark.parametrize("protocol", ["3.1.1", "5"])
def test_mosquitto_takes_the_acknowledgements_of_windows_in_their_own_order(
    protocol: str, make_mosquitto: MakeBroker, make_subscriber: MakeSubscriber
) -> None:
    """It goes on sending at its limit, forgets what was acknowledged, and sends the rest again after a kill."""
    broker = make_mosquitto(extra="max_inflight_messages 20")
    sensor = make_subscriber(broker.port, "none")
    device = _Device(f"mqtt://127.0.0.1:{broker.port}", "window", protocol=protocol, receive_maximum=20)
    _silent_key(device, lambda topic, payload: sensor.publish(topic.decode(), payload))
    device.kill()
    before = device.counters.counts["readings"]
    device.start()
    end = Deadline(20.0)
    while not end.over and device.counters.counts["readings"] < before + 4:
        device.serve(0.02)
    device.serve(0.3)
    assert device.counters.counts["readings"] == before + 4
    sensor.publish("s/b", json.dumps({"v": 2, "seq": 2}))
    while not end.over and not device.outbox.made:
        device.serve(0.02)
    assert [window for _, window, _ in device.outbox.made] == [(0.0, 1.0, 2.0)]
    device.stop()
