"""Docstrings against signatures: what `Args:` names exists."""

import ast
import re
from collections.abc import Iterator

from tests.support import house

FILES = house.sources()
ENTRY = re.compile(r"^    \*{0,2}(\w+)(?: \([^)]*\))?:", re.MULTILINE)


def unknown(source: str) -> Iterator[str]:
    """Entries of `Args:` that no parameter has, of functions and of classes with an `__init__`."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        own = node.args if not isinstance(node, ast.ClassDef) else _arguments_of_init(node)
        if own is None:
            continue
        text = ast.get_docstring(node) or ""
        found = re.search(r"^Args:\n((?:    .*\n?|\n)+)", text, re.MULTILINE)
        extra = [each for each in (own.vararg, own.kwarg) if each is not None]
        names = {each.arg for each in (*own.posonlyargs, *own.args, *own.kwonlyargs, *extra)}
        for name in ENTRY.findall(found[1] if found else ""):
            if name not in names:
                yield f"{node.name}: {name}"


def _arguments_of_init(node: ast.ClassDef) -> ast.arguments | None:
    inits = [each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == "__init__"]
    return inits[0].args if inits else None


def test_docstrings_name_only_parameters_that_exist() -> None:
    """A parameter that was renamed or removed is so in its docstring as well."""
    assert {place: found for place, path in FILES.items() if (found := list(unknown(path.read_text())))} == {}


def test_a_parameter_that_does_not_exist_is_found() -> None:
    """The check itself: one wrong name in a function, one in a class."""
    source = '''
def f(a):
    """Do.

    Args:
        a: right.
        b: wrong.
    """

class C:
    """Be.

    Args:
        c: right.
        d (s): wrong.
    """

    def __init__(self, c):
        """Make."""
'''
    assert list(unknown(source)) == ["f: b", "C: d"]
