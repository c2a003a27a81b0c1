"""Rollouts over many devices that fail, sleep, are slow or hang, and over hosts that are interrupted at any moment.

The devices are stand-ins that speak the documented protocol and check every signature (`tests/support/stand_ins.py`).
The short form has 40 of them. With `EDGE_TORTURE=long` (`make fleet-run`) there are 40, 200 and 1,000, beside eight
real daemons, and 50 interruptions; it prints what it measured.
"""

import hashlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.broker import Mosquitto
from tests.support.builders import Signer, classification, signer
from tests.support.namespaces import ROOT
from tests.support.stand_ins import StandIns
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(1800)]

LONG = os.environ.get("EDGE_TORTURE") == "long"
SHARES = {"failing": 0.05, "away": 0.05, "slow": 0.05, "hung": 0.05}
EXPECTED = {"good": "done", "slow": "done", "failing": "failed", "away": "away", "hung": "busy"}
long_only = pytest.mark.skipif(not LONG, reason="asked for by EDGE_TORTURE=long")


class Run:
    """Stand-ins, a depot, and a laptop.

    Args:
        folder: for bundles, keys and the inventory.
        host: of the broker.
        port: of the broker.
        kinds: the stand-ins.
        extra: further devices of the inventory.
        within: words before each command, for another namespace.
    """

    def __init__(
        self,
        folder: Path,
        host: str,
        port: int,
        kinds: dict[str, str],
        *,
        extra: str = "",
        within: tuple[str, ...] = (),
    ) -> None:
        self.folder = folder
        self.kinds = kinds
        self._within = within
        self._processes: list[subprocess.Popen[Any]] = []
        self.keys = Signer(folder / "signing-key", folder / "allowed_signers")
        (folder / "bundles").mkdir()
        self.url = f"mqtt://{host}:{port}"
        text = f'[broker]\nurl = "{self.url}"\n{extra}'
        text += "".join(f'[[device]]\nname = "{name}"\ntransport = "mqtt"\n' for name in kinds)
        self.inventory = folder / "fleet.toml"
        self.inventory.write_text(text)
        self.stand_ins = StandIns(host, port, self.keys.allowed, within)
        if kinds:
            self.stand_ins("add", devices=kinds)

    def bundle(self, version: str, *, bad: bool = False, padding: int = 60_000) -> Path:
        """A signed bundle of some chunks; a bad one fails on every stand-in."""
        draft = classification(name="m", version=version)
        draft.model.doc_string = os.urandom(padding // 2).hex()
        path = draft.save(self.folder / "bundles" / f"{version}.onnx")
        self.keys.sign(path)
        self.stand_ins("bundle", digest=digest(path), version=version, bad=bad)
        return path

    def depot(self) -> "subprocess.Popen[Any]":
        """`edge-runtime depot`, over the folder of bundles."""
        found = self.begin("depot", self.folder / "bundles", "--broker", self.url, stderr=subprocess.PIPE)
        assert found.stderr is not None
        assert "serving" in found.stderr.readline()
        return found

    def begin(self, *words: str | Path, stderr: int = subprocess.DEVNULL) -> "subprocess.Popen[Any]":
        """A command that goes on, in a session of its own."""
        environment = {"EDGE_FLEET": str(self.inventory), "PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]}
        process = subprocess.Popen(
            [*self._within, "env", "--default-signal=INT", sys.executable, "-m", "edge_runtime", *map(str, words)],
            cwd=self.folder, env=environment | {"HOME": str(self.folder)}, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=stderr, text=True, start_new_session=True,
        )  # fmt: skip
        self._processes.append(process)
        return process

    def __call__(self, *words: str | Path, timeout: float = 900) -> dict[str, Any]:
        """A command of the fleet to its end: its document with the exit code, results by device, and what it cost."""
        began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
        process = self.begin(*words, "--json", "--quiet", stderr=subprocess.PIPE)
        out, err = process.communicate(timeout=timeout)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert out, f"{words}: {err}"
        document: dict[str, Any] = json.loads(out)
        if isinstance(document, list):
            return {"rows": document, "code": process.returncode, "seconds": time.monotonic() - began}
        document["results"] = {each["device"]: each["result"] for each in document["devices"]}
        document["code"] = process.returncode
        document["seconds"] = time.monotonic() - began
        document["cpu"] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return document

    def truth(self) -> dict[str, str]:
        """The version of each stand-in, as it has it itself."""
        return {name: found["version"] for name, found in self.stand_ins.devices().items()}

    def require_single_installs(self) -> None:
        """No stand-in has installed a bundle twice, and none took what was not signed."""
        for name, found in self.stand_ins.devices().items():
            twice = [each for each, count in Counter(found["installs"]).items() if count > 1]
            assert not twice, f"{name} installed {twice} twice"
            assert found["refused"] == 0, name

    def close(self) -> None:
        """End everything."""
        for each in self._processes:
            if each.poll() is None:
                os.killpg(each.pid, signal.SIGKILL)
            each.wait(10)
            for stream in (each.stdout, each.stderr):
                if stream is not None:
                    stream.close()
        self.stand_ins.close()


def digest(path: Path) -> str:
    """SHA-256, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def kinds_of(count: int, shares: dict[str, float] = SHARES) -> dict[str, str]:
    """So many stand-ins, of each kind its share, spread evenly; the first ones are good."""
    names = [f"s-{number:04}" for number in range(count)]
    kinds = dict.fromkeys(names, "good")
    places = iter(range(3, count))
    for kind, share in shares.items():
        for _ in range(round(count * share)):
            kinds[names[next(places)]] = kind
    order = list(kinds.values())[3:]
    random.Random(5).shuffle(order)
    return dict(zip(names, [*list(kinds.values())[:3], *order], strict=True))


MakeRun = Callable[..., Run]


@pytest.fixture
def make_run(tmp_path: Path) -> Iterator[MakeRun]:
    """`make_run(host, port, kinds)`."""
    made: list[Run] = []

    def make(*words: Any, **more: Any) -> Run:
        if not (tmp_path / "signing-key").exists():
            signer(tmp_path)
        made.append(Run(tmp_path, *words, **more))
        return made[-1]

    yield make
    for each in made:
        each.close()


def roll_out_to_a_mixed_fleet(run: Run) -> dict[str, Any]:
    """One command over devices of all kinds: each has its result, and who comes back converges by itself."""
    newer = run.bundle("1.1.0")
    run.depot()
    found = run("rollout", "start", newer, "--all", "--sign", run.keys.key, "--max-failures", "10%",
                "--soak", "1")  # fmt: skip
    wrong = {
        name: (kind, found["results"][name], next(each for each in found["devices"] if each["device"] == name)["text"])
        for name, kind in run.kinds.items()
        if found["results"][name] != EXPECTED[kind]
    }
    assert not wrong, wrong
    assert found["code"] == 1
    healthy = [name for name, kind in run.kinds.items() if kind in {"good", "slow"}]
    assert {run.truth()[name] for name in healthy} == {"1.1.0"}

    run.stand_ins("back")
    sleepers = [name for name, kind in run.kinds.items() if kind == "away"]
    wait_until(lambda: {run.truth()[name] for name in sleepers} == {"1.1.0"}, "those that came back", 120.0)
    wait_until(lambda: {run("rollout", "status")["results"][name] for name in sleepers} == {"done"}, "their row", 60.0)
    run.require_single_installs()
    return found


def stop_a_bad_bundle(run: Run, wave: int) -> None:
    """A bundle that fails everywhere reaches no more than the canary and one wave."""
    run("rollout", "abort")
    found = run("rollout", "start", run.bundle("1.2.0", bad=True), "--all", "--sign", run.keys.key, "--max-failures",
                "2", "--wave", str(wave), "--canaries", "0", "--soak", "1")  # fmt: skip
    assert (found["code"], found["state"]) == (1, "stopped")
    tried = [name for name, result in found["results"].items() if result != "not tried"]
    assert 2 < len(tried) <= wave, "it stops within one wave"
    assert "1.2.0" not in run.truth().values()


def interrupt(run: Run, moments: int, seed: int, *, extra: dict[str, Callable[[], str]] | None = None) -> Counter[str]:
    """Interrupt commands at random moments until each rollout is through; the table is right, none installs twice.

    Args:
        run: the devices.
        moments: how many interruptions.
        seed: of the moments.
        extra: real devices, with a question for the version that each runs.
    """
    chance = random.Random(seed)
    done: Counter[str] = Counter()
    number, takes = 0, 8.0
    run.bundle("2.0.0")
    run.depot()
    while sum(done.values()) < moments:
        number += 1
        version = f"2.{number}.0"
        bundle = run.bundle(version)
        how = "flash" if number % 3 == 0 else "rollout"
        start: list[str | Path] = ["flash", bundle, "--all", "--soak", "0", "--keep-going", "--limit", "16"]
        if how == "rollout":
            start = [
                "rollout",
                "start",
                bundle,
                "--all",
                "--sign",
                run.keys.key,
                "--soak",
                "0",
                "--max-failures",
                "100%",
            ]
        for _ in range(min(4, moments - sum(done.values()))):
            blow = chance.choice(["Ctrl-C", "kill -9", "closed laptop"])
            process = run.begin(*_next_words(run, how, version, start), "--json", "--quiet")
            time.sleep(chance.uniform(0.1, takes))
            done[f"{how}, {blow}"] += 1
            _strike(process, blow)
        began = time.monotonic()
        for _ in range(4):
            found = run(*_next_words(run, how, version, start))
            if found["code"] == 0:
                break
        takes = min(10.0, max(4.0, time.monotonic() - began + 2.0))
        assert set(found["results"].values()) <= {"done", "unchanged"}, found["results"]
        assert set(run.truth().values()) == {version}
        for name, ask in (extra or {}).items():
            assert ask() == version, name
        run.require_single_installs()
    return done


def _next_words(run: Run, how: str, version: str, start: list[str | Path]) -> list[str | Path]:
    """The command that goes on: `resume` where the rollout of this version has begun."""
    if how == "flash" or not (run.folder / "rollouts.db").exists():
        return start
    found = run("rollout", "status")
    if found["version"] != version:
        return start
    return ["rollout", "resume", "--sign", run.keys.key] if found["state"] == "running" else ["rollout", "status"]


def _strike(process: "subprocess.Popen[Any]", blow: str) -> None:
    if blow == "closed laptop":
        os.killpg(process.pid, signal.SIGSTOP)
        time.sleep(2.0)
        os.killpg(process.pid, signal.SIGCONT)
        process.communicate(timeout=300)
        return
    os.killpg(process.pid, signal.SIGINT if blow == "Ctrl-C" else signal.SIGKILL)
    out, _ = process.communicate(timeout=300)
    if blow == "Ctrl-C" and out:  # else it was interrupted before it had anything to tell, or had ended
        document = json.loads(out)
        assert document["interrupted"] == (process.returncode == 130)
        assert len(document["devices"]) >= 1


def test_a_mixed_fleet_gets_a_bundle_by_one_command(mosquitto: Mosquitto, make_run: MakeRun) -> None:
    """5 % fail, 5 % are away and come back, 5 % are slow, 5 % hang; then a bad bundle stops within one wave."""
    run = make_run("127.0.0.1", mosquitto.port, kinds_of(40))
    roll_out_to_a_mixed_fleet(run)
    stop_a_bad_bundle(run, wave=10)


def test_a_host_that_is_interrupted_at_any_moment_leaves_a_right_table(mosquitto: Mosquitto, make_run: MakeRun) -> None:
    """Ctrl-C, kill -9, a closed laptop; the next command goes on, and no device installs twice."""
    run = make_run("127.0.0.1", mosquitto.port, dict.fromkeys([f"s-{number:02}" for number in range(12)], "good"))
    assert sum(interrupt(run, 4, seed=7).values()) == 4
