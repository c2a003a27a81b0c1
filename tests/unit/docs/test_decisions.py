"""The pages of `docs/decisions/`: one format, in which what holds now comes first."""

import re
from pathlib import Path

import pytest

from tests.support import house

PAGES = sorted((house.ROOT / "docs" / "decisions").glob("*.md"))
FIRST = ["Status", "Context", "Decision", "Consequences"]
BEHIND = {"Measured", "Tried and left out", "Left out", "History"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_says_first_what_holds_now(page: Path) -> None:
    """Number and title, status, context, decision, consequences; then measurements, what was left out, history."""
    text = page.read_text()
    assert re.match(rf"# {int(page.stem[:4])}\. [A-Zp]", text), "the number of the file, and a title"
    parts = re.findall(r"^\*\*([A-Z][\w ]+)\.\*\*", text, re.MULTILINE)
    assert parts[:4] == FIRST
    assert set(parts[4:]) <= BEHIND
    assert re.search(r"^\*\*Status\.\*\* (Holds|Replaced)", text, re.MULTILINE)
    assert re.search(r"^\| is \| is not \|$", text, re.MULTILINE)


def test_the_numbers_are_those_of_the_files() -> None:
    """None is missing, and none is there twice."""
    assert [int(page.stem[:4]) for page in PAGES] == list(range(1, len(PAGES) + 1))
