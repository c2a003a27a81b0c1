"""The state of a transfer in progress, and the checks of an offer. Pure."""

from dataclasses import dataclass
from typing import Protocol

from edge_runtime.bundle.onnx_file import DEFAULT_LIMITS
from edge_runtime.store.ota_parts import Offer

CHUNK_BYTES = 32 * 1024


class ByteSource(Protocol):
    """A source of a transfer's bytes instead of a sender: `http_file.py`."""

    def read(self, offset: int, count: int) -> bytes:
        """Read `count` bytes from `offset` on; raises TransientError on failure."""

    def close(self) -> None:
        """Close the connection."""


@dataclass(slots=True, eq=False)
class Transfer:
    """The transfer in progress.

    Attributes:
        offer: the accepted offer.
        held: bytes received.
        asked: the offset of the awaited chunk; None during disk work.
        heard: when the last chunk arrived, by the loop's clock.
        brought: whether its sender has sent a chunk.
        reported: when progress was published last.
        file: the source of the bytes instead of a sender.
        broke_at: bytes held when the file's server failed last; None before.
    """

    offer: Offer
    file: ByteSource | None = None
    broke_at: int | None = None
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
    """The length of the next chunk."""
    return min(CHUNK_BYTES, transfer.offer.size - transfer.held)


def problem_of(offer: Offer) -> str | None:
    """The fault of an offer, checked before a byte of it is received."""
    if not 0 < offer.size <= DEFAULT_LIMITS.max_bytes:
        return f"expected a bundle of at most {DEFAULT_LIMITS.max_bytes} bytes, found {offer.size}"
    if len(offer.sha256) != 64 or not set(offer.sha256) <= set("0123456789abcdef"):
        return "expected the SHA-256 in hex, found something else"
    if not offer.signature.startswith("-----BEGIN SSH SIGNATURE-----"):
        return "expected the bundle's signature, found none: sign it, only signed bundles are taken over MQTT"
    if not offer.release and (len(offer.sha512) != 128 or not set(offer.sha512) <= set("0123456789abcdef")):
        return "expected the SHA-512 in hex or a release document, found neither: update the sender"
    return None
