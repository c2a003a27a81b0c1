"""SIGKILL at every file-system call of every change of the model store, one call after another."""

import collections
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge_runtime.bundle.open import open_bundle
from edge_runtime.store.install import Policy
from edge_runtime.store.permission import PERMISSION_NAMESPACE
from edge_runtime.store.store import ModelStore
from tests.faults.slots.operations import quick
from tests.support import builders
from tests.support.waiting import Deadline, patient

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")

# What can change a disk or hold a lock: a kill at a call is a kill before it. Calls that only look or let go (stat,
# read, close) add hundreds of points that are the same as the one after them.
CALLS = "openat,write,fsync,rename,unlink,unlinkat,rmdir,mkdir,flock,chown,fchown"
LEAST_POINTS = 300
OLD, NEW, NEXT = "1.0.0", "1.1.0", "1.2.0"


@dataclass(frozen=True)
class Scenario:
    """A store as it was before, one operation, and the versions that may be active after a kill (old, new)."""

    name: str
    prepare: Callable[[ModelStore, "Bench"], None]
    order: dict[str, Any]
    versions: tuple[str | None, str]


class Bench:
    """Signed bundles, and the process that operates on stores."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keys = builders.signer(folder / "keys")
        self.bundles = {version: self._bundle(version) for version in (OLD, NEW, NEXT)}
        self.policy = Policy(allowed_signers=self.keys.allowed, device="press-07")
        root = str(Path(__file__).parents[3])
        self.server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("operations.py"))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
            env={**os.environ, "PYTHONPATH": root},
        )  # fmt: skip

    def _bundle(self, version: str) -> Path:
        path = builders.classification(version=version, seed=sum(version.encode())).save(
            self.folder / f"{version}.onnx"
        )
        self.keys.sign(path)
        return path

    def operate(self, order: dict[str, Any], store: Path, inject: str | None) -> tuple[int, str]:
        """Run one order under strace, and return the exit status and the log of calls."""
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        bundle = str(self.bundles[order.get("version", NEW)])
        full = {"store": str(store), "allowed": str(self.keys.allowed), "unsigned": "refuse", "bundle": bundle, **order}
        self.server.stdin.write(json.dumps(full) + "\n")
        child = int(self.server.stdout.readline())
        log = self.folder / "strace.log"
        log.unlink(missing_ok=True)
        command = ["strace", "-q", "-e", f"trace={CALLS}", "-o", str(log), "-p", str(child)]
        if inject is not None:
            command[2:2] = ["-e", f"inject={inject}"]
        tracer = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            _wait_for_tracer(child)
            os.kill(child, signal.SIGCONT)
            status = int(self.server.stdout.readline())
        finally:
            tracer.wait(patient(30))
        return status, log.read_text()

    def close(self) -> None:
        """End the server."""
        self.server.kill()
        self.server.communicate(timeout=patient(30))


def _wait_for_tracer(child: int) -> None:
    deadline = Deadline(20.0)
    while "TracerPid:\t0\n" in Path(f"/proc/{child}/status").read_text():
        assert not deadline.over, "strace did not attach"
        time.sleep(0.001)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """One server for all points."""
    made = Bench(tmp_path_factory.mktemp("kill"))
    yield made
    made.close()


def _install(*versions: str, prove: bool = True) -> Callable[[ModelStore, Bench], None]:
    def prepare(store: ModelStore, bench: Bench) -> None:
        for version in versions:
            store.install(bench.bundles[version], bench.policy)
            if prove:
                store.confirm("activity", store.begin("activity").digest)

    return prepare


def _on_probation(store: ModelStore, bench: Bench) -> None:
    _install(OLD)(store, bench)
    store.install(bench.bundles[NEW], bench.policy)


def _staged(store: ModelStore, bench: Bench) -> None:
    _install(OLD)(store, bench)
    store.install(bench.bundles[NEW], replace(bench.policy, activate=False))


def _shadowed(store: ModelStore, bench: Bench) -> None:
    _install(OLD)(store, bench)
    store.install(bench.bundles[NEW], replace(bench.policy, shadow=True))


def _half_done(store: ModelStore, bench: Bench) -> None:
    """What an earlier kill may have left: a staged copy, a bundle that no state speaks of, half a state."""
    _install(OLD)(store, bench)
    (store.root / ".staging").mkdir()
    shutil.copy(bench.bundles[NEXT], store.root / ".staging" / "bundle.onnx")
    shutil.copy(bench.bundles[NEW], store.root / "activity" / f"{open_bundle(bench.bundles[NEW]).digest}.onnx")
    (store.root / "activity" / ".new-state.json").write_text('{"format": 1, "act')


def _permitted(store: ModelStore, bench: Bench) -> None:
    _install(NEXT)(store, bench)
    bundle = open_bundle(bench.bundles[NEW])
    permission = bundle.path.with_name(bundle.path.name + ".allow-older")
    document = {
        "type": "allow-older",
        "name": "activity",
        "version": NEW,
        "digest": bundle.digest,
        "device": "press-07",
    }
    permission.write_bytes(msgspec.json.encode(document))
    bench.keys.sign(permission, namespace=PERMISSION_NAMESPACE)


SCENARIOS = (
    Scenario("first install", lambda store, bench: None, {"verb": "install", "version": OLD}, (None, OLD)),
    Scenario("upgrade", _install(OLD), {"verb": "install", "version": NEW}, (OLD, NEW)),
    Scenario("upgrade that prunes", _install(OLD, NEW), {"verb": "install", "version": NEXT}, (NEW, NEXT)),
    Scenario("install after a kill", _half_done, {"verb": "install", "version": NEW}, (OLD, NEW)),
    Scenario("older with permission", _permitted, {"verb": "install", "version": NEW}, (NEXT, NEW)),
    Scenario("activate a staged one", _staged, {"verb": "activate", "version": NEW}, (OLD, NEW)),
    Scenario("roll back", _install(OLD, NEW), {"verb": "rollback"}, (NEW, OLD)),
    Scenario("begin probation", _on_probation, {"verb": "begin"}, (NEW, NEW)),
    Scenario("confirm", _on_probation, {"verb": "confirm"}, (NEW, NEW)),
    Scenario("fail on probation", _on_probation, {"verb": "fail"}, (NEW, OLD)),
    Scenario("install a shadow", _install(OLD), {"verb": "install", "version": NEW, "shadow": True}, (OLD, OLD)),
    Scenario("promote a shadow", _shadowed, {"verb": "promote"}, (OLD, NEW)),
    Scenario("withdraw a shadow", _shadowed, {"verb": "withdraw"}, (OLD, OLD)),
    Scenario("a shadow fails", _shadowed, {"verb": "fail_shadow"}, (OLD, OLD)),
)


def _check(root: Path, scenario: Scenario) -> None:
    """After the kill: one active bundle, old or new, whole and loadable."""
    store = ModelStore(root, selftest=quick)
    entries = store.entries()
    active = [entry for entry in entries if entry.state in {"active", "probation"}]
    old, new = scenario.versions
    if not active:
        assert old is None
        return
    assert len(active) == 1
    assert active[0].version in {old, new}
    assert "rebuilt" not in active[0].why, "the state was damaged: it is not replaced whole"
    assert open_bundle(store.active("activity")).digest == active[0].digest
    for entry in entries:
        if entry.state in {"previous", "staged"}:
            file = root / "activity" / f"{entry.digest}.onnx"
            assert open_bundle(file).digest == entry.digest


def _again(root: Path, scenario: Scenario, bench: Bench) -> None:
    """The same order then succeeds, and leaves nothing behind that the state does not speak of."""
    store = ModelStore(root, selftest=quick)
    verb, version = scenario.order["verb"], scenario.order.get("version", NEW)
    if verb == "install":
        store.install(bench.bundles[version], replace(bench.policy, shadow=bool(scenario.order.get("shadow"))))
        assert store.slot("activity").version == scenario.versions[1]
        assert not (root / ".staging").exists()
    elif verb == "activate":
        assert store.activate("activity", version).version == version
    elif store.slot("activity").version == scenario.versions[0] and verb in {"rollback", "promote"}:
        assert getattr(store, verb)("activity").version == scenario.versions[1]
    assert store.begin("activity").version in scenario.versions
    store.confirm("activity", store.slot("activity").digest)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_kill_at_any_call_leaves_one_whole_active_bundle(bench: Bench, tmp_path: Path) -> None:
    """Whatever call a kill hits, one valid bundle is active, and the same order then succeeds.

    Every point is proved: the child died of SIGKILL, in the call that was meant, at the count that was meant.
    """
    fired: collections.Counter[str] = collections.Counter()
    for scenario in SCENARIOS:
        before = tmp_path / scenario.name.replace(" ", "-")
        scenario.prepare(ModelStore(before, selftest=quick), bench)
        trial = tmp_path / "trial"
        _fresh(before, trial)
        status, log = bench.operate(scenario.order, trial, None)
        assert status == 0, log
        counts = collections.Counter(re.findall(r"^(\w+)\(", log, re.MULTILINE))
        assert counts["rename"] >= 1, f"{scenario.name} decides nothing"
        for call, count in sorted(counts.items()):
            for number in range(1, count + 1):
                _fresh(before, trial)
                status, log = bench.operate(scenario.order, trial, f"{call}:signal=KILL:when={number}")
                assert status == -signal.SIGKILL, f"{scenario.name}: {call} {number} did not fire"
                assert len(re.findall(rf"^{call}\(", log, re.MULTILINE)) == number
                fired[scenario.name] += 1
                _check(trial, scenario)
                _again(trial, scenario, bench)
    print(f"{fired.total()} kill points fired: {dict(fired)}")  # noqa: T201
    assert fired.total() >= LEAST_POINTS


def _fresh(before: Path, trial: Path) -> None:
    shutil.rmtree(trial, ignore_errors=True)
    if before.exists():
        shutil.copytree(before, trial)
