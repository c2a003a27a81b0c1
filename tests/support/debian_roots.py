"""Clean Debian roots, made by debootstrap from the mirror of this machine's own apt."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

SUITE = "bookworm"
BINFMT = Path("/proc/sys/fs/binfmt_misc")


def own_architecture() -> str:
    """Debian's name for this machine's processor."""
    done = subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=False, timeout=30)
    if done.returncode != 0:
        pytest.skip("no dpkg here")
    return done.stdout.strip()


def require_emulation() -> None:
    """Programs of arm64 run here, or the test is skipped."""
    if not (BINFMT / "status").exists():
        subprocess.run(
            ["mount", "-t", "binfmt_misc", "binfmt_misc", BINFMT], capture_output=True, check=False, timeout=30
        )
    if not (BINFMT / "qemu-aarch64").exists() and shutil.which("update-binfmts") is not None:
        command = ["update-binfmts", "--enable", "qemu-aarch64"]
        subprocess.run(command, capture_output=True, check=False, timeout=30)
    if not (BINFMT / "qemu-aarch64").exists():
        pytest.skip("arm64 is not emulated here: install qemu-user-static and binfmt-support")


def debootstrap(architecture: str, folder: Path, packages: str) -> Path:
    """A clean root of that architecture with these packages, separated by commas; skips where it cannot be had."""
    if shutil.which("debootstrap") is None:
        pytest.skip("debootstrap is not installed")
    words = ["debootstrap", f"--arch={architecture}", "--variant=minbase", f"--include={packages}"]
    words += ["--foreign"] if architecture != own_architecture() else []
    done = _quietly([*words, SUITE, str(folder), _mirror()])
    if done.returncode != 0:
        pytest.skip(f"no Debian root of {architecture}: {done.stdout[-300:]}")
    if architecture != own_architecture():
        done = _quietly(["chroot", str(folder), "/debootstrap/debootstrap", "--second-stage"])
        assert done.returncode == 0, done.stdout[-2000:]
    return folder


def _mirror() -> str:
    """The mirror of the suite that this machine's own apt uses; its lists may name others' packages too."""
    for path in sorted(Path("/etc/apt").glob("sources.list*")) + sorted(Path("/etc/apt").glob("sources.list.d/*")):
        if path.is_file() and (found := mirror_in(path.read_text())) is not None:
            return found
    pytest.skip(f"this machine's apt names no mirror of {SUITE}")


def mirror_in(text: str, suite: str = SUITE) -> str | None:
    """The first mirror of a suite's main part in a list of apt, in either of its two forms."""
    for stanza in re.split(r"\n\s*\n", text):
        keys = {name.lower(): rest.split() for name, _, rest in (each.partition(":") for each in stanza.splitlines())}
        if suite in keys.get("suites", ()) and "main" in keys.get("components", ()) and keys.get("uris"):
            return keys["uris"][0]
        for each in re.finditer(r"^deb(?: +\[[^]]*\])? +(\S+) +(\S+) +(.*)$", stanza, re.MULTILINE):
            if each[2] == suite and "main" in each[3].split():
                return each[1]
    return None


def _quietly(words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=1200,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
