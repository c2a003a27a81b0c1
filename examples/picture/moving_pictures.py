"""Pictures of three kinds, as a camera would send them: `moving_pictures.py [COUNT [PER_SECOND]]`.

In the place of `ffmpeg -f lavfi -i testsrc=size=24x16:rate=10 -f rawvideo -pix_fmt rgb24 -`, which writes the same
form: 24 x 16 pixels of red, green and blue, one picture after the other.
"""

import signal
import sys
import time
from typing import Any

import numpy as np

WIDTH, HEIGHT = 24, 16
KINDS = ("bars", "ramp", "noise")


def pictures(count: int, seed: int = 0) -> tuple[Any, Any]:
    """`[count, 16, 24, 3]` bytes, and the kind of each by its index."""
    random = np.random.default_rng(seed)
    kinds = np.arange(count) % len(KINDS)
    found = np.empty((count, HEIGHT, WIDTH, 3), np.uint8)
    columns, rows = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    for index, kind in enumerate(kinds):
        colour = random.integers(80, 255, 3)
        if kind == 0:
            shade = ((columns + random.integers(8)) // 4 % 2).astype(float)
        elif kind == 1:
            shade = (columns + rows) / (WIDTH + HEIGHT)
        else:
            shade = random.random((HEIGHT, WIDTH))
        found[index] = shade[..., None] * colour
    return found, kinds


def main() -> int:
    """Write them."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    per_second = float(sys.argv[2]) if len(sys.argv) > 2 else 10.0
    for picture in pictures(count)[0]:
        sys.stdout.buffer.write(picture.tobytes())
        sys.stdout.buffer.flush()
        time.sleep(1.0 / per_second)
    signal.pause()
    return 0


if __name__ == "__main__":
    sys.exit(main())
