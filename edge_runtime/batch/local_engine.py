"""The parts of a run on all cores of this machine: a process for each core, since decoding is most of the work.

Guarantee: when a worker dies or the run is interrupted, only incomplete parts are lost, and no worker outlives the run.
"""

import ctypes
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from edge_runtime.batch.parts import Part
from edge_runtime.batch.score import Job, PartResult, Progress, score_part
from edge_runtime.errors import CommandError
from edge_runtime.recordings.blocks import Piece

_POLL_S = 0.2

Show = Callable[[int, int], None]


def run_parts(job: Job, parts: Sequence[Part], workers: int, show: Show) -> Iterator[PartResult]:
    """Do the parts, and yield their results in order, each as soon as it and all before it are complete.

    Args:
        job: what they have in common.
        parts: those that are not complete.
        workers: the number of processes; one worker, or one part, runs in this process.
        show: called from time to time with the weight done and the readings read.
    """
    workers = min(workers, len(parts))
    return _alone(job, parts, show) if workers <= 1 else _pooled(job, parts, workers, show)


def _alone(job: Job, parts: Sequence[Part], show: Show) -> Iterator[PartResult]:
    done = [0, 0]

    def add(weight: int, readings: int) -> None:
        done[0] += weight
        done[1] += readings
        show(*done)

    for part in parts:
        yield score_part(job, part.pieces, part.target, Progress(add), open_piece=part.open_piece)


class _Shared:
    """What workers and the run share."""

    def __init__(self, context: Any) -> None:
        self.weight = context.Value(ctypes.c_int64)
        self.readings = context.Value(ctypes.c_int64)
        self.stop = context.Event()

    def add(self, weight: int, readings: int) -> None:
        with self.weight.get_lock():
            self.weight.value += weight
        with self.readings.get_lock():
            self.readings.value += readings


_shared: list[_Shared] = []  # of this worker process


def _pooled(job: Job, parts: Sequence[Part], workers: int, show: Show) -> Iterator[PartResult]:
    context = multiprocessing.get_context("spawn")
    shared = _Shared(context)
    pool = ProcessPoolExecutor(workers, context, initializer=_begin_worker, initargs=(shared,))
    try:
        futures = [pool.submit(_work, job, part.pieces, part.target) for part in parts]
        for future in futures:
            yield _patiently(future, shared, show)
    except BrokenProcessPool as error:
        raise CommandError(
            "a worker was killed, perhaps for want of memory: run the same command again, with --workers 1 if need "
            "be; what is complete is kept"
        ) from error
    finally:
        shared.stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


def _patiently(future: "Future[PartResult]", shared: _Shared, show: Show) -> PartResult:
    while True:
        try:
            return future.result(_POLL_S)
        except TimeoutError:
            show(shared.weight.value, shared.readings.value)


def _begin_worker(shared: _Shared) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C, and stops the workers
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_leave_with, args=(parent.sentinel,), name="parent", daemon=True).start()
    _shared[:] = [shared]


def _leave_with(sentinel: int) -> None:
    """End this worker when its parent is killed."""
    wait([sentinel])
    os._exit(1)


def _work(job: Job, pieces: list[Piece], target: Path) -> PartResult:
    shared = _shared[0]
    return score_part(job, pieces, target, Progress(shared.add, shared.stop.is_set))
