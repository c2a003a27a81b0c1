"""A hang anywhere starves the watchdog, and a thread that dies ends the daemon: systemd then starts a new one.

The faults are put into the installed program by a `sitecustomize.py`, which also shortens what counts as a hang.
That systemd does kill and restart is shown in `tests/system/fleet/test_service.py`.
"""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import MakeDaemon, MakeSubscriber
from tests.support import builders
from tests.support.broker import Mosquitto
from tests.support.daemon import Daemon
from tests.support.devices import climate_device
from tests.support.waiting import wait_until

pytestmark = pytest.mark.system

WATCHDOG_S = 0.3
BEATS = "WATCHDOG=1"
SHORT = "import time\nimport edge_runtime.system.watchdog as watchdog\nwatchdog.HANG_S = 1.0\n"
HANG = "lambda *_, **__: time.sleep(1000)"

# name -> (what goes wrong, what the log says of it)
HANGS = {
    "the disk": (
        f"import edge_runtime.delivery.outbox_file as store\nstore.OutboxFile.commit = {HANG}\n",
        'what="the outbox\'s disk"',
    ),
    "a model in its thread": (
        (
            "import edge_runtime.bundle.model as model, threading\n"
            "run = model.Model.run\n"
            "def slow(*a, **k):\n"
            "    if threading.current_thread().name == 'model':\n"
            "        time.sleep(1000)\n"
            "    return run(*a, **k)\n"
            "model.Model.run = slow\n"
        ),
        'what="model comfort"',
    ),
    "connecting": (
        (
            "import edge_runtime.mqtt.connection as connection\n"
            "connection.CONNECT_HANG_S = 1.0\n"
            f"connection.Connection._open = {HANG}\n"
        ),
        'what="connecting to mqtt://localhost:',
    ),
}


@pytest.fixture
def make_broken(mosquitto: Mosquitto, make_daemon: MakeDaemon, tmp_path: Path) -> Callable[..., Daemon]:
    """`make_broken(code)`: a daemon in whose process this runs first; `outbox` are further lines of that table."""

    def make(code: str, outbox: str = "") -> Daemon:
        bundle = builders.classification(name="comfort").save(tmp_path / "comfort.onnx")
        folder = tmp_path / "broken"
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(SHORT + code)
        text = climate_device(mosquitto, bundle, model='run = "worker"') + outbox
        watchdog = str(int(3e6 * WATCHDOG_S))
        return make_daemon(text, PYTHONPATH=str(folder), WATCHDOG_USEC=watchdog, EDGE_LOG_FORMAT="text").start()

    return make


def _starves(daemon: Daemon) -> None:
    """No beat comes any more, for five times the interval, while the process still lives."""
    beats, since = -1, time.monotonic()

    def quiet() -> bool:
        nonlocal beats, since
        if daemon.notifications.count(BEATS) != beats:
            beats, since = daemon.notifications.count(BEATS), time.monotonic()
        return time.monotonic() - since > 5 * WATCHDOG_S

    wait_until(quiet, lambda: f"the watchdog to starve; {daemon.log[-1500:]}", 30.0)
    assert daemon.returncode is None


@pytest.mark.parametrize("what", list(HANGS))
def test_a_hang_starves_the_watchdog(
    make_broken: Callable[..., Daemon], mosquitto: Mosquitto, make_subscriber: MakeSubscriber, what: str
) -> None:
    """The watchdog is fed until the hang counts as one; the log then names what hangs."""
    code, words = HANGS[what]
    daemon = make_broken(code, "commit_interval = 0.0\n" if what == "the disk" else "")
    daemon.wait_for_notification(BEATS)
    client = make_subscriber(mosquitto.port)
    if what != "connecting":
        daemon.wait_for_log("online")
    client.publish("sensors/a/climate", {"temperature": 1.0, "humidity": 2.0})
    daemon.wait_for_log("the watchdog is not fed: something hangs", 30.0)
    assert words in daemon.log
    _starves(daemon)
    daemon.kill()


def test_a_loop_that_hangs_starves_the_watchdog(make_broken: Callable[[str], Daemon]) -> None:
    """Whatever keeps the loop, nothing else feeds the watchdog."""
    daemon = make_broken(f"import edge_runtime.daemon.assembly as daemon\ndaemon.Assembly.housekeeping = {HANG}\n")
    _starves(daemon)
    daemon.kill()


def test_a_healthy_daemon_feeds_the_watchdog(make_broken: Callable[[str], Daemon]) -> None:
    """So that the starving above means something."""
    daemon = make_broken("")
    daemon.wait_for_log("online")
    before = daemon.notifications.count(BEATS)
    wait_until(lambda: daemon.notifications.count(BEATS) > before + 10, "ten beats", 30.0)
    assert "not fed" not in daemon.log
    assert daemon.stop() == 0


def test_a_thread_that_dies_ends_the_daemon_in_one_line(make_broken: Callable[[str], Daemon]) -> None:
    """Half a daemon is worse than a new one: it ends with 1, says why, and systemd starts it again."""
    daemon = make_broken(
        "import edge_runtime.system.background as background\n"
        "def die(self):\n"
        "    raise RuntimeError('a fault of ours')\n"
        "background.BackgroundThread._serve = die\n"
    )
    wait_until(lambda: daemon.returncode is not None, lambda: f"the end: {daemon.log[-1500:]}", 30.0)
    assert daemon.returncode == 1
    assert "thread outbox has died: RuntimeError: a fault of ours" in daemon.log
