"""Steps of scikit-learn's pipelines without a form in skl2onnx, or without one in float64: registered with skl2onnx.

Registered steps work in pipelines, column transformers and unions.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.features.lower_writer import Writer
from converter.load.sklearn_encoders import columns_of, encode
from converter.load.sklearn_functions import known
from edge_runtime.errors import CommandError


def register() -> None:
    """Register the steps with skl2onnx. May be called again."""
    from skl2onnx import update_registered_converter  # noqa: PLC0415 - heavy
    from sklearn import preprocessing  # noqa: PLC0415
    from sklearn.impute import MissingIndicator, SimpleImputer  # noqa: PLC0415

    for step, write in (
        (preprocessing.FunctionTransformer, _function),
        (preprocessing.KBinsDiscretizer, _bins),
        (preprocessing.SplineTransformer, _splines),
        (preprocessing.OneHotEncoder, encode),
        (preprocessing.OrdinalEncoder, encode),
        (preprocessing.TargetEncoder, encode),
        (preprocessing.StandardScaler, _scaled),
        (preprocessing.MinMaxScaler, _scaled),
        (preprocessing.MaxAbsScaler, _scaled),
        (preprocessing.RobustScaler, _scaled),
        (preprocessing.Normalizer, _normalized),
        (SimpleImputer, _imputed),
        (MissingIndicator, _indicated),
    ):
        name = f"Edge{step.__name__}"
        update_registered_converter(step, name, _shape, _converter(write), overwrite=True)


def _shape(operator: Any) -> None:
    step, kind = operator.raw_operator, operator.inputs[0].type
    columns = sum(item.type.shape[1] for item in operator.inputs)
    name = type(step).__name__
    if name == "KBinsDiscretizer" and step.encode != "ordinal":
        columns = int(np.sum(step.n_bins_))
    elif name == "SplineTransformer":
        columns = int(step.n_features_out_)
    elif name.endswith("Encoder"):
        columns = columns_of(step)
    elif name == "SimpleImputer":
        columns = len(_filled_columns(step)) + (len(step.indicator_.features_) if step.indicator_ is not None else 0)
    elif name == "MissingIndicator":
        columns = len(step.features_)
    operator.outputs[0].type = type(kind)([kind.shape[0], columns])


def _converter(write: Any) -> Any:
    def convert(scope: Any, operator: Any, container: Any) -> None:
        from onnx import TensorProto  # noqa: PLC0415 - heavy
        from skl2onnx.common.data_types import DoubleTensorType  # noqa: PLC0415

        writer = Writer(scope, container)
        given = [item.full_name for item in operator.inputs]
        x = writer.node("Concat", *given, axis=1) if len(given) > 1 else given[0]
        value = write(writer, operator.raw_operator, writer.node("Cast", x, to=TensorProto.DOUBLE))
        double = isinstance(operator.outputs[0].type, DoubleTensorType)
        target = TensorProto.DOUBLE if double else TensorProto.FLOAT
        writer.node("Cast", value, output=operator.outputs[0].full_name, to=target)

    return convert


def _function(write: Writer, step: Any, x: str) -> str:
    return known(step.func, step.kw_args, "FunctionTransformer: func")(write.node, write.constant, x)


def _scaled(write: Writer, step: Any, x: str) -> str:
    """Scalers that are linear for each column, with scikit-learn's own operations; ONNX's `Scaler` is float32."""
    kind = type(step).__name__
    if kind == "MinMaxScaler":
        scaled = write.node("Mul", x, write.constant(np.asarray(step.scale_)[None]))
        scaled = write.node("Add", scaled, write.constant(np.asarray(step.min_)[None]))
        if step.clip:
            low, high = (write.constant(float(limit)) for limit in step.feature_range)
            scaled = write.node("Where", write.node("Less", scaled, low), low, scaled)  # Min and Max drop NaN
            scaled = write.node("Where", write.node("Greater", scaled, high), high, scaled)
        return scaled
    shift, slope = {
        "StandardScaler": ("mean_", "scale_"),
        "MaxAbsScaler": ("", "scale_"),
        "RobustScaler": ("center_", "scale_"),
    }[kind]
    for operator, name in (("Sub", shift), ("Div", slope)):
        unused = name == "mean_" and not step.with_mean  # NaN is set explicitly
        factors = getattr(step, name, None) if name and not unused else None
        if factors is not None:
            x = write.node(operator, x, write.constant(np.asarray(factors, dtype=np.float64)[None]))
    return x


def _normalized(write: Writer, step: Any, x: str) -> str:
    """Rows of length one; a row of zeros, or shorter than scikit-learn's limit, is not changed."""
    axes = write.constant([1], np.int64)
    size = write.node("Abs", x)
    if step.norm == "l2":
        length = write.node("Sqrt", write.node("ReduceSum", write.node("Mul", x, x), axes, keepdims=1))
    elif step.norm == "l1":
        length = write.node("ReduceSum", size, axes, keepdims=1)
    else:
        length = write.node("ReduceMax", size, axes=[1], keepdims=1)
    nothing = write.node("Less", length, write.constant(10 * float(np.finfo(np.float64).eps)))
    return write.node("Div", x, write.node("Where", nothing, write.constant(1.0), length))


def _filled_columns(step: Any) -> list[int]:
    """The columns that an imputer returns: it drops columns without values in the training."""
    known = np.array([value == value for value in step.statistics_], dtype=bool)  # noqa: PLR0124 - NaN is not itself
    keeps = step.strategy == "constant" or step.keep_empty_features
    return list(range(len(known))) if keeps else np.flatnonzero(known).tolist()


def _imputed(write: Writer, step: Any, x: str) -> str:
    columns = _filled_columns(step)
    value = write.node("Gather", x, write.constant(columns, np.int64), axis=1)
    fill = write.constant(np.asarray(step.statistics_, dtype=np.float64)[columns][None])
    filled = write.node("Where", _is_missing(write, step, value), fill, value)
    if step.indicator_ is None:
        return filled
    return write.node("Concat", filled, _indicated(write, step.indicator_, x), axis=1)


def _indicated(write: Writer, step: Any, x: str) -> str:
    """1 where a value is missing, for the columns that training chose."""
    value = write.node("Gather", x, write.constant(np.asarray(step.features_), np.int64), axis=1)
    return write.node("Cast", _is_missing(write, step, value), to=11)


def _is_missing(write: Writer, step: Any, value: str) -> str:
    wanted = step.missing_values
    if wanted is None or wanted != wanted or type(wanted).__name__ == "NAType":  # noqa: PLR0124 - NaN is not itself
        return write.node("IsNaN", value)
    return write.node("Equal", value, write.constant(float(wanted)))


def _bins(write: Writer, step: Any, x: str) -> str:
    """The number of inner edges that a value has reached; or a column for each bin."""
    from onnx import TensorProto  # noqa: PLC0415 - heavy

    blocks = []
    for column, edges in enumerate(step.bin_edges_):
        value = write.node("Gather", x, write.constant([column], np.int64), axis=1)
        inner = np.asarray(edges, dtype=np.float64)[1:-1]
        if len(inner):
            reached = write.node("GreaterOrEqual", value, write.constant(inner[None]))
            reached = write.node("Cast", reached, to=TensorProto.DOUBLE)
            place = write.node("ReduceSum", reached, write.constant([1], np.int64), keepdims=1)
        else:
            same = write.node("Equal", value, value)
            place = write.node("Sub", write.node("Cast", same, to=TensorProto.DOUBLE), write.constant(1.0))
        if step.encode != "ordinal":
            bins = write.constant(np.arange(int(step.n_bins_[column]), dtype=np.float64)[None])
            place = write.node("Cast", write.node("Equal", place, bins), to=TensorProto.DOUBLE)
        blocks.append(place)
    return write.node("Concat", *blocks, axis=1)


def _splines(write: Writer, step: Any, x: str) -> str:
    """A polynomial for each piece and basis function, in powers of the distance from the piece's lower knot."""
    if getattr(step, "handle_missing", "error") != "error":
        raise CommandError(
            "SplineTransformer: expected handle_missing='error', found "
            f"{step.handle_missing!r}: put a SimpleImputer before it"
        )
    if step.extrapolation == "linear" and step.degree < 2:
        # scikit-learn 1.9 raises the degree permanently at the first column, and computes the next ones with wrong
        # knots.
        raise CommandError(
            f"SplineTransformer: expected a degree from 2 on with extrapolation='linear', found {step.degree}, for "
            "which scikit-learn's own curves have steps: use a higher degree or extrapolation='constant'"
        )
    return write.node("Concat", *(_spline(write, step, x, c) for c in range(len(step.bsplines_))), axis=1)


def _spline(write: Writer, step: Any, x: str, column: int) -> str:
    spline = step.bsplines_[column]
    degree, knots = int(spline.k), np.asarray(spline.t, dtype=np.float64)
    low, high = float(knots[degree]), float(knots[-degree - 1])
    value = write.node("Gather", x, write.constant([column], np.int64), axis=1)
    at = value
    if step.extrapolation == "periodic":
        turns = write.node("Div", write.node("Sub", value, write.constant(low)), write.constant(high - low))
        whole = write.node("Mul", write.node("Floor", turns), write.constant(high - low))
        at = write.node("Sub", value, whole)
    elif step.extrapolation in ("constant", "linear", "error"):
        at = write.node("Min", write.node("Max", value, write.constant(low)), write.constant(high))
    pieces, table = _pieces(spline, degree, knots)
    reached = write.node("GreaterOrEqual", at, write.constant(pieces[None, 1:-1]))
    piece = write.node("Cast", reached, to=7)
    piece = write.node("ReduceSum", piece, write.constant([1], np.int64), keepdims=0)
    start = write.node("Gather", write.constant(pieces[:-1, None]), piece, axis=0)
    gap = write.node("Sub", at, start)
    total = write.node("Gather", write.constant(table[0]), piece, axis=0)
    for factors in table[1:]:
        factor = write.node("Gather", write.constant(factors), piece, axis=0)
        total = write.node("Add", write.node("Mul", total, gap), factor)
    if step.extrapolation == "linear":
        for end, beyond in ((low, "Min"), (high, "Max")):
            over = write.node(beyond, write.node("Sub", value, write.constant(end)), write.constant(0.0))
            rise = np.asarray(spline(end, nu=1), dtype=np.float64)[None]
            total = write.node("Add", total, write.node("Mul", over, write.constant(rise)))
    if not step.include_bias:
        total = write.node("Slice", total, *(write.constant([each], np.int64) for each in (0, table.shape[2] - 1, 1)))
    return total


def _pieces(spline: Any, degree: int, knots: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The borders of the pieces, and the factors `[degree + 1, pieces, functions]`, the highest power first."""
    from scipy.interpolate import PPoly  # noqa: PLC0415 - heavy

    inside = slice(degree, len(knots) - degree - 1)
    rows = []
    for factors in np.asarray(spline.c, dtype=np.float64).T:
        rows.append(PPoly.from_spline((knots, factors, degree)).c[:, inside])
    return knots[degree : len(knots) - degree], np.stack(rows, axis=2)
