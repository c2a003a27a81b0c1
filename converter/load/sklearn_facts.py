"""Facts about a fitted scikit-learn estimator: its steps, classes, threshold, and the number for missing values.

Guarantee: an estimator that cannot be converted is refused by name, with its place. Weak point: some facts are only in
private attributes of scikit-learn; each use of one has a `noqa`.
"""

import contextlib
import copy
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.errors import CommandError


def tuned_threshold(final: Any) -> tuple[float, int] | None:
    """The threshold of a classifier with its own threshold, and the position of that threshold's class."""
    kind = type(final).__name__
    if kind not in ("TunedThresholdClassifierCV", "FixedThresholdClassifier"):
        return None
    proba = hasattr(final.estimator_, "predict_proba") and final.response_method != "decision_function"
    cut = getattr(final, "best_threshold_", None)
    if cut is None:
        cut = (0.5 if proba else 0.0) if final.threshold == "auto" else final.threshold
    if not proba:
        if hasattr(final.estimator_, "predict_proba"):
            raise CommandError(f"{kind}: expected a threshold on probabilities, found one on decision values")
        cut = 1.0 / (1.0 + np.exp(-cut))
    asked = getattr(final, "_curve_scorer", None)
    label = getattr(final, "pos_label", None)
    if label is None and asked is not None:
        label = asked._get_pos_label()  # noqa: SLF001 - as scikit-learn's own predict asks
    classes = list(final.classes_)
    return float(cut), classes.index(label) if label in classes else 1


def parts_of(estimator: Any) -> list[Any]:
    """An estimator and its steps, through nested pipelines and column transformers."""
    steps = getattr(estimator, "steps", None) or getattr(estimator, "transformer_list", None)
    if steps is not None:
        return [part for _, step in steps if not isinstance(step, str) for part in parts_of(step)]
    fitted = getattr(estimator, "transformers_", None)
    if fitted is not None:
        return [part for _, step, _ in fitted if not isinstance(step, str) for part in parts_of(step)]
    return [estimator]


def sentinels_of(estimator: Any) -> tuple[float, ...]:
    """Numbers that a step treats specially, such as those for a missing or an unknown value."""
    found: set[float] = set()
    for name, value in estimator.get_params(deep=True).items():
        if name.rpartition("__")[2] in ("missing", "missing_values", "unknown_value", "fill_value"):
            with contextlib.suppress(TypeError, ValueError):
                found.add(float(value))
    return tuple(sorted(number for number in found if np.isfinite(number)))


def check_fitted(estimator: Any, place: str) -> None:
    """Refuse an estimator that was not fitted."""
    from sklearn.exceptions import NotFittedError  # noqa: PLC0415 - heavy
    from sklearn.utils.validation import check_is_fitted  # noqa: PLC0415

    try:
        check_is_fitted(estimator)
    except NotFittedError as error:
        raise CommandError(f"{place}: expected a fitted model, found {type(estimator).__name__} before fit") from error


def steps_of(estimator: Any) -> list[Any]:
    """The steps of nested pipelines and searches as a list; steps that pass everything through are left out."""
    if hasattr(estimator, "best_estimator_"):
        return steps_of(estimator.best_estimator_)
    if type(estimator).__name__ == "SelfTrainingClassifier":  # it answers as its best estimator does
        return steps_of(estimator.estimator_)
    if type(estimator).__name__ == "FrozenEstimator":
        return steps_of(estimator.estimator)
    if not hasattr(estimator, "steps"):
        return [estimator]
    steps = [step for _, step in estimator.steps if step is not None and not isinstance(step, str)]
    steps = [step for step in steps if not _only_trains(step)]
    return [inner for step in steps for inner in steps_of(step)]


def _only_trains(step: Any) -> bool:
    """A sampler of imbalanced-learn: prediction skips it."""
    return hasattr(step, "fit_resample") and not hasattr(step, "transform") and not hasattr(step, "predict")


def by_position(estimator: Any) -> Any:
    """A copy whose column transformers refer to columns by position, so that plain arrays suffice."""
    estimator = copy.deepcopy(estimator)
    _forget_names(estimator)
    return estimator


def give_widths(part: Any) -> None:
    """Set the number of columns on CatBoost's estimators, at any depth; their pickles lose it."""
    if type(part).__module__.startswith("catboost"):
        if part.is_fitted():
            part._n_features_in = len(part.feature_names_)  # noqa: SLF001 - `n_features_in_` reads it
        return
    inner = [step for _, step in getattr(part, "steps", None) or ()]
    inner += [step for _, step, _ in getattr(part, "transformers_", None) or ()]
    for name in ("estimators_", "calibrated_classifiers_"):
        several = getattr(part, name, None)
        inner += list(np.ravel(np.asarray([] if several is None else several, dtype=object)))
    for name in ("best_estimator_", "estimator_", "final_estimator_", "regressor_", "estimator"):
        inner.append(getattr(part, name, None))
    for each in inner:
        if each is not None and not isinstance(each, str) and hasattr(each, "__dict__"):
            give_widths(each)


def each_alone(final: Any) -> bool:
    """Whether CatBoost gives each class its own probability."""
    return hasattr(final, "get_all_params") and "OneVsAll" in str(final.get_all_params().get("loss_function"))


def widen_classes(final: Any) -> None:
    """Whole-number classes of any width as int64: skl2onnx supports no other."""
    classes = getattr(final, "classes_", None)
    if isinstance(classes, np.ndarray) and classes.dtype.kind in "iu" and classes.dtype != np.int64:
        wide = classes.astype(np.int64)
        if (wide == classes).all():
            with contextlib.suppress(AttributeError):  # in some it is a property that returns the fitted value
                final.classes_ = wide


def _forget_names(part: Any) -> None:
    """Columns by position in place of names, slices, masks and functions, from the fitted attributes."""
    for _, step in getattr(part, "steps", None) or ():
        _forget_names(step)
    if hasattr(part, "best_estimator_"):
        _forget_names(part.best_estimator_)
    if hasattr(part, "transformers_"):
        places = {name: list(map(int, found)) for name, found in part._transformer_to_input_indices.items()}  # noqa: SLF001
        part.transformers_ = [(name, step, places[name]) for name, step, _ in part.transformers_]
        part.transformers = [(name, step, places[name]) for name, step, _ in part.transformers]
        part._columns = [places[name] for name, _, _ in part.transformers]  # noqa: SLF001 - there is no public way
        for _, step, _ in part.transformers_:
            _forget_names(step)
    if hasattr(part, "feature_names_in_"):
        with contextlib.suppress(AttributeError):  # XGBoost reads them from its booster
            del part.feature_names_in_


def classes_of(final: Any, place: str) -> tuple[Any, ...]:
    """The classes in the order of the scores; a classifier without scores or with several outputs is refused."""
    classes = getattr(final, "classes_", None)
    if classes is None:
        raise CommandError(
            f"{place}: expected a classifier with classes, found a {type(final).__name__} without `classes_`"
        )
    if isinstance(classes, list):
        raise CommandError(f"{place}: expected one label a window, found a classifier with {len(classes)} outputs")
    if not (hasattr(final, "predict_proba") or hasattr(final, "decision_function") or votes_hard(final)):
        raise CommandError(
            f"{place}: expected a classifier with scores, found a {type(final).__name__} that has neither "
            "predict_proba nor decision_function: wrap it in CalibratedClassifierCV, or use another estimator"
        )
    return tuple(np.asarray(classes).tolist())


def check_one_label(answer: Any, final: Any, place: str) -> None:
    """Refuse a multi-label classifier, by what it predicted."""
    shape = np.asarray(answer).shape
    if len(shape) > 1 and shape[1] != 1:
        raise CommandError(
            f"{place}: expected one label a window, found a {type(final).__name__} that gives {shape[1]} at once "
            "(multi-label): convert a model for each label"
        )


def votes_hard(final: Any) -> bool:
    """Whether the estimator is a vote that counts labels."""
    return type(final).__name__ == "VotingClassifier" and final.voting == "hard"


def stands_for_missing(final: Any) -> float | None:
    """The number that XGBoost's scikit-learn estimators treat as missing; it is not in the booster."""
    value = getattr(final, "missing", None) if type(final).__module__.startswith("xgboost") else None
    return float(value) if value is not None and np.isfinite(value) else None


def shares_of_votes(vote: Any, chosen: NDArray[np.int64]) -> NDArray[np.float64]:
    """The share of votes for each class; `chosen` is the class of each member, a row for each window."""
    given = vote._weights_not_none  # noqa: SLF001 - scikit-learn's own property
    weights = np.ones(chosen.shape[1]) if given is None else np.asarray(given, dtype=np.float64)
    votes = np.stack([(chosen == place) @ weights for place in range(len(vote.classes_))], axis=1)
    return np.asarray(votes / weights.sum(), dtype=np.float64)


def squash(decision: NDArray[np.float64]) -> NDArray[np.float64]:
    """Decision values between 0 and 1: a sigmoid for two classes, a softmax for more."""
    if decision.ndim == 1:
        positive = 1.0 / (1.0 + np.exp(-decision))
        return np.stack([1.0 - positive, positive], axis=1)
    power = np.exp(decision - decision.max(axis=1, keepdims=True))
    return np.asarray(power / power.sum(axis=1, keepdims=True), dtype=np.float64)


def chained(steps: list[Any]) -> Any:
    """A function that applies steps one after the other, without their warnings."""

    def transform(x: NDArray[np.float64]) -> NDArray[np.float64]:
        with warnings.catch_warnings(), np.errstate(over="ignore", invalid="ignore"):
            warnings.simplefilter("ignore")
            for step in steps:
                x = step.transform(x)
        return x

    return transform
