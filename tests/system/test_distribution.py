"""What is handed out: wheel and source distribution, judged by the tools of others and installed as people install.

The judges are in an environment of their own (`make clients`). By default one installation by pipx and one resolution
are made; `EDGE_TORTURE=long` asks for every extra by itself, and installs the small ones: two minutes.
"""

import email
import json
import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.support.installed import ROOT, clean_environment
from tests.support.waiting import patient

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(900)]

PYTHON = os.environ.get("EDGE_WHEEL_PYTHON", "")
LONG = os.environ.get("EDGE_TORTURE") == "long"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
SMALL = ("http", "fleet", "modbus", "batch")


def judge(*words: str | Path, **environment: str) -> str:
    """What a tool of that environment says; it has to be content."""
    if not PYTHON:
        pytest.skip("needs twine, check-wheel-contents and pipx: make clients")
    done = subprocess.run(
        [PYTHON, *map(str, words)], capture_output=True, text=True, check=False, timeout=300, cwd=ROOT,
        env=clean_environment() | {"NO_COLOR": "1"} | environment, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution of the tree."""
    folder = tmp_path_factory.mktemp("source")
    words = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(words, check=True, capture_output=True, timeout=300)
    return next(folder.glob("*.tar.gz"))


def test_the_judges_of_a_package_index_accept_both(wheel: Path, source: Path) -> None:
    """`twine check --strict`: the page that an index shows can be drawn. check-wheel-contents: nothing is astray."""
    answered = judge("-m", "twine", "check", "--strict", wheel, source)
    assert answered.count("PASSED") == 2
    assert "OK" in judge("-m", "check_wheel_contents", wheel)


def test_the_source_distribution_makes_the_same_wheel(wheel: Path, source: Path, tmp_path: Path) -> None:
    """Whoever packages the project begins with it: it has all files, and gives the same ones."""
    with tarfile.open(source) as archive:
        archive.extractall(tmp_path, filter="data")
    (folder,) = tmp_path.iterdir()
    words = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(tmp_path / "dist"),
        str(folder),
    ]
    subprocess.run(words, check=True, capture_output=True, timeout=300)
    with zipfile.ZipFile(next((tmp_path / "dist").glob("*.whl"))) as one, zipfile.ZipFile(wheel) as other:
        assert {each.filename: each.CRC for each in one.infolist()} == {
            each.filename: each.CRC for each in other.infolist()
        }


def test_the_wheel_declares_every_extra_and_nothing_of_the_machine(wheel: Path) -> None:
    """Its metadata names the extras of pyproject.toml; no file of it holds the folder that it was built in."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(each for each in archive.namelist() if each.endswith(".dist-info/METADATA"))
        found = email.message_from_bytes(archive.read(name))
        assert set(found.get_all("Provides-Extra") or ()) == set(EXTRAS)
        assert not [each for each in archive.namelist() if str(ROOT).encode() in archive.read(each)]


def test_pipx_installs_the_commands(wheel: Path, tmp_path: Path) -> None:
    """Both commands are on the path, and the runtime works with what pipx brought: it judges a device file."""
    home, commands = tmp_path / "home", tmp_path / "bin"
    own = {"PIPX_HOME": str(home), "PIPX_BIN_DIR": str(commands), "PIPX_MAN_DIR": str(tmp_path / "man")}
    pip = f"--pip-args=--constraint={ROOT / 'tests' / 'constraints.txt'}"
    judge("-m", "pipx", "install", "--python", sys.executable, pip, wheel, **own)
    for command in ("edge-runtime", "edge-convert"):
        done = subprocess.run(
            [commands / command, "--version"], capture_output=True, text=True, check=True, timeout=patient(60),
            env=clean_environment(),
        )  # fmt: skip
        assert done.stdout == f"{command} {PROJECT['version']}\n"
    sample = ROOT / "device_configs" / "climate-mqtt.toml"
    done = subprocess.run(
        [commands / "edge-runtime", "check", sample, "--for-device"], capture_output=True, text=True, check=False,
        timeout=patient(60), env=clean_environment(), cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def resolved(wheel: Path, *extras: str) -> set[str]:
    """The packages that pip would install for the wheel with these extras."""
    constraint = str(ROOT / "tests" / "constraints.txt")
    answered = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-",
         "--constraint", constraint, f"{wheel}[{','.join(extras)}]"],
        capture_output=True, text=True, check=False, timeout=300, env=clean_environment(),
    )  # fmt: skip
    assert answered.returncode == 0, answered.stderr
    return {normal(each["metadata"]["name"]) for each in json.loads(answered.stdout)["install"]}


def normal(name: str) -> str:
    """A package's name as an index spells it."""
    return name.lower().replace("_", "-").replace(".", "-")


def wanted(extra: str) -> set[str]:
    """The packages that an extra names, those of extras in it too; without those of another processor."""
    found = set()
    for each in EXTRAS[extra]:
        if each.startswith(PROJECT["name"]):
            found |= wanted(each.partition("[")[2].rstrip("]"))
        elif "!=" not in each.partition(";")[2]:
            found.add(normal(each.replace(";", " ").split(">")[0].split("<")[0].split("=")[0].strip()))
    return found


def test_the_wheel_with_its_small_extras_can_be_resolved(wheel: Path) -> None:
    """In one go: they exclude each other nowhere."""
    found = resolved(wheel, *SMALL)
    assert {normal(PROJECT["name"]), *(name for extra in SMALL for name in wanted(extra))} <= found


@pytest.mark.skipif(not LONG, reason="every extra by itself takes two minutes: EDGE_TORTURE=long")
@pytest.mark.parametrize("extra", EXTRAS if LONG else ["all"])
def test_the_wheel_with_each_extra_can_be_had(wheel: Path, extra: str, tmp_path: Path) -> None:
    """The large ones are resolved; the small ones are installed, and the commands run with them."""
    assert wanted(extra) <= resolved(wheel, extra)
    if extra not in SMALL:
        return
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "v")], check=True, timeout=patient(120))
    words = [tmp_path / "v/bin/python", "-m", "pip", "install", "--quiet", "--constraint"]
    words += [ROOT / "tests" / "constraints.txt", f"{wheel}[{extra}]"]
    subprocess.run([*map(str, words)], check=True, capture_output=True, timeout=300, env=clean_environment())
    done = subprocess.run(
        [tmp_path / "v/bin/edge-runtime", "--help"], capture_output=True, text=True, check=True, timeout=patient(60)
    )
    assert "doctor" in done.stdout
