"""CatBoost: the model, its ONNX export and the bundle, on the same rows."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converter.cli import main
from converter.commands.inspect import manifest_of
from converter.session import run, session_of

catboost = pytest.importorskip("catboost")


@pytest.mark.parametrize("classes", [("off", "on"), (0, 1), ("a", "b", "c"), ()])
def test_a_catboost_file_gives_its_own_answers(
    classes: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Labels are equal on every row and scores to 2e-6; for trees a note says that they are not quantised."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1000, 4)).astype(np.float32)
    settings = {"iterations": 25, "depth": 4, "verbose": False, "thread_count": 1, "allow_writing_files": False}
    score = x[:, 0] + np.sin(2 * x[:, 1])
    if classes:
        y = np.array(classes)[np.digitize(score, np.quantile(score, np.linspace(0, 1, len(classes) + 1)[1:-1]))]
        model = catboost.CatBoostClassifier(**settings).fit(x, y)
    else:
        y = score
        model = catboost.CatBoostRegressor(**settings).fit(x, y)
    model.save_model(str(tmp_path / "m.cbm"))
    np.savez(tmp_path / "d.npz", x=x, y=y)
    (tmp_path / "s.toml").write_text("" if classes else 'task = "regression"')
    out = tmp_path / "m.onnx"
    arguments = ["--spec", str(tmp_path / "s.toml"), "--data", str(tmp_path / "d.npz"), "-o", str(out)]
    assert main(["build", str(tmp_path / "m.cbm"), *arguments]) == 0
    assert "trees are not quantised" in capsys.readouterr().out
    found, manifest = run(session_of(out.read_bytes()), x[:, None, :]), manifest_of(out)
    assert manifest.source.framework == "CatBoost"
    if not classes:
        assert found.value is not None
        np.testing.assert_allclose(found.value[:, 0], model.predict(x), atol=1e-5)
        return
    assert found.scores is not None
    assert manifest.output.labels == tuple(map(str, classes))
    np.testing.assert_allclose(found.scores, model.predict_proba(x), atol=2e-6)
    assert [manifest.output.labels[i] for i in np.asarray(found.label)] == [
        str(v) for v in model.predict(x).reshape(-1)
    ]


def test_a_damaged_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One message, no file."""
    (tmp_path / "m.cbm").write_bytes(b"CBM1" + b"\0" * 40)
    assert main(["build", str(tmp_path / "m.cbm"), "--quantize", "none", "-o", str(tmp_path / "o.onnx")]) == 1
    assert "expected a CatBoost model" in capsys.readouterr().err
