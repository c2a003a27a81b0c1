"""Multi-label models: each label that the source's own `predict` says, and each score, on the data and beyond it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import make_column_transformer
from sklearn.decomposition import PCA
from sklearn.ensemble import (
    ExtraTreesClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
    StackingClassifier,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, RidgeClassifier, RidgeClassifierCV
from sklearn.model_selection import GridSearchCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.multioutput import ClassifierChain, MultiOutputClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC
from sklearn.tree import DecisionTreeClassifier, ExtraTreeClassifier

from converter.cli import main
from converter.session import run, session_of
from edge_runtime.bundle.open import open_bundle
from edge_runtime.errors import CommandError
from tests.contract.converter.conftest import Convert

COLUMNS, LABELS = 4, 3
EDGES = (-1e6, -999.0, -1.0, 0.0, 1e-5, 255.0, 65535.0, 1e9)


def readings(n: int = 300, seed: int = 0) -> Any:
    """In float32, as a sensor has them."""
    return np.random.default_rng(seed).normal(size=(n, COLUMNS)).astype(np.float32).astype(np.float64)


def beyond(x: Any) -> Any:
    """Every value in every channel of some row, among readings as they were."""
    found = np.repeat(x[: len(EDGES)], COLUMNS, axis=0)
    for row in range(len(found)):
        found[row, row % COLUMNS] = np.float32(EDGES[row // COLUMNS])
    return np.concatenate([x, found])


def truth(x: Any) -> Any:
    """Three labels, of which any number may be there; the last follows from the others, as a chain likes it."""
    hot, wet = x[:, 0] + 0.3 * x[:, 1] > 0, x[:, 2] ** 2 > x[:, 3] + 0.5
    return np.stack([hot, wet, hot & wet | (x[:, 1] > 1.2)], axis=1).astype(int)


def _lightgbm() -> Any:
    return pytest.importorskip("lightgbm").LGBMClassifier(n_estimators=5, n_jobs=1, verbose=-1)


def _xgboost() -> Any:
    return pytest.importorskip("xgboost").XGBClassifier(n_estimators=8, n_jobs=1)


MODELS: dict[str, Any] = {
    "one logistic regression a label": lambda: MultiOutputClassifier(LogisticRegression()),
    "one support vector machine a label": lambda: make_pipeline(StandardScaler(), MultiOutputClassifier(LinearSVC())),
    "one forest a label": lambda: MultiOutputClassifier(RandomForestClassifier(5, random_state=0)),
    "one calibration a label": lambda: MultiOutputClassifier(CalibratedClassifierCV(LinearSVC(), cv=3)),
    "one pipeline a label": lambda: MultiOutputClassifier(make_pipeline(StandardScaler(), SVC())),
    "one histogram boosting a label": lambda: make_pipeline(
        PCA(3), MultiOutputClassifier(HistGradientBoostingClassifier(max_iter=5))
    ),
    "one LightGBM a label": lambda: MultiOutputClassifier(_lightgbm()),
    "a chain of logistic regressions": lambda: ClassifierChain(LogisticRegression(), order=[2, 0, 1]),
    "a chain of trees behind a scaler": lambda: make_pipeline(
        StandardScaler(), ClassifierChain(DecisionTreeClassifier(max_depth=4, random_state=0), random_state=0)
    ),
    "a chain by probabilities": lambda: ClassifierChain(LogisticRegression(), chain_method="predict_proba"),
    "a chain of XGBoost": lambda: ClassifierChain(_xgboost()),
    "a chain without probabilities": lambda: ClassifierChain(LinearSVC()),
    "one against the rest": lambda: OneVsRestClassifier(LogisticRegression()),
    "machines against the rest": lambda: OneVsRestClassifier(make_pipeline(StandardScaler(), LinearSVC())),
    "trees against the rest": lambda: OneVsRestClassifier(DecisionTreeClassifier(max_depth=4, random_state=0)),
    "one tree": lambda: DecisionTreeClassifier(max_depth=5, random_state=0),
    "one random tree": lambda: ExtraTreeClassifier(max_depth=5, random_state=0),
    "a forest": lambda: RandomForestClassifier(7, random_state=0),
    "extra trees behind a scaler": lambda: make_pipeline(StandardScaler(), ExtraTreesClassifier(7, random_state=0)),
    "neighbours": lambda: KNeighborsClassifier(5),
    "near neighbours behind columns": lambda: make_pipeline(
        make_column_transformer((StandardScaler(), [0, 2]), remainder="passthrough"),
        KNeighborsClassifier(4, weights="distance"),
    ),
    "a network": lambda: make_pipeline(StandardScaler(), MLPClassifier((6, 5), max_iter=300, random_state=0)),
    "a network of tanh": lambda: MLPClassifier((5,), activation="tanh", max_iter=200, random_state=0),
    "ridges": RidgeClassifier,
    "ridges with a search": RidgeClassifierCV,
    "a search over chains": lambda: GridSearchCV(
        ClassifierChain(LogisticRegression()), {"estimator__C": [0.1, 1.0]}, cv=2
    ),
    "XGBoost": _xgboost,
    "XGBoost behind an imputer": lambda: make_pipeline(SimpleImputer(), _xgboost()),
}


def scores_of(model: Any, x: Any) -> Any:
    """The probability of each label by the public methods; of decision values the sigmoid; None where there is none."""
    if hasattr(model, "predict_proba"):
        found = model.predict_proba(x)
        return np.stack([part[:, 1] for part in found], axis=1) if isinstance(found, list) else found
    if hasattr(model, "decision_function"):
        return 1.0 / (1.0 + np.exp(-model.decision_function(x)))
    return None


@pytest.mark.parametrize("name", MODELS)
def test_every_label_and_score_is_the_source_s(name: str, convert: Convert) -> None:
    """On the rows of the training, on others, and beyond both; but for labels whose score is one half to 1e-5."""
    x = readings()
    model = MODELS[name]().fit(x, truth(x))
    asked = beyond(readings(400, seed=1))
    done = convert(model, asked, name="m.joblib")
    assert (done.source.task, done.plan.labels) == ("multilabel", ("label_0", "label_1", "label_2"))
    predicted = np.asarray(model.predict(asked)).astype(int)
    assert 0.1 < predicted.mean() < 0.9
    np.testing.assert_array_equal(done.expected.labels, predicted)
    scores = scores_of(model, asked)
    if scores is None:
        assert any("squashed" in note for note in done.source.notes)
        scores = done.expected.scores
    np.testing.assert_allclose(done.expected.scores, scores, atol=1e-12)
    np.testing.assert_allclose(done.found.scores, scores, atol=2e-5)
    clear = np.abs(scores - 0.5) > 1e-5
    assert clear.mean() > 0.95
    np.testing.assert_array_equal(done.found.labels[clear], predicted[clear])
    assert done.found.labels.dtype == np.int64


@pytest.mark.parametrize(
    "model",
    [
        OneVsRestClassifier(LogisticRegression()),
        RandomForestClassifier(4, random_state=0),
        MultiOutputClassifier(DecisionTreeClassifier(max_depth=2)),
        KNeighborsClassifier(3),
    ],
    ids=lambda model: type(model).__name__,
)
def test_a_label_that_training_saw_always_or_never_stays_so(model: Any, convert: Convert) -> None:
    """A member of one class has a score of one or nought, and its label is there or not in every row."""
    x = readings()
    y = truth(x)
    y[:, 0], y[:, 2] = 0, 1
    model.fit(x, y)
    done = convert(model, beyond(x), name="m.joblib")
    np.testing.assert_array_equal(done.found.labels, model.predict(beyond(x)))
    assert set(done.found.labels[:, 0].tolist()) == {0}
    assert set(done.found.labels[:, 2].tolist()) == {1}
    np.testing.assert_allclose(done.found.scores[:, [0, 2]], np.tile([0.0, 1.0], (len(beyond(x)), 1)), atol=1e-6)


def test_true_and_false_are_one_and_nought(convert: Convert) -> None:
    """Tables of booleans, as pandas makes them."""
    x = readings()
    for model in (MultiOutputClassifier(LogisticRegression()), RandomForestClassifier(4, random_state=0)):
        model.fit(x, truth(x).astype(bool))
        done = convert(model, x, name="m.joblib")
        np.testing.assert_array_equal(done.found.labels, model.predict(x).astype(int))


def test_what_is_not_there_or_not_is_refused_with_what_to_do(convert: Convert) -> None:
    """Several outputs of words or of three classes, members without scores, a stack of several labels."""
    x = readings()
    words = np.stack([np.where(x[:, 0] > 0, "red", "blue"), np.where(x[:, 1] > 0, "on", "off")], axis=1)
    three = np.stack([np.digitize(x[:, 0], [-0.5, 0.5]), (x[:, 1] > 0).astype(int)], axis=1)
    stack = StackingClassifier([("a", KNeighborsClassifier())], RandomForestClassifier(3))
    for model, y, stderr in (
        (MultiOutputClassifier(LogisticRegression()), words, "expected 0 and 1 .* found 'blue', 'red' for output 0"),
        (DecisionTreeClassifier(), three, "found 0, 1, 2 for output 0: convert a model for each output"),
        (stack, truth(x), "no ONNX form is known for a StackingClassifier of several labels: put one estimator a"),
    ):
        with pytest.raises(CommandError, match=stderr):
            convert(model.fit(x, y), x, name="m.joblib")


def test_xgboost_s_own_file_of_several_labels(tmp_path: Path, convert: Convert) -> None:
    """The file that XGBoost saves says the same as its estimator."""
    x = readings()
    model = _xgboost().fit(x, truth(x))
    model.save_model(tmp_path / "m.json")
    (tmp_path / "s.toml").write_text('labels = ["hot", "wet", "both"]\n[data]\nlabel = ["a", "b", "c"]\n')
    lines = ["f0,f1,f2,f3,a,b,c"]
    lines += [",".join(map(str, [*row, *label])) for row, label in zip(x, truth(x), strict=True)]
    (tmp_path / "d.csv").write_text("\n".join(lines) + "\n")
    command = ["build", str(tmp_path / "m.json"), "--spec", str(tmp_path / "s.toml")]
    command += ["--data", str(tmp_path / "d.csv"), "-o", str(tmp_path / "m.onnx"), "--report", str(tmp_path / "r.html")]
    assert main(command) == 0
    manifest = open_bundle(tmp_path / "m.onnx").manifest
    assert (manifest.task, manifest.output.labels) == ("multilabel", ("hot", "wet", "both"))
    asked = beyond(readings(200, seed=2)).astype(np.float32)
    found = run(session_of((tmp_path / "m.onnx").read_bytes()), asked[:, None])
    assert found.labels is not None
    np.testing.assert_array_equal(found.labels, model.predict(asked))
    page = (tmp_path / "r.html").read_text()
    assert "Label by label" in page
    assert manifest.quantization["metric"] == "F1 over all labels"


@pytest.mark.parametrize("loss", ["MultiLogloss", "MultiCrossEntropy"])
def test_catboost_of_several_labels(loss: str, tmp_path: Path) -> None:
    """CatBoost's own labels and probabilities; names of labels as the file has them."""
    catboost = pytest.importorskip("catboost")
    x = readings()
    y = truth(x) if loss == "MultiLogloss" else truth(x).astype(np.float64)
    model = catboost.CatBoostClassifier(
        loss_function=loss, iterations=20, thread_count=1, allow_writing_files=False, verbose=0
    ).fit(x, y)
    model.save_model(str(tmp_path / "m.cbm"))
    np.savez(tmp_path / "d.npz", x=x.astype(np.float32), y=truth(x))
    assert (
        main(["build", str(tmp_path / "m.cbm"), "--data", str(tmp_path / "d.npz"), "-o", str(tmp_path / "m.onnx")]) == 0
    )
    asked = beyond(readings(200, seed=2)).astype(np.float32)
    found = run(session_of((tmp_path / "m.onnx").read_bytes()), asked[:, None])
    assert found.labels is not None
    assert found.scores is not None
    np.testing.assert_allclose(found.scores, model.predict_proba(asked), atol=2e-6)
    np.testing.assert_array_equal(found.labels, np.asarray(model.predict(asked)).astype(int))


def test_a_file_of_onnx_is_a_multi_label_model_where_the_specification_says_so(tmp_path: Path) -> None:
    """Logits become a probability each; the labels take their names from the columns of the truth."""
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    weights = np.random.default_rng(4).normal(size=(COLUMNS, LABELS)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["logits"])],
        "g",
        [helper.make_tensor_value_info("x", 1, ["N", COLUMNS])],
        [helper.make_tensor_value_info("logits", 1, ["N", LABELS])],
        [onnx.numpy_helper.from_array(weights, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    x = readings()
    lines = ["f0,f1,f2,f3,hot,wet,both"]
    lines += [",".join(map(str, [*row, *label])) for row, label in zip(x, truth(x), strict=True)]
    (tmp_path / "d.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "s.toml").write_text('task = "multilabel"\n[data]\nlabel = ["hot", "wet", "both"]\n')
    command = ["build", str(tmp_path / "m.onnx"), "--spec", str(tmp_path / "s.toml"), "--quantize", "none"]
    assert main([*command, "--data", str(tmp_path / "d.csv"), "-o", str(tmp_path / "out.onnx")]) == 0
    bundle = open_bundle(tmp_path / "out.onnx")
    assert bundle.manifest.output.labels == ("hot", "wet", "both")
    found = run(session_of((tmp_path / "out.onnx").read_bytes()), x.astype(np.float32)[:, None])
    logits = x.astype(np.float32) @ weights
    assert found.labels is not None
    assert found.scores is not None
    np.testing.assert_allclose(found.scores, 1 / (1 + np.exp(-logits.astype(np.float64))), atol=1e-6)
    np.testing.assert_array_equal(found.labels, logits > 0)
    (tmp_path / "again.onnx").write_bytes((tmp_path / "out.onnx").read_bytes())  # a bundle is a source, too
    (tmp_path / "a.toml").write_text('labels = ["wet", "both", "hot"]\n')  # in another order
    command = ["build", str(tmp_path / "again.onnx"), "--spec", str(tmp_path / "a.toml"), "--quantize", "none"]
    assert main([*command, "-o", str(tmp_path / "third.onnx")]) == 0
    third = run(session_of((tmp_path / "third.onnx").read_bytes()), x.astype(np.float32)[:, None])
    assert third.labels is not None
    np.testing.assert_array_equal(third.labels, found.labels[:, [1, 2, 0]])


def test_mistakes_about_several_labels_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Names that do not fit, truth that is no 0 and 1, and truth of too few columns."""
    import joblib  # noqa: PLC0415

    x = readings()
    joblib.dump(OneVsRestClassifier(LogisticRegression()).fit(x, truth(x)), tmp_path / "m.pkl")
    cases = [
        ('labels = ["a", "b"]\n', truth(x), "labels: the specification has 2, the model has 3"),
        ("", truth(x) * 2, "expected 3 columns of 0 and 1, one for each of label_0, label_1, label_2, found '2'"),
        ("", truth(x)[:, :2], "expected 3 columns of 0 and 1"),
    ]
    for spec, y, words in cases:
        (tmp_path / "s.toml").write_text(spec)
        np.savez(tmp_path / "d.npz", x=x.astype(np.float32), y=y)
        command = ["build", str(tmp_path / "m.pkl"), "--trust", "--spec", str(tmp_path / "s.toml")]
        assert main([*command, "--data", str(tmp_path / "d.npz"), "-o", str(tmp_path / "m.onnx")]) == 1
        stderr = capsys.readouterr().err
        assert words in stderr
        assert "Traceback" not in stderr


def test_int8_of_several_labels_keeps_them(tmp_path: Path) -> None:
    """A network is quantised, judged by F1, and its bundle tried; `compare` speaks of the same metric."""
    import joblib  # noqa: PLC0415

    x = readings(1200)
    model = MLPClassifier((64, 64), max_iter=120, random_state=0).fit(x, truth(x))
    joblib.dump(model, tmp_path / "m.pkl")
    np.savez(tmp_path / "d.npz", x=x.astype(np.float32), y=truth(x))
    command = ["build", str(tmp_path / "m.pkl"), "--trust", "--data", str(tmp_path / "d.npz"), "--quantize", "int8"]
    assert main([*command, "--max-drop", "0.05", "-o", str(tmp_path / "m.onnx")]) == 0
    manifest = open_bundle(tmp_path / "m.onnx").manifest
    assert "int8" in json.dumps(manifest.quantization)
    found = run(session_of((tmp_path / "m.onnx").read_bytes()), x.astype(np.float32)[:, None])
    assert found.labels is not None
    assert (found.labels == model.predict(x)).mean() > 0.97
