"""One process on several cores: a model for each of them, in threads that share out the windows of a call.

For a recording that cannot be cut into parts. onnxruntime lets other threads run while it computes. Its own intra-op
threads cut up a single product or convolution instead: for a window that takes 80 µs they cost more than they gain
(`docs/performance.md`), and may change the last bits, which several models that each run their windows cannot.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np

from edge_runtime.bundle.model import Model, Scores
from edge_runtime.readings import Carry, Floats

LEAST_WINDOWS = 8  # for each model: below, handing over costs what it saves


class SideBySide:
    """As `Model`, for a given number of threads.

    A model with memory is run as it is, since each of its windows needs the one before.
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
        """Score `[n, *shape]` windows; the same bits as one model gives.

        Raises:
            ModelError: one of the models failed; nothing is known of any window.
        """
        count = min(len(self._models), len(windows) // LEAST_WINDOWS)
        if self._pool is None or count < 2:
            return self._models[0].run_recorded(windows, carries)
        futures = [
            self._pool.submit(model.run_recorded, piece)
            for model, piece in zip(self._models, np.array_split(windows, count), strict=False)
        ]
        wait(futures)  # also those behind one that failed: a model is not for two threads at a time
        return Scores.joined([future.result() for future in futures])
