"""Flashing real devices over real ssh: network namespaces with an ssh server and a file system of their own."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.builders import Signer, classification, signer
from tests.support.namespaces import Device, Lan, run
from tests.support.waiting import patient, wait_until

pytestmark = [pytest.mark.system, pytest.mark.slow]

MEGABYTE = 1024 * 1024

MakeLan = Callable[..., Lan]


def make_bundle(folder: Path, version: str = "1.0.0", *, padding: int = 0, target: str | None = None) -> Path:
    """A signed bundle of the model `m`; `padding` bytes of noise make it large."""
    draft = classification(name="m", version=version)
    if padding:
        draft.model.doc_string = os.urandom(padding // 2).hex()
    if target:
        draft.manifest["target_device"] = target
    path = draft.save(folder / f"m-{version}-{padding}.onnx")
    Signer(folder / "signing-key", folder / "allowed_signers").sign(path)
    return path


def outcomes(text: str) -> dict[str, str]:
    """Device and result, of what `--json` printed."""
    return {each["device"]: each["result"] for each in json.loads(text)["devices"]}


def why(text: str, device: str) -> str:
    """What `--json` says about one device."""
    return next(str(each["text"]) for each in json.loads(text)["devices"] if each["device"] == device)


def active(device: Device) -> str | None:
    """The version that a device runs now, asked past ssh."""
    listed = json.loads(device.run("/opt/edge-runtime/bin/edge-runtime models list --json"))
    return next((each["version"] for each in listed if each["state"] in {"active", "probation"}), None)


def test_a_model_is_flashed_and_taken_back(make_lan: MakeLan, tmp_path: Path) -> None:
    """Flash, flash again (nothing to do), flash the next, roll back: the table and the device agree each time."""
    lan = make_lan(2)
    first, second = make_bundle(tmp_path), make_bundle(tmp_path, "1.1.0")
    answer = lan.command("flash", first, "d0", "d1")
    assert answer.returncode == 0, answer.stderr
    assert "2 done" in answer.stdout
    again = lan.command("flash", first, "--all", "--json", "--quiet")
    assert outcomes(again.stdout) == {"d0": "unchanged", "d1": "unchanged"}
    assert again.stderr == ""
    assert lan.command("flash", second, "group:all").returncode == 0
    assert [active(device) for device in lan.devices] == ["1.1.0", "1.1.0"]
    back = lan.command("rollback", "d0")
    assert back.returncode == 0, back.stderr
    assert [active(device) for device in lan.devices] == ["1.0.0", "1.1.0"]
    table = lan.command("devices")
    assert table.returncode == 0
    rows = [line.split()[:5] for line in table.stdout.splitlines()[1:]]
    assert rows == [["d0", "yes", "m", "1.0.0", "probation"], ["d1", "yes", "m", "1.1.0", "probation"]]
    left = lan.devices[0].run("ls /var/lib/edge-runtime/incoming")
    assert left == ""


def test_every_refusal_is_one_line_and_the_device_keeps_serving(make_lan: MakeLan, tmp_path: Path) -> None:
    """Unsigned, tampered, a stranger's, older, of another class, too big: refused by name, and nothing changes."""
    lan = make_lan(1)
    (device,) = lan.devices
    assert lan.command("flash", make_bundle(tmp_path, "1.1.0"), "d0").returncode == 0

    def refused(bundle: Path, *words: str) -> str:
        answer = lan.command("flash", bundle, "d0", "--json", "--quiet", *words)
        assert answer.returncode == 1
        assert "Traceback" not in answer.stderr
        assert active(device) == "1.1.0"
        return why(answer.stdout, "d0") if answer.stdout else answer.stderr

    older = refused(make_bundle(tmp_path))
    assert "expected a version of m above 1.1.0, found 1.0.0" in older

    unsigned = make_bundle(tmp_path, "1.2.0")
    unsigned.with_name(unsigned.name + ".sig").unlink()
    assert "expected its signature beside it, found no" in refused(unsigned)

    tampered = make_bundle(tmp_path, "1.3.0")
    other = make_bundle(tmp_path, "1.4.0")
    tampered.with_name(tampered.name + ".sig").write_bytes(other.with_name(other.name + ".sig").read_bytes())
    assert "signature" in refused(tampered)

    changed = make_bundle(tmp_path, "1.4.1", padding=2000)
    content = changed.read_bytes()
    at = 100  # in the noise, so that it is a sound bundle still
    changed.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    assert "the file was changed after it was signed" in refused(changed)

    big = refused(make_bundle(tmp_path, "1.4.2"), "--max-memory", "1")
    assert "expected at most 1 MiB of memory, found" in big

    (tmp_path / "stranger").mkdir()
    strange = make_bundle(tmp_path, "1.5.0")
    signer(tmp_path / "stranger").sign(strange)
    assert "sign" in refused(strange)

    lan.write_inventory(more="")
    text = (tmp_path / "fleet.toml").read_text()
    (tmp_path / "fleet.toml").write_text(text.replace('name = "d0"', 'name = "d0"\nclass = "zero2w"'))
    assert "expected a bundle for zero2w, found one for pi4" in refused(make_bundle(tmp_path, "1.6.0", target="pi4"))

    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    assert "broken.onnx" in refused(broken, "--unsigned")

    assert lan.command("flash", unsigned, "d0", "--unsigned").returncode == 0
    assert active(device) == "1.2.0", "whoever says that no signature is meant gets what was asked for"


def test_a_changed_host_key_is_named_and_the_others_go_on(make_lan: MakeLan, tmp_path: Path) -> None:
    """Whoever stands in between gets no bundle; the device beside it is flashed, and the exit code is 1."""
    lan = make_lan(3)
    known = (tmp_path / "known").read_text()
    (tmp_path / "known").write_text(
        known.replace(lan.devices[1].host_key.split()[2], lan.devices[2].host_key.split()[2])
    )
    answer = lan.command("flash", make_bundle(tmp_path), "d0", "d1", "--json", "--quiet", "--canaries", "1")
    assert answer.returncode == 1
    assert outcomes(answer.stdout) == {"d0": "done", "d1": "refused"}
    assert json.loads(answer.stdout)["refused"] == ["d1"]
    assert why(answer.stdout, "d1").startswith("its host key has changed: ")
    assert [active(device) for device in lan.devices] == ["1.0.0", None, None]


def test_a_transfer_that_is_cut_goes_on_where_it_stopped(make_lan: MakeLan, tmp_path: Path) -> None:
    """The link is cut in the middle: the flash ends in one line, and the same command sends only the rest."""
    lan = make_lan(1)
    (device,) = lan.devices
    device.slow_down("16mbit")
    bundle = make_bundle(tmp_path, padding=4 * MEGABYTE)
    first = lan.begin("flash", bundle, "d0")

    def arrived() -> int:
        found = device.run("cat /var/lib/edge-runtime/incoming/*/*.part* 2>/dev/null | wc -c", check=False)
        return int(found or 0)

    wait_until(lambda: arrived() > MEGABYTE, "a megabyte on the device", 60)
    device.link("down")
    wait_until(lambda: first.poll() is not None, "the flash that cannot go on", 200)
    out, _ = first.communicate(timeout=patient(10))
    assert first.returncode == 3
    assert "1 away (d0)" in out
    assert active(device) is None
    before = arrived()
    assert before > MEGABYTE
    device.link("up")
    wait_until(lambda: "yes" in lan.command("devices").stdout, "the device that is back", 60)
    answer = lan.command("flash", bundle, "d0")
    assert answer.returncode == 0, answer.stderr
    found = re.search(rf"d0: going on after (\d+) of {bundle.stat().st_size} bytes", answer.stderr)
    assert found, answer.stderr
    assert int(found[1]) >= before
    assert active(device) == "1.0.0"


def test_two_flashes_at_once_do_no_harm(make_lan: MakeLan, tmp_path: Path) -> None:
    """Of two flashes of one device each succeeds or says in one line that another is under way."""
    lan = make_lan(1)
    (device,) = lan.devices
    device.slow_down("16mbit")
    bundle = make_bundle(tmp_path, padding=2 * MEGABYTE)
    flashes = [lan.begin("flash", bundle, "d0", "--json", "--quiet") for _ in range(2)]
    answers = [each.communicate(timeout=patient(120))[0] for each in flashes]
    results = sorted(outcomes(answer)["d0"] for answer in answers)
    assert results in (["busy", "done"], ["done", "done"], ["done", "unchanged"])
    for answer in answers:
        if outcomes(answer)["d0"] == "busy":
            assert "under way" in why(answer, "d0")
    assert active(device) == "1.0.0"


def test_an_unknown_host_is_refused_whatever_the_users_configuration_says(make_lan: MakeLan, tmp_path: Path) -> None:
    """A key that is not known is never accepted by itself, even where ssh_config asks for that."""
    lan = make_lan(1)
    (tmp_path / "known").write_text("")
    with (tmp_path / "ssh_config").open("a") as config:
        config.write("StrictHostKeyChecking no\n")
    answer = lan.command("devices")
    assert answer.returncode == 1
    assert "its host key is unknown: connect once by hand with `ssh 10." in answer.stdout


def test_what_runs_as_the_daemons_user_is_run_as_it(make_lan: MakeLan, tmp_path: Path) -> None:
    """A login as root becomes the owner of the store; without that user, the message asks for provisioning."""
    lan = make_lan(1)
    (device,) = lan.devices
    device.run("printf '#!/bin/sh\\nid -un >&2\\nexit 1\\n' > /opt/edge-runtime/bin/edge-runtime")
    lan.write_inventory(account="edge-runtime")
    assert "edge-runtime" in lan.command("rollback", "d0", "--model", "m").stdout
    lan.write_inventory(account="missing-user")
    answer = lan.command("rollback", "d0", "--model", "m")
    assert "there is no user missing-user: provision the device first" in answer.stdout


def test_logs_of_several_devices_say_where_they_come_from(make_lan: MakeLan) -> None:
    """Each line begins with its device; for a program it is JSON; one that cannot be asked is named and counted."""
    lan = make_lan(3)
    for device in lan.devices:
        device.run(
            'printf \'#!/bin/sh\\ncase "$*" in *json*) echo {\\"MESSAGE\\":\\"hello\\"} ;; '
            '*) echo "hello $*" ;; esac\\n\' > /usr/local/bin/journalctl; chmod 755 /usr/local/bin/journalctl'
        )
    lan.devices[2].stop()
    lan.devices[2].link("down")
    answer = lan.command("logs", "--all", "-n", "5", "--since", "today")
    lines = sorted(answer.stdout.splitlines())
    assert [line.split(": ")[0] for line in lines] == ["d0", "d1"]
    assert lines[0].endswith("--lines 5 --since today --unit edge-runtime@d0")
    assert answer.returncode == 3
    assert answer.stderr.startswith("d2: ")
    assert json.loads(lan.command("logs", "d0", "--json").stdout) == {"device": "d0", "entry": {"MESSAGE": "hello"}}


def test_the_hub_can_do_without_an_inventory_file_only_by_saying_so(make_lan: MakeLan) -> None:
    """A missing inventory is a mistake of the configuration, in one line."""
    lan = make_lan(0)
    (lan.folder / "fleet.toml").unlink()
    answer = lan.command("devices")
    assert answer.returncode == 78
    assert answer.stderr.count("\n") == 1


def test_namespaces_leave_nothing_behind(make_lan: MakeLan) -> None:
    """The test rig cleans up after itself."""
    lan = make_lan(1)
    lan.remove()
    assert lan.prefix not in run("ip", "netns", "list").stdout
