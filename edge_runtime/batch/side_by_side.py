"""One process on several cores: a model for each core, in threads that divide the windows of a call.

For a recording that cannot be cut into parts. onnxruntime releases the GIL while it computes. Its own intra-op threads
divide a single product or convolution instead: for a window of 80 µs they cost more than they gain
(`docs/performance.md`), and may change the last bits. Several models that each run whole windows change no bit.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np

from edge_runtime.bundle.model import Model, Scores
from edge_runtime.readings import Carry, Floats

LEAST_WINDOWS = 8  # for each model: with fewer, the hand-over costs what it saves


class SideBySide:
    """As `Model`, for a given number of threads.

    A model with states runs in one thread, since each window needs the previous one.
    """

    def __init__(self, make: Callable[[], Model], threads: int) -> None:
        first = make()
        self.manifest = first.manifest
        self._models = [first]
        self._pool: ThreadPoolExecutor | None = None
        if threads > 1 and not first.manifest.state:
            self._models += [make() for _ in range(threads - 1)]
            self._pool = ThreadPoolExecutor(threads, "model")

    def run(self, windows: Floats, carries: Sequence[Carry] | None = None) -> Scores:
        """Score `[n, *shape]` windows; with the same bits as one model.

        Raises:
            ModelError: one of the models failed; there is no result for any window.
        """
        count = min(len(self._models), len(windows) // LEAST_WINDOWS)
        if self._pool is None or count < 2:
            return self._models[0].run_recorded(windows, carries)
        futures = [
            self._pool.submit(model.run_recorded, piece)
            for model, piece in zip(self._models, np.array_split(windows, count), strict=False)
        ]
        wait(futures)  # also those after a failed one: two threads may not use one model at a time
        return Scores.joined([future.result() for future in futures])
