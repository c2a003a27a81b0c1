"""Devices that are not there: each a network namespace with ssh server, /etc, /opt, /var/lib and /var/cache of its own.

They share the machine's programs, so the runtime that answers is the one of this repository. Links can be slowed,
cut and repaired; disks are as small as a test wants. Needs root, sshd, iproute2 and overlayfs.
"""

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.support.waiting import patient, wait_until

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("ip", "unshare", "mount", "runuser", "ssh", "ssh-keygen")
SSHD = "/usr/sbin/sshd"
# How long these devices run a new model before they are looked at again, and the pauses before one that is away is
# tried again: the ones of a fleet (30 s, 5 and 20 s; unit/fleet and unit/docs hold the product to them) are only waited
# for here.
SOAK_S, RETRY_PAUSES_S = 1.0, (1.0, 3.0)
IMPATIENT = f"""
import sys
from edge_runtime.fleet import rollout
rollout.RETRY_PAUSES_S = {RETRY_PAUSES_S}
from edge_runtime.cli import main
sys.exit(main())
"""


def require_namespaces() -> None:
    """Skips the test where this machine cannot make such devices."""
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    if missing or not Path(SSHD).exists():
        pytest.skip(f"not installed: {', '.join([*missing, *([] if Path(SSHD).exists() else ['sshd'])])}")
    overlay = "mount -t overlay o -o lowerdir=/etc,upperdir=/mnt/u,workdir=/mnt/w /etc"
    script = f"mount -t tmpfs t /mnt && mkdir /mnt/u /mnt/w && {overlay}"
    probe = subprocess.run(
        ["unshare", "-mn", "sh", "-c", script], capture_output=True, check=False, timeout=patient(30)
    )
    if probe.returncode != 0:
        pytest.skip(f"no namespaces or overlays here: {probe.stderr.decode().strip()}")


def run(*words: str | Path, check: bool = True, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """A command's answer, within a bounded time."""
    return subprocess.run(
        [str(word) for word in words],
        capture_output=True,
        text=True,
        check=check,
        timeout=patient(timeout),
        stdin=subprocess.DEVNULL,
    )


class Device:
    """One device: a network namespace, and a file system that is its own where it matters."""

    def __init__(self, lan: "Lan", number: int, disk_bytes: int, *, fresh: bool) -> None:
        self.name = f"d{number}"
        self.address = f"10.77.{lan.subnet}.{10 + number}"
        self.folder = lan.folder / self.name
        self._lan = lan
        self._namespace = f"{lan.prefix}{number}"
        self._disk_bytes = disk_bytes
        self._fresh = fresh
        self._sshd: subprocess.Popen[bytes] | None = None
        self.folder.mkdir()
        self._make_network(number)
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / "host")

    def _make_network(self, number: int) -> None:
        lan, inner = self._lan, f"{self._lan.prefix}v{number}"
        run("ip", "netns", "add", self._namespace)
        run("ip", "link", "add", inner, "type", "veth", "peer", "name", "eth0", "netns", self._namespace)
        run("ip", "link", "set", inner, "netns", lan.hub)
        run("ip", "-n", lan.hub, "link", "set", inner, "master", "br0", "up")
        run("ip", "-n", self._namespace, "addr", "add", f"{self.address}/24", "dev", "eth0")
        self.link("up")
        run("ip", "-n", self._namespace, "link", "set", "lo", "up")

    @property
    def host_key(self) -> str:
        """The line of known_hosts."""
        kind, key, *_ = (self.folder / "host.pub").read_text().split()
        return f"{self.address} {kind} {key}"

    def start(self) -> "Device":
        """Its ssh server, in namespaces of its own."""
        (self.folder / "sshd_config").write_text(
            textwrap.dedent(f"""\
                Port 22
                ListenAddress {self.address}
                HostKey {self.folder}/host
                PidFile {self.folder}/pid
                AuthorizedKeysFile {self._lan.folder}/id.pub
                StrictModes no
                PasswordAuthentication no
                UsePAM no
                PermitRootLogin prohibit-password
                """)
        )
        (self.folder / "provisioned.sh").write_text(
            textwrap.dedent(f"""\
                mkdir -p /var/lib/edge-runtime /etc/edge-runtime /opt/edge-runtime/bin
                id edge-runtime >/dev/null 2>&1 || useradd --system --home-dir /var/lib/edge-runtime edge-runtime
                chown edge-runtime: /var/lib/edge-runtime
                cp {self._lan.folder}/allowed_signers /etc/edge-runtime/
                printf '#!/bin/sh\\nexec env PYTHONPATH={ROOT} {sys.executable} -m edge_runtime "$@"\\n' \\
                    > /opt/edge-runtime/bin/edge-runtime
                chmod 755 /opt/edge-runtime/bin/edge-runtime
                """)
        )
        (self.folder / "begin.sh").write_text(
            textwrap.dedent(f"""\
                set -e
                mount -t tmpfs -o size={self._disk_bytes} disk /mnt
                for each in etc opt var/lib var/cache usr/local; do
                    mkdir -p /mnt/$each.upper /mnt/$each.work
                    mount -t overlay o -o lowerdir=/$each,upperdir=/mnt/$each.upper,workdir=/mnt/$each.work /$each
                done
                mount -t tmpfs run /run/lock
                mkdir -p /run/sshd {self.folder}/run /run/edge-runtime
                mount --bind {self.folder}/run /run/edge-runtime
                {"" if self._fresh else f". {self.folder}/provisioned.sh"}
                exec {SSHD} -D -f {self.folder}/sshd_config -E {self.folder}/sshd.log
                """)
        )
        with (self.folder / "out").open("wb") as out:
            self._sshd = subprocess.Popen(
                ["ip", "netns", "exec", self._namespace, "unshare", "--mount", "--pid", "--fork", "--kill-child",
                 "--propagation", "private", "sh", str(self.folder / "begin.sh")],
                stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
            )  # fmt: skip
        log = self.folder / "sshd.log"
        wait_until(lambda: log.exists() and "Server listening" in log.read_text(), self._complaint, 30)
        return self

    def _complaint(self) -> str:
        return f"the ssh server of {self.name}: {(self.folder / 'out').read_text()}"

    def run(self, text: str, check: bool = True) -> str:
        """What a shell script on the device prints, past ssh."""
        assert self._sshd is not None, f"{self.name} is switched off"
        inside = run("pgrep", "-P", str(self._sshd.pid), check=False).stdout.split()
        assert inside, f"{self.name} has ended: never run on this machine what is meant for a device"
        return run("nsenter", "-t", inside[0], "-m", "-n", "-p", "sh", "-c", text, check=check).stdout

    def link(self, state: str) -> None:
        """Pulls the network plug (`down`) or puts it in (`up`)."""
        run("ip", "-n", self._namespace, "link", "set", "eth0", state)

    def slow_down(self, rate: str) -> None:
        """What the hub sends to it goes at `rate`, such as `8mbit`."""
        inner = f"{self._lan.prefix}v{self.name.removeprefix('d')}"
        run("ip", "netns", "exec", self._lan.hub, "tc", "qdisc", "replace", "dev", inner, "root", "tbf",
            "rate", rate, "burst", "32k", "latency", "400ms")  # fmt: skip

    def lose(self, percent: int) -> None:
        """Of the packets that come in, so many are lost (where nftables is installed)."""
        if shutil.which("nft") is None:
            return
        rules = "add table inet f; add chain inet f in { type filter hook input priority 0; }; "
        rules += f"add rule inet f in numgen random mod 100 < {percent} drop"
        run("ip", "netns", "exec", self._namespace, "nft", rules)

    def stop(self) -> None:
        """Switches it off; its disk is gone."""
        if self._sshd is not None:
            self._sshd.kill()
            self._sshd.wait(patient(10))
            self._sshd = None

    def remove(self) -> None:
        """Takes it apart."""
        self.stop()
        run("ip", "netns", "del", self._namespace, check=False)


class Lan:
    """A network with a hub, from which the commands of the fleet are run."""

    def __init__(self, folder: Path, number: int) -> None:
        self.folder = folder
        self.subnet = number % 250
        self.prefix = f"ed{number % 1000}x"
        self.hub = f"{self.prefix}hub"
        self.devices: list[Device] = []
        try:
            run("ip", "netns", "add", self.hub)
            run("ip", "-n", self.hub, "link", "add", "br0", "type", "bridge")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no bridged network namespaces here: {error.stderr.strip()}")
        run("ip", "-n", self.hub, "addr", "add", f"10.77.{self.subnet}.1/24", "dev", "br0")
        for name in ("br0", "lo"):
            run("ip", "-n", self.hub, "link", "set", name, "up")
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "id")

    def add(self, number: int, disk_bytes: int = 64 * 1024 * 1024, *, fresh: bool = False) -> Device:
        """A device that is switched on; a `fresh` one has neither user nor runtime."""
        device = Device(self, number, disk_bytes, fresh=fresh)
        self.devices.append(device)
        return device.start()

    def write_ssh(self) -> Path:
        """The ssh configuration of the hub's user, who knows every device's key."""
        (self.folder / "known").write_text("".join(f"{device.host_key}\n" for device in self.devices))
        config = self.folder / "ssh_config"
        config.write_text(f"IdentityFile {self.folder}/id\nUserKnownHostsFile {self.folder}/known\nUser root\n")
        return config

    def write_inventory(self, extra: str = "", more: str = "", account: str = "root") -> Path:
        """An inventory of all devices. As root, since this repository's Python may be readable for no other account."""
        defaults = f'ssh_config = "{self.write_ssh()}"\naccount = "{account}"\nconnect_timeout = 2\nstall_timeout = 3\n'
        lines = [f"[defaults]\n{defaults}\n[rollout]\nsoak = {SOAK_S}\n", extra]
        lines += [
            f'[[device]]\nname = "{each.name}"\naddress = "{each.address}"\ngroup = "all"\n' for each in self.devices
        ]
        path = self.folder / "fleet.toml"
        path.write_text("\n".join([*lines, more]))
        return path

    def command(self, *words: str | Path, timeout: float = 180) -> subprocess.CompletedProcess[str]:
        """`edge-runtime ...`, run at the hub."""
        return run("ip", "netns", "exec", self.hub, *self._words(*words), check=False, timeout=timeout)

    def begin(self, *words: str | Path) -> subprocess.Popen[str]:
        """`edge-runtime ...` at the hub, in the background."""
        return subprocess.Popen(
            ["ip", "netns", "exec", self.hub, *self._words(*words)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def _words(self, *words: str | Path) -> list[str]:
        inventory = f"EDGE_FLEET={self.folder / 'fleet.toml'}"
        return ["env", f"PYTHONPATH={ROOT}", inventory, sys.executable, "-c", IMPATIENT, *map(str, words)]

    def remove(self) -> None:
        """Takes everything apart."""
        for device in self.devices:
            device.remove()
        run("ip", "netns", "del", self.hub, check=False)
