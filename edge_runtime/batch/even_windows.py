"""Windows of one stream without gaps, cut from whole blocks: equal to those of `stream/windows.py`, at less cost.

For recordings without keys and times and models without states, the most frequent case. Pure.
"""

import numpy as np

from edge_runtime.readings import Floats


class EvenWindows:
    """Windows of `length` readings, a new one every `stride`.

    Args:
        length: readings in a window.
        stride: readings from the start of one to that of the next; may be larger than `length`.
    """

    def __init__(self, length: int, stride: int) -> None:
        self._length = length
        self._stride = stride
        self._tail: Floats | None = None
        self._wait = 0  # readings until the next window begins, if that is behind the tail

    def push(self, values: Floats) -> tuple[Floats, list[int]]:
        """The windows `[k, length, channels]` that a block completes, and the index of each one's last reading."""
        count = len(values)
        held = values if self._tail is None else np.concatenate([self._tail, values])
        before = len(held) - count
        start = min(self._wait, len(held))
        self._wait -= start
        held = held[start:]
        number = max(0, (len(held) - self._length) // self._stride + 1)
        used = number * self._stride
        self._wait += max(0, used - len(held))
        self._tail = held[used:].copy()
        if not number:
            return np.empty((0, self._length, values.shape[1]), np.float32), []
        view = np.lib.stride_tricks.sliding_window_view(held, self._length, axis=0)[:: self._stride][:number]
        first = start - before + self._length - 1
        rows = list(range(first, first + number * self._stride, self._stride))
        return np.ascontiguousarray(view.swapaxes(1, 2)), rows
