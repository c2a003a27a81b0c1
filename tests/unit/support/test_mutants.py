"""What breaks the product in small places does break it, and tells a break that is noticed from one that is not."""

import ast
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.support.mutants import changed_lines, mutants_of, mutated, those_in
from tests.support.mutation_run import load_modules
from tests.support.mutation_try import ROOT

TOY = '''
"""A module."""

LIMIT = 4


def is_small(number: int) -> bool:
    """Whether it is below the limit."""
    return number < LIMIT


def total(numbers: list[int]) -> int:
    """The sum of the small ones."""
    found = 0
    for number in numbers:
        if is_small(number):
            found += number
    return found
'''
TOY_TEST = """
import toy


def test_total():
    assert toy.total([1, 2, 9]) == 3


def test_limit():
    assert toy.LIMIT == 4
"""


@pytest.mark.parametrize(
    ("source", "changes"),
    [
        ("x = a < b", ["a < b -> a <= b"]),
        ("x = a not in b", ["a not in b -> a in b"]),
        ("x = a and b or c", ["a and b or c -> c", "a and b or c -> a and b", "a and b -> b", "a and b -> a"]),
        ("x = a and b and c", ["a and b and c -> b and c", "a and b and c -> a and c", "a and b and c -> a and b"]),
        ("x = not a", ["not a -> a"]),
        ("x = a // b", ["a // b -> a * b"]),
        ("x = 3", ["3 -> 4"]),
        ("x = True", ["True -> False"]),
        ("x = 'text', f'{a + 1}'", []),
        ("x: Literal[3] = y", []),
        ("assert a < b", []),
        ("x = 'a' + b", []),
        ("def f(a=1):\n    g(a)", ["1 -> 2", "g(a) -> left out"]),
        ("def f():\n    self.x = a", ["self.x = a -> left out"]),
        ("def f():\n    x += 1", ["x += 1 -> left out", "1 -> 2", "x += 1 -> x -= 1"]),
        ("def f():\n    raise E('no' * 3)", ["raise E('no' * 3) -> left out"]),
        ("def f():\n    log.warning('%d', a + 1)", []),
        ("def f():\n    with working(a):\n        g()", ["with working(a) -> left out", "g() -> left out"]),
        ("def f():\n    if g(a):\n        return", ["g(a) -> not g(a)", "return -> left out"]),
        ("def f():\n    return [a for a in b if a > 1]", ["a > 1 -> a >= 1", "1 -> 2"]),
        ("def f():\n    try:\n        g()\n    except E:\n        h()", ["g() -> left out", "h() -> left out"]),
    ],
)
def test_each_kind_of_break_is_made(source: str, changes: list[str]) -> None:
    """Texts, annotations, asserts and log lines are left alone."""
    assert [mutant.change for mutant in mutants_of(source)] == changes


def test_a_break_changes_what_it_names_and_nothing_else() -> None:
    """The tree with the break reads as the source with the change in its line."""
    for mutant in mutants_of(TOY):
        broken = ast.unparse(mutated(TOY, mutant)).splitlines()
        sound = ast.unparse(ast.parse(TOY)).splitlines()
        differ = [(before, after) for before, after in zip(sound, broken, strict=True) if before != after]
        before, after = mutant.change.split(" -> ")
        assert len(differ) == 1
        assert before in differ[0][0]
        assert (after.replace("left out", "pass")) in differ[0][1]


def test_breaks_of_one_name_are_told_apart_and_keep_their_names() -> None:
    """Also when lines are put in above them: a judgement is for the break and not for the line."""
    source = "def f():\n    return a(1), b(1)"
    names = [(mutant.where, mutant.change) for mutant in mutants_of(source)]
    assert names == [("f", "1 -> 2"), ("f", "1 -> 2 (#2)")]
    assert [(mutant.where, mutant.change) for mutant in mutants_of("\n\n" + source)] == names


def test_the_lines_of_a_difference_choose_the_breaks() -> None:
    """Only statements that hold a changed line are broken."""
    diff = "--- a/toy.py\n+++ b/toy.py\n@@ -8,0 +9 @@ def is_small\n+    return\n@@ -3 +15,2 @@\n-x\n+y\n"
    lines = changed_lines(diff)
    assert lines == {"toy.py": {9, 15, 16}}
    chosen = those_in(mutants_of(TOY), lines["toy.py"])
    assert [mutant.change for mutant in chosen] == [
        "number < LIMIT -> number <= LIMIT",
        "is_small(number) -> not is_small(number)",
    ]


def _run(folder: Path, judged: str, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "toy.py").write_text(TOY)
    (folder / "test_toy.py").write_text(TOY_TEST)
    (folder / "pytest.ini").write_text("[pytest]\npythonpath = .\n")
    (folder / "modules.toml").write_text(
        f'[[module]]\npath = "{folder}/toy.py"\ntests = ["{folder}/test_toy.py"]\nfloor = 80\n'
    )
    (folder / "judged.toml").write_text(judged)
    return subprocess.run(
        [sys.executable, "-m", "tests.support.mutation_run", "--place", str(folder), *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_a_survivor_is_shown_and_fails_the_run_until_it_is_judged(tmp_path: Path) -> None:
    """No number of the toy's tests stands at the limit, so one break of it lives."""
    done = _run(tmp_path, "")
    assert "SURVIVED (the tests pass): is_small: number < LIMIT -> number <= LIMIT" in done.stdout, done.stderr
    assert "5 of 6 breaks noticed, 1 survivors not judged" in done.stdout
    assert done.returncode == 1
    judgement = f"""
        [[survivor]]
        module = "{tmp_path}/toy.py"
        where = "is_small"
        change = "number < LIMIT -> number <= LIMIT"
        judged = "equivalent"
        reason = "no number of this test is at the limit"
        """
    done = _run(tmp_path, textwrap.dedent(judgement))
    assert "SURVIVED" not in done.stdout
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_run_is_taken_up_again_and_may_be_of_one_function(tmp_path: Path) -> None:
    """What was noticed is kept, what has survived is tried again, and one function's breaks leave the others alone."""
    done = _run(tmp_path, "", "--only", "is_small")
    assert "0 of 1 breaks noticed, 1 survivors not judged" in done.stdout, done.stderr
    (known,) = (tmp_path / "known").iterdir()
    assert len(known.read_text().splitlines()) == 2
    done = _run(tmp_path, "", "--resume")
    assert "5 of 6 breaks noticed, 1 survivors not judged" in done.stdout
    tried = known.read_text().splitlines()
    assert len(tried) == 2 + 6
    done = _run(tmp_path, "", "--resume")
    assert "5 of 6 breaks noticed, 1 survivors not judged" in done.stdout
    assert known.read_text().splitlines() == [*tried, tried[-1] if "is_small" in tried[-1] else tried[1]]


def test_every_judgement_is_of_a_break_that_can_be_made() -> None:
    """A judgement whose code is gone would hide the next survivor of that name."""
    stale = []
    for module in load_modules():
        names = {f"{mutant.where}: {mutant.change}" for mutant in mutants_of((ROOT / module.path).read_text())}
        stale += [f"{module.path}: {name}" for name in module.judged if name not in names]
        assert all(item["judged"] in {"equivalent", "accepted"} for item in module.judged.values())
        assert all(len(item["reason"]) > 10 for item in module.judged.values())
    assert stale == []
