"""What `build` says of trees: what was left out, and how many answers a scaler in float32 would have moved."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import onnx
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from converter.cli import main
from converter.commands.inspect import manifest_of
from converter.graph.shrink import Saving
from converter.graph.trees import drifting_rows
from converter.load.sklearn_trees import forest_of
from converter.session import run, session_of

ROWS = 20_000


def grid(rows: int = ROWS) -> tuple[Any, Any]:
    """Readings as sensors round them, so that many stand on a threshold; float32 values."""
    rng = np.random.default_rng(0)
    x = np.round(rng.normal(size=(rows, 4)) * 32) / 32 * np.array([1.0, 50.0, 0.2, 3.0]) + 11.0
    y = (x[:, 0] + x[:, 1] / 50 + rng.normal(size=rows) * 0.2 > 11.22).astype(int)
    return x.astype(np.float32).astype(np.float64), y


@pytest.mark.parametrize("kind", ["xgboost", "histogram boosting", "random forest"])
def test_the_drift_of_a_scaler_in_float32_is_detected_told_and_cured(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 20,000 rows some would go another way; the bundle answers every one of them as the source does."""
    if kind == "xgboost":
        model = pytest.importorskip("xgboost").XGBClassifier(n_estimators=60, max_depth=6, n_jobs=1)
    elif kind == "random forest":
        model = RandomForestClassifier(30, random_state=0)
    else:
        model = HistGradientBoostingClassifier(max_iter=60, random_state=0)
    x, y = grid()
    pipeline = make_pipeline(StandardScaler(), model).fit(x[:4000], y[:4000])
    joblib.dump(pipeline, tmp_path / "m.joblib")
    np.savez(tmp_path / "d.npz", x=x, y=y)
    out = tmp_path / "m.onnx"
    arguments = ["build", str(tmp_path / "m.joblib"), "--trust", "--data", str(tmp_path / "d.npz"), "-o", str(out)]
    assert main([*arguments, "--report", str(tmp_path / "r.html")]) == 0
    printed = re.search(r"in float32, (\d+) of 10000 rows would go another way", capsys.readouterr().out)
    assert printed is not None
    assert int(printed[1]) > 0
    record = manifest_of(out).quantization
    assert printed[0] in record["float32_drift"]
    assert printed[0] in (tmp_path / "r.html").read_text()
    assert record["differing_labels"] == 0
    found = run(session_of(out.read_bytes()), x.astype(np.float32)[:, None, :]).label
    np.testing.assert_array_equal(found, pipeline.predict(x))


def test_rows_drift_where_float32_takes_another_branch() -> None:
    """Counted by hand for a forest of one split: the rows whose scaled value rounds over the threshold."""
    x, y = grid(3000)
    scaler = StandardScaler().fit(x)
    parts = forest_of(HistGradientBoostingClassifier(max_iter=1, max_leaf_nodes=2).fit(scaler.transform(x), y))
    assert parts is not None
    forest = parts[0]
    assert (forest.feature >= 0).sum() == 1
    feature = int(forest.feature.max())
    exact = scaler.transform(x)[:, feature]
    rough = scaler.transform(x.astype(np.float32)).astype(np.float32)[:, feature]
    # A threshold that is the scaled value of a reading, as XGBoost chooses them: float32 may put it on the other side.
    threshold = exact[np.flatnonzero(rough > exact.astype(np.float32))[0]]
    moved = replace(forest, threshold=np.where(forest.feature >= 0, threshold, 0.0))
    expected = int(((exact <= threshold) != (rough <= np.float32(threshold))).sum())
    assert expected > 0
    assert drifting_rows(moved, x.astype(np.float32), scaler.transform) == expected
    assert drifting_rows(moved, np.full((3, 4), 1e9, dtype=np.float32)) == 0


def exported(tmp_path: Path, kind: str) -> tuple[Path, Any]:
    """A forest as another converter writes it."""
    from skl2onnx import to_onnx  # noqa: PLC0415

    x = np.round(np.random.default_rng(0).normal(size=(500, 3)) * 4).astype(np.float32) / 4
    y = np.where(x[:, 0] + x[:, 1] > 0, "up", "down")
    path = tmp_path / "foreign.onnx"
    if kind == "skl2onnx":
        fitted = RandomForestClassifier(8, random_state=0).fit(x, y)
        onnx.save(to_onnx(fitted, x[:1], target_opset={"": 17, "ai.onnx.ml": 3}), path)
    else:
        catboost = pytest.importorskip("catboost")
        model = catboost.CatBoostClassifier(
            iterations=20, depth=6, verbose=False, thread_count=1, allow_writing_files=False
        )
        model.fit(x, y).save_model(str(path), format="onnx")
    return path, x


@pytest.mark.parametrize("kind", ["skl2onnx", "catboost"])
def test_what_is_left_out_of_a_forest_is_stated_and_changes_no_answer(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """ZipMap, attributes and splits that say nothing: counted, with their bytes, in output, manifest and report."""
    path, x = exported(tmp_path, kind)
    np.savez(tmp_path / "d.npz", x=x)
    out, page = tmp_path / "out.onnx", tmp_path / "r.html"
    assert main(["build", str(path), "--data", str(tmp_path / "d.npz"), "-o", str(out), "--report", str(page),
                 *_spec(tmp_path)]) == 0  # fmt: skip
    answered, record = capsys.readouterr().out, manifest_of(out).quantization
    left = {each["what"]: each for each in record["left_out"]}
    assert {"ZipMap", "lists of tree attributes that say nothing", "names inside the graph"} <= set(left)
    for each in record["left_out"]:
        assert str(Saving(**each)) in answered
        assert each["what"] in page.read_text()
    if kind == "catboost":  # its trees are full, whatever their paths contradict
        assert left["tree nodes that decide nothing"]["count"] > 100
        assert record["bytes"] < path.stat().st_size / 2
    assert record["differing_labels"] == 0
    raw = session_of(path.read_bytes()).run(None, {_input(path): x})
    found = run(session_of(out.read_bytes()), x[:, None, :])
    assert [manifest_of(out).output.labels[i] for i in np.asarray(found.label)] == list(raw[0])
    columns = [[row[label] for label in manifest_of(out).output.labels] for row in raw[1]]
    np.testing.assert_array_equal(found.scores, np.array(columns, dtype=np.float32))
    capsys.readouterr()
    assert main(["inspect", str(out)]) == 0
    assert "left out" in capsys.readouterr().out


def _spec(tmp_path: Path) -> list[str]:
    (tmp_path / "s.toml").write_text('task = "classification"')
    return ["--spec", str(tmp_path / "s.toml")]


def _input(path: Path) -> str:
    return str(onnx.load(path).graph.input[0].name)


def test_a_graph_that_would_round_differently_is_left_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The smaller graph is held to the larger one to the bit, on the rows that judge."""
    path, x = exported(tmp_path, "skl2onnx")
    np.savez(tmp_path / "d.npz", x=x)

    def off_by_a_bit(model: onnx.ModelProto, **_: bool) -> tuple[onnx.ModelProto, tuple[Saving, ...]]:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        for node in copy.graph.node:
            for attribute in node.attribute:
                if attribute.name == "class_weights":
                    attribute.floats[:] = np.nextafter(np.float32(attribute.floats), np.float32(9)).tolist()
        return copy, (Saving("bits", 1, 1),)

    monkeypatch.setattr("converter.conversion.shrunk", off_by_a_bit)
    out = tmp_path / "out.onnx"
    assert main(["build", str(path), "--data", str(tmp_path / "d.npz"), "-o", str(out), *_spec(tmp_path)]) == 0
    assert "left as it is: the graph without its unused parts would round differently" in capsys.readouterr().out
    assert "bits" not in {each["what"] for each in manifest_of(out).quantization["left_out"]}
