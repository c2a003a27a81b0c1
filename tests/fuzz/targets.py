"""What must hold for any bytes at all: one function for each place where bytes of strangers come in.

A target returns quietly, or fails with the sentence that does not hold; anything else that escapes from it is a
finding too. The same targets serve the property tests, the mutation run and the coverage-guided fuzzer.
"""

import atexit
import itertools
import math
import shutil
import struct
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edge_runtime.bundle.manifest import read_manifest, write_manifest
from edge_runtime.config.load import load_config
from edge_runtime.errors import BundleError, ConfigError
from edge_runtime.stream.codecs import Decoded, Decoder, make_decoder
from edge_runtime.stream.framing import CobsFramer, Framer, LineFramer, cobs_decode, cobs_encode, crc16
from edge_runtime.system.counters import Counters
from tests.fuzz.protocols import SEEDS as PROTOCOL_SEEDS
from tests.fuzz.protocols import http_requests, mqtt_packets

_GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "config"
_LIMIT = 256
_CHANNELS = ("x", "y", "accel_z")
_FIELDS = ("time", "seq", "node", "x", "_", "y", "accel_z")
_LAYOUT = ("float64", "uint8", "int8", "int16", "uint32", "float16", "float32")
_DECODERS = {
    "json": make_decoder("json", _CHANNELS),
    "json, with a key": make_decoder("json", _CHANNELS, key_field="node"),
    "csv": make_decoder("csv", _CHANNELS),
    "csv, with a key and a time": make_decoder("csv", _CHANNELS, fields=_FIELDS, key_field="node"),
    "csv, with another delimiter": make_decoder("csv", _CHANNELS, delimiter=";"),
    "json, frames": make_decoder("json", (), shape=(2, 2)),
    "csv, frames": make_decoder("csv", (), shape=(2, 2)),
}
_BINARY_DECODERS = {
    "msgpack, with a key": make_decoder("msgpack", _CHANNELS, key_field="node"),
    "raw, with a key": make_decoder("raw", _CHANNELS, fields=_FIELDS, layout=_LAYOUT, scale=(0.5,), key_field="node"),
    "raw, frames": make_decoder("raw", (), shape=(2, 2), layout=("float16",)),
}


def framing(data: bytes) -> None:
    """Lines are bounded, hold no line end, and do not depend on how the bytes were cut."""
    assert all(0 < len(line) <= _LIMIT and b"\n" not in line for line in LineFramer(_LIMIT, Counters()).feed(data))
    _check_framing(data, lambda: LineFramer(_LIMIT, Counters()), b"\n", b"good")


def cobs(data: bytes) -> None:
    """The same of COBS frames, with and without a sum; what was encoded comes back."""
    assert cobs_decode(cobs_encode(data)) == data
    assert b"\0" not in cobs_encode(data)
    good = b"good" + crc16(b"good")
    for checksum in (True, False):
        _check_framing(data, partial(CobsFramer, _LIMIT, Counters(), checksum=checksum), b"\0", cobs_encode(good))


def _check_framing(data: bytes, make: Callable[[], Framer], end: bytes, good: bytes) -> None:
    whole = make()
    expected = whole.feed(data)
    assert whole.pending_bytes <= _LIMIT + 1
    step = (data[0] % 7 if data else 0) + len(data) // 300 + 1
    framer = make()
    pieces = [data[i : i + step] for i in range(0, len(data), step)]
    assert list(itertools.chain.from_iterable(map(framer.feed, pieces))) == expected
    assert framer.pending_bytes <= _LIMIT + 1
    framer.feed(end)
    assert framer.feed(good + end)[0].startswith(b"good"), "the frame after nonsense is found"


def codecs(data: bytes) -> None:
    """Each frame is in the result or counted, and what is in the result is fit for a model, a topic and an id."""
    for name, decoder in _DECODERS.items():
        _check_decoder(decoder, data.split(b"\n"), keyed="key" in name)


def binary_codecs(data: bytes) -> None:
    """The same of the formats that are no text."""
    for name, decoder in _BINARY_DECODERS.items():
        _check_decoder(decoder, data.split(b"\n\n"), keyed="key" in name)


def _check_decoder(decoder: Decoder, frames: list[bytes], *, keyed: bool) -> None:
    counters = Counters()
    decoded = decoder.decode(frames, counters)
    _check(decoded, counters, frames, keyed=keyed)
    again = decoder.decode([*frames, b"\xff"], Counters())
    assert _origins(again) == _origins(decoded), "a reading is the same whatever comes with it"
    assert again.values.tobytes() == decoded.values.tobytes()


def _check(decoded: Decoded, counters: Counters, frames: list[bytes], *, keyed: bool) -> None:
    count = len(decoded)
    assert decoded.values.dtype == np.float32
    assert len(decoded.values) == len(decoded.keys) == len(decoded.times) == len(decoded.identities) == count
    assert not np.isinf(decoded.values).any()
    assert not np.isnan(decoded.values).all(axis=tuple(range(1, decoded.values.ndim))).any()
    assert decoded.rows == sorted(decoded.rows)
    assert set(decoded.rows) <= set(range(len(frames)))
    single = sum(not frame.lstrip().startswith(b"[") for frame in frames)
    assert len(set(decoded.rows)) + counters.rejected.total() >= single, "nothing disappears uncounted"
    for key in decoded.keys:
        assert (key is not None) == keyed
        assert key is None or not set(key) & set("/+#\0")
        assert key is None or 0 < len(key) <= 200
    assert all(moment is None or 0 <= moment < 7.3e9 for moment in decoded.times)
    assert all(identity is None or 0 < len(identity) <= 128 for identity in decoded.identities)


def _origins(decoded: Decoded) -> list[Any]:
    return [decoded.rows, decoded.keys, decoded.times, decoded.identities]


def configuration(data: bytes) -> None:
    """A device file is accepted, or refused with lines that name it."""
    path = Path(_folder(), "device.toml")
    path.write_bytes(data)
    mistakes = _mistakes(path)
    assert all(str(path) in mistake and mistake.isprintable() for mistake in mistakes), mistakes


def _mistakes(path: Path) -> tuple[str, ...]:
    try:
        load_config(path)
    except ConfigError as error:
        return error.mistakes or ("refused without a word",)
    return ()


def manifest(data: bytes) -> None:
    """A manifest is refused in words, or is read, written and read again to the same."""
    try:
        found = read_manifest(data, "a.onnx")
    except BundleError as error:
        refusal = str(error)
    else:
        text = write_manifest(found)
        assert write_manifest(read_manifest(text, "a.onnx")) == text
        return
    assert refusal.startswith("a.onnx: ")


Target = Callable[[bytes], None]
TARGETS: dict[str, Target] = {
    target.__name__: target
    for target in (framing, cobs, codecs, binary_codecs, configuration, manifest, http_requests, mqtt_packets)
}

_MANIFEST = b"""{"format":1,"name":"vib","version":"1.0.0","task":"classification","input":{"channels":[{"name":"x",
"unit":"g","range":[-2.5,2]},{"name":"y"}],"window":{"length":10,"stride":5,"rate_hz":10.0}},"output":{"labels":
["a","b"]},"state":[{"input":"s","output":"t","shape":[4],"type":"float32"}],"reference":[{"name":"x","mean":0,"std":1,
"min":-1,"max":1,"edges":[0,1],"counts":[3]}],"selftest":{"input":{"shape":[1,2],"dtype":"float32","data":"AAAA"},
"outputs":{}},"source":{"framework":"sklearn"},"requires":{"opset":17},"newer":{"a":[1]}}"""

# Where mutations begin: inputs that go deep.
SEEDS: dict[str, list[bytes]] = {
    "framing": [b"\n1,2\r\n3,4\n", b"junk\n" + b"x" * 300 + b"\n1\n", b"\r\n\r\r\n\n1\n"],
    "codecs": [
        b'{"x": 1.5, "y": -2e3, "accel_z": null, "time": "2026-11-23T11:19:04.123456Z", "seq": 7, "node": "n1"}',
        b'[{"x": 1, "id": "a/b"}, {"y": 1e39}, 7, {"x": NaN}]\n[[1,2],[3,4]]\n{"frame":[1,2,3,4],"time":5}',
        b'1,2,3\n1763896744.25,7,n1,1,junk,2,3\n1;2;3\n,,\n1_0,inf,0x1\n"1","2",3\n1,2,3,4',
        b'{"x": 1, "time": 1763896744, "id": "' + b"i" * 140 + b'"}\n{"x":true}\n{"x":"1"}\n{"x":[[[[1]]]]}',
        b'{"x":1],[2\n1,2],[3,4,5\n"1,2\n3",4,5',
    ],
    "cobs": [cobs_encode(b"\0ab" + crc16(b"\0ab")) + b"\0\x03ab\0\0\x09a\0", b"\0" + b"x" * 300 + b"\0\x01\0"],
    "binary_codecs": [
        msgspec.msgpack.encode({"x": 1.5, "y": -2, "accel_z": None, "time": 1763896744.25, "seq": 7, "node": "n1"}),
        msgspec.msgpack.encode([{"x": 1, "node": 3, "id": "a" * 130}, {"y": math.nan, "node": "n"}, 7, {}]),
        struct.pack("<dBbhIef", 1763896744.25, 7, 3, -200, 4_000_000_000, 1.5, -2.5) + b"\n\n" + bytes(8),
        struct.pack("<dBbhIef", math.inf, 7, -3, 5, 6, math.nan, 1e38),
    ],
    "configuration": [path.read_bytes() for path in sorted(_GOLDEN.glob("*/device.toml"))],
    **PROTOCOL_SEEDS,
    "manifest": [_MANIFEST, b'{"format": 2}', b'{"format":1,"name":"a","version":"1","task":"anomaly"}'],
}


@cache
def _folder() -> str:
    """One folder a process, made when it is first needed."""
    made = tempfile.mkdtemp(prefix="edge-fuzz-")
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made
