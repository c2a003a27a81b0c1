"""skl2onnx: one step or estimator of scikit-learn -> an ONNX model, with our own steps and features registered."""

import warnings
from typing import Any

import numpy as np

from converter.graph.build import OPSET, OPSET_ML
from converter.load.sklearn_facts import parts_of
from edge_runtime.errors import CommandError


def to_onnx(estimator: Any, shape: tuple[int, ...], double: bool, options: dict[str, Any], *, place: str) -> Any:
    """Convert an estimator for inputs of a shape, in float64 or float32.

    Raises:
        CommandError: skl2onnx cannot convert it.
    """
    from skl2onnx import convert_sklearn  # noqa: PLC0415 - heavy
    from skl2onnx._supported_operators import get_model_alias  # noqa: PLC0415
    from skl2onnx.common._registration import get_converter  # noqa: PLC0415
    from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType  # noqa: PLC0415

    from converter.features import lower_audio, lower_statistics  # noqa: PLC0415
    from converter.graph.lower_gaussian import lower_gaussian  # noqa: PLC0415
    from converter.graph.lower_linear import lower_linear  # noqa: PLC0415
    from converter.load import sklearn_steps  # noqa: PLC0415

    lower_statistics.register()
    lower_audio.register()
    sklearn_steps.register()
    _check_supported(estimator, place)
    kind = DoubleTensorType if double else FloatTensorType
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            allowed = get_converter(get_model_alias(type(estimator))).get_allowed_options() or {}
            model = convert_sklearn(
                estimator,
                name="sklearn",
                initial_types=[("x", kind([None, *shape]))],
                target_opset={"": OPSET, "ai.onnx.ml": OPSET_ML},
                options={id(estimator): {key: value for key, value in options.items() if key in allowed}},
            )
            return lower_gaussian(lower_linear(model))
    except CommandError as error:
        raise CommandError(f"{place}: {error}") from error
    except Exception as error:
        text = str(error).strip().splitlines()
        raise CommandError(
            f"{place}: {type(estimator).__name__} cannot be converted to ONNX: "
            f"{text[0] if text else type(error).__name__}: use another estimator or step"
        ) from error


def convertible(estimator: Any) -> Any:
    """An estimator with the same answers that skl2onnx converts correctly."""
    kind = type(estimator).__name__
    if kind == "LinearDiscriminantAnalysis":
        # skl2onnx doubles the decision values of two classes, but not those of a logistic regression.
        from sklearn.linear_model import LogisticRegression  # noqa: PLC0415 - heavy

        same = LogisticRegression()
        same.coef_, same.intercept_, same.classes_ = estimator.coef_, estimator.intercept_, estimator.classes_
        same.n_features_in_, same.n_iter_ = estimator.n_features_in_, np.ones(1, dtype=np.int32)
        return same
    return estimator


def width_of(model: Any, columns: tuple[int, ...], double: bool) -> dict[str, Any]:
    """The number of score columns, which skl2onnx does not always declare."""
    from converter.graph.build import serialize  # noqa: PLC0415
    from converter.session import session_of  # noqa: PLC0415 - heavy

    rows = np.zeros((2, *columns), dtype=np.float64 if double else np.float32)
    try:
        found = session_of(serialize(model)).run(None, {model.graph.input[0].name: rows})
    except Exception:  # noqa: BLE001 - the check of the whole model reports why it does not run
        return {}
    return {"columns": int(np.prod(np.asarray(found[-1]).shape[1:]))}


def _check_supported(estimator: Any, place: str) -> None:
    """Name every step without an ONNX form; skl2onnx would name only the first."""
    from skl2onnx._supported_operators import sklearn_operator_name_map  # noqa: PLC0415 - heavy

    known = {kind.__name__ for kind in sklearn_operator_name_map}
    missing = sorted({type(part).__name__ for part in parts_of(estimator) if type(part).__name__ not in known})
    if missing:
        raise CommandError(f"{place}: no ONNX form is known for {', '.join(missing)}: use another estimator or step")
