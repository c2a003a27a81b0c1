"""The table of the data models in `docs/converter.md`: what it has to show stands in it."""

import pytest

from tests.support.installed import ROOT

MOST_SECONDS, MOST_MB = 60.0, 2048


def test_no_model_takes_a_minute_or_two_gigabytes() -> None:
    """Measured by `python -m benchmarks.converted --write`; what is kept is never larger than the float32 form."""
    text = (ROOT / "docs" / "converter.md").read_text(encoding="utf-8")
    table = text.split("<!-- sizes and losses -->")[1].split("<!-- end of sizes and losses -->")[0]
    head, _, *rows = (line.strip("| ").split(" | ") for line in table.strip().splitlines())
    assert len(rows) > 15
    for row in rows:
        if any(cell.startswith("refused: ") for cell in row):
            continue
        found = dict(zip(head, row, strict=True))
        assert float(found["CPU s"]) < MOST_SECONDS, row
        assert int(found["MB"]) < MOST_MB, row
        assert int(found["kept"].replace(",", "")) <= int(found["float32 ONNX"].replace(",", "")), row


def test_every_model_of_the_data_folder_is_in_the_table() -> None:
    """Read from the folder, and from the program that makes the table."""
    data = ROOT / ".." / "shared" / "data"
    if not data.is_dir():
        pytest.skip(f"expected the recordings in {data}, found no such folder")
    text = (ROOT / "benchmarks" / "converted.py").read_text(encoding="utf-8")
    files = [path.name for kind in ("*.tflite", "*.h5", "*_model.json", "*.onnx") for path in data.rglob(kind)]
    assert len(files) > 12
    assert [name for name in files if name not in text] == []
