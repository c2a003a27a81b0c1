"""The converter on recorded sensor data, with the figures that the design promises."""

import csv
import datetime as dt
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skops.io
from numpy.typing import NDArray
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import HistGradientBoostingClassifier, IsolationForest, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from converter.cli import main
from converter.commands.inspect import manifest_of
from converter.features import WindowFeatures
from converter.session import run, session_of

pytestmark = pytest.mark.shared_data

CHANNELS = ("Temperature", "Humidity", "Light", "CO2", "HumidityRatio")
OCCUPANCY = "".join(f'[[channel]]\nname = "{name}"\n' for name in CHANNELS)


def occupancy(path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    """Five channels and whether the room was occupied."""
    with path.open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    return np.array([[float(v) for v in row[2:7]] for row in rows]), np.array([int(row[7]) for row in rows])


def motions(path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    """Windows of 100 readings of six axes, and what the person did."""
    windows, labels = [], []
    for line in path.read_text().splitlines():
        if line and line[0] not in "#@":
            *channels, label = line.split(":")
            windows.append(np.array([[float(v) for v in channel.split(",")] for channel in channels]).T)
            labels.append(label)
    return np.array(windows, dtype=np.float32), np.array(labels)


@pytest.mark.parametrize(
    ("model", "quantize"),
    [
        (make_pipeline(StandardScaler(), LogisticRegression()), "int8"),
        (make_pipeline(StandardScaler(), MLPClassifier((16,), max_iter=100, random_state=0)), "int8"),
        (make_pipeline(StandardScaler(), MLPClassifier((16,), max_iter=100, random_state=0)), "dynamic"),
        (LinearDiscriminantAnalysis(), "int8"),
        (RandomForestClassifier(30, random_state=0), "none"),
        (make_pipeline(StandardScaler(), RandomForestClassifier(30, random_state=0)), "none"),
        (HistGradientBoostingClassifier(max_iter=30, random_state=0), "none"),
    ],
    ids=["logistic", "mlp", "mlp-dynamic", "lda", "forest", "scaled-forest", "boosting"],
)
def test_occupancy_keeps_its_labels_and_its_accuracy(
    model: Any, quantize: str, shared_data: Path, tmp_path: Path
) -> None:
    """On 9,752 unseen rows the float labels equal scikit-learn's on 99.9 %, and int8 loses at most one point."""
    folder = shared_data / "uci-occupancy"
    x, y = occupancy(folder / "datatraining.txt")
    unseen, truth = occupancy(folder / "datatest2.txt")
    model.fit(x, y)
    skops.io.dump(model, tmp_path / "room.skops")
    (tmp_path / "room.toml").write_text(f'name = "room"\nlabels = ["empty", "occupied"]\n{OCCUPANCY}')
    np.savez(tmp_path / "calibration.npz", x=x, y=y)
    np.savez(tmp_path / "evaluation.npz", x=unseen, y=truth)
    answers = {}
    for method in ("none", quantize):
        files = ["--calibration", str(tmp_path / "calibration.npz"), "--evaluation", str(tmp_path / "evaluation.npz")]
        arguments = ["build", str(tmp_path / "room.skops"), "--spec", str(tmp_path / "room.toml"), *files]
        assert main([*arguments, "--quantize", method, "-o", str(tmp_path / f"{method}.onnx")]) == 0
        windows = unseen.astype(np.float32)[:, None, :]
        answers[method] = run(session_of((tmp_path / f"{method}.onnx").read_bytes()), windows).label
    # Histogram boosting compares in float64, where a reading may stand exactly on a threshold: parity is on float32.
    expected = model.predict(unseen.astype(np.float32).astype(np.float64))
    assert np.mean(answers["none"] == expected) >= 0.999
    assert np.mean(expected == truth) - np.mean(answers[quantize] == truth) <= 0.01
    recorded = manifest_of(tmp_path / f"{quantize}.onnx")
    assert recorded.quantization["method"] == quantize
    assert recorded.output.labels == ("empty", "occupied")


@pytest.mark.parametrize("bands", [(), ((0.2, 1.0), (1.0, 2.5), (2.5, 5.1))])
def test_motions_are_told_apart_by_a_pipeline_of_features_scaler_and_network(
    bands: Any, shared_data: Path, tmp_path: Path
) -> None:
    """One int8 graph takes raw windows and recognises held-out motions with an accuracy of 0.90 or better."""
    x, y = motions(shared_data / "basic-motions" / "BasicMotions_TRAIN.ts")
    unseen, truth = motions(shared_data / "basic-motions" / "BasicMotions_TEST.ts")
    network = MLPClassifier((32,), max_iter=400, random_state=0)
    model = make_pipeline(WindowFeatures(bands=bands, rate_hz=10.0), StandardScaler(), network).fit(x, y)
    skops.io.dump(model, tmp_path / "activity.skops")
    spec = 'name = "activity"\n[window]\nlength = 100\nstride = 50\nrate_hz = 10.0\n'
    (tmp_path / "activity.toml").write_text(spec + "".join(f'[[channel]]\nname = "{n}"\n' for n in "abcdef"))
    np.savez(tmp_path / "calibration.npz", x=x, y=y)
    np.savez(tmp_path / "evaluation.npz", x=unseen, y=truth)
    out = tmp_path / "activity.onnx"
    arguments = ["build", str(tmp_path / "activity.skops"), "--spec", str(tmp_path / "activity.toml"),
                 "--calibration", str(tmp_path / "calibration.npz"), "--evaluation", str(tmp_path / "evaluation.npz"),
                 "--quantize", "int8", "-o", str(out)]  # fmt: skip
    assert main(arguments) == 0
    manifest = manifest_of(out)
    label = run(session_of(out.read_bytes()), unseen).label
    assert label is not None
    named = np.array(manifest.output.labels)[label]
    assert np.mean(named == truth) >= 0.90
    assert manifest.input.window.stride == 50
    assert [reference.name for reference in manifest.reference] == list("abcdef")


def test_a_machine_s_temperature_is_judged_by_an_isolation_forest(shared_data: Path, tmp_path: Path) -> None:
    """An anomaly bundle is built from a table with a time column, and flags what scikit-learn flags on every window."""
    folder = shared_data / "nab-machine-temperature"
    windows = json.loads((folder / "anomalies.json").read_text())["windows"]
    borders = [[dt.datetime.fromisoformat(moment) for moment in pair] for pair in windows]
    with (folder / "machine_temperature_system_failure.csv").open(newline="") as file:
        rows = [(dt.datetime.fromisoformat(row["timestamp"]), float(row["value"])) for row in csv.DictReader(file)]
    data = tmp_path / "temperature.csv"
    with data.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["timestamp", "temperature", "anomaly"])
        for moment, value in rows:
            writer.writerow([moment.isoformat(), value, int(any(low <= moment <= high for low, high in borders))])
    values = np.array([value for _, value in rows], dtype=np.float32)
    hours = values[: len(values) // 12 * 12].reshape(-1, 12)
    model = IsolationForest(n_estimators=50, contamination=0.02, random_state=0).fit(hours[:200])
    skops.io.dump(model, tmp_path / "machine.skops")
    spec = '[window]\nlength = 12\n[[channel]]\nname = "temperature"\nunit = "F"\n'
    (tmp_path / "machine.toml").write_text(spec + '[data]\nlabel = "anomaly"\ntime = "timestamp"\n')
    out = tmp_path / "machine.onnx"
    arguments = ["build", str(tmp_path / "machine.skops"), "--spec", str(tmp_path / "machine.toml"),
                 "--data", str(data), "-o", str(out)]  # fmt: skip
    assert main(arguments) == 0
    manifest = manifest_of(out)
    assert manifest.output.threshold == 0.0
    assert manifest.quantization["metric"] == "ROC AUC"
    assert manifest.quantization["differing_labels"] == 0
    score = run(session_of(out.read_bytes()), hours[:, :, None]).score
    assert score is not None
    np.testing.assert_array_equal(score > 0.0, model.predict(hours.astype(np.float64)) == -1)
