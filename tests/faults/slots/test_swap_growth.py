"""Models exchanged again and again in one process: nothing of the old ones stays behind.

`EDGE_TORTURE=long` exchanges two hundred times. Every exchange opens a session of onnxruntime and closes one, which is
where others have found their leaks.
"""

from pathlib import Path

import pytest

from edge_runtime.store.install import Policy
from edge_runtime.store.store import ModelStore
from tests.conftest import MakeDaemon
from tests.faults.slots.operations import quick
from tests.support import builders
from tests.support.broker import Mosquitto
from tests.support.devices import stored_device
from tests.support.disk_faults import LONG, report
from tests.support.subscriber import Subscriber

SWAPS = 200 if LONG else 5
WARM = SWAPS // 5
MOST_MB = 5.0

pytestmark = [pytest.mark.system, pytest.mark.slow]


@pytest.mark.timeout(3600 if LONG else 250)
def test_exchanged_models_leave_nothing_behind(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, subscriber: Subscriber, tmp_path: Path
) -> None:
    """After the warm-up the process grows by no more than five megabytes, and holds as many descriptors and threads."""
    store, policy = ModelStore(tmp_path / "store", quick), Policy(unsigned="allow")
    first = builders.classification(name="comfort", version="1.0.0").save(tmp_path / "first.onnx")
    store.confirm("comfort", store.install(first, policy).slot.digest)
    daemon = make_daemon(stored_device(mosquitto, tmp_path, "probation_predictions = 1")).start()
    subscriber.wait_for_text("edge/room/status", "online")

    def answers() -> str:
        """One reading, and the version that answers it."""
        before = len(subscriber.on("edge/room/comfort/"))
        subscriber.publish("sensors/a/climate", {"temperature": 1.0, "humidity": 2.0})
        return str(subscriber.wait_for(before + 1, "edge/room/comfort/", 60.0)[-1].document["version"])

    def held() -> tuple[float, int, int]:
        process = Path(f"/proc/{daemon.pid}")
        return (
            daemon.resident_bytes / 1e6,
            len(list((process / "fd").iterdir())),
            len(list((process / "task").iterdir())),
        )

    assert answers() == "1.0.0"
    seen = []
    for number in range(1, SWAPS + 1):
        version = f"1.{number}.0"
        draft = builders.classification(name="comfort", version=version, seed=number)
        store.install(draft.save(tmp_path / "next.onnx"), policy)
        subscriber.wait_until(
            lambda messages, version=version: any(  # type: ignore[misc]
                m.topic == "edge/room/models" and m.document[0]["version"] == version for m in messages[-20:]
            ),
            f"version {version}",
            60.0,
        )
        assert answers() == version
        seen.append(held())
    settled = seen[WARM:]
    grown = settled[-1][0] - settled[0][0]
    report(f"{SWAPS} exchanges of a model: RSS {settled[0][0]:.1f} MB after {WARM + 1}, {grown:+.1f} MB at the end")
    assert grown <= MOST_MB
    assert len({descriptors for _, descriptors, _ in settled}) == 1, seen
    assert max(threads for *_, threads in settled) <= settled[0][2] + 1, "the thread of the exchange may not have ended"
    assert daemon.stop() == 0
