"""Windows that are cut from whole blocks against those of the stream."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.batch.even_windows import EvenWindows
from edge_runtime.stream.windows import Windows


@given(
    length=st.integers(1, 9),
    stride=st.integers(1, 12),
    blocks=st.lists(st.integers(0, 25), max_size=12),
)
@settings(max_examples=300, deadline=None)
def test_blocks_give_the_windows_of_the_stream(length: int, stride: int, blocks: list[int]) -> None:
    """For every length, stride and cut into blocks: the same windows, completed by the same readings."""
    even = EvenWindows(length, stride)
    stream = Windows((length, 2), length=length, stride=stride, max_gap=None, max_keys=3)
    start = 0
    for count in blocks:
        values = np.arange(2 * start, 2 * (start + count), dtype=np.float32).reshape(count, 2)
        start += count
        windows, rows = even.push(values)
        expected = stream.push(values, [None] * count, [0.0] * count, 0.0) if count else None
        assert rows == (list(expected.rows) if expected is not None else [])
        if rows:
            assert expected is not None
            np.testing.assert_array_equal(windows, expected.windows.reshape(windows.shape))
            assert windows.flags.c_contiguous
