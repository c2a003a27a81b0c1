"""Element-wise functions of numpy as standard ONNX operators in float64, and the scalers that a target may have.

`FunctionTransformer` and `TransformedTargetRegressor` may hold any Python function. Those listed here are recognised by
identity, never by name: another function called `log1p` is refused.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from converter.graph.build import GraphBuilder
from edge_runtime.errors import CommandError

Node = Callable[..., str]  # operator and inputs -> the name of its output
Constant = Callable[[float], str]  # a number in float64
_SMALL = 1e-5  # below it a series of four terms is exact, and the plain form loses digits


def _log1p(node: Node, number: Constant, x: str) -> str:
    plain = node("Log", node("Add", x, number(1.0)))
    return _near_zero(node, number, x, plain, series=(-1.0 / 4.0, 1.0 / 3.0, -1.0 / 2.0, 1.0))


def _expm1(node: Node, number: Constant, x: str) -> str:
    plain = node("Sub", node("Exp", x), number(1.0))
    return _near_zero(node, number, x, plain, series=(1.0 / 24.0, 1.0 / 6.0, 1.0 / 2.0, 1.0))


def _near_zero(node: Node, number: Constant, x: str, plain: str, *, series: tuple[float, ...]) -> str:
    total = number(0.0)
    for factor in series:
        total = node("Mul", node("Add", total, number(factor)), x)
    return node("Where", node("Less", node("Abs", x), number(_SMALL)), total, plain)


def _operator(kind: str) -> Callable[[Node, Constant, str], str]:
    return lambda node, _number, x: node(kind, x)


def _scaled(kind: str, before: float = 1.0, after: float = 1.0) -> Callable[[Node, Constant, str], str]:
    def write(node: Node, number: Constant, x: str) -> str:
        value = node(kind, x if before == 1.0 else node("Mul", x, number(before)))
        return value if after == 1.0 else node("Mul", value, number(after))

    return write


FUNCTIONS: Mapping[Any, Callable[[Node, Constant, str], str]] = {
    np.abs: _operator("Abs"),
    np.cbrt: lambda node, number, x: node("Mul", node("Sign", x), node("Pow", node("Abs", x), number(1.0 / 3.0))),
    np.cos: _operator("Cos"),
    np.exp: _operator("Exp"),
    np.exp2: _scaled("Exp", before=float(np.log(2.0))),
    np.expm1: _expm1,
    np.log: _operator("Log"),
    np.log10: _scaled("Log", after=float(1.0 / np.log(10.0))),
    np.log1p: _log1p,
    np.log2: _scaled("Log", after=float(1.0 / np.log(2.0))),
    np.negative: _operator("Neg"),
    np.positive: _operator("Identity"),
    np.reciprocal: _operator("Reciprocal"),
    np.sin: _operator("Sin"),
    np.sqrt: _operator("Sqrt"),
    np.square: lambda node, _number, x: node("Mul", x, x),
    np.tanh: _operator("Tanh"),
}


def known(function: Any, arguments: Any, what: str) -> Callable[[Node, Constant, str], str]:
    """The function that writes a numpy function as nodes.

    Raises:
        CommandError: it is not listed, or has arguments.
    """
    if function is None:
        return _operator("Identity")
    try:
        write = FUNCTIONS.get(function)
    except TypeError:  # it has no hash
        write = None
    if write is None or arguments:
        name = getattr(function, "__name__", type(function).__name__)
        names = ", ".join(sorted(each.__name__ for each in FUNCTIONS))
        raise CommandError(
            f"{what}: expected one of numpy's functions {names} without arguments, "
            f"found {name}{' with arguments' if arguments else ''}: use one of these, or compute it before the model"
        )
    return write


def inverse(transformer: Any, builder: GraphBuilder, value: str, place: str) -> str:
    """The inverse of a target's transformation.

    Args:
        transformer: fitted, of a `TransformedTargetRegressor`.
        builder: the graph.
        value: the regressor's output, float64 `[N, targets]`.
        place: the file, for messages.

    Raises:
        CommandError: the inverse has no ONNX form.
    """
    kind = type(transformer).__name__

    def number(each: Any) -> str:
        return builder.constant(each, np.float64)

    if kind == "FunctionTransformer":
        what = f"{place}: TransformedTargetRegressor: inverse_func"
        return known(transformer.inverse_func, transformer.inv_kw_args, what)(builder.node, number, value)
    line = _line_back(transformer, kind)
    if line is None:
        raise CommandError(
            f"{place}: TransformedTargetRegressor: expected a function of numpy or StandardScaler, MinMaxScaler, "
            f"MaxAbsScaler or RobustScaler for its target, found {kind}: use one of these"
        )
    slope, shift = line
    return builder.node("Add", builder.node("Mul", value, number(slope)), number(shift))


def _line_back(scaler: Any, kind: str) -> tuple[Any, Any] | None:
    """Slope and shift of a scaler's inverse."""
    if kind == "StandardScaler":
        return (1.0 if scaler.scale_ is None else scaler.scale_), (0.0 if scaler.mean_ is None else scaler.mean_)
    if kind == "MinMaxScaler" and not scaler.clip:
        return 1.0 / scaler.scale_, -scaler.min_ / scaler.scale_
    if kind == "MaxAbsScaler":
        return scaler.scale_, 0.0
    if kind == "RobustScaler":
        slope = scaler.scale_ if scaler.with_scaling else 1.0
        return slope, (scaler.center_ if scaler.with_centering else 0.0)
    return None
