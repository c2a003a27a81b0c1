"""`POST /predict/{model}`: channels by name, as sent by a sensor; the answer is the prediction that a subscriber gets.

A model of single readings takes an object of channels. A model of windows takes a list of such objects, or one object
of lists, oldest first. A model of frames takes the frame, bare or as the member `frame`. The text is read by the codec
of the stream, so that the same reading is the same number.
"""

import time
from typing import Any

import msgspec
import numpy as np

from edge_runtime.bundle.model import Scores
from edge_runtime.http.responses import HttpError, Response
from edge_runtime.http.scorer import Work
from edge_runtime.http.served_model import Served
from edge_runtime.http.window_rate import MOST_FASTER, at_the_models_rate
from edge_runtime.stream.codecs import Decoded
from edge_runtime.system.counters import Counters

BYTES, NUMBER_BYTES = 1 << 16, 64  # of a body: without its numbers, and for each number; bounds the time to parse it
_NO_JSON = frozenset({"malformed", "noise"})


def predict(served: Served, body: bytes) -> Work:
    """Read a request of one reading or one window.

    Raises:
        HttpError: 400 if the body is not JSON, 413 if it holds more than the model takes, 422 if it breaks the
            contract.
    """
    manifest = served.manifest
    most = BYTES + NUMBER_BYTES * int(np.prod(manifest.input.tensor_shape))
    if served.on_rate == "resample":
        most *= MOST_FASTER
    if len(body) > most:
        raise HttpError(413, f"expected at most {most} bytes for {served.name}, found {len(body)}")
    framed = manifest.input.shape is not None
    length = 1 if framed else manifest.input.window.length
    decoded = _decoded(served, body if framed else _rows(body, manifest.channel_names))
    values, warning = (decoded.values, "") if framed else at_the_models_rate(served, decoded)
    if len(values) != length:
        what = "one reading" if length == 1 else f"a window of {length} readings"
        raise HttpError(422, f"expected {what}, found {len(values)}", reasons={"window": 1})
    windows = values.reshape(1, *manifest.input.tensor_shape)
    served.check(windows)
    moment = decoded.times[-1]
    identity = decoded.identities[-1]

    def finish(scores: Scores) -> Response:
        return Response(
            body=served.prediction(scores, moment=time.time() if moment is None else moment, identity=identity),
            headers={"Warning": f'199 - "{warning}"'} if warning else {},  # RFC 7234, section 5.5
        )

    return Work(served.model, windows, finish)


def _decoded(served: Served, body: bytes) -> Decoded:
    manifest = served.manifest
    counters = Counters()
    decoded = served.decoder.decode([body], counters)
    reasons = {reason: count for reason, count in counters.rejected.items() if count}
    if _NO_JSON.intersection(reasons):
        shape = manifest.input.shape
        what = f"a frame of {' x '.join(map(str, shape))} numbers" if shape else "a JSON object of channels"
        raise HttpError(400, f"expected {what}{'' if shape else ', or a list of such objects'}", reasons=reasons)
    if reasons:
        named = ", ".join(manifest.channel_names) or "the frame"
        raise HttpError(422, f"expected numbers for {named}: {', '.join(reasons)}", reasons=reasons)
    return decoded


def _rows(body: bytes, channels: tuple[str, ...]) -> bytes:
    """An object of lists as a list of objects; anything else unchanged."""
    try:
        document = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return body  # the codec refuses it with a reason
    if type(document) is not dict:
        return body
    lists: dict[str, list[Any]] = {name: value for name in channels if type(value := document.get(name)) is list}
    if not lists:
        return body
    lengths = {name: len(values) for name, values in lists.items()}
    if len(lists) != len(channels) or len(set(lengths.values())) != 1:
        raise HttpError(422, f"expected a list of one length for each of {', '.join(channels)}, found {lengths}")
    rest = {name: value for name, value in document.items() if name not in lists}
    rows = [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]
    if rows:
        rows[-1].update(rest)  # time and id are those of the last reading
    return msgspec.json.encode(rows)
