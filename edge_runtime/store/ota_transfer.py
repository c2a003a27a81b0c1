"""The transfer of a bundle that is under way, and what is wrong with an offer of one. Pure."""

from dataclasses import dataclass
from typing import Protocol

from edge_runtime.bundle.onnx_file import DEFAULT_LIMITS
from edge_runtime.store.ota_parts import Offer

CHUNK_BYTES = 32 * 1024


class ByteSource(Protocol):
    """Where the bytes of a transfer come from instead of a sender: `http_file.py`."""

    def read(self, offset: int, count: int) -> bytes:
        """So many bytes from `offset` on; raises TransientError where they do not come."""

    def close(self) -> None:
        """Leave the server."""


@dataclass(slots=True, eq=False)
class Transfer:
    """The one that is under way.

    Attributes:
        offer: what is brought.
        held: how much of it is here.
        asked: the offset of the chunk that is awaited; None while the disk works.
        heard: when the last chunk came, by the loop's clock.
        brought: its sender has brought a chunk.
        reported: when progress was published last.
        file: where the bytes come from instead of a sender.
        broke_at: what was here when the file's server failed last.
    """

    offer: Offer
    file: ByteSource | None = None
    broke_at: int = -1
    held: int = 0
    brought: bool = False
    asked: int | None = None
    heard: float = 0.0
    reported: float = 0.0


def http_file(url: str, size: int) -> ByteSource:
    """A file at a URL."""
    from edge_runtime.store import http_file as module  # noqa: PLC0415 - only where the desired state names a URL

    return module.HttpFile(url, size)


def length(transfer: Transfer) -> int:
    """Of the next chunk."""
    return min(CHUNK_BYTES, transfer.offer.size - transfer.held)


def problem_of(offer: Offer) -> str | None:
    """What is wrong with an offer, before a byte of it is taken."""
    if not 0 < offer.size <= DEFAULT_LIMITS.max_bytes:
        return f"expected a bundle of at most {DEFAULT_LIMITS.max_bytes} bytes, found {offer.size}"
    if len(offer.sha256) != 64 or not set(offer.sha256) <= set("0123456789abcdef"):
        return "expected the SHA-256 in hex, found something else"
    if not offer.signature.startswith("-----BEGIN SSH SIGNATURE-----"):
        return "expected the bundle's signature, found none: sign it, only signed bundles are taken over MQTT"
    if not offer.release and (len(offer.sha512) != 128 or not set(offer.sha512) <= set("0123456789abcdef")):
        return "expected the SHA-512 in hex or a release document, found neither: update the sender"
    return None
