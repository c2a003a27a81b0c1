"""Golden device files: each folder holds `device.toml` and the mistakes that it gives or its values."""

import json
from pathlib import Path

import msgspec
import pytest

from edge_runtime.config.load import load_config
from edge_runtime.errors import ConfigError

CASES = sorted(
    path.parent for path in (Path(__file__).resolve().parents[2] / "golden" / "config").glob("*/device.toml")
)


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.name)
def test_a_golden_file_gives_its_mistakes_or_its_values(case: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a device file says, or what is wrong with it, is the same to the letter in every release."""
    monkeypatch.chdir(case)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    expected = case / "mistakes.txt"
    if expected.exists():
        with pytest.raises(ConfigError) as caught:
            load_config(Path("device.toml"))
        found = str(caught.value).replace(str(case), "FOLDER").replace(str(case.parent), "ABOVE")
        assert found.splitlines() == expected.read_text().splitlines()
        assert caught.value.exit_code == 78
    else:
        values = json.loads(
            msgspec.json.encode(load_config(Path("device.toml"))).replace(str(case).encode(), b"FOLDER")
        )
        assert values == json.loads((case / "values.json").read_text())


def test_there_are_golden_files_of_both_kinds() -> None:
    """Good files and wrong ones are both kept."""
    kinds = {(case / "mistakes.txt").exists() for case in CASES}
    assert kinds == {True, False}
