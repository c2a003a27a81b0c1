"""`docs/glossary.md` against the code: one word, one idea, and one class a word."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

from tests.support import house

PAGE = (house.ROOT / "docs" / "glossary.md").read_text()

WHOLE_FILES = {"Config", "Fleet"}  # a file is no table of one


def classes() -> dict[str, list[tuple[str, ast.ClassDef]]]:
    """Every class of both programs that other modules may use, by its name, with the modules that define it."""
    found: dict[str, list[tuple[str, ast.ClassDef]]] = defaultdict(list)
    for program in ("edge_runtime", "converter"):
        for path in sorted((house.ROOT / program).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    found[node.name].append((str(path.relative_to(house.ROOT)).removeprefix("edge_runtime/"), node))
    return found


CLASSES = classes()


def rows(heading: str) -> list[list[str]]:
    """The cells of the table below a heading, without its head."""
    section = PAGE.split(f"{heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_no_two_classes_have_one_name() -> None:
    """In both programs; there are no exceptions."""
    twice = {name: [place for place, _ in places] for name, places in CLASSES.items() if len(places) > 1}
    assert twice == {}


def test_a_table_of_a_file_is_called_so() -> None:
    """What stands for a table of a device file or an inventory ends in `Table`, and nothing else does."""
    tables = {"Table"}
    while True:
        more = {
            name
            for name, places in CLASSES.items()
            for _, node in places
            if any(ast.unparse(base) in tables for base in node.bases)
        }
        if more <= tables:
            break
        tables |= more
    assert {name for name in tables - WHOLE_FILES if not name.endswith("Table")} == set()
    assert {name for name in CLASSES if name.endswith("Table")} - tables == set()


@pytest.mark.parametrize("row", rows("## Words and classes"), ids=lambda row: row[0])
def test_a_word_has_the_class_that_the_page_names(row: list[str]) -> None:
    """The class exists, once, in the module that the page names, and its word stands in the glossary."""
    word, name, module = row[0], row[1].strip("`"), row[2].strip("`")
    assert [place for place, _ in CLASSES[name]] == [module]
    assert re.search(rf"^\| {re.escape(word)} \|", PAGE, re.MULTILINE)


@pytest.mark.parametrize("row", rows("## Words that were replaced"), ids=lambda row: row[0])
def test_a_word_that_was_replaced_names_no_class(row: list[str]) -> None:
    """What it stood for has the name beside it."""
    assert row[0] not in CLASSES
    for name in re.findall(r"`(\w+)`", row[1]):
        assert name in CLASSES


def test_the_words_stand_in_order() -> None:
    """So that one finds them."""
    words = [row[0] for row in rows("# Glossary")]
    assert words == sorted(words, key=str.lower)


def test_every_page_of_the_glossary_is_a_file() -> None:
    """Modules that the page names are there."""
    named = rows("## Words and classes")
    assert named
    for row in named:
        assert (house.ROOT / "edge_runtime" / Path(row[2].strip("`"))).is_file()
