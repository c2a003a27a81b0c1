"""Nothing but a sentence leaves `build`: models that once ended in a traceback, and errors of every stage."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.ensemble import VotingClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import SVR, OneClassSVM
from sklearn.tree import DecisionTreeClassifier

from converter.cli import main
from converter.commands.inspect import manifest_of
from converter.load.sklearn import SklearnModel
from converter.session import run, session_of
from tests.support.waiting import patient

ROOT = Path(__file__).resolve().parents[3]


def rows(n: int = 200, columns: int = 3) -> tuple[Any, Any]:
    """Readings and two classes."""
    x = np.random.default_rng(0).normal(size=(n, columns)).astype(np.float32).astype(np.float64)
    return x, (x[:, 0] > 0).astype(int)


def build(model: Any, folder: Path, x: Any, y: Any = None, *, spec: str = "") -> int:
    """The exit code of `build`."""
    joblib.dump(model, folder / "m.joblib")
    np.savez(folder / "d.npz", x=x, **({} if y is None else {"y": y}))
    (folder / "s.toml").write_text(spec)
    words = ["--spec", str(folder / "s.toml"), "--data", str(folder / "d.npz"), "--quantize", "none"]
    return main(["build", str(folder / "m.joblib"), "--trust", *words, "-o", str(folder / "o.onnx")])


def bundle(folder: Path, x: Any) -> Any:
    """What the bundle answers."""
    return run(session_of((folder / "o.onnx").read_bytes()), x.astype(np.float32)[:, None, :])


@pytest.mark.parametrize(
    "case", ["a stranger's function", "regressors of several labels", "k-NN of several labels", "outputs of words"]
)
def test_what_does_not_fit_is_one_sentence(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It names the estimator, what is expected, and what to do."""
    x, y = rows()
    several = np.c_[y, 1 - y, y]
    words_of = np.where(several, "on", "off")
    far = KNeighborsClassifier(metric="canberra").fit(x, several)
    vote = OneVsRestClassifier(LinearRegression()).fit(x, several)
    strange = make_pipeline(FunctionTransformer(np.gradient, kw_args={"axis": 1}), LogisticRegression())
    model, words = {
        "a stranger's function": (strange.fit(x, y), "found gradient with arguments: use one of these"),
        "regressors of several labels": (vote, "found a LinearRegression that has neither predict_proba nor"),
        "k-NN of several labels": (far, "expected a metric of euclidean, manhattan, chebyshev, found 'canberra'"),
        "outputs of words": (DecisionTreeClassifier().fit(x, words_of), "found 'off', 'on' for output 0: convert"),
    }[case]
    assert build(model, tmp_path, x) == 1
    message = capsys.readouterr().err
    assert words in message
    assert len(message.strip().splitlines()) == 1
    assert not (tmp_path / "o.onnx").exists()


def test_an_xgboost_model_of_several_labels_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where each leaf holds a value a label; ONNX's trees have them, but XGBoost's file does not say them so."""
    xgboost = pytest.importorskip("xgboost")
    x, y = rows()
    how = {"multi_strategy": "multi_output_tree", "tree_method": "hist"}
    model = xgboost.XGBClassifier(n_estimators=3, n_jobs=1, **how).fit(x, np.c_[y, 1 - y])
    model.save_model(tmp_path / "m.json")
    assert main(["build", str(tmp_path / "m.json"), "--quantize", "none", "-o", str(tmp_path / "o.onnx")]) == 1
    message = capsys.readouterr().err
    assert "found several in tree 0: train it with multi_strategy='one_output_per_tree'" in message
    assert len(message.strip().splitlines()) == 1


PICKED = [slice(0, 2), [True, True, False], slice("a", "b"), ["a", "b"], make_column_selector(pattern="[ab]")]


@pytest.mark.parametrize("columns", PICKED, ids=lambda columns: type(columns).__name__)
def test_columns_may_be_slices_masks_names_and_functions(columns: Any, tmp_path: Path) -> None:
    """What was fitted says which columns they were."""
    pandas = pytest.importorskip("pandas")
    x, y = rows()
    picked = make_column_transformer((StandardScaler(), columns))
    model = make_pipeline(picked, LogisticRegression()).fit(pandas.DataFrame(x, columns=list("abc")), y)
    assert build(model, tmp_path, x, y) == 0
    np.testing.assert_allclose(
        bundle(tmp_path, x).scores, model.predict_proba(pandas.DataFrame(x, columns=list("abc"))), atol=1e-5
    )


def test_an_estimator_that_does_not_say_its_columns_takes_those_of_the_specification(tmp_path: Path) -> None:
    """Releases of scikit-learn before 1.0 wrote no `n_features_in_`."""
    x, y = rows()
    model = GaussianNB().fit(x, y)
    expected = model.predict_proba(x)
    del model.n_features_in_
    spec = "".join(f'[[channel]]\nname = "{name}"\n' for name in "abc")
    assert build(model, tmp_path, x, y, spec=spec) == 0
    np.testing.assert_allclose(bundle(tmp_path, x).scores, expected, atol=1e-5)


def test_weights_of_a_vote_may_be_a_list(tmp_path: Path) -> None:
    """As users write them."""
    x, y = rows()
    voters = [("a", LogisticRegression()), ("b", GaussianNB())]
    model = VotingClassifier(voters, voting="soft", weights=[1, 2]).fit(x, y)
    assert build(model, tmp_path, x, y) == 0
    np.testing.assert_allclose(bundle(tmp_path, x).scores, model.predict_proba(x), atol=1e-5)


@pytest.mark.parametrize("kernel", ["poly", "rbf", "linear", "sigmoid"])
def test_small_differences_of_large_terms_are_computed_in_float64(kernel: str, tmp_path: Path) -> None:
    """A one-class machine with a polynomial kernel answers within 1e-6 of its source, whatever its terms."""
    x = np.random.default_rng(0).normal(size=(400, 6)) * [1, 10, 0.1, 5, 2, 1] + 20
    x = x.astype(np.float32).astype(np.float64)
    for machine in (OneClassSVM(kernel=kernel, nu=0.05), SVR(kernel=kernel)):
        model = make_pipeline(StandardScaler(), machine)
        model.fit(x, x[:, 1])
        assert build(model, tmp_path, x) == 0
        found = bundle(tmp_path, x)
        if found.score is not None:
            expected = -model.decision_function(x)
            np.testing.assert_allclose(found.score, expected, atol=1e-6 * np.abs(expected).max())
        else:
            np.testing.assert_allclose(found.value[:, 0], model.predict(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("predict", "asking the model in scikit-learn failed: KeyError: "),
        ("core", "converting it to ONNX failed: TypeError: no way: use another estimator or step"),
        ("load", "loading it failed: RuntimeError: broken"),
    ],
)
def test_a_foreign_error_is_named_with_its_stage(
    where: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a framework raises is one line with the file and what was being done."""
    x, _ = rows()
    honest = SklearnModel._call

    def call(self: Any, method: str, asked: Any) -> Any:
        if len(asked) != 2:
            raise KeyError("a row of the\ndatabase")
        return honest(self, method, asked)

    def core(self: Any) -> Any:
        raise TypeError("no way\nat all")

    def init(self: Any, *_: Any) -> Any:
        raise RuntimeError("broken")

    if where == "predict":
        monkeypatch.setattr(SklearnModel, "_call", call)
    elif where == "core":
        monkeypatch.setattr(SklearnModel, "core", core)
    elif where == "load":
        monkeypatch.setattr(SklearnModel, "__init__", init)
    assert build(LinearRegression().fit(x, x[:, 0]), tmp_path, x) == 1
    message = capsys.readouterr().err
    assert words in message
    assert len(message.strip().splitlines()) == 1


def test_a_pickle_of_another_release_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The manifest names the release that made it, and the output both."""
    x, y = rows()
    joblib.dump(LogisticRegression().fit(x, y), tmp_path / "m.joblib")
    import sklearn  # noqa: PLC0415

    data = (tmp_path / "m.joblib").read_bytes()
    ours = sklearn.__version__.encode()
    older = b"1.1.1" if len(ours) == 5 else ours[:-1] + b"z"
    (tmp_path / "m.joblib").write_bytes(data.replace(ours, older))
    np.savez(tmp_path / "d.npz", x=x, y=y)
    words = ["--trust", "--data", str(tmp_path / "d.npz"), "--quantize", "none", "-o", str(tmp_path / "o.onnx")]
    assert main(["build", str(tmp_path / "m.joblib"), *words]) == 0
    assert f"made with scikit-learn {older.decode()} and read with {ours.decode()}" in capsys.readouterr().out
    assert manifest_of(tmp_path / "o.onnx").source.version == older.decode()


def test_the_program_says_nothing_foreign_on_standard_error(tmp_path: Path) -> None:
    """Deprecations, convergence and devices that were looked for are nothing that its user can act on."""
    x, y = rows()
    joblib.dump(KNeighborsClassifier().fit(x, y), tmp_path / "m.joblib")
    np.savez(tmp_path / "d.npz", x=x, y=y)
    done = subprocess.run(
        [sys.executable, "-W", "always", "-m", "converter.cli", "build", str(tmp_path / "m.joblib"), "--trust",
         "--data", str(tmp_path / "d.npz"), "--quantize", "none", "-o", str(tmp_path / "o.onnx")],
        cwd=ROOT, capture_output=True, text=True, timeout=patient(200), check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
