"""Each promise of `docs/guarantees.md` has a break in `breaks.toml` by which a test that it names goes red.

`make test` looks whether every promise has a break that still fits the code and the page, and makes the first.
`make controls` (`EDGE_TORTURE=long`) makes them all, one after the other, in a copy of the tree, and runs the test
there: a promise whose test stays green is not promised, nor is one whose test fails because the break is no program
any more. A promise that has several sides has several breaks. Weak point: a break shows that the test watches, and not
how much it sees.
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
IS_LONG = os.environ.get("EDGE_TORTURE") == "long"


@dataclass(frozen=True)
class Break:
    """One row of `breaks.toml`."""

    promise: str
    file: str
    old: str
    new: str
    test: str


_FILE = tomllib.loads(Path(__file__).with_name("breaks.toml").read_text())
# What a break says that names something that is not there: the test fails, and has noticed nothing.
_NO_PROGRAM = re.compile(
    r"^E +(NameError|UnboundLocalError|AttributeError|ImportError|ModuleNotFoundError|SyntaxError|IndentationError)\b",
    re.MULTILINE,
)
BREAKS = [Break(**item) for item in _FILE["break"]]


def promises() -> dict[str, str]:
    """The rows of the tables of promises: the sentence, and the tests that show it."""
    page = (ROOT / "docs" / "guarantees.md").read_text().split("## Not promised")[0]
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    return {row[0]: row[1] for row in rows if row[0] != "Promise"}


def test_every_promise_has_a_break() -> None:
    """A promise without a control is not promised: a new row of the page comes with its break."""
    begun = [found.promise for found in BREAKS]
    assert [promise for promise in promises() if not promise.startswith(tuple(begun))] == []
    assert [start for start in begun if sum(promise.startswith(start) for promise in promises()) != 1] == []
    assert len(set(BREAKS)) == len(BREAKS)


@pytest.mark.parametrize("found", BREAKS, ids=lambda found: found.promise)
def test_every_break_fits(found: Break) -> None:
    """The promise is on the page and names the test, and the line that is broken is in the code."""
    (tests,) = [tests for promise, tests in promises().items() if promise.startswith(found.promise)]
    file, _, name = found.test.removeprefix("tests/").partition("::")
    assert f"`{file}`" in tests or f"`{file}::{name}`" in tests, f"{found.promise}: expected {found.test} in its row"
    text = (ROOT / found.file).read_text()
    assert found.old != found.new
    assert found.old in text, f"{found.file}: expected the line that the control of this promise breaks: {found.old!r}"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("found", BREAKS if IS_LONG else BREAKS[:1], ids=lambda found: found.promise)
def test_a_broken_promise_is_noticed(found: Break, tmp_path: Path) -> None:
    """In a copy of the tree: the named test fails there, and for what it asserts."""
    copy = tmp_path / "tree"
    _copy_tree(copy)
    path = copy / found.file
    path.write_text(path.read_text().replace(found.old, found.new, 1))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider", found.test],
        cwd=copy,
        env={name: value for name, value in os.environ.items() if name != "EDGE_TORTURE"} | {"PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
        check=False,
        timeout=800,
    )
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout[-3000:]
    assert f"FAILED {found.test.partition('::')[0]}" in done.stdout, "only what surrounds the test has failed"
    assert not _NO_PROGRAM.search(done.stdout), f"it failed for another reason than its promise: {done.stdout[-3000:]}"
    shutil.rmtree(copy)


def _copy_tree(copy: Path) -> None:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in listing.split("\0"):
        if name and (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
