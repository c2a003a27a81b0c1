"""Which connections watch for a broker that delays readings: those whose `latency` is `prompt`, whatever changes."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import msgspec
import pytest

from edge_runtime.config.load import load_config, upstream_broker
from edge_runtime.config.tables import BrokerTable, Latency
from edge_runtime.daemon.links import Links
from edge_runtime.mqtt.connection import Connection
from edge_runtime.mqtt.failover import Failover
from edge_runtime.stream.sources.mqtt import MqttSourceTable, source_broker
from edge_runtime.system.counters import Counters
from edge_runtime.system.loop import Loop
from tests.conftest import MakeBroker

DEVICE = """
[device]
id = "d"
[[source]]
name = "shared"
type = "mqtt"
topics = ["a"]
[[source]]
name = "prompt"
type = "mqtt"
topics = ["b"]
latency = "prompt"
[[source]]
name = "own"
type = "mqtt"
topics = ["c"]
url = "mqtt://elsewhere"
[[source]]
name = "own_economical"
type = "mqtt"
topics = ["d"]
url = "mqtt://elsewhere"
latency = "economical"
[[model]]
name = "m"
bundle = "m.onnx"
source = "shared"
[upstream]
url = "mqtt://h"
latency = "economical"
"""


@pytest.fixture
def loop() -> Iterator[Loop]:
    """A real loop."""
    loop = Loop()
    yield loop
    loop.close()


def test_each_source_has_its_own_choice(tmp_path: Path) -> None:
    """That of `[upstream]` where it names no broker, `prompt` where it names one, and its own key before both."""
    (tmp_path / "m.onnx").touch()
    (tmp_path / "device.toml").write_text(DEVICE)
    config = load_config(tmp_path / "device.toml")
    brokers = {
        source.name: source_broker(config, source) for source in config.source if isinstance(source, MqttSourceTable)
    }
    assert {name: broker.latency for name, broker in brokers.items()} == {
        "shared": "economical",
        "prompt": "prompt",
        "own": "prompt",
        "own_economical": "economical",
    }
    assert brokers["shared"] == upstream_broker(config), "one connection serves both"
    assert len(set(brokers.values())) == 4


def _links(loop: Loop) -> Links:
    return Links(loop, lambda _: Counters(), commit_interval=1.0, on_change=lambda: None)


def _watches(connection: object) -> bool:
    """Whether the present connection watches for late readings."""
    if isinstance(connection, Failover):
        connection = connection._connection
    assert isinstance(connection, Connection)
    assert connection._path is not None
    return connection._path.acks.watches_delay


def _run_until(loop: Loop, condition: Callable[[], object]) -> None:

    for _ in range(2000):
        if condition():
            return
        loop.run_once(0.05)
    raise AssertionError("the connection did not come up")


@pytest.mark.parametrize("latency", ["prompt", "economical"])
def test_a_reconnection_and_another_broker_keep_the_choice(
    latency: Latency, loop: Loop, make_mosquitto: MakeBroker
) -> None:
    """The first broker ends, the second takes over."""
    first, second = make_mosquitto(), make_mosquitto()
    links = _links(loop)
    table = BrokerTable(url=first.url, urls=(second.url,), client_id="d", latency=latency)
    connection = links.get(table, "upstream")
    links.start()
    _run_until(loop, lambda: connection.ready)
    assert isinstance(connection, Failover)
    assert (connection.url, _watches(connection)) == (first.url, latency == "prompt")
    first.stop()
    _run_until(loop, lambda: connection.ready and connection.url == second.url)
    assert _watches(connection) == (latency == "prompt")
    links.keep([])


def test_a_reload_that_changes_the_choice_makes_the_connection_anew(loop: Loop, make_mosquitto: MakeBroker) -> None:
    """And one that changes nothing keeps it."""
    links = _links(loop)
    before = BrokerTable(url=make_mosquitto().url, client_id="d")
    after = msgspec.structs.replace(before, latency="economical")
    watches = []
    for table in (before, before, after):
        links.keep([table])
        connection = links.get(table, "upstream")
        links.start()
        _run_until(loop, partial(getattr, connection, "ready"))
        watches.append((connection, _watches(connection)))
    assert [found for _, found in watches] == [True, True, False]
    assert watches[0][0] is watches[1][0]
    links.keep([])
