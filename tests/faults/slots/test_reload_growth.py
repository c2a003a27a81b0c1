"""Many models exchanged again and again by reloads: what the ones before had is given back to the system."""

from pathlib import Path

import pytest

from tests.conftest import MakeDaemon
from tests.support import builders
from tests.support.broker import Mosquitto
from tests.support.devices import climate_device
from tests.support.disk_faults import LONG, report
from tests.support.subscriber import Subscriber
from tests.support.waiting import wait_until

MODELS = 100
RELOADS = 40 if LONG else 5
MOST_MB = 8.0  # 10 MB stay of every reload where nothing gives them back

pytestmark = [pytest.mark.system, pytest.mark.slow]


@pytest.mark.timeout(1200 if LONG else 250)
def test_reloads_that_exchange_every_model_leave_nothing_behind(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, subscriber: Subscriber, tmp_path: Path
) -> None:
    """A reload loads all of them in a thread, beside those that answer."""
    bundles = [tmp_path / f"m{number}.onnx" for number in range(MODELS)]

    def write(version: int) -> None:
        for number, bundle in enumerate(bundles):
            draft = builders.classification(name=bundle.stem, version=f"1.{version}.0", seed=100 * version + number)
            draft.save(bundle.with_suffix(".new")).replace(bundle)

    write(0)
    device = climate_device(mosquitto, bundles[0])
    for bundle in bundles[1:]:
        device += f'\n[[model]]\nname = "{bundle.stem}"\nbundle = "{bundle}"\nsource = "climate"\n'
    daemon = make_daemon(device).start()
    subscriber.wait_for_text("edge/room/status", "online")
    held = []
    for reload in range(1, RELOADS + 1):
        write(reload)
        daemon.reload()
        wait_until(lambda reload=reload: daemon.log.count("reloaded: ") >= MODELS * reload, "a reload", 60)  # type: ignore[misc]
        subscriber.publish("sensors/a/climate", {"temperature": 1.0, "humidity": 2.0})
        subscriber.wait_for(reload, "edge/room/m99/", 60.0)
        held.append(daemon.resident_bytes / 1e6)
    grown = held[-1] - held[1]
    report(f"{RELOADS} reloads of {MODELS} models: RSS {held[1]:.1f} MB after two, {grown:+.1f} MB at the end")
    assert grown <= MOST_MB, held
    assert daemon.stop() == 0
