"""MessagePack and raw frames become columns, and every way to be wrong has its reason."""

import datetime as dt
import math
import struct
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.errors import ConfigError
from edge_runtime.stream.codecs import Decoded, make_decoder
from edge_runtime.system.counters import Counters

CHANNELS = ("x", "y")
PACKED = struct.Struct("<Ihhf")
FIELDS = ("seq", "y", "_", "x")
LAYOUT = ("uint32", "int16", "int16", "float32")

pack = msgspec.msgpack.encode


def decode(kind: str, *frames: bytes, **options: Any) -> tuple[Decoded, dict[str, int]]:
    """What the frames hold, and what was rejected."""
    counters = Counters()
    decoded = make_decoder(kind, options.pop("channels", CHANNELS), **options).decode(frames, counters)
    return decoded, dict(counters.rejected)


def test_a_msgpack_map_is_a_reading() -> None:
    """MessagePack maps are read as JSON objects are, arrays of them included; a time may be a timestamp."""
    moment = dt.datetime(2025, 11, 23, 11, 19, 4, 250_000, dt.UTC)
    frames = [
        pack({"y": 2, "x": 1.5, "time": moment, "node": 7}),
        pack([{"x": 3, "node": "a", "seq": 9}, {"x": None, "y": 4, "node": "a", "time": 1763896744}]),
    ]
    decoded, rejected = decode("msgpack", *frames, key_field="node")
    assert not rejected
    np.testing.assert_array_equal(decoded.values, np.array([[1.5, 2], [3, np.nan], [np.nan, 4]], np.float32))
    assert decoded.rows == [0, 1, 1]
    assert decoded.keys == ["7", "a", "a"]
    assert decoded.times == [1763896744.25, None, 1763896744.0]
    assert decoded.identities == ["2025-11-23T11:19:04.250000+00:00", "9", "1763896744"]


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (b"", "malformed"),
        (b"\xc1", "malformed"),
        (pack({"x": 1, "y": 2})[:-1], "malformed"),
        (pack({"x": 1}) + b"\x00", "malformed"),
        (b"\x91" * 100_000, "malformed"),
        (b"\xdd\xff\xff\xff\xff", "malformed"),
        (pack(7), "malformed"),
        (b"\x81\xa1\xff\x01", "missing_channel"),
        (pack({"x": "1"}), "wrong_type"),
        (pack({"x": True}), "wrong_type"),
        (pack({"x": b"1"}), "wrong_type"),
        (pack({"x": math.nan, "y": 1}), "not_finite"),
        (pack({"x": -math.inf}), "not_finite"),
        (pack({"x": 1e39}), "not_finite"),
        (pack({}), "missing_channel"),
        (pack({"z": 1}), "missing_channel"),
        (pack({"x": 1, "time": "noon"}), "bad_time"),
        (pack({"x": 1, "time": dt.datetime(1969, 1, 1, tzinfo=dt.UTC)}), "bad_time"),
        (pack({"x": 1, "id": [1]}), "wrong_type"),
    ],
)
def test_what_is_no_msgpack_reading_is_counted_by_reason(frame: bytes, reason: str) -> None:
    """A frame that is no reading is counted once under its reason, and the frames around it are kept."""
    good = pack({"x": 1, "y": 2})
    decoded, rejected = decode("msgpack", good, frame, good)
    assert rejected == {reason: 1}
    assert decoded.rows == [0, 2]
    assert decoded.values.tolist() == [[1, 2]] * 2


def test_a_packed_structure_is_a_reading() -> None:
    """A raw frame is a structure of the types in `layout`, little-endian, without padding."""
    frames = [PACKED.pack(7, -200, 99, 1.5), PACKED.pack(8, 300, 99, -2.5)]
    decoded, rejected = decode("raw", *frames, fields=FIELDS, layout=LAYOUT)
    assert not rejected
    assert decoded.values.tolist() == [[1.5, -200], [-2.5, 300]]
    assert decoded.identities == ["7", "8"]


def test_scale_turns_counts_into_units() -> None:
    """`scale` multiplies each field, or all of them alike; big-endian devices say so."""
    frame = struct.pack(">hH", -2000, 50_000)
    options: dict[str, Any] = {"layout": ("int16", "uint16"), "byte_order": "big"}
    assert decode("raw", frame, **options)[0].values.tolist() == [[-2000, 50_000]]
    assert decode("raw", frame, scale=(0.5, 0.25), **options)[0].values.tolist() == [[-1000, 12_500]]
    assert decode("raw", frame, scale=(0.5,), **options)[0].values.tolist() == [[-1000, 25_000]]


def test_a_raw_key_and_time_are_columns() -> None:
    """A whole number may be the key, and a number of Unix seconds the time."""
    frame = struct.pack("<dBff", 1763896744.25, 3, 1, 2)
    layout = ("float64", "uint8", "float32", "float32")
    decoded, _ = decode("raw", frame, fields=("time", "node", "x", "y"), layout=layout, key_field="node")
    assert (decoded.times, decoded.keys) == ([1763896744.25], ["3"])


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (b"", "malformed"),
        (PACKED.pack(1, 2, 3, 4.0)[:-1], "malformed"),
        (PACKED.pack(1, 2, 3, 4.0) + b"\0", "malformed"),
        (PACKED.pack(1, 2, 3, math.nan), "not_finite"),
        (PACKED.pack(1, 2, 3, math.inf), "not_finite"),
        (PACKED.pack(1, 2, 3, 0.0)[:-4] + b"\x01\x00\x80\x7f", "not_finite"),  # a signalling NaN
    ],
)
def test_what_is_no_structure_is_counted_by_reason(frame: bytes, reason: str) -> None:
    """A frame of another length, or with a number that is none, is counted once, and its neighbours are kept."""
    good = PACKED.pack(1, 2, 3, 4.0)
    decoded, rejected = decode("raw", good, frame, good, fields=FIELDS, layout=LAYOUT)
    assert rejected == {reason: 1}
    assert decoded.rows == [0, 2]


def test_a_raw_frame_is_the_numbers_of_its_shape() -> None:
    """A source of whole frames takes the bytes of a camera: one type, row-major, scaled."""
    options: dict[str, Any] = {"channels": (), "shape": (2, 3), "layout": ("uint8",), "scale": (0.5,)}
    decoded, rejected = decode("raw", bytes(range(6)), b"short", **options)
    assert decoded.values.tolist() == [[[0, 0.5, 1], [1.5, 2, 2.5]]]
    assert rejected == {"malformed": 1}


@pytest.mark.parametrize(
    ("options", "mistakes"),
    [
        ({}, ["imu.layout: expected a type for each of the 2 fields, found 0"]),
        (
            {"layout": ("int16", "int12"), "scale": (1.0, 2.0, 3.0)},
            [
                "imu.layout: expected types such as int16 or float32, found int12",
                "imu.scale: expected one factor, or one for each of 2 fields, found 3",
            ],
        ),
        (
            {"layout": ("int16", "int16"), "fields": ("x", "z")},
            ["imu.fields: expected every channel of the model, found no y: add it to `fields`"],
        ),
    ],
)
def test_a_layout_that_does_not_fit_is_a_configuration_mistake(options: dict[str, Any], mistakes: list[str]) -> None:
    """A structure that cannot give the model its channels is refused at start, with every mistake."""
    with pytest.raises(ConfigError) as caught:
        make_decoder("raw", CHANNELS, place="imu", **options)
    assert list(caught.value.mistakes) == mistakes


def test_msgpack_has_no_whole_frames() -> None:
    """A model of whole frames is fed with JSON, CSV or raw bytes, and the message says so."""
    with pytest.raises(ConfigError, match="expected json, csv or raw for a model of whole frames, found 'msgpack'"):
        make_decoder("msgpack", (), shape=(2, 2))


@given(frames=st.lists(st.binary(max_size=30)), kind=st.sampled_from(["msgpack", "raw"]))
def test_any_bytes_are_a_reading_or_a_count(frames: list[bytes], kind: str) -> None:
    """Whatever the bytes, a frame is a reading or a count, the same alone as together with others."""
    options: dict[str, Any] = {"fields": FIELDS, "layout": LAYOUT} if kind == "raw" else {}
    decoded, rejected = decode(kind, *frames, **options)
    assert len(decoded) + sum(rejected.values()) >= len(frames)
    alone = [decode(kind, frame, **options)[0].values for frame in frames]
    np.testing.assert_array_equal(decoded.values, np.concatenate([np.empty((0, 2), np.float32), *alone]))


LARGEST = float(np.finfo(np.float32).max)
EDGES = [LARGEST, -LARGEST, 3.4028235677973365e38, 3.4028235677973362e38, 1e39, 1.7e308, math.nan, math.inf, -math.inf]


@given(st.tuples(*[st.one_of(st.none(), st.sampled_from(EDGES), st.floats(), st.integers(-(2**60), 2**60))] * 2))
def test_a_reading_by_itself_is_judged_as_among_others(row: tuple[float | None, float | None]) -> None:
    """The short way of a single reading gives the same bits, or the same reason, as the long one of many."""
    frame = pack(dict(zip(CHANNELS, row, strict=True)))
    alone, rejected_alone = decode("msgpack", frame)
    among, rejected_among = decode("msgpack", *[frame] * 9)
    assert {reason: 9 * count for reason, count in rejected_alone.items()} == rejected_among
    assert alone.values.tobytes() * 9 == among.values.tobytes()
    assert (alone.values.dtype, alone.values.shape[1:]) == (among.values.dtype, among.values.shape[1:])
