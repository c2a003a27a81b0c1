"""Scored windows -> the output file; its suffix chooses the format.

A row for each window: the kept columns, then `label`, `score` and a `score_LABEL` for each label, or a column for each
target, or `score`, `threshold` and `anomaly`, or the columns of `tensor_columns.py` for other tasks. A bundle with
uncertainty adds `set_LABEL` (true or false), or `TARGET_low` and `TARGET_high`. Numbers in text are the shortest that
read back to the same float32.
"""

import contextlib
import csv
import datetime as dt
import io
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from edge_runtime.batch.chunks import Chunk
from edge_runtime.batch.tensor_columns import (
    arrow_arrays,
    arrow_fields,
    by_label,
    column_names,
    is_named,
    numpy_types,
    texts,
)
from edge_runtime.bundle.manifest import Manifest
from edge_runtime.bundle.uncertainty import intervals, label_sets
from edge_runtime.errors import CommandError
from edge_runtime.recordings.blocks import ArrowColumns, TextColumns
from edge_runtime.recordings.locations import Place
from edge_runtime.recordings.parquet import NEEDS_PYARROW
from edge_runtime.system.durable import sync_folder

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".npz", ".npy")
ROW_GROUP = 1 << 18

Chunks = Callable[[], Iterator[Chunk]]
Kinds = Callable[[], Mapping[str, set[str]]]


class OutputColumns:
    """The output columns of one model; `members` are the columns of its label sets."""

    def __init__(self, manifest: Manifest, kept: Sequence[str]) -> None:
        self.manifest = manifest
        self.kept = tuple(kept)
        output = manifest.output
        self.labels = output.labels
        if manifest.task == "classification":
            names = ["label", "score", *(f"score_{label}" for label in output.labels)]
            if label_sets(manifest) is not None:
                names += [f"set_{label}" for label in output.labels]
        elif manifest.task == "regression":
            names = [target.name for target in output.targets]
            if intervals(manifest) is not None:
                names += [f"{target.name}_{end}" for target in output.targets for end in ("low", "high")]
        elif is_named(manifest):
            names = column_names(manifest)
        else:
            names = ["score", "threshold", "anomaly"]
        self.names = tuple(names)
        self.members = frozenset(name for name in names if manifest.task == "classification" and name[:4] == "set_")
        doubled = [name for name in kept if name in names]
        if doubled:
            raise CommandError(
                f"--keep {doubled[0]}: a column of the predictions has this name: rename it in the files"
            )

    def numbers(self, chunk: Chunk) -> dict[str, NDArray[Any]]:
        """The columns of the predictions, by name; `label` as an index into the labels."""
        scores = chunk.scores
        if scores.label is not None:
            assert scores.scores is not None
            columns = [scores.label, scores.scores[np.arange(chunk.count), scores.label], *scores.scores.T]
            if (sets := label_sets(self.manifest)) is not None:
                columns += [*sets.members(scores.scores).T]
        elif scores.value is not None:
            columns = list(scores.value.T)
            if (ranges := intervals(self.manifest)) is not None:
                columns += [*np.stack(ranges.of(scores.value), axis=-1).reshape(chunk.count, -1).T]
        else:
            assert scores.score is not None
            threshold = self.manifest.output.threshold
            assert threshold is not None
            columns = [scores.score, np.full(chunk.count, threshold), scores.score > threshold]
        return dict(zip(self.names, columns, strict=True))


def check_output(path: Place) -> None:
    """Check at the start that the output can be written at the end.

    Raises:
        CommandError: the suffix is unknown, or the place is not writable.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise CommandError(
            f"{path}: expected an output ending in {', '.join(SUFFIXES)}, found {path.suffix or 'no suffix'}"
        )
    if isinstance(path, Path) and path.is_dir():
        raise CommandError(f"{path}: expected the name of a file, found a folder")
    if isinstance(path, Path) and not path.parent.is_dir():
        raise CommandError(f"{path}: cannot be written: there is no folder {path.parent}")
    if path.suffix.lower() == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401, PLC0415 - an extra, and slow to load
        except ImportError as error:
            raise CommandError(f"{path}: {NEEDS_PYARROW}") from error


def write_output(path: Path, layout: OutputColumns, chunks: Chunks, kinds: Kinds) -> Path:
    """Write everything durably to a file beside `path`; `publish` renames it when the run has succeeded.

    Args:
        path: the output.
        layout: its columns.
        chunks: yields the scored windows from the first; some formats call it more than once.
        kinds: the names of the Python types in each kept column without a type; known when all chunks are.

    Raises:
        CommandError: it cannot be written; the partial file is removed.
    """
    write = {".parquet": _write_parquet, ".npz": _write_npz, ".npy": _write_npy}.get(path.suffix.lower(), _write_text)
    unfinished = path.with_name(path.name + ".new")
    try:
        write(unfinished, layout, chunks, kinds)
        _sync(unfinished)
    except BaseException as error:
        with contextlib.suppress(OSError):  # half a file would only keep the disk full
            unfinished.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise CommandError(f"{path}: cannot be written: {error.strerror or error}") from error
        raise
    return unfinished


def publish(unfinished: Path, path: Path) -> None:
    """Rename a complete file durably.

    Raises:
        CommandError: it cannot be renamed.
    """
    try:
        unfinished.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise CommandError(f"{path}: cannot be written: {error.strerror or error}") from error


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _write_text(path: Path, layout: OutputColumns, chunks: Chunks, kinds: Kinds) -> None:
    del kinds
    suffix = path.with_suffix("").suffix.lower()
    with path.open("w", encoding="utf-8", newline="") as file:
        if suffix in {".csv", ".tsv"}:
            delimiter = "\t" if suffix == ".tsv" else ","
            writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
            writer.writerow([*layout.kept, *layout.names])
            by_arrow = arrow_writer(layout, delimiter)
            for chunk in chunks():
                text = None if by_arrow is None else by_arrow(chunk)
                if text is None:
                    writer.writerows(zip(*_csv_columns(layout, chunk), strict=True))
                else:
                    file.write(text)
        else:
            heads = [msgspec.json.encode(name).decode().replace("%", "%%") for name in (*layout.kept, *layout.names)]
            template = "{" + ",".join(f"{head}:%s" for head in heads) + "}\n"
            for chunk in chunks():
                file.writelines(template % row for row in zip(*_json_columns(layout, chunk), strict=True))


def _csv_columns(layout: OutputColumns, chunk: Chunk) -> Iterator[Sequence[Any]]:
    for name in layout.kept:
        yield list(map(_cell, chunk.columns.values(name)))
    yield from _number_texts(layout, chunk, layout.labels)


def _json_columns(layout: OutputColumns, chunk: Chunk) -> Iterator[Sequence[str]]:
    for name in layout.kept:
        yield [msgspec.json.encode(value).decode() for value in chunk.columns.values(name)]
    yield from _number_texts(layout, chunk, [msgspec.json.encode(label).decode() for label in layout.labels])


def _number_texts(layout: OutputColumns, chunk: Chunk, labels: Sequence[str]) -> Iterator[list[str]]:
    if chunk.scores.tensors is not None:
        yield from texts(layout.manifest, chunk.scores.tensors).values()
        return
    for name, column in layout.numbers(chunk).items():
        if name == "label" and column.dtype == np.int64:
            yield [labels[index] for index in column.tolist()]
        elif column.dtype == bool:
            yield ["true" if value else "false" for value in column.tolist()]
        else:
            yield list(map(str, column))


def arrow_writer(layout: OutputColumns, delimiter: str) -> Callable[[Chunk], str | None] | None:
    """A five times faster writer of a chunk's CSV rows; None where pyarrow is not installed.

    It returns None for a chunk where a text needs quotes, or a kept column has a type with another text form.
    """
    try:
        import pyarrow as pa  # noqa: PLC0415 - an extra, and slow to load
        from pyarrow import csv as arrow_csv  # noqa: PLC0415
    except ImportError:
        return None
    labels = _arrow_texts(layout.labels, pa)
    fields = _arrow_fields(layout, pa, typed=True)
    options = arrow_csv.WriteOptions(include_header=False, delimiter=delimiter, quoting_style="none")

    def text_of(chunk: Chunk) -> str | None:
        kept: list[Any] = []
        if layout.kept:
            if not isinstance(chunk.columns, ArrowColumns | TextColumns):
                return None
            kept = [chunk.columns.batch.column(name) for name in layout.kept]
        plain = (pa.types.is_string, pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
        if not all(any(is_plain(column.type) for is_plain in plain) for column in kept):
            return None
        schema = pa.schema([*map(pa.field, layout.kept, [column.type for column in kept]), *fields])
        sink = pa.BufferOutputStream()
        try:
            arrow_csv.write_csv(_arrow_batch(layout, chunk, labels, schema, pa=pa), sink, options)
        except pa.ArrowInvalid:
            return None
        return str(sink.getvalue().to_pybytes(), "utf-8")

    return text_of


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dt.datetime):
        return value.isoformat()
    if isinstance(value, dict | list):
        return msgspec.json.encode(value).decode()
    return value


def _write_parquet(path: Path, layout: OutputColumns, chunks: Chunks, kinds: Kinds) -> None:
    import pyarrow as pa  # noqa: PLC0415 - an extra, and slow to load
    from pyarrow import parquet  # noqa: PLC0415

    labels = _arrow_texts(layout.labels, pa)
    writer: Any = None
    held: list[Any] = []
    rows = 0
    try:
        for chunk in chunks():
            if writer is None:
                typed = isinstance(chunk.columns, ArrowColumns)
                schema = pa.schema([*_kept_fields(layout, chunk, kinds, pa), *_arrow_fields(layout, pa, typed=typed)])
                writer = parquet.ParquetWriter(
                    path, schema, use_dictionary=_texts(schema, pa), store_schema=typed, write_statistics=not typed
                )
            held.append(_arrow_batch(layout, chunk, labels, writer.schema, pa=pa))
            rows += chunk.count
            if rows >= ROW_GROUP:
                writer.write_table(pa.Table.from_batches(held))
                held.clear()
                rows = 0
        if writer is None:
            empty = pa.schema(
                [*(pa.field(name, pa.string()) for name in layout.kept), *_arrow_fields(layout, pa, typed=False)]
            )
            writer = parquet.ParquetWriter(path, empty, store_schema=False)
        if held:
            writer.write_table(pa.Table.from_batches(held))
    except (pa.ArrowException, OverflowError) as error:
        raise CommandError(f"{path.with_suffix('')}: a kept column has no Parquet type: {error}") from error
    finally:
        if writer is not None:
            writer.close()


def _arrow_fields(layout: OutputColumns, pa: Any, *, typed: bool) -> list[Any]:
    """The columns of the predictions. A label reads back as text in any case.

    Where no Arrow schema is stored beside the Parquet one (`typed` False), it may be written as a dictionary, which
    avoids hashing every label again.
    """
    if is_named(layout.manifest):
        return arrow_fields(layout.manifest, pa)
    label = pa.string() if typed else pa.dictionary(pa.int32(), pa.string())
    kinds = {"label": label, "threshold": pa.float64(), "anomaly": pa.bool_()}
    kinds |= dict.fromkeys(layout.members, pa.bool_())
    special = kinds if layout.manifest.task != "regression" else {}
    return [pa.field(name, special.get(name, pa.float32())) for name in layout.names]


def _texts(schema: Any, pa: Any) -> list[str]:
    return [
        field.name
        for field in schema
        if pa.types.is_string(field.type) or pa.types.is_dictionary(field.type) or field.name == "threshold"
    ]


def _kept_fields(layout: OutputColumns, chunk: Chunk, kinds: Kinds, pa: Any) -> list[Any]:
    if not layout.kept:
        return []
    if isinstance(chunk.columns, ArrowColumns):
        return [chunk.columns.batch.schema.field(name) for name in layout.kept]
    types = {"int": pa.int64(), "float": pa.float64(), "bool": pa.bool_(), "text": pa.string()}
    found = kinds()
    return [pa.field(name, types[_kind(found.get(name, set()))]) for name in layout.kept]


def _arrow_batch(layout: OutputColumns, chunk: Chunk, labels: Any, schema: Any, *, pa: Any) -> Any:
    arrays = []
    for name in layout.kept:
        if isinstance(chunk.columns, ArrowColumns):
            arrays.append(chunk.columns.batch.column(name))
            continue
        kind = schema.field(name).type
        if isinstance(chunk.columns, TextColumns) and pa.types.is_string(kind):
            arrays.append(chunk.columns.batch.column(name))
            continue
        values = chunk.columns.values(name)
        arrays.append(pa.array(list(map(_text, values)) if pa.types.is_string(kind) else values, kind))
    if chunk.scores.tensors is not None:
        fields = [schema.field(name) for name in layout.names]
        arrays += arrow_arrays(layout.manifest, chunk.scores.tensors, fields, pa)
        return pa.RecordBatch.from_arrays(arrays, schema=schema)
    for name, column in layout.numbers(chunk).items():
        if name == "label" and layout.labels:
            found = pa.DictionaryArray.from_arrays(_arrow_numbers(column.astype(np.int32), pa), labels)
            arrays.append(found if pa.types.is_dictionary(schema.field(name).type) else found.dictionary_decode())
        else:
            arrays.append(_arrow_numbers(column, pa))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _arrow_numbers(column: NDArray[Any], pa: Any) -> Any:
    """An Arrow array of numbers; not by `pa.array`, which imports pandas if it is installed: 0.25 s."""
    if column.dtype == np.bool_:
        return pa.array(column.tolist(), pa.bool_())
    data = pa.py_buffer(np.ascontiguousarray(column))
    return pa.Array.from_buffers(pa.from_numpy_dtype(column.dtype), len(column), [None, data])


def _arrow_texts(texts: Sequence[str], pa: Any) -> Any:
    """An Arrow array of texts, for the same reason."""
    data = [text.encode() for text in texts]
    ends = np.cumsum([0, *map(len, data)], dtype=np.int32)
    return pa.Array.from_buffers(pa.string(), len(data), [None, pa.py_buffer(ends), pa.py_buffer(b"".join(data))])


def _write_npz(path: Path, layout: OutputColumns, chunks: Chunks, kinds: Kinds) -> None:
    count = sum(chunk.count for chunk in chunks())
    types = _numpy_types(layout, chunks, kinds)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, kind in types.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                _write_head(file, count, kind)
                for chunk in chunks():
                    file.write(_numpy_column(layout, chunk, name, kind).tobytes())


def _write_npy(path: Path, layout: OutputColumns, chunks: Chunks, kinds: Kinds) -> None:
    """A structured array: a field a column."""
    count = sum(chunk.count for chunk in chunks())
    types = _numpy_types(layout, chunks, kinds)
    kind = np.dtype(list(types.items()))
    with path.open("wb") as file:
        _write_head(file, count, kind)
        for chunk in chunks():
            table = np.empty(chunk.count, kind)
            for name in types:
                table[name] = _numpy_column(layout, chunk, name, types[name])
            file.write(table.tobytes())


def _write_head(file: IO[bytes], count: int, kind: "np.dtype[Any]") -> None:
    head, shape = io.BytesIO(), (count, *kind.shape)
    npy.write_array_header_2_0(head, {"descr": npy.dtype_to_descr(kind.base), "fortran_order": False, "shape": shape})
    file.write(head.getvalue())


def _numpy_types(layout: OutputColumns, chunks: Chunks, kinds: Kinds) -> dict[str, "np.dtype[Any]"]:
    found = dict(kinds())
    types: dict[str, np.dtype[Any]] = {}
    for name in layout.kept:
        names = found.get(name)
        if names is None:  # columns of a Parquet file
            names = {type(value).__name__ for chunk in chunks() for value in chunk.columns.values(name)}
        kind = _kind(names)
        if kind == "int" and "NoneType" in names:
            kind = "float"
        if kind == "text" or (kind == "bool" and "NoneType" in names):
            longest = max((len(_text(v) or "") for chunk in chunks() for v in chunk.columns.values(name)), default=1)
            types[name] = np.dtype(f"<U{max(longest, 1)}")
        else:
            types[name] = np.dtype({"int": "<i8", "float": "<f8", "bool": "?"}[kind])
    if is_named(layout.manifest):
        return types | numpy_types(layout.manifest)
    for name in layout.names:
        types[name] = np.dtype("<f4")
    if layout.manifest.task == "classification":
        types["label"] = np.dtype(f"<U{max(map(len, layout.labels))}")
        types |= dict.fromkeys(layout.members, np.dtype("?"))
    elif layout.manifest.task == "anomaly":
        types["threshold"], types["anomaly"] = np.dtype("<f8"), np.dtype("?")
    return types


def _numpy_column(layout: OutputColumns, chunk: Chunk, name: str, kind: "np.dtype[Any]") -> NDArray[Any]:
    if name in layout.kept:
        values = chunk.columns.values(name)
        if kind.kind == "U":
            return np.array([_text(value) or "" for value in values], kind)
        return np.array([np.nan if value is None else value for value in values], kind)
    if chunk.scores.tensors is not None:
        tensors = chunk.scores.tensors
        found = by_label(layout.manifest, tensors) if layout.manifest.task == "multilabel" else tensors
        return found[name].astype(kind.base, copy=False)
    column = layout.numbers(chunk)[name]
    if name == "label" and layout.labels:
        return np.asarray(np.array(layout.labels, kind)[column])
    return column.astype(kind)


def _kind(names: set[str]) -> str:
    """The one type that holds all values of a column: int, float, bool or text."""
    present = names - {"NoneType"}
    if present == {"bool"}:
        return "bool"
    if present == {"int"}:
        return "int"
    return "float" if present and present <= {"int", "float"} else "text"


def _text(value: Any) -> str | None:
    return None if value is None else str(_cell(value))
