"""JSON frames become columns, and every way to be wrong has its reason."""

import json
import math
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.errors import ConfigError
from edge_runtime.stream.codecs import Decoded, make_decoder
from edge_runtime.system.counters import Counters

CHANNELS = ("temperature", "humidity")
GOOD = b'{"temperature": 21.5, "humidity": 48.25}'


def decode(*frames: bytes, **options: Any) -> tuple[Decoded, dict[str, int]]:
    """What the frames hold, and what was rejected."""
    counters = Counters()
    decoded = make_decoder("json", options.pop("channels", CHANNELS), **options).decode(frames, counters)
    return decoded, dict(counters.rejected)


def test_channels_stand_in_the_order_of_the_source() -> None:
    """A reading is an object of channels; members that no model wants are ignored."""
    decoded, rejected = decode(GOOD, b'{"humidity": 1, "other": [1, {"a": null}], "temperature": -2}')
    np.testing.assert_array_equal(decoded.values, np.array([[21.5, 48.25], [-2, 1]], np.float32))
    assert decoded.values.dtype == np.float32
    assert decoded.rows == [0, 1]
    assert [decoded.keys, decoded.times, decoded.identities] == [[None, None]] * 3
    assert not rejected


def test_no_frames_are_no_readings() -> None:
    """Nothing in, nothing out."""
    decoded, rejected = decode()
    assert decoded.values.shape == (0, 2)
    assert not len(decoded)
    assert not rejected


def test_an_array_is_several_readings_of_one_frame() -> None:
    """A JSON array is one frame with several readings, and a bad one among them takes only itself."""
    frame = b'[{"temperature": 1, "humidity": 2}, {"temperature": "x"}, 7, {"temperature": 3}]'
    decoded, rejected = decode(GOOD, frame, GOOD)
    assert decoded.rows == [0, 1, 1, 2]
    np.testing.assert_array_equal(decoded.values[:, 0], np.array([21.5, 1, 3, 21.5], np.float32))
    assert rejected == {"wrong_type": 1, "malformed": 1}


def test_a_missing_channel_is_not_a_number_and_none_at_all_is_rejected() -> None:
    """One missing channel is judged per model; a reading without any is `missing_channel`. Null is missing."""
    decoded, rejected = decode(b'{"humidity": 2}', b'{"humidity": null, "other": 3}', b"{}")
    assert decoded.rows == [0]
    assert math.isnan(decoded.values[0, 0])
    assert rejected == {"missing_channel": 2}


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (b"", "malformed"),
        (b"hello", "malformed"),
        (b'{"temperature": 21.5', "malformed"),
        (b'{"temperature": 01}', "malformed"),
        (b"7", "malformed"),
        (b"null", "malformed"),
        (b"[]", "malformed"),
        (b'"text"', "malformed"),
        (GOOD + GOOD, "malformed"),
        (b"[" * 100_000, "malformed"),
        (b'{"other": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "malformed"),
        (b'{"temperature": NaN, "other": nonsense}', "malformed"),
        (b'{"temperature": "21.5"}', "wrong_type"),
        (b'{"temperature": true}', "wrong_type"),
        (b'{"temperature": [1]}', "wrong_type"),
        (b'{"temperature": {}}', "wrong_type"),
        (b'{"temperature": NaN}', "not_finite"),
        (b'{"temperature":-Infinity,"humidity":1}', "not_finite"),
        (b'[{"temperature": Infinity}]', "not_finite"),
        (b'{"temperature": 1e39}', "not_finite"),
        (b'{"temperature": -1e400}', "not_finite"),
        (b'{"temperature": ' + b"9" * 100_000 + b"}", "not_finite"),
        (GOOD + b"\x00", "noise"),
        (b"\xff\xfe" + GOOD, "noise"),
        (b'{"temperature": 1, "other": "\xff"}', "noise"),
        (b'{"temperature": 1, "time": "yesterday"}', "bad_time"),
        (b'{"temperature": 1, "time": true}', "bad_time"),
        (b'{"temperature": 1, "time": -1}', "bad_time"),
        (b'{"temperature": 1, "time": 1763896744000}', "bad_time"),
        (b'{"temperature": 1, "time": "2026-02-30T00:00:00Z"}', "bad_time"),
        (b'{"temperature": 1, "time": "1969-12-31T23:59:59Z"}', "bad_time"),
        (b'{"temperature": 1, "time": "' + b"1" * 1_000_000 + b'"}', "bad_time"),
        (b'{"temperature": 1, "id": {"a": 1}}', "wrong_type"),
        (b'{"temperature": 1, "seq": false}', "wrong_type"),
    ],
)
def test_what_is_no_reading_is_counted_by_reason(frame: bytes, reason: str) -> None:
    """A frame that is no reading is counted once under its reason, and the frames around it are kept."""
    decoded, rejected = decode(GOOD, frame, GOOD)
    assert rejected == {reason: 1}
    assert decoded.rows == [0, 2]
    np.testing.assert_array_equal(decoded.values, np.array([[21.5, 48.25]] * 2, np.float32))


def test_integers_of_any_size_are_numbers() -> None:
    """An integer beyond 2**53 is rounded as any float is."""
    decoded, rejected = decode(b'{"temperature": 123456789012345678901234567890, "humidity": 9007199254740993}')
    np.testing.assert_array_equal(decoded.values, np.array([[123456789012345678901234567890, 2**53]], np.float32))
    assert not rejected


def test_the_last_of_two_equal_keys_wins() -> None:
    """An object that names a channel twice has its last value."""
    decoded, _ = decode(b'{"temperature": 1, "temperature": 2}')
    assert decoded.values[0, 0] == 2


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        ("1763896744.25", 1763896744.25),
        ("1763896744", 1763896744.0),
        ("0", 0.0),
        ('"2025-11-23T11:19:04.250000Z"', 1763896744.25),
        ('"2025-11-23t11:19:04.25z"', 1763896744.25),
        ('"2025-11-23T11:19:04.250000999Z"', 1763896744.25),
        ('"2025-11-23T12:49:04.25+01:30"', 1763896744.25),
        ('"2025-11-23T11:19:04.25"', 1763896744.25),
        ('"2025-11-23 11:19:04.25"', 1763896744.25),
        ("null", None),
    ],
)
def test_time_is_iso_8601_or_unix_seconds(time: str, seconds: float | None) -> None:
    """`time` is ISO 8601 (without an offset it is UTC, nanoseconds are cut) or Unix seconds."""
    decoded, rejected = decode(b'{"temperature": 1, "time": %s}' % time.encode())
    assert not rejected
    assert decoded.times == [seconds]


@pytest.mark.parametrize(
    ("members", "identity"),
    [
        ('"id": "a/b+#\\u0007", "seq": 1, "time": 5', "a/b+#\x07"),
        ('"id": 7, "seq": 1', "7"),
        ('"id": "", "seq": 12, "time": 5', "12"),
        ('"time": "2025-11-23T11:19:04Z"', "2025-11-23T11:19:04Z"),
        ('"time": 1763896744.25', "1763896744.25"),
        ('"seq": null', None),
    ],
)
def test_a_reading_is_known_again_by_id_else_seq_else_time(members: str, identity: str | None) -> None:
    """The identity is the reading's `id`, else its `seq`, else its `time`, as the text that was sent."""
    decoded, rejected = decode(b'{"temperature": 1, %s}' % members.encode())
    assert not rejected
    assert decoded.identities == [identity]


def test_a_long_id_is_replaced_by_its_digest() -> None:
    """An id over 128 characters becomes a digest of it: as short as others, and the same at each delivery."""
    frame = b'{"temperature": 1, "id": "%s"}' % (b"x" * 1_000_000)
    first, second = decode(frame)[0].identities[0], decode(GOOD, frame)[0].identities[1]
    assert first is not None
    assert first == second
    assert len(first) <= 128
    assert first != decode(frame.replace(b"xx", b"yx"))[0].identities[0]


@pytest.mark.parametrize("key", ['"press-07"', "12", '"Prüfstand 3"'])
def test_the_key_is_text_or_a_whole_number(key: str) -> None:
    """The key member names the stream, as text."""
    decoded, rejected = decode(b'{"temperature": 1, "device": %s}' % key.encode(), key_field="device")
    assert not rejected
    assert decoded.keys == [key.strip('"')]


@pytest.mark.parametrize(
    "key", ['""', '"a/b"', '"+"', '"a#"', '"\\u0000"', '"\\u0007"', f'"{"k" * 201}"', "null", "1.5", "true", "[]"]
)
def test_a_key_that_no_topic_can_hold_is_rejected(key: str) -> None:
    """A key that cannot be one level of a topic, or that is missing, is `bad_key`."""
    decoded, rejected = decode(b'{"temperature": 1, "device": %s}' % key.encode(), GOOD, key_field="device")
    assert rejected == {"bad_key": 2}
    assert not len(decoded)


def test_a_name_that_is_a_channel_or_the_key_is_nothing_else() -> None:
    """A channel called `seq` is a channel, and a key called `id` is no identity."""
    frame = b'{"seq": 4, "id": "pump", "time": 9}'
    decoded, rejected = decode(frame, channels=("seq",), key_field="id")
    assert not rejected
    assert (decoded.keys, decoded.identities, decoded.values.tolist()) == (["pump"], ["9"], [[4.0]])


def test_the_time_member_may_have_another_name() -> None:
    """`time_field` names the member that holds the time."""
    decoded, _ = decode(b'{"temperature": 1, "stamp": 5, "time": "noon"}', time_field="stamp")
    assert decoded.times == [5.0]


def test_channel_names_need_not_be_identifiers() -> None:
    """A channel may be called anything, also as a sender would spell it."""
    names = ("Temp °C", "a.b", "", "class", "__init__")
    frame = msgspec.json.encode({name: i for i, name in enumerate(names)})
    decoded, rejected = decode(frame, channels=names)
    assert not rejected
    assert decoded.values.tolist() == [[0, 1, 2, 3, 4]]


def test_a_channel_name_that_json_cannot_match_is_a_configuration_mistake() -> None:
    """A name with a quote or a control character is refused at start, not at the first reading."""
    with pytest.raises(ConfigError, match=r"^source: expected member names without quotes.*found.*'a\"b'$"):
        make_decoder("json", ('a"b',))


def test_a_frame_is_nested_or_flat_rows() -> None:
    """A source of whole frames takes nested or flat lists, bare or as the member `frame`, row-major."""
    frames = [b"[[1,2,3],[4,5,6]]", b"[1,2,3,4,5,6]", b'{"frame": [[1,2,3],[4,5,6]], "time": 5, "id": "x"}']
    decoded, rejected = decode(*frames, channels=(), shape=(2, 3))
    assert not rejected
    assert decoded.values.tolist() == [[[1, 2, 3], [4, 5, 6]]] * 3
    assert decoded.times == [None, None, 5.0]
    assert decoded.identities == [None, None, "x"]


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (b"[[1,2,3],[4,5]]", "malformed"),
        (b"[1,2,3]", "malformed"),
        (b"[[1,2,3],4,5,6]", "malformed"),
        (b"7", "malformed"),
        (b"{}", "missing_channel"),
        (b'[1,2,3,4,5,"6"]', "wrong_type"),
        (b"[1,2,3,4,5,1e39]", "not_finite"),
        (b"[1,2,3,4,5,NaN]", "not_finite"),
        (b"[1,2,3,4,5,null]", "wrong_type"),
        (b"\x00", "noise"),
    ],
)
def test_a_frame_of_another_shape_is_counted_by_reason(frame: bytes, reason: str) -> None:
    """A frame that does not fill the shape with numbers is rejected."""
    assert decode(frame, channels=(), shape=(2, 3))[1] == {reason: 1}


def test_an_unknown_format_is_a_configuration_mistake() -> None:
    """An unknown format is refused with the formats that there are."""
    with pytest.raises(
        ConfigError, match=r"^source.imu.format: expected one of json, csv, msgpack, raw, pairs, value, found 'xml'$"
    ):
        make_decoder("xml", CHANNELS, place="source.imu")


numbers = st.floats(allow_nan=False, allow_infinity=False, width=32)


@given(st.lists(st.tuples(numbers, numbers), max_size=20))
def test_json_gives_back_what_was_written(rows: list[tuple[float, float]]) -> None:
    """Every float32 survives the way through JSON."""
    frames = [json.dumps(dict(zip(CHANNELS, row, strict=True))).encode() for row in rows]
    decoded, rejected = decode(*frames)
    assert not rejected
    np.testing.assert_array_equal(decoded.values, np.array(rows, np.float32).reshape(-1, 2))


@given(st.lists(st.one_of(st.binary(max_size=40), st.just(GOOD)), max_size=10))
def test_each_frame_is_in_the_result_or_counted(frames: list[bytes]) -> None:
    """Whatever the bytes, a frame gives its readings or one count, and never an exception."""
    decoded, rejected = decode(*frames, key_field=None)
    arrays = [frame for frame in frames if frame.strip()[:1] == b"["]
    if not arrays:
        assert len(decoded) + sum(rejected.values()) == len(frames)
    assert np.isfinite(decoded.values).any(axis=1).all()
