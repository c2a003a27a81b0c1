"""The recipes of CONTRIBUTING.md: a file that is written by one passes `make check`, as any file of the project."""

import subprocess
import sys
from pathlib import Path

import pytest

from edge_runtime.http import routes
from tests.support import house
from tests.support.recipes import files

FILES = files()


def test_there_are_seven_recipes() -> None:
    """A codec, a source, a payload convention, a sink, a route, a command and a loader."""
    assert sorted(FILES) == ["codec", "command", "loader", "payload", "route", "sink", "source"]


@pytest.mark.parametrize("recipe", sorted(FILES))
def test_a_recipe_keeps_the_style(recipe: str) -> None:
    """The linter and the formatter have nothing to say about it at its place."""
    place, text = FILES[recipe]
    for words in (["check", "--quiet"], ["format", "--check", "--quiet"]):
        command = [sys.executable, "-m", "ruff", *words, "--stdin-filename", place, "-"]
        done = subprocess.run(command, input=text, cwd=house.ROOT, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_every_recipe_is_typed(tmp_path: Path) -> None:
    """The strict types hold for the files of all recipes, too."""
    for recipe, (_, text) in FILES.items():
        (tmp_path / f"recipe_{recipe}.py").write_text(text)
    command = [sys.executable, "-m", "mypy", *map(str, sorted(tmp_path.iterdir()))]
    done = subprocess.run(command, cwd=house.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("recipe", sorted(set(FILES) - {"loader"}))
def test_a_recipe_keeps_the_order_of_the_rooms(recipe: str, tmp_path: Path) -> None:
    """Its file imports rooms below its own, and what `routes.py` imports does not import that again."""
    place, text = FILES[recipe]
    path = tmp_path / "recipe.py"
    path.write_text(text)
    own = house.FLOORS.index(house.room(place.removesuffix(".py").replace("/", ".")))
    found = set(house.imports(path, house.modules()))
    rooms = {house.room(name) for name in found if name.split(".")[0] == "edge_runtime"}
    assert [room for room in rooms if house.FLOORS.index(room) > own] == []
    assert routes.__name__ not in found
