"""What is installed is locked: exact releases, digests of their files, and nothing that is not asked for."""

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[3]
LOCKED = ROOT / "tests" / "locked"
LOCKS = sorted(LOCKED.glob("*.txt"))


def script(name: str) -> ModuleType:
    """A program of `.ci`, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / ".ci" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


lock = script("lock")


def entries(path: Path) -> Iterator[tuple[str, str, list[str]]]:
    """Name, release and digests of each package in a lock."""
    text = "\n".join(line for line in path.read_text().splitlines() if not line.startswith("#"))
    for each in re.split(r"\n(?=\S)", text):
        first, *hashes = (line.strip().rstrip("\\").strip() for line in each.splitlines())
        name, release = first.split("==")
        yield name, release, [digest.removeprefix("--hash=sha256:") for digest in hashes]


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.stem)
def test_every_package_of_a_lock_has_its_tested_release_and_digests(path: Path) -> None:
    """A changed release in constraints.txt without `make lock` is noticed, and so is an entry without a digest."""
    pins = lock.pinned()
    found = list(entries(path))
    assert len(found) > 5
    for name, release, digests in found:
        assert pins[name] == release, name
        assert digests, name
        assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in digests), name


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("device", lock.requirements_of()),
        ("demo", [*lock.requirements_of("demo"), *lock._BUILD]),
        ("tests", lock.plain("requirements.txt")),
        ("frameworks", lock.plain("frameworks.txt")),
    ],
)
def test_whatever_is_asked_for_is_in_its_lock(name: str, wanted: list[str]) -> None:
    """A new dependency in pyproject.toml or in the tests' requirements without `make lock` is noticed."""
    also = {"tests": ["demo"], "frameworks": ["demo"]}.get(name, [])
    known = {entry for each in (name, *also) for entry, _, _ in entries(LOCKED / f"{each}.txt")}
    asked = {lock.normal(re.split(r"[\s\[<>=!~;]", each)[0]) for each in wanted}
    assert asked <= known


def test_the_environment_is_installed_by_digest() -> None:
    """The Makefile installs demo, tests and frameworks by their locks, and takes no package beside them."""
    text = (ROOT / "Makefile").read_text()
    assert "INSTALL_LOCKED := $(PIP) install --quiet --require-hashes --no-deps --requirement" in text
    for name in ("demo", "tests", "frameworks"):
        assert f"$(INSTALL_LOCKED) $(LOCKED)/{name}.txt" in text
    assert "--no-deps --no-build-isolation --editable ." in text
