"""Frames of a pipe, of one size or behind their length, against a plain cutting of all that came."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.stream.byte_framing import FixedFramer, LengthFramer
from edge_runtime.system.counters import Counters

CUTS = st.lists(st.integers(0, 400))


def cut(data: bytes, at: list[int]) -> list[bytes]:
    """The pieces of `data` between the places `at`."""
    places = [0, *sorted(place % (len(data) + 1) for place in at), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(places)]


@given(data=st.binary(max_size=300), size=st.integers(1, 17), at=CUTS)
def test_frames_of_a_size_come_out_whole_however_they_are_cut(data: bytes, size: int, at: list[int]) -> None:
    """What is not yet a frame is held, and no more than that."""
    framer = FixedFramer(size)
    assert framer.pending_bytes == 0
    frames = [frame for piece in cut(data, at) for frame in framer.feed(piece)]
    assert frames == [data[begin : begin + size] for begin in range(0, len(data) - size + 1, size)]
    assert framer.pending_bytes == len(data) % size


def test_a_reset_begins_at_a_frame() -> None:
    """What was held belongs to a stream that has ended."""
    framer = FixedFramer(3)
    assert framer.feed(b"abcd") == [b"abc"]
    framer.reset()
    assert framer.pending_bytes == 0
    assert framer.feed(b"efg") == [b"efg"]


@given(frames=st.lists(st.binary(max_size=40), max_size=12), width=st.sampled_from([1, 2, 4]), at=CUTS)
def test_frames_behind_their_length_come_out_whole_however_they_are_cut(
    frames: list[bytes], width: int, at: list[int]
) -> None:
    """High byte first; a length of 0 is no frame; nothing is held after the last one."""
    counters = Counters()
    framer = LengthFramer(width, 40, counters)
    data = b"".join(len(frame).to_bytes(width, "big") + frame for frame in frames)
    found = [frame for piece in cut(data, at) for frame in framer.feed(piece)]
    assert found == [frame for frame in frames if frame]
    assert (framer.pending_bytes, framer.is_lost, counters.rejected) == (0, False, {})


@pytest.mark.parametrize(("width", "size"), [(1, 200), (2, 300), (4, 70_000)])
def test_a_frame_of_the_limit_passes_and_one_byte_more_ends_the_stream(width: int, size: int) -> None:
    """The frames before it come out, what follows are none, and the reason names the limit and what was found."""
    counters = Counters()
    framer = LengthFramer(width, size, counters)
    good = size.to_bytes(width, "big") + b"x" * size
    bad = (size + 1).to_bytes(width, "big") + b"y" * 100
    assert framer.feed(good + bad) == [b"x" * size]
    assert framer.is_lost
    assert framer.pending_bytes == 0
    assert framer.feed(good) == []
    assert framer.pending_bytes == 0
    assert counters.rejected == {"too_long": 1}
    note = counters.notes["too_long"]
    assert note.why == f"expected a length of at most max_frame_bytes = {size}, found {size + 1}"
    assert note.sample == bad[:64]
    framer.reset()
    assert framer.feed(good) == [b"x" * size]


def test_what_is_held_of_a_frame_is_what_has_come_of_it() -> None:
    """With its length, and until a reset."""
    framer = LengthFramer(2, 100, Counters())
    assert framer.feed(b"\0\3abc\0") == [b"abc"]
    assert framer.pending_bytes == 1
    assert framer.feed(b"\5de") == []
    assert framer.pending_bytes == 4
    framer.reset()
    assert framer.pending_bytes == 0
    assert framer.feed(b"\0\1f") == [b"f"]


def test_a_length_is_judged_when_it_is_whole() -> None:
    """Half of it behind a frame says nothing yet."""
    counters = Counters()
    framer = LengthFramer(2, 100, counters)
    assert framer.feed(b"\0\1x\xff") == [b"x"]
    assert not framer.is_lost
    assert framer.feed(b"\xfe") == []
    assert framer.is_lost
    assert counters.notes["too_long"].why.endswith("found 65534")
