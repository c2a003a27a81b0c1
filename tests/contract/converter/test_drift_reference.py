"""A bundle from recordings with times: its reference, the limits of drift, and what the build says of them."""

from pathlib import Path

import numpy as np
import pytest
import skops.io
from sklearn.linear_model import LogisticRegression

from converter.cli import main
from converter.commands.inspect import manifest_of
from edge_runtime.bundle.model import Model
from edge_runtime.bundle.open import open_bundle
from edge_runtime.drift.monitor import Monitor
from edge_runtime.readings import Floats

SPEC = """
task = "classification"
labels = ["cold", "warm"]
[[channel]]
name = "temperature"
range = [-40.0, 85.0]
[[channel]]
name = "pressure"
[data]
label = "state"
time = "at"
[drift]
false_alarms_per_month = 2.0
"""


def recordings(folder: Path, count: int) -> Floats:
    """A CSV file of a reading every ten seconds, and a model of it."""
    rng = np.random.default_rng(1)
    values = rng.normal((20.0, 1000.0), (2.0, 8.0), (count, 2)).round(3).astype(np.float32)
    states = (values[:, 0] > 20.0).astype(int)
    start = np.datetime64("2026-11-01T00:00:00")
    lines = [
        f"{start + np.timedelta64(10 * row, 's')},{a},{b},{state}"
        for row, ((a, b), state) in enumerate(zip(values.tolist(), states.tolist(), strict=True))
    ]
    (folder / "data.csv").write_text("at,temperature,pressure,state\n" + "\n".join(lines) + "\n")
    (folder / "spec.toml").write_text(SPEC)
    skops.io.dump(LogisticRegression().fit(values, states), folder / "model.skops")
    return values


def build(folder: Path) -> int:
    """As a user does."""
    return main(
        ["build", str(folder / "model.skops"), "--spec", str(folder / "spec.toml"), "--data", str(folder / "data.csv"),
         "-o", str(folder / "m.onnx"), "--quantize", "none", "--report", str(folder / "m.html")]
    )  # fmt: skip


def test_a_build_writes_limits_that_a_device_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The rate comes from the times; what was held stands in the output and in the report; answers have limits too."""
    values = recordings(tmp_path, 9000)
    assert build(tmp_path) == 0
    output = capsys.readouterr()
    (line,) = [each for each in (output.out + output.err).splitlines() if "drift: limits from" in each]
    assert "for 2 false alarms a month" in line
    assert line.endswith("held")
    assert line.split("drift: ")[1] in (tmp_path / "m.html").read_text().replace("&#x27;", "'")
    found = manifest_of(tmp_path / "m.onnx")
    about = found.drift
    assert about is not None
    assert (about.rate_hz, about.false_alarms_per_month, about.alarms) == (0.1, 2.0, 0)
    assert about.checked > 0
    assert [each.name for each in found.score_reference] == ["cold", "warm"]
    monitor = Monitor(Model(open_bundle(tmp_path / "m.onnx")).manifest, is_recorded=True)
    assert monitor.is_calibrated
    monitor.take(values[:1280], [None] * 1280, [10.0 * row for row in range(1280)], 0.0)
    document = monitor.document()
    assert (document["state"], document["rate"]["hz"]) == ("ok", 0.1)
    monitor.take(values[:1280] + np.float32(3.0), [None] * 1280, None, 0.0)
    assert monitor.document()["channels"]["temperature"]["state"] == "alarm"


def test_a_build_from_few_readings_says_that_there_are_no_limits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The bundle is made, with a reference."""
    recordings(tmp_path, 300)
    assert build(tmp_path) == 0
    output = capsys.readouterr()
    assert "drift: no limits: 210 readings are too few" in output.out + output.err
    assert manifest_of(tmp_path / "m.onnx").drift is None
    assert not Monitor(Model(open_bundle(tmp_path / "m.onnx")).manifest).is_calibrated


def test_the_same_recordings_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bootstrap has a seed of its own."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1795470736")
    recordings(tmp_path, 4000)
    assert build(tmp_path) == 0
    first = (tmp_path / "m.onnx").read_bytes()
    assert build(tmp_path) == 0
    assert (tmp_path / "m.onnx").read_bytes() == first
