"""CSV frames become columns, and every way to be wrong has its reason."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.errors import ConfigError
from edge_runtime.stream.codecs import Decoded, make_decoder
from edge_runtime.system.counters import Counters

CHANNELS = ("x", "y")


def decode(*frames: bytes, **options: Any) -> tuple[Decoded, dict[str, int]]:
    """What the frames hold, and what was rejected."""
    counters = Counters()
    decoded = make_decoder("csv", options.pop("channels", CHANNELS), **options).decode(frames, counters)
    return decoded, dict(counters.rejected)


def test_without_fields_the_columns_are_the_channels() -> None:
    """A row is the channels in the order of the model, unless `fields` says otherwise."""
    decoded, rejected = decode(b"1,2", b" -3.5 , 4e1", b"+.5,007")
    assert decoded.values.tolist() == [[1, 2], [-3.5, 40], [0.5, 7]]
    assert decoded.rows == [0, 1, 2]
    assert not rejected


def test_fields_name_the_columns() -> None:
    """`fields` may order the channels otherwise and name columns that no model wants; `_` is ignored."""
    fields = ("y", "_", "battery", "x", "_")
    decoded, rejected = decode(b"2,junk,3.7,1,", channels=CHANNELS, fields=fields)
    assert decoded.values.tolist() == [[1, 2]]
    assert not rejected
    assert decode(b"2,9,3.7,1,8", fields=fields)[0].values.tolist() == [[1, 2]]


def test_time_identity_and_key_may_be_columns() -> None:
    """`time`, `id`, `seq` and the key are columns like others; Unix seconds and ISO 8601 are both read."""
    fields = ("time", "seq", "device", "x", "y")
    rows = (b"1763896744.25,007,a,1,2", b"2025-11-23T11:19:04Z,8,12,1,2", b",,b,1,2")
    decoded, rejected = decode(*rows, fields=fields, key_field="device")
    assert not rejected
    assert decoded.times == [1763896744.25, 1763896744.0, None]
    assert decoded.identities == ["007", "8", None]
    assert decoded.keys == ["a", "12", "b"]


def test_columns_may_stand_in_quotes() -> None:
    """Quotes around a column are no part of it, and a delimiter inside them is none."""
    decoded, rejected = decode(b'"1","2.5"', b'1,"2"')
    assert decoded.values.tolist() == [[1, 2.5], [1, 2]]
    assert not rejected
    decoded, _ = decode(b'"pump, left",1,2', fields=("device", "x", "y"), key_field="device")
    assert decoded.keys == ["pump, left"]


def test_an_empty_column_is_a_missing_channel() -> None:
    """An empty column is missing; a row without any channel is `missing_channel`."""
    decoded, rejected = decode(b"1,", b" ,")
    assert math.isnan(decoded.values[0, 1])
    assert decoded.rows == [0]
    assert rejected == {"missing_channel": 1}


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (b"1", "malformed"),
        (b"1,2,3", "malformed"),
        (b"", "malformed"),
        (b"1;2", "malformed"),
        (b"1,2],[1,2", "malformed"),
        (b'"1,2"', "malformed"),
        (b'"1",2"', "wrong_type"),
        (b'"1,2', "malformed"),
        (b'1,"2" "3"', "malformed"),
        (b"x,y", "wrong_type"),
        (b"true,2", "wrong_type"),
        (b"1_0,2", "wrong_type"),
        (b"0x10,2", "wrong_type"),
        (b"1 0,2", "wrong_type"),
        ("\u0661,2".encode(), "wrong_type"),
        (b"null,2", "wrong_type"),
        (b"nan,2", "not_finite"),
        (b"-INF,2", "not_finite"),
        (b"Infinity,2", "not_finite"),
        (b"1e39,2", "not_finite"),
        (b"1e999,2", "not_finite"),
        (b"9" * 100_000 + b",2", "not_finite"),
        (b"1,2\x00", "noise"),
        (b"\xfe1,2", "noise"),
        (b"1\n1,2", "wrong_type"),
    ],
)
def test_what_is_no_reading_is_counted_by_reason(frame: bytes, reason: str) -> None:
    """A row that is no reading is counted once under its reason, and the rows around it are kept."""
    decoded, rejected = decode(b"1,2", frame, b"3,4")
    assert rejected == {reason: 1}
    assert decoded.rows == [0, 2]
    assert decoded.values.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"yesterday,a,1,2", "bad_time"),
        (b"nan,a,1,2", "bad_time"),
        (b"1_0,a,1,2", "bad_time"),
        (b"-5,a,1,2", "bad_time"),
        (b"1763896744000,a,1,2", "bad_time"),
        (b"5,a/b,1,2", "bad_key"),
        (b"5,,1,2", "bad_key"),
    ],
)
def test_a_bad_time_or_key_rejects_the_row(row: bytes, reason: str) -> None:
    """A time that cannot be read, or a key that no topic can hold, rejects the reading."""
    options: dict[str, Any] = {"fields": ("time", "device", "x", "y"), "key_field": "device"}
    decoded, rejected = decode(b"5,a,1,2", row, **options)
    assert rejected == {reason: 1}
    assert decoded.rows == [0]


def test_the_delimiter_may_be_another() -> None:
    """With another delimiter a comma is no border, so that a decimal comma is never two columns."""
    assert decode(b"1;2", b"3;4", delimiter=";")[0].values.tolist() == [[1, 2], [3, 4]]
    assert decode(b"1\t2", delimiter="\t")[0].values.tolist() == [[1, 2]]
    decoded, rejected = decode(b"1,5;2", b"1;2", delimiter=";")
    assert decoded.values.tolist() == [[1, 2]]
    assert rejected == {"wrong_type": 1}
    assert decode(b"1,5;2,5", channels=("a", "b", "c", "d"), delimiter=";")[1] == {"malformed": 1}


def test_a_frame_is_one_row_of_its_size() -> None:
    """A source of whole frames takes rows of as many numbers as the shape holds."""
    decoded, rejected = decode(b"1,2,3,4,5,6", b"1,2", channels=(), shape=(2, 3))
    assert decoded.values.tolist() == [[[1, 2, 3], [4, 5, 6]]]
    assert rejected == {"malformed": 1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fields": ("x",)}, "imu.fields: expected every channel of the model, found no y: add it to `fields`"),
        ({"fields": ("x", "y", "x")}, "imu.fields: expected different names, found x, y, x"),
        ({"key_field": "device"}, "imu.key: expected one of the fields (x, y), found 'device'"),
        ({"delimiter": "."}, "imu.delimiter: expected one character that no number holds, such as , or ;, found '.'"),
    ],
)
def test_fields_that_do_not_fit_are_a_configuration_mistake(options: dict[str, Any], message: str) -> None:
    """Columns that cannot give the model its channels are refused at start, with what is missing."""
    with pytest.raises(ConfigError) as caught:
        make_decoder("csv", CHANNELS, place="imu", **options)
    assert caught.value.mistakes == (message,)


numbers = st.floats(allow_nan=False, allow_infinity=False, width=32)


@given(rows=st.lists(st.tuples(numbers, numbers), max_size=20), fast=st.booleans())
def test_csv_gives_back_what_was_written(rows: list[tuple[float, float]], fast: bool) -> None:
    """Every float32 survives the way through CSV, beside bad rows as without."""
    frames = [b"%r,%r" % row for row in rows] + ([] if fast else [b"x"])
    decoded, rejected = decode(*frames)
    assert rejected == ({} if fast else {"malformed": 1})
    np.testing.assert_array_equal(decoded.values, np.array(rows, np.float32).reshape(-1, 2))


@given(frames=st.lists(st.one_of(st.binary(max_size=12), st.text("0123456789.,-[]\"' e", max_size=12).map(str.encode))))
def test_each_row_is_in_the_result_or_counted_whatever_its_company(frames: list[bytes]) -> None:
    """Whatever the bytes, a row is a reading or a count, the same alone as together with others."""
    decoded, rejected = decode(*frames)
    assert len(decoded) + sum(rejected.values()) == len(frames)
    alone = [decode(frame)[0].values for frame in frames]
    np.testing.assert_array_equal(decoded.values, np.concatenate([np.empty((0, 2), np.float32), *alone]))


@pytest.mark.parametrize("time", ["1763896744", "1763896744.250", "1763896744.25", "+5", "2025-11-23T11:19:04Z", "5e2"])
@pytest.mark.parametrize("seq", ["7", "007", "-3", "1.50", "a7"])
def test_a_row_has_the_same_origin_alone_and_in_bad_company(time: str, seq: str) -> None:
    """A reading that is delivered twice has the same identity and time twice, whatever came with it."""
    frame = f"{time},{seq},{seq},1".encode()
    fields = ("time", "seq", "device", "x")
    for mine in (fields, ("time", "_", "device", "x")):
        alone, _ = decode(frame, channels=("x",), fields=mine, key_field="device")
        among, _ = decode(b"x", frame, b"\xff", channels=("x",), fields=mine, key_field="device")
        assert (alone.times, alone.identities, alone.keys) == (among.times, among.identities, among.keys)
        assert alone.values.tolist() == [[1]]


def test_a_source_without_channels_is_no_error() -> None:
    """A source that no model reads yet decodes its rows all the same."""
    assert decode(b"1,2", channels=(), fields=("x", "y"))[0].values.shape == (1, 0)
