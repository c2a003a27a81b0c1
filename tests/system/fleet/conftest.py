"""What the tests of the fleet share: networks of devices, and wheels for them."""

import itertools
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge_runtime.errors import CommandError
from edge_runtime.fleet.deb import build
from edge_runtime.fleet.wheelhouse import gather
from edge_runtime.fleet.wheels import Machine, choose
from tests.support.builders import signer
from tests.support.namespaces import Lan, require_namespaces
from tests.support.once import made_once
from tests.support.waiting import patient

ROOT = Path(__file__).resolve().parents[3]
_numbers = itertools.count(os.getpid())

MakeLan = Callable[..., Lan]


@pytest.fixture
def make_lan(tmp_path: Path) -> Iterator[MakeLan]:
    """`make_lan(2)`: a network with two devices, their inventory, and a key whose bundles they trust."""
    require_namespaces()
    made: list[Lan] = []

    def make(count: int) -> Lan:
        lan = Lan(tmp_path, next(_numbers))
        made.append(lan)
        signer(tmp_path)
        for number in range(count):
            lan.add(number)
        lan.write_inventory()
        return lan

    yield make
    for lan in made:
        lan.remove()


@pytest.fixture(scope="session")
def wheelhouse(shared_folder: Path, wheel: Path) -> Path:
    """Every wheel that a device of this machine's kind needs; the tests are skipped where they cannot be had."""
    require_namespaces()  # before anything is fetched that no test would use
    machine = Machine(os.uname().machine, system_python())
    lock = ROOT / "tests" / "locked" / "device.txt"
    try:
        return made_once(shared_folder / "wheelhouse", lambda folder: gather(wheel, folder, machine, lock))
    except CommandError as error:
        pytest.skip(f"no wheels here: {error}")


@pytest.fixture(scope="session")
def package(wheelhouse: Path, shared_folder: Path) -> Path:
    """A package for this machine's Debian."""
    if shutil.which("dpkg-deb") is None:
        pytest.skip("dpkg-deb is not installed")
    machine = Machine(os.uname().machine, system_python())
    folder = made_once(
        shared_folder / "deb",
        lambda folder: build(choose(wheelhouse, machine), machine, folder, "Tester <t@localhost>"),
    )
    (package,) = folder.glob("*.deb")
    return package


def system_python() -> tuple[int, int]:
    """The version of the Python that Debian ships here; the test is skipped where there is none with venv."""
    done = subprocess.run(
        ["/usr/bin/python3", "-c", "import sys, venv, ensurepip; print(*sys.version_info[:2])"],
        capture_output=True, text=True, check=False, timeout=patient(30),
    )  # fmt: skip
    if done.returncode != 0:
        pytest.skip("no Debian Python with venv here")
    major, minor = done.stdout.split()
    return int(major), int(minor)
