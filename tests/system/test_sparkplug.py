"""A device as an edge node of Sparkplug B at a real broker, read by decoders that are not ours."""

import contextlib
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.conftest import MakeDaemon, MakeSubscriber
from tests.support import builders
from tests.support.broker import Mosquitto
from tests.support.devices import climate_device
from tests.support.ports import find_free_port
from tests.support.sparkplug_reader import command, npm_modules, read, read_by_npm, values
from tests.support.subscriber import Message, Subscriber
from tests.support.waiting import patient, wait_until

pytestmark = pytest.mark.system

BIRTH, DEATH = "spBv1.0/plant/NBIRTH/room", "spBv1.0/plant/NDEATH/room"
DBIRTH, DDATA = "spBv1.0/plant/DBIRTH/room/comfort:kitchen", "spBv1.0/plant/DDATA/room/comfort:kitchen"
READING = {"temperature": 21.0, "humidity": 40.0}


def _on(topic: str, count: int) -> Callable[[list[Message]], bool]:
    return lambda messages: len([each for each in messages if each.topic == topic]) >= count


def _host(make_subscriber: MakeSubscriber, mosquitto: Mosquitto) -> Subscriber:
    return make_subscriber(mosquitto.port, "spBv1.0/#", "edge/#")


def _numbers(messages: list[Message]) -> list[Any]:
    return [read(each.payload)["seq"] for each in messages if "/NDEATH/" not in each.topic]


@pytest.mark.parametrize("protocol", ["3.1.1", "5"])
def test_births_data_rebirth_and_death(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, make_subscriber: MakeSubscriber, tmp_path: Path, protocol: str
) -> None:
    """As a host sees it, over a rebirth, a kill and a clean stop; the JSON of the same predictions beside it."""
    bundle = builders.classification(name="comfort").save(tmp_path / "comfort.onnx")
    table = '\n[sparkplug]\ngroup = "plant"\n'
    text = climate_device(mosquitto, bundle, model='alarm_labels = ["high"]', upstream=f'protocol = "{protocol}"')
    host = _host(make_subscriber, mosquitto)
    daemon = make_daemon(text + table).start()
    host.wait_until(_on(BIRTH, 1), "NBIRTH")
    host.wait_for_text("edge/room/status", "online")
    for _ in range(3):
        host.publish("sensors/kitchen/climate", READING)
    host.wait_until(_on(DDATA, 3), "three DDATA")
    host.wait_until(_on("edge/room/comfort/kitchen", 3), "three predictions")
    spoken = host.on("spBv1.0/")
    assert [each.topic for each in spoken] == [BIRTH, DBIRTH, DDATA, DDATA, DDATA]
    assert _numbers(spoken) == [0, 1, 2, 3, 4]
    assert not any(each.retained for each in spoken)
    for data, prediction in zip(spoken[2:], host.on("edge/room/comfort/kitchen"), strict=True):
        answered = prediction.document
        found = values(data.payload)
        assert {name: found[name] for name in ("id", "label", "alarm")} == {
            name: answered[name] for name in ("id", "label", "alarm")
        }
        assert found["score"] == pytest.approx(answered["score"], rel=1e-6)
        assert found["scores/low"] == pytest.approx(answered["scores"]["low"], rel=1e-6)
    assert set(values(spoken[1].payload)) == set(values(spoken[2].payload))
    if npm_modules() is not None:
        birth, *_, last = read_by_npm([each.payload for each in spoken])
        assert {each["name"] for each in birth["metrics"]} == {"bdSeq", "Node Control/Rebirth"}
        assert {each["name"]: each["value"] for each in last["metrics"]} == values(spoken[-1].payload)

    host.clear()
    host.publish("spBv1.0/plant/NCMD/room", command("Node Control/Rebirth", value=True))
    host.wait_until(_on(DBIRTH, 1), "a rebirth")
    assert [each.topic for each in host.on("spBv1.0/")][-2:] == [BIRTH, DBIRTH]
    assert _numbers([each for each in host.on("spBv1.0/") if "NCMD" not in each.topic]) == [0, 1]

    daemon.kill()
    host.wait_until(_on(DEATH, 1), "NDEATH by the last will")
    (death,) = host.on(DEATH)
    born = host.on(BIRTH)[-1]
    assert read(death.payload)["metrics"].keys() == {"bdSeq"}
    assert values(death.payload)["bdSeq"] == values(born.payload)["bdSeq"]
    host.clear()
    daemon.start()
    host.wait_until(_on(BIRTH, 1), "NBIRTH after a kill")
    assert daemon.stop() == 0
    host.wait_until(_on(DEATH, 1), "NDEATH of a clean stop")
    assert len(host.on(DEATH)) == 1


class _Cable:
    """Between the device and its broker; `cut` ends every connection and lets none through until `mend`."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        self._is_cut = False
        self._threads: list[threading.Thread] = []
        self._start(self._serve)

    def cut(self) -> None:
        """Pull it."""
        self._is_cut = True
        for each in self._open:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        """Plug it in again."""
        self._is_cut = False

    def close(self) -> None:
        """End."""
        self.cut()
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(patient(10))
        for each in (self._listener, *self._open):
            each.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                if self._is_cut:
                    near.close()
                    continue
                far = socket.create_connection(("127.0.0.1", self._target))
                self._open += [near, far]
                for pair in ((near, far), (far, near)):
                    self._start(_pass_on, *pair)

    def _start(self, serve: Callable[..., None], *arguments: socket.socket) -> None:
        self._threads.append(threading.Thread(target=serve, args=arguments, daemon=True))
        self._threads[-1].start()


def _pass_on(here: socket.socket, there: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := here.recv(65536):
            there.sendall(data)
    for each in (here, there):
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


def test_an_outage_is_a_new_session_whose_births_come_first(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, make_subscriber: MakeSubscriber, tmp_path: Path
) -> None:
    """The host hears a death at once; what was predicted meanwhile follows the births as historical."""
    cable = _Cable(mosquitto.port)
    bundle = builders.classification(name="comfort").save(tmp_path / "comfort.onnx")
    (tmp_path / "readings.jsonl").write_text('{"temperature": 20.0, "humidity": 40.0}\n' * 20)
    text = climate_device(mosquitto, bundle).replace(
        'type = "mqtt"\ntopics = ["sensors/{key}/climate"]\n',
        'type = "replay"\nfiles = ["readings.jsonl"]\nrate_hz = 20.0\nloop = true\ntimes = "now"\n',
    )
    text = text.replace(mosquitto.url, f"mqtt://127.0.0.1:{cable.port}")
    host = _host(make_subscriber, mosquitto)
    text += '\n[sparkplug]\ngroup = "plant"\n[[sink]]\nname = "all"\ntype = "file"\npath = "all.jsonl"\n'
    daemon = make_daemon(text).start()
    data = "spBv1.0/plant/DDATA/room/comfort"
    host.wait_until(_on(data, 3), "live data")
    cable.cut()
    host.wait_until(_on(DEATH, 1), "NDEATH by the last will")
    host.clear()
    made = daemon.config.parent / "all.jsonl"
    so_far = len(made.read_text())
    wait_until(lambda: len(made.read_text()) > so_far + 1000, "predictions during the outage")
    cable.mend()
    host.wait_until(_on(data, 30), "data after the outage")
    spoken = [each for each in host.on("spBv1.0/") if each.topic != DEATH]
    birth = next(place for place, each in enumerate(spoken) if each.topic == BIRTH)
    assert [each.topic for each in spoken[birth : birth + 3]] == [BIRTH, "spBv1.0/plant/DBIRTH/room/comfort", data]
    assert values(spoken[birth].payload)["bdSeq"] >= 1
    late = [read(each.payload)["metrics"]["score"]["historical"] for each in spoken[birth:] if each.topic == data]
    assert late[0]
    assert not late[-1]
    assert late == sorted(late, reverse=True)
    assert _numbers(spoken[birth:]) == [number % 256 for number in range(len(spoken) - birth)]
    assert daemon.stop() == 0
    cable.close()


def test_the_embedded_broker_carries_every_convention(
    make_daemon: MakeDaemon, make_subscriber: MakeSubscriber, tmp_path: Path
) -> None:
    """JSON, flat values and Sparkplug at the broker of the demonstration, which is no mosquitto."""
    iotcore = pytest.importorskip("iotcore")
    broker = iotcore.Broker(port=find_free_port(), listen="127.0.0.1")
    broker.start(timeout=30.0)
    try:
        host = make_subscriber(broker.port, "spBv1.0/#", "edge/#")
        bundle = builders.classification(name="comfort").save(tmp_path / "comfort.onnx")
        table = '\n[sparkplug]\ngroup = "plant"\n'
        stand_in = SimpleNamespace(url=f"mqtt://127.0.0.1:{broker.port}")
        text = climate_device(cast("Mosquitto", stand_in), bundle, model='payload = ["json", "values"]')
        daemon = make_daemon(text + table).start()
        host.wait_for_text("edge/room/status", "online")
        host.wait_until(_on(BIRTH, 1), "NBIRTH")
        host.publish("sensors/kitchen/climate", READING)
        host.wait_until(_on(DDATA, 1), "DDATA")
        host.wait_until(_on("edge/room/comfort/kitchen", 1), "JSON")
        (answered,) = [each.document for each in host.on("edge/room/comfort/kitchen") if each.topic.endswith("kitchen")]
        host.wait_until(_on("edge/room/comfort/kitchen/score", 1), "a flat value")
        (flat,) = [float(each.text) for each in host.messages if each.topic == "edge/room/comfort/kitchen/score"]
        assert values(host.on(DDATA)[-1].payload)["score"] == pytest.approx(answered["score"], rel=1e-6)
        assert flat == answered["score"]
        daemon.kill()
        host.wait_until(_on(DEATH, 1), "NDEATH by the last will")
    finally:
        broker.stop()
