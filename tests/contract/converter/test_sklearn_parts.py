"""Votes, stacks, transformed targets and steps of scikit-learn: source and float ONNX, on the data and beyond it."""

from typing import Any

import numpy as np
import pytest
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.ensemble import (
    ExtraTreesRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    StackingClassifier,
    StackingRegressor,
    VotingClassifier,
)
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    KBinsDiscretizer,
    MinMaxScaler,
    Normalizer,
    PowerTransformer,
    QuantileTransformer,
    RobustScaler,
    SplineTransformer,
    StandardScaler,
)
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from edge_runtime.errors import CommandError
from tests.contract.converter.conftest import Convert

COLUMNS, TRAINING = 4, 300
INFINITY = np.float32(np.inf)
EDGES = (-1e6, -999.0, -1.0, -1e-6, 0.0, 1e-9, 1e-5, 255.0, 65535.0, 1e9)


def rows(n: int = 600) -> Any:
    """Positive readings in float32, as a sensor has them."""
    return (np.random.default_rng(0).gamma(2.0, 2.0, (n, COLUMNS)) + 0.25).astype(np.float32).astype(np.float64)


def beyond(x: Any, values: Any = EDGES) -> Any:
    """Every value in every channel of some row, among readings as they were."""
    found = np.repeat(x[: len(values)], COLUMNS, axis=0)
    for row in range(len(found)):
        found[row, row % COLUMNS] = np.float32(values[row // COLUMNS])
    return np.concatenate([x, found])


def classes(x: Any, several: int) -> Any:
    """As many classes as asked for, of all channels."""
    total = x.sum(axis=1) + 3.0 * np.sin(x[:, 0] * 2.0)
    return np.digitize(total, np.quantile(total, np.arange(1, several) / several))


def boosters(kind: str) -> list[tuple[str, Any]]:
    """Those that are installed, of the kind `Classifier` or `Regressor`."""
    found: list[tuple[str, Any]] = []
    xgboost = pytest.importorskip("xgboost")
    lightgbm = pytest.importorskip("lightgbm")
    found.append(("x", getattr(xgboost, f"XGB{kind}")(n_estimators=6, n_jobs=1)))
    found.append(("l", getattr(lightgbm, f"LGBM{kind}")(n_estimators=6, n_jobs=1, verbose=-1)))
    histogram = HistGradientBoostingClassifier if kind == "Classifier" else HistGradientBoostingRegressor
    found.append(("h", make_pipeline(StandardScaler(), histogram(max_iter=6))))
    return found


@pytest.mark.parametrize("weights", [None, [0.1, 0.2, 0.3]])
@pytest.mark.parametrize("several", [2, 3])
def test_a_hard_vote_gives_its_source_s_label_and_the_shares_of_the_votes(
    several: int, weights: Any, convert: Convert
) -> None:
    """Ties go to the first class, as with scikit-learn; classes in words; the shares are counted here by hand."""
    x = rows()
    y = np.array(["low", "mid", "high"])[classes(x, several)]
    members = [("a", LogisticRegression()), ("b", make_pipeline(StandardScaler(), LinearSVC())),
               ("c", RandomForestClassifier(5, random_state=0))]  # fmt: skip
    vote = VotingClassifier(members, weights=weights).fit(x[:TRAINING], y[:TRAINING])
    asked = beyond(x)
    done = convert(make_pipeline(FunctionTransformer().fit(x), vote), asked)
    names = vote.classes_.tolist()
    assert [names[place] for place in done.found.label] == vote.predict(asked).tolist()
    shares = np.zeros((len(asked), several))
    for member, weight in zip(vote.estimators_, weights or [1.0, 1.0, 1.0], strict=True):
        shares[np.arange(len(asked)), member.predict(asked)] += weight / sum(weights or [3.0])
    np.testing.assert_allclose(done.found.scores, shares, atol=1e-6)
    assert any("shares of the votes" in note for note in done.source.notes)


def test_an_even_hard_vote_goes_to_the_first_class(convert: Convert) -> None:
    """Two members that never agree."""
    x = rows()
    y = classes(x, 2)
    vote = VotingClassifier([("a", DecisionTreeClassifier()), ("b", DecisionTreeClassifier())]).fit(x, y)
    vote.estimators_[1] = DecisionTreeClassifier().fit(x, 1 - y)
    done = convert(vote, x)
    assert vote.predict(x).tolist() == done.found.label.tolist() == [0] * len(x)
    np.testing.assert_allclose(done.found.scores, 0.5)


TARGETS: dict[str, Any] = {
    "expm1": {"func": np.log1p, "inverse_func": np.expm1},
    "exp": {"func": np.log, "inverse_func": np.exp},
    "square": {"func": np.sqrt, "inverse_func": np.square},
    "sqrt": {"func": np.square, "inverse_func": np.sqrt},
    "nothing": {},
    "standard scaler": {"transformer": StandardScaler()},
    "min-max scaler": {"transformer": MinMaxScaler((-1, 3))},
    "robust scaler": {"transformer": RobustScaler()},
}


@pytest.mark.parametrize("targets", [1, 2])
@pytest.mark.parametrize("name", TARGETS)
def test_a_transformed_target_comes_back_on_its_own_scale(name: str, targets: int, convert: Convert) -> None:
    """Values as the source gives them, behind a pipeline and trees, with one target and with two."""
    x = rows()
    y = 1.0 + x @ np.arange(1.0, 1.0 + COLUMNS * targets).reshape(COLUMNS, targets)
    y = y[:, 0] if targets == 1 else y
    for inner in (make_pipeline(StandardScaler(), Ridge()), ExtraTreesRegressor(5, random_state=0)):
        model = TransformedTargetRegressor(inner, check_inverse=False, **TARGETS[name])
        model.fit(x[:TRAINING], y[:TRAINING])
        asked = beyond(x, (0.0, 1e-5, 12.0, 20.0))
        done = convert(model, asked, name="m.joblib")
        expected = model.predict(asked).reshape(len(asked), -1)
        np.testing.assert_allclose(done.found.value, expected, rtol=2e-5, atol=1e-5)


def test_a_way_back_that_is_not_known_is_refused_with_what_is(convert: Convert) -> None:
    """A function of one's own, and a scaler without a line back."""
    x = rows()
    for transformer, words in (
        (FunctionTransformer(np.log1p, np.rint), "inverse_func: expected one of numpy's functions"),
        (QuantileTransformer(n_quantiles=20), "found QuantileTransformer: use one of these"),
    ):
        model = TransformedTargetRegressor(Ridge(), transformer=transformer, check_inverse=False).fit(x, x[:, 0])
        with pytest.raises(CommandError, match=words):
            convert(model, x, name="m.joblib")


FUNCTIONS = [None, np.abs, np.cbrt, np.cos, np.exp, np.exp2, np.expm1, np.log, np.log10, np.log1p, np.log2,
             np.negative, np.positive, np.reciprocal, np.sin, np.sqrt, np.square, np.tanh]  # fmt: skip


@pytest.mark.parametrize("place", ["alone", "in columns"])
@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda each: getattr(each, "__name__", "None"))
def test_a_function_of_numpy_is_the_same_in_the_graph(function: Any, place: str, convert: Convert) -> None:
    """On the data, near zero where the plain forms cancel, and far away; where the source gives a number."""
    x = rows()
    step: Any = FunctionTransformer(function)
    if place == "in columns":
        step = ColumnTransformer([("f", step, [0, 2])], remainder="passthrough")
    model = make_pipeline(step, LinearRegression()).fit(x, x @ [1.0, 2.0, 3.0, 4.0])
    model.steps[-1][1].coef_ = np.array([1.0, -2.0, 0.5, 1.5])
    model.steps[-1][1].intercept_ = 0.0
    asked = beyond(x, (1e-9, 1e-6, 0.5, 7.0, 20.0))
    done = convert(model, asked, name="m.joblib")
    gap = np.abs(done.found.value[:, 0] - model.predict(asked))
    assert np.all(gap <= 1e-6 * np.abs(model[:-1].transform(asked) * model[-1].coef_).sum(axis=1))


@pytest.mark.parametrize("function", [np.log1p, np.expm1])
def test_small_numbers_keep_their_digits(function: Any, convert: Convert) -> None:
    """A factor of 1e12 after it would show what the plain form loses."""
    x = rows()
    model = make_pipeline(FunctionTransformer(function), LinearRegression()).fit(x, x[:, 0])
    model.steps[-1][1].coef_, model.steps[-1][1].intercept_ = np.full(COLUMNS, 1e12), 0.0
    asked = np.full((4, COLUMNS), 0.0)
    asked[:, 0] = np.array([1e-12, -1e-9, 9.9e-6, 1.1e-5], dtype=np.float32)
    done = convert(model, asked, name="m.joblib")
    np.testing.assert_allclose(done.found.value[:, 0], model.predict(asked), rtol=1e-6)


@pytest.mark.parametrize("strategy", ["uniform", "quantile", "kmeans"])
@pytest.mark.parametrize("encode", ["ordinal", "onehot", "onehot-dense"])
def test_bins_have_the_edges_of_their_source(encode: str, strategy: str, convert: Convert) -> None:
    """Readings on, below and above every edge, and far outside, with a linear model that tells all bins apart."""
    x = np.round(rows() * 4) / 4
    bins = KBinsDiscretizer([3, 4, 5, 6], encode=encode, strategy=strategy).fit(x[:TRAINING])
    model = make_pipeline(bins, LinearRegression()).fit(x[:TRAINING], x[:TRAINING] @ [1.0, 5.0, 9.0, 2.0])
    steps = model.steps[0][1]
    near = [edge for edges in steps.bin_edges_ for edge in edges.astype(np.float32)]
    near += [np.nextafter(np.float32(edge), side) for edge in near for side in (-INFINITY, INFINITY)]
    asked = beyond(x[: len(x)], [*near, *EDGES])
    done = convert(model, asked, name="m.joblib")
    expected = model.predict(asked)
    np.testing.assert_allclose(done.found.value[:, 0], expected, atol=1e-4)


@pytest.mark.parametrize("extrapolation", ["constant", "linear", "continue", "periodic"])
@pytest.mark.parametrize(
    ("degree", "bias", "knots"), [(3, True, "uniform"), (2, False, "quantile"), (1, True, "uniform")]
)
def test_splines_are_the_curves_of_their_source(
    extrapolation: str, degree: int, bias: bool, knots: str, convert: Convert
) -> None:
    """Inside, on the knots, and outside by each way of going on."""
    x = rows()
    step = SplineTransformer(4, degree, knots=knots, extrapolation=extrapolation, include_bias=bias)
    model = make_pipeline(step, Ridge(1e-3)).fit(x[:TRAINING], np.sin(x[:TRAINING]).sum(axis=1))
    if degree == 1 and extrapolation == "linear":
        with pytest.raises(CommandError, match="expected a degree from 2 on"):
            convert(model, x, name="m.joblib")
        return
    ends = [[spline.t[degree], spline.t[-degree - 1]] for spline in model.steps[0][1].bsplines_]
    asked = beyond(x, [*np.ravel(ends), 0.0, -1.0, 30.0, 100.0])
    done = convert(model, asked, name="m.joblib")
    expected = model.predict(asked)
    np.testing.assert_allclose(done.found.value[:, 0], expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("passthrough", [False, True])
@pytest.mark.parametrize("several", [2, 3])
def test_boosters_stand_in_a_stack_and_in_votes(several: int, passthrough: bool, convert: Convert) -> None:
    """XGBoost, LightGBM, histogram boosting and a machine by its decision values, on readings beyond the data too."""
    x = rows()
    y = classes(x, several) + 5
    members = [*boosters("Classifier"), ("s", make_pipeline(StandardScaler(), LinearSVC())), ("n", GaussianNB())]
    last = make_pipeline(StandardScaler(), LogisticRegression())
    stack = StackingClassifier(members, last, cv=2, passthrough=passthrough)
    for model in (stack, *(VotingClassifier(members[:3], voting=kind) for kind in ("soft", "hard"))):
        model.fit(x[:TRAINING], y[:TRAINING])
        asked = beyond(x, EDGES[1:-1])
        done = convert(make_pipeline(model), asked, name="m.joblib")
        assert (done.found.label + 5).tolist() == model.predict(asked).tolist()
        if hasattr(model, "predict_proba"):
            np.testing.assert_allclose(done.found.scores, model.predict_proba(asked), atol=1e-4)


def test_boosters_stand_in_a_stack_of_regressors(convert: Convert) -> None:
    """Values to 1e-5 of the largest, behind a scaler, with trees and with a line at the end."""
    x = rows()
    y = np.sin(x[:, 0]) * 10.0 + x[:, 1]
    for last in (Ridge(), DecisionTreeRegressor(max_depth=3)):
        stack = StackingRegressor([*boosters("Regressor"), ("r", Ridge())], last, cv=2)
        model = make_pipeline(StandardScaler(), stack).fit(x[:TRAINING], y[:TRAINING])
        asked = beyond(x, EDGES[1:-1])
        done = convert(model, asked, name="m.joblib")
        expected = model.predict(asked)
        np.testing.assert_allclose(done.found.value[:, 0], expected, atol=1e-5 * np.abs(expected).max())


def test_the_members_of_a_stack_may_answer_with_labels(convert: Convert) -> None:
    """`stack_method='predict'`: the number of the class is the column."""
    x = rows()
    y = classes(x, 3)
    stack = StackingClassifier([("r", RandomForestClassifier(5, random_state=0)), ("n", GaussianNB())],
                               stack_method="predict", cv=2).fit(x[:TRAINING], y[:TRAINING])  # fmt: skip
    done = convert(stack, x)
    assert done.found.label.tolist() == stack.predict(x).tolist()
    np.testing.assert_allclose(done.found.scores, stack.predict_proba(x), atol=1e-5)


AS_PEOPLE_SAVE: dict[str, Any] = {
    "frozen": lambda x, y: FrozenEstimator(make_pipeline(StandardScaler(), LogisticRegression()).fit(x, y)),
    "frozen inside": lambda x, y: make_pipeline(FrozenEstimator(StandardScaler().fit(x)), LogisticRegression()),
    "a search that chose nothing": lambda x, y: GridSearchCV(
        Pipeline([("scale", "passthrough"), ("last", LogisticRegression())]), {"last__C": [0.1, 1.0]}, cv=2
    ),
    "a power before a network": lambda x, y: make_pipeline(PowerTransformer(), MLPClassifier((6,), max_iter=40)),
    **{
        f"rows of length one by {norm}": lambda x, y, norm=norm: make_pipeline(Normalizer(norm), LogisticRegression())
        for norm in ("l1", "l2", "max")
    },
}


@pytest.mark.parametrize("name", AS_PEOPLE_SAVE)
def test_what_people_put_around_a_model_converts(name: str, convert: Convert) -> None:
    """Noughts and very small readings included, of which a row has no length."""
    x = rows() - 4.0
    y = classes(x, 3)
    model = AS_PEOPLE_SAVE[name](x, y).fit(x, y)
    asked = np.concatenate(
        [beyond(x), np.zeros((1, COLUMNS)), np.full((1, COLUMNS), 1e-30), np.full((1, COLUMNS), 1e-14)]
    )
    done = convert(model, asked, name="m.joblib")
    np.testing.assert_allclose(done.found.scores, model.predict_proba(asked), atol=2e-5)


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64])
@pytest.mark.parametrize(
    "estimator", [KNeighborsClassifier(3), DecisionTreeClassifier(max_depth=4), LogisticRegression(), GaussianNB()]
)
def test_labels_of_any_width_stay_the_labels(estimator: Any, kind: Any, convert: Convert) -> None:
    """As numpy and tables hold them."""
    x = rows()
    y = (classes(x, 3) * 50).astype(kind)
    model = estimator.fit(x, y)
    done = convert(model, x, name="m.joblib")
    assert [done.plan.labels[place] for place in done.found.label] == list(map(str, model.predict(x).tolist()))
