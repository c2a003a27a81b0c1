"""A clock that is not set at the start, is set, and jumps: a Raspberry Pi without network wakes up in 1970.

The clock of the machine is left alone: a `sitecustomize.py` moves that of the daemon by what stands in a file, and
answers for the kernel whether it is set.
"""

import datetime as dt
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import MakeBroker, MakeDaemon, MakeSubscriber
from tests.support import builders
from tests.support.broker import Mosquitto
from tests.support.daemon import Daemon
from tests.support.devices import climate_device
from tests.support.subscriber import Subscriber
from tests.support.waiting import wait_until

pytestmark = pytest.mark.system

CLOCK = """
import time
true = time.time
def moved():
    with open({path!r}) as file:
        return true() + float(file.read().split()[0])
time.time = moved
time.time_ns = lambda: int(moved() * 1e9)
import edge_runtime.system.clock as clock
clock.RECHECK_S = 0.0
def kernel_says():
    with open({path!r}) as file:
        return file.read().split()[1] == "set"
clock.kernel_says_set = kernel_says
clock.Clock.__init__.__defaults__ = (kernel_says,)
"""
YEAR_S = 365.25 * 86_400.0
SINCE_1970 = -56.9 * YEAR_S  # from now to the first days of the epoch


@dataclass
class Rig:
    """A device with a clock of its own."""

    daemon: Daemon
    broker: Mosquitto
    sensors: Subscriber
    clock: Path

    def set_clock(self, offset_s: float, standing: str) -> None:
        """In one step, as the file is read at any moment."""
        beside = self.clock.with_suffix(".new")
        beside.write_text(f"{offset_s} {standing}")
        beside.replace(self.clock)

    def stored(self) -> int:
        """Predictions on disk."""
        with closing(sqlite3.connect(f"file:{self.clock.parent / 'room.db'}?mode=ro", uri=True)) as connection:
            return int(connection.execute("SELECT count(*) FROM entry").fetchone()[0])

    def say(self, *numbers: int) -> None:
        """Readings without a time of their own."""
        for number in numbers:
            self.sensors.publish("sensors/a/climate", {"temperature": float(number), "humidity": 2.0})
        self.sensors.flush()


@pytest.fixture
def make_rig(
    make_mosquitto: MakeBroker, make_daemon: MakeDaemon, make_subscriber: MakeSubscriber, tmp_path: Path
) -> Callable[[float, str], Rig]:
    """`make_rig(offset, "set")`: the daemon is not started."""

    def make(offset_s: float, standing: str) -> Rig:
        bundle = builders.classification(name="comfort").save(tmp_path / "comfort.onnx")
        clock, folder = tmp_path / "clock", tmp_path / "moved"
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(CLOCK.format(path=str(clock)))
        field, broker = make_mosquitto(), make_mosquitto(persistence=True)
        text = climate_device(broker, bundle, source=f'url = "{field.url}"')
        daemon = make_daemon(text.replace('room.db"', 'room.db"\ncommit_interval = 0.05'), PYTHONPATH=str(folder))
        rig = Rig(daemon, broker, make_subscriber(field.port), clock)
        rig.set_clock(offset_s, standing)
        return rig

    return make


def _times(hub: Subscriber) -> list[dt.datetime]:
    return [dt.datetime.fromisoformat(message.document["time"]) for message in hub.on("edge/room/comfort/")]


def test_predictions_of_an_unset_clock_say_so_and_do_not_grow_old_when_it_is_set(
    make_rig: Callable[[float, str], Rig], make_subscriber: MakeSubscriber
) -> None:
    """What was stored in 1970 is delivered in 2026, in order and under its own `id`; nothing is dropped for its age."""
    rig = make_rig(SINCE_1970, "unset")
    hub = make_subscriber(rig.broker.port, "edge/#", client_id="hub")  # heard by its session also while it is away
    rig.daemon.start()
    rig.daemon.wait_for_log("online")
    rig.broker.stop()
    rig.daemon.wait_for_log("Connection refused")
    rig.say(1, 2, 3)
    wait_until(lambda: rig.stored() == 3, lambda: f"three rows, not {rig.stored()}")
    rig.set_clock(0.0, "set")
    rig.say(4, 5)
    rig.broker.start()
    found = [message.document for message in hub.wait_for(5, "edge/room/comfort/", 60.0)]
    assert [each.get("clock") for each in found] == ["unsynchronised"] * 3 + [None] * 2
    assert [moment.year < 1975 for moment in _times(hub)] == [True] * 3 + [False] * 2
    assert [each["seq"] for each in found] == [1, 2, 3, 4, 5]
    assert len({each["id"] for each in found}) == 5
    hub.wait_until(lambda _: hub.on("edge/room/health"), "health")
    assert hub.on("edge/room/health")[-1].document["dropped"] == {}
    assert rig.daemon.stop() == 0


@pytest.mark.parametrize("jump_s", [-3600.0, 10 * YEAR_S], ids="{:+.0f} s".format)
def test_a_clock_that_jumps_costs_nothing(
    make_rig: Callable[[float, str], Rig], make_subscriber: MakeSubscriber, jump_s: float
) -> None:
    """Links, timers and order go by a clock that never jumps; ids stay different over the jump and a new start."""
    rig = make_rig(0.0, "set")
    hub = make_subscriber(rig.broker.port, "edge/#")
    rig.daemon.start()
    rig.daemon.wait_for_log("online")
    rig.say(1, 2)
    hub.wait_for(2, "edge/room/comfort/")
    rig.set_clock(jump_s, "set")
    rig.say(3, 4)
    hub.wait_for(4, "edge/room/comfort/")
    assert rig.daemon.stop() == 0
    rig.daemon.start()
    rig.say(5, 6)
    # one that was in flight at the stop may come twice, under its own id
    hub.wait_until(lambda _: len({m.document["id"] for m in hub.on("edge/room/comfort/")}) == 6, "six different ids")
    assert "closed the connection" not in rig.daemon.log
    assert "does not answer" not in rig.daemon.log
    assert rig.daemon.stop() == 0
