import os
import random
import time
from pathlib import Path

import pytest

from edge_runtime.bundle.open import check_bundle
from edge_runtime.errors import BundleError
from tests.support import builders
from tests.support.disk_faults import LONG

MUTATIONS = int(os.environ.get("EDGE_MUTATIONS", "10000" if LONG else "3000"))
SEED = 20261123


def mutate(data: bytes, rng: random.Random) -> bytes:
    """One to four accidents: a flipped bit, a changed, lost or doubled stretch, a number at its limit, a cut."""
    spoiled = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(spoiled)) if spoiled else 0
        size = rng.choice((1, 1, 2, 4, 16, 64))
        match rng.randrange(7):
            case 0 if spoiled:
                spoiled[at] ^= 1 << rng.randrange(8)
            case 1:
                spoiled[at : at + size] = rng.randbytes(size)
            case 2:
                del spoiled[at : at + size]
            case 3:
                spoiled[at:at] = spoiled[at : at + size]
            case 4:
                spoiled[at : at + 1] = rng.choice((b"\x00", b"\x7f", b"\x80", b"\xff", b"\xff" * 9 + b"\x01"))
            case 5:
                del spoiled[rng.randrange(len(spoiled) + 1) :]
            case _:
                spoiled[at:at] = rng.randbytes(size)
    return bytes(spoiled)


@pytest.mark.parametrize("kind", ["classification", "stateful", "anomaly"])
def test_a_damaged_bundle_is_refused_or_sound_but_never_more(kind: str) -> None:
    """Whatever happens to the bytes, the answer is a bundle or one line: no crash, no hang, no growth.

    A flipped bit in a weight leaves a sound file, which only the signature and the golden vectors can tell.
    """
    data = getattr(builders, kind)().to_bytes()
    rng = random.Random(f"{SEED} {kind}")
    refused = 0
    slowest = 0.0
    grown_from = 0
    messages: set[str] = set()
    for number in range(MUTATIONS // 3):
        spoiled = mutate(data, rng)
        started = time.process_time()
        try:
            check_bundle(Path("model.onnx"), spoiled)
        except BundleError as error:
            refused += 1
            messages.add(str(error))
        slowest = max(slowest, time.process_time() - started)
        if number == 200:
            grown_from = _resident_bytes()
    assert [message for message in messages if not message.isprintable()] == []
    assert refused > MUTATIONS // 3 * 0.6
    assert slowest < 2.0
    assert _resident_bytes() - grown_from < 16 * 1024 * 1024


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
