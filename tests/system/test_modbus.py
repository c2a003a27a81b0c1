"""Modbus meters on a serial line, from the register to the broker."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import MakeDaemon, MakeSubscriber
from tests.support import builders
from tests.support.broker import Mosquitto

if TYPE_CHECKING:
    from tests.support.modbus import SerialCable

pytest.importorskip("pymodbus")
pytestmark = pytest.mark.system


@pytest.fixture
def cable(tmp_path: Path) -> Iterator["SerialCable"]:
    """A serial line."""
    from tests.support.modbus import SerialCable  # noqa: PLC0415 - only where pymodbus is

    made = SerialCable(tmp_path)
    yield made
    made.cut()


def test_each_unit_of_a_line_has_predictions_of_its_own_and_a_reload_opens_the_line_again(
    mosquitto: Mosquitto,
    make_daemon: MakeDaemon,
    make_subscriber: MakeSubscriber,
    cable: "SerialCable",
    tmp_path: Path,
) -> None:
    """A dead third unit delays neither; the line goes on with the keys that a reload brings, and the stop is clean."""
    from tests.support.modbus import ModbusServer, device  # noqa: PLC0415 - as above

    units = [device(number, holding={0: 215, 1: 40 + number}, inputs={0: 0}, coils={0: False}) for number in (1, 2)]
    server = ModbusServer(units, port=cable.paths[1])
    bundle = builders.classification(name="comfort").save(tmp_path / "comfort.onnx")
    subscriber = make_subscriber(mosquitto.port, "edge/room/#")
    text = f"""
[device]
id = "room"
health_interval = 0.5
[[source]]
name = "meters"
type = "modbus"
port = "{cable.paths[0]}"
units = [1, 2, 3]
interval = 0.1
timeout = 0.3
[[source.register]]
channel = "temperature"
address = 0
scale = 0.1
[[source.register]]
channel = "humidity"
address = 1
[[model]]
name = "comfort"
bundle = "{bundle}"
source = "meters"
[upstream]
url = "{mosquitto.url}"
"""
    daemon = make_daemon(text).start()
    for key in ("1", "2"):
        subscriber.wait_for(3, f"edge/room/comfort/{key}")
    assert not subscriber.on("edge/room/comfort/3")
    daemon.config.write_text(text.replace("units = [1, 2, 3]", "units = [2]"))
    daemon.reload()
    before = len(subscriber.on("edge/room/comfort/2"))
    subscriber.wait_for(before + 3, "edge/room/comfort/2")
    assert daemon.stop() == 0
    server.stop()
    assert "unit 3: " in daemon.log
