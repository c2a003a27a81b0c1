"""Tensors in the types of the protocol -> float32, which models take: cast where float32 holds the number exactly.

Guarantee: only FP32 numbers in JSON, which are decimal text, are rounded. Any other number that float32 cannot hold is
refused with its place, and so is a whole number outside the range of its own type.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.http.responses import HttpError
from edge_runtime.readings import Floats

# The layout of each type in bytes.
TYPES = {
    "FP32": "<f4",
    "FP64": "<f8",
    "FP16": "<f2",
    **{f"INT{8 * size}": f"<i{size}" for size in (1, 2, 4, 8)},
    **{f"UINT{8 * size}": f"<u{size}" for size in (1, 2, 4, 8)},
}
_DIGITS = 1 << 24  # float32 holds each whole number up to here, and those times a power of two


def kind_of(name: str, datatype: str) -> np.dtype[Any]:
    """The numpy type of a datatype.

    Raises:
        HttpError: 400, it cannot be cast.
    """
    kind = TYPES.get(datatype)
    if kind is None:
        others = ", ".join(each for each in TYPES if each != "FP32")
        raise HttpError(400, f"{name}: datatype: expected FP32, or one of {others}, found {datatype[:32]!r}")
    return np.dtype(kind)


def cast(name: str, values: NDArray[Any]) -> Floats:
    """The same numbers as float32.

    Raises:
        HttpError: 400, float32 does not hold one of them.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        found = values.astype(np.float32)
    if values.dtype.kind == "f":
        if values.itemsize <= found.itemsize:
            return found
        wrong = (found != values) & ~np.isnan(values)
    else:
        if values.itemsize <= 2:
            return found
        size = (
            np.abs(values.astype(np.int64)).astype(np.uint64) if values.dtype.kind == "i" else values.astype(np.uint64)
        )
        lowest = size & (~size + np.uint64(1))  # the last bit that is set
        wrong = (size != 0) & (size // np.maximum(lowest, np.uint64(1)) >= _DIGITS)
    _refuse(name, values, wrong, "float32")
    return found


def half(name: str, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Numbers of JSON that were announced as FP16, as they are.

    Raises:
        HttpError: 400, FP16 does not hold one of them.
    """
    with np.errstate(over="ignore"):
        wrong = (values.astype(np.float16) != values) & ~np.isnan(values)
    _refuse(name, values, wrong, "FP16")
    return values


def _refuse(name: str, values: NDArray[Any], wrong: NDArray[np.bool_], holder: str) -> None:
    if wrong.any():
        place = int(np.flatnonzero(wrong)[0])
        raise HttpError(
            400,
            f"{name}: data: expected numbers that {holder} holds exactly, found {values.ravel()[place]!s} "
            f"at place {place}: send them as FP32, which rounds them",
        )


def whole(name: str, datatype: str, values: list[Any]) -> NDArray[Any]:
    """Whole numbers of JSON, nested as received, in their own type.

    Raises:
        HttpError: 400, one of them is outside the range of the type.
        ValueError: they are nested unevenly.
    """
    kind = np.dtype(TYPES[datatype])
    limits = np.iinfo(kind)
    refusal = HttpError(
        400, f"{name}: data: expected numbers from {limits.min} to {limits.max}, which {datatype} holds"
    )
    try:
        found = np.array(values, np.uint64 if kind.kind == "u" else np.int64)
    except OverflowError:
        raise refusal from None
    if found.size and not (limits.min <= int(found.min()) and int(found.max()) <= limits.max):
        raise refusal
    return found.astype(kind)
