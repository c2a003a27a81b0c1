"""Spectra for MLPerf Tiny's wake-word model: `spectra.py FILE.wav [SPEED]`, one frame for each 32 ms of sound.

A frame is the last 30 spectra of 40 bands, as float32. The bands, the window and the logarithm are those that the model
was trained with, as far as they are known; the loudness (`OFFSET_DB`) was set so that the words of its own test
recording are found. A microphone in the place of the file: read `arecord -t raw -f S16_LE -r 16000` from a pipe.
"""

import signal
import sys
import time
import wave
from typing import Any

import numpy as np

RATE, LENGTH, HOP, BANDS, FRAMES = 16_000, 1024, 512, 40, 30
LOWEST_HZ, HIGHEST_HZ = 20.0, 8000.0
PREEMPHASIS, OFFSET_DB, RANGE_DB = 0.96875, 60.0, 64.0


def mel(hertz: Any) -> Any:
    """Pitch as it is heard."""
    return 1127.0 * np.log(1.0 + hertz / 700.0)


def bands() -> Any:
    """How much of each frequency goes into each band: triangles of one width in mel."""
    heights = mel(np.linspace(0.0, RATE / 2, LENGTH // 2 + 1))[:, None]
    edges = np.linspace(mel(LOWEST_HZ), mel(HIGHEST_HZ), BANDS + 2)
    rising = (heights - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - heights) / (edges[2:] - edges[1:-1])
    return np.maximum(0.0, np.minimum(rising, falling))


def spectra(sound: Any) -> Any:
    """`[frames, 40]` of samples from -1 to 1, each number between 0 and 1."""
    flat = np.concatenate([[0.0], sound[1:] - PREEMPHASIS * sound[:-1]])
    starts = np.arange(0, len(flat) - LENGTH + 1, HOP)
    cut = flat[starts[:, None] + np.arange(LENGTH)] * np.hamming(LENGTH + 1)[:-1]
    power = np.abs(np.fft.rfft(cut)) ** 2 / LENGTH
    decibels = 10.0 * np.log10(power @ bands() + 1e-30)
    return np.clip((decibels + OFFSET_DB) / RANGE_DB, 0.0, 1.0).astype(np.float32)


def frames(path: str) -> Any:
    """`[n, 30, 40]`: the last 30 spectra, for each that completes them."""
    with wave.open(path) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, file.getnchannels())[:, 0]
    found = spectra(samples / 32_768.0)
    return np.stack([found[end - FRAMES : end] for end in range(FRAMES, len(found) + 1)])


def main() -> int:
    """Write the frames at the pace of the sound."""
    speed = float(sys.argv[2]) if len(sys.argv) > 2 else 1.0
    began = time.monotonic()
    for number, frame in enumerate(frames(sys.argv[1])):
        sys.stdout.buffer.write(frame.tobytes())
        sys.stdout.buffer.flush()
        time.sleep(max(0.0, began + (number + 1) * HOP / RATE / speed - time.monotonic()))
    signal.pause()
    return 0


if __name__ == "__main__":
    sys.exit(main())
