"""Each test can fail: it asserts something, itself or through a helper that does, and about no more than it names.

Read from the source. Weak point: that something is asserted does not say that it is what the test's sentence promises;
that is seen by breaking the product (`tests/faults/controls`, `make mutants`).
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
# What fails by raising and gives nothing to look at, by the test: why that is enough.
NO_MORE_THAN_NO_ERROR = {
    "test_a_sample_loads_with_every_comment_taken_away": "load_config raises what is wrong with a file",
    "test_the_installed_paho_has_what_is_used": "check_paho raises what is missing",
    "test_two_times_of_day_are_a_window": "check_window raises what is wrong with a window",
}
_RAISING = frozenset({"raises", "warns", "fail"})  # of pytest
Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def nodes_of(path: Path) -> list[ast.AST]:
    """Everything in a file, also within classes and functions."""
    return list(ast.walk(ast.parse(path.read_text(), str(path))))


def functions_of(path: Path) -> Iterator[Function]:
    """Every function of a file."""
    return (node for node in nodes_of(path) if isinstance(node, Function))


def called_by(function: Function) -> set[str]:
    """The names of what a function calls, without what they are attributes of."""
    calls = [node.func for node in ast.walk(function) if isinstance(node, ast.Call)]
    names = {each.id for each in calls if isinstance(each, ast.Name)}
    return names | {each.attr for each in calls if isinstance(each, ast.Attribute)}


def asserts_itself(function: Function) -> bool:
    """Whether an assertion stands in it; numpy's and pytest's ways count."""
    if any(isinstance(node, ast.Assert | ast.Raise) for node in ast.walk(function)):
        return True
    return any(name.startswith("assert_") or name in _RAISING for name in called_by(function))


def those_that_assert(functions: dict[str, list[Function]]) -> set[str]:
    """The names of the functions that assert something, or call one that does."""
    found = {name for name, each in functions.items() if any(map(asserts_itself, each))}
    while more := {
        name
        for name, each in functions.items()
        if name not in found and any(called_by(function) & found for function in each)
    }:
        found |= more
    return found


def silent_tests(folder: Path) -> set[str]:
    """The tests below a folder that assert nothing."""
    functions: dict[str, list[Function]] = {}
    tests: list[Function] = []
    for path in sorted(folder.rglob("*.py")):
        for function in functions_of(path):
            functions.setdefault(function.name, []).append(function)
            if path.name.startswith("test_") and function.name.startswith("test_"):
                tests.append(function)
    asserting = those_that_assert(functions)
    return {test.name for test in tests if not (asserts_itself(test) or called_by(test) & asserting)}


def test_each_test_asserts_something() -> None:
    """One that only runs the product passes whatever the product answers."""
    assert silent_tests(TESTS) == set(NO_MORE_THAN_NO_ERROR)


def test_no_test_takes_any_error_for_the_one_it_asks_for() -> None:
    """`raises(Exception)` is satisfied by a mistake in the test itself."""
    found = [
        f"{path.relative_to(TESTS)}:{node.lineno}"
        for path in sorted(TESTS.rglob("*.py"))
        for node in nodes_of(path)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "raises"
        and any(isinstance(each, ast.Name) and each.id in {"Exception", "BaseException"} for each in node.args)
    ]
    assert found == []


def test_a_list_of_cases_that_is_empty_is_an_error(pytestconfig: pytest.Config) -> None:
    """Else a test whose cases come from a folder or a table is skipped when these are not found."""
    assert pytestconfig.getini("empty_parameter_set_mark") == "fail_at_collect"


@pytest.mark.parametrize(
    ("body", "silent"),
    [
        ("run()", True),
        ("helper()", False),
        ("box.deep()", False),
        ("assert run()", False),
        ("with pytest.raises(ValueError):\n        run()", False),
        ("np.testing.assert_array_equal(run(), 1)", False),
        ("print('assert')", True),
    ],
)
def test_a_silent_test_is_found(body: str, silent: bool, tmp_path: Path) -> None:
    """What asserts, here or in what it calls."""
    (tmp_path / "helpers.py").write_text("def helper():\n    assert 1\n\n\ndef deep():\n    helper()\n")
    (tmp_path / "test_it.py").write_text(f"def test_it():\n    {body}\n")
    assert bool(silent_tests(tmp_path)) is silent
