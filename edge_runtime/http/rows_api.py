"""`/invocations` (MLflow, SageMaker) and `/v1/models/M:predict` (KServe V1, TensorFlow): rows in, predictions out.

A row is a list of numbers in the order of the manifest's channels, nested as the window or flat, or an object of
channels by name. A prediction is the answer of the model alone: a label (a list of labels for a multi-label model), a
value (a list if there are several), a score. `/predict` and the protocol of version 2 give more.

Guarantee: rows are checked against the contract as everywhere else. Nothing is guessed: a text that looks like a
number, a table without its channels' names, and rows that form no complete window are refused.
"""

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_runtime.bundle.manifest import INPUT_NAME, Input, Manifest, output_ports
from edge_runtime.bundle.model import Scores
from edge_runtime.http.oip_v2 import json_numbers, refuse_too_much
from edge_runtime.http.responses import HttpError, Response, json_response
from edge_runtime.http.scorer import Work
from edge_runtime.http.served_model import Served
from edge_runtime.readings import Carry, Floats

MOST_NAMED_BYTES = 1 << 20  # of rows by name and of tables, which become Python objects before they are numbers
_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)
_FORMS = "instances, inputs, dataframe_split or dataframe_records"


class _Split(msgspec.Struct):
    columns: list[str]
    data: list[list[Any]]


class _Body(msgspec.Struct):
    instances: msgspec.Raw = msgspec.Raw()  # empty where it is missing
    inputs: msgspec.Raw = msgspec.Raw()
    dataframe_split: _Split | None = None
    dataframe_records: list[dict[str, Any]] | None = None


_decode = msgspec.json.Decoder(_Body).decode


def predict_v1(served: Served, body: bytes, pause: Callable[[], None]) -> Work:
    """Read `{"instances": [...]}`, or `{"inputs": ...}`, the form of TensorFlow Serving by columns.

    Raises:
        HttpError: 400 or 413, it cannot be read; 422, it breaks the contract.
    """
    read = _read(body)
    instances, inputs = bytes(read.instances), bytes(read.inputs)
    if bool(instances) == bool(inputs):
        raise HttpError(400, "expected a JSON object with either instances or inputs")
    wanted = served.manifest.input
    return _work(served, _instances(wanted, instances, pause) if instances else _inputs(wanted, inputs, pause))


def invoke(served: Served, body: bytes, kind: str, pause: Callable[[], None]) -> Work:
    """Read one of the forms of MLflow's scoring server.

    Args:
        served: the model.
        body: of the request.
        kind: its content type.
        pause: called between pieces of long texts.

    Raises:
        HttpError: 400, 413 or 415, it cannot be read; 422, it breaks the contract.
    """
    wanted = served.manifest.input
    media, _, parameters = kind.partition(";")
    media = media.strip().lower()
    if media == "text/csv":
        return _work(served, _csv(wanted, body, has_header="header=absent" not in parameters.replace(" ", "").lower()))
    if media not in {"application/json", ""}:
        raise HttpError(415, f"expected Content-Type application/json or text/csv, found {media[:64]!r}")
    read = _read(body)
    instances, inputs, split, records = (
        bytes(read.instances),
        bytes(read.inputs),
        read.dataframe_split,
        read.dataframe_records,
    )
    if [bool(instances), bool(inputs), split is not None, records is not None].count(True) != 1:
        raise HttpError(400, f"expected a JSON object with one of {_FORMS}")
    if instances:
        return _work(served, _instances(wanted, instances, pause))
    if inputs:
        return _work(served, _inputs(wanted, inputs, pause))
    _refuse_long(body)
    if split is not None:
        return _work(served, _table(wanted, split.columns, split.data))
    assert records is not None
    return _work(served, _windows(wanted, _by_name(wanted, records)))


def _read(body: bytes) -> _Body:
    try:
        return _decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise HttpError(400, f"expected a JSON object with one of {_FORMS}: {str(error)[:200]}") from error


def _work(served: Served, windows: Floats) -> Work:
    if not len(windows):
        raise HttpError(400, "expected one row or more, found none")
    served.check(windows)
    manifest = served.manifest
    refuse_too_much(manifest, [(name, False) for name in output_ports(manifest)], len(windows))
    carries = [Carry() for _ in windows] if manifest.state else None  # each row begins with states of zero

    def finish(scores: Scores) -> Response:
        return json_response({"predictions": _predictions(manifest, scores)})

    return Work(served.model, windows, finish, carries)


def _predictions(manifest: Manifest, scores: Scores) -> list[Any]:
    """One prediction for each row."""
    if scores.label is not None:
        return [manifest.output.labels[place] for place in scores.label]
    if scores.value is not None:
        rows = scores.value.tolist()
        return [row[0] for row in rows] if len(manifest.output.targets) == 1 else rows
    if scores.score is not None:
        return list(scores.score.tolist())
    arrays = scores.arrays()
    if manifest.task == "multilabel":
        names = manifest.output.labels
        there = arrays["labels"].tolist()
        return [[name for name, yes in zip(names, row, strict=True) if yes] for row in there]
    lists = {name: values.tolist() for name, values in arrays.items()}
    if len(lists) == 1:
        return list(next(iter(lists.values())))
    return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]


def _inputs(wanted: Input, raw: bytes, pause: Callable[[], None]) -> Floats:
    """A list as `instances`; an object of the tensor `window`, or of a list for each channel."""
    if raw.lstrip()[:1] != b"{":
        return _instances(wanted, raw, pause)
    columns = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    if list(columns) == [INPUT_NAME]:
        return _instances(wanted, bytes(columns[INPUT_NAME]), pause)
    _refuse_long(raw)
    _refuse_missing(wanted, columns)
    lists = [np.atleast_1d(_numbers(bytes(columns[name]), pause, wanted)) for name in _names(wanted)]
    if len({values.shape for values in lists}) != 1 or lists[0].ndim != 1:
        raise HttpError(422, f"expected a list of one length for each of {', '.join(_names(wanted))}")
    with np.errstate(over="ignore"):
        return _windows(wanted, np.stack(lists, axis=1).astype(np.float32))


def _instances(wanted: Input, raw: bytes, pause: Callable[[], None]) -> Floats:
    head = raw[:256].translate(None, b" \t\r\n")
    if head.lstrip(b"[")[:1] == b"{":
        _refuse_long(raw)
        return _objects(wanted, msgspec.json.decode(raw))
    values = _numbers(raw, pause, wanted)
    shape = wanted.tensor_shape
    forms = [shape, (int(np.prod(shape)),), *([shape[1:]] if wanted.shape is None and shape[0] == 1 else [])]
    if values.shape[1:] not in forms:
        expected = " or ".join(str(list(form)) for form in dict.fromkeys(forms))
        raise HttpError(422, f"expected instances of the shape {expected}, found {list(values.shape[1:])}")
    with np.errstate(over="ignore"):
        return values.reshape(-1, *shape).astype(np.float32)


def _objects(wanted: Input, items: Any) -> Floats:
    """Readings by name, each alone, or in lists of which each is a window."""
    if type(items) is not list:
        raise HttpError(400, "expected a list of instances")
    if all(type(item) is dict for item in items) and wanted.window.length == 1:
        return _windows(wanted, _by_name(wanted, items))
    windows = []
    for place, item in enumerate(items):
        rows = item if type(item) is list else None
        if rows is None or len(rows) != wanted.window.length or not all(type(row) is dict for row in rows):
            raise HttpError(422, f"expected a list of {wanted.window.length} readings as instance {place}")
        windows.append(_by_name(wanted, rows))
    return np.stack(windows).reshape(-1, *wanted.tensor_shape)


def _by_name(wanted: Input, rows: Sequence[Mapping[str, Any]]) -> Floats:
    names = _names(wanted)
    for row in rows:
        _refuse_missing(wanted, row)
    return _floats([[row[name] for name in names] for row in rows], names)


def _table(wanted: Input, columns: Sequence[str], data: Sequence[Sequence[Any]]) -> Floats:
    _refuse_missing(wanted, columns)
    if len(set(columns)) != len(columns):
        raise HttpError(422, "expected columns of different names")
    for place, row in enumerate(data):
        if len(row) != len(columns):
            raise HttpError(422, f"expected {len(columns)} values in row {place}, found {len(row)}")
    names = _names(wanted)
    places = [list(columns).index(name) for name in names]
    return _windows(wanted, _floats([[row[place] for place in places] for row in data], names))


def _csv(wanted: Input, body: bytes, *, has_header: bool) -> Floats:
    """Rows of text; the first names the columns unless the content type says `header=absent` (RFC 4180)."""
    _refuse_long(body)
    try:
        rows = [row for row in csv.reader(io.StringIO(body.decode("utf-8-sig"), newline=""), strict=True) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise HttpError(400, f"expected CSV in UTF-8: {error}") from error
    columns: Sequence[str] = _names(wanted)
    if has_header and rows:
        columns = [name.strip() for name in rows.pop(0)]
        if all(map(_NUMBER.fullmatch, columns)):
            raise HttpError(422, "expected the names of the columns in the first row: or say text/csv; header=absent")
    return _table(wanted, columns, [[_cell(text) for text in row] for row in rows])


def _cell(text: str) -> Any:
    if not text.strip():
        return None
    return float(text) if _NUMBER.fullmatch(text) else text


def _windows(wanted: Input, rows: Floats) -> Floats:
    """Rows of one reading each; a longer window takes several rows, the oldest first."""
    length = wanted.window.length
    if length > 1 and len(rows) != length:
        raise HttpError(422, f"expected {length} readings, one window, found {len(rows)}: send windows as instances")
    return rows.reshape(-1, *wanted.tensor_shape)


def _floats(rows: list[list[Any]], names: Sequence[str]) -> Floats:
    """Numbers from JSON or CSV; a missing one is NaN, which the contract judges."""
    for place, row in enumerate(rows):
        for name, value in zip(names, row, strict=True):
            if value is not None and type(value) not in (int, float):
                raise HttpError(422, f"row {place}: {name}: expected a number, found {str(value)[:32]!r}")
    with np.errstate(over="ignore"):
        try:
            return np.array(rows, np.float64).reshape(len(rows), len(names)).astype(np.float32)
        except OverflowError as error:
            raise HttpError(422, "expected numbers that a float holds") from error


def _numbers(raw: bytes, pause: Callable[[], None], wanted: Input) -> NDArray[np.float64]:
    gaps = any(channel.missing == "allowed" for channel in wanted.channels)
    return json_numbers(raw, pause, gaps=gaps)


def _names(wanted: Input) -> tuple[str, ...]:
    names = tuple(channel.name for channel in wanted.channels)
    if not names:
        raise HttpError(422, "expected frames of numbers as instances: this model has no channels by name")
    return names


def _refuse_missing(wanted: Input, found: Any) -> None:
    missing = [name for name in _names(wanted) if name not in found]
    if missing:
        raise HttpError(422, f"expected the channels {', '.join(_names(wanted))}: {', '.join(missing)} missing")


def _refuse_long(body: bytes) -> None:
    if len(body) > MOST_NAMED_BYTES:
        raise HttpError(413, f"expected at most {MOST_NAMED_BYTES} bytes by name, found {len(body)}: send lists")
