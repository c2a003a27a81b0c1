"""What must hold for any bytes at all: one function for each place where bytes of strangers come in.

A target returns quietly, or fails with the sentence that does not hold; anything else that escapes from it is a
finding too. The same targets serve the property tests, the mutation run and the coverage-guided fuzzer.
"""

import itertools
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edge_runtime.codecs import Decoded, make_decoder
from edge_runtime.config import load_config
from edge_runtime.errors import BundleError, ConfigError
from edge_runtime.framing import LineFramer
from edge_runtime.health import Counters
from edge_runtime.manifest import read_manifest, write_manifest

_GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "config"
_LIMIT = 256
_CHANNELS = ("x", "y", "accel_z")
_FIELDS = ("time", "seq", "node", "x", "_", "y", "accel_z")
_DECODERS = {
    "json": make_decoder("json", _CHANNELS),
    "json, with a key": make_decoder("json", _CHANNELS, key_field="node"),
    "csv": make_decoder("csv", _CHANNELS),
    "csv, with a key and a time": make_decoder("csv", _CHANNELS, fields=_FIELDS, key_field="node"),
    "csv, with another delimiter": make_decoder("csv", _CHANNELS, delimiter=";"),
    "json, frames": make_decoder("json", (), shape=(2, 2)),
    "csv, frames": make_decoder("csv", (), shape=(2, 2)),
}


def framing(data: bytes) -> None:
    """Lines are bounded, hold no line end, and do not depend on how the bytes were cut."""
    whole = LineFramer(_LIMIT, Counters())
    expected = whole.feed(data)
    assert all(0 < len(line) <= _LIMIT and b"\n" not in line for line in expected)
    assert whole.pending_bytes <= _LIMIT + 1
    step = data[0] % 7 + 1 if data else 1
    framer = LineFramer(_LIMIT, Counters())
    pieces = [data[i : i + step] for i in range(0, len(data), step)]
    assert list(itertools.chain.from_iterable(map(framer.feed, pieces))) == expected
    assert framer.pending_bytes <= _LIMIT + 1
    framer.feed(b"\n")
    assert framer.feed(b"good\n") == [b"good"], "the line after nonsense is found"


def codecs(data: bytes) -> None:
    """Each frame is in the result or counted, and what is in the result is fit for a model, a topic and an id."""
    frames = data.split(b"\n")
    for name, decoder in _DECODERS.items():
        counters = Counters()
        decoded = decoder.decode(frames, counters)
        _check(decoded, counters, frames, keyed="key" in name)
        again = decoder.decode([*frames, b"\xff"], Counters())
        assert _origins(again) == _origins(decoded), "a reading is the same in whatever company"
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
TARGETS: dict[str, Target] = {target.__name__: target for target in (framing, codecs, configuration, manifest)}

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
    "configuration": [path.read_bytes() for path in sorted(_GOLDEN.glob("*/device.toml"))],
    "manifest": [_MANIFEST, b'{"format": 2}', b'{"format":1,"name":"a","version":"1","task":"anomaly"}'],
}


def _folder(made: list[str] = []) -> str:  # noqa: B006 - one folder a process, made when it is first needed
    if not made or not os.path.isdir(made[0]):  # noqa: PTH112 - as quick as can be: once an input
        made[:] = [tempfile.mkdtemp(prefix="edge-fuzz-")]
    return made[0]
