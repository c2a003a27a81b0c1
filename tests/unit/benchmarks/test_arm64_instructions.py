"""The counting of instructions by an emulator: what it needs is named, and its plugin builds."""

import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks import arm64_instructions
from benchmarks.targets import PEERS
from tests.support.waiting import patient


def test_a_missing_emulator_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the package that has it; nothing is written before."""
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(SystemExit, match="expected qemu-aarch64, found none: apt-get install qemu-user"):
        arm64_instructions.install(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_the_plugin_builds_without_warnings_and_says_its_version(tmp_path: Path) -> None:
    """It declares what it uses of QEMU itself, so that no headers are needed."""
    library = tmp_path / "count.so"
    flags = ["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", str(library)]
    subprocess.run(["gcc", *flags, PEERS / "count_instructions.c"], check=True, timeout=patient(120))
    symbols = subprocess.run(["nm", "-D", library], check=True, capture_output=True, text=True).stdout
    assert " T qemu_plugin_install" in symbols
    assert " D qemu_plugin_version" in symbols
    assert " U qemu_plugin_register_vcpu_tb_exec_inline" in symbols
