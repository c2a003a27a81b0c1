"""Keys and times of Arrow columns, many rows at a time. The caller provides pyarrow, the extra `batch`."""

from collections.abc import Callable
from typing import Any

import numpy as np

from edge_runtime.recordings.blocks import ArrowColumns
from edge_runtime.stream.origin import END_OF_TIME, RejectedError


def key_names(column: Any, reasons: dict[int, str], read_key: Callable[[Any], str]) -> list[str | None]:
    """The keys; each distinct value is converted once."""
    import pyarrow as pa  # noqa: PLC0415 - see above

    encoded = column.dictionary_encode() if not hasattr(column, "dictionary") else column
    names: list[str | None] = []
    bad: dict[int, str] = {}
    different = ArrowColumns(pa.RecordBatch.from_arrays([encoded.dictionary], names=["key"])).values("key")
    for place, value in enumerate(different):
        try:
            names.append(read_key(value))
        except RejectedError as error:
            names.append(None)
            bad[place] = error.reason
    keys: list[str | None] = []
    for index, place in enumerate(encoded.indices.to_pylist()):
        if place is None or place in bad:
            reasons.setdefault(index, "bad_key" if place is None else bad[place])
            keys.append(None)
        else:
            keys.append(names[place])
    return keys


def numbers_of(column: Any) -> Any:
    """The numbers of a column; avoids `to_numpy`, which imports pandas if it is installed."""
    kind = {"double": np.float64, "float": np.float32}.get(str(column.type))
    if kind is None or column.null_count or not len(column):
        return column.to_numpy(zero_copy_only=False)
    return np.frombuffer(column.buffers()[1], kind)[column.offset : column.offset + len(column)]


def plain_times(column: Any) -> list[float | None] | None:
    """Unix seconds of texts that are all numbers, or all ISO 8601; None for a mixture."""
    import pyarrow as pa  # noqa: PLC0415 - see above

    try:
        seconds = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowException:
        found = _iso_micros(column, pa)
        if found is None:
            return None
        seconds = found / 1e6
    if not ((seconds >= 0) & (seconds < END_OF_TIME)).all():
        return None
    return list(seconds.tolist())


def _iso_micros(column: Any, pa: Any) -> Any:
    for zone in (None, "UTC"):
        for unit in ("us", "ns"):
            try:
                found = column.cast(pa.timestamp(unit, zone)).cast(pa.int64()).to_numpy(zero_copy_only=False)
            except pa.ArrowException:
                continue
            return (found if unit == "us" else found // 1000).astype(np.float64)
    return None
