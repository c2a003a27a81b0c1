"""A signed permission to install one older version: `BUNDLE.allow-older`, JSON, with its own `.sig` beside it.

It names the model, version, digest and device, so it admits only that bundle on that device, and the store accepts it
once. Its signature has its own namespace, so that a bundle's signature is not valid for a permission, nor the reverse.
"""

import hashlib
from pathlib import Path

import msgspec

from edge_runtime.bundle.manifest import Manifest
from edge_runtime.bundle.open import read_file
from edge_runtime.bundle.signature import NAMESPACE, require_signature
from edge_runtime.errors import BundleError

PERMISSION_NAMESPACE = f"{NAMESPACE}-allow-older"
_MAX_BYTES = 4096


class AllowOlder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="allow-older"):
    """The document. `nonce` is free text, so that the same permission can be issued again."""

    name: str
    version: str
    digest: str
    device: str
    nonce: str = ""


def allows_older(path: Path, allowed_signers: Path, manifest: Manifest, digest: str, *, device: str) -> str:
    """Check a permission against the bundle that it admits, and return its own digest.

    Raises:
        SignatureError: no trusted key has signed it.
        BundleError: it is no permission, or one for something else.
    """
    data = read_file(path, _MAX_BYTES)
    require_signature(path, allowed_signers, data=data, namespace=PERMISSION_NAMESPACE)
    try:
        document = msgspec.json.decode(data, type=AllowOlder)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BundleError(f"{path}: expected a permission to install an older version: {error}") from error
    wanted = (("name", manifest.name), ("version", manifest.version), ("digest", digest), ("device", device))
    for key, expected in wanted:
        found = getattr(document, key)
        if found != expected:
            raise BundleError(f"{path}: {key}: expected {expected}, found {found[:80]!r}: sign a permission for this")
    return hashlib.sha256(data).hexdigest()
