"""Files of captures: what was written is read back, and nothing else is."""

import msgspec
import numpy as np
import pytest

from edge_runtime.capture.entries import MAGIC, Captured, Entry, Labelled, pack, read
from tests.support import captured

FACTS = msgspec.structs.replace(captured.FACTS, model="m", shape=(3, 2))
WINDOW = np.array([[1.5, -0.0], [np.nan, 3e-45], [3.4e38, 7]], np.float32)


def _captured(number: int = 0, *, bundle: int = 0) -> Captured:
    return Captured(
        bundle=bundle,
        id=f"room/m/-/1/{number}",
        published=True,
        key=None,
        time=1_700_000_000.25,
        label="low",
        answer={"scores": [0.5, 0.5]},
        reasons=("uncertain", "random"),
        values=WINDOW.tobytes(),
    )


ENTRIES: list[Entry] = [
    FACTS,
    _captured(1),
    Labelled(id="room/m/-/1/1", model="m", label="höch", time=1.0),
    _captured(2),
]


def test_what_is_written_is_read_back_bit_for_bit() -> None:
    """Windows with NaN, negative zero and the smallest number among them."""
    data = MAGIC + b"".join(pack(entry) for entry in ENTRIES)
    found = read(data)
    assert (found.entries, found.whole) == (ENTRIES, len(data))
    window = found.entries[1]
    assert isinstance(window, Captured)
    assert window.window(FACTS).tobytes() == WINDOW.tobytes()
    assert window.window(FACTS).shape == (3, 2)


def test_a_file_that_ends_anywhere_gives_its_whole_entries() -> None:
    """A kill leaves any number of bytes."""
    packed = [pack(entry) for entry in ENTRIES]
    data = MAGIC + b"".join(packed)
    ends = [len(MAGIC) + sum(map(len, packed[:count])) for count in range(len(packed) + 1)]
    for length in range(len(data) + 1):
        found = read(data[:length])
        whole = [end for end in ends if end <= length]
        assert found.whole == (whole[-1] if whole else 0)
        assert found.entries == ENTRIES[: max(0, len(whole) - 1)]


@pytest.mark.parametrize("place", range(0, 700, 23))
def test_a_byte_that_changed_costs_its_entry_alone(place: int) -> None:
    """The checksum covers every byte; behind a damaged length nothing is read, and without its facts no window."""
    packed = [pack(entry) for entry in ENTRIES]
    data = bytearray(MAGIC + b"".join(packed))
    place %= len(data)
    data[place] ^= 0x10
    kept = 0
    end = len(MAGIC)
    while kept < len(packed) and end + len(packed[kept]) <= place:
        end += len(packed[kept])
        kept += 1
    found = read(bytes(data))
    is_last, in_length = kept == len(packed) - 1, place - end < 4
    if place < len(MAGIC) or kept == 0:
        assert found.entries == []
    elif in_length or is_last:
        assert (found.entries, found.whole, found.damaged) == (ENTRIES[:kept], end, 0)
    else:
        assert (found.entries, found.damaged) == (ENTRIES[:kept] + ENTRIES[kept + 1 :], len(packed[kept]))
        assert found.whole == len(data)


def test_behind_damage_no_facts_are_read() -> None:
    """Had the damaged entry been facts, the number of the next ones would be another."""
    other = msgspec.structs.replace(FACTS, version="2.0.0")
    packed = [pack(entry) for entry in (FACTS, other, _captured(1), _captured(2, bundle=1), other, _captured(3))]
    packed[1] = packed[1][:20] + b"?" + packed[1][21:]
    assert read(MAGIC + b"".join(packed)).entries == [FACTS, _captured(1)]
    packed = [pack(entry) for entry in (FACTS, _captured(1), _captured(2), other, _captured(3, bundle=1))]
    packed[1] = packed[1][:20] + b"?" + packed[1][21:]
    assert read(MAGIC + b"".join(packed)).entries == [FACTS, _captured(2)]


@pytest.mark.parametrize("length", [0, 7, 8, 64, 5000])
def test_a_place_that_was_never_written_is_no_entry(length: int) -> None:
    """What a power cut may leave: zeros at the end of the file."""
    data = MAGIC + b"".join(pack(entry) for entry in ENTRIES)
    found = read(data + bytes(length))
    assert (found.entries, found.whole, found.damaged) == (ENTRIES, len(data), 0)


@pytest.mark.parametrize(
    "wrong",
    [
        [_captured()],  # without facts
        [FACTS, _captured(bundle=1)],  # with those of another
        [FACTS, _captured(bundle=-1)],
        [msgspec.structs.replace(FACTS, shape=(-3, -2)), _captured()],
    ],
)
def test_a_window_without_its_facts_is_not_read(wrong: list[Entry]) -> None:
    """However its checksum is: its shape would be a guess."""
    found = read(MAGIC + b"".join(pack(entry) for entry in wrong))
    assert not any(isinstance(entry, Captured) for entry in found.entries)
