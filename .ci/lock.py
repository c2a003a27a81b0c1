"""Writes `tests/locked/*.txt`: what is installed, as exact releases with the digests of their files (`make lock`).

`tests/constraints.txt` says which release of each package; pip says which packages a set of requirements needs, on
each Python and processor that the project runs on; the package index says the digests. Installed with
`pip install --require-hashes --no-deps`, nothing else than these files gets in, whoever answers for the index.
"""  # noqa: INP001

import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "tests" / "locked"
CONSTRAINTS = ROOT / "tests" / "constraints.txt"
PYTHONS = ("3.11", "3.13")
PROCESSORS = ("x86_64", "aarch64")
_LIBRARIES = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_24", "manylinux_2_17", "manylinux2014")
_TYPE = "application/vnd.pypi.simple.v1+json"
# What builds the wheel of the project itself.
_BUILD = ["hatchling", "editables"]


def pinned() -> dict[str, str]:
    """The releases of `constraints.txt`, by normalised name."""
    lines = (line.strip() for line in CONSTRAINTS.read_text().splitlines())
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {normal(name): version for name, version in pairs}


def normal(name: str) -> str:
    """A package's name as the index spells it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements_of(*extras: str) -> list[str]:
    """What pyproject.toml asks for, with these extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    own = f"{project['name']}["
    found = list(project["dependencies"])
    for extra in extras:
        for each in project["optional-dependencies"][extra]:
            found += requirements_of(each.removeprefix(own).rstrip("]")) if each.startswith(own) else [each]
    return list(dict.fromkeys(found))


def needed(requirements: list[str], python: str, processor: str) -> set[str]:
    """Names of all packages that pip would install."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        words = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        words += ["--report", str(report), "--target", folder, "--only-binary=:all:", "--implementation", "cp"]
        words += ["--python-version", python, "--constraint", str(CONSTRAINTS)]
        words += [word for each in _LIBRARIES for word in ("--platform", f"{each}_{processor}")]
        subprocess.run([*words, *requirements], check=True, stderr=subprocess.DEVNULL)
        return {normal(each["metadata"]["name"]) for each in json.loads(report.read_text())["install"]}


def index() -> str:
    """The package index that pip is set up with."""
    from pip._internal.models.index import PyPI  # noqa: PLC0415 - pip's own default, which is named nowhere else

    asked = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", "global.index-url"], capture_output=True, text=True, check=False
    )
    return os.environ.get("PIP_INDEX_URL") or asked.stdout.strip() or str(PyPI.simple_url)


def digests(name: str, version: str) -> list[str]:
    """SHA-256 of every file of a release."""
    request = urllib.request.Request(f"{index().rstrip('/')}/{name}/", headers={"Accept": _TYPE})  # noqa: S310 - the index
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
        files = json.load(answer)["files"]
    found = {each["hashes"]["sha256"] for each in files if _is_of(each["filename"], version)}
    if not found:
        raise SystemExit(f"{name}=={version}: the index has no file of this release")
    return sorted(found)


def _is_of(file: str, version: str) -> bool:
    if file.endswith(".whl"):
        return file.split("-")[1] == version
    return file.endswith((f"-{version}.tar.gz", f"-{version}.zip"))


def write(name: str, what: str, names: set[str]) -> None:
    """One file of locked requirements."""
    pins = pinned()
    unpinned = sorted(names - set(pins))
    if unpinned:
        raise SystemExit(f"{CONSTRAINTS}: expected a release of {', '.join(unpinned)}: add a line for each")
    lines = [f"# Made by `make lock`: {what}, with the digests of all files of each release."]
    for each in sorted(names):
        known = digests(each, pins[each])
        lines.append(" \\\n".join([f"{each}=={pins[each]}", *(f"    --hash=sha256:{digest}" for digest in known)]))
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{name}.txt").write_text("\n".join(lines) + "\n")
    sys.stdout.write(f"{FOLDER / name}.txt: {len(names)} packages\n")


def everywhere(requirements: list[str]) -> set[str]:
    """The packages that are needed, which have to be the same on every Python and processor."""
    found = {(python, cpu): needed(requirements, python, cpu) for python in PYTHONS for cpu in PROCESSORS}
    (first, *others) = found.values()
    for where, names in found.items():
        if names != first:
            raise SystemExit(
                f"{where}: expected the packages of the others, found {sorted(names ^ first)} more or less"
            )
    return first.union(*others)


def plain(file: str) -> list[str]:
    """The lines of a requirements file."""
    lines = (ROOT / "tests" / file).read_text().splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def main() -> int:
    """Write all of them."""
    device = everywhere(requirements_of("http", "modbus"))
    write("device", "the runtime with `[http]` and `[modbus]`, as a device installs them", device)
    demo = everywhere([*requirements_of("demo"), *_BUILD])
    write("demo", "the workstation", demo)
    write("tests", "what tests and checks need beside it", everywhere(plain("requirements.txt")) - demo)
    write(
        "frameworks", "the frameworks of `make frameworks`", {normal(each) for each in plain("frameworks.txt")} - demo
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
