"""What the pages of guarantees and figures say of tests is so: every test that they name exists."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
# `unit/delivery/test_outbox.py::test_name`, with or without the name, with or without `tests/`, or a name alone
_NAMED = re.compile(r"`(?:tests/)?(?P<path>[\w/]+/test_\w+\.py)(?:::(?P<name>test_\w+))?[^`]*`")
_ALONE = re.compile(r"`(?P<name>test_\w+)`")


def _tests_in(path: Path) -> set[str]:
    return {
        node.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test")
    }


def _every_test() -> set[str]:
    return {name for path in (ROOT / "tests").rglob("test_*.py") for name in _tests_in(path)}


@pytest.mark.parametrize("page", ["guarantees.md", "reliability.md"])
def test_every_test_that_a_page_names_exists(page: str) -> None:
    """A promise whose test was renamed or taken out is a promise without a test."""
    text = " ".join((ROOT / "docs" / page).read_text().split())
    named = list(_NAMED.finditer(text))
    assert len(named) > 10
    missing = []
    for found in named:
        path = ROOT / "tests" / found["path"]
        if not path.exists() or (found["name"] is not None and found["name"] not in _tests_in(path)):
            missing.append(found[0])
    everything = _every_test()
    missing += [found[0] for found in _ALONE.finditer(text) if found["name"] not in everything]
    assert missing == []


def test_every_promise_names_a_test() -> None:
    """A row of the tables of promises without a test would be a wish."""
    promised = (ROOT / "docs" / "guarantees.md").read_text().split("## Not promised")[0]
    rows = [line for line in promised.splitlines() if line.startswith("| ") and "Shown by" not in line]
    assert len(rows) > 20
    assert [row for row in rows if not _NAMED.search(row.split("|")[2])] == []
