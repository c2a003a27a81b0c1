"""The recipes of CONTRIBUTING.md: the code of each, as a test runs it."""

import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

MakeModule = Callable[[str], ModuleType]
_PAGE = (Path(__file__).resolve().parents[2] / "CONTRIBUTING.md").read_text()


def code(recipe: str) -> str:
    """The code block behind the mark of a recipe."""
    found = re.search(rf"<!-- recipe: {re.escape(recipe)} -->\n *```python\n(.*?)\n *```", _PAGE, re.DOTALL)
    assert found is not None, recipe
    return textwrap.dedent(found[1])


def files() -> dict[str, tuple[str, str]]:
    """The file of each recipe: its place in the tree, and its text."""
    found = re.findall(r"<!-- recipe: (\w+) (\S+/\S+\.py) -->", _PAGE)
    return {recipe: (place, code(f"{recipe} {place}") + "\n") for recipe, place in found}
