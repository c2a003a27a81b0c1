"""Folders of captures for tests, written by the ring of the daemon."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_runtime.capture.entries import BundleFacts, Captured, CapturedChannel, Labelled
from edge_runtime.capture.ring import CaptureItem, CaptureRing

FACTS = BundleFacts(
    device="room",
    model="comfort",
    name="comfort",
    version="1.0.0",
    digest="ab" * 32,
    task="classification",
    channels=(CapturedChannel("temperature", "C"), CapturedChannel("humidity")),
    shape=(2, 2),
    labels=("low", "high"),
)


def captured(values: NDArray[Any], identity: str, **keys: Any) -> Captured:
    """One capture, not at all sure of itself."""
    about: dict[str, Any] = {
        "bundle": 0,
        "id": identity,
        "published": True,
        "key": None,
        "time": 1_700_000_000.0,
        "label": "low",
        "answer": {"scores": [0.5, 0.5]},
        "reasons": ("uncertain",),
        "values": np.ascontiguousarray(values, "<f4").tobytes(),
    }
    return Captured(**about | keys)


def numbered(count: int, *, device: str = "room", start: int = 0, key: str | None = None) -> list[Captured]:
    """Windows that hold their own number, a second apart."""
    return [
        captured(
            np.full((2, 2), number, np.float32),
            f"{device}/comfort/{'-' if key is None else key}/1/{number}",
            key=key,
            time=1_700_000_000.0 + number,
            label="high" if number % 2 else "low",
        )
        for number in range(start, start + count)
    ]


def write_captures(
    folder: Path, entries: Sequence[Captured | Labelled], facts: BundleFacts = FACTS, **changed: Any
) -> Path:
    """A folder as a daemon writes it; `changed` are facts that differ."""
    ring = CaptureRing(folder, 10_000_000)
    ring.open()
    wanted = msgspec.structs.replace(facts, **changed)
    items = [CaptureItem(entry, wanted if isinstance(entry, Captured) else None) for entry in entries]
    written = ring.write(items)
    ring.close()
    assert written.kept == len(items)
    return folder
