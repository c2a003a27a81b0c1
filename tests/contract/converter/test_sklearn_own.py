"""Estimators of scikit-learn that are written by us: anomalies without a verdict, centres, dummies, steps of curves."""

import sys
import types
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.covariance import EllipticEnvelope
from sklearn.decomposition import PCA
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.ensemble import RandomForestRegressor
from sklearn.impute import MissingIndicator, SimpleImputer
from sklearn.isotonic import IsotonicRegression
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LogisticRegression
from sklearn.mixture import BayesianGaussianMixture, GaussianMixture
from sklearn.multioutput import MultiOutputRegressor, RegressorChain
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline
from sklearn.preprocessing import MinMaxScaler, RobustScaler, StandardScaler

from converter.cli import main
from converter.commands.inspect import manifest_of
from converter.session import run, session_of
from tests.contract.converter.conftest import Convert


def rows(n: int = 300) -> Any:
    """Two clouds of readings on different scales, in float32."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 3)) * [1.0, 20.0, 0.1] + np.where(rng.random(n) < 0.4, 4.0, 0.0)[:, None] * [1, 20, 0.1]
    return x.astype(np.float32).astype(np.float64)


def build(model: Any, folder: Path, x: Any) -> int:
    """The exit code of `build`."""
    joblib.dump(model, folder / "m.joblib")
    np.savez(folder / "d.npz", x=x)
    words = ["--trust", "--data", str(folder / "d.npz"), "--quantize", "none", "-o", str(folder / "o.onnx")]
    return main(["build", str(folder / "m.joblib"), *words])


def answers(folder: Path, x: Any) -> Any:
    """What the bundle says."""
    return run(session_of((folder / "o.onnx").read_bytes()), x.astype(np.float32)[:, None, :])


def far() -> Any:
    """Readings beyond those of the training."""
    return np.array([[-999.0, 0.0, 0.0], [0.0, 65535.0, 0.0], [9.0, 90.0, 9.0], [0.0, 0.0, 0.0]])


@pytest.mark.parametrize("kind", ["full", "tied", "diag", "spherical"])
@pytest.mark.parametrize("mixture", [GaussianMixture, BayesianGaussianMixture])
def test_a_mixture_is_scored_by_its_density(mixture: Any, kind: str, convert: Convert) -> None:
    """The oracle is `score_samples`."""
    model = make_pipeline(StandardScaler(), mixture(n_components=2, covariance_type=kind, random_state=0)).fit(rows())
    done = convert(model, rows())
    np.testing.assert_allclose(done.found.score, -model.score_samples(rows()), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(
    "model", [KMeans(3, random_state=0), make_pipeline(RobustScaler(), MiniBatchKMeans(3, random_state=0))]
)
def test_k_means_is_scored_by_the_nearest_centre(
    model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The oracle is `transform`; the threshold is the 0.99 quantile of the data, as of any model without one."""
    model.fit(rows())
    assert build(model, tmp_path, rows()) == 0
    assert "the anomaly score is the distance to the nearest centre" in capsys.readouterr().out
    for asked in (rows(), far()):
        np.testing.assert_allclose(answers(tmp_path, asked).score, model.transform(asked).min(axis=1), rtol=2e-6)
    threshold = manifest_of(tmp_path / "o.onnx").output.threshold
    assert threshold == pytest.approx(np.quantile(model.transform(rows()).min(axis=1), 0.99), rel=1e-6)


@pytest.mark.parametrize("whiten", [False, True])
def test_pca_is_scored_by_what_it_does_not_rebuild(whiten: bool, tmp_path: Path) -> None:
    """The oracle is `inverse_transform` of `transform`, behind a scaler on the scaled values."""
    model = make_pipeline(StandardScaler(), PCA(1, whiten=whiten)).fit(rows())
    assert build(model, tmp_path, rows()) == 0
    for asked in (rows(), far()):
        scaled = model[0].transform(asked)
        expected = ((scaled - model[1].inverse_transform(model[1].transform(scaled))) ** 2).mean(axis=1)
        np.testing.assert_allclose(answers(tmp_path, asked).score, expected, rtol=2e-6, atol=1e-9)


def test_an_elliptic_envelope_flags_what_scikit_learn_flags(tmp_path: Path) -> None:
    """Its own threshold is 0, and the score its negative decision."""
    model = make_pipeline(StandardScaler(), EllipticEnvelope(random_state=0)).fit(rows())
    assert build(model, tmp_path, rows()) == 0
    for asked in (rows(), far()):
        found = answers(tmp_path, asked).score
        np.testing.assert_allclose(found, -model.decision_function(asked), rtol=1e-5, atol=1e-5)
        assert (found > 0).tolist() == (model.predict(asked) == -1).tolist()


@pytest.mark.parametrize("priors", ["uniform", "empirical"])
@pytest.mark.parametrize("shrink", [None, 0.2])
def test_the_nearest_centroid(priors: str, shrink: float | None, tmp_path: Path) -> None:
    """With equal priors its label and its probabilities follow different distances; both are its own."""
    x = rows()
    y = np.array(["a", "b", "c"])[(x[:, 0] > 1).astype(int) + (x[:, 1] > 60)]
    model = NearestCentroid(priors=priors, shrink_threshold=shrink).fit(x, y)
    assert build(model, tmp_path, x) == 0
    found = answers(tmp_path, x)
    assert model.classes_[found.label].tolist() == model.predict(x).tolist()
    np.testing.assert_allclose(found.scores, model.predict_proba(x), atol=1e-5)


@pytest.mark.parametrize("strategy", ["prior", "most_frequent", "constant"])
def test_a_dummy_is_the_baseline_that_it_is(strategy: str, tmp_path: Path) -> None:
    """One answer to all rows, also to a single one."""
    x = rows()
    y = (x[:, 0] > 3).astype(int)
    model = make_pipeline(StandardScaler(), DummyClassifier(strategy=strategy, constant=1)).fit(x, y)
    assert build(model, tmp_path, x) == 0
    for asked in (x, x[:1]):
        found = answers(tmp_path, asked)
        assert found.label.tolist() == model.predict(asked).tolist()
        np.testing.assert_allclose(found.scores, model.predict_proba(asked), atol=1e-7)


def test_a_dummy_for_values_and_several_targets(tmp_path: Path) -> None:
    """The mean of each target."""
    x = rows()
    model = make_pipeline(StandardScaler(), DummyRegressor().fit(x, x[:, :2])).fit(x, x[:, :2])
    assert build(model, tmp_path, x) == 0
    np.testing.assert_allclose(answers(tmp_path, x).value, model.predict(x), rtol=1e-6)


def test_an_isotonic_regression_of_one_channel(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Level beyond its ends; without `clip` it has no answer there, and is refused."""
    x = rows()[:, :1]
    y = np.exp(x[:, 0] / 4)
    assert build(IsotonicRegression(out_of_bounds="clip").fit(x, y), tmp_path, x) == 0
    asked = np.linspace(-9, 15, 200)[:, None].astype(np.float32)
    expected = IsotonicRegression(out_of_bounds="clip").fit(x, y).predict(asked)
    np.testing.assert_allclose(answers(tmp_path, asked).value[:, 0], expected, rtol=1e-5)
    assert build(IsotonicRegression().fit(x, y), tmp_path, x) == 1
    assert "fit it with 'clip'" in capsys.readouterr().err


def test_answers_at_random_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A bundle gives the same answer to the same reading."""
    x = rows()
    assert build(DummyClassifier(strategy="uniform").fit(x, x[:, 0] > 1), tmp_path, x) == 1
    assert "found 'uniform', which answers at random" in capsys.readouterr().err


def test_indicators_of_what_is_missing(tmp_path: Path) -> None:
    """An imputer with indicators, and indicators beside one, for a number that stands for a missing value."""
    x = rows()
    x[::5, 0] = -999.0
    x[::7, 2] = -999.0
    y = (x[:, 0] < -900) ^ (x[:, 1] > 30)
    beside = FeatureUnion([("f", SimpleImputer(missing_values=-999.0)), ("i", MissingIndicator(missing_values=-999.0))])
    for step in (SimpleImputer(missing_values=-999.0, add_indicator=True, strategy="median"), beside):
        model = make_pipeline(step, MinMaxScaler(clip=True), LogisticRegression()).fit(x, y)
        assert build(model, tmp_path, x) == 0
        np.testing.assert_allclose(answers(tmp_path, x).scores, model.predict_proba(x), atol=1e-5)


def test_samplers_of_imbalanced_learn_do_nothing_at_prediction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pipeline is scikit-learn's with steps that only training uses; here stands one of the same making."""
    module = types.ModuleType("imblearn_of_this_test")

    class Sampler:
        """Only for training."""

        def get_params(self, deep: bool = True) -> dict[str, Any]:
            """None."""
            del deep
            return {}

        def fit_resample(self, x: Any, y: Any) -> Any:
            """The same rows."""
            return x, y

    class SamplingPipeline(Pipeline):  # type: ignore[misc]
        """As imbalanced-learn does it: prediction passes by the samplers."""

        def fit(self, x: Any, y: Any) -> Any:
            """Fit every step that is no sampler."""
            for _, step in self.steps[:-1]:
                x = step.fit(x, y).transform(x) if hasattr(step, "transform") else x
            self.steps[-1][1].fit(x, y)
            return self

        def _iter(self, with_final: bool = True, filter_passthrough: bool = True) -> Any:
            steps = super()._iter(with_final, filter_passthrough)
            return (each for each in steps if not hasattr(each[2], "fit_resample"))

    for each in (Sampler, SamplingPipeline):
        each.__module__, each.__qualname__ = module.__name__, each.__name__
        setattr(module, each.__name__, each)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    x = rows()
    y = (x[:, 0] > 3).astype(int)
    model = SamplingPipeline([("a", StandardScaler()), ("s", Sampler()), ("m", LogisticRegression())]).fit(x, y)
    assert build(model, tmp_path, x) == 0
    np.testing.assert_allclose(answers(tmp_path, x).scores, model.predict_proba(x), atol=1e-5)


def test_a_pickle_names_the_package_that_it_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An estimator of a package that is not installed cannot be asked, so that nothing could be proven."""
    (tmp_path / "m.pkl").write_bytes(b"cimblearn_that_nobody_has.pipeline\nPipeline\n.")
    words = ["--trust", "--quantize", "none", "-o", str(tmp_path / "o.onnx")]
    assert main(["build", str(tmp_path / "m.pkl"), *words]) == 1
    assert "it needs the package 'imblearn_that_nobody_has', which is not installed" in capsys.readouterr().err


@pytest.mark.parametrize("several", [MultiOutputRegressor, RegressorChain])
@pytest.mark.parametrize("base", ["trees", "LightGBM", "XGBoost"])
def test_several_targets_of_any_regressor(several: Any, base: str, tmp_path: Path) -> None:
    """One regressor a target, boosters included; in a chain each sees what those before it have reported."""
    member: Any = RandomForestRegressor(5, random_state=0)
    if base == "LightGBM":
        member = pytest.importorskip("lightgbm").LGBMRegressor(n_estimators=8, verbose=-1, n_jobs=1)
    elif base == "XGBoost":
        member = pytest.importorskip("xgboost").XGBRegressor(n_estimators=8, n_jobs=1)
    x = rows()
    y = np.stack([x[:, 0] * 2, x[:, 1] - x[:, 0]], axis=1)
    extra = {"order": [1, 0]} if several is RegressorChain else {}
    model = make_pipeline(StandardScaler(), several(member, **extra)).fit(x, y)
    assert build(model, tmp_path, x) == 0
    np.testing.assert_allclose(answers(tmp_path, x).value, model.predict(x), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kernel", ["linear", "poly", "rbf", "sigmoid"])
def test_kernel_ridge(kernel: str, tmp_path: Path) -> None:
    """In float64, as its kernels are sums of many terms."""
    x = rows()
    model = make_pipeline(StandardScaler(), KernelRidge(kernel=kernel, alpha=1.0)).fit(x, x[:, 0] - x[:, 2] * 9)
    assert build(model, tmp_path, x) == 0
    np.testing.assert_allclose(answers(tmp_path, x).value[:, 0], model.predict(x), rtol=1e-5, atol=1e-5)


def test_a_kernel_that_is_not_known_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the kernels that are."""
    model = KernelRidge(kernel="laplacian").fit(rows(), rows()[:, 0])
    assert build(model, tmp_path, rows()) == 1
    assert "found 'laplacian': use one of these" in capsys.readouterr().err
