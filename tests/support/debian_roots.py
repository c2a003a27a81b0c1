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
    """The one that this machine's own apt uses."""
    texts = [path.read_text() for path in Path("/etc/apt").glob("sources.list*/**/*") if path.is_file()]
    texts += [path.read_text() for path in [Path("/etc/apt/sources.list")] if path.exists()]
    found = re.search(r"^(?:URIs:|deb(?: \[[^]]*\])?)\s+(\S+)", "\n".join(texts), re.MULTILINE)
    if found is None:
        pytest.skip("this machine's apt names no mirror")
    return found[1]


def _quietly(words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=1200,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
