"""The service unit and what goes with it, judged by systemd's own tools."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from edge_runtime.config.tables import DeviceTable
from edge_runtime.errors import EXIT_CONFIG
from tests.support.waiting import patient

FOLDER = Path(__file__).resolve().parents[3] / "systemd"
UNIT = FOLDER / "edge-runtime@.service"
SERVE, SOCKET = FOLDER / "edge-runtime-serve@.service", FOLDER / "edge-runtime-serve@.socket"

with_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """A command's answer, within a minute."""
    return subprocess.run(command, capture_output=True, text=True, timeout=patient(60), check=False)


def values(key: str, text: str = "") -> list[str]:
    """All values of a key of the unit."""
    return re.findall(rf"^{key}=(.*)$", text or UNIT.read_text(), re.MULTILINE)


@with_systemd
@pytest.mark.parametrize("unit", [UNIT, SERVE, SOCKET], ids=lambda unit: unit.name)
def test_systemd_has_nothing_to_say_about_the_unit(unit: Path) -> None:
    """Every key and value of the unit is known to systemd, 252 and newer."""
    answer = run("systemd-analyze", "verify", str(unit))
    assert (answer.returncode, answer.stderr) == (0, "")


@with_systemd
@pytest.mark.parametrize("unit", [UNIT, SERVE], ids=lambda unit: unit.name)
def test_the_unit_is_confined(unit: Path) -> None:
    """`systemd-analyze security` rates the unit at 2.0 or better."""
    answer = run("systemd-analyze", "security", "--no-pager", "--offline=true", "--threshold=20", str(unit))
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", answer.stdout)
    assert found, answer.stderr
    assert float(found[1]) <= 2.0
    assert answer.returncode == 0


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("ProtectSystem", "strict"),
        ("ProtectHome", "yes"),
        ("PrivateTmp", "yes"),
        ("PrivateUsers", "yes"),
        ("PrivateMounts", "yes"),
        ("NoNewPrivileges", "yes"),
        ("CapabilityBoundingSet", ""),
        ("MemoryDenyWriteExecute", "yes"),
        ("RestrictNamespaces", "yes"),
        ("RestrictSUIDSGID", "yes"),
        ("ProtectKernelModules", "yes"),
        ("ProtectKernelTunables", "yes"),
        ("ProtectControlGroups", "yes"),
        ("ProtectProc", "invisible"),
        ("DevicePolicy", "closed"),
    ],
)
def test_each_wall_of_the_unit_stands(setting: str, expected: str) -> None:
    """The rating leaves room for one of them to go unnoticed; an intruder needs no more than one."""
    assert values(setting) == [expected]


@with_systemd
def test_a_laxer_unit_would_be_noticed(tmp_path: Path) -> None:
    """The rating is a real check: without its confinement the unit fails it."""
    lax = tmp_path / UNIT.name
    lax.write_text(
        re.sub(
            r"^(Protect|Restrict|Private|SystemCall|Capability|DeviceP).*$", "", UNIT.read_text(), flags=re.MULTILINE
        )
    )
    assert run("systemd-analyze", "security", "--offline=true", "--threshold=20", str(lax)).returncode != 0


def test_the_unit_speaks_the_daemons_protocol() -> None:
    """Readiness and watchdog are notified, a wrong configuration ends the restarts, and SIGHUP reloads."""
    assert values("Type") == ["notify"]
    assert int(values("WatchdogSec")[0]) >= 10
    assert values("Restart") == ["always"]
    assert values("RestartPreventExitStatus") == [str(EXIT_CONFIG)]
    assert values("ExecReload") == ["/bin/kill -HUP $MAINPID"]
    assert values("ExecStart") == ["/usr/bin/env edge-runtime run /etc/edge-runtime/%i.toml"]


def test_a_stop_has_the_time_that_a_device_file_may_ask_for() -> None:
    """The service manager waits longer for a stop than `device.stop_timeout` can be."""
    longest = next(each for each in DeviceTable.__annotations__["stop_timeout"].__metadata__ if each.le is not None).le
    assert int(values("TimeoutStopSec")[0]) > longest


def test_the_daemon_can_reach_serial_ports_and_nothing_else() -> None:
    """The group and the device classes of serial ports are granted, all other devices are closed."""
    assert values("SupplementaryGroups") == ["dialout"]
    assert values("DevicePolicy") == ["closed"]
    classes = {value.split()[0] for value in values("DeviceAllow")}
    assert classes == {"char-ttyUSB", "char-ttyACM", "char-ttyAMA", "char-ttyS", "char-serial"}


@pytest.mark.skipif(shutil.which("systemd-sysusers") is None, reason="systemd-sysusers is not installed")
def test_the_user_is_made_with_its_group_and_without_a_shell(tmp_path: Path) -> None:
    """The sysusers file makes the unit's user, a member of dialout who cannot log in."""
    etc = tmp_path / "etc"
    etc.mkdir()
    (etc / "group").write_text("root:x:0:\ndialout:x:20:\n")
    (etc / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    answer = run("systemd-sysusers", f"--root={tmp_path}", str(FOLDER / "sysusers.d" / "edge-runtime.conf"))
    assert answer.returncode == 0, answer.stderr
    (user,) = re.findall(r"^edge-runtime:.*$", (etc / "passwd").read_text(), re.MULTILINE)
    assert user.endswith(":/var/lib/edge-runtime:/usr/sbin/nologin")
    assert "dialout:x:20:edge-runtime" in (etc / "group").read_text()
    assert values("User") == values("Group") == ["edge-runtime"]


@pytest.mark.skipif(shutil.which("systemd-tmpfiles") is None, reason="systemd-tmpfiles is not installed")
def test_secrets_are_closed_to_everybody_but_the_daemon(tmp_path: Path) -> None:
    """The tmpfiles file makes the folders of the unit, and takes a password away from other users."""
    etc = tmp_path / "etc"
    (etc / "edge-runtime").mkdir(parents=True)
    (etc / "passwd").write_text("root:x:0:0::/:/bin/sh\nedge-runtime:x:990:990::/:/bin/sh\n")
    (etc / "group").write_text("root:x:0:\nedge-runtime:x:990:\n")
    secret = etc / "edge-runtime" / "broker.password"
    secret.write_text("s3cret")
    secret.chmod(0o644)
    answer = run("systemd-tmpfiles", f"--root={tmp_path}", "--create", str(FOLDER / "tmpfiles.d" / "edge-runtime.conf"))
    if answer.returncode == 0:  # only root may give files away
        assert secret.stat().st_gid == 990
        assert secret.stat().st_mode & 0o777 == 0o640
        assert (tmp_path / "var/lib/edge-runtime/models").stat().st_uid == 990
    else:
        assert "Operation not permitted" in answer.stderr


def test_the_udev_examples_do_nothing_until_they_are_wanted() -> None:
    """Every rule is commented out, and each has a sentence above it."""
    lines = (FOLDER / "udev" / "60-edge-runtime.rules").read_text().splitlines()
    assert all(line.startswith("#") or not line for line in lines)
    assert sum(line.startswith(("#SUBSYSTEM", "#ACTION")) for line in lines) >= 4
