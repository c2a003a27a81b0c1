"""Bytes become lines: whole, in order, bounded."""

import itertools
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.stream.codecs.plain_text import is_text
from edge_runtime.stream.framing import (
    CobsFramer,
    LineEnd,
    LineFramer,
    cobs_decode,
    cobs_encode,
    crc16,
    make_framer,
)
from edge_runtime.system.counters import Counters

LIMIT = 64


def opened(counters: Counters | None = None, limit: int = LIMIT) -> LineFramer:
    """A framer behind the first line end after opening."""
    framer = LineFramer(limit, counters or Counters())
    framer.feed(b"\n")
    return framer


def cut(data: bytes, at: list[int]) -> list[bytes]:
    """The pieces of `data` between the places `at`."""
    places = [0, *sorted(place % (len(data) + 1) for place in at), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(places)]


def test_a_line_ends_with_a_line_feed_with_or_without_carriage_return() -> None:
    """Lines end with a line feed, and a carriage return before it is no part of them."""
    assert opened().feed(b"1,2\r\n3,4\n\r\n\n5,6\r\n") == [b"1,2", b"3,4", b"5,6"]


def test_what_stands_before_the_first_line_end_is_dropped_and_nothing_later() -> None:
    """The first line after opening may have lost its beginning, so it is dropped; the second never is."""
    framer = LineFramer(LIMIT, Counters())
    assert framer.feed(b"3.5,2") == []
    assert framer.feed(b",1\n1,2\n") == [b"1,2"]
    framer.reset()
    assert framer.feed(b"\n1,2\n") == [b"1,2"]


def test_a_reset_forgets_the_unfinished_line() -> None:
    """After a replug the beginning of an old line is never glued to the end of a new one."""
    framer = opened()
    framer.feed(b"1,")
    framer.reset()
    assert framer.feed(b"2\n3,4\n") == [b"3,4"]


def test_a_carriage_return_and_its_line_feed_may_arrive_apart() -> None:
    """A line end that is split over two reads is still one line end."""
    framer = opened()
    assert framer.feed(b"1,2\r") == []
    assert framer.feed(b"\n3,4\n") == [b"1,2", b"3,4"]


def test_a_line_of_exactly_the_limit_passes_and_one_more_byte_does_not() -> None:
    """`max_frame_bytes` counts the line without its line end."""
    for end in (b"\n", b"\r\n"):
        counters = Counters()
        framer = opened(counters)
        assert framer.feed(b"x" * LIMIT + end) == [b"x" * LIMIT]
        assert framer.feed(b"x" * (LIMIT + 1) + end + b"1\n") == [b"1"]
        assert counters.rejected == {"too_long": 1}


def test_an_endless_line_costs_bounded_memory_and_one_count() -> None:
    """Ten megabytes without a line end hold no more than the limit, count once, and the next line is found."""
    counters = Counters()
    framer = opened(counters)
    most = 0
    for _ in range(10 * 1024):
        assert framer.feed(b"x" * 1024) == []
        most = max(most, framer.pending_bytes)
    assert most <= LIMIT + 1
    assert framer.feed(b"\n1,2\n") == [b"1,2"]
    assert counters.rejected == {"too_long": 1}


@given(
    lines=st.lists(st.binary(min_size=1, max_size=LIMIT).map(lambda b: b.translate(None, b"\r\n") or b"x")),
    at=st.lists(st.integers(min_value=0)),
    end=st.sampled_from([b"\n", b"\r\n"]),
)
def test_lines_come_out_whole_however_their_bytes_are_cut(lines: list[bytes], at: list[int], end: bytes) -> None:
    """Every line comes out once and in order, however reads split or merge it."""
    counters = Counters()
    framer = opened(counters)
    stream = b"".join(line + end for line in lines)
    assert [line for piece in cut(stream, at) for line in framer.feed(piece)] == lines
    assert not counters.rejected


@given(data=st.binary(max_size=2000), at=st.lists(st.integers(min_value=0)))
def test_frames_do_not_depend_on_the_cuts(data: bytes, at: list[int]) -> None:
    """Any bytes give the same frames and the same counts, whole or in pieces."""
    whole, pieces = Counters(), Counters()
    expected = opened(whole).feed(data)
    framer = opened(pieces)
    assert [line for piece in cut(data, at) for line in framer.feed(piece)] == expected
    lines, tail = expected, data.rsplit(b"\n", 1)[-1]
    assert all(len(line) <= LIMIT for line in lines)
    if len(tail) <= LIMIT:  # of a line that has not ended, the count may still be open
        assert pieces.rejected == whole.rejected


def test_ten_thousand_random_cuts_lose_no_line() -> None:
    """Ten thousand ways to cut a stream, bytes one by one among them, give the same lines."""
    rng = random.Random(4)
    lines = [b"%d,%d" % (i, rng.randrange(10**6)) for i in range(40)]
    stream = b"\n" + b"\r\n".join(lines) + b"\r\n"
    for round_ in range(10_000):
        pieces = cut(stream, [rng.randrange(len(stream)) for _ in range(rng.randrange(1, 20))])
        if round_ % 500 == 0:
            pieces = [stream[i : i + 1] for i in range(len(stream))]
        framer = LineFramer(LIMIT, Counters())
        assert [line for piece in pieces for line in framer.feed(piece)] == lines


def test_text_is_utf8_without_control_characters() -> None:
    """Noise is what is no UTF-8 or holds control characters; a tab and an umlaut are text."""
    assert is_text("1,2\tgrün\r".encode())
    assert not is_text(b"1,2\x00")
    assert not is_text(b"1,\xff2")
    assert not is_text(b"\x1b[31m1")
    assert not is_text(b"1\x7f")


# Of the paper that describes the encoding (Cheshire and Baker, 1999), and the borders of a full block.
COBS = [
    (b"", b"\x01"),
    (b"\0", b"\x01\x01"),
    (b"\0\0", b"\x01\x01\x01"),
    (b"\x11\x22\0\x33", b"\x03\x11\x22\x02\x33"),
    (b"\x11\0\0\0", b"\x02\x11\x01\x01\x01"),
    (bytes(range(1, 255)), b"\xff" + bytes(range(1, 255))),
    (bytes(range(255)), b"\x01\xff" + bytes(range(1, 255))),
    (bytes(range(1, 256)), b"\xff" + bytes(range(1, 255)) + b"\x02\xff"),
    (bytes(range(2, 256)) + b"\0", b"\xff" + bytes(range(2, 256)) + b"\x01\x01"),
    (bytes(range(3, 256)) + b"\0\x01", b"\xfe" + bytes(range(3, 256)) + b"\x02\x01"),
]


@pytest.mark.parametrize(("data", "encoded"), COBS)
def test_the_published_examples_of_cobs(data: bytes, encoded: bytes) -> None:
    """Frames are encoded and decoded as everybody else does it."""
    assert cobs_encode(data) == encoded
    assert cobs_decode(encoded) == data


@given(st.lists(st.sampled_from([b"\0", b"\1", b"\xff", b"x" * 253, b"y" * 254, b"z" * 300])).map(b"".join))
def test_cobs_gives_back_what_was_encoded(data: bytes) -> None:
    """No encoding holds a zero byte, and each gives its bytes back."""
    encoded = cobs_encode(data)
    assert b"\0" not in encoded
    assert cobs_decode(encoded) == data


def test_the_checksum_is_crc16_ccitt_false() -> None:
    """The CRC-16 has the published check value for the digits 1 to 9."""
    assert crc16(b"123456789") == b"\x29\xb1"


def cobs_frames(framer: CobsFramer, *chunks: bytes) -> list[bytes]:
    """What comes out of the chunks, behind the first frame end after opening."""
    framer.feed(b"\0")
    return [frame for chunk in chunks for frame in framer.feed(chunk)]


def test_a_cobs_frame_with_a_wrong_sum_is_counted_and_the_next_one_is_read() -> None:
    """A frame whose CRC-16 does not fit is `bad_checksum`; bytes that are no such encoding are `malformed`."""
    counters = Counters()
    good = cobs_encode(b"\0\1\2" + crc16(b"\0\1\2"))
    bad = bytearray(good)
    bad[3] ^= 1
    stream = b"\0".join([good, bytes(bad), b"\x09abc", b"", cobs_encode(b"\0\0"), cobs_encode(b""), good, b""])
    framer = CobsFramer(LIMIT, counters)
    assert cobs_frames(framer, *(stream[i : i + 1] for i in range(len(stream)))) == [b"\0\1\2"] * 2
    assert counters.rejected == {"bad_checksum": 3, "malformed": 1}


def test_a_cobs_frame_without_a_sum_is_taken_as_it_is() -> None:
    """`checksum = "none"` leaves every byte to the codec."""
    framer = make_framer("cobs", LIMIT, Counters(), checksum=False)
    framer.feed(b"\0")
    assert framer.feed(cobs_encode(b"\0\1") + b"\0") == [b"\0\1"]
    assert isinstance(make_framer("lines", LIMIT, Counters()), LineFramer)


def test_an_endless_cobs_frame_costs_bounded_memory_and_one_count() -> None:
    """A frame over the limit is counted as `too_long`, and the next one is found."""
    counters = Counters()
    framer = CobsFramer(LIMIT, counters)
    framer.feed(b"\0")
    for _ in range(100):
        framer.feed(b"x" * 100)
        assert framer.pending_bytes <= LIMIT
    assert framer.feed(b"\0" + cobs_encode(b"a" + crc16(b"a")) + b"\0") == [b"a"]
    assert counters.rejected == {"too_long": 1}


def test_an_unfinished_line_of_the_limit_may_still_end_well() -> None:
    """Its last byte may be the carriage return of its end; one byte more cannot be, and is counted at once."""
    for held, end in ((b"x" * LIMIT, b"\r\n"), (b"x" * LIMIT + b"\r", b"\n"), (b"x" * LIMIT, b"\n")):
        counters = Counters()
        framer = opened(counters)
        assert framer.feed(held) == []
        assert framer.feed(end) == [b"x" * LIMIT]
        assert not counters.rejected
    counters = Counters()
    framer = opened(counters)
    framer.feed(b"x" * (LIMIT + 2))
    assert counters.rejected == {"too_long": 1}
    assert framer.pending_bytes == 0


def test_a_line_of_the_limit_is_kept_beside_one_that_is_too_long() -> None:
    """Each is judged by itself, however many come at once."""
    counters = Counters()
    long, good = b"y" * (LIMIT + 1), b"x" * LIMIT
    assert opened(counters).feed(b"\n".join([good, long, good, long, b""])) == [good, good]
    assert counters.rejected == {"too_long": 2}


def test_a_reset_holds_nothing() -> None:
    """What was held of an unfinished line is given back at once."""
    framer = opened()
    framer.feed(b"1,")
    assert framer.pending_bytes == 2
    framer.reset()
    assert framer.pending_bytes == 0


def test_an_unfinished_cobs_frame_over_the_limit_is_counted_at_once() -> None:
    """Its end is one byte that is not held, so there is no spare byte; a frame of the limit passes."""
    counters = Counters()
    framer = make_framer("cobs", LIMIT, counters, checksum=False)
    framer.feed(b"\0")
    encoded = cobs_encode(b"x" * (LIMIT - 1))
    assert framer.feed(encoded) == []
    assert framer.feed(b"\0") == [b"x" * (LIMIT - 1)]
    framer.feed(b"x" * (LIMIT + 1))
    assert counters.rejected == {"too_long": 1}


def test_a_cobs_frame_that_is_all_sum_is_no_frame() -> None:
    """Two bytes that are the sum of nothing would be an empty frame; by default a frame has a sum."""
    counters = Counters()
    framer = make_framer("cobs", LIMIT, counters)
    assert framer.feed(b"\0" + cobs_encode(crc16(b"")) + b"\0" + cobs_encode(b"a" + crc16(b"a")) + b"\0") == [b"a"]
    assert counters.rejected == {"bad_checksum": 1}


@pytest.mark.parametrize("encoded", [b"\0", b"\x02a\0", b"\x05a"])
def test_a_block_that_has_no_length_or_more_than_there_is_is_no_cobs(encoded: bytes) -> None:
    """It ends, and it is refused."""
    assert cobs_decode(encoded) is None


def test_tab_and_line_ends_are_the_only_controls_of_a_text() -> None:
    """Byte by byte."""
    assert [byte for byte in range(128) if is_text(bytes([byte]))] == [9, 10, 13, *range(32, 127)]


def plain_lines(data: bytes, line_end: LineEnd) -> tuple[list[bytes], int]:
    """The lines of all that came, by the definition: split at the ends, without the first piece and the last.

    Returns:
        The lines, and how many are longer than `LIMIT`; the unfinished one counts where no line end can save it.
    """
    pattern, begin, end = {"lf": (rb"\n", b"", b"\r"), "cr": (rb"\r", b"\n", b""), "any": (rb"[\r\n]", b"", b"")}[
        line_end
    ]
    pieces = re.split(pattern, data)
    lines = [piece.removeprefix(begin).removesuffix(end) for piece in pieces[1:-1]]
    unfinished = len(pieces) > 1 and len(pieces[-1]) > LIMIT + 1
    return [line for line in lines if 0 < len(line) <= LIMIT], sum(len(line) > LIMIT for line in lines) + unfinished


@given(
    data=st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b"a", b"b" * (LIMIT - 1), b"c" * LIMIT])).map(b"".join),
    at=st.lists(st.integers(min_value=0)),
    line_end=st.sampled_from(["lf", "cr", "any"]),
)
def test_lines_are_those_of_a_plain_split(data: bytes, at: list[int], line_end: LineEnd) -> None:
    """Whatever ends them, and however their bytes are cut: also CR LF LF between two lines."""
    counters = Counters()
    framer = make_framer("lines", LIMIT, counters, line_end=line_end)
    found = [line for piece in cut(data, at) for line in framer.feed(piece)]
    lines, too_long = plain_lines(data, line_end)
    assert found == lines
    assert counters.rejected["too_long"] == too_long


@pytest.mark.parametrize(
    ("line_end", "right", "wrong", "answered"),
    [
        ("lf", b"\n", b"\r", 'a line feed, found a carriage return alone: set line_end = "cr" or "any"'),
        ("cr", b"\r", b"\n", 'a carriage return, found a line feed alone: set line_end = "lf" or "any"'),
    ],
)
def test_wrong_line_ends_are_counted_from_the_third_without_a_right_one(
    line_end: LineEnd, right: bytes, wrong: bytes, answered: str
) -> None:
    """All of them count then, each once; a right one, or a port that is opened anew, begins the count again."""
    counters = Counters()
    framer = LineFramer(LIMIT, counters, line_end=line_end)
    for text, total in (
        ("1W2W", 0),
        ("3", 0),
        ("W", 3),
        ("4W5W", 5),
        ("R6W7W", 5),
        ("8W", 8),
        ("R", 8),
        ("9W1W", 8),
        ("WR", 8),
        ("1W2W", 8),
        (None, 8),
        ("1W2W", 8),
        (None, 8),
        ("3W", 8),
        ("4W5W", 11),
    ):
        if text is None:
            framer.reset()
            continue
        framer.feed(text.encode().replace(b"W", wrong).replace(b"R", right))
        assert counters.rejected["wrong_line_end"] == total, text
    note = counters.notes["wrong_line_end"]
    assert note.why.endswith(answered)
    assert note.sample == b"4" + wrong + b"5" + wrong


def test_no_line_end_is_wrong_where_either_is_right() -> None:
    """`line_end = "any"` counts none, however many of one kind come."""
    counters = Counters()
    framer = LineFramer(LIMIT, counters, line_end="any")
    assert framer.feed(b"\r1\r2\r3\r4\n5\n6\r") == [b"1", b"2", b"3", b"4", b"5", b"6"]
    assert framer.feed(b"7\n8\n9\n10\n") == [b"7", b"8", b"9", b"10"]
    assert framer.feed(b"1234") == []
    assert framer.feed(b"5\r") == [b"12345"]
    assert not counters.rejected


def test_a_carriage_return_inside_a_line_stays_there() -> None:
    """Only before the line feed it is part of the line end; a codec judges what it is elsewhere."""
    assert opened().feed(b"1\r2\n\r3\r\r\n") == [b"1\r2", b"\r3\r"]


def test_what_is_refused_is_shown_by_its_last_and_its_first_200_bytes() -> None:
    """Of several lines that are too long in one chunk the last one is shown, and never more than its beginning."""
    counters = Counters()
    framer = opened(counters)
    framer.feed(b"".join(letter * 300 + b"\n" for letter in (b"a", b"b", b"c")))
    assert counters.notes["too_long"].sample == b"c" * 200
    assert counters.rejected == {"too_long": 3}
    framer.feed(b"d" * 500)
    assert counters.notes["too_long"].sample == b"d" * 200
    framer.reset()
    framer.feed(b"\n" + b"e\r" * 300)
    assert counters.notes["wrong_line_end"].sample == b"e\r" * 100
    assert "max_frame_bytes = 64 bytes" in counters.notes["too_long"].why


def test_a_stream_that_begins_at_a_frame_loses_none() -> None:
    """The output of a program is read from its first byte."""
    framer = LineFramer(LIMIT, Counters())
    framer.begin()
    assert framer.feed(b"1,2\n3,4\n") == [b"1,2", b"3,4"]


def test_a_cobs_frame_has_a_sum_unless_it_is_left_out() -> None:
    """By default, of the framer as of the function that makes it; what has none is refused."""
    for framer in (CobsFramer(LIMIT, Counters()), make_framer("cobs", LIMIT, Counters())):
        framer.feed(b"\0")
        assert framer.feed(cobs_encode(b"abc") + b"\0" + cobs_encode(b"abc" + crc16(b"abc")) + b"\0") == [b"abc"]
