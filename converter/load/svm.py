"""Support vector machines with one output, regression and one-class, as kernels in float64.

onnxruntime's own operator computes in float32. With a polynomial kernel the answer is a small difference of large
terms, for which float32 is not precise enough; with float64 sums only the answer itself is rounded.
"""

from typing import Any

import numpy as np

from converter.graph.build import DOUBLE, GraphBuilder
from converter.load.source import Core

_KERNELS = ("linear", "poly", "rbf", "sigmoid")
KINDS = ("OneClassSVM", "SVR", "NuSVR")


def is_machine(estimator: Any) -> bool:
    """Whether this module converts it."""
    return type(estimator).__name__ in KINDS and estimator.kernel in _KERNELS


def machine_core(estimator: Any, columns: int) -> Core:
    """The graph, with float64 input and output."""
    builder = GraphBuilder()
    x = builder.input("x", DOUBLE, ("N", columns))
    vectors = np.asarray(estimator.support_vectors_, dtype=np.float64)
    if hasattr(vectors, "todense"):
        vectors = np.asarray(vectors.todense())
    gamma = float(estimator._gamma)  # noqa: SLF001 - the public `gamma` may be a word
    products = builder.node("MatMul", x, builder.constant(vectors.T, np.float64))

    def scaled() -> str:
        times = builder.node("Mul", products, builder.constant(gamma, np.float64))
        return builder.node("Add", times, builder.constant(float(estimator.coef0), np.float64))

    if estimator.kernel == "linear":
        kernel = products
    elif estimator.kernel == "poly":
        kernel = builder.node("Pow", scaled(), builder.constant(float(estimator.degree), np.float64))
    elif estimator.kernel == "sigmoid":
        kernel = builder.node("Tanh", scaled())
    else:
        kernel = _gaussian(builder, x, vectors, gamma)
    weights = np.asarray(estimator.dual_coef_, dtype=np.float64).reshape(-1, 1)
    total = builder.node("MatMul", kernel, builder.constant(weights, np.float64))
    answer = builder.node("Add", total, builder.constant(float(estimator.intercept_[0]), np.float64))
    role = "decision" if type(estimator).__name__ == "OneClassSVM" else "value"
    builder.output(role, answer, DOUBLE, ("N", 1))
    return Core(builder.build("machine"), "x", (columns,), {role: role}, extra={"columns": 1})


def _gaussian(builder: GraphBuilder, x: str, vectors: Any, gamma: float) -> str:
    """exp(-gamma |x - v|^2), from differences: expanded squares would lose digits."""
    wide = builder.node("Unsqueeze", x, builder.constant([1], np.int64))
    gap = builder.node("Sub", wide, builder.constant(vectors[None], np.float64))
    square = builder.node("ReduceSum", builder.node("Mul", gap, gap), builder.constant([2], np.int64), keepdims=0)
    return builder.node("Exp", builder.node("Mul", square, builder.constant(-gamma, np.float64)))
