"""The installed daemon under fire: killed at any moment, and on a line that breaks at every acknowledgement."""

import random
import time
from collections import Counter
from pathlib import Path
from typing import cast

import pytest

from tests.conftest import MakeDaemon, MakeSubscriber
from tests.support import builders
from tests.support.broker import Mosquitto
from tests.support.devices import climate_device
from tests.support.disk_faults import LONG, report
from tests.support.fault_proxy import FREEZE, FaultProxy
from tests.support.load import answered, endless_readings
from tests.support.subscriber import Subscriber
from tests.support.waiting import wait_until

KILLS = 200 if LONG else 16
CUTS = 500 if LONG else 40
WINDOW = 20

pytestmark = [pytest.mark.system, pytest.mark.slow]


@pytest.fixture
def comfort(tmp_path: Path) -> Path:
    """A bundle of single readings."""
    return builders.classification(name="comfort").save(tmp_path / "comfort.onnx")


def _wait_for_all(client: Subscriber, sent: list[int]) -> Counter[int]:
    wanted = set(sent)
    wait_until(
        lambda: wanted <= set(answered(client)),
        lambda: f"{sorted(wanted - set(answered(client)))[:20]} to be answered, of {len(wanted)}",
        deadline=120.0,
    )
    return answered(client)


@pytest.mark.timeout(3600 if LONG else 280)
def test_a_daemon_that_is_killed_at_any_moment_leaves_no_reading_unanswered(
    comfort: Path, mosquitto: Mosquitto, make_daemon: MakeDaemon, make_subscriber: MakeSubscriber
) -> None:
    """SIGKILL under load, again and again: every QoS 1 reading gets its prediction, known by its identity."""
    rng = random.Random(20261123)
    client = make_subscriber(mosquitto.port, "edge/room/comfort/#")
    daemon = make_daemon(climate_device(mosquitto, comfort)).start()
    daemon.wait_for_log("online")
    with endless_readings(client, 0.005) as sent:
        for turn in range(KILLS):
            time.sleep(rng.uniform(0.0, 1.5))  # the random moment is the fault itself
            daemon.kill()
            daemon.start(ready=turn % 3 == 0)
    answers = _wait_for_all(client, sent)
    assert daemon.stop() == 0
    repeats = answers.total() - len(answers)
    report(f"{KILLS} kills of the daemon, {len(sent)} readings, 0 unanswered, {repeats} repeats")
    assert len(sent) > 20 * KILLS


@pytest.mark.timeout(3600 if LONG else 280)
def test_a_line_that_breaks_at_every_acknowledgement_loses_nothing(
    comfort: Path, mosquitto: Mosquitto, make_daemon: MakeDaemon, make_subscriber: MakeSubscriber
) -> None:
    """Cut around PUBACKs, reset, delayed, dripping, frozen: nothing is lost, and repeats stay within the window."""
    proxy = FaultProxy(mosquitto.port, random.Random(20261123), freezes=3 if LONG else 1)
    try:
        client = make_subscriber(mosquitto.port, "edge/room/comfort/#")
        text = climate_device(
            cast("Mosquitto", proxy),
            comfort,
            upstream=f"keepalive = 2\nmax_inflight = {WINDOW}",
            source=f'url = "{mosquitto.url}"',
        )
        daemon = make_daemon(text).start()
        daemon.wait_for_log("online")  # before it has subscribed, the broker keeps no readings for it
        with endless_readings(client, 0.002) as sent:
            wait_until(
                lambda: proxy.faults >= CUTS, lambda: f"{CUTS} faults; {dict(proxy.done)}; {daemon.log[-800:]}", 1500.0
            )
        proxy.calm_down()
        answers = _wait_for_all(client, sent)
        assert daemon.stop() == 0
    finally:
        proxy.close()
    repeats = answers.total() - len(answers)
    report(f"{proxy.faults} faults of the line {dict(proxy.done)}, {len(sent)} readings, 0 lost, {repeats} repeats")
    assert repeats <= WINDOW * proxy.faults
    assert proxy.done[FREEZE] >= 1
    assert len(proxy.done) >= 5
