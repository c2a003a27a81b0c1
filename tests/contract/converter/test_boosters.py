"""XGBoost and LightGBM: the booster, its estimator in a pipeline, and the float ONNX, on the same rows."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from converter.cli import main
from converter.commands.inspect import manifest_of
from converter.load import open_model
from converter.normal_form import normal_form
from converter.plan import agree
from converter.quantize import Recipe, candidate
from converter.session import run, session_of
from converter.spec import Spec
from tests.contract.converter.conftest import Convert

ROWS = 3000


def rows(classes: int) -> tuple[Any, Any]:
    """Readings on a coarse grid, so that many of them are a threshold."""
    rng = np.random.default_rng(0)
    x = np.round(rng.normal(size=(ROWS, 5)) * 16) / 16 * np.array([1.0, 20.0, 0.1, 3.0, 1.0]) + 7.0
    score = x[:, 0] + x[:, 1] / 20 + np.sin(x[:, 3]) + rng.normal(size=ROWS) * 0.3
    x = x.astype(np.float32).astype(np.float64)
    if classes == 0:
        return x, np.abs(score) + 0.1
    return x, np.digitize(score, np.quantile(score, np.linspace(0, 1, classes + 1)[1:-1]))


def answers(path: Path, x: Any) -> tuple[Any, Any, Any]:
    """The source's answer, the float ONNX's, and the plan."""
    source = open_model(path, Spec(), trust=False)
    plan = agree(Spec(), source, path)
    windows = x.astype(np.float32)[:, None, :]
    model = candidate(normal_form(source.core(), plan), Recipe("none"), windows).model
    return source.predict(windows), run(session_of(model), windows), plan


def assert_same(expected: Any, found: Any) -> None:
    """Equal labels; scores and values to 2e-6 of their largest."""
    if expected.value is not None:
        scale = np.abs(expected.value).max()
        np.testing.assert_allclose(found.value / scale, expected.value / scale, atol=2e-6)
    else:
        assert np.sum(expected.label != found.label) == 0
        np.testing.assert_allclose(found.scores, expected.scores, atol=2e-6)


@pytest.mark.parametrize("suffix", [".json", ".ubj"])
@pytest.mark.parametrize(
    ("objective", "classes"),
    [
        ("binary:logistic", 2),
        ("multi:softprob", 4),
        ("reg:squarederror", 0),
        ("count:poisson", 0),
        ("reg:gamma", 0),
    ],
)
def test_an_xgboost_file_gives_its_own_answers(objective: str, classes: int, suffix: str, tmp_path: Path) -> None:
    """Labels are equal on every row, and scores to 2e-6; the names inside the file become the channels."""
    xgboost = pytest.importorskip("xgboost")
    x, y = rows(classes)
    settings = {"objective": objective, "max_depth": 4, "nthread": 1, **({"num_class": 4} if classes == 4 else {})}
    data = xgboost.DMatrix(x, y, feature_names=list("abcde"))
    xgboost.train(settings, data, 20).save_model(tmp_path / f"m{suffix}")
    expected, found, plan = answers(tmp_path / f"m{suffix}", x)
    assert_same(expected, found)
    assert [channel.name for channel in plan.input.channels] == list("abcde")


def test_training_that_stopped_early_counts_up_to_the_best_round(tmp_path: Path) -> None:
    """As XGBoost's own estimator does."""
    xgboost = pytest.importorskip("xgboost")
    x, y = rows(2)
    model = xgboost.XGBClassifier(n_estimators=80, learning_rate=1.0, early_stopping_rounds=3, n_jobs=1)
    model.fit(x[:500], y[:500], eval_set=[(x[500:], y[500:])], verbose=False)
    model.save_model(tmp_path / "m.json")
    assert model.best_iteration < model.get_booster().num_boosted_rounds() - 1
    _, found, _ = answers(tmp_path / "m.json", x)
    np.testing.assert_array_equal(found.label, model.predict(x))
    np.testing.assert_allclose(found.scores, model.predict_proba(x), atol=2e-6)


def test_dart_and_parallel_trees_are_kept(tmp_path: Path) -> None:
    """Weights of dropped trees and forests of several trees a round are part of the sum."""
    xgboost = pytest.importorskip("xgboost")
    x, y = rows(4)
    for extra in ({"booster": "dart", "rate_drop": 0.4, "seed": 1}, {"num_parallel_tree": 3, "subsample": 0.5}):
        settings = {"objective": "multi:softprob", "num_class": 4, "nthread": 1, **extra}
        xgboost.train(settings, xgboost.DMatrix(x, y), 10).save_model(tmp_path / "m.json")
        expected, found, _ = answers(tmp_path / "m.json", x)
        assert_same(expected, found)


@pytest.mark.parametrize("kind", ["xgboost", "lightgbm"])
@pytest.mark.parametrize("classes", [2, 3, 0])
def test_a_scaler_before_boosted_trees_changes_no_answer(kind: str, classes: int, convert: Convert) -> None:
    """The known float32 drift does not happen: no row differs, not even one that stands on a threshold."""
    library = pytest.importorskip(kind)
    prefix = "XGB" if kind == "xgboost" else "LGBM"
    settings = {"n_estimators": 20, "n_jobs": 1, **({"verbose": -1} if kind == "lightgbm" else {})}
    model = getattr(library, prefix + ("Classifier" if classes else "Regressor"))(**settings)
    x, y = rows(classes)
    pipeline = make_pipeline(StandardScaler(), model).fit(
        x, np.array(["a", "b", "c"])[y] if kind == "lightgbm" and classes else y
    )
    done = convert(pipeline, x, name="model.joblib")
    assert_same(done.expected, done.found)


@pytest.mark.parametrize(
    ("objective", "classes"), [("binary", 2), ("multiclass", 4), ("regression", 0), ("poisson", 0), ("tweedie", 0)]
)
def test_a_lightgbm_file_gives_its_own_answers(objective: str, classes: int, tmp_path: Path) -> None:
    """Labels are equal on every row, and scores to 2e-6."""
    lightgbm = pytest.importorskip("lightgbm")
    x, y = rows(classes)
    settings = {"objective": objective, "verbose": -1, "num_threads": 1, **({"num_class": 4} if classes == 4 else {})}
    lightgbm.train(settings, lightgbm.Dataset(x, y), 20).save_model(tmp_path / "m.txt")
    expected, found, _ = answers(tmp_path / "m.txt", x)
    assert_same(expected, found)


@pytest.mark.parametrize("boosting", ["rf", "dart"])
def test_lightgbm_forests_and_dropped_trees_are_kept(boosting: str, tmp_path: Path) -> None:
    """A random forest averages its trees; dropped trees weigh less."""
    lightgbm = pytest.importorskip("lightgbm")
    x, y = rows(2)
    settings = {"objective": "binary", "boosting": boosting, "bagging_freq": 1, "bagging_fraction": 0.6,
                "verbose": -1, "num_threads": 1}  # fmt: skip
    lightgbm.train(settings, lightgbm.Dataset(x, y), 20).save_model(tmp_path / "m.txt")
    expected, found, _ = answers(tmp_path / "m.txt", x)
    assert_same(expected, found)


@pytest.mark.shared_data
def test_the_can_bus_classifier_answers_10000_rows_as_xgboost_does(shared_data: Path) -> None:
    """800 published trees: no label of 10,000 rows differs, and no probability by more than 2e-6."""
    pytest.importorskip("xgboost")
    path = shared_data / "can-bus-xgboost" / "xgboost_model.json"
    source = open_model(path, Spec(), trust=False)
    thresholds = source._forest.threshold[source._forest.feature >= 0]  # type: ignore[attr-defined]
    feature = source._forest.feature[source._forest.feature >= 0]  # type: ignore[attr-defined]
    rng = np.random.default_rng(0)
    used = [np.append(thresholds[feature == column], 0.0) for column in range(8)]
    x = np.stack([rng.choice(values, 10_000) for values in used], axis=1)
    x[5000:] *= 1.0 + rng.normal(size=(5000, 8)) * 0.1
    expected, found, plan = answers(path, x)
    assert_same(expected, found)
    assert plan.input.channels[0].name == "CAN_ID_Inter_Arrival"


def test_build_takes_a_booster_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command says that trees are not quantised, and names the framework in the manifest."""
    xgboost = pytest.importorskip("xgboost")
    x, y = rows(2)
    xgboost.XGBClassifier(n_estimators=5, n_jobs=1).fit(x, y).save_model(tmp_path / "m.json")
    np.savez(tmp_path / "d.npz", x=x, y=y)
    assert (
        main(["build", str(tmp_path / "m.json"), "--data", str(tmp_path / "d.npz"), "-o", str(tmp_path / "m.onnx")])
        == 0
    )
    assert "trees are not quantised" in capsys.readouterr().out
    assert manifest_of(tmp_path / "m.onnx").source.framework == "XGBoost"


def test_parts_without_an_onnx_form_are_refused_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Linear boosters, zero as a missing value, ranking objectives, linear trees, and damaged files."""
    xgboost = pytest.importorskip("xgboost")
    lightgbm = pytest.importorskip("lightgbm")
    x, y = rows(2)
    quiet = {"verbose": -1, "num_threads": 1}
    xgboost.train({"booster": "gblinear", "nthread": 1}, xgboost.DMatrix(x, y), 2).save_model(tmp_path / "linear.json")
    xgboost.train({"objective": "survival:cox", "nthread": 1}, xgboost.DMatrix(x, y), 2).save_model(
        tmp_path / "cox.json"
    )
    zeros = lightgbm.Dataset(np.round(x), y)
    lightgbm.train({"objective": "binary", "zero_as_missing": True, **quiet}, zeros, 3).save_model(
        tmp_path / "zero.txt"
    )
    lightgbm.train({"linear_tree": True, **quiet}, lightgbm.Dataset(x, y), 2).save_model(tmp_path / "linear.txt")
    (tmp_path / "cut.txt").write_text((tmp_path / "linear.txt").read_text()[:2000])
    (tmp_path / "cut.json").write_text((tmp_path / "cox.json").read_text()[:2000])
    for name, message in (
        ("linear.json", "found a gblinear model"),
        ("cox.json", "objective 'survival:cox'"),
        ("zero.txt", "found one with zero as missing"),
        ("linear.txt", "found a linear tree"),
        ("cut.txt", "found a truncated one"),
        ("cut.json", "found a damaged or other file"),
    ):
        capsys.readouterr()
        assert main(["build", str(tmp_path / name), "--quantize", "none", "-o", str(tmp_path / "o.onnx")]) == 1
        stderr = capsys.readouterr().err
        assert message in stderr
        assert len(stderr.strip().splitlines()) == 1
        assert not (tmp_path / "o.onnx").exists()
