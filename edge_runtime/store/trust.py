"""Opens a bundle whose signature is asked for: read once, verified, and only then parsed, from the same bytes."""

from dataclasses import dataclass
from pathlib import Path

from edge_runtime.bundle.onnx_file import DEFAULT_LIMITS
from edge_runtime.bundle.open import Bundle, check_bundle, read_file
from edge_runtime.bundle.signature import require_signatures


@dataclass(frozen=True, slots=True)
class Trust:
    """Whose bundles are run.

    Attributes:
        allowed_signers: the trusted keys.
        signatures: how many different ones must have signed.
    """

    allowed_signers: Path
    signatures: int = 1


def open_trusted(path: Path, trust: Trust | None, *, at: float | None = None) -> Bundle:
    """Open a bundle after its signatures have held.

    Args:
        path: the file; its signatures stand beside it.
        trust: None asks for no signature.
        at: when it was let in: a key that has expired since does not stop it, one that was revoked or removed does.

    Raises:
        SignatureError: too few trusted keys have signed it.
        BundleError: it is no sound bundle.
    """
    data = read_file(path, DEFAULT_LIMITS.max_bytes)
    if trust is not None:
        require_signatures(path, trust.allowed_signers, data=data, count=trust.signatures, at=at)
    return check_bundle(path, data)
