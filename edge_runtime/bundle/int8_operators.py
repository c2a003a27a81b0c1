"""The ONNX operators that compute with int8 constants; `int8.py` is imported only for a model that has some."""

from typing import Any, Literal

# none: no int8 products. apart: each constant of a product is its own. shared: some are not, or lack a zero point.
Int8 = Literal["none", "apart", "shared"]
EXACT_ENTRY = ("session.x64quantprecision", "1")

# The operators whose constants onnxruntime changes: which inputs are the int8 values, and which their zero points.
OPERANDS: dict[str, tuple[tuple[int, int], ...]] = {
    "DequantizeLinear": ((0, 2),),
    "MatMulInteger": ((1, 3),),
    "ConvInteger": ((1, 3),),
    "QLinearMatMul": ((3, 5),),
    "QLinearConv": ((3, 5),),
    "DynamicQuantizeLSTM": ((1, 9), (2, 11)),
}
# Products that are int8 as they stand in the file, whatever onnxruntime fuses.
WHOLE_PRODUCTS = frozenset(OPERANDS) - {"DequantizeLinear"}


def has_int8(operators: Any) -> bool:
    """Whether some of these operators (names) compute with int8 constants."""
    return not OPERANDS.keys().isdisjoint(operators)
