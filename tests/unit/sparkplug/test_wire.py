"""Payloads of Sparkplug B against two readers that are not ours, and commands that may be any bytes."""

import random

import numpy as np
import pytest

from edge_runtime.sparkplug.wire import REBIRTH, Metric, asks_for_rebirth, encode_payload
from tests.support.sparkplug_reader import command, npm_modules, payload_class, read, read_by_npm

METRICS = [
    Metric("bdSeq", 0, 1_763_896_744_123),
    Metric("count", 2**62 + 1, 1),
    Metric("below", -5, 1),
    Metric("score", float(np.float32(0.973)), 2**41),
    Metric("scores/größe", -1e-7, 0),
    Metric("label", "", 7),
    Metric("text", "worn ✓\x00" + "x" * 300, 7),
    Metric("alarm", True, 7),
    Metric(REBIRTH, False, 7),
]


@pytest.mark.parametrize("seq", [None, 0, 1, 127, 128, 255])
@pytest.mark.parametrize("is_historical", [False, True])
def test_protobuf_reads_what_was_written(seq: int | None, is_historical: bool) -> None:
    """Every type of metric, every length of a number, by Google's library."""
    found = read(encode_payload(METRICS, timestamp=1_763_896_744_999, seq=seq, is_historical=is_historical))
    assert found["seq"] == seq
    assert found["timestamp"] == 1_763_896_744_999
    assert list(found["metrics"]) == [each.name for each in METRICS]
    for metric in METRICS:
        got = found["metrics"][metric.name]
        value = metric.value
        if isinstance(value, int) and not isinstance(value, bool):
            value %= 2**64  # Int64 travels as two's complement
        elif isinstance(value, float):
            value = float(np.float32(value))
        assert got["value"] == value
        assert type(got["value"]) is type(value)
        assert (got["timestamp"], got["historical"]) == (metric.timestamp, is_historical)
        assert got["datatype"] == {bool: 11, int: 4, float: 9, str: 12}[type(metric.value)]


def test_protobuf_writes_the_same_bytes() -> None:
    """What it reads and writes again is ours to the byte: no unknown field, none twice."""
    payload = encode_payload(METRICS, timestamp=5, seq=3, is_historical=True)
    found = payload_class()()
    found.ParseFromString(payload)
    assert found.SerializeToString(deterministic=True) == payload


@pytest.mark.skipif(npm_modules() is None, reason="needs sparkplug-payload of npm: make clients")
def test_the_decoder_of_npm_reads_the_same() -> None:
    """Names, types by word, values and numbers."""
    born, died = read_by_npm([encode_payload(METRICS, timestamp=9, seq=255), encode_payload(METRICS[:1], timestamp=9)])
    assert (born["seq"], born["timestamp"]) == (255, 9)
    found = {each["name"]: each for each in born["metrics"]}
    assert found["score"]["type"] == "Float"
    assert found["score"]["value"] == pytest.approx(0.973, rel=1e-6)
    assert (found["label"]["type"], found["label"]["value"]) == ("String", "")
    assert (found["alarm"]["type"], found["alarm"]["value"]) == ("Boolean", True)
    assert (found["bdSeq"]["type"], found["bdSeq"]["value"]) == ("Int64", 0)
    assert found["text"]["value"] == METRICS[6].value
    assert found[REBIRTH]["value"] is False
    assert "seq" not in died


@pytest.mark.parametrize(
    ("name", "value", "asks"), [(REBIRTH, True, True), (REBIRTH, False, False), ("Other", True, False)]
)
def test_a_command_asks_for_a_rebirth_by_its_name_and_value(name: str, value: bool, asks: bool) -> None:
    """As Google's library writes it."""
    assert asks_for_rebirth(command(name, value=value)) is asks


def test_bytes_that_are_no_command_ask_for_nothing() -> None:
    """Cut off at every place, with bits turned, at random, and with lengths that lie."""
    good = command(REBIRTH, value=True)
    rng = random.Random(7)
    for cut in range(len(good)):
        asks_for_rebirth(good[:cut])
    for _ in range(3000):
        odd = bytearray(good)
        for _ in range(rng.randrange(1, 4)):
            odd[rng.randrange(len(odd))] = rng.randrange(256)
        asks_for_rebirth(bytes(odd))
        assert not asks_for_rebirth(rng.randbytes(rng.randrange(60)))
    assert not asks_for_rebirth(b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01" + good)
    assert not asks_for_rebirth(b"\xff" * 200_000)
