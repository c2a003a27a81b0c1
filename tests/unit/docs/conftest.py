"""What the tests of the recipes share."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.support.recipes import MakeModule, code


@pytest.fixture
def make_module(tmp_path: Path) -> Iterator[MakeModule]:
    """`make_module(recipe)`: the recipe's file, written and importable under the name that its path gives it."""
    made: list[str] = []

    def make(recipe: str) -> ModuleType:
        name = recipe.split()[1].removesuffix(".py").replace("/", ".")
        assert importlib.util.find_spec(name) is None, f"{name} exists: the recipe needs another example"
        path = tmp_path / f"{name}.py"
        path.write_text(code(recipe))
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        made.append(name)
        spec.loader.exec_module(module)
        return module

    yield make
    for name in made:
        del sys.modules[name]
