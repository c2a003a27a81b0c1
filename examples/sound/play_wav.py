"""A wav file as samples at the pace of a microphone: `play_wav.py FILE [SPEED]`, in the place of `arecord`.

Writes one channel of 16-bit samples, a tenth of a second at a time, and stays silent at the end.
"""

import signal
import sys
import time
import wave


def main() -> int:
    """Write the samples."""
    speed = float(sys.argv[2]) if len(sys.argv) > 2 else 1.0
    with wave.open(sys.argv[1]) as file:
        rate, size = file.getframerate(), file.getnchannels() * 2
        began, played = time.monotonic(), 0
        while samples := file.readframes(rate // 10):
            first = b"".join(samples[at : at + 2] for at in range(0, len(samples), size))
            sys.stdout.buffer.write(first)
            sys.stdout.buffer.flush()
            played += len(samples) // size
            time.sleep(max(0.0, began + played / rate / speed - time.monotonic()))
    signal.pause()
    return 0


if __name__ == "__main__":
    sys.exit(main())
