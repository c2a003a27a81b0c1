"""The limits of a kind of device, for `target_device` and `--target`: memory, int8, and the time of a prediction.

A file may take a tenth of the board's memory, because onnxruntime needs about twice its size to load it. The whole
process may take a quarter, because the daemon, its windows and the system need the rest. The figures come from Arm's
core manuals: Cortex-A53 and A72 lack the dot-product instructions of the A76; clock, decoded instructions and float32
operations a cycle (a multiply-add counts two) are those of core and board.

The time for a device without a measurement is called an estimate. It is the processor time here, scaled by the ratio of
clock and width (calls, small models) and by the ratio of float32 throughput (large products); the two are the ends of
the range. Caches and memory are left out, so it gives the order of magnitude only.
"""

import functools
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_HOST_DECODE = 4  # lower bound of the instructions a cycle that a workstation core decodes
_HOST_MHZ = 3000.0  # where /proc/cpuinfo has none


@dataclass(frozen=True, slots=True)
class TargetDevice:
    """One kind of device; `decode` and `flops` are counted per cycle of one core."""

    words: str
    file_bytes: int
    memory_bytes: int
    dot_product: bool
    mhz: float
    decode: int
    flops: int


TARGETS = {
    "zero2w": TargetDevice("Raspberry Pi Zero 2 W (Cortex-A53, 512 MB)", 48 << 20, 128 << 20, False, 1000, 2, 8),
    "pi3": TargetDevice("Raspberry Pi 3 (Cortex-A53, 1 GB)", 96 << 20, 256 << 20, False, 1200, 2, 8),
    "pi4": TargetDevice("Raspberry Pi 4 (Cortex-A72, 1 GB or more)", 96 << 20, 256 << 20, False, 1500, 3, 8),
    "pi5": TargetDevice("Raspberry Pi 5 (Cortex-A76, 2 GB or more)", 192 << 20, 512 << 20, True, 2400, 4, 16),
}


@dataclass(frozen=True, slots=True)
class HostCore:
    """One core of the converting machine, for its ratio to a device's core."""

    mhz: float
    decode: int
    flops_per_us: float


def warnings_for(target: str | None, size: int, method: str, peak_bytes: int = 0) -> list[str]:
    """Sentences about a model on such a device.

    Args:
        target: one of `TARGETS`, or None.
        size: of the model in bytes. onnxruntime needs about twice that to load it.
        method: of its quantisation.
        peak_bytes: the peak memory of a fresh process that loads and runs it here; 0 where it was not measured.
    """
    if target is None:
        return []
    device = TARGETS[target]
    found = []
    if 2 * size > device.file_bytes:
        found.append(
            f"{device.words}: {size:,} bytes need about twice that to load, more than its budget of "
            f"{device.file_bytes >> 20} MB"
        )
    if peak_bytes > device.memory_bytes:
        found.append(
            f"{device.words}: a process that ran it here took {peak_bytes >> 20} MB at its peak, more than the budget "
            f"of {device.memory_bytes >> 20} MB"
        )
    if method in ("int8", "dynamic") and not device.dot_product:
        found.append(
            f"{device.words}: its cores have no int8 dot products, so int8 saves memory but may be slower "
            "than float32: measure on the device"
        )
    return found


def estimate(target: str, cpu_us: float, host: HostCore) -> str:
    """The estimated time of one prediction on a device, in words.

    Args:
        target: one of `TARGETS`.
        cpu_us: processor time of one prediction here.
        host: a core of this machine.
    """
    device = TARGETS[target]
    ratios = (host.mhz * host.decode / (device.mhz * device.decode), host.flops_per_us / (device.mhz * device.flops))
    low, high = (_milliseconds(cpu_us * max(1.0, ratio)) for ratio in sorted(ratios))
    return (
        f"{device.words}: estimate, not measured: {low} to {high} ms a prediction, scaled from this machine's "
        "processor time; `edge-runtime models selftest --measure` on the device tells"
    )


def _milliseconds(us: float) -> str:
    return f"{us / 1000:.2g}"


@functools.cache
def this_host() -> HostCore:
    """This machine's clock, and the float32 throughput of one core in a matrix product."""
    matrix = np.ones((256, 256), dtype=np.float32)
    matrix @ matrix  # the first one starts the library
    start = time.process_time()
    for _ in range(40):
        matrix @ matrix
    spent = max(time.process_time() - start, 1e-6)
    return HostCore(_clock_mhz(), _HOST_DECODE, 40 * 2 * 256**3 / (spent * 1e6))


def _clock_mhz() -> float:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return max(float(line.partition(":")[2]) for line in lines if line.startswith("cpu MHz"))
    except (OSError, ValueError):
        return _HOST_MHZ
