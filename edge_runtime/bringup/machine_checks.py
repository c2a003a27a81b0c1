"""The checks of `doctor` on every machine: processor, system, memory, disk, card, clock, onnxruntime.

Guarantee: nothing is changed. Weak points: only an eMMC reports its wear (`life_time`), and a disk is judged by its
free space, not by its health.
"""

import os
import platform
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import edge_runtime
from edge_runtime.bringup.finding import Finding
from edge_runtime.system.clock import Clock

_LEAST_MEMORY = 150 * 2**20  # a daemon with a small model is 70 MB; its self-test is a second process for a moment
_LOW_MEMORY = 300 * 2**20
_LEAST_DISK = 16 * 2**20  # a bundle, and the outbox's first pages
_LOW_DISK = 200 * 2**20  # the largest bundle twice, beside an outbox of 64 MiB
_LOW_INODES = 100
_SUPPORTED = {"x86_64", "aarch64"}
_WORN = 8  # of 10 tenths of its life, eMMC 5.1 (JEDEC JESD84-B51), EXT_CSD[268]
_BLOCK = Path("/sys/block")
_TRY_S = 60.0
# A process of its own: a processor without an instruction that a wheel needs ends it by a signal.
_PROBE = """
import numpy, onnxruntime
print(onnxruntime.__version__, ",".join(onnxruntime.get_available_providers()))
a = numpy.ones((64, 64), numpy.float32)
assert (a @ a)[0, 0] == 64
"""


def check_processor(machine: str = "", bits: int = 0) -> Iterator[Finding]:
    """64-bit Linux on x86-64 or ARM; a 32-bit system on a 64-bit board is a frequent mistake."""
    machine, bits = machine or platform.machine(), bits or 8 * struct.calcsize("P")
    version = ".".join(map(str, sys.version_info[:3]))
    found = f"{machine}, {bits} bit, Python {version}"
    if bits != 64 or machine not in _SUPPORTED:
        remedy = "install a 64-bit system: onnxruntime has no wheel for this one"
        yield Finding("system", "failure", found, remedy)
    elif sys.platform != "linux":
        yield Finding("system", "failure", f"{found}, {sys.platform}", "use Linux")
    else:
        yield Finding("system", "ok", found)


def check_memory(meminfo: Path = Path("/proc/meminfo")) -> Iterator[Finding]:
    """The free memory for a daemon and the self-test of a bundle."""
    amounts = {name: int(rest.split()[0]) * 1024 for name, _, rest in _lines(meminfo) if rest.split()}
    free, total = amounts.get("MemAvailable", 0), amounts.get("MemTotal", 0)
    found = f"{free >> 20} MiB free of {total >> 20} MiB"
    if free < _LEAST_MEMORY:
        yield Finding("memory", "failure", found, f"end other programs: a daemon needs {_LEAST_MEMORY >> 20} MiB")
    elif free < _LOW_MEMORY:
        yield Finding("memory", "warning", found, "enough for a small model only")
    else:
        yield Finding("memory", "ok", found)


def check_disk(folder: Path, name: str) -> Iterator[Finding]:
    """Free space and inodes of the file system that holds a folder, or will hold it."""
    present = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    check = f"disk of {name}"
    status = os.statvfs(present)
    free = shutil.disk_usage(present).free
    found = f"{folder}: {free >> 20} MiB free"
    if status.f_flag & os.ST_RDONLY:
        yield Finding(check, "failure", f"{folder}: mounted read-only", "mount it with rw, or choose another path")
    elif free < _LEAST_DISK:
        yield Finding(check, "failure", found, f"make room: expected at least {_LEAST_DISK >> 20} MiB")
    elif status.f_files and status.f_favail < _LOW_INODES:
        yield Finding(check, "failure", f"{folder}: {status.f_favail} inodes free", "remove files")
    elif free < _LOW_DISK:
        yield Finding(check, "warning", found, "make room: an outage and two bundles may fill it")
    else:
        yield Finding(check, "ok", found)


def check_card(block: Path = _BLOCK) -> Iterator[Finding]:
    """The wear of eMMC; SD cards do not report it."""
    for device in sorted(block.glob("mmcblk*")):
        try:
            worn = max(int(each, 16) for each in (device / "device" / "life_time").read_text().split())
        except (OSError, ValueError):
            continue  # an SD card
        found = f"about {10 * worn} % of its life used"
        if worn >= _WORN:
            yield Finding(f"card {device.name}", "warning", found, "replace it soon, and raise outbox.commit_interval")
        else:
            yield Finding(f"card {device.name}", "ok", found)


def check_clock(now: float | None = None, *, is_set: bool | None = None) -> Iterator[Finding]:
    """Whether a time service controls the clock, and whether the clock is earlier than this program's files."""
    now = time.time() if now is None else now
    installed = Path(edge_runtime.__file__).stat().st_mtime
    shown = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    if now < installed - 86_400:
        found = f"{shown}, before this program was installed"
        yield Finding("clock", "failure", found, "set it (timedatectl): TLS and signatures will be refused")
    elif not (Clock().is_synchronised if is_set is None else is_set):
        found = f"{shown}, not steered by a time service"
        yield Finding("clock", "warning", found, "enable systemd-timesyncd or chrony; predictions say so meanwhile")
    else:
        yield Finding("clock", "ok", f"{shown}, synchronised")


def check_onnxruntime(python: str = sys.executable) -> Iterator[Finding]:
    """Whether onnxruntime and numpy load and compute on this very processor."""
    name = "onnxruntime"
    try:
        done = subprocess.run([python, "-c", _PROBE], capture_output=True, text=True, timeout=_TRY_S, check=False)
    except subprocess.TimeoutExpired:
        yield Finding(name, "failure", f"did not load within {_TRY_S:g} s", "look at memory and disk")
        return
    if done.returncode < 0:
        remedy = "this processor lacks an instruction that the wheel needs: install an older release"
        yield Finding(name, "failure", f"ended by signal {-done.returncode} while it was loaded", remedy)
    elif done.returncode:
        why = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        yield Finding(name, "failure", f"cannot be loaded: {why}", "install it again: pip install --force-reinstall")
    else:
        version, _, providers = done.stdout.strip().partition(" ")
        yield Finding(name, "ok", f"{version} ({providers})")


def _lines(path: Path) -> Iterator[tuple[str, str, str]]:
    for line in path.read_text().splitlines():
        yield line.partition(":")
