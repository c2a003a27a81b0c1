"""Conformal sets and intervals of mapie and crepes, and nannyml's estimated accuracy, as JSON.

    python sure.py DRAWS.npz

Run by `benchmarks.uncertainty` in an environment of its own. The archive holds, for each draw, the scores or values and
the truth of the rows that calibrate (`c`, `yc`) and that check (`t`, `yt`). Sets are those of mapie's LAC score, given
the scores as they are; intervals are those of crepes. nannyml estimates by its calibrated confidence.
"""

import json
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np


class Given:
    """A classifier whose rows are its scores."""

    def __init__(self, classes: int) -> None:
        self.classes_ = np.arange(classes)
        self.is_fitted_ = True

    def fit(self, _x: Any, _y: Any) -> "Given":
        """Nothing: it is fitted."""
        return self

    def predict_proba(self, x: Any) -> Any:
        """The rows themselves, as sums of one."""
        found = np.asarray(x, float)
        return found / found.sum(axis=1, keepdims=True)

    def predict(self, x: Any) -> Any:
        """The largest."""
        return self.predict_proba(x).argmax(axis=1)

    def __sklearn_is_fitted__(self) -> bool:
        return True


def sets(calibration: Any, label: Any, rows: Any, truth: Any, *, coverage: float) -> float:
    """The share of rows whose truth is in mapie's set."""
    from mapie.classification import SplitConformalClassifier  # noqa: PLC0415 - each is needed for some data only

    made = SplitConformalClassifier(Given(calibration.shape[1]), confidence_level=coverage, prefit=True)
    made.conformalize(calibration, label)
    _, found = made.predict_set(rows)
    return float(found[np.arange(len(truth)), truth, 0].mean())


def intervals(calibration: Any, value: Any, rows: Any, truth: Any, *, coverage: float) -> float:
    """The share of rows whose truth is in the interval of crepes."""
    from crepes import ConformalRegressor  # noqa: PLC0415 - each is needed for some data only

    made = ConformalRegressor().fit((value - calibration).ravel())
    found = made.predict_int(rows.ravel(), confidence=coverage)
    return float(((found[:, 0] <= truth.ravel()) & (truth.ravel() <= found[:, 1])).mean())


def estimated(calibration: Any, label: Any, rows: Any) -> float:
    """What nannyml makes of the rows that check, with those that calibrate as its reference."""
    import pandas as pd  # noqa: PLC0415 - each is needed for some data only
    from nannyml import CBPE  # noqa: PLC0415 - each is needed for some data only

    names = [f"p{place}" for place in range(calibration.shape[1])]

    def frame(scores: Any) -> Any:
        found = pd.DataFrame(scores / scores.sum(axis=1, keepdims=True), columns=names)
        found["predicted"] = scores.argmax(axis=1)
        return found

    reference, analysed = frame(calibration.astype(float)), frame(rows.astype(float))
    reference["truth"] = label
    binary = calibration.shape[1] == 2
    made = CBPE(
        y_pred="predicted",
        y_pred_proba="p1" if binary else dict(enumerate(names)),
        y_true="truth",
        problem_type="classification_binary" if binary else "classification_multiclass",
        metrics=["accuracy"],
        chunk_number=1,
    )
    made.fit(reference)
    result = made.estimate(analysed).filter(period="analysis").to_df()
    return float(result[("accuracy", "value")].iloc[0])


def main() -> None:
    """Means over the draws."""
    warnings.filterwarnings("ignore")
    with np.load(sys.argv[1]) as archive:
        arrays = {name: archive[name] for name in archive.files}
    count = sum(name.startswith("yc") for name in arrays)
    parts = [[arrays[f"{part}{place}"] for part in ("c", "yc", "t", "yt")] for place in range(count)]
    is_classification = parts[0][1].dtype.kind == "i"
    judge: Callable[..., float] = sets if is_classification else intervals
    document: dict[str, Any] = {
        str(coverage): float(np.mean([judge(*each, coverage=float(coverage)) for each in parts]))
        for coverage in arrays["coverages"].tolist()
    }
    if is_classification:
        try:
            document["estimated"] = round(float(np.mean([estimated(*each[:3]) for each in parts])), 3)
        except ImportError:
            document["estimated"] = "-"
    print(json.dumps(document))


if __name__ == "__main__":
    main()
