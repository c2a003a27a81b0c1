"""A sample of the sweep over scikit-learn's registry: each cell is right, or refused in a sentence."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from benchmarks import converter_sweep
from benchmarks.converter_sweep import Cell, Outcome, cells, run
from converter.cli import main

RIGHT = (
    "CalibratedClassifierCV, alone",
    "LogisticRegression, calibrated",
    "GaussianNB, calibrated",
    "RandomForestClassifier, calibrated",
    "RandomForestClassifier, voted",
    "HistGradientBoostingClassifier, voted",
    "DecisionTreeClassifier, in columns",
    "ExtraTreesRegressor, voted",
    "Ridge, in columns",
    "RandomForestRegressor, in columns",
    "HistGradientBoostingRegressor, in columns",
    "NearestCentroid, scaled",
    "SelfTrainingClassifier, scaled",
    "SVR, scaled",
    "IsolationForest, scaled",
)
REFUSED = (
    "IsotonicRegression, alone",
    "LabelSpreading, alone",
    "LinearSVC, voted",
    "RadiusNeighborsClassifier, alone",
)


def cell(name: str) -> Cell:
    """One of the sweep."""
    return next(each for each in cells() if each.name == name)


@pytest.mark.parametrize("name", RIGHT)
def test_a_cell_that_is_right_stays_right(name: str) -> None:
    """The bundle answers as the estimator's public methods do, on recorded rows and beyond them."""
    assert run(cell(name)) == Outcome("right")


@pytest.mark.parametrize("name", REFUSED)
def test_a_cell_that_has_no_form_is_refused_in_a_sentence(name: str) -> None:
    """It names a reason; an estimator that wants other data is not fitted."""
    outcome = run(cell(name))
    assert outcome.verdict in ("refused", "not fitted")
    assert outcome.why


def test_every_use_and_every_kind_is_in_the_sweep() -> None:
    """The registry is scikit-learn's own, so that a new estimator is not forgotten."""
    names = [each.name for each in cells()]
    assert len(names) == len(set(names))
    assert len(names) > 300
    for use in ("alone", "scaled", "in columns", "voted", "calibrated"):
        assert sum(name.endswith(f", {use}") for name in names) > 20


def test_the_sweep_sees_a_wrong_answer_and_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """It shares nothing with the judge of `build`: a bundle of another model is wrong, an exception a traceback."""
    honest = main

    def lying(words: Any, errors: Any) -> Any:
        code = honest(words, errors)
        monkeypatch.setattr(LogisticRegression, "predict_proba", lambda self, x: np.full((len(x), 3), 1 / 3))
        return code

    def failing(_words: Any, _errors: Any) -> Any:
        raise KeyError("x")

    monkeypatch.setattr(converter_sweep, "convert", failing)
    assert run(Cell("c", LogisticRegression, "classifier")).verdict == "traceback"
    monkeypatch.setattr(converter_sweep, "convert", lying)
    assert run(Cell("c", LogisticRegression, "classifier")).verdict == "wrong"


def test_the_page_is_made_of_the_outcomes_of_several_runs(tmp_path: Path) -> None:
    """The last outcome of a cell counts, and each refusal keeps its sentence."""
    kept, page = tmp_path / "kept.jsonl", tmp_path / "page.md"
    for verdict, why in (("wrong", "x"), ("refused", "no form | here")):
        with kept.open("a") as file:
            file.write(json.dumps({"cell": "Ridge, alone", "verdict": verdict, "why": why}) + "\n")
            file.write(json.dumps({"cell": "XGBRegressor, reg:gamma", "verdict": "right", "why": ""}) + "\n")
    converter_sweep.write_page(converter_sweep.read_kept(kept), page)
    text = page.read_text()
    assert "2 cells: 1 refused, 1 right." in text
    assert "| Ridge | refused |  |  |  |  |" in text
    assert "| Ridge, alone | refused | no form / here |" in text


def test_equal_arguments_make_equal_estimators() -> None:
    """A forest without a seed would be another one each time, and so would the verdict."""
    assert cell("RandomForestClassifier, alone").make().random_state == 0
