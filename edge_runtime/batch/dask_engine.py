"""The parts of a run on a Dask cluster, or on one that is made for the run. Needs the extra `batch-dask`.

Workers read the bundle and the recordings by the paths they were named by, so these must be the same on every worker;
what they score comes back over the network, and is written here. Guarantee: a worker that dies costs the parts that
it held, which others do again; the output is that of the local engine, byte for byte. Weak point: a part that kills
three workers ends the run.
"""

import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from edge_runtime.batch.local_engine import Show
from edge_runtime.batch.parts import Part
from edge_runtime.batch.score import Job, PartResult, Progress, score_part
from edge_runtime.errors import CommandError, EdgeError
from edge_runtime.recordings.blocks import Piece

CONNECT_S = 10
POLL_S = 0.5
_SUFFIXES = (".part", ".faults", ".json")  # the last one says that the part is complete

NEEDS_DASK = "--engine dask needs Dask, which is not installed: pip install 'edge-inference-runtime[batch-dask]'"


def run_parts(
    job: Job, parts: Sequence[Part], show: Show, *, scheduler: str | None, workers: int
) -> Iterator[PartResult]:
    """Do the parts, and give their results in order.

    Args:
        job: what they have in common.
        parts: those that are not complete.
        show: called now and then with the weight done and the readings read.
        scheduler: the address of a cluster; None makes one of `workers` processes on this machine.
        workers: see there.

    Raises:
        EdgeError: the cluster does not answer, or a part failed.
    """
    try:
        from distributed import Client  # noqa: PLC0415 - an extra, and slow to load
    except ImportError as error:
        raise CommandError(NEEDS_DASK) from error
    try:
        if scheduler is None:
            client = Client(n_workers=workers, threads_per_worker=1, dashboard_address=None, silence_logs=50)
        else:
            client = Client(scheduler, timeout=CONNECT_S)
    except (OSError, ValueError, TimeoutError) as error:
        raise CommandError(f"{scheduler}: expected a Dask scheduler, found none: {_first_line(error)}") from error
    with client:
        yield from _gathered(client, job, parts, show)


def _gathered(client: Any, job: Job, parts: Sequence[Part], show: Show) -> Iterator[PartResult]:
    futures = [client.submit(_work, job, part.pieces, pure=False, retries=2) for part in parts]
    weight = readings = 0
    for part, future in zip(parts, futures, strict=True):
        result, files = _patiently(future, partial(show, weight, readings))
        for suffix in _SUFFIXES:
            part.target.with_suffix(suffix).write_bytes(files[suffix])
        future.release()
        weight += part.weight
        readings += result.readings
        show(weight, readings)
        yield result


def _patiently(future: Any, show: Any) -> tuple[PartResult, dict[str, bytes]]:
    while True:
        try:
            result, files = future.result(timeout=POLL_S)
        except EdgeError:
            raise
        except TimeoutError:
            if future.status in {"error", "cancelled", "lost"}:
                raise CommandError(f"the Dask cluster gave a part up: {future.status}") from None
            show()
        except Exception as error:
            raise CommandError(f"the Dask cluster gave a part up: {_first_line(error)}") from error
        else:
            return result, files


def _work(job: Job, pieces: list[Piece]) -> tuple[PartResult, dict[str, bytes]]:
    """In a worker: the part, as the files that the local engine would have written."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "scored.part"
        result = score_part(job, pieces, target, Progress())
        return result, {suffix: target.with_suffix(suffix).read_bytes() for suffix in _SUFFIXES}


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).strip().partition("\n")[0][:300]
