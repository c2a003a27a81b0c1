"""`docs/converter.md` names what there is: every model of the table of sizes, every test of the table of frameworks."""

import re
from pathlib import Path

import pytest

from benchmarks.converted import BEGIN, CASES, DOCUMENT, END
from converter.cli import COMMANDS
from converter.targets import TARGETS

ROOT = DOCUMENT.parents[1]


def text() -> str:
    """The page."""
    return DOCUMENT.read_text(encoding="utf-8")


def test_the_table_of_sizes_has_a_line_for_every_model() -> None:
    """It is made by `python -m benchmarks.converted --write`, and a new model is not forgotten."""
    lines = text().split(BEGIN)[1].split(END)[0].strip().splitlines()[2:]
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines] == [case.name for case in CASES]
    assert sum("refused: no ONNX form" in line for line in lines) == 1


@pytest.mark.shared_data
def test_every_model_of_the_data_folder_is_among_them(shared_data: Path, tmp_path: Path) -> None:
    """TFLite, Keras and XGBoost files alike, those that are refused included."""
    models = {path for suffix in ("*.tflite", "*.h5", "xgboost*.json") for path in shared_data.rglob(suffix)}
    foreign = [case for case in CASES if "trained here" not in case.note]
    assert {case.prepare(shared_data, tmp_path)[0] for case in foreign} == models


def test_every_test_that_the_page_names_is_there() -> None:
    """A row of the table of frameworks is held by the test that it names."""
    named = set(re.findall(r"`(?:tests/[\w/]+/)?(test_\w+\.py)`", text()))
    there = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    assert len(named) > 6
    assert named <= there


def test_commands_and_targets_are_described() -> None:
    """Each command and each kind of board stands on the page."""
    assert all(
        f"edge-convert {command}" in text() or f"`{command}`" in text() for command in COMMANDS if command != "verify"
    )
    assert all(f"| `{name}` |" in text() for name in TARGETS)
    for target in TARGETS.values():
        assert f"| {target.file_bytes >> 21} MB | {target.memory_bytes >> 20} MB |" in text()
