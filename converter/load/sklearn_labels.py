"""Multi-label estimators of scikit-learn: each of several labels is present or not.

An estimator with a member for each label (`MultiOutputClassifier`, `OneVsRestClassifier`, `ClassifierChain`) becomes
the graphs of its members side by side. Trees and boosters answer all labels at once (`sklearn_trees.py`), and so do
neighbours (`neighbours.py`). Networks and ridges become the regressor that computes the same numbers; a sigmoid turns
them into scores.

Guarantee: a label is present where the estimator's own `predict` returns 1. Weak point: outputs with more than two
classes, or with classes other than 0 and 1, are refused, since "present" has no meaning for them.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.graph.build import DOUBLE, FLOAT, INT64, GraphBuilder
from converter.load.neighbours import is_ours
from converter.load.sklearn_compose import MemberCore, decisions_of, label_of, scores_of, value_of
from converter.load.source import Answer, Core
from edge_runtime.errors import CommandError

_MEMBERS = ("ClassifierChain", "MultiOutputClassifier", "OneVsRestClassifier")
_AT_ONCE = "decision trees, forests, XGBoost, KNeighborsClassifier, MLPClassifier, RidgeClassifier"


def label_count(final: Any) -> int:
    """The number of labels of a multi-label classifier; 0 for a classifier with a single label."""
    classes = getattr(final, "classes_", None)
    if isinstance(classes, list):
        return len(classes)
    for name in ("label_binarizer_", "_label_binarizer"):
        binarizer = getattr(final, name, None)
        if binarizer is not None and str(getattr(binarizer, "y_type_", "")).startswith("multilabel"):
            return len(binarizer.classes_)
    if hasattr(final, "get_all_params"):  # CatBoost
        loss = str(final.get_all_params().get("loss_function", "")).partition(":")[0]
        return len(final.classes_) if loss in ("MultiLogloss", "MultiCrossEntropy") else 0
    if hasattr(final, "get_booster"):
        found = json.loads(final.get_booster().save_config())["learner"]
        count = int(found["learner_model_param"].get("num_target", 1))
        return count if count > 1 and found["learner_train_param"]["objective"].startswith("binary:") else 0
    return 0


def names_of(final: Any) -> tuple[Any, ...]:
    """An estimator's names of its labels; empty where it has only numbers."""
    classes = getattr(final, "classes_", ())
    if isinstance(classes, list) or list(classes) == list(range(len(classes))):
        return ()
    return tuple(np.asarray(classes).tolist())


def check_labels(final: Any, place: str) -> None:
    """Refuse a multi-label model without ONNX form.

    Raises:
        CommandError: an output has classes other than 0 and 1, or there is no ONNX form.
    """
    kind = type(final).__name__
    classes = getattr(final, "classes_", None)
    for output, own in enumerate(classes if isinstance(classes, list) else ()):
        if not set(np.asarray(own).tolist()) <= {0, 1}:
            raise CommandError(
                f"{place}: expected 0 and 1 (a label is there or not) for each output of a {kind}, found "
                f"{', '.join(map(repr, np.asarray(own).tolist()[:5]))} for output {output}: convert a model for each "
                "output"
            )
    for member in getattr(final, "estimators_", ()) if kind in _MEMBERS else ():
        if not any(hasattr(member, name) for name in ("predict_proba", "decision_function")):
            raise CommandError(
                f"{place}: {kind}: expected members with scores, found a {type(member).__name__} that has neither "
                "predict_proba nor decision_function: wrap it in CalibratedClassifierCV, or use another estimator"
            )
    from converter.load.sklearn_trees import forest_of  # noqa: PLC0415 - only for these

    if kind not in _MEMBERS and kind not in _TWINS and not is_ours(final) and forest_of(final) is None:
        raise CommandError(
            f"{place}: no ONNX form is known for a {kind} of several labels: put one estimator a label into "
            f"MultiOutputClassifier, or use one of {_AT_ONCE}"
        )


def answer_of(final: Any, labels: Any, ask: Callable[[str], Any], rows: Callable[[], NDArray[Any]]) -> Answer:
    """The estimator's labels and scores.

    Args:
        final: the last step.
        labels: of its `predict`.
        ask: calls another method of it on the same windows.
        rows: the input of the last step, for an estimator whose members have no probabilities.
    """
    found = np.asarray(labels.toarray() if hasattr(labels, "toarray") else labels)
    there = found.reshape(len(found), -1).astype(np.float64).astype(np.int64)
    if hasattr(final, "predict_proba"):
        given = ask("predict_proba")
        if isinstance(given, list):
            given = np.stack(
                [_positive(part, classes) for part, classes in zip(given, final.classes_, strict=True)], axis=1
            )
        scores = np.asarray(given, dtype=np.float64)
    elif hasattr(final, "decision_function"):
        scores = _squashed(ask("decision_function"))
    else:
        scores = _squashed(np.stack([member.decision_function(rows()) for member in final.estimators_], axis=1))
    return Answer(labels=there, scores=scores.reshape(there.shape))


def _positive(scores: Any, classes: Any) -> NDArray[np.float64]:
    """The probability of class 1, which training may have contained never or always."""
    names = np.asarray(classes).tolist()
    return np.asarray(scores)[:, names.index(1)] if 1 in names else np.zeros(len(scores))


def _squashed(decisions: Any) -> NDArray[np.float64]:
    with np.errstate(over="ignore"):
        return np.asarray(1.0 / (1.0 + np.exp(-np.asarray(decisions, dtype=np.float64))))


def labels_core(
    final: Any, shape: tuple[int, ...], convert: MemberCore, ahead: Callable[[GraphBuilder, str], str]
) -> Core:
    """The graph of an estimator without trees; the arguments are those of `composed_core`."""
    builder = GraphBuilder()
    x = builder.input("x", FLOAT, ("N", *shape))
    builder.reserve("labels", "scores")
    kind = type(final).__name__
    if kind in _TWINS:
        value = value_of(builder, convert(_TWINS[kind](final), "answers"), x, columns=label_count(final))
        there = builder.cast(builder.node("Greater", value, builder.constant(0.0, np.float64)), INT64)
        return _side_by_side(builder, shape, [there], [builder.node("Sigmoid", value)])
    if kind == "ClassifierChain":
        return _chained(builder, final, x, shape, convert=convert, ahead=ahead)
    pairs = [_member(builder, member, x, convert, way="answers") for member in final.estimators_]
    if kind == "OneVsRestClassifier" and _always(final.estimators_[0]) is not None:
        pairs = [
            (_above_half(builder, member, x, convert, label=label), score)
            for member, (label, score) in zip(final.estimators_, pairs, strict=True)
        ]
    return _side_by_side(builder, shape, [label for label, _ in pairs], [score for _, score in pairs])


def _member(builder: GraphBuilder, member: Any, x: str, convert: MemberCore, *, way: Any) -> tuple[str, str]:
    """Whether one label is present, `[N, 1]` int64, and its score in float64."""
    constant = _always(member)
    if constant is not None:
        count = builder.node("Gather", builder.node("Shape", x), builder.constant([0], np.int64), axis=0)
        size = builder.node("Concat", count, builder.constant([1], np.int64), axis=0)
        same = (builder.node("Expand", builder.constant([[constant]], kind), size) for kind in (np.int64, np.float64))
        return next(same), next(same)
    core = convert(member, way)
    label = builder.node("Reshape", label_of(builder, core, x, 2), builder.constant([-1, 1], np.int64))
    scores = builder.node("Gather", scores_of(builder, core, x, 2), builder.constant([1], np.int64), axis=1)
    return label, scores


def _above_half(builder: GraphBuilder, member: Any, x: str, convert: MemberCore, *, label: str) -> str:
    """Whether a label is present: its decision value is above one half.

    scikit-learn takes the cut for all labels from the first member; a member with a single class has the cut one half.
    """
    if _always(member) is not None or not hasattr(member, "decision_function"):
        return label
    decision = decisions_of(builder, convert(member, "raw"), x, 2)
    return builder.cast(builder.node("Greater", decision, builder.constant(0.5, np.float64)), INT64)


def _always(member: Any) -> int | None:
    """The answer of a member that was trained on one class only."""
    if type(member).__name__ == "_ConstantPredictor":
        return int(np.ravel(member.y_)[0])
    classes = np.asarray(member.classes_).tolist()
    return int(classes[0]) if len(classes) == 1 else None


def _chained(
    builder: GraphBuilder,
    chain: Any,
    x: str,
    shape: tuple[int, ...],
    *,
    convert: MemberCore,
    ahead: Callable[[GraphBuilder, str], str],
) -> Core:
    """One classifier for each label, which also takes the answers of the previous ones."""
    seen: list[str] = [ahead(builder, x)]
    pairs: dict[int, tuple[str, str]] = {}
    method = getattr(chain, "chain_method_", "predict")
    for place, member in zip(chain.order_, chain.estimators_, strict=True):
        joined = builder.cast(builder.node("Concat", *seen, axis=1) if len(seen) > 1 else seen[0], FLOAT)
        label, score = pairs[int(place)] = _member(builder, member, joined, convert, way="last")
        seen.append(builder.cast(label, DOUBLE) if method == "predict" else score)
    ordered = [pairs[place] for place in sorted(pairs)]
    return _side_by_side(builder, shape, [label for label, _ in ordered], [score for _, score in ordered])


def _side_by_side(builder: GraphBuilder, shape: tuple[int, ...], labels: Sequence[str], scores: Sequence[str]) -> Core:
    for name, parts, kind in (("labels", labels, INT64), ("scores", scores, DOUBLE)):
        joined = builder.node("Concat", *parts, axis=1) if len(parts) > 1 else builder.node("Identity", parts[0])
        builder.output(name, joined, kind, ("N", "K"))
    return Core(builder.build("several"), "x", shape, {"labels": "labels", "scores": "scores"})


def _ridge(final: Any) -> Any:
    from sklearn.linear_model import Ridge  # noqa: PLC0415 - heavy

    twin = Ridge()
    twin.coef_, twin.intercept_ = final.coef_, final.intercept_
    twin.n_features_in_ = final.n_features_in_
    return twin


def _network(final: Any) -> Any:
    from sklearn.neural_network import MLPRegressor  # noqa: PLC0415 - heavy

    twin = MLPRegressor(hidden_layer_sizes=final.hidden_layer_sizes, activation=final.activation)
    for name in ("coefs_", "intercepts_", "n_layers_", "n_outputs_", "n_features_in_", "n_iter_", "t_"):
        setattr(twin, name, getattr(final, name))
    twin.out_activation_ = "identity"
    return twin


# estimator -> the regressor that computes its decision values.
_TWINS: dict[str, Callable[[Any], Any]] = {
    "MLPClassifier": _network,
    "RidgeClassifier": _ridge,
    "RidgeClassifierCV": _ridge,
}
