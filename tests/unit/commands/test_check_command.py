"""`edge-runtime check`: every mistake of a file in one report, whichever stage would find it."""

from pathlib import Path

import pytest

from edge_runtime.cli import main
from tests.support.builders import classification

GOOD = """
[device]
id = "press"
[[source]]
name = "climate"
type = "mqtt"
topics = ["s/{key}"]
[[model]]
name = "comfort"
bundle = "activity.onnx"
source = "climate"
[upstream]
url = "mqtt://localhost:1"
"""


def check(folder: Path, text: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit code, and what was written to stderr."""
    classification().save(folder / "activity.onnx")
    path = folder / "device.toml"
    path.write_text(text)
    code = main(["check", str(path)])
    return code, capsys.readouterr().err


def test_one_run_reports_mistakes_of_both_stages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown payload, a reserved name and an unused source stand beside a mistake of a value."""
    text = GOOD.replace('source = "climate"', 'source = "climate"\npayload = "xml"\nstride = 0')
    text = text.replace('name = "comfort"', 'name = "health"')
    text += '[[source]]\nname = "spare"\ntype = "mqtt"\ntopics = ["t"]\n'
    code, answered = check(tmp_path, text, capsys)
    assert code == 78
    parts = (
        ".stride: expected",
        ".payload: expected one of json, msgpack, values, found 'xml'",
        'model "health".name: expected a name that is no topic',
        'source "spare": expected a model',
    )
    for part in parts:
        assert answered.count(part) == 1, answered


@pytest.mark.parametrize(
    "broken",
    ['id = "press"', 'name = "climate"', 'name = "comfort"', 'source = "climate"', 'bundle = "activity.onnx"'],
)
def test_a_missing_key_is_its_own_mistake_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], broken: str
) -> None:
    """What hangs on a missing key is not reported as well, and nothing ends in a traceback."""
    code, answered = check(tmp_path, GOOD.replace(broken + "\n", "", 1), capsys)
    assert code == 78
    assert "Traceback" not in answered
    assert "expected a model that uses it" not in answered or broken == 'name = "climate"'


@pytest.mark.parametrize("table", ["source", "model", "upstream", "device"])
def test_a_file_without_a_table_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str], table: str) -> None:
    """Every table may be absent."""
    head = f"[[{table}]]" if f"[[{table}]]" in GOOD else f"[{table}]"
    before, _, rest = GOOD.partition(head + "\n")
    lines = rest.splitlines()
    end = next((at for at, line in enumerate(lines) if line.startswith("[")), len(lines))
    code, answered = check(tmp_path, before + "\n".join(lines[end:]), capsys)
    assert code == 78
    assert "Traceback" not in answered
    assert answered


def test_a_good_file_is_good(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same file without a mistake passes."""
    assert check(tmp_path, GOOD, capsys)[0] == 0
