"""Outputs of `predict` for tensors, detections and several labels: each format gives back what the model answered."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet

from edge_runtime.batch.run import PredictOptions, predict
from edge_runtime.bundle.model import Model
from edge_runtime.bundle.open import open_bundle
from edge_runtime.errors import CommandError
from tests.support import builders


def made(draft: builders.Draft, folder: Path) -> tuple[Path, Path, dict[str, Any]]:
    """A bundle, recorded windows, and what the model answers to them."""
    bundle = draft.save(folder / "m.onnx")
    model = Model(open_bundle(bundle))
    x = np.random.default_rng(1).normal(size=(9, *model.manifest.input.tensor_shape)).astype(np.float32)
    np.savez(folder / "in.npz", x=x)
    return bundle, folder / "in.npz", model.run(x).arrays()


def scored(bundle: Path, data: Path, suffix: str, **more: Any) -> Path:
    """The output in a format."""
    output = data.with_name(f"out{suffix}")
    predict(PredictOptions(bundle, [str(data)], output, **more))
    return output


def test_tensors_keep_their_shape_and_bits(tmp_path: Path) -> None:
    """Arrays in NumPy's files, nested JSON in text, lists with their sizes in Parquet."""
    bundle, data, wanted = made(builders.tensors(), tmp_path)
    with np.load(scored(bundle, data, ".npz")) as archive:
        assert {name: archive[name].tobytes() for name in archive.files} == {
            name: part.tobytes() for name, part in wanted.items()
        }
        assert archive["heat"].shape == (9, 2, 3)
    table = np.load(scored(bundle, data, ".npy"))
    assert table["heat"].tobytes() == wanted["heat"].tobytes()
    assert table["peak"].dtype.base == np.int64
    rows = [json.loads(line) for line in scored(bundle, data, ".jsonl").read_text().splitlines()]
    assert np.array([row["heat"] for row in rows], np.float32).tobytes() == wanted["heat"].tobytes()
    with scored(bundle, data, ".csv").open(newline="") as file:
        texts = list(csv.DictReader(file))
    assert [json.loads(row["peak"]) for row in texts] == wanted["peak"].tolist()
    columns = parquet.read_table(scored(bundle, data, ".parquet"))
    assert np.array(columns["heat"].to_pylist(), np.float32).tobytes() == wanted["heat"].tobytes()


def test_detections_are_objects_in_text_and_arrays_in_numpy_s_files(tmp_path: Path) -> None:
    """A row without a detection is left out of the objects, and has the label -1 in the arrays."""
    bundle, data, wanted = made(builders.detection(labels=("cat", "dog, large")), tmp_path)
    labels = ("cat", "dog, large")
    expected = [
        [
            {"label": labels[int(label)], "score": score, "box": box}
            for label, score, box in zip(*row, strict=True)
            if label >= 0
        ]
        for row in zip(
            *(wanted[name].astype(np.float64).tolist() for name in ("label", "scores", "boxes")), strict=True
        )
    ]
    rows = [json.loads(line)["detections"] for line in scored(bundle, data, ".jsonl").read_text().splitlines()]
    assert [[each["label"] for each in row] for row in rows] == [[each["label"] for each in row] for row in expected]
    found = [np.float32(each["score"]) for row in rows for each in row]
    assert found == [np.float32(each["score"]) for row in expected for each in row]
    with scored(bundle, data, ".csv").open(newline="") as file:
        assert [json.loads(row["detections"]) for row in csv.DictReader(file)] == rows
    with np.load(scored(bundle, data, ".npz")) as archive:
        assert archive["label"].tobytes() == wanted["label"].tobytes()
    columns = parquet.read_table(scored(bundle, data, ".parquet"))["detections"].to_pylist()
    assert [[each["label"] for each in row] for row in columns] == [[each["label"] for each in row] for row in rows]


def test_truth_is_not_read_for_tensors(tmp_path: Path) -> None:
    """`--label` is refused in a sentence."""
    bundle, data, _ = made(builders.tensors(task="embedding"), tmp_path)
    with pytest.raises(CommandError, match="--label: a model of the kind embedding is not judged"):
        scored(bundle, data, ".csv", truth=["y"])


def test_each_of_several_labels_has_two_columns_in_every_format(tmp_path: Path) -> None:
    """Whether it is there, and its score, with the bits of the model."""
    bundle, data, wanted = made(builders.multilabel(labels=("hot", "wet, cold")), tmp_path)
    names = ["present_hot", "present_wet, cold", "score_hot", "score_wet, cold"]
    columns = dict(zip(names, [*(wanted["labels"] == 1).T, *wanted["scores"].T], strict=True))
    assert 0 < wanted["labels"].sum() < wanted["labels"].size
    with np.load(scored(bundle, data, ".npz")) as archive:
        assert {name: archive[name].tobytes() for name in archive.files} == {
            name: column.tobytes() for name, column in columns.items()
        }
    table = np.load(scored(bundle, data, ".npy"))
    assert table["present_hot"].tolist() == columns["present_hot"].tolist()
    rows = [json.loads(line) for line in scored(bundle, data, ".jsonl").read_text().splitlines()]
    with scored(bundle, data, ".csv").open(newline="") as file:
        texts = list(csv.DictReader(file))
    arrow = parquet.read_table(scored(bundle, data, ".parquet"))
    assert list(rows[0]) == list(texts[0]) == arrow.column_names == names
    for name, column in columns.items():
        for found in (arrow[name].to_pylist(), [row[name] for row in rows], [json.loads(row[name]) for row in texts]):
            assert np.array(found, column.dtype).tobytes() == column.tobytes()


def test_several_labels_are_judged_by_a_column_of_truth_each(tmp_path: Path) -> None:
    """F1 over all labels together and of each; a window with an empty truth is not judged."""
    bundle = builders.multilabel(labels=("hot", "wet")).save(tmp_path / "m.onnx")
    model = Model(open_bundle(bundle))
    x = np.random.default_rng(1).normal(size=(40, 1, 3)).astype(np.float32)
    there = model.run(x).arrays()["labels"]
    truth = there.copy()
    truth[:4, 0] = 1 - truth[:4, 0]  # four errors of 79 cells that are judged
    lines = ["temperature,humidity,pressure,a,b"]
    for row, (hot, wet) in zip(x[:, 0], truth, strict=True):
        lines.append(",".join([*map(str, row), "true" if hot else "false", str(wet)]))
    lines[-1] = lines[-1][: lines[-1].rindex(",")] + ","
    (tmp_path / "d.csv").write_text("\n".join(lines) + "\n")
    summary = predict(PredictOptions(bundle, [str(tmp_path / "d.csv")], None, truth=("a", "b")))
    answered = summary.evaluation
    hits = int((there[:39] & truth[:39]).sum())
    errors = int((there[:39] != truth[:39]).sum())
    assert errors == 4
    assert answered[:2] == [
        "evaluation over 39 windows, 1 without a truth",
        f"F1 over all labels {2 * hits / (2 * hits + errors):.4f}",
    ]
    assert answered[-1].split()[:4] == ["wet", "1.0000", "1.0000", "1.0000"]
    with pytest.raises(CommandError, match=r"--label: expected 2 columns \(for hot, wet\), found 1"):
        scored(bundle, tmp_path / "d.csv", ".csv", truth=("a",))
