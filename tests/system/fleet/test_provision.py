"""Provisioning a device that has nothing but Debian and an ssh server, without any network but the one to us."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.builders import Signer, classification
from tests.support.namespaces import Device, Lan
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.system, pytest.mark.slow]

MakeLan = Callable[..., Lan]
MEGABYTE = 1024 * 1024

DEVICE_FILE = """
[device]
id = "d0"
[[source]]
name = "imu"
type = "serial"
port = "/dev/serial/by-id/not-there"
fields = ["temperature", "humidity"]
[[model]]
name = "m"
bundle = "m"
source = "imu"
[upstream]
url = "mqtt://127.0.0.1:1"
username = "u"
password_file = "broker.password"
"""

# No systemd runs in a namespace: this stands in for the few words of systemctl that provisioning says.
SYSTEMCTL = """#!/bin/sh
echo "$*" >> /run/edge-runtime/systemctl.log
case "$1" in
  is-enabled) [ -e "/run/edge-runtime/enabled" ] ;;
  is-active) [ -e "/run/edge-runtime/pid" ] && kill -0 "$(cat /run/edge-runtime/pid)" ;;
  enable) : > /run/edge-runtime/enabled ;;
  start | restart)
    [ -e /run/edge-runtime/pid ] && kill "$(cat /run/edge-runtime/pid)"
    name=${2#edge-runtime@}
    mkdir -p "/run/edge-runtime/$name" "/var/lib/edge-runtime/$name"
    chown edge-runtime: "/run/edge-runtime/$name" "/var/lib/edge-runtime/$name"
    setsid runuser -u edge-runtime -- env RUNTIME_DIRECTORY="/run/edge-runtime/$name" \\
      STATE_DIRECTORY="/var/lib/edge-runtime/$name" \\
      /opt/edge-runtime/bin/edge-runtime run "/etc/edge-runtime/$name.toml" </dev/null >/run/edge-runtime/log 2>&1 &
    echo $! > /run/edge-runtime/pid ;;
esac
"""


def make_fresh_lan(make_lan: MakeLan, folder: Path) -> tuple[Lan, Device]:
    """A network with one fresh device, and what provisioning brings to it."""
    lan = make_lan(0)
    device = lan.add(0, disk_bytes=600 * MEGABYTE, fresh=True)
    (folder / "d0.toml").write_text(DEVICE_FILE)
    (folder / "broker.password").write_text("s3cret\n")
    (folder / "systemctl").write_text(SYSTEMCTL)
    device.run(f"install -m 755 {folder}/systemctl /usr/local/bin/systemctl")
    path = lan.write_inventory(account="edge-runtime")
    path.write_text(path.read_text() + f'config = "{folder}/d0.toml"\n')
    return lan, device


def outcome(text: str) -> tuple[str, str]:
    """Result and words of the only device."""
    (only,) = json.loads(text)["devices"]
    return only["result"], only["text"]


def test_a_fresh_device_is_provisioned_flashed_and_serves(make_lan: MakeLan, tmp_path: Path, wheelhouse: Path) -> None:
    """Dry run, provision offline, provision again (nothing to do), flash, and the real daemon answers."""
    lan, device = make_fresh_lan(make_lan, tmp_path)
    words: list[str | Path] = ["provision", "d0", "--json", "--quiet", "--wheelhouse", wheelhouse]
    words += ["--allowed-signers", tmp_path / "allowed_signers", "--with", tmp_path / "broker.password"]

    result, text = outcome(lan.command(*words, "--dry-run").stdout)
    assert result == "unchanged"
    assert text.startswith("would write /etc/sysusers.d/edge-runtime.conf; ")
    assert "make the user edge-runtime" in text
    assert "install the runtime 0.1.0 (offline)" in text
    assert device.run("ls -d /opt/edge*; id edge-runtime", check=False) == ""

    answer = lan.command(*words, timeout=600)
    result, text = outcome(answer.stdout)
    assert (answer.returncode, result) == (0, "done"), text
    assert "it is not started: /etc/edge-runtime/d0.toml: " in text, "there is no model yet"
    assert device.run("stat -c '%U %G %a' /etc/edge-runtime/broker.password").strip() == "root edge-runtime 640"
    assert device.run("stat -c '%U %a' /var/lib/edge-runtime").strip() == "edge-runtime 750"
    assert "dialout" in device.run("id -nG edge-runtime")
    assert device.run("readlink /opt/edge-runtime").startswith("edge-runtime-")

    result, text = outcome(lan.command(*words, "--dry-run").stdout)
    assert text == "would change nothing"
    assert outcome(lan.command(*words).stdout) == ("unchanged", "runtime 0.1.0 is all there")

    key = Signer(tmp_path / "signing-key", tmp_path / "allowed_signers")
    first = classification(name="m").save(tmp_path / "m.onnx")
    second = classification(name="m", version="1.1.0", seed=2).save(tmp_path / "m2.onnx")
    key.sign(first)
    key.sign(second)
    flashed = lan.command("flash", first, "d0")
    assert flashed.returncode == 0, flashed.stdout
    assert "the service is started" in flashed.stdout
    wait_until(lambda: serves(device, "1.0.0"), lambda: f"a daemon: {answer_of(device)}", 60)

    started = device.run("cat /run/edge-runtime/systemctl.log").count("start")
    assert lan.command("flash", second, "d0").returncode == 0
    wait_until(lambda: serves(device, "1.1.0"), lambda: f"the new model: {answer_of(device)}", 60)
    assert device.run("cat /run/edge-runtime/systemctl.log").count("start") == started, "no restart was needed"
    (row,) = json.loads(lan.command("devices", "--json").stdout)
    assert row["queued"] == 0
    assert [each["version"] for each in row["models"]] == ["1.1.0", "1.0.0"]


def answer_of(device: Device) -> str:
    """What the daemon has logged."""
    return device.run("cat /run/edge-runtime/log", check=False)


def serves(device: Device, version: str) -> bool:
    """Whether the daemon itself says that it runs this version."""
    status = device.run("/opt/edge-runtime/bin/edge-runtime status --json", check=False)
    return status != "" and f'"version": "{version}"' in status and json.loads(status)[0]["running"]


def test_a_full_disk_is_named_and_the_runtime_that_was_there_stays(
    make_lan: MakeLan, tmp_path: Path, wheelhouse: Path
) -> None:
    """An installation that does not fit fails in one line, and the link still shows the old runtime."""
    lan = make_lan(0)
    device = lan.add(0, disk_bytes=60 * MEGABYTE, fresh=True)
    device.run("mkdir -p /opt/edge-runtime-old/bin && ln -s edge-runtime-old /opt/edge-runtime")
    device.run(
        "printf '#!/bin/sh\\n' > /opt/edge-runtime/bin/edge-runtime; chmod 755 /opt/edge-runtime/bin/edge-runtime"
    )
    lan.write_inventory()
    answer = lan.command("provision", "d0", "--wheelhouse", wheelhouse, "--json", "--quiet", timeout=300)
    result, text = outcome(answer.stdout)
    assert (answer.returncode, result) == (1, "failed")
    assert "no space is left on the device" in text
    assert device.run("readlink /opt/edge-runtime").strip() == "edge-runtime-old"


def test_wheels_for_other_devices_stop_it_before_anything_is_sent(
    make_lan: MakeLan, tmp_path: Path, wheelhouse: Path
) -> None:
    """A wheelhouse without a package for this device is named as such; nothing on the device changes."""
    lan = make_lan(0)
    device = lan.add(0, fresh=True)
    lan.write_inventory()
    partly = tmp_path / "partly"
    shutil.copytree(wheelhouse, partly)
    for path in partly.glob("onnxruntime-*"):
        path.unlink()
    answer = lan.command("provision", "d0", "--wheelhouse", partly, "--json", "--quiet")
    assert "found none of onnxruntime: `make wheelhouse`" in outcome(answer.stdout)[1]
    assert device.run("ls /etc/sysusers.d/edge-runtime.conf", check=False) == ""
