"""Rollouts over many devices that fail, sleep, are slow or hang, and over hosts that are interrupted at any moment.

The devices are stand-ins that speak the documented protocol and check every signature (`tests/support/stand_ins.py`).
The short form has 40 of them. With `EDGE_TORTURE=long` (`make fleet-run`) there are 40, 200 and 1,000, beside eight
real daemons, and 50 interruptions; it prints what it measured.
"""

import hashlib
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.broker import Mosquitto
from tests.support.builders import Signer, classification, signer
from tests.support.namespaces import ROOT, Lan
from tests.support.namespaces import Device as NetworkDevice
from tests.support.ports import find_free_port
from tests.support.stand_ins import StandIns
from tests.support.waiting import patient, wait_until
from tests.system.fleet.conftest import MakeLan
from tests.system.fleet.test_provision import SYSTEMCTL
from tests.system.fleet.test_whole_fleet import DEVICE_FILE

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
        document["peak_mb"] = after.ru_maxrss // 1024  # of the largest child so far
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
            each.wait(patient(10))
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


def interrupt(
    run: Run, moments: int, seed: int, *, extra: Mapping[str, Callable[[], str]] | None = None
) -> Counter[str]:
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
        found = run(*_next_words(run, how, version, start))
        for _ in range(3):
            if found["code"] == 0:
                break
            found = run(*_next_words(run, how, version, start))
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


def cpu_of(pid: int) -> float:
    """Seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Hub:
    """mosquitto as shipped, in a network namespace or here, whose messages are counted.

    Args:
        folder: for its configuration.
        host: the address that it listens on.
        port: likewise.
        within: words before each command.
    """

    def __init__(self, folder: Path, host: str, port: int, within: tuple[str, ...] = ()) -> None:
        self.host, self.port = host, port
        self._within = within
        config = folder / "hub.conf"
        config.write_text(f"listener {port} {host}\nallow_anonymous true\nuser root\nsys_interval 1\n")
        self.process = subprocess.Popen(
            [*within, "mosquitto", "-c", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_until(lambda: self._read("version") is not None, "the broker", 20.0)

    def messages(self) -> tuple[int, int]:
        """How many PUBLISH messages came in and went out."""
        time.sleep(2.0)  # it counts once a second
        found = [self._read(f"publish/messages/{each}") for each in ("received", "sent")]
        return int(found[0] or 0), int(found[1] or 0)

    def _read(self, name: str) -> str | None:
        words = ["mosquitto_sub", "-h", self.host, "-p", str(self.port), "-C", "1", "-W", "5", "-t"]
        done = subprocess.run(
            [*self._within, *words, f"$SYS/broker/{name}"],
            capture_output=True,
            text=True,
            check=False,
            timeout=patient(20),
        )
        return done.stdout.strip() or None

    def stop(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait(patient(10))


@long_only
@pytest.mark.parametrize("count", [40, 200, 1000])
def test_what_a_rollout_costs(tmp_path: Path, make_run: MakeRun, count: int) -> None:
    """Time, CPU, memory and messages of one command over 40, 200 and 1,000 devices of all kinds; then of `devices`."""
    hub = Hub(tmp_path, "127.0.0.1", find_free_port())
    try:
        run = make_run(hub.host, hub.port, kinds_of(count))
        before, broker = hub.messages(), cpu_of(hub.process.pid)
        found = roll_out_to_a_mixed_fleet(run)
        after = hub.messages()
        listed = run("devices")
        figures = {
            "devices": count, "seconds": round(found["seconds"], 1), "cpu": round(found["cpu"], 2),
            "peak_mb": found["peak_mb"], "received": after[0] - before[0], "sent": after[1] - before[1],
            "broker_cpu": round(cpu_of(hub.process.pid) - broker, 2), "file_kb": _file_kb(run),
            "list_seconds": round(listed["seconds"], 1),
            "signatures": run.stand_ins("table")["checked"],
        }  # fmt: skip
        _tell(figures)
        reachable = sum(1 for row in listed["rows"] if row["reachable"] and row["models"] and row["runtime"])
        assert reachable == count
        stop_a_bad_bundle(run, wave=max(10, count // 10))
    finally:
        hub.stop()


def _tell(figures: Mapping[str, object]) -> None:
    """For `pytest -rP`."""
    sys.stdout.write(f"FIGURES {json.dumps(figures)}\n")


def _file_kb(run: Run) -> int:
    return (run.folder / "rollouts.db").stat().st_size // 1024


@long_only
def test_fifty_interruptions_over_eight_real_daemons(tmp_path: Path, make_lan: MakeLan, make_run: MakeRun) -> None:
    """Four devices that ssh reaches and four that MQTT reaches, all with the real daemon, beside 40 stand-ins."""
    lan, hub, extra = _eight(tmp_path, make_lan)
    try:
        names = [f"s-{number:02}" for number in range(40)]
        within = ("ip", "netns", "exec", lan.hub)
        run = make_run(hub.host, hub.port, dict.fromkeys(names, "good"), extra=extra, within=within)
        first = run("flash", run.bundle("1.1.0"), "--all", "--soak", "0", "--limit", "16")
        assert set(first["results"].values()) == {"done"}, first["devices"]
        asked = {each.name: partial(_version, each) for each in lan.devices}
        done = interrupt(run, 50, seed=11, extra=asked)
        _tell(done)
        for each in lan.devices:
            _require_single_lines(each)
    finally:
        hub.stop()


@long_only
def test_eight_real_daemons_beside_a_thousand_stand_ins(tmp_path: Path, make_lan: MakeLan, make_run: MakeRun) -> None:
    """One `rollout` over all of them, of every kind; and one `flash` over the real ones, by ssh and by MQTT."""
    lan, hub, extra = _eight(tmp_path, make_lan)
    try:
        within = ("ip", "netns", "exec", lan.hub)
        run = make_run(hub.host, hub.port, kinds_of(1000), extra=extra, within=within)
        real = [each.name for each in lan.devices]
        first = run("flash", run.bundle("1.0.5"), *real, "--soak", "0")
        assert set(first["results"].values()) == {"done"}, first["devices"]
        found = roll_out_to_a_mixed_fleet(run)
        assert {found["results"][name] for name in real} == {"done"}
        assert {_version(each) for each in lan.devices} == {"1.1.0"}
        _tell({each: found[each] for each in ("seconds", "cpu", "peak_mb")})
    finally:
        hub.stop()


def _eight(folder: Path, make_lan: MakeLan) -> tuple[Lan, Hub, str]:
    """Eight devices with the real daemon, the broker, and their part of the inventory: the last four over MQTT."""
    lan = make_lan(0)
    for number in range(8):
        lan.add(number)
    hub = Hub(folder, f"10.77.{lan.subnet}.1", 1883, ("ip", "netns", "exec", lan.hub))
    (folder / "systemctl").write_text(SYSTEMCTL.replace("runuser -u edge-runtime -- env", "env"))
    extra = f'[defaults]\nssh_config = "{lan.write_ssh()}"\naccount = "root"\nconnect_timeout = 2\nstall_timeout = 3\n'
    for number, device in enumerate(lan.devices):
        file = folder / f"{device.name}.toml"
        store = 'desired = "follow"\nover_mqtt = "signed"\nover_mqtt_rate = 4_000_000\n'
        file.write_text(DEVICE_FILE.format(name=device.name, hub=hub.host) + store)
        device.run(f"install -m 755 {folder}/systemctl /usr/local/bin/systemctl")
        device.run(f"cp {file} /etc/edge-runtime/; touch /run/edge-runtime/enabled")
        _first_model(folder, device)
        way = 'transport = "mqtt"' if number >= 4 else f'address = "{device.address}"'
        extra += f'[[device]]\nname = "{device.name}"\n{way}\n'
    return lan, hub, extra


def _first_model(folder: Path, device: NetworkDevice) -> None:
    """Install 1.0.0 by hand, and start the service."""
    path = folder / "first.onnx"
    if not path.exists():
        classification(name="m", version="1.0.0").save(path)
        Signer(folder / "signing-key", folder / "allowed_signers").sign(path)
    store = "/opt/edge-runtime/bin/edge-runtime models --allowed-signers /etc/edge-runtime/allowed_signers"
    device.run(f"{store} install {path} && systemctl start edge-runtime@{device.name}")


def _version(device: NetworkDevice) -> str:
    listed = json.loads(device.run("/opt/edge-runtime/bin/edge-runtime models list --json"))
    return next((str(each["version"]) for each in listed if each["state"] in {"active", "probation"}), "none")


def _require_single_lines(device: NetworkDevice) -> None:
    """The daemon's log has no bundle that was installed twice over MQTT."""
    versions = re.findall(r"bundle installed.*?version\W+([0-9.]+)", device.run("cat /run/edge-runtime/log"))
    assert versions or device.name < "d4", "over ssh the bundle is installed by a command"
    assert len(versions) == len(set(versions)), versions


def test_a_mixed_fleet_gets_a_bundle_by_one_command(mosquitto: Mosquitto, make_run: MakeRun) -> None:
    """5 % fail, 5 % are away and come back, 5 % are slow, 5 % hang; then a bad bundle stops within one wave."""
    run = make_run("127.0.0.1", mosquitto.port, kinds_of(40))
    roll_out_to_a_mixed_fleet(run)
    stop_a_bad_bundle(run, wave=10)


def test_a_host_that_is_interrupted_at_any_moment_leaves_a_right_table(mosquitto: Mosquitto, make_run: MakeRun) -> None:
    """Ctrl-C, kill -9, a closed laptop; the next command goes on, and no device installs twice."""
    run = make_run("127.0.0.1", mosquitto.port, dict.fromkeys([f"s-{number:02}" for number in range(12)], "good"))
    assert sum(interrupt(run, 4, seed=7).values()) == 4
