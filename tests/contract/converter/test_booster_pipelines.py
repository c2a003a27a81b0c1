"""CatBoost inside scikit-learn's pipelines, votes and the like, and one classifier against the rest of any kind."""

from typing import Any

import numpy as np
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import (
    BaggingClassifier,
    BaggingRegressor,
    GradientBoostingClassifier,
    StackingClassifier,
    StackingRegressor,
    VotingClassifier,
    VotingRegressor,
)
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.multioutput import ClassifierChain, MultiOutputClassifier, MultiOutputRegressor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import LinearSVC

from converter.spec import ChannelSpec, Spec
from edge_runtime.errors import CommandError
from tests.contract.converter.conftest import Convert

catboost = pytest.importorskip("catboost")
lightgbm = pytest.importorskip("lightgbm")
xgboost = pytest.importorskip("xgboost")
QUIET = {"iterations": 10, "thread_count": 1, "verbose": 0, "allow_writing_files": False}


def readings(n: int, seed: int) -> Any:
    """In float32; those that no training saw have some far out."""
    x = np.random.default_rng(seed).normal(size=(n, 3)).astype(np.float32).astype(np.float64)
    if seed:
        x[-4:, 0] = [65535.0, -999.0, 0.0, 1e6]
    return x


def boosted(**more: Any) -> Any:
    """CatBoost's classifier."""
    return catboost.CatBoostClassifier(**QUIET, **more)


CLASSIFIERS: dict[str, Any] = {
    "alone": boosted,
    "behind a scaler": lambda: make_pipeline(StandardScaler(), boosted()),
    "trees of any shape": lambda: boosted(grow_policy="Lossguide"),
    "in a soft vote": lambda: VotingClassifier([("a", boosted()), ("b", LogisticRegression())], voting="soft"),
    "in a stack, and behind it": lambda: StackingClassifier([("a", boosted()), ("b", LogisticRegression())], boosted()),
    "calibrated": lambda: CalibratedClassifierCV(boosted(), cv=3),
    "calibrated by steps": lambda: make_pipeline(
        StandardScaler(), CalibratedClassifierCV(boosted(), cv=3, method="isotonic")
    ),
    "found by a search": lambda: GridSearchCV(boosted(), {"depth": [2, 4]}, cv=2),
    "against the rest": lambda: OneVsRestClassifier(boosted()),
    "LightGBM against the rest": lambda: make_pipeline(
        StandardScaler(), OneVsRestClassifier(lightgbm.LGBMClassifier(n_estimators=5, n_jobs=1, verbose=-1))
    ),
    "XGBoost against the rest": lambda: OneVsRestClassifier(xgboost.XGBClassifier(n_estimators=5, n_jobs=1)),
    "calibrated by temperature": lambda: CalibratedClassifierCV(boosted(), cv=3, method="temperature"),
    "machines calibrated by temperature": lambda: make_pipeline(
        StandardScaler(), CalibratedClassifierCV(LinearSVC(), cv=3, method="temperature")
    ),
    "one against all": lambda: boosted(loss_function="MultiClassOneVsAll"),
    "scikit-learn's own boosting, calibrated": lambda: CalibratedClassifierCV(
        GradientBoostingClassifier(n_estimators=5), cv=2
    ),
    "a bag of LightGBM": lambda: BaggingClassifier(
        lightgbm.LGBMClassifier(n_estimators=4, n_jobs=1, verbose=-1), 3, random_state=0
    ),
    "a bag of pipelines, some columns each": lambda: make_pipeline(
        StandardScaler(),
        BaggingClassifier(make_pipeline(StandardScaler(), LogisticRegression()), 4, max_features=0.7, random_state=0),
    ),
    "a bag that votes": lambda: BaggingClassifier(make_pipeline(StandardScaler(), LinearSVC()), 5, random_state=0),
    "machines against the rest": lambda: OneVsRestClassifier(make_pipeline(StandardScaler(), LinearSVC())),
}


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_label_and_probability_is_the_source_s(name: str, classes: int, convert: Convert) -> None:
    """Classes in words; scikit-learn's own answer is right."""
    x = readings(300, 0)
    y = np.array(["low", "mid", "high"])[np.digitize(x[:, 0] + x[:, 1], [-0.5, 0.7][: classes - 1])]
    model = CLASSIFIERS[name]().fit(x, y)
    asked = readings(400, 1)
    done = convert(model, asked, name="m.joblib")
    names = np.asarray(model.classes_).tolist()
    assert [names[place] for place in done.found.label] == np.asarray(model.predict(asked)).reshape(-1).tolist()
    if hasattr(model, "predict_proba"):
        np.testing.assert_allclose(
            done.found.scores, model.predict_proba(asked), atol=1e-4 if "steps" in name else 5e-6
        )
    else:
        np.testing.assert_allclose(done.found.scores, done.expected.scores, atol=5e-6)


REGRESSORS: dict[str, Any] = {
    "behind a scaler": lambda: make_pipeline(StandardScaler(), catboost.CatBoostRegressor(**QUIET)),
    "in a vote": lambda: VotingRegressor([("a", catboost.CatBoostRegressor(**QUIET)), ("b", Ridge())]),
    "in a stack": lambda: StackingRegressor([("a", catboost.CatBoostRegressor(**QUIET)), ("b", Ridge())], Ridge()),
    "in a bag": lambda: BaggingRegressor(catboost.CatBoostRegressor(**QUIET), 3, max_features=0.7, random_state=0),
    "one a target": lambda: MultiOutputRegressor(catboost.CatBoostRegressor(**QUIET)),
    "several targets": lambda: catboost.CatBoostRegressor(loss_function="MultiRMSE", **QUIET),
    "counts": lambda: catboost.CatBoostRegressor(loss_function="Poisson", **QUIET),
}


@pytest.mark.parametrize("name", REGRESSORS)
def test_every_value_is_the_source_s(name: str, convert: Convert) -> None:
    """With its link: a count is no logarithm."""
    x = readings(300, 0)
    y = np.abs(x[:, 0] + x[:, 1]) + 0.5
    targets = np.stack([y, 2 * y], axis=1) if "target" in name else np.round(y) if name == "counts" else y
    model = REGRESSORS[name]().fit(x, targets)
    asked = readings(400, 1)
    done = convert(model, asked, name="m.joblib")
    np.testing.assert_allclose(
        done.found.value, np.asarray(model.predict(asked)).reshape(len(asked), -1), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("name", ["one a label", "a chain", "all at once"])
def test_every_one_of_several_labels_is_the_source_s(name: str, convert: Convert) -> None:
    """Multi-label, in a pickle."""
    x = readings(300, 0)
    y = np.stack([x[:, 0] > 0, x[:, 1] > x[:, 2], x[:, 2] ** 2 > 0.5], axis=1).astype(int)
    model = {
        "one a label": MultiOutputClassifier(boosted()),
        "a chain": ClassifierChain(boosted()),
        "all at once": boosted(loss_function="MultiLogloss"),
    }[name].fit(x, y)
    asked = readings(400, 1)
    done = convert(model, asked, name="m.joblib")
    np.testing.assert_array_equal(done.found.labels, np.asarray(model.predict(asked)).astype(int))


def test_categories_inside_a_pipeline_are_refused_with_what_to_do(convert: Convert) -> None:
    """Where the pipeline makes whole numbers of them."""
    x = readings(200, 0)
    whole = FunctionTransformer(lambda rows: np.abs(np.rint(rows)).astype(int)).fit(x)
    model = make_pipeline(whole, boosted(cat_features=[2])).fit(x, (x[:, 0] > 0).astype(int))
    with pytest.raises(CommandError, match="expected features that are numbers, found categories: encode them in the"):
        convert(Pipeline([("cut", StandardScaler().fit(x)), ("last", model[-1])]), x, name="m.joblib")


def test_a_pickle_of_categories_is_as_good_as_a_file(convert: Convert) -> None:
    """The texts stand in the specification."""
    pandas = pytest.importorskip("pandas")
    x = readings(300, 0)
    texts = np.array(["p", "q", "r"])
    places = np.digitize(x[:, 2], [-0.4, 0.4])
    frame = pandas.DataFrame({"a": x[:, 0], "c": texts[places]})
    model = boosted(cat_features=["c"], one_hot_max_size=2).fit(frame, ((x[:, 0] > 0) ^ (places == 1)).astype(int))
    spec = Spec(channel=(ChannelSpec(name="a"), ChannelSpec(name="c", categories=("q", "r", "p"))))
    rows = np.stack([x[:, 0], [("q", "r", "p").index(text) for text in texts[places]]], axis=1)
    done = convert(model, rows, spec, name="m.joblib")
    np.testing.assert_allclose(done.found.scores, model.predict_proba(frame), atol=2e-6)


@pytest.mark.parametrize("kind", ["LightGBM", "XGBoost"])
def test_a_booster_pickled_by_itself_is_as_good_as_its_file(kind: str, convert: Convert) -> None:
    """Without the estimator around it."""
    x = readings(300, 0)
    y = (x[:, 0] > x[:, 1]).astype(int)
    if kind == "LightGBM":
        model = lightgbm.LGBMClassifier(n_estimators=5, n_jobs=1, verbose=-1).fit(x, y)
        done = convert(model.booster_, x, name="m.joblib")
    else:
        model = xgboost.XGBClassifier(n_estimators=5, n_jobs=1).fit(x, y)
        done = convert(model.get_booster(), x, name="m.joblib")
    np.testing.assert_allclose(done.found.scores, model.predict_proba(x), atol=2e-6)
