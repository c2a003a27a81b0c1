"""The daemon on a disk that fills up and has room again: a real file system of four megabytes.

Errors of every kind at every call are in `tests/faults/core/test_outbox_kills.py`.
"""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_runtime.cli import main
from tests.conftest import MakeBroker, MakeDaemon, MakeSubscriber
from tests.support import builders
from tests.support.daemon import Daemon
from tests.support.devices import climate_device
from tests.support.load import answered
from tests.support.small_disk import small_disk
from tests.support.subscriber import Subscriber
from tests.support.waiting import wait_until

pytestmark = pytest.mark.system

READINGS = 300
FULL = "database or disk is full"  # in the words of SQLite


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, which only root can have."""
    with small_disk(tmp_path / "disk", "4m") as folder:
        yield folder


def test_a_full_disk_is_named_predictions_go_on_and_it_is_used_again_when_there_is_room(
    disk: Path, make_mosquitto: MakeBroker, make_daemon: MakeDaemon, make_subscriber: MakeSubscriber, tmp_path: Path
) -> None:
    """Log and status say what is wrong; with the link up nothing is held up, and nothing is lost on the way."""
    bundle = builders.classification(name="comfort").save(tmp_path / "comfort.onnx")
    field, upstream = make_mosquitto(), make_mosquitto(persistence=True)
    sensors = make_subscriber(field.port)
    # its session outlives the broker, so that nothing is published before a client listens again
    hub = make_subscriber(upstream.port, "edge/#", client_id="hub")
    text = climate_device(upstream, bundle, source=f'url = "{field.url}"')
    text = text.replace('path = "room.db"', f'path = "{disk}/room.db"\ncommit_interval = 0.1')
    session = tmp_path / "session"
    session.mkdir(mode=0o700)
    daemon = make_daemon(text, XDG_RUNTIME_DIR=str(session)).start()
    daemon.wait_for_log("online")
    upstream.stop()
    _say(sensors, 0, READINGS)
    daemon.wait_for_log("Connection refused")
    _fill(disk)
    _say(sensors, READINGS, 2 * READINGS)
    daemon.wait_for_log(FULL, 60.0)
    # asked while nothing can leave: once deliveries are taken out, there may be room in the file before health is due
    wait_until(lambda: f"outbox: {disk}/room.db: {FULL}" in _status(session), lambda: f"the disk; {_status(session)}")
    upstream.start()
    _expect(hub, range(READINGS, 2 * READINGS), daemon)
    (disk / "filler").unlink()
    _expect(hub, range(2 * READINGS), daemon)
    hub.wait_until(lambda _: _state(hub) == "ok", "health to be content", 60.0)
    assert daemon.stop() == 0


def _say(sensors: Subscriber, first: int, after: int) -> None:
    for number in range(first, after):
        reading = {"temperature": 1.0, "humidity": 2.0, "seq": number}
        sensors.publish(f"sensors/{number // READINGS}/climate", reading)
    sensors.flush()


def _status(session: Path) -> str:
    """What `edge-runtime status` prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        main(["status", "--folder", str(session)])
    return printed.getvalue()


def _state(hub: Subscriber) -> str:
    found = hub.on("edge/room/health")
    return str(found[-1].document["outbox"]["state"]) if found else ""


def _expect(hub: Subscriber, numbers: range, daemon: Daemon) -> None:
    wanted = set(numbers)
    hub.wait_until(
        lambda _: wanted <= set(answered(hub)),
        lambda: f"{len(wanted - set(answered(hub)))} of {len(wanted)} predictions; {daemon.log[-2000:]}",
        90.0,
    )


def _fill(disk: Path) -> None:
    with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
        while filler.write(bytes(4096)):
            pass
