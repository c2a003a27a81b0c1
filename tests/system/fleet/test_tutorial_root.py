"""Both parts of the tutorial and docs/upkeep.md, command by command, in a clean Debian that boots with systemd.

The root has what the pages ask of a reader (make, python3-venv, ssh, a broker) and nothing of this repository. It is
workstation and device at once: `press-07.local` is its own loopback. What needs a network (`make demo`, `make
wheelhouse`) runs before it boots, with this machine's way to packages; all else runs without any. The sensor on USB is
a pseudo-terminal that plays recordings at their own rate.

Takes ten minutes with the making of the root: `EDGE_TORTURE=long`, or `EDGE_DEBIAN_ROOTS=FOLDER` with a `tutorial` in
it from an earlier run.
"""

import os
import re
import shutil
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.container import Container
from tests.support.debian_roots import debootstrap, own_architecture
from tests.support.namespaces import require_namespaces
from tests.support.waiting import patient, wait_until

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(3000)]

ROOT = Path(__file__).resolve().parents[3]
LONG = os.environ.get("EDGE_TORTURE") == "long"
PACKAGES = (
    "systemd,systemd-sysv,dbus,udev,ca-certificates,python3,python3-venv,make,openssh-server,openssh-client,sudo,"
    "mosquitto,mosquitto-clients,procps,iproute2"
)
BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
# What a reader of the second part has: a user who may sudo and reaches the device by ssh, a broker, a sensor.
READER = """
useradd --create-home --shell /bin/bash --groups dialout pi
echo 'pi ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/pi
echo "127.0.0.1 localhost press-07.local root $(hostname)" > /etc/hosts
ssh-keygen -A >/dev/null
install -d -o pi -g pi -m 700 /home/pi/.ssh
su pi -c "ssh-keygen -q -t ed25519 -N '' -f /home/pi/.ssh/id_ed25519"
cp /home/pi/.ssh/id_ed25519.pub /home/pi/.ssh/authorized_keys
sed 's/^/press-07.local /' /etc/ssh/ssh_host_*_key.pub > /home/pi/.ssh/known_hosts
chown pi: /home/pi/.ssh/*
"""
# The sensor: the recordings of the demonstration, over and over, ten lines a second.
SENSOR = """
import glob, os, pty, sys, time, tty
master, slave = pty.openpty()
tty.setraw(slave)
os.chmod(os.ttyname(slave), 0o660)
os.chown(os.ttyname(slave), 0, __import__("grp").getgrnam("dialout").gr_gid)
os.makedirs("/dev/serial/by-id", exist_ok=True)
os.symlink(os.ttyname(slave), "/dev/serial/by-id/usb-Example_IMU_0001-if00")
os.set_blocking(master, False)
while True:
    for path in sorted(glob.glob("/home/pi/clone/demo-output/recordings/*.csv")):
        for line in open(path).read().splitlines()[1:]:
            try:
                os.write(master, line.partition(",")[2].encode() + b"\\n")
            except BlockingIOError:
                pass
            time.sleep(0.1)
"""


def commands_of(page: str) -> list[str]:
    """The blocks of a page, each as it stands, but for `make wheelhouse`, which has run while there was a network."""
    blocks = BLOCK.findall((ROOT / "docs" / page).read_text())
    return [block.replace("make wheelhouse\n", "") for block in blocks]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    """The booted machine, with the first part of the tutorial done by its user `pi` in /home/pi/clone."""
    require_namespaces()
    if shutil.which("systemd-nspawn") is None:
        pytest.skip("systemd-nspawn is not installed")
    kept = os.environ.get("EDGE_DEBIAN_ROOTS")
    folder = tmp_path_factory.mktemp("tutorial")
    root = (Path(kept) if kept else folder) / "tutorial"
    if not (root / "usr/bin/dpkg").exists():
        if not LONG:
            pytest.skip("takes ten minutes: set EDGE_TORTURE=long, or EDGE_DEBIAN_ROOTS to a folder of roots")
        debootstrap(own_architecture(), root, PACKAGES)
    _clone(folder / "clone")
    first = "".join(block for block in commands_of("tutorial.md"))
    (folder / "reader.sh").write_text(READER)
    (folder / "sensor.py").write_text(SENSOR)
    (folder / "first.sh").write_text(f"cd /home/pi/clone\n{first}\nmake wheelhouse\n")
    made = Container(folder)
    try:
        made.boot(_prepare(), root, patience=1500)
        made.say(
            "mkdir -p /run/sshd; systemctl start ssh mosquitto; setsid python3 /root/sensor.py >/tmp/sensor 2>&1 &"
        )
        yield made
    finally:
        made.stop()


def _clone(folder: Path) -> None:
    """What a clone has: the files under version control, as they are now."""
    names = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, timeout=patient(60)
    ).stdout.decode().split("\0")  # fmt: skip
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)


def _prepare() -> str:
    """The first part, in the root before it boots: with network, certificates and pip's settings of this machine."""
    settings = ("/etc/pip.conf", "/etc/xdg/pip", "/etc/ssl/certs", "/usr/share/ca-certificates", "/etc/resolv.conf")
    lent = [path for path in settings if Path(path).exists()]
    pip = {name: value for name, value in os.environ.items() if name.startswith("PIP_") or name.endswith("_proxy")}
    given = " ".join(f"{name}='{value}'" for name, value in pip.items())
    copies = "\n".join(
        f"mkdir -p root{Path(each).parent}; rm -rf root{each}; cp -aL {each} root{each}" for each in lent
    )
    return f"""
        {textwrap.indent(copies, "        ").strip()}
        mkdir -p root/opt; mount --rbind -o ro /opt root/opt
        cp reader.sh first.sh root/tmp/; cp sensor.py root/root/
        chroot root bash -e /tmp/reader.sh
        cp -a clone root/home/pi/clone; chroot root chown -R pi: /home/pi/clone
        chroot root env -i HOME=/home/pi PATH=/usr/local/bin:/usr/bin:/bin TERM=dumb {given} \\
            su pi -p -c 'exec bash -e -o pipefail /tmp/first.sh' > first.log 2>&1 </dev/null
        umount -l root/opt
    """


def as_reader(machine: Container, script: str, timeout: float = 600) -> str:
    """What a person reads who types a script in the shell that the first part has left."""
    shell = f"cd /home/pi/clone; . .venv/bin/activate; set -exo pipefail\n{script}"
    (machine.folder / "upper" / "tmp").mkdir(exist_ok=True)
    machine.say(f"cat > /tmp/typed.sh <<'END-OF-TYPED'\n{shell}\nEND-OF-TYPED")
    code, text = machine.run(
        "runuser -u pi -- env HOME=/home/pi USER=pi TERM=dumb bash /tmp/typed.sh </dev/null", timeout
    )
    (machine.folder / "typed.log").write_text(text)
    assert code == 0, text[-4000:]
    return text


def test_the_first_part_was_done_as_it_stands(machine: Container) -> None:
    """From the clone to a signed bundle that is installed, on a system that had only what the page asks for."""
    answered = (machine.folder / "first.log").read_text()
    assert re.search(r"^accuracy 0\.9\d\d ", answered, re.MULTILINE), "of `make demo`"
    assert re.search(r"activity +1\.0\.0 .*probation", answered)


def test_the_second_part_runs_as_it_stands(machine: Container) -> None:
    """Provisioned, flashed, at work under systemd, replaced and taken back, over ssh and over MQTT."""
    blocks = commands_of("tutorial-device.md")
    answered = as_reader(machine, "".join(blocks))
    assert "enable edge-runtime@press-07" in answered
    assert '"model":"activity","version":"1.0.0","source":"imu"' in answered
    assert "Active: active (running)" in answered
    tables = [line.split() for line in answered.splitlines() if re.match(r"press-07 +yes", line)]
    assert [row[row.index("activity") + 1] for row in tables] == ["1.0.0", "1.0.0", "1.0.0"]
    assert answered.count("done") >= 5
    over_mqtt = set(re.findall(r"activity (\S+) \(\w+\): it is active, on probation", answered))
    assert len(over_mqtt) == 2, over_mqtt  # flashed, and taken back
    assert "1.0.0" in over_mqtt
    wait_until(lambda: machine.run("systemctl is-active --quiet edge-runtime@press-07")[0] == 0, "the service", 30)


def test_a_backup_restores_and_nothing_is_left_after_removal(machine: Container) -> None:
    """docs/upkeep.md, from the backup over the upgrade to the removal."""
    blocks = commands_of("upkeep.md")
    backup, restore, upgrade, remove = blocks
    as_reader(machine, backup)
    machine.say("rm -rf /var/lib/edge-runtime/models/* /etc/edge-runtime/*")
    answered = as_reader(
        machine, restore + "export EDGE_FLEET=demo-output/fleet.toml\nedge-runtime devices\n" + upgrade
    )
    assert re.search(r"press-07 +yes .*activity +1\.0\.0", answered)
    assert "is all there" in answered
    as_reader(machine, remove)
    left = machine.say(
        "find / -xdev -path /home -prune -o -path /proc -prune -o -name '*edge-runtime*' -print; getent passwd"
    )
    assert "edge-runtime" not in left
