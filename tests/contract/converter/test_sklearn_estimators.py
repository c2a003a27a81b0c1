"""Every kind of scikit-learn model that `docs/converter.md` promises: source and float ONNX, on the same rows."""

from typing import Any

import numpy as np
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.datasets import make_classification, make_regression
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis, QuadraticDiscriminantAnalysis
from sklearn.ensemble import (
    AdaBoostClassifier,
    BaggingClassifier,
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    IsolationForest,
    RandomForestClassifier,
    RandomForestRegressor,
    StackingClassifier,
    VotingClassifier,
)
from sklearn.feature_selection import SelectKBest
from sklearn.gaussian_process import GaussianProcessClassifier, GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel
from sklearn.impute import SimpleImputer
from sklearn.linear_model import (
    ElasticNet,
    LinearRegression,
    LogisticRegression,
    PoissonRegressor,
    Ridge,
    RidgeClassifier,
    SGDClassifier,
    SGDOneClassSVM,
)
from sklearn.model_selection import GridSearchCV, TunedThresholdClassifierCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor, LocalOutlierFactor
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import (
    MaxAbsScaler,
    MinMaxScaler,
    PolynomialFeatures,
    PowerTransformer,
    QuantileTransformer,
    RobustScaler,
    StandardScaler,
)
from sklearn.svm import SVC, SVR, LinearSVC, OneClassSVM
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from edge_runtime.errors import CommandError
from tests.contract.converter.conftest import Convert

TRAINING, COLUMNS = 400, 6

CLASSIFIERS: dict[str, Any] = {
    "logistic regression": LogisticRegression(),
    "MLP": MLPClassifier((16,), max_iter=60, random_state=0),
    "scaled MLP": make_pipeline(StandardScaler(), MLPClassifier((16,), max_iter=60, random_state=0)),
    "decision tree": DecisionTreeClassifier(max_depth=6, random_state=0),
    "random forest": RandomForestClassifier(20, max_depth=8, random_state=0),
    "extra trees": ExtraTreesClassifier(20, random_state=0),
    "gradient boosting": GradientBoostingClassifier(n_estimators=15, random_state=0),
    "histogram boosting": HistGradientBoostingClassifier(max_iter=15, random_state=0),
    "scaled histogram boosting": make_pipeline(StandardScaler(), HistGradientBoostingClassifier(max_iter=15)),
    "PCA and forest": make_pipeline(StandardScaler(), PCA(3), RandomForestClassifier(10, random_state=0)),
    "AdaBoost": AdaBoostClassifier(n_estimators=8, random_state=0),
    "bagging": BaggingClassifier(DecisionTreeClassifier(max_depth=4), n_estimators=5, random_state=0),
    "SVC": SVC(),
    "linear SVC": LinearSVC(),
    "ridge classifier": RidgeClassifier(),
    "SGD, hinge loss": make_pipeline(StandardScaler(), SGDClassifier(random_state=0)),
    "k-NN": KNeighborsClassifier(5),
    "naive Bayes": GaussianNB(),
    "LDA": LinearDiscriminantAnalysis(),
    "QDA": QuadraticDiscriminantAnalysis(),
    "Gaussian process": GaussianProcessClassifier(random_state=0),
    "voting": VotingClassifier([("a", LogisticRegression()), ("b", GaussianNB())], voting="soft"),
    "stacking": StackingClassifier([("a", GaussianNB()), ("b", DecisionTreeClassifier(max_depth=3))]),
    "one against the rest": OneVsRestClassifier(LogisticRegression()),
    "calibrated": CalibratedClassifierCV(LinearSVC(), cv=3),
    "grid search": GridSearchCV(make_pipeline(StandardScaler(), LogisticRegression()), {}, cv=3),
    "column transformer": make_pipeline(
        ColumnTransformer([("a", StandardScaler(), [0, 1, 2]), ("b", MinMaxScaler(), [3, 4])], remainder="passthrough"),
        LogisticRegression(),
    ),
    "feature union": make_pipeline(FeatureUnion([("a", PCA(2)), ("b", StandardScaler())]), LogisticRegression()),
    "imputer, selection, polynomials": make_pipeline(
        SimpleImputer(), SelectKBest(k=4), PolynomialFeatures(2), StandardScaler(), LogisticRegression()
    ),
}
REGRESSORS: dict[str, Any] = {
    "linear regression": LinearRegression(),
    "ridge": Ridge(),
    "elastic net": ElasticNet(alpha=0.1),
    "MLP regressor": make_pipeline(
        StandardScaler(), MLPRegressor(hidden_layer_sizes=(16,), max_iter=60, random_state=0)
    ),
    "decision tree regressor": DecisionTreeRegressor(max_depth=6, random_state=0),
    "random forest regressor": RandomForestRegressor(20, random_state=0),
    "extra trees regressor": ExtraTreesRegressor(20, random_state=0),
    "histogram boosting regressor": HistGradientBoostingRegressor(max_iter=15),
    "gradient boosting regressor": GradientBoostingRegressor(n_estimators=15, random_state=0),
    "SVR": make_pipeline(StandardScaler(), SVR()),
    "k-NN regressor": KNeighborsRegressor(5),
    "Gaussian process regressor": make_pipeline(StandardScaler(), GaussianProcessRegressor(alpha=0.1)),
}
SEVERAL_TARGETS = (
    "linear regression",
    "ridge",
    "MLP regressor",
    "decision tree regressor",
    "random forest regressor",
    "extra trees regressor",
    "k-NN regressor",
)
OUTLIER_DETECTORS: dict[str, Any] = {
    "isolation forest": IsolationForest(n_estimators=25, random_state=0),
    "isolation forest with contamination": IsolationForest(
        n_estimators=25, contamination=0.1, max_features=0.5, random_state=0
    ),
    "scaled isolation forest": make_pipeline(StandardScaler(), IsolationForest(n_estimators=25, random_state=0)),
    "one-class SVM": make_pipeline(StandardScaler(), OneClassSVM(nu=0.1)),
    "local outlier factor": make_pipeline(StandardScaler(), LocalOutlierFactor(novelty=True)),
    "SGD one-class SVM": make_pipeline(StandardScaler(), SGDOneClassSVM(random_state=0)),
}
SCALERS = [StandardScaler(), MinMaxScaler(clip=True), MaxAbsScaler(), RobustScaler(), PowerTransformer(),
           QuantileTransformer(n_quantiles=50)]  # fmt: skip


def rows(n: int, classes: int = 3) -> tuple[Any, Any]:
    """Readings as a sensor gives them: far from zero, in float32."""
    x, y = make_classification(
        n, COLUMNS, n_informative=4, n_redundant=0, n_classes=classes, class_sep=0.7, random_state=1
    )
    return (x * np.array([1.0, 10.0, 0.1, 5.0, 2.0, 1.0]) + 20.0).astype(np.float32).astype(np.float64), y


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_converted_classifier_gives_the_labels_and_scores_of_its_source(
    name: str, classes: int, convert: Convert
) -> None:
    """A converted classifier gives its source's labels on every row, and its scores to 1e-4."""
    x, y = rows(1200, classes)
    done = convert(CLASSIFIERS[name].fit(x[:TRAINING], y[:TRAINING]), x)
    assert np.sum(done.found.label != done.expected.label) == 0
    np.testing.assert_allclose(done.found.scores, done.expected.scores, atol=1e-4)
    np.testing.assert_allclose(np.sum(done.found.scores, axis=1), 1.0, atol=1e-4)


def test_a_gaussian_process_of_several_named_classes_has_a_process_for_each(convert: Convert) -> None:
    """With a kernel that tells the classes apart: labels in words, scores from near 0 to near 1, to 1e-6."""
    x, y = rows(400)
    kernel = ConstantKernel(4.0) * RBF(1.5)
    process = GaussianProcessClassifier(kernel, optimizer=None)
    model = make_pipeline(StandardScaler(), process).fit(x[:200], np.array(["low", "high", "mid"])[y[:200]])
    done = convert(model, x)
    assert done.plan.labels == ("high", "low", "mid")
    np.testing.assert_array_equal(done.found.label, done.expected.label)
    np.testing.assert_allclose(done.found.scores, done.expected.scores, atol=1e-6)
    assert done.found.scores.max() > 0.8
    assert done.found.scores.min() < 0.05
    one_against_one = GaussianProcessClassifier(multi_class="one_vs_one").fit(x[:60], y[:60])
    with pytest.raises(CommandError, match="found 'one_vs_one', which gives no probabilities"):
        convert(one_against_one, x)


@pytest.mark.parametrize(
    ("name", "targets"), [(name, 1) for name in REGRESSORS] + [(name, 2) for name in sorted(SEVERAL_TARGETS)]
)
def test_a_converted_regressor_gives_the_values_of_its_source(name: str, targets: int, convert: Convert) -> None:
    """A converted regressor gives its source's values to 1e-5 of their largest, a column a target."""
    x, _ = rows(600)
    y = make_regression(600, COLUMNS, n_targets=targets, random_state=0)[1]
    done = convert(REGRESSORS[name].fit(x[:TRAINING], y[:TRAINING]), x)
    assert done.found.value.shape == (600, targets)
    assert [target.name for target in done.plan.targets] == [f"output_{i}" for i in range(targets)]
    scale = np.abs(done.expected.value).max()
    np.testing.assert_allclose(done.found.value / scale, done.expected.value / scale, atol=1e-5)


def test_a_log_link_is_kept(convert: Convert) -> None:
    """Boosted trees and linear models with a logarithmic link give values, not logarithms."""
    x, _ = rows(600)
    y = np.exp(x[:, 2] - 20.0)
    for estimator in (
        HistGradientBoostingRegressor(loss="poisson", max_iter=10),
        make_pipeline(StandardScaler(), PoissonRegressor()),
    ):
        done = convert(estimator.fit(x, y), x)
        np.testing.assert_allclose(done.found.value, done.expected.value, rtol=1e-4)


@pytest.mark.parametrize("name", OUTLIER_DETECTORS)
def test_a_converted_outlier_detector_flags_what_its_source_flags(name: str, convert: Convert) -> None:
    """The anomaly score is the negative decision function: above the threshold is what the source flags."""
    x, _ = rows(800)
    detector = OUTLIER_DETECTORS[name].fit(x[:TRAINING])
    x[::10] += np.random.default_rng(0).normal(size=(80, COLUMNS)) * 20.0
    done = convert(detector, x)
    assert done.plan.threshold == 0.0
    flagged = detector.predict(x.astype(np.float32).astype(np.float64)) == -1
    assert 0 < flagged.sum() < len(x)
    assert np.sum((done.found.score > done.plan.threshold) != flagged) == 0
    np.testing.assert_allclose(done.found.score, done.expected.score, atol=1e-4 * np.abs(done.expected.score).max())


@pytest.mark.parametrize("scaler", SCALERS, ids=lambda scaler: type(scaler).__name__)
@pytest.mark.parametrize("trees", ["random forest", "histogram boosting", "gradient boosting", "extra trees"])
def test_a_scaler_before_trees_changes_no_comparison(scaler: Any, trees: str, convert: Convert) -> None:
    """Readings that stand exactly on a scaled threshold go the way that scikit-learn sends them, on every row."""
    x, y = rows(4000)
    x = np.round(x * 8) / 8  # few different readings, so that many of them are a threshold
    pipeline = make_pipeline(scaler, CLASSIFIERS[trees]).fit(x[:2000], y[:2000])
    done = convert(pipeline, x)
    np.testing.assert_allclose(done.found.scores, done.expected.scores, atol=2e-6)
    assert np.sum(done.found.label != done.expected.label) == 0


@pytest.mark.parametrize("classes", [("off", "on"), (3, 7), (False, True), (-1, 1), (0.0, 1.0)])
@pytest.mark.parametrize("name", ["logistic regression", "random forest", "MLP", "SVC", "k-NN"])
def test_classes_of_any_type_become_labels(name: str, classes: Any, convert: Convert) -> None:
    """Text, numbers and truth values as classes become label names, and the graph says their position."""
    x, y = rows(500, 2)
    done = convert(CLASSIFIERS[name].fit(x, np.array(classes)[y]), x)
    assert done.plan.labels == tuple(str(int(c)) if isinstance(c, float) else str(c) for c in classes)
    assert np.sum(done.found.label != done.expected.label) == 0


def test_the_label_is_the_source_s_own_choice_even_where_it_is_not_the_largest_score(convert: Convert) -> None:
    """A tuned decision threshold is kept: the label may be a class whose score is below one half."""
    x, y = rows(600, 2)
    y[y == 1] = np.random.default_rng(0).random(int((y == 1).sum())) < 0.5
    tuned = TunedThresholdClassifierCV(LogisticRegression(), scoring="recall", cv=3).fit(x, y)
    done = convert(tuned, x, name="model.joblib")
    assert np.sum(done.found.label != done.expected.label) == 0
    assert np.sum(done.found.label != done.found.scores.argmax(axis=1)) > 0


def test_a_pipeline_trained_on_named_columns_keeps_the_names(convert: Convert) -> None:
    """A column transformer that picks columns by name works on plain windows, and the names become the channels."""
    pandas = pytest.importorskip("pandas")
    x, y = rows(300)
    frame = pandas.DataFrame(x, columns=list("abcdef"))
    picked = ColumnTransformer([("s", StandardScaler(), ["b", "d"]), ("m", MinMaxScaler(), ["a"])])
    done = convert(make_pipeline(picked, LogisticRegression()).fit(frame, y), x)
    assert [channel.name for channel in done.plan.input.channels] == list("abcdef")
    assert np.sum(done.found.label != done.expected.label) == 0
