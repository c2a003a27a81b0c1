"""Payloads as the outbox keeps them on disk."""

import random

import pytest

from edge_runtime.delivery.row_packing import AS_IS, WORDS, UnpackError, pack, unpack

PREDICTION = (
    b'{"id":"press-07/wear/-/7/%d","seq":%d,"device":"press-07","model":"wear","version":"1.4.0","source":"imu",'
    b'"key":null,"time":"2026-11-23T11:19:04.123456Z","label":"worn","score":0.973,"scores":{"ok":0.027,"worn":0.973}}'
)
STRANGE = [b"", b"\0", b"\1\2\3", b'\1,"device":"', b"\0" * 5, b"\t\r\n", bytes(range(256)), b',"device":"' * 3]


def test_a_prediction_takes_a_third_less_and_comes_back_as_it_was() -> None:
    """What is kept of a classification is its numbers, its names, and a byte for each long word."""
    payloads = [PREDICTION % (number, number) for number in range(300)]
    packed = pack(payloads)
    assert {packing for packing, _ in packed} == {WORDS}
    assert sum(len(kept) for _, kept in packed) < 0.7 * sum(map(len, payloads))
    assert [unpack(*kept) for kept in packed] == payloads


def test_any_bytes_come_back_as_they_were_whatever_they_are_packed_with() -> None:
    """A payload that holds a byte that stands for a word is kept as it is, and spoils no other."""
    rng = random.Random(20261123)
    pieces = [*STRANGE, b',"device":"', b'":0.', b'Z","label":"', b"\x05", b"plain"]
    for _ in range(300):
        payloads = [
            b"".join(rng.choice(pieces) for _ in range(rng.randint(0, 6))) for _ in range(rng.choice([0, 1, 3, 64, 65]))
        ]
        assert [unpack(*kept) for kept in pack(payloads)] == payloads
    sound, strange = pack([PREDICTION % (1, 1), b"\x02"])
    assert (sound[0], strange) == (WORDS, (AS_IS, b"\x02"))


def test_a_packing_of_a_later_program_is_refused() -> None:
    """A row that says so is no row of ours: nothing is guessed."""
    with pytest.raises(UnpackError, match="packing 9 is not known"):
        unpack(9, b"{}")


def test_what_is_written_on_the_disk_stays_as_it_is() -> None:
    """The numbers of the packings and the codes of the words stand in rows of older releases."""
    assert (AS_IS, WORDS) == (0, 1)
    assert pack([b'{"id": 1,"device":"d","model":"m"}']) == [(1, b'{"id": 1\x01d\x02m"}')]
    assert unpack(1, b'{"id": 1\x01d\x02m"}') == b'{"id": 1,"device":"d","model":"m"}'
