"""Rows of a CSV file by pyarrow: only blocks in which every row is good; the codec reads the others.

Needs pyarrow, the extra `batch`. Guarantee: a block gives the same readings as the stream's codec.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from edge_runtime.readings import Floats
from edge_runtime.recordings.blocks import Block, TextColumns, Wanted
from edge_runtime.recordings.columns_of_arrow import key_names, numbers_of, plain_times
from edge_runtime.recordings.csv_rows import is_regular
from edge_runtime.stream.codecs import Members
from edge_runtime.stream.codecs.csv_codec import number_or_text
from edge_runtime.stream.codecs.rows_of_text import SPACES
from edge_runtime.stream.origin import Origin, RejectedError


def arrow_reader(columns: Sequence[str], wanted: Wanted, roles: Members, delimiter: str) -> "ArrowCsv | None":
    """A reader of these columns; None where pyarrow is not installed, or has no such delimiter."""
    if delimiter == SPACES:
        return None
    try:
        import pyarrow.csv  # noqa: F401, PLC0415 - an extra, and slow to load
    except ImportError:
        return None
    return ArrowCsv(columns, wanted, roles, delimiter)


class ArrowCsv:
    """Reads whole rows at a time."""

    def __init__(self, columns: Sequence[str], wanted: Wanted, roles: Members, delimiter: str) -> None:
        import pyarrow as pa  # noqa: PLC0415 - see above
        from pyarrow import csv  # noqa: PLC0415

        self._pa: Any = pa
        self._csv: Any = csv
        self._wanted = wanted
        self._roles = roles
        place = {name: str(index) for index, name in enumerate(columns)}
        self._channels = [place[name] for name in roles.channels]
        origin = [place.get(name) if name is not None else None for name in roles.origin_names()]
        self._origin = origin if wanted.members is not None else [origin[0], None, None, origin[3]]
        self._kept = {name: place[name] for name in wanted.columns}
        texts = list(dict.fromkeys([*(name for name in self._origin if name is not None), *self._kept.values()]))
        self._both = [name for name in self._channels if name in texts]
        self._delimiter = delimiter
        # The codec reads it as 0, pyarrow as -0.0.
        self._whole_zero = re.compile(rb"-0+(?![\deE" + re.escape(wanted.decimal.encode()) + rb"])")
        self._only_numbers = not texts and len(columns) == len(self._channels) and not roles.category_indexes()
        self._categories = roles.category_indexes()
        texts += [self._channels[place] for place in self._categories]
        types = dict.fromkeys(self._channels, pa.float64()) | dict.fromkeys(texts, pa.string())
        self._read_options = csv.ReadOptions(
            use_threads=False, block_size=1 << 30, column_names=[str(index) for index in range(len(columns))]
        )
        self._parse_options = csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
        self._convert_options = csv.ConvertOptions(
            column_types=types,
            include_columns=list(types),
            null_values=[""],
            strings_can_be_null=False,
            decimal_point=wanted.decimal,
        )

    def read(self, text: bytes) -> Block | None:
        """The readings of whole rows; None where one of them is not good."""
        if not is_regular(text, self._delimiter, only_numbers=self._only_numbers):
            return None
        source = self._pa.BufferReader(text)
        try:
            table = self._csv.read_csv(source, self._read_options, self._parse_options, self._convert_options)
            if not table.num_rows:
                return None
            batch = table.combine_chunks().to_batches()[0]
            values = self._values(batch)
            if values is None or (np.signbit(values[values == 0]).any() and self._whole_zero.search(text)):
                return None
            return self._block(batch, values)
        except (self._pa.ArrowException, RejectedError):
            return None

    def _values(self, batch: Any) -> Floats | None:
        values = np.empty((batch.num_rows, len(self._channels)), np.float32)
        missing = None
        with np.errstate(over="ignore"):
            for place, name in enumerate(self._channels):
                column = batch.column(name)
                index = self._categories.get(place)
                if index is not None:
                    column = self._indexes(column, index)
                elif name in self._both:
                    column = column.cast(self._pa.float64())
                values[:, place] = numbers_of(column)
                if column.null_count:
                    missing = np.zeros(values.shape, np.bool_) if missing is None else missing
                    missing[:, place] = column.is_null().to_numpy(zero_copy_only=False)
        good = np.isfinite(values) if missing is None else np.isfinite(values) | missing
        if not good.all() or (missing is not None and missing.all(axis=1).any()):
            return None
        return values

    def _indexes(self, column: Any, index: Callable[[str | None], float | None]) -> Any:
        """The indexes of categories; each distinct text is looked up once."""
        encoded = self._trimmed(column).dictionary_encode()
        places = self._pa.array([index(text or None) for text in encoded.dictionary.to_pylist()], self._pa.float64())
        return places.take(encoded.indices)

    def _block(self, batch: Any, values: Floats) -> Block:
        block = Block(values, range(len(values)), str)
        time, id_, seq, key = self._origin
        trimmed = {name: self._trimmed(batch.column(name)) for name in {*self._kept.values(), time, key} if name}
        if key is not None:
            reasons: dict[int, str] = {}
            block.keys = key_names(trimmed[key], reasons, self._roles.read_key)
            if reasons:
                raise RejectedError(next(iter(reasons.values())))
        if time is not None:
            plain = self._wanted.members is None and self._wanted.time_unit == "s"
            block.times = plain_times(trimmed[time]) if plain else None
            if block.times is None:
                block.times = list(map(self._roles.reader.read_text, trimmed[time].to_pylist()))
        if self._wanted.members is not None:
            nothing = [None] * len(values)
            times: list[Any] = nothing if time is None else list(map(number_or_text, trimmed[time].to_pylist()))
            others = [nothing if name is None else self._trimmed(batch.column(name)).to_pylist() for name in (id_, seq)]
            block.identities = list(map(self._roles.identify, map(Origin, times, *others)))
        if self._kept:
            arrays = [trimmed[place] for place in self._kept.values()]
            block.columns = TextColumns(self._pa.RecordBatch.from_arrays(arrays, names=list(self._kept)))
        return block

    def _trimmed(self, column: Any) -> Any:
        import pyarrow.compute as pc  # noqa: PLC0415 - see above

        return pc.utf8_trim_whitespace(column)
