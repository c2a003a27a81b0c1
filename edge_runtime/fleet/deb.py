"""A Debian package of the runtime: `python -m edge_runtime.fleet.deb wheelhouse --machine arm64 -o dist`.

Everything that a device needs is inside, below /opt/edge-runtime, as a virtual environment that needs no pip and no
network; only Debian's own Python is asked for. It is unpacked from wheels and never run here, so that a package for
another processor can be built on any machine that has `dpkg-deb`. Equal wheels give an equal package, byte for byte.
Man pages and completions are made of the commands of this release.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

from edge_runtime.command_pages.write import write
from edge_runtime.errors import CommandError, EdgeError
from edge_runtime.fleet.provision import shared_folder
from edge_runtime.fleet.sbom import of_wheels, text_of
from edge_runtime.fleet.wheelhouse import MACHINES
from edge_runtime.fleet.wheels import Machine, Wheels, choose
from edge_runtime.system.durable import replace_file

PACKAGE = "edge-runtime"
_DEBIAN = {"aarch64": "arm64", "x86_64": "amd64"}
# All times in the package, so that it does not depend on when it was built: 1 January 2020.
_EPOCH = 1_577_836_800

_CONTROL = """\
Package: {package}
Version: {version}
Architecture: {architecture}
Maintainer: {maintainer}
Installed-Size: {kilobytes}
Depends: python3 (>= {python}), python3 (<< {next_python}), systemd, openssh-client
Section: net
Priority: optional
Description: inference runtime for small devices
 Reads sensors over serial or MQTT, runs a trained model on the device and
 publishes predictions over MQTT. Loses none while the broker is away.
"""

_POSTINST = """\
#!/bin/sh
set -e
if [ "$1" = configure ]; then
    systemd-sysusers edge-runtime.conf || true
    id -u edge-runtime >/dev/null 2>&1 ||
        useradd --system --home-dir /var/lib/edge-runtime --shell /usr/sbin/nologin edge-runtime
    usermod -a -G dialout edge-runtime || true
    systemd-tmpfiles --create edge-runtime.conf || true
    install -d -m 0750 -o root -g edge-runtime /etc/edge-runtime
    install -d -m 0750 -o edge-runtime -g edge-runtime /var/lib/edge-runtime /var/lib/edge-runtime/models
    # Quicker starts; a package that lacks them works as well.
    /opt/edge-runtime/bin/python -m compileall -q -j 1 /opt/edge-runtime/lib >/dev/null 2>&1 || true
    if [ -d /run/systemd/system ]; then
        systemctl daemon-reload || true
        systemctl try-restart 'edge-runtime@*.service' 'edge-runtime-serve@*.service' || true
    fi
fi
"""

_PRERM = """\
#!/bin/sh
set -e
if [ "$1" = remove ] && [ -d /run/systemd/system ]; then
    systemctl stop 'edge-runtime@*.service' 'edge-runtime-serve@*.socket' 'edge-runtime-serve@*.service' || true
fi
find /opt/edge-runtime -depth -name __pycache__ -type d -exec rm -rf {} + 2>/dev/null || true
"""

# Outbox and models are the user's: `purge` leaves them too, as a removed package must not lose predictions.
_POSTRM = """\
#!/bin/sh
set -e
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || true
fi
"""

_COMMAND = """\
#!/opt/edge-runtime/bin/python
import sys

from edge_runtime.cli import main

sys.exit(main())
"""


def build(wheels: Wheels, machine: Machine, output: Path, maintainer: str) -> Path:
    """Builds the package for one kind of device, its bill of materials beside it, and returns its path.

    Raises:
        CommandError: `dpkg-deb` is missing or fails.
    """
    if shutil.which("dpkg-deb") is None:
        raise CommandError("dpkg-deb: expected it on this machine, found none: install dpkg")
    output.mkdir(parents=True, exist_ok=True)
    architecture = _DEBIAN[machine.processor]
    python = f"{machine.python[0]}.{machine.python[1]}"
    target = output / f"{PACKAGE}_{wheels.version}+py{python.replace('.', '')}_{architecture}.deb"
    with tempfile.TemporaryDirectory(prefix="edge-deb-") as folder:
        root = Path(folder) / "root"
        _fill(root, wheels, python)
        kilobytes = sum(path.stat().st_size for path in root.rglob("*") if path.is_file()) // 1024
        control = _CONTROL.format(
            package=PACKAGE,
            version=f"{wheels.version}+py{python.replace('.', '')}",
            architecture=architecture,
            maintainer=maintainer,
            kilobytes=kilobytes,
            python=python,
            next_python=f"3.{machine.python[1] + 1}",
        )
        _write(root / "DEBIAN/control", control)
        for name, text in (("postinst", _POSTINST), ("prerm", _PRERM), ("postrm", _POSTRM)):
            _write(root / "DEBIAN" / name, text, 0o755)
        _settle(root)
        # -z1: half a minute instead of three for a package that is a tenth smaller.
        done = subprocess.run(
            ["dpkg-deb", "--root-owner-group", "-Zxz", "-z1", "--build", str(root), str(target)],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "SOURCE_DATE_EPOCH": str(_EPOCH)},
        )
    if done.returncode != 0:
        raise CommandError(f"dpkg-deb: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else 'failed'}")
    replace_file(target.with_suffix(".cdx.json"), text_of(of_wheels(wheels.files)).encode())
    return target


def _fill(root: Path, wheels: Wheels, python: str) -> None:
    home = root / "opt/edge-runtime"
    packages = home / f"lib/python{python}/site-packages"
    for wheel in wheels.files:
        _unpack(wheel, packages)
    # The converter stays at home: a device that has it would only have more to break.
    shutil.rmtree(packages / "converter", ignore_errors=True)
    (home / "bin").mkdir(parents=True)
    (home / "bin/python").symlink_to(f"/usr/bin/python{python}")
    _write(home / "pyvenv.cfg", f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {python}\n")
    _write(home / "bin/edge-runtime", _COMMAND, 0o755)
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin/edge-runtime").symlink_to("/opt/edge-runtime/bin/edge-runtime")
    share = shared_folder()
    for unit in ("edge-runtime@.service", "edge-runtime-serve@.service", "edge-runtime-serve@.socket"):
        _copy(share / unit, root / "usr/lib/systemd/system" / unit)
    for folder in ("sysusers.d", "tmpfiles.d", "modules-load.d"):
        _copy(share / folder / "edge-runtime.conf", root / "usr/lib" / folder / "edge-runtime.conf")
    write(root / "usr/share", time.strftime("%Y-%m-%d", time.gmtime(_EPOCH)))
    documents = root / "usr/share/doc/edge-runtime"
    _copy(share / "udev/60-edge-runtime.rules", documents / "examples/60-edge-runtime.rules")
    _copy(share / "restart-steps.conf", documents / "examples/restart-steps.conf")
    source = share.parent
    for path in [*(source / "device_configs").glob("*.toml"), *(source / "docs").glob("configuration.md")]:
        _copy(path, documents / ("examples" if path.suffix == ".toml" else "") / path.name)


def _unpack(wheel: Path, folder: Path) -> None:
    """A wheel of ours or of pip's choice is unpacked as it is; scripts of third parties are left out."""
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            name = Path(entry.filename)
            if entry.is_dir() or name.is_absolute() or ".." in name.parts:
                continue
            parts = name.parts
            if parts[0].endswith(".data"):
                if len(parts) < 3 or parts[1] not in {"purelib", "platlib"}:
                    continue
                parts = parts[2:]
            target = folder.joinpath(*parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.read(entry))


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)


def _settle(root: Path) -> None:
    """One time and plain permissions for everything."""
    for path in [root, *sorted(root.rglob("*"))]:
        if not path.is_symlink():
            executable = path.is_dir() or (path.stat().st_mode & 0o100)
            path.chmod(0o755 if executable else 0o644)
        os.utime(path, (_EPOCH, _EPOCH), follow_symlinks=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Builds a package for each processor asked for."""
    parser = argparse.ArgumentParser(prog="deb", description="Build Debian packages of the runtime.")
    parser.add_argument("wheelhouse", type=Path, help="a folder made by edge_runtime.fleet.wheelhouse")
    parser.add_argument("-o", "--output", type=Path, default=Path("dist"), help="default: dist")
    parser.add_argument("--machine", action="append", choices=sorted(MACHINES), help="default: arm64 and amd64")
    parser.add_argument("--python", default="3.11", metavar="3.N", help="of the devices' Debian; default: 3.11")
    parser.add_argument("--maintainer", default="Edge runtime <root@localhost>", help="NAME <MAIL>")
    args = parser.parse_args(arguments)
    try:
        for name in args.machine or ["arm64", "amd64"]:
            machine = Machine(MACHINES[name], (3, int(args.python.removeprefix("3."))))
            path = build(choose(args.wheelhouse, machine), machine, args.output, args.maintainer)
            sys.stdout.write(f"{path}: {path.stat().st_size / 1e6:.1f} MB\n")
    except (EdgeError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
