"""Opens a bundle whose signature is required: read once, verified, and only then parsed, from the same bytes."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from edge_runtime.bundle.onnx_file import DEFAULT_LIMITS
from edge_runtime.bundle.open import Bundle, check_bundle, read_file
from edge_runtime.bundle.signature import require_signatures
from edge_runtime.errors import BundleError


@dataclass(frozen=True, slots=True)
class Trust:
    """The trusted signers of bundles.

    Attributes:
        allowed_signers: the trusted keys.
        signatures: how many different keys must have signed.
    """

    allowed_signers: Path
    signatures: int = 1


def open_trusted(path: Path, trust: Trust | None, *, at: float | None = None, digest: str | None = None) -> Bundle:
    """Open a bundle after verifying its signatures and its digest.

    Args:
        path: the file; its signatures are beside it.
        trust: None asks for no signature.
        at: when it was admitted: a key that has expired since is accepted, one that was revoked or removed is not.
        digest: the SHA-256 of the admitted file.

    Raises:
        SignatureError: too few trusted keys have signed it.
        BundleError: it is no sound bundle, or another file.
    """
    data = read_file(path, DEFAULT_LIMITS.max_bytes)
    if trust is not None:
        require_signatures(path, trust.allowed_signers, data=data, count=trust.signatures, at=at)
    found = hashlib.sha256(data).hexdigest()
    if digest is not None and found != digest:
        raise BundleError(f"{path}: expected digest {digest[:12]}, found {found[:12]}: install again")
    return check_bundle(path, data)
