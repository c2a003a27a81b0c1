"""A day of recording at 1 kHz and six axes, as fast as it goes: memory, bytes and CPU of a reading.

    python -m benchmarks.recording [--hours 24] [--rate 1000] [--folder DIR] [--keep]

A program stands for the sensor: it writes readings of six int16 to its standard output, 64 at a time, as the FIFO of
such a sensor gives them. `edge-runtime record` itself scales and records them, in a process of its own. Memory is what
the kernel says of that process, sampled every second.
"""

import argparse
import json
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from edge_runtime.recordings.folder import parts_of, read_about

CHANNELS = ("ax", "ay", "az", "gx", "gy", "gz")
FRAME = 64  # readings that the sensor's FIFO gives at once
SCALE = 0.00059855  # 2 g in 16 bits, in m/s2
STILL_S = 60  # without a further byte: the sensor has nothing more to say; a busy disk may rest for seconds
COMPARED = 1000  # readings at the end, with those that the sensor wrote at these places

_SENSOR = """
import sys
import numpy as np
rate, readings, frame = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
rng = np.random.default_rng(7)
moments = np.arange(rate * 60) / rate
turn = 2 * np.pi * 12.0 * moments[:, None] + np.arange(6)
counts = np.round(8000 * np.sin(turn) + rng.normal(0, 400, (len(moments), 6)))
minute = counts.astype("<i2")[: len(moments) // frame * frame]
if len(sys.argv) > 4:
    np.save(sys.argv[4], minute)
left = readings // frame * frame
while left:
    part = minute[: min(left, len(minute))]
    sys.stdout.buffer.write(part.tobytes())
    left -= len(part)
sys.stdout.flush()
while True:
    sys.stdin.read(1) or __import__("time").sleep(3600)
"""

_DEVICE = """
[device]
id = "press"

[[source]]
name = "imu"
type = "command"
argv = {argv}
framing = "fixed"
frame_bytes = {frame_bytes}
format = "raw"
layout = {layout}
scale = {scale}
fields = {fields}

[upstream]
url = "mqtt://127.0.0.1"
"""


def main() -> int:
    """Record, watch, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--rate", type=int, default=1000)
    parser.add_argument("--folder", type=Path, help="where the recording goes (8 GB for a day)")
    parser.add_argument("--keep", action="store_true", help="leave the recording there")
    arguments = parser.parse_args()
    readings = int(arguments.hours * 3600 * arguments.rate) // FRAME * FRAME
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="recording-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        print(figures(folder, arguments.rate, readings, arguments.hours))
    finally:
        if not arguments.keep:
            shutil.rmtree(folder)
    return 0


def figures(folder: Path, rate: int, readings: int, hours: float) -> str:
    """Record so many readings, and say what it took."""
    device, out = folder / "press.toml", folder / "recording"
    device.write_text(_device(folder, rate, readings))
    command = [sys.executable, "-m", "edge_runtime", "record", str(device), "-o", str(out)]
    began = time.monotonic()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)
    memory = list(_watched(process, out))
    process.wait(60)
    took = time.monotonic() - began - (STILL_S if len(memory) > STILL_S else 0)
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    about = read_about(out)
    size = sum(path.stat().st_size for path in parts_of(out))
    settled = memory[min(10, len(memory) - 1) :]
    times = hours * 3600 / took
    growth = (settled[-1] - settled[0]) / 1024
    cpu = 1e6 * (usage.ru_utime + usage.ru_stime) / about.readings
    in_place = _are_in_place(folder, out, about.readings)
    lines = (
        f"{about.readings:,} readings of {len(CHANNELS)} axes ({hours:g} h at {rate:,} Hz): {took:.0f} s, {times:.0f}x",
        f"lost: {readings - about.readings}; the last {COMPARED} are {'' if in_place else 'NOT '}those of the sensor",
        f"bytes of a reading: {size / about.readings:.1f} ({size / 1e9:.2f} GB in {len(parts_of(out))} parts)",
        f"memory after ten seconds: {min(settled) >> 20} to {max(settled) >> 20} MiB, {growth:+.0f} KiB at the end",
        f"CPU of a reading, sensor included: {cpu:.1f} us",
    )
    return "\n".join(lines)


def _device(folder: Path, rate: int, readings: int) -> str:
    """The device file, and the program that stands for the sensor beside it."""
    sensor = folder / "sensor.py"
    sensor.write_text(_SENSOR)
    axes = len(CHANNELS)
    return _DEVICE.format(
        argv=json.dumps(
            [sys.executable, str(sensor), str(rate), str(readings), str(FRAME), str(folder / "minute.npy")]
        ),
        frame_bytes=2 * axes * FRAME,
        fields=json.dumps(CHANNELS),
        layout=json.dumps(["int16"] * axes),
        scale=[SCALE] * axes,
    )


def _are_in_place(folder: Path, out: Path, readings: int) -> bool:
    """Whether the last readings are those that the sensor wrote at these places: one that was lost shifts them."""
    minute = np.load(folder / "minute.npy").astype(np.float32) * np.float32(SCALE)
    lines = parts_of(out)[-1].read_bytes().splitlines()[-COMPARED:]
    found = np.array([line.split(b",")[1:] for line in lines], np.float32)
    wanted = minute[np.arange(readings - len(found), readings) % len(minute)]
    return np.allclose(found, wanted, rtol=1e-5)


def _watched(process: subprocess.Popen[bytes], out: Path) -> Iterator[int]:
    """The memory of the recorder, a number a second, until nothing comes any more; then it is stopped."""
    last, still = -1, 0
    while process.poll() is None:
        time.sleep(1.0)
        yield _resident(process.pid)
        size = sum(path.stat().st_size for path in parts_of(out)) if out.exists() else 0
        still = still + 1 if size == last else 0
        last = size
        if still >= STILL_S and size:
            process.terminate()
            return


def _resident(pid: int) -> int:
    try:
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return 1024 * int(found[1]) if found else 0


if __name__ == "__main__":
    sys.exit(main())
