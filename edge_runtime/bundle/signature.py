"""Who made this file: a detached OpenSSH signature, checked by `ssh-keygen -Y` before anything parses the file.

`BUNDLE.sig` must be a signature of exactly these bytes, in our namespace, by a key that `allowed_signers` names. Every
outcome other than "verified" is a `SignatureError`, a missing `ssh-keygen` included. A file `revoked_keys` beside
`allowed_signers` is honoured. Keys may carry `valid-after` and `valid-before`; a clock that was never set (no real-time
clock, no network yet) is taken for the time at which `allowed_signers` was written, so that it alone refuses nothing.

Before that the signature's own form is checked, since ssh-keygen takes some changed ones (a version of 0, other bits in
the padding): one signature has one form, and any flipped bit in it is a refusal.
"""

import base64
import binascii
import shutil
import stat
import struct
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from edge_runtime.bundle.onnx_file import DEFAULT_LIMITS
from edge_runtime.bundle.open import read_file
from edge_runtime.errors import BundleError, SignatureError

NAMESPACE = "edge-bundle"
SUFFIX = ".sig"
_BEGIN, _END, _MAGIC = b"-----BEGIN SSH SIGNATURE-----", b"-----END SSH SIGNATURE-----", b"SSHSIG"
_MAX_SIGNATURE_BYTES = 64 * 1024
_TIMEOUT_S = 30.0
# 2025-01-01: before this code was written, so a clock that shows less was never set.
_EARLIEST = 1_735_689_600

# What ssh-keygen says (OpenSSH 8.2 to 10), and what it means for the one who reads it.
_REASONS = (
    ("incorrect signature", "the file was changed after it was signed", "fetch it again, or sign it again"),
    ("namespace does not match", "a signature for another purpose", f"sign it with -n {NAMESPACE}"),
    ("not permitted for use in signature namespace", "a key that may not sign bundles", "sign it with a bundle key"),
    ("key has expired", "a key that has expired", "sign it with a current key"),
    ("key is not yet valid", "a key that is not valid yet", "check the clock, or sign it with a current key"),
    ("revoked", "a revoked key", "sign it with a current key"),
    ("Couldn't parse signature", "a .sig file that is no signature", "sign it again"),
    ("missing header", "a .sig file that is no signature", "sign it again"),
)


def require_signature(
    path: Path,
    allowed_signers: Path,
    *,
    data: bytes | None = None,
    signature: Path | None = None,
    namespace: str = NAMESPACE,
    place: str | None = None,
) -> str:
    """Make sure that somebody we trust signed a file, and return the principal.

    Args:
        path: the file; its signature is `PATH.sig`.
        allowed_signers: whom we trust, in the form of ssh-keygen(1).
        data: the bytes to check, where the caller has read them already and will use these and no others.
        signature: where the signature is, if not beside the file.
        namespace: what the signature must be for.
        place: the name of the file in messages.

    Raises:
        SignatureError: in every case but a good signature by one of them.
    """
    place = place or str(path)
    signature = signature or path.with_name(path.name + SUFFIX)
    _require_form(_read_signature(signature, place), signature, place)
    program = _ssh_keygen(place)
    _require_signers(allowed_signers, place)
    if data is None:
        try:
            data = read_file(path, DEFAULT_LIMITS.max_bytes)
        except BundleError as error:
            raise SignatureError(str(error)) from error
    allowed, sig = str(allowed_signers.absolute()), str(signature.absolute())
    when = _verify_time(allowed_signers)
    status, output, complaint = _run([program, "-Y", "find-principals", *when, "-s", sig, "-f", allowed], b"", place)
    principals = output.splitlines() if status == 0 else []
    revoked = allowed_signers.absolute().with_name("revoked_keys")
    revocation = ["-r", str(revoked)] if revoked.exists() else []
    for principal in principals:
        command = [
            program,
            "-Y",
            "verify",
            *when,
            *revocation,
            "-f",
            allowed,
            "-I",
            principal,
            "-n",
            namespace,
            "-s",
            sig,
        ]
        status, _, complaint = _run(command, data, place)
        if status == 0:
            return principal
    if principals and revocation and not complaint.strip():
        complaint = "revoked"  # the one refusal for which ssh-keygen gives no reason
    raise SignatureError(_explain(place, complaint, allowed_signers))


def _read_signature(signature: Path, place: str) -> bytes:
    try:
        if not stat.S_ISREG(signature.stat().st_mode):
            raise SignatureError(f"{place}: {signature.name}: expected a signature, found no such file: sign it again")
        return read_file(signature, _MAX_SIGNATURE_BYTES)
    except OSError as error:
        raise SignatureError(
            f"{place}: expected its signature in {signature.name}, found none: sign it with edge-convert sign"
        ) from error
    except BundleError as error:
        raise SignatureError(
            f"{place}: {signature.name}: expected a signature, found no such file: sign it again"
        ) from error


def _require_form(text: bytes, signature: Path, place: str) -> None:
    """The form of `PROTOCOL.sshsig`: armour, then magic, version, key, namespace, reserved, hash, signature."""
    lines = text.splitlines()
    sound = len(lines) > 2 and lines[0] == _BEGIN and lines[-1] == _END
    if sound:
        body = b"".join(lines[1:-1])
        try:
            blob = base64.b64decode(body, validate=True)
        except binascii.Error:
            blob = b""
        sound = blob.startswith(_MAGIC + struct.pack(">I", 1)) and base64.b64encode(blob) == body
        strings = _strings(blob[len(_MAGIC) + 4 :]) if sound else []
        sound = len(strings) == 5 and strings[2] == b""
    if not sound:
        raise SignatureError(f"{place}: {signature.name}: expected an OpenSSH signature, found none: sign it again")


def _strings(blob: bytes) -> list[bytes]:
    """A row of strings with their lengths before them; empty when they do not end where the blob ends."""
    found: list[bytes] = []
    while blob:
        size = int.from_bytes(blob[:4], "big")
        if len(blob) < 4 + size:
            return []
        found.append(blob[4 : 4 + size])
        blob = blob[4 + size :]
    return found


def _require_signers(allowed_signers: Path, place: str) -> None:
    try:
        text = allowed_signers.read_bytes()
    except OSError as error:
        raise SignatureError(
            f"{place}: cannot check its signature: {allowed_signers}: {error.strerror}: "
            "name the keys that you trust in this file"
        ) from error
    if not any(line.strip() and not line.lstrip().startswith(b"#") for line in text.splitlines()):
        raise SignatureError(
            f"{place}: cannot check its signature: {allowed_signers} names nobody: add the keys that you trust"
        )


def _ssh_keygen(place: str) -> str:
    program = shutil.which("ssh-keygen")
    if program is None:
        raise SignatureError(f"{place}: cannot check its signature: ssh-keygen is missing: install openssh-client")
    return program


def _verify_time(allowed_signers: Path) -> list[str]:
    """Nothing for a plausible clock, else the option that replaces it."""
    if time.time() >= _EARLIEST:
        return []
    instead = max(int(allowed_signers.stat().st_mtime), _EARLIEST)
    return ["-O", "verify-time=" + time.strftime("%Y%m%d%H%M%S", time.localtime(instead))]


def _run(command: Sequence[str], data: bytes, place: str) -> tuple[int, str, str]:
    try:
        done = subprocess.run(
            command, input=data, capture_output=True, timeout=_TIMEOUT_S, check=False, env={"LC_ALL": "C"}
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SignatureError(f"{place}: cannot check its signature: ssh-keygen failed: {error}") from error
    return done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")


def _explain(place: str, complaint: str, allowed_signers: Path) -> str:
    for words, found, remedy in _REASONS:
        if words in complaint:
            return f"{place}: signature: found {found}: {remedy}"
    if "No principal matched" in complaint:
        return (
            f"{place}: signature: found the key of a stranger: sign it with a key that {allowed_signers} names, "
            "or add that key there"
        )
    said = " ".join(complaint.split())[:200] or "no reason given"
    return f"{place}: signature: not verified by ssh-keygen ({said}): sign it again"
