"""Several hands on one store: installs, a daemon and a reader at the same time."""

import os
import subprocess
import sys
from pathlib import Path

from edge_runtime.bundle.open import open_bundle
from edge_runtime.store.install import Policy
from edge_runtime.store.store import ModelStore
from tests.faults.slots.operations import quick
from tests.support import builders
from tests.support.waiting import patient

INSTALLER = """
import sys, time
from pathlib import Path
from edge_runtime.errors import EdgeError
from edge_runtime.store.install import Policy
from edge_runtime.store.store import ModelStore
from tests.faults.slots.operations import quick
store, policy = ModelStore(Path(sys.argv[1]), selftest=quick), Policy(unsigned="allow")
done = 0
for path in sys.argv[2:]:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            done += store.install(Path(path), policy).changed
            break
        except EdgeError as error:
            if "another install" not in str(error):
                break  # the other one was faster with a newer version
            time.sleep(0.003)
print(done)
"""

DAEMON = """
import sys, time
from pathlib import Path
from edge_runtime.store.store import ModelStore
store = ModelStore(Path(sys.argv[1]))
end = time.monotonic() + 60
while time.monotonic() < end and not Path(sys.argv[2]).exists():
    slot = store.begin("activity")
    assert slot.path.exists(), slot
    store.confirm("activity", slot.digest)
"""


def test_installs_and_a_daemon_at_once_leave_one_whole_active_bundle(tmp_path: Path) -> None:
    """Two installers race and a daemon confirms all the while: every look shows one active bundle."""
    root = tmp_path / "models"
    store = ModelStore(root, selftest=quick)
    paths = []
    for number in range(31):
        draft = builders.classification(version=f"1.{number}.0", seed=number)
        paths.append(str(draft.save(tmp_path / f"{number}.onnx")))
    store.install(Path(paths[0]), Policy(unsigned="allow"))
    stop = tmp_path / "stop"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    commands = [
        [sys.executable, "-c", INSTALLER, str(root), *paths[1::2]],
        [sys.executable, "-c", INSTALLER, str(root), *paths[2::2]],
        [sys.executable, "-c", DAEMON, str(root), str(stop)],
    ]
    running = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for command in commands
    ]
    looks = 0
    while any(process.poll() is None for process in running[:2]):
        active = [entry for entry in store.entries() if entry.state in {"active", "probation"}]
        assert len(active) == 1
        looks += 1
    stop.touch()
    installed = 0
    for process in running:
        out, err = process.communicate(timeout=patient(60))
        assert process.returncode == 0, err
        installed += int(out or 0)
    assert looks > 10
    assert installed >= 2
    assert store.slot("activity").version == "1.30.0"
    assert open_bundle(store.active("activity")).digest == store.slot("activity").digest
