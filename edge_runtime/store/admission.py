"""The times at which bundles named by path were admitted: `admitted.json` in the state folder.

A key's `valid-before` and the clock decide only whether a bundle is admitted, not whether it runs: at a start it is
verified as of the time at which it was first verified here. Bundles of the store keep that time in `records.py`.
Guarantee: a missing or damaged file only makes the next start an admission.
"""

import contextlib
from pathlib import Path

import msgspec

from edge_runtime.bundle.onnx_file import DEFAULT_LIMITS
from edge_runtime.bundle.open import Bundle, check_bundle, read_file
from edge_runtime.bundle.signature import require_signatures
from edge_runtime.store.trust import Trust
from edge_runtime.system.durable import replace_file
from edge_runtime.system.hashing import sha256

_MOST = 100


class Admissions:
    """The admissions of one device.

    Args:
        path: the file; None keeps nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._times: dict[str, float] = {}
        if path is not None:
            with contextlib.suppress(OSError, msgspec.MsgspecError, ValueError):
                self._times = msgspec.json.decode(path.read_bytes(), type=dict[str, float])

    def open(self, bundle: Path, trust: Trust | None, *, note: bool) -> Bundle:
        """Open a bundle after verifying its signatures as of its admission.

        Args:
            bundle: the file.
            trust: None requires no signature.
            note: whether to record a first admission.

        Raises:
            SignatureError: too few trusted keys have signed it.
            BundleError: it is no valid bundle.
        """
        data = read_file(bundle, DEFAULT_LIMITS.max_bytes)
        if trust is not None:
            digest = sha256(data)
            at = self._times.get(digest)
            verified = require_signatures(bundle, trust.allowed_signers, data=data, count=trust.signatures, at=at)
            if at is None and note:
                self._note(digest, verified[0].at)
        return check_bundle(bundle, data)

    def _note(self, digest: str, at: float) -> None:
        if self._path is None:
            return
        kept = list(self._times.items())[-_MOST + 1 :]
        self._times = dict([*kept, (digest, at)])
        with contextlib.suppress(OSError):  # a read-only folder: the next start is an admission again
            replace_file(self._path, msgspec.json.encode(self._times))
