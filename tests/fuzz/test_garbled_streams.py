"""A long stream of frames, split, merged and garbled at random: what was left alone comes out, once and in order."""

import itertools
import random
from collections.abc import Callable

import pytest

from edge_runtime.stream.codecs import make_decoder
from edge_runtime.stream.framing import CobsFramer, Framer, LineFramer, cobs_encode, crc16
from edge_runtime.system.counters import Counters

FRAMES = 10_000
ROUNDS = 10_000
LIMIT = 4096


def csv_frame(number: int) -> bytes:
    """A line that tells its number."""
    return b"%d,%d.5,%d\r\n" % (number, number % 97, -number)


def cobs_frame(number: int) -> bytes:
    """The same, in COBS with its sum."""
    data = b"%d,%d.5,%d" % (number, number % 97, -number)
    return cobs_encode(data + crc16(data)) + b"\0"


def decoded_numbers(frames: list[bytes], counters: Counters) -> list[int]:
    """The numbers of the frames that are readings; a wrong digit in a line without a sum is found by its neighbours."""
    rows = make_decoder("csv", ("number", "a", "b")).decode(frames, counters).values.tolist()
    return [int(number) for number, a, b in rows if a == number % 97 + 0.5 and b == -number]


def cut(stream: bytes, rng: random.Random) -> list[bytes]:
    """The stream in pieces of one byte to some thousand."""
    pieces, at = [], 0
    while at < len(stream):
        size = rng.choice((1, 3, 17, 61, 500, 4095))
        pieces.append(stream[at : at + size])
        at += size
    return pieces


CASES = [
    pytest.param(csv_frame, lambda counters: LineFramer(LIMIT, counters), b"\n", id="lines"),
    pytest.param(cobs_frame, lambda counters: CobsFramer(LIMIT, counters), b"\0", id="cobs"),
]
MakeFramer = Callable[[Counters], Framer]


@pytest.mark.parametrize(("frame", "make", "end"), CASES)
def test_frames_that_nobody_touched_come_out_once_and_in_order(
    frame: Callable[[int], bytes], make: MakeFramer, end: bytes
) -> None:
    """Of ten thousand frames with one byte in a hundred corrupt, every whole one comes out, in bounded memory."""
    rng = random.Random(5)
    frames = [bytearray(frame(number)) for number in range(FRAMES)]
    touched = set()
    for _ in range(sum(map(len, frames)) // 100):
        number = rng.randrange(FRAMES)
        kind = rng.randrange(4)
        if kind == 0:
            frames[number][rng.randrange(len(frames[number]))] = rng.randrange(256)
            touched |= {number, number + 1}  # the byte may have been the frame's end
        elif kind == 1:
            del frames[number][-1:]
            touched |= {number, number + 1}
        elif kind == 2:
            frames[number][:0] = bytes(rng.randrange(256) for _ in range(9))
            touched.add(number)
        else:
            frames[number] += bytes(rng.choice(b"\x80\xff\x07x") for _ in range(5)) + end  # noise between frames
    stream = end + b"".join(frames)
    counters = Counters()
    framer = make(counters)
    found: list[int] = []
    for piece in cut(stream, rng):
        found += decoded_numbers(framer.feed(piece), counters)
        assert framer.pending_bytes <= LIMIT + 1
    good = [number for number in range(FRAMES) if number not in touched]
    assert len(good) > FRAMES // 2
    whole = set(good)
    assert [number for number in found if number in whole] == good
    assert counters.rejected.total() > 1000
    if end == b"\0":
        assert set(found) <= set(range(FRAMES)), "a frame with a sum is right or not there"


@pytest.mark.parametrize(("frame", "make", "end"), CASES)
def test_ten_thousand_ways_to_garble_a_stream(frame: Callable[[int], bytes], make: MakeFramer, end: bytes) -> None:
    """However bytes are split, merged, lost or doubled in the middle, the frames around the place come out."""
    before, after = [frame(number) for number in range(3)], [frame(number) for number in range(10, 13)]
    for round_ in range(ROUNDS):
        rng = random.Random(round_)
        middle = bytearray(b"".join(frame(number) for number in range(3, 10)))
        for _ in range(rng.randrange(1, 6)):
            at = rng.randrange(len(middle) + 1)
            kind = rng.randrange(4)
            if kind == 0:
                del middle[at : at + rng.randrange(1, 30)]
            elif kind == 1:
                middle[at:at] = middle[at : at + rng.randrange(1, 30)]
            elif kind == 2:
                middle[at:at] = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 9)))
            else:
                middle[at:at] = b"x" * rng.choice((1, 100, 5000))
        stream = end + b"".join(before) + bytes(middle) + end + b"".join(after)
        cuts = sorted(rng.randrange(len(stream)) for _ in range(rng.randrange(6)))
        pieces = [stream[a:b] for a, b in itertools.pairwise([0, *cuts, len(stream)])]
        framer = make(Counters())
        found = [line for piece in pieces for line in framer.feed(piece)]
        assert decoded_numbers(found[:3], Counters()) == [0, 1, 2]
        assert decoded_numbers(found[-3:], Counters()) == [10, 11, 12]


@pytest.mark.parametrize(("frame", "make", "end"), CASES)
def test_ten_megabytes_without_an_end_are_one_frame_too_long(
    frame: Callable[[int], bytes], make: MakeFramer, end: bytes
) -> None:
    """A sender that has lost its frame ends costs one count and no memory, and is understood again at the next end."""
    counters = Counters()
    framer = make(counters)
    framer.feed(end)
    for _ in range(10 * 256):
        assert framer.feed(b"7" * 4096) == []
        assert framer.pending_bytes <= LIMIT + 1
    assert decoded_numbers(framer.feed(end + frame(5)), counters) == [5]
    assert counters.rejected == {"too_long": 1}
