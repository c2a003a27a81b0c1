"""Time and memory of a bundle on a device: measured by its self-test, kept beside it in `NAME.measured.json`.

The figures are not in the bundle, because equal inputs give byte-equal bundles. A sidecar names the digest of its file,
so that figures of another file are never shown.
"""

import math
from pathlib import Path

import msgspec

from edge_runtime.system.durable import replace_file

MIB = 1024 * 1024
_MOST_BYTES = 64 * 1024


class Measured(msgspec.Struct, frozen=True):
    """The measurements of the self-test on one device."""

    name: str
    version: str
    digest: str
    rows: int
    load_ms: float
    median_ms: float
    p99_ms: float
    runs: int
    peak_rss_bytes: int
    machine: str
    onnxruntime: str

    def in_words(self) -> str:
        """The time of a window and the peak of memory."""
        memory = self.peak_rss_bytes / MIB
        return f"{self.median_ms:.3g} ms a window (99th percentile {self.p99_ms:.3g} ms), {memory:.0f} MiB at its peak"


def sidecar_of(bundle: Path) -> Path:
    """The path of a bundle's figures."""
    return bundle.with_suffix(".measured.json")


def write_measured(bundle: Path, measured: Measured) -> Path:
    """Write the figures beside the bundle atomically; return their path."""
    sidecar = sidecar_of(bundle)
    replace_file(sidecar, msgspec.json.format(msgspec.json.encode(measured), indent=2) + b"\n")
    return sidecar


def read_measured(bundle: Path, digest: str) -> Measured | None:
    """The figures of a bundle; None where they are missing, damaged, or those of another file.

    Args:
        bundle: the file.
        digest: its SHA-256, in hexadecimal.
    """
    try:
        with sidecar_of(bundle).open("rb") as file:
            found = msgspec.json.decode(file.read(_MOST_BYTES), type=Measured)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    sane = all(math.isfinite(value) and value >= 0 for value in (found.median_ms, found.p99_ms, found.peak_rss_bytes))
    return found if sane and found.digest == digest else None
