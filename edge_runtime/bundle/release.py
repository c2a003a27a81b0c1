"""`BUNDLE.release`: a small signed document that identifies a bundle, so that it can be checked before its bytes.

It holds model, version, digest and size, a number that only rises, and the day after which the bundle is not installed.
`BUNDLE.release.sig` (and `.sig2`) sign it, by the keys and in the namespace of bundles, so devices need no further line
in `allowed_signers`. A document cannot be confused with a bundle, since no ONNX file is JSON.

Guarantee: a document from `read_release` was signed by enough trusted keys and has not expired. Weak point: with a
clock that is behind (never before the date of `allowed_signers`) an expired one passes.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec

from edge_runtime.bundle.signature import Verified, require_different_keys, verify
from edge_runtime.errors import BundleError

RELEASE_SUFFIX = ".release"
MAX_RELEASE_BYTES = 4096
LAST_SECOND = 253_402_300_799  # of the year 9999, the last that a date can show
Moment = Annotated[int, msgspec.Meta(ge=0, le=LAST_SECOND)]
Serial = Annotated[int, msgspec.Meta(ge=0, le=2**53)]  # what every reader of JSON takes
Digest = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]


class Release(msgspec.Struct, frozen=True, kw_only=True, tag="release"):
    """The document. Unknown members are ignored.

    Attributes:
        name: of the model.
        version: of the bundle.
        digest: its SHA-256, in hex.
        size: in bytes.
        sequence: a release with a lower number than an accepted one of the same model is refused as a replay.
        expires: seconds since 1970 after which it is not installed any more; None for never.
        device_class: the kind of device; None for any.
    """

    name: str
    version: str
    digest: Digest
    size: Annotated[int, msgspec.Meta(ge=0, le=2**53)]
    sequence: Serial = 0
    expires: Moment | None = None
    device_class: str | None = msgspec.field(default=None, name="class")


def read_release(
    text: bytes, signatures: Sequence[bytes], allowed_signers: Path, *, count: int, place: str
) -> tuple[Release, list[Verified]]:
    """Verify a release document, and only then decode it.

    Args:
        text: the document.
        signatures: of it.
        allowed_signers: the trusted keys.
        count: the required number of different keys.
        place: its name in messages.

    Raises:
        SignatureError: fewer trusted keys have signed it.
        BundleError: it is no release document, or has expired.
    """
    verified = [
        verify(text, each, allowed_signers, place=place, what=f"signature {number}")
        for number, each in enumerate(signatures[:count], 1)
    ]
    require_different_keys(verified, count, place)
    try:
        release = msgspec.json.decode(text, type=Release)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BundleError(f"{place}: expected a release document: {error}: sign the bundle again") from error
    if release.expires is not None and verified[0].at > release.expires:
        day = time.strftime("%Y-%m-%d", time.gmtime(release.expires))
        raise BundleError(f"{place}: expected a release that is current, found one that expired on {day}: sign it anew")
    return release, verified
