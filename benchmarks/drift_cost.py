"""What the watch over drift costs beside the pipeline that it belongs to: `python -m benchmarks.drift_cost`.

One pipeline, from a JSON frame to the payload of its prediction, without sockets, with and without the watch in turns,
so that a machine whose speed changes favours neither. Readings come one by one, and 64 at a time as from a backlog.
`--instructions` counts instructions by valgrind instead of time, which is the same whatever else runs; it does not see
that code which runs once a block is never in the cache. `--daemon` takes whole daemons behind mosquitto, alive beside
one another, at 100 readings a second in turns.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray

from benchmarks import process, turns
from benchmarks.models import write_bundle
from benchmarks.names import CHANNELS
from benchmarks.results import Results
from benchmarks.targets import Target, daemon_config, start_daemon
from converter.reference import reference_of
from edge_runtime.bundle.manifest import (
    METADATA_KEY,
    ChannelReference,
    DriftLimits,
    DriftReference,
    Manifest,
    write_manifest,
)
from edge_runtime.bundle.model import Model
from edge_runtime.bundle.open import open_bundle
from edge_runtime.config.tables import ModelTable, RepairTable
from edge_runtime.delivery.json_payload import JsonPayload
from edge_runtime.delivery.outbox import Outbox
from edge_runtime.drift.baseline import MOST_SAMPLED
from edge_runtime.drift.monitor import Monitor
from edge_runtime.readings import Batch, Receipt
from edge_runtime.stream.pipeline import Pipeline
from edge_runtime.system.clock import Clock
from edge_runtime.system.counters import Counters
from edge_runtime.system.loop import Loop

TURNS, READINGS = 10, 6400
BLOCKS = (128, 512, 2048)
TOGETHER = (1, 64)
COUNTED = 6144  # readings whose instructions are counted: a whole number of blocks of each size
DAEMON_SECONDS = 40.0  # of each daemon; a block of 512 has five


class _Taker:
    """Takes predictions, as the outbox does."""

    def offer(self, stream: str, topic: str, payload: bytes, *, priority: int, receipt: Receipt | None) -> None:
        """As `Outbox.offer`."""


def watched(manifest: Manifest, answers: NDArray[np.floating], block: int) -> Manifest:
    """The manifest with a reference and limits, as a build with data writes them."""
    values = np.random.default_rng(0).normal(size=(4000, len(CHANNELS))).astype(np.float32)
    about = DriftReference(block=block, score_block=block, rate_hz=100.0)
    return msgspec.structs.replace(
        manifest,
        reference=_limited(values, CHANNELS, block),
        score_reference=_limited(answers, manifest.output.labels, block),
        drift=about,
    )


def _limited(values: NDArray[np.floating], names: Sequence[str], block: int) -> tuple[ChannelReference, ...]:
    """A reference with limits that these readings, which do not depend on one another, keep."""
    steps = np.log(np.abs(np.diff(values, axis=0)).mean(axis=0)).tolist()
    size = min(block, MOST_SAMPLED)
    found = []
    for each, step in zip(reference_of(values, names), steps, strict=True):
        limits = DriftLimits(
            mean=each.mean, sd=each.std / size**0.5, step=step, step_sd=0.3, slack=1.0, limit=50.0, step_slack=1.0,
            step_limit=50.0, psi=5.0, counts=each.counts,
        )  # fmt: skip
        found.append(msgspec.structs.replace(each, run=3, limits=limits))
    return tuple(found)


def main() -> None:
    """Measure, and print a line for each way in which readings come, or for each daemon."""
    parser = argparse.ArgumentParser(prog="benchmarks.drift_cost", description=__doc__)
    parser.add_argument("--daemon", action="store_true", help="whole daemons behind mosquitto")
    parser.add_argument("--instructions", action="store_true", help="instructions instead of time, by valgrind")
    parser.add_argument("--only", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        _only()
    else:
        (_daemons if options.daemon else _instructions if options.instructions else _pipelines)()


def _daemons() -> None:
    """A line for each size of a block: CPU of a daemon with the watch, and of one without, in the same turns."""
    results = Results(machine={})
    with tempfile.TemporaryDirectory() as folder:
        plain = write_bundle(Path(folder) / "mlp.onnx")
        targets = [_target("without", plain)]
        values = np.random.default_rng(1).normal(size=(4000, 1, len(CHANNELS))).astype(np.float32)
        model = Model(open_bundle(plain))
        answers = model.run(values).scores
        assert answers is not None
        for block in BLOCKS:
            file = onnx.load(plain)
            (entry,) = (each for each in file.metadata_props if each.key == METADATA_KEY)
            entry.value = write_manifest(watched(model.manifest, answers, block))
            path = Path(folder) / f"mlp-{block}.onnx"
            onnx.save(file, path)
            targets.append(_target(str(block), path))
        os.sched_setaffinity(0, {process.cores()[0]})
        turns.measure(targets, Path(folder), plain, DAEMON_SECONDS, results=results)
    without = results.values[turns.CPU]["without"]
    print("| block | CPU us a reading | more |\n|---|---|---|", flush=True)
    for name, found in results.values[turns.CPU].items():
        more = statistics.median(mine / other for mine, other in zip(found, without, strict=True)) - 1
        print(f"| {name} | {100 * statistics.median(found):.1f} | {more:.1%} |")


def _target(name: str, bundle: Path) -> Target:
    return Target(name, lambda folder, core, port, _: start_daemon(folder, core, daemon_config(folder, port, bundle)))


def _instructions() -> None:
    """A line for each size of a block and number of readings that come together.

    One process under valgrind does all of it. `sys.setrecursionlimit` marks beginning and end of each part: callgrind
    writes its counts whenever a given C function is entered, and nothing else calls this one.
    """
    valgrind = shutil.which("valgrind")
    assert valgrind is not None, "expected the program valgrind, found none: apt install valgrind"
    with tempfile.TemporaryDirectory() as folder:
        words = ["--tool=callgrind", "--dump-before=Py_SetRecursionLimit", f"--callgrind-out-file={folder}/out"]
        counted = [sys.executable, "-m", "benchmarks.drift_cost", "--only"]
        subprocess.run(
            [valgrind, *words, *counted], env={**os.environ, "PYTHONHASHSEED": "0"}, check=True, capture_output=True
        )
        files = sorted(Path(folder).glob("out.*"), key=lambda path: int(path.suffix[1:]))
        found = [_total(path) / COUNTED for path in files[1::2]]
    print("| block | together | without, instructions a reading | with | more |\n|---|---|---|---|---|")
    for place, together in enumerate(TOGETHER):
        without, *others = found[place :: len(TOGETHER)]
        for block, more in zip(BLOCKS, others, strict=True):
            print(f"| {block} | {together} | {without:,.0f} | {more:,.0f} | {more / without - 1:.1%} |")


def _total(path: Path) -> int:
    """The instructions of one part."""
    found = re.search(r"^(?:summary|totals): (\d+)", path.read_text(), re.MULTILINE)
    assert found is not None, path
    return int(found.group(1))


def _only() -> None:
    """Each part once, with a mark before and after it."""
    with _made() as (pipeline, model, readings, answers, texts):
        values, frames = readings[:COUNTED], texts[:COUNTED]
        for block in (0, *BLOCKS):
            pipeline.drift = None
            if block:
                pipeline.drift = Monitor(watched(model.manifest, answers, block), is_recorded=True)
            for together in TOGETHER:
                _turn(pipeline, values[:64], frames[:64], together)
                sys.setrecursionlimit(sys.getrecursionlimit())
                _turn(pipeline, values, frames, together)
                sys.setrecursionlimit(sys.getrecursionlimit())


@contextmanager
def _made() -> Iterator[tuple[Pipeline, Model, Any, Any, list[str]]]:
    """The pipeline, its model, readings, the answers to them, and the readings as frames."""
    with tempfile.TemporaryDirectory() as folder:
        model = Model(open_bundle(write_bundle(Path(folder) / "mlp.onnx")))
        table = msgspec.convert({"name": "m", "bundle": "m.onnx", "source": "s", "run": "loop"}, ModelTable)
        pipeline = Pipeline(
            table, model, channels=CHANNELS, repair=RepairTable(), topic="edge/d/m/{key}",
            payload=JsonPayload(device="d", model="m", source="s", start=1, manifest=model.manifest, threshold=None),
            outbox=cast("Outbox", _Taker()), loop=Loop(), clock=Clock(lambda: True), counters=Counters(),
        )  # fmt: skip
        pipeline.warm_up()
        rng = np.random.default_rng(1)
        values = rng.normal(size=(READINGS, len(CHANNELS))).astype(np.float32)
        answers = model.run(values[:, np.newaxis]).scores
        assert answers is not None
        frames = [json.dumps(dict(zip(CHANNELS, map(float, row), strict=True))) for row in values]
        yield pipeline, model, values, answers, frames


def _pipelines() -> None:
    with _made() as (pipeline, model, values, answers, frames):
        print("| block | together | without, us a reading | with | more |\n|---|---|---|---|---|")
        for block in BLOCKS:
            monitor = Monitor(watched(model.manifest, answers, block), is_recorded=True)
            for together in TOGETHER:
                spent: dict[bool, float] = {True: 0.0, False: 0.0}
                for turn in range(2 * TURNS):
                    pipeline.drift = monitor if turn % 2 else None
                    spent[bool(turn % 2)] += _turn(pipeline, values, frames, together)
                without, more = (1e6 * spent[each] / TURNS / READINGS for each in (False, True))
                assert monitor.state == "ok", monitor.document()["why"]
                print(f"| {block} | {together} | {without:.1f} | {more:.1f} | {more / without - 1:.1%} |", flush=True)


def _turn(pipeline: Pipeline, values: Any, frames: list[str], together: int) -> float:
    """CPU seconds for all readings once."""
    keys: list[str | None] = [None] * together
    nothing: list[Any] = [None] * together
    began = time.process_time()
    for start in range(0, len(values), together):
        for frame in frames[start : start + together]:
            msgspec.json.decode(frame)
        times = [float(row) / 100.0 for row in range(start, start + together)]
        pipeline.accept(
            Batch("s", values[start : start + together], keys, times, nothing, nothing, 0.0, own_times=True)
        )
    return time.process_time() - began


if __name__ == "__main__":
    main()
