"""`[uncertainty]` from the specification to what a subscriber, a request and a recorded file's predictions carry."""

import contextlib
import csv
import io
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import skops.io
from numpy.typing import NDArray
from pyarrow import parquet
from sklearn.linear_model import LinearRegression, LogisticRegression

from converter.cli import main as convert
from edge_runtime.bundle.model import Model
from edge_runtime.bundle.open import open_bundle
from edge_runtime.cli import main as runtime
from edge_runtime.config.tables import ModelTable
from edge_runtime.delivery.payloads import convention
from edge_runtime.http.oip_v2 import infer, metadata
from edge_runtime.http.predict_api import predict
from edge_runtime.http.scorer import Scorer
from edge_runtime.http.served_model import Served
from edge_runtime.stream.decide import Decider

SPEC = """
name = "m"
task = "{task}"
{more}
[[channel]]
name = "x"
[[channel]]
name = "y"
[uncertainty]
coverage = {coverage}
"""


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """A bundle of three labels that overlap, from 6,000 rows of which 2,000 trained it."""
    rng = np.random.default_rng(1)
    label = rng.integers(3, size=6000)
    rows = (rng.normal(size=(6000, 2)) + np.array([[0, 0], [2, 0], [0, 2]])[label]).astype(np.float32)
    names = np.array(["idle", "low", "high"])[label]
    model = LogisticRegression().fit(rows[:2000], names[:2000])
    return _build(tmp_path, model, SPEC.format(task="classification", more="", coverage=0.9), rows, truth=names)


@pytest.fixture
def values(tmp_path: Path) -> Path:
    """A bundle of two targets with noise of different width."""
    rng = np.random.default_rng(2)
    rows = rng.normal(size=(6000, 2)).astype(np.float32)
    truth = rows @ np.array([[1.0, 2.0], [-1.0, 0.5]]) + rng.normal(size=(6000, 2)) * [0.1, 1.0]
    model = LinearRegression().fit(rows[:2000], truth[:2000])
    return _build(
        tmp_path, model, SPEC.format(task="regression", more='targets = ["p", "q"]', coverage=0.8), rows, truth=truth
    )


def _build(folder: Path, model: object, spec: str, rows: NDArray[Any], *, truth: NDArray[Any]) -> Path:
    skops.io.dump(model, folder / "m.skops")
    (folder / "m.toml").write_text(spec)
    for name, part in (("calibration", slice(2000, 4000)), ("evaluation", slice(4000, 6000))):
        np.savez(folder / f"{name}.npz", x=rows[part, np.newaxis], y=truth[part])
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        done = convert(
            ["build", str(folder / "m.skops"), "--spec", str(folder / "m.toml"), "-o", str(folder / "m.onnx"),
             "--calibration", str(folder / "calibration.npz"), "--evaluation", str(folder / "evaluation.npz")]
        )  # fmt: skip
    assert done == 0
    (folder / "printed.txt").write_text(printed.getvalue())
    return folder / "m.onnx"


def _served(bundle: Path) -> Served:
    return Served("m", Model(open_bundle(bundle)), device="d", start=1)


def _asked(served: Served, rows: NDArray[Any], output: str) -> Any:
    """One output of a request of tensors."""
    given = {"name": "window", "datatype": "FP32", "shape": list(rows.shape), "data": rows.ravel().tolist()}
    answer = json.loads(Scorer().score(infer(served, json.dumps({"inputs": [given]}).encode(), None)).body)
    return next(each for each in answer["outputs"] if each["name"] == output)


def test_sets_are_the_same_whichever_way_the_window_comes_in(classes: Path, tmp_path: Path) -> None:
    """Stream payloads, requests by name and of tensors, and recorded files; held on the unseen rows within a point."""
    printed = (tmp_path / "printed.txt").read_text()
    assert "uncertainty: asked for 0.9, " in printed
    assert "2,000 rows of" in printed
    served = _served(classes)
    found = served.manifest.uncertainty
    assert found is not None
    assert (found.coverage, found.rows, found.checked) == (0.9, 2000, 2000)
    assert found.held == pytest.approx(0.9, abs=0.02)
    rows = np.load(tmp_path / "evaluation.npz")["x"][:200]
    scores = served.model.run(np.ascontiguousarray(rows))
    assert scores.scores is not None
    least = np.float32(found.least or 0)
    labels = served.manifest.output.labels
    expected = [[label for label, score in zip(labels, row, strict=True) if score >= least] for row in scores.scores]
    assert {len(each) for each in expected} >= {1, 2}

    decider = Decider(served.manifest, ModelTable(name="m", bundle="m", source="s"))
    for name, read in (("json", json.loads), ("msgpack", msgspec.msgpack.decode)):
        payload = convention(name).make(
            device="d", model="m", source="s", start=1, manifest=served.manifest, threshold=None
        )
        for row in range(20):
            prediction = decider.decide(scores, row, None, 0.0)
            assert prediction is not None
            assert read(payload.encode(prediction))["set"] == expected[row]

    body = json.dumps({"x": float(rows[0, 0, 0]), "y": float(rows[0, 0, 1])}).encode()
    assert json.loads(Scorer().score(predict(served, body)).body)["set"] == expected[0]
    request = {
        "inputs": [{"name": "window", "datatype": "FP32", "shape": list(rows.shape), "data": rows.ravel().tolist()}]
    }
    answer = json.loads(Scorer().score(infer(served, json.dumps(request).encode(), None)).body)
    tensor = next(each for each in answer["outputs"] if each["name"] == "set")
    assert (tensor["datatype"], tensor["shape"]) == ("INT64", [200, 3])
    members = np.array(tensor["data"]).reshape(200, 3)
    assert [[label for label, there in zip(labels, row, strict=True) if there] for row in members] == expected
    assert {"name": "set", "datatype": "INT64", "shape": [-1, 3]} in metadata(served)["outputs"]

    with (tmp_path / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["x", "y"], *rows[:, 0].tolist()])
    for suffix in ("csv", "jsonl", "parquet", "npz"):
        out = tmp_path / f"out.{suffix}"
        assert runtime(["predict", str(classes), str(tmp_path / "rows.csv"), "-o", str(out)]) == 0
        if suffix == "parquet":
            lines = parquet.read_table(out).to_pylist()
        elif suffix == "npz":
            arrays = np.load(out)
            lines = [{name: arrays[name][row] for name in arrays.files} for row in range(200)]
        else:
            with out.open() as file:
                lines = list(csv.DictReader(file)) if suffix == "csv" else [json.loads(line) for line in file]
        found_sets = [[label for label in labels if line[f"set_{label}"] in ("true", True)] for line in lines]
        assert found_sets == expected


def test_intervals_are_the_same_whichever_way_the_window_comes_in(values: Path, tmp_path: Path) -> None:
    """Of each target by itself; ends are float32, and hold the truth in the share asked for."""
    assert "uncertainty: asked for 0.8, " in (tmp_path / "printed.txt").read_text()
    served = _served(values)
    found = served.manifest.uncertainty
    assert found is not None
    assert found.half[0] < 0.2
    assert found.half[1] > 1
    data = np.load(tmp_path / "evaluation.npz")
    scores = served.model.run(np.ascontiguousarray(data["x"]))
    assert scores.value is not None
    half = np.array(found.half, np.float32)
    low, high = scores.value - half, scores.value + half
    inside = ((low <= data["y"]) & (data["y"] <= high)).mean(axis=0)
    assert inside == pytest.approx([0.8, 0.8], abs=0.03)
    body = json.dumps({"x": float(data["x"][0, 0, 0]), "y": float(data["x"][0, 0, 1])}).encode()
    document = json.loads(Scorer().score(predict(served, body)).body)
    for place, name in enumerate(("p", "q")):
        assert np.array(document["interval"][name], np.float32).tolist() == [low[0, place], high[0, place]]
    request = {
        "inputs": [{"name": "window", "datatype": "FP32", "shape": [1, 1, 2], "data": data["x"][0].ravel().tolist()}]
    }
    answer = json.loads(Scorer().score(infer(served, json.dumps(request).encode(), None)).body)
    tensor = next(each for each in answer["outputs"] if each["name"] == "interval")
    assert tensor["shape"] == [1, 2, 2]
    assert np.array(tensor["data"], np.float32) == pytest.approx(np.stack([low[0], high[0]], axis=-1).ravel())


def test_a_specification_that_cannot_be_held_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No truth, too little data, no data, and a coverage that is none."""
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(60, 2)).astype(np.float32)
    label = (rows[:, 0] > 0).astype(int)
    skops.io.dump(LogisticRegression().fit(rows, label), tmp_path / "m.skops")
    np.savez(tmp_path / "few.npz", x=rows[:, np.newaxis], y=label)
    np.savez(tmp_path / "bare.npz", x=rows[:, np.newaxis])
    for coverage, data, sentence in (
        (0.99, ["--data", "few.npz"], "expected at least 99 rows to calibrate a coverage of 0.99 by, found 17"),
        (0.9, ["--data", "bare.npz"], "expected rows with their truth to calibrate by, found none"),
        (0.9, [], "[uncertainty]: expected --data, or --calibration and --evaluation, found neither"),
        (1.5, ["--data", "few.npz"], "uncertainty.coverage: expected more than 0 and less than 1, found 1.5"),
    ):
        (tmp_path / "m.toml").write_text(SPEC.format(task="classification", more="", coverage=coverage))
        given = [str(tmp_path / each) if each.endswith("npz") else each for each in data]
        arguments = ["build", str(tmp_path / "m.skops"), "--spec", str(tmp_path / "m.toml"), *given]
        assert convert([*arguments, "-o", str(tmp_path / "m.onnx")]) == 1
        assert sentence in capsys.readouterr().err
        assert not (tmp_path / "m.onnx").exists()
