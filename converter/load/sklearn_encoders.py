"""Encoders of categories (`OneHotEncoder`, `OrdinalEncoder`, `TargetEncoder`) as one table a column.

The position of a value among its column's categories selects the row of a table: row 0 holds the encoder's result for
an unknown value, the following rows those for each category. Rare categories (`min_frequency`, `max_categories`),
dropped and missing ones are expressed by the table too. Comparisons are made in float64, as in scikit-learn.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.features.lower_writer import Writer

_INT64, _DOUBLE = 7, 11  # the number of the type in ONNX


def columns_of(encoder: Any) -> int:
    """The number of its output columns."""
    return sum(table.shape[1] for table in _tables(encoder))


def encode(write: Writer, encoder: Any, x: str) -> str:
    """The columns of all features side by side, in float64."""
    blocks = []
    for column, table in enumerate(_tables(encoder)):
        value = write.node("Gather", x, write.constant([column], np.int64), axis=1)
        place = _place(write, value, np.asarray(encoder.categories_[column], dtype=np.float64))
        blocks.append(write.node("Gather", write.constant(table), place, axis=0))
    return write.node("Concat", *blocks, axis=1)


def _place(write: Writer, value: str, categories: NDArray[np.float64]) -> str:
    """The positions of `[N, 1]` values among the categories, from 1; 0 for none of them."""
    hit = write.node("Equal", value, write.constant(categories[None]))
    if np.isnan(categories).any():
        absent = write.node("And", write.node("IsNaN", value), write.constant(np.isnan(categories)[None], np.bool_))
        hit = write.node("Or", hit, absent)
    numbers = write.constant(np.arange(1, len(categories) + 1, dtype=np.float64)[:, None])
    place = write.node("MatMul", write.node("Cast", hit, to=_DOUBLE), numbers)
    return write.node("Reshape", write.node("Cast", place, to=_INT64), write.constant([-1], np.int64))


def _tables(encoder: Any) -> list[NDArray[np.float64]]:
    kind = type(encoder).__name__
    make = {"OneHotEncoder": _one_hot, "OrdinalEncoder": _ordinal, "TargetEncoder": _target}[kind]
    return [make(encoder, column) for column in range(len(encoder.categories_))]


def _grouped(encoder: Any, column: int) -> tuple[NDArray[np.int64], int | None]:
    """The number of each category after rare ones were merged, and the number of the rare ones."""
    count = len(encoder.categories_[column])
    if not getattr(encoder, "_infrequent_enabled", False):
        return np.arange(count), None
    mapping = encoder._default_to_infrequent_mappings[column]  # noqa: SLF001 - as its own transform does
    if mapping is None:
        return np.arange(count), None
    rare = encoder._infrequent_indices[column]  # noqa: SLF001
    return np.asarray(mapping, dtype=np.int64), int(mapping[rare[0]])


def _one_hot(encoder: Any, column: int) -> NDArray[np.float64]:
    places, rare = _grouped(encoder, column)
    kept = np.eye(int(places.max()) + 1)
    dropped = encoder._drop_idx_after_grouping  # noqa: SLF001 - as its own transform does
    if dropped is not None and dropped[column] is not None:
        kept = np.delete(kept, int(dropped[column]), axis=1)
    unknown = np.zeros((1, kept.shape[1]))
    if rare is not None and encoder.handle_unknown in ("infrequent_if_exist", "warn"):
        unknown = kept[rare : rare + 1]
    return np.concatenate([unknown, kept[places]])


def _ordinal(encoder: Any, column: int) -> NDArray[np.float64]:
    places, _ = _grouped(encoder, column)
    numbers = places.astype(np.float64)
    missing = encoder._missing_indices.get(column)  # noqa: SLF001 - as its own transform does
    if missing is not None:
        numbers[missing] = float(encoder.encoded_missing_value)
    unknown = encoder.unknown_value if encoder.handle_unknown == "use_encoded_value" else np.nan
    return np.concatenate([[float(unknown)], numbers])[:, None]


def _target(encoder: Any, column: int) -> NDArray[np.float64]:
    classes = len(encoder.classes_) if encoder.target_type_ == "multiclass" else 1
    mean = np.atleast_1d(np.asarray(encoder.target_mean_, dtype=np.float64))
    known = [np.asarray(each) for each in encoder.encodings_[column * classes : (column + 1) * classes]]
    return np.concatenate([mean[None, :classes], np.stack(known, axis=1)])
