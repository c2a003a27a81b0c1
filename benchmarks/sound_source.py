"""What a source of sound costs: 48 kHz stereo from a program, beside a bare Python reader of the same pipe.

`python -m benchmarks.sound_source [--seconds S] [--hour]`: CPU of each at real time, in turns, and with overlapping
windows of a second; with `--hour`, an hour's samples as fast as they come, every one of them accounted for.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, cast

import msgspec
import numpy as np

from edge_runtime.config.tables import Config
from edge_runtime.readings import Batch
from edge_runtime.registered import CODECS
from edge_runtime.stream.sources.command import CommandSource, CommandSourceTable
from edge_runtime.stream.sources.kind import Wiring
from edge_runtime.stream.windows import Windows
from edge_runtime.system.counters import Counters
from edge_runtime.system.loop import Loop

RATE, CHANNELS, CHUNK_S = 48_000, 2, 0.02
FRAME_BYTES = int(RATE * CHUNK_S) * CHANNELS * 2
# Writes samples that count up, at their pace or as fast as they are taken.
_WRITER = """
import sys, time
import numpy as np
rate, chunk, seconds, paced = 48_000, int(sys.argv[1]), float(sys.argv[2]), sys.argv[3] == "paced"
each = chunk // 4
began = time.monotonic()
for number in range(int(rate * seconds) // each):
    start = number * each
    pair = (np.arange(start, start + each) % 30_000).astype("<i2")
    sys.stdout.buffer.write(np.repeat(pair, 2).tobytes())
    sys.stdout.buffer.flush()
    if paced:
        time.sleep(max(0.0, began + (start + each) / rate - time.monotonic()))
"""


def writer(seconds: float, *, paced: bool) -> list[str]:
    """The program."""
    return [sys.executable, "-c", _WRITER, str(FRAME_BYTES), str(seconds), "paced" if paced else "full"]


def bare(seconds: float) -> float:
    """CPU seconds of a loop that reads the pipe and looks at the numbers."""
    with subprocess.Popen(writer(seconds, paced=True), stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdout is not None
        os.read(process.stdout.fileno(), 1)
        before, rest = time.process_time(), b"\0"
        while data := os.read(process.stdout.fileno(), 65_536):
            rest += data
            whole = len(rest) // 4 * 4
            np.frombuffer(rest[:whole], "<i2").reshape(-1, 2)
            rest = rest[whole:]
        return time.process_time() - before


class Heard:
    """Takes batches and knows whether a sample is missing."""

    def __init__(self, windower: Windows | None) -> None:
        self.samples = self.windows = self.wrong = 0
        self._windower = windower

    def __call__(self, batch: Batch) -> None:
        """One batch."""
        count = len(batch)
        expected = (np.arange(self.samples, self.samples + count) % 30_000).astype(np.float32)
        self.wrong += int((batch.values[:, 0] != expected).sum() + (batch.values[:, 1] != expected).sum())
        self.samples += count
        if self._windower is not None:
            self.windows += len(self._windower.push(batch.values, batch.keys, batch.times, now=time.monotonic()).rows)


def source(seconds: float, sink: Callable[[Batch], None], *, paced: bool) -> tuple[float, float]:
    """CPU and wall seconds of the source, from its first sample to its last."""
    codec = msgspec.convert(
        {"format": "raw", "fields": ["left", "right"], "layout": ["int16", "int16"]}, CODECS.load("raw")
    )
    table = CommandSourceTable(
        name="sound", codec=codec, argv=tuple(writer(seconds, paced=paced)), frame_bytes=FRAME_BYTES, restart_max=1e6
    )
    loop, counters = Loop(), Counters()
    wiring = Wiring(
        config=cast("Config", None), channels=("left", "right"), shape=None, loop=loop, sink=sink, counters=counters,
        on_state=lambda: None, needed=lambda: 1, paused=lambda: False, max_gap=None, connect=cast("Any", None),
    )  # fmt: skip
    made = CommandSource(table, wiring)
    made.start()
    while not counters.counts["readings"]:
        loop.run_once(0.1)
    before, began = time.process_time(), time.monotonic()
    while not counters.errors["ended"]:
        loop.run_once(0.1)
    used = time.process_time() - before, time.monotonic() - began
    made.stop()
    loop.close()
    return used


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sound_source", description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="of sound in each turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--hour", action="store_true", help="also an hour's samples as fast as they come")
    args = parser.parse_args()
    figures: dict[str, list[float]] = {"a bare reader": [], "the source": [], "the source and its windows": []}
    for _ in range(args.turns):
        figures["a bare reader"].append(bare(args.seconds) / args.seconds)
        for name in ("the source", "the source and its windows"):
            heard = Heard(Windows((RATE, CHANNELS), length=RATE, stride=RATE // 10) if "windows" in name else None)
            figures[name].append(source(args.seconds, heard, paced=True)[0] / args.seconds)
            assert heard.wrong == 0
    for name, shares in figures.items():
        print(f"{name}: {100 * statistics.median(shares):.2f} % of a core (from {100 * min(shares):.2f} %)")
    if args.hour:
        heard = Heard(Windows((RATE, CHANNELS), length=RATE, stride=RATE // 10))
        used, wall = source(3600.0, heard, paced=False)
        counted = f"{heard.samples} samples of {3600 * RATE}, {heard.wrong} wrong, {heard.windows} windows"
        print(f"an hour in {wall:.0f} s, {used:.0f} s of CPU: {counted}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
