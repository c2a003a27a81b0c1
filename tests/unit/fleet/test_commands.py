"""The commands of the fleet as a person calls them, with devices that are a list in memory."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.bundle.open import open_bundle
from edge_runtime.cli import main
from edge_runtime.fleet import cli, over_mqtt, over_ssh
from edge_runtime.fleet.broker_view import Known
from edge_runtime.fleet.inventory import FleetDevice, RolloutTable
from edge_runtime.fleet.progress import Silent, Totals
from edge_runtime.fleet.rollout import Outcome, Watcher, roll_out
from edge_runtime.fleet.ssh import RemoteResult
from edge_runtime.store.ota_parts import _require_equal
from tests.support.builders import classification
from tests.unit.fleet.test_rollout import Terminal, targets, work

Listing = list[dict[str, Any]]


def running(name: str, version: str, digest: str = "", state: str = "active") -> dict[str, Any]:
    """A line of `models list --json`."""
    return {"name": name, "version": version, "digest": digest or f"{name}-{version}", "state": state}


class Devices:
    """Stands for the devices behind ssh: answers what the fleet's commands ask of `edge-runtime models`.

    Attributes:
        stores: what each device lists.
        rolled_back: device and model, in the order in which they were asked to go back.
        stopped_services: devices whose service does not start, with what systemctl says.
    """

    def __init__(self, stores: dict[str, Listing]) -> None:
        self.stores = stores
        self.rolled_back: list[tuple[str, str]] = []
        self.stopped_services: dict[str, str] = {}
        self.next: dict[str, Any] = {}

    def run(self, target: FleetDevice, words: Sequence[str], *, timeout: float | None = None) -> RemoteResult:
        """As `ssh.run`."""
        del timeout
        store = self.stores[target.name]
        if "list" in words:
            return RemoteResult(0, json.dumps(store), "")
        if "rollback" in words:
            self.rolled_back.append((target.name, words[-1]))
            for each in store:
                if each["name"] == words[-1]:
                    each["state"] = "active" if each["state"] == "previous" else "previous"
            return RemoteResult(0, "it went back\n", "")
        if "install" in words:
            store.append(self.next)
            return RemoteResult(0, "it is active, on probation\n", "")
        if any("systemctl start" in word for word in words):
            why = self.stopped_services.get(target.name)
            return RemoteResult(0, "started\n", "") if why is None else RemoteResult(1, "", why)
        return RemoteResult(0, "", "")


@pytest.fixture
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an inventory of four devices: one never provisioned with a model, one with two models."""
    text = '[broker]\nurl = "mqtt://127.0.0.1:1"\n[rollout]\ncanaries = 0\nsoak = 0.0\n'
    text += "".join(f'[[device]]\nname = "{name}"\naddress = "{name}.local"\n' for name in ("a", "b", "c", "d"))
    (tmp_path / "fleet.toml").write_text(text)
    monkeypatch.setenv("EDGE_FLEET", str(tmp_path / "fleet.toml"))
    monkeypatch.setattr(cli, "RETRY_PAUSES_S", ())
    monkeypatch.setattr(cli, "require_ssh", lambda: None)
    return tmp_path


def use(monkeypatch: pytest.MonkeyPatch, devices: Devices) -> Devices:
    """These devices stand behind ssh from now on."""
    monkeypatch.setattr(over_ssh, "run", devices.run)
    monkeypatch.setattr(over_ssh, "send", lambda *_, **__: None)
    return devices


def results(text: str) -> dict[str, str]:
    """Device and result, of what `--json` printed."""
    return {each["device"]: each["result"] for each in json.loads(text)["devices"]}


def four(digest: str) -> dict[str, Listing]:
    """`a` runs what is not wanted any more, `b` another version, `c` nothing, `d` it beside another model."""
    before, after = running("m", "1.0.0", state="previous"), running("m", "1.1.0", digest)
    return {
        "a": [dict(before), dict(after)],
        "b": [running("m", "1.0.0")],
        "c": [],
        "d": [dict(before), dict(after), running("other", "7.0.0")],
    }


@pytest.mark.parametrize("by", ["version", "bundle"])
def test_a_rollback_from_a_bundle_leaves_alone_what_runs_something_else(
    at_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], by: str
) -> None:
    """`--from VERSION` and `--from BUNDLE` take back the devices that a rollout reached, and no other one."""
    bundle = classification(name="m", version="1.1.0").save(at_home / "m.onnx")
    digest = open_bundle(bundle).digest
    devices = use(monkeypatch, Devices(four(digest)))
    word = "1.1.0" if by == "version" else str(bundle)
    assert main(["rollback", "--all", "--from", word, "--json", "--quiet"]) == 0
    assert results(capsys.readouterr().out) == {"a": "done", "b": "unchanged", "c": "unchanged", "d": "done"}
    assert sorted(devices.rolled_back) == [("a", "m"), ("d", "m")]


def test_a_rollback_from_another_file_of_the_same_version_changes_nothing(
    at_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bundle is meant by its digest, not by the version in it; a device says what it runs instead."""
    bundle = classification(name="m", version="1.1.0").save(at_home / "m.onnx")
    devices = use(monkeypatch, Devices(four("another digest")))
    assert main(["rollback", "--all", "--from", str(bundle), "--json", "--quiet"]) == 0
    out = capsys.readouterr().out
    assert set(results(out).values()) == {"unchanged"}
    assert devices.rolled_back == []
    assert [each["text"] for each in json.loads(out)["devices"]][2:] == [
        "it runs nothing",
        "it runs m 1.1.0 (another dige), other 7.0.0 (other-7.0.0)",
    ]


def test_a_rollback_from_nothing_in_particular_needs_one_model(
    at_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without `--from`, a device without a model, or with two, is refused by name."""
    del at_home
    use(monkeypatch, Devices(four("d1")))
    assert main(["rollback", "c", "d", "--json", "--quiet"]) == 1
    assert results(capsys.readouterr().out) == {"c": "refused", "d": "refused"}


@pytest.mark.parametrize(("version", "result"), [("1.1.0", "done"), ("1.0.0", "unchanged"), ("9.9.9", "unchanged")])
def test_a_rollback_from_a_version_is_ordered_over_mqtt_only_where_it_runs(
    at_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], version: str, result: str
) -> None:
    """The broker's list decides; no order is published to a device that runs something else."""
    text = (at_home / "fleet.toml").read_text().partition("[[device]]")[0]
    (at_home / "fleet.toml").write_text(text + '[[device]]\nname = "roof"\ntransport = "mqtt"\n')
    ordered: list[str] = []

    class Sender:
        def __init__(self, *_: object) -> None:
            """No device is reached."""

        def roll_back(self, model: str, digest: str, _: object) -> dict[str, str]:
            ordered.append(f"{model} {digest}")
            return {"model": model, "version": "1.0.0", "digest": "d0", "why": "it is active"}

    monkeypatch.setattr(over_mqtt, "BundleSender", Sender)
    monkeypatch.setattr(
        over_mqtt, "look_at", lambda _: {"roof": Known(status="online", models=[running("m", "1.1.0", "d1")])}
    )
    assert main(["rollback", "roof", "--from", version, "--sign", "key", "--json", "--quiet"]) == 0
    assert results(capsys.readouterr().out) == {"roof": result}
    assert ordered == (["m d1"] if result == "done" else [])


def test_a_rollback_right_after_a_flash_over_mqtt_asks_again_what_runs(
    at_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The broker's list still names the bundle before: the device refuses to leave that, and the list follows."""
    text = (at_home / "fleet.toml").read_text().partition("[[device]]")[0]
    (at_home / "fleet.toml").write_text(text + '[[device]]\nname = "roof"\ntransport = "mqtt"\n')
    kept = [running("m", "1.0.0", "d0"), running("m", "1.0.0", "d0"), running("m", "1.1.0", "d1")]
    ordered: list[str] = []

    class Sender:
        def __init__(self, *_: object) -> None:
            """No device is reached."""

        def roll_back(self, model: str, digest: str, _: object) -> dict[str, str]:
            ordered.append(digest)
            _require_equal("digest", digest, "d1")  # as the device answers
            return {"model": model, "version": "1.0.0", "digest": "d0", "why": "it is active"}

    monkeypatch.setattr(over_mqtt, "BundleSender", Sender)
    monkeypatch.setattr(over_mqtt, "look_at", lambda _: {"roof": Known(status="online", models=[kept.pop(0)])})
    monkeypatch.setattr(over_mqtt, "AGAIN_S", 0.0)
    assert main(["rollback", "roof", "--sign", "key", "--json", "--quiet"]) == 0
    assert results(capsys.readouterr().out) == {"roof": "done"}
    assert ordered == ["d0", "d0", "d1"]


def test_a_device_whose_models_the_broker_does_not_keep_is_away(
    at_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is not `unchanged`: what it runs is not known."""
    text = (at_home / "fleet.toml").read_text().partition("[[device]]")[0]
    (at_home / "fleet.toml").write_text(text + '[[device]]\nname = "roof"\ntransport = "mqtt"\n')
    monkeypatch.setattr(over_mqtt, "look_at", lambda _: {"roof": Known()})
    assert main(["rollback", "roof", "--from", "1.1.0", "--sign", "key", "--json", "--quiet"]) == 3
    assert results(capsys.readouterr().out) == {"roof": "away"}


def test_a_service_that_does_not_start_is_a_failure_in_the_table_and_the_exit_code(
    at_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The bundle is there, but nothing serves: `failed`, with what systemd reported; the others are done."""
    bundle = classification(name="m", version="1.1.0").save(at_home / "m.onnx")
    devices = use(monkeypatch, Devices({"a": [], "b": []}))
    devices.next = running("m", "1.1.0", open_bundle(bundle).digest, "probation")
    devices.stopped_services["b"] = "Job for edge-runtime@b.service failed\n"
    assert main(["flash", str(bundle), "a", "b", "--unsigned", "--quiet", "--keep-going"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:3]] == [["a", "done"], ["b", "failed"]]
    assert lines[1].endswith("; the service is started")
    assert lines[2].endswith("but the service does not start: Job for edge-runtime@b.service failed")
    assert lines[3] == "1 done, 1 failed (b)"


def test_a_wave_is_watched_by_default_so_that_a_canary_proves_its_probation() -> None:
    """Nothing is reported of a soak: the canary runs the bundle for 30 s and is asked again, the last wave is not."""
    pauses: list[float] = []
    asked: list[str] = []

    def confirm(target: FleetDevice) -> str | None:
        asked.append(target.name)
        return "went back: it answers NaN" if target.name == "b" else None

    outcomes = roll_out(
        targets(*"abcde"), work(), RolloutTable(wave=2), Silent(), confirm=confirm, pause=pauses.append
    )  # fmt: skip
    assert pauses == [30.0, 30.0]
    assert (asked[0], sorted(asked[1:])) == ("a", ["b", "c"])
    assert [each.result for each in outcomes] == ["done", "failed", "done", "not tried", "not tried"]
    pauses.clear()
    roll_out(targets(*"ab"), work(), RolloutTable(soak=0.0), Silent(), confirm=confirm, pause=pauses.append)
    assert pauses == [], "whoever asks for no soak gets none"


def two_hundred() -> list[FleetDevice]:
    """Devices in three lines of a plant."""
    return targets(*[f"press-{number:03}" for number in range(1, 201)])


def mixed(target: FleetDevice, _: Watcher) -> Outcome:
    """Ten fail, ten are away, the rest are done."""
    number = int(target.name[-3:])
    if number % 20 == 7:
        return Outcome(target.name, "failed", "no space is left on the device")
    return Outcome(target.name, "away", "it does not answer") if number in range(91, 101) else Outcome(
        target.name, "done", "m 1.1.0 is active"
    )  # fmt: skip


def test_the_output_for_two_hundred_devices_is_totals_problems_and_a_table_by_result(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Steps of single devices are not shown; what failed is named as it comes; the table ends with a folded summary."""
    monkeypatch.setattr(cli, "RETRY_PAUSES_S", ())
    parsed = type("Args", (), {"quiet": False, "json": False, "keep_going": True})()
    table = RolloutTable(canaries=0, limit=8)
    code = cli.carry_out(parsed, two_hundred(), table, mixed, about={})
    out, err = capsys.readouterr()
    assert code == 1
    shown = err.splitlines()
    problems = [line for line in shown if ": failed: " in line or ": away: " in line]
    totals = [line for line in shown if " of 200: " in line]
    assert len(problems) == 20
    assert len(totals) == 10
    assert len(shown) == 30, "nothing else is shown"
    assert totals[-1].startswith("200 of 200: ")
    assert {*totals[-1].removeprefix("200 of 200: ").split(", ")} == {"180 done", "10 failed", "10 away"}
    lines = out.splitlines()
    assert [line.split()[1] for line in lines[1:-1]] == ["done"] * 180 + ["failed"] * 10 + ["away"] * 10
    failed = ", ".join(f"press-{number:03}" for number in range(7, 200, 20))
    assert lines[-1] == f"180 done, 10 failed ({failed}), 10 away (press-091..100)"


def test_on_a_terminal_the_totals_are_one_line_that_changes() -> None:
    """Only problems take lines of their own."""
    stream = Terminal()
    totals = Totals(stream, 200)
    for target in two_hundred():
        totals.end(mixed(target, Silent()))
    totals.close()
    text = stream.getvalue()
    assert text.count("\n") == 20 + 1
    assert text.count("\r") == 200 + 20
    assert text.rstrip("\n").rpartition("\r")[2] == "200 of 200: 180 done, 10 failed, 10 away\x1b[K"


def test_pinned_devices_stay_and_hung_ones_go_last(
    at_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`flash --all` leaves the pinned device at its version, and asks the one that hung last time at the end."""
    path = at_home / "fleet.toml"
    path.write_text(path.read_text().replace('name = "b"\n', 'name = "b"\npins = ["m 1.0.0"]\n'))
    (at_home / "hung-devices.json").write_text('["a"]')
    devices = use(monkeypatch, Devices({name: [running("m", "1.0.0")] for name in "abcd"}))
    bundle = classification(name="m", version="1.1.0").save(at_home / "m.onnx")
    bundle.with_name("m.onnx.sig").write_text("signed")
    devices.next = running("m", "1.1.0", open_bundle(bundle).digest)
    for store in devices.stores.values():
        store[0]["state"] = "previous"
    assert main(["flash", str(bundle), "--all", "--json", "--quiet"]) == 0
    found = json.loads(capsys.readouterr().out)["devices"]
    assert [(each["device"], each["result"]) for each in found] == [
        ("b", "unchanged"), ("c", "done"), ("d", "done"), ("a", "done")
    ]  # fmt: skip
    assert found[0]["text"] == "the inventory pins it to m 1.0.0"
    assert json.loads((at_home / "hung-devices.json").read_text()) == []


def test_a_pin_that_is_none_is_refused_by_name(at_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A version alone could be that of any model."""
    path = at_home / "fleet.toml"
    path.write_text(path.read_text().replace('name = "b"\n', 'name = "b"\npins = ["1.0.0"]\n'))
    assert main(["devices"]) == 78
    err = capsys.readouterr().err
    assert 'device[1] "b".pins[0]: expected a model and a version, such as "vibration 1.4.0", found "1.0.0"' in err
