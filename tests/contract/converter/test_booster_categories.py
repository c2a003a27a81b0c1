"""Boosters that split by category, and the objectives of boosters: the oracle is each framework's own prediction."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest

from converter.cli import main
from converter.commands.inspect import manifest_of
from converter.session import run, session_of

pd = pytest.importorskip("pandas")
lightgbm = pytest.importorskip("lightgbm")
xgboost = pytest.importorskip("xgboost")
COLOURS = ["red", "green", "blue", "black", "white"]
SPEC = f"""
[[channel]]
name = "v"
[[channel]]
name = "c"
categories = {COLOURS!r}
""".replace("'", '"')


def table(n: int = 500) -> tuple[Any, Any]:
    """A number, a categorical of pandas whose codes are in another order than the declared texts, and the truth."""
    rng = np.random.default_rng(0)
    v = rng.normal(size=n).astype(np.float32).astype(np.float64)
    c = pd.Categorical(rng.choice(COLOURS[:4], n))
    return pd.DataFrame({"v": v, "c": c}), (np.isin(c, ["red", "black"]) ^ (v > 0)).astype(int)


def forest(**options: Any) -> Any:
    """LightGBM that splits small groups too."""
    few = {"min_data_in_leaf": 5, "min_data_per_group": 5, "cat_smooth": 1.0, "cat_l2": 0.1, "max_cat_to_onehot": 1}
    return lightgbm.LGBMClassifier(n_estimators=12, verbose=-1, n_jobs=1, **few, **options)


def build(file: Path, folder: Path, x: Any, spec: str = "") -> int:
    """The exit code of `build`."""
    np.savez(folder / "d.npz", x=x.astype(np.float32))
    words = ["--trust", "--data", str(folder / "d.npz"), "--quantize", "none", "-o", str(folder / "o.onnx")]
    if spec:
        (folder / "s.toml").write_text(spec)
        words += ["--spec", str(folder / "s.toml")]
    return main(["build", str(file), *words])


def answers(folder: Path, x: Any) -> Any:
    """What the bundle says."""
    return run(session_of((folder / "o.onnx").read_bytes()), x.astype(np.float32)[:, None, :])


def rows(frame: Any) -> Any:
    """Indexes by hand; -1 where there is no text."""
    return np.stack([frame.v, [COLOURS.index(c) if c in COLOURS else -1 for c in frame.c]], axis=1)


ESTIMATORS: dict[str, Callable[[], Any]] = {
    "LightGBM": forest,
    "XGBoost": lambda: xgboost.XGBClassifier(n_estimators=12, n_jobs=1, enable_categorical=True),
    "XGBoost, partitions": lambda: xgboost.XGBClassifier(
        n_estimators=12, n_jobs=1, enable_categorical=True, max_cat_to_onehot=1
    ),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_texts_that_a_booster_was_trained_on_are_declared_in_any_order(name: str, tmp_path: Path) -> None:
    """The estimator's own `predict_proba` on a table; a text without a code is what pandas makes of it: missing."""
    frame, y = table()
    model = ESTIMATORS[name]().fit(frame, y)
    joblib.dump(model, tmp_path / "m.joblib")
    assert build(tmp_path / "m.joblib", tmp_path, rows(frame), SPEC) == 0
    asked = frame.head(60).copy()
    asked["c"] = pd.Categorical([[*COLOURS[:4], None][place % 5] for place in range(60)], frame.c.cat.categories)
    found = answers(tmp_path, rows(asked))
    np.testing.assert_allclose(found.scores, model.predict_proba(asked), atol=2e-6)
    white = asked.assign(c="white")
    np.testing.assert_allclose(
        answers(tmp_path, rows(white)).scores,
        model.predict_proba(asked.assign(c=pd.Categorical([None] * 60, frame.c.cat.categories))),
        atol=2e-6,
    )
    assert manifest_of(tmp_path / "o.onnx").input.channels[1].unknown == "allowed"


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_model_file_knows_its_texts_too(name: str, tmp_path: Path) -> None:
    """The booster's own prediction for the codes is the truth."""
    frame, y = table()
    model = ESTIMATORS[name]().fit(frame, y)
    file = tmp_path / ("m.txt" if name == "LightGBM" else "m.json")
    (model.booster_ if name == "LightGBM" else model).save_model(str(file))
    assert build(file, tmp_path, rows(frame), SPEC) == 0
    np.testing.assert_allclose(answers(tmp_path, rows(frame)).scores, model.predict_proba(frame), atol=2e-6)


@pytest.mark.parametrize("name", ["LightGBM", "XGBoost"])
def test_codes_are_numbers_where_nothing_is_declared(name: str, tmp_path: Path) -> None:
    """Fractions are cut off, and numbers that no set holds go where the framework sends them."""
    rng = np.random.default_rng(1)
    x = np.stack([rng.normal(size=600), rng.integers(0, 9, 600)], axis=1).astype(np.float32)
    y = (np.isin(x[:, 1], [1, 4, 8]) ^ (x[:, 0] > 0)).astype(int)
    asked = x[:80].copy()
    asked[:, 1] = np.resize([0, 1, 8, 9, 77, -1, 4.7, -0.5, 3e9, 2.0], 80)
    if name == "LightGBM":
        model: Any = forest().fit(x, y, categorical_feature=[1])
        model.booster_.save_model(str(tmp_path / "m.txt"))
        expected = model.predict_proba(asked)[:, 1]
        file = tmp_path / "m.txt"
    else:
        matrix = xgboost.DMatrix(x, y, feature_types=["q", "c"], enable_categorical=True)
        options = {"objective": "binary:logistic", "max_cat_to_onehot": 1, "nthread": 1}
        model = xgboost.train(options, matrix, num_boost_round=10)
        model.save_model(str(tmp_path / "m.json"))
        expected = model.inplace_predict(asked)
        file = tmp_path / "m.json"
    assert build(file, tmp_path, x) == 0
    np.testing.assert_allclose(answers(tmp_path, asked).scores[:, 1], expected, atol=2e-6)


def numbers() -> tuple[Any, Any]:
    """Three numbers and two classes."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(300, 3)).astype(np.float32)
    return x, (x[:, 0] + x[:, 1] > 0).astype(int)


def test_lightgbm_one_against_all(tmp_path: Path) -> None:
    """Independent probabilities, as a file and as an estimator; the label is the largest."""
    x, y = numbers()
    y = y + (x[:, 2] > 1)
    model = lightgbm.LGBMClassifier(objective="multiclassova", n_estimators=8, verbose=-1, n_jobs=1).fit(x, y)
    model.booster_.save_model(str(tmp_path / "m.txt"))
    joblib.dump(model, tmp_path / "m.joblib")
    for file in ("m.txt", "m.joblib"):
        assert build(tmp_path / file, tmp_path, x) == 0
        found = answers(tmp_path, x)
        np.testing.assert_allclose(found.scores, model.predict_proba(x), atol=2e-6)
        assert found.label.tolist() == model.predict(x).tolist()


@pytest.mark.parametrize("objective", ["binary:hinge", "binary:logitraw"])
def test_xgboost_without_probabilities(objective: str, tmp_path: Path) -> None:
    """Labels are those of XGBClassifier.predict; hinge is certain, a raw sum has the probability that belongs to it."""
    x, y = numbers()
    model = xgboost.XGBClassifier(objective=objective, n_estimators=8, n_jobs=1).fit(x, y)
    model.save_model(str(tmp_path / "m.json"))
    assert build(tmp_path / "m.json", tmp_path, x) == 0
    found = answers(tmp_path, x)
    assert found.label.tolist() == model.predict(x).tolist()
    sums = model.predict(x, output_margin=True).astype(np.float64)
    expected = (sums > 0).astype(float) if objective == "binary:hinge" else 1 / (1 + np.exp(-sums))
    np.testing.assert_allclose(found.scores[:, 1], expected, atol=2e-6)


@pytest.mark.parametrize("loss", ["bool", "MultiRMSE", "RMSEWithUncertainty"])
def test_catboost_of_other_kinds(loss: str, tmp_path: Path) -> None:
    """Labels that are true and false; several targets; a value with its variance."""
    catboost = pytest.importorskip("catboost")
    x, y = numbers()
    options = {"iterations": 8, "thread_count": 1, "verbose": 0, "allow_writing_files": False}
    if loss == "bool":
        model = catboost.CatBoostClassifier(**options).fit(x, y.astype(bool))
    else:
        truth = np.stack([x[:, 0], x[:, 1] ** 2], axis=1) if loss == "MultiRMSE" else x[:, 0]
        model = catboost.CatBoostRegressor(loss_function=loss, **options).fit(x, truth)
    model.save_model(str(tmp_path / "m.cbm"))
    task = "" if loss == "bool" else 'task = "regression"\n'
    assert build(tmp_path / "m.cbm", tmp_path, x, task) == 0
    found = answers(tmp_path, x)
    if loss == "bool":
        np.testing.assert_allclose(found.scores, model.predict_proba(x), atol=2e-6)
        assert manifest_of(tmp_path / "o.onnx").output.labels == ("False", "True")
    else:
        np.testing.assert_allclose(found.value, model.predict(x), atol=2e-6)


MANY = [f"v{place}" for place in range(12)]
THREE = f"""
[[channel]]
name = "c"
categories = {COLOURS!r}
[[channel]]
name = "v"
range = [-50, 50]
[[channel]]
name = "m"
categories = {[*MANY, "stranger"]!r}
""".replace("'", '"')
CATBOOST: dict[str, dict[str, Any]] = {
    "one hot": {"one_hot_max_size": 255},
    "statistics of one feature": {"one_hot_max_size": 2, "max_ctr_complexity": 1},
    "statistics of several": {"one_hot_max_size": 3, "max_ctr_complexity": 8, "model_size_reg": 0, "iterations": 60},
    "counters": {"one_hot_max_size": 2, "simple_ctr": "Counter", "combinations_ctr": ["Counter"]},
    "several classes": {"one_hot_max_size": 4, "loss_function": "MultiClass"},
    "values": {"loss_function": "RMSE", "one_hot_max_size": 2},
}


def three_columns(n: int = 500, *, colours: Any = COLOURS[:4], many: Any = MANY) -> tuple[Any, Any]:
    """A text, a number and another text, which act together; and the truth."""
    rng = np.random.default_rng(5)
    c, m = rng.integers(0, len(colours), n), rng.integers(0, len(many), n)
    v = rng.normal(size=n).astype(np.float32).astype(np.float64)
    effect = rng.normal(size=(len(colours), len(many), 2))
    total = 2 * effect[c, m, (v > 0).astype(int)] + 3 * effect[c, 0, 0] * (v > 0) + 2 * (v > 0)
    frame = pd.DataFrame({"c": np.array(colours)[c], "v": v, "m": np.array(many)[m]})
    return frame, (total > 0).astype(int)


def indexes(frame: Any) -> Any:
    """What a device makes of the rows; -1 for a text that is not declared."""
    known = [*MANY, "stranger"]
    return np.stack(
        [
            [COLOURS.index(c) if c in COLOURS else -1 for c in frame.c],
            frame.v,
            [known.index(m) if m in known else -1 for m in frame.m],
        ],
        axis=1,
    ).astype(np.float64)


@pytest.mark.parametrize("name", CATBOOST)
def test_catboost_s_categories_are_asked_from_catboost(name: str, tmp_path: Path) -> None:
    """Its own answers for every text, also for one that is declared and that it never saw, and for others."""
    catboost = pytest.importorskip("catboost")
    frame, y = three_columns(2000)
    y = y + (2 * (frame.v > 1.0) if name == "several classes" else 0)
    options = {"iterations": 25, "depth": 5, "thread_count": 1, "verbose": 0, "allow_writing_files": False}
    kind = catboost.CatBoostRegressor if name == "values" else catboost.CatBoostClassifier
    model = kind(cat_features=["c", "m"], random_seed=0, **{**options, **CATBOOST[name]}).fit(frame, y)
    if name == "statistics of several":
        model.save_model(str(tmp_path / "m.json"), format="json")
        parts = [part["elements"] for part in json.loads((tmp_path / "m.json").read_text())["features_info"]["ctrs"]]
        kinds = {tuple(sorted({each["combination_element"] for each in part})) for part in parts}
        assert ("cat_feature_value", "float_feature") in kinds
        assert any(len(part) > 2 for part in parts)
    model.save_model(str(tmp_path / "m.cbm"))
    assert build(tmp_path / "m.cbm", tmp_path, indexes(frame), THREE) == 0
    asked = three_columns(400)[0]
    asked["v"] = np.resize(np.array([*np.linspace(-3, 3, 43), -50, 50, 0]), len(asked)).astype(np.float32)
    asked["m"] = np.resize([*MANY, "stranger", "nothing like it"], len(asked))
    asked["c"] = np.resize([*COLOURS, "purple"], len(asked))
    found = answers(tmp_path, indexes(asked))
    if name == "values":
        np.testing.assert_allclose(found.value[:, 0], model.predict(asked), atol=2e-6)
    else:
        np.testing.assert_allclose(found.scores, model.predict_proba(asked), atol=2e-6)
        assert found.label.tolist() == np.asarray(model.predict(asked)).reshape(-1).tolist()
    assert [channel.unknown for channel in manifest_of(tmp_path / "o.onnx").input.channels] == [
        "allowed", "refused", "allowed"
    ]  # fmt: skip


def test_catboost_takes_missing_numbers_beside_categories(tmp_path: Path) -> None:
    """Also where a statistic is made of a category and a comparison of a number that may be missing."""
    catboost = pytest.importorskip("catboost")
    frame, y = three_columns(1500)
    frame.loc[::7, "v"] = np.nan
    for mode in ("Min", "Max"):
        model = catboost.CatBoostClassifier(
            iterations=40, depth=6, nan_mode=mode, cat_features=["c", "m"], one_hot_max_size=2, max_ctr_complexity=4,
            model_size_reg=0, thread_count=1, verbose=0, allow_writing_files=False, random_seed=0,
        ).fit(frame, y)  # fmt: skip
        model.save_model(str(tmp_path / "m.cbm"))
        spec = THREE.replace("range = [-50, 50]", 'range = [-50, 50]\nmissing = "allowed"')
        assert build(tmp_path / "m.cbm", tmp_path, indexes(frame), spec) == 0
        np.testing.assert_allclose(answers(tmp_path, indexes(frame)).scores, model.predict_proba(frame), atol=2e-6)


def test_catboost_s_categories_are_refused_in_a_sentence_where_they_do_not_convert(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No declared texts, trees of another shape, too many combinations: each with what to do."""
    catboost = pytest.importorskip("catboost")
    monkeypatch.setattr("converter.load.catboost_categories._MOST", 50)
    frame, y = three_columns(2000)
    options = {"thread_count": 1, "verbose": 0, "allow_writing_files": False, "cat_features": ["c", "m"]}
    cases: list[tuple[dict[str, Any], str, str]] = [
        ({}, "", "found none for c, m: say them as categories = [...] in its [[channel]]"),
        ({"grow_policy": "Depthwise"}, THREE, "expected symmetric trees (grow_policy='SymmetricTree', "),
        (CATBOOST["statistics of several"], THREE, " combinations of feature 0, feature"),
    ]
    for more, spec, words in cases:
        model = catboost.CatBoostClassifier(**{"iterations": 5, **options, **more}).fit(frame, y)
        model.save_model(str(tmp_path / "m.cbm"))
        assert build(tmp_path / "m.cbm", tmp_path, np.zeros((20, 3)), spec) == 1
        stderr = capsys.readouterr().err
        assert words in stderr
        assert len(stderr.strip().splitlines()) == 1
