"""The recipe of CONTRIBUTING.md for a command, followed literally: its code is run through the command line."""

import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_runtime import cli
from edge_runtime.errors import EXIT_FAILED, EXIT_OK, EXIT_USAGE
from tests.support import builders
from tests.support.recipes import code

NAME = "edge_runtime.commands.channels"


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The two steps of the recipe, and nothing else."""
    assert importlib.util.find_spec(NAME) is None, "it exists: the recipe needs another example"
    path = tmp_path / "channels.py"
    path.write_text(code("command edge_runtime/commands/channels.py"))
    spec = importlib.util.spec_from_file_location(NAME, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[NAME] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    line = json.loads("{" + code("command line").rstrip(",") + "}")
    monkeypatch.setattr(cli, "COMMANDS", cli.COMMANDS | line)
    yield
    del sys.modules[NAME]


@pytest.mark.usefixtures("command")
def test_the_command_of_the_recipe_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It answers, and what a person gets wrong is one line with the exit code of its kind."""
    bundle = builders.classification().save(tmp_path / "m.onnx")
    assert cli.main(["channels", str(bundle)]) == EXIT_OK
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["temperature", "humidity"]
    assert cli.main(["channels", str(tmp_path / "none.onnx")]) == EXIT_FAILED
    output = capsys.readouterr()
    assert len(output.err.strip().splitlines()) == 1
    assert "Traceback" not in output.err
    assert cli.main(["channels"]) == EXIT_USAGE


@pytest.mark.usefixtures("command")
def test_the_command_of_the_recipe_stands_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    """With the sentence of its line."""
    assert cli.main(["--help"]) == EXIT_OK
    assert re.search(r"channels +what a bundle wants to read", capsys.readouterr().out)
