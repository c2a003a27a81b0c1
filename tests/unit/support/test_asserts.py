"""No test asserts what is always true."""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[2]


def _always_true(test: ast.expr) -> bool:
    """A value that no fault makes false: `assert a == b if c else d` is `d`, and a generator is never empty."""
    if isinstance(test, ast.IfExp):
        return _always_true(test.body) or _always_true(test.orelse)
    if isinstance(test, ast.Constant):
        return bool(test.value)
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.Or):
        return any(_always_true(value) for value in test.values)
    return isinstance(test, ast.GeneratorExp | ast.Lambda | ast.JoinedStr) or bool(
        isinstance(test, ast.Tuple | ast.List | ast.Set) and test.elts
    )


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("assert a == 5 if first else 4", True),
        ("assert a == (5 if first else 4)", False),
        ("assert a == 5 if first else a == 4", False),
        ("assert (a == 5, 'words')", True),
        ("assert (each for each in a)", True),
        ("assert a or 1", True),
        ("assert a and 1", False),
        ("assert a", False),
    ],
)
def test_what_is_always_true_is_told_from_what_is_not(source: str, expected: bool) -> None:
    """Each kind by itself."""
    (statement,) = ast.parse(source).body
    assert isinstance(statement, ast.Assert)
    assert _always_true(statement.test) is expected


def test_every_assert_can_fail() -> None:
    """Of all tests and their support."""
    found = [
        f"{path.relative_to(TESTS)}:{node.lineno}"
        for path in sorted(TESTS.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Assert) and _always_true(node.test)
    ]
    assert found == []
