"""Open Inference Protocol v2: requests of tensors, as JSON or as raw little-endian bytes behind the JSON.

The input is `window`, FP32 `[n, *shape]`, or another type whose numbers float32 holds (`tensor_types.py`). The states
of a recurrent model are optional further inputs, and start at zero by default. The outputs are those of the normal
form, and the next states.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_runtime.bundle.manifest import INPUT_NAME, Manifest
from edge_runtime.bundle.model import Scores
from edge_runtime.bundle.uncertainty import answer_ports, further_answers
from edge_runtime.http.responses import HttpError, Response
from edge_runtime.http.scorer import Work
from edge_runtime.http.served_model import Served
from edge_runtime.http.tensor_types import cast, half, kind_of, whole
from edge_runtime.readings import Carry, Floats

LENGTH_HEADER = "Inference-Header-Content-Length"
PIECE_BYTES = 1 << 15  # of JSON, read in about a millisecond
PIECE_NUMBERS = 1 << 12
_MOST_DIMENSIONS = 8
MAX_ANSWER_BYTES = 16 << 20
_TEXT_BYTES, _BINARY_BYTES = 24, 8  # of a number: the longest float as text with its comma, the longest binary one
_DATATYPES = {"float32": "FP32", "int64": "INT64"}


class _Input(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] = {}
    data: msgspec.Raw = msgspec.Raw()


class _Output(msgspec.Struct):
    name: str
    parameters: dict[str, Any] = {}


class _Infer(msgspec.Struct):
    inputs: list[_Input]
    id: str | None = None
    parameters: dict[str, Any] = {}
    outputs: list[_Output] | None = None


_decode = msgspec.json.Decoder(_Infer).decode


def metadata(served: Served) -> dict[str, Any]:
    """The document of `/v2/models/M`, from the manifest."""
    manifest = served.manifest
    states = manifest.state
    return {
        "name": served.name,
        "versions": [manifest.version],
        "platform": "onnxruntime_onnx",
        "inputs": [
            _tensor(INPUT_NAME, "FP32", manifest.input.tensor_shape),
            *(_tensor(state.input, "FP32", state.shape) for state in states),
        ],
        "outputs": [
            *(_tensor(name, _DATATYPES[port.dtype], port.shape) for name, port in answer_ports(manifest).items()),
            *(_tensor(state.output, "FP32", state.shape) for state in states),
        ],
        "parameters": _parameters(served),
    }


def infer(served: Served, body: bytes, header_length: str | None, pause: Callable[[], None] = lambda: None) -> Work:
    """Read a request of tensors. `pause` is called between pieces of long texts, which are read and written in such.

    Raises:
        HttpError: the request does not fit the model.
    """
    request, raw = _read(body, header_length)
    tensors = _inputs(request, raw, served.manifest, pause)
    windows = tensors[INPUT_NAME]
    served.check(windows)
    carries = _carries(served.manifest, tensors, len(windows))
    wanted = _wanted(request, served.manifest)
    refuse_too_much(served.manifest, wanted, len(windows))

    def finish(scores: Scores) -> Response:
        found = scores.arrays() | further_answers(served.manifest, scores)
        if carries is not None:
            for place, state in enumerate(served.manifest.state):
                found[state.output] = np.stack([_part(carry, place) for carry in carries])
        return _write(served, request, [(name, found[name], binary) for name, binary in wanted], pause)

    return Work(served.model, windows, finish, carries)


def _read(body: bytes, header_length: str | None) -> tuple[_Infer, bytes]:
    head, raw = body, b""
    if header_length is not None:
        if not header_length.isascii() or not header_length.isdigit() or int(header_length) > len(body):
            raise HttpError(400, f"{LENGTH_HEADER}: expected a number up to {len(body)}, found {header_length[:32]!r}")
        head, raw = body[: int(header_length)], body[int(header_length) :]
    try:
        return _decode(head), raw
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise HttpError(400, f"expected an inference request as JSON: {str(error)[:200]}") from error


def _inputs(request: _Infer, raw: bytes, manifest: Manifest, pause: Callable[[], None]) -> dict[str, Floats]:
    known = {INPUT_NAME: manifest.input.tensor_shape} | {state.input: state.shape for state in manifest.state}
    found: dict[str, Floats] = {}
    for given in request.inputs:
        if given.name not in known or given.name in found:
            raise HttpError(400, f"inputs: expected {', '.join(known)}, each once, found {given.name[:64]!r}")
        size = given.parameters.get("binary_data_size")
        part = None
        if size is not None:
            if type(size) is not int or not 0 <= size <= len(raw):
                raise HttpError(
                    400,
                    f"{given.name}: binary_data_size: expected at most the {len(raw)} bytes that came, found {size}",
                )
            part, raw = raw[:size], raw[size:]
        gaps = given.name == INPUT_NAME and any(each.missing == "allowed" for each in manifest.input.channels)
        found[given.name] = _tensor_values(given, part, known[given.name], pause, gaps=gaps)
    if raw:
        raise HttpError(400, f"expected binary data for the inputs only, found {len(raw)} bytes more")
    if INPUT_NAME not in found:
        raise HttpError(400, f"inputs: expected {INPUT_NAME}, found none")
    for name, values in found.items():
        if len(values) != len(found[INPUT_NAME]):
            raise HttpError(400, f"{name}: expected {len(found[INPUT_NAME])} rows as in {INPUT_NAME}")
    return found


def _tensor_values(
    given: _Input, part: bytes | None, tail: tuple[int, ...], pause: Callable[[], None], *, gaps: bool
) -> Floats:
    name, shape = given.name, tuple(given.shape)
    kind = kind_of(name, given.datatype)
    if len(shape) != len(tail) + 1 or shape[1:] != tail or not 1 <= shape[0] < 2**31:
        wanted = ", ".join(["n", *map(str, tail)])
        raise HttpError(400, f"{name}: shape: expected [{wanted}] with n of 1 or more, found {list(shape)[:16]}")
    count = shape[0] * int(np.prod(tail, dtype=np.int64))
    if part is not None:
        if len(part) != kind.itemsize * count:
            raise HttpError(
                400, f"{name}: expected {kind.itemsize * count} bytes of {given.datatype}, found {len(part)}"
            )
        return cast(name, np.frombuffer(part, kind)).reshape(shape)
    values = _json_values(name, bytes(given.data), pause, gaps=gaps, datatype=given.datatype)
    if values.size != count:
        raise HttpError(400, f"{name}: data: expected {count} numbers, found {values.size}")
    if given.datatype != "FP32":
        return cast(name, half(name, values) if given.datatype == "FP16" else values).reshape(shape)
    with np.errstate(over="ignore"):
        return values.reshape(shape).astype(np.float32)


def json_numbers(data: bytes, pause: Callable[[], None], *, gaps: bool) -> NDArray[np.float64]:
    """Read a JSON text of numbers, flat or nested; with `gaps`, missing numbers become NaN.

    Raises:
        HttpError: 400, it is something else.
    """
    return _json_values("instances", data, pause, gaps=gaps)


def _json_values(
    name: str, data: bytes, pause: Callable[[], None], *, gaps: bool, datatype: str = "FP32"
) -> NDArray[Any]:
    """Flat or nested rows of numbers; text and booleans are refused, and null unless `gaps` allows it."""
    head = data[:256].translate(None, b" \t\r\n")
    depth = len(head) - len(head.lstrip(b"["))
    if not 1 <= depth <= _MOST_DIMENSIONS:
        raise HttpError(400, f"{name}: data: expected a list of numbers, flat or nested as the shape")
    is_whole = "INT" in datatype
    decode = _list_decoder(depth, gaps=gaps and not is_whole, whole=is_whole)

    def read(piece: bytes) -> NDArray[Any]:
        return whole(name, datatype, decode(piece)) if is_whole else np.array(decode(piece), np.float64)

    try:
        if len(data) <= PIECE_BYTES:
            return read(data)
        pieces = []
        for piece in _pieces(data, depth):
            pieces.append(read(piece))
            pause()
        return np.concatenate(pieces)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise HttpError(400, f"{name}: data: expected rows of numbers of one length: {str(error)[:200]}") from error


def _pieces(data: bytes, depth: int) -> Iterator[bytes]:
    """Split a long list into short ones between its items, so that parsing each holds the GIL only briefly."""
    inside = data.strip()[1:-1]
    end = b"]" * (depth - 1) + b","  # of an item
    at = 0
    while len(inside) - at > PIECE_BYTES:
        cut = inside.find(end, at + PIECE_BYTES)
        if cut < 0:
            break
        cut += len(end) - 1
        yield b"[" + inside[at:cut] + b"]"
        at = cut + 1
    yield b"[" + inside[at:] + b"]"


@lru_cache(3 * _MOST_DIMENSIONS)
def _list_decoder(depth: int, *, gaps: bool, whole: bool) -> Any:
    kind: Any = int if whole else float | None if gaps else float  # numpy turns None into NaN
    for _ in range(depth):
        kind = list.__class_getitem__(kind)
    return msgspec.json.Decoder(kind).decode


def _carries(manifest: Manifest, tensors: dict[str, Floats], count: int) -> list[Carry] | None:
    if not manifest.state:
        return None
    carries = [Carry() for _ in range(count)]
    if any(state.input in tensors for state in manifest.state):
        for row, carry in enumerate(carries):
            carry.parts = [
                tensors[state.input][row] if state.input in tensors else np.zeros(state.shape, np.float32)
                for state in manifest.state
            ]
    return carries


def _part(carry: Carry, place: int) -> Floats:
    assert carry.parts is not None
    return carry.parts[place]


def _wanted(request: _Infer, manifest: Manifest) -> list[tuple[str, bool]]:
    names = [*answer_ports(manifest), *(state.output for state in manifest.state)]
    default = _flag(request.parameters, "binary_data_output", default=False)
    if request.outputs is None:
        return [(name, default) for name in names]
    left = list(names)
    for output in request.outputs:
        if output.name not in left:
            known = f"some of {', '.join(names)}, each once"
            raise HttpError(400, f"outputs: expected {known}, found {output.name[:64]!r}")
        left.remove(output.name)
        if output.parameters.get("classification"):
            raise HttpError(400, f"{output.name}: the classification extension is not offered: ask for the scores")
    return [(output.name, _flag(output.parameters, "binary_data", default=default)) for output in request.outputs]


def refuse_too_much(manifest: Manifest, wanted: list[tuple[str, bool]], rows: int) -> None:
    """Refuse a request whose answer would be too long, before its model runs."""
    shapes = {state.output: state.shape for state in manifest.state}
    shapes |= {name: port.shape for name, port in answer_ports(manifest).items()}
    size = 0
    for name, binary in wanted:
        numbers = int(np.prod(shapes[name], dtype=np.int64))
        size += rows * numbers * (_BINARY_BYTES if binary else _TEXT_BYTES)
    if size > MAX_ANSWER_BYTES:
        raise HttpError(
            413,
            f"expected a request whose answer has at most {MAX_ANSWER_BYTES} bytes, found up to {size}: ask for less",
        )


def _flag(parameters: dict[str, Any], name: str, *, default: bool) -> bool:
    value = parameters.get(name, default)
    if type(value) is not bool:
        raise HttpError(400, f"{name}: expected true or false, found {str(value)[:32]!r}")
    return value


def _write(
    served: Served, request: _Infer, outputs: list[tuple[str, NDArray[Any], bool]], pause: Callable[[], None]
) -> Response:
    documents: list[dict[str, Any]] = []
    binary: list[bytes] = []
    for name, values, raw in outputs:
        datatype = "INT64" if values.dtype == np.int64 else "FP32"
        document: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(values.shape)}
        if raw:
            data = np.ascontiguousarray(values).astype("<i8" if datatype == "INT64" else "<f4", copy=False).tobytes()
            document["parameters"] = {"binary_data_size": len(data)}
            binary.append(data)
        else:
            document["data"] = _numbers(values.ravel(), pause)
        documents.append(document)
    head: dict[str, Any] = {"model_name": served.name, "model_version": served.manifest.version}
    if request.id is not None:
        head["id"] = request.id
    body = msgspec.json.encode({**head, "outputs": documents})
    if not binary:
        return Response(body=body)
    return Response(
        body=b"".join([body, *binary]), type="application/octet-stream", headers={LENGTH_HEADER: str(len(body))}
    )


def _numbers(values: NDArray[Any], pause: Callable[[], None]) -> list[Any] | msgspec.Raw:
    if len(values) <= PIECE_NUMBERS:
        return values.tolist()  # type: ignore[no-any-return]
    texts = []
    for at in range(0, len(values), PIECE_NUMBERS):
        texts.append(msgspec.json.encode(values[at : at + PIECE_NUMBERS].tolist())[1:-1])
        pause()
    return msgspec.Raw(b"[" + b",".join(texts) + b"]")


def _tensor(name: str, datatype: str, tail: tuple[int, ...]) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": [-1, *tail]}


def _parameters(served: Served) -> dict[str, Any]:
    """The facts of the manifest beyond tensors: the order of channels and labels, units, ranges, the window."""
    manifest = served.manifest
    document: dict[str, Any] = {"task": manifest.task, "digest": served.model.bundle.digest}
    if manifest.input.channels:
        document["channels"] = msgspec.to_builtins(manifest.input.channels)
        document["window"] = msgspec.to_builtins(manifest.input.window)
    document["output"] = msgspec.to_builtins(manifest.output)
    return document
