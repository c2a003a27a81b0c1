"""The parts of a run on an existing Dask cluster, or on one of the run's own. Needs the extra `batch-dask`.

Workers read the bundle and the recordings by the given paths, so these must be the same on every worker. Results come
back over the network and are written here. Guarantee: every worker's environment is checked before a part is submitted;
the parts of a worker that dies are done again by others; the output equals the local engine's, byte for byte. When the
scheduler or all workers are lost, the run ends with one sentence and keeps the complete parts. Workers that join later
are checked within a second. Weak point: a part that kills three workers ends the run.
"""

import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime import __version__
from edge_runtime.batch.local_engine import Show
from edge_runtime.batch.parts import Part
from edge_runtime.batch.score import Job, PartResult, Progress, score_part
from edge_runtime.errors import CommandError, EdgeError
from edge_runtime.recordings.blocks import Piece

CONNECT_S = 10
NO_WORKER_S = 30
POLL_S = 0.05
LOOK_S = 1.0  # between two questions to the scheduler
WORKER_BYTES = 192 << 20  # of a process with onnxruntime and pyarrow that holds a block and a part's scores
_SUFFIXES = (".part", ".faults", ".json")  # the last file marks the part as complete

NEEDS_DASK = "--engine dask needs Dask, which is not installed: pip install 'edge-inference-runtime[batch-dask]'"
KEPT = "run the same command again: the parts that are complete are kept"

# Evaluated by each worker. It needs only Python there, while a function of this module would need the package.
PROBE = """(lambda found, meta, hashlib, bundle: {
  'runtime': getattr(__import__('edge_runtime'), '__version__', None) if found('edge_runtime') else None,
  'onnxruntime': meta.version('onnxruntime') if found('onnxruntime') else None,
  'pyarrow': meta.version('pyarrow') if found('pyarrow') else None,
  'bundle': hashlib.sha256(bundle.read_bytes()).hexdigest() if bundle.is_file() else None,
})(__import__('importlib.util').util.find_spec, __import__('importlib.metadata').metadata, __import__('hashlib'),
   __import__('pathlib').Path(BUNDLE))"""


def run_parts(
    job: Job, parts: Sequence[Part], show: Show, *, scheduler: str | None, workers: int
) -> Iterator[PartResult]:
    """Do the parts, and give their results in order.

    Args:
        job: what they have in common.
        parts: the incomplete ones.
        show: called from time to time with the weight done and the readings read.
        scheduler: the address of a cluster; None makes one of `workers` processes on this machine.
        workers: the number of these processes.

    Raises:
        EdgeError: the cluster does not answer, its workers cannot do the work, it was lost, or a part failed.
    """
    try:
        from distributed import Client  # noqa: PLC0415 - an extra, and slow to load
    except ImportError as error:
        raise CommandError(NEEDS_DASK) from error
    _silence()
    try:
        if scheduler is None:
            client = Client(n_workers=workers, threads_per_worker=1, dashboard_address=None, silence_logs=50)
        else:
            client = Client(scheduler, timeout=CONNECT_S)
    except (OSError, ValueError, TimeoutError) as error:
        raise CommandError(f"{scheduler}: expected a Dask scheduler, found none: {_first_line(error)}") from error
    cluster = _Cluster(client, scheduler or "the local Dask cluster")
    try:
        cluster.check_workers(job)
        yield from _gathered(cluster, job, parts, show)
    finally:
        cluster.close()


def _silence() -> None:
    """Silence Dask's loggers, which have their own levels and handlers; one sentence here reports the fault."""
    for name in ("asyncio", *logging.root.manager.loggerDict):
        if name.partition(".")[0] in {"asyncio", "distributed", "tornado"}:
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)


class _Cluster:
    """A client of a cluster, and whether the cluster still answers."""

    def __init__(self, client: Any, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.client = client
        self.name = name
        self._clock = clock
        self._seen_worker = clock()
        self._asked = float("-inf")
        self._job: Job | None = None
        self._checked: set[str] = set()

    def check_workers(self, job: Job) -> None:
        """Refuse workers that could not do a part.

        Raises:
            CommandError: there is none, or one lacks the package, or has another version, bundle or too little memory.
        """
        try:
            self.client.wait_for_workers(1, timeout=CONNECT_S)
        except TimeoutError as error:
            raise CommandError(f"{self.name}: expected workers, found none: start some, and run again") from error
        self._check(job, self._probe(job, None))
        self._job = job

    def _probe(self, job: Job, addresses: list[str] | None) -> dict[str, Any]:
        """The environment of some workers, or of all."""
        source = f"(lambda BUNDLE: {PROBE})({job.bundle!r})"
        try:
            found: dict[str, Any] = self.client.run(eval, source, workers=addresses, on_error="return")
        except Exception as error:  # Dask raises various types when a connection ends
            raise CommandError(f"{self.name}: its workers cannot be asked: {_first_line(error)}") from error
        return found

    def _check(self, job: Job, found: dict[str, Any]) -> None:
        limits = self._workers()
        needed = WORKER_BYTES + 4 * Path(job.bundle).stat().st_size
        mistakes = [
            f"worker {address}: {mistake}"
            for address, answer in sorted(found.items())
            if (mistake := _mistake(job, answer, limits.get(address, {}).get("memory_limit"), needed))
        ]
        if mistakes:
            raise CommandError("\n".join(mistakes))
        self._checked.update(found)

    def _workers(self) -> dict[str, Any]:
        """The scheduler's facts about each worker, by address."""
        try:
            workers: dict[str, Any] = self.client.scheduler_info(n_workers=-1)["workers"]
        except Exception as error:  # as above; the client may not have noticed yet
            raise CommandError(f"{self.name}: the Dask scheduler was lost: {KEPT}") from error
        return workers

    def _check_joined(self, workers: dict[str, Any]) -> None:
        """Check workers that joined since the start; one that has left again is ignored."""
        joined = sorted(set(workers) - self._checked)
        if self._job is not None and joined:
            answers = self._probe(self._job, joined)
            self._check(self._job, {name: found for name, found in answers.items() if isinstance(found, dict)})

    def look(self) -> None:
        """Check that the cluster can go on.

        Raises:
            CommandError: its scheduler or all of its workers are gone, or a worker that cannot do a part has joined.
        """
        if self.client.status != "running":
            raise CommandError(f"{self.name}: the Dask scheduler was lost: {KEPT}")
        now = self._clock()
        if now - self._asked < LOOK_S:
            return
        self._asked = now
        workers = self._workers()
        if workers:
            self._seen_worker = now
            self._check_joined(workers)
        elif now - self._seen_worker > NO_WORKER_S:
            raise CommandError(f"{self.name}: all Dask workers were lost: {KEPT}")

    def close(self) -> None:
        """End the connection, without waiting for a lost cluster."""
        self.client.close(timeout=1 if self.client.status != "running" else CONNECT_S)


def _mistake(job: Job, answer: Any, limit: int | None, needed: int) -> str:
    """Why a worker cannot do a part; empty where it can."""
    if not isinstance(answer, dict):
        return f"it cannot be asked for its environment: {_first_line(answer)}"
    if answer["runtime"] is None or answer["onnxruntime"] is None:
        missing = "edge-inference-runtime" if answer["runtime"] is None else "onnxruntime"
        return (
            f"expected {missing} in its environment, found none: pip install 'edge-inference-runtime[batch-dask]' there"
        )
    for name, here in (("runtime", __version__), ("onnxruntime", version("onnxruntime"))):
        if answer[name] != here:
            return f"expected {name} {here} as here, found {answer[name]}: install the same release there"
    if answer["bundle"] is None:
        return f"expected the bundle {job.bundle}, found no such file: put it at the same path on every worker"
    if answer["bundle"] != job.digest:
        return f"expected the bundle {job.bundle} as it is here, found another one: copy it there"
    if limit and limit < needed:
        return f"expected a memory limit of {needed >> 20} MiB or more, found {limit >> 20} MiB: raise --memory-limit"
    return ""


def _gathered(cluster: _Cluster, job: Job, parts: Sequence[Part], show: Show) -> Iterator[PartResult]:
    futures = [cluster.client.submit(_work, job, part.pieces, pure=False, retries=2) for part in parts]
    weight = readings = 0
    for number, (part, future) in enumerate(zip(parts, futures, strict=True)):
        result, files = _patiently(cluster, future, partial(show, weight, readings))
        for suffix in _SUFFIXES:
            part.target.with_suffix(suffix).write_bytes(files[suffix].data)
        futures[number] = None  # the cluster may forget it
        weight += part.weight
        readings += result.readings
        show(weight, readings)
        yield result


def _patiently(cluster: _Cluster, future: Any, show: Any) -> tuple[PartResult, dict[str, NDArray[np.uint8]]]:
    """The result of a part. Only the state is polled; the result is requested once, without a timeout.

    A timeout cancels the transfer, which Dask shares between requests. The next request for a large result may then end
    in `cannot access local variable 'result'`: `distributed.utils.sync` catches `Exception`, which `CancelledError` is
    not, and returns what it has not set. With results of 40 MB and timeouts of 0.02 to 0.3 s, 5 of 667 ended so.
    """
    while future.status == "pending":
        time.sleep(POLL_S)
        cluster.look()
        show()
    try:
        result, files = future.result()
    except EdgeError:
        raise
    except Exception as error:  # Dask raises various types; `look` finds the cause
        cluster.look()
        raise CommandError(f"the Dask cluster gave a part up: {_first_line(error)}: {KEPT}") from error
    return result, files


def _work(job: Job, pieces: list[Piece]) -> tuple[PartResult, dict[str, NDArray[np.uint8]]]:
    """In a worker: score the part; return the files that the local engine would have written.

    Their bytes are arrays, which Dask sends without copying them into a pickle.
    """
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "scored.part"
        result = score_part(job, pieces, target, Progress())
        return result, {suffix: np.fromfile(target.with_suffix(suffix), np.uint8) for suffix in _SUFFIXES}


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).strip().partition("\n")[0][:300]
