"""The trusted key that signed a file: a detached OpenSSH signature, checked by `ssh-keygen -Y` before any parsing.

`BUNDLE.sig` must be a signature of exactly these bytes, in the namespace of bundles, by a key in `allowed_signers`.
Every result other than "verified" is a `SignatureError`, including a missing `ssh-keygen`. A file `revoked_keys` beside
`allowed_signers` is honoured. `valid-after` and `valid-before` of keys apply to the admission of a bundle, not to
running it: a caller that runs an admitted bundle passes the time of admission (`at`), and only removal and revocation
of the key count. A clock behind the time of `allowed_signers` is certainly not set; that time is used instead.

The form of the signature is checked first, since ssh-keygen accepts some modified ones (a version of 0, other bits in
the padding): a signature has exactly one form, and any flipped bit is refused. Nothing is written: ssh-keygen reads
signatures from memory, by a descriptor.

`SUFFIXES` are the signatures of one bundle, where two keys are required. `precheck` checks a signature whose file has
not arrived yet; it is a filter and no proof.
"""

import base64
import binascii
import os
import re
import shutil
import stat
import struct
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

import msgspec

from edge_runtime.bundle.onnx_file import DEFAULT_LIMITS
from edge_runtime.bundle.open import read_file
from edge_runtime.errors import BundleError, SignatureError

NAMESPACE = "edge-bundle"
SUFFIX = ".sig"
SUFFIXES = (SUFFIX, ".sig2")
MAX_SIGNATURE_BYTES = 64 * 1024
_BEGIN, _END, _MAGIC = b"-----BEGIN SSH SIGNATURE-----", b"-----END SSH SIGNATURE-----", b"SSHSIG"
_KRL = b"SSHKRL\n\0"
_TIMEOUT_S = 30.0
# 2025-01-01, before this code was written: an earlier clock was never set.
_EARLIEST = 1_735_689_600
_ED25519 = b"ssh-ed25519"
# Times in `allowed_signers` are local ones, so the child must know the same zone.
_ENVIRONMENT = {"LC_ALL": "C", **{name: value for name, value in os.environ.items() if name == "TZ"}}

# Messages of ssh-keygen (OpenSSH 8.2 to 10), and their meaning for the user.
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


class Verified(msgspec.Struct, frozen=True):
    """A verified signature.

    Attributes:
        principal: the name that `allowed_signers` gives the key.
        key: the public key, as text of base64, so that two signatures of one key are seen.
        at: the time by which the key's validity was judged, in seconds since 1970.
    """

    principal: str
    key: str
    at: float


class _Blob(msgspec.Struct, frozen=True):
    """The parts of an OpenSSH signature (`PROTOCOL.sshsig`)."""

    key: bytes
    namespace: bytes
    reserved: bytes
    hash_name: bytes
    signature: bytes


def require_signature(
    path: Path,
    allowed_signers: Path,
    *,
    data: bytes | None = None,
    signature: Path | None = None,
    namespace: str = NAMESPACE,
    place: str | None = None,
    at: float | None = None,
) -> str:
    """Check that a trusted key signed a file, and return the principal.

    Args:
        path: the file; its signature is `PATH.sig`.
        allowed_signers: the trusted keys, in the form of ssh-keygen(1).
        data: the bytes to check, where the caller has read them already and will use these and no others.
        signature: where the signature is, if not beside the file.
        namespace: what the signature must be for.
        place: the name of the file in messages.
        at: when the file was let in; the validity of keys is judged by that time. None judges by the clock.

    Raises:
        SignatureError: in every case but a good signature by one of them.
    """
    place = place or str(path)
    signature = signature or path.with_name(path.name + SUFFIX)
    text = _read_signature(signature, place)
    if data is None:
        _parse(text, signature.name, place)
        _require_signers(allowed_signers, place)
        data = _read_data(path)
    what = signature.name
    return verify(data, text, allowed_signers, namespace=namespace, place=place, what=what, at=at).principal


def require_signatures(
    path: Path,
    allowed_signers: Path,
    *,
    data: bytes | None = None,
    beside: Path | None = None,
    count: int = 1,
    place: str | None = None,
    at: float | None = None,
) -> list[Verified]:
    """Check that `count` different trusted keys signed a file: `PATH.sig`, then `PATH.sig2`.

    Args:
        path: the file.
        allowed_signers: the trusted keys.
        data: its bytes, where they are here already.
        beside: the path whose `.sig` and `.sig2` are looked at, if not that of the file.
        count: how many keys must have signed.
        place: the name of the file in messages.
        at: as for `require_signature`.

    Raises:
        SignatureError: fewer did.
    """
    place, beside = place or str(path), beside or path
    data = _read_data(path) if data is None else data
    found: list[Verified] = []
    for suffix in SUFFIXES[:count]:
        signature = beside.with_name(beside.name + suffix)
        text = _read_signature(signature, place)
        found.append(verify(data, text, allowed_signers, place=place, what=signature.name, at=at))
    require_different_keys(found, count, place)
    return found


def require_different_keys(found: Sequence[Verified], count: int, place: str) -> None:
    """Refuse two signatures of one key where two keys are asked for.

    Raises:
        SignatureError: there are fewer keys than `count`.
    """
    require_keys({each.key for each in found}, count, place)


def require_keys(keys: set[str], count: int, place: str) -> None:
    """As `require_different_keys`, for the keys themselves.

    Raises:
        SignatureError: there are fewer than `count`.
    """
    if len(keys) < count:
        raise SignatureError(
            f"{place}: signature: expected {count} different keys, found {len(keys)}: sign it with another key too"
        )


def verify(
    data: bytes,
    signature: bytes,
    allowed_signers: Path,
    *,
    namespace: str = NAMESPACE,
    place: str,
    what: str = "signature",
    at: float | None = None,
) -> Verified:
    """As `require_signature`, for bytes and a signature that are both in memory.

    Raises:
        SignatureError: in every case but a good signature by a trusted key.
    """
    blob = _parse(signature, what, place)
    program = _ssh_keygen(place)
    _require_signers(allowed_signers, place)
    allowed = str(allowed_signers.absolute())
    judged_at = _verify_time(allowed_signers, at)
    when = _time_option(judged_at)
    with _in_memory(signature) as (sig, handle):
        find = [program, "-Y", "find-principals", *when, "-s", sig, "-f", allowed]
        status, output, complaint = _run(find, b"", place, handle)
        principals = output.splitlines() if status == 0 else []
        revoked = allowed_signers.absolute().with_name("revoked_keys")
        revocation = ["-r", str(revoked)] if revoked.exists() else []
        for principal in principals:
            command = [program, "-Y", "verify", *when, *revocation, "-f", allowed, "-I", principal]
            status, _, complaint = _run([*command, "-n", namespace, "-s", sig], data, place, handle)
            if status == 0:
                return Verified(principal, base64.b64encode(blob.key).decode(), judged_at)
    if principals and revocation and not complaint.strip():
        complaint = "revoked"  # ssh-keygen gives no reason for this refusal
    raise SignatureError(_explain(place, complaint, allowed_signers))


def precheck(
    signature: bytes,
    digests: dict[str, bytes],
    allowed_signers: Path,
    *,
    namespace: str = NAMESPACE,
    other_keys: Literal["refuse", "pass"] = "refuse",
    place: str,
) -> None:
    """Refuse a signature that cannot be one of a file with these hashes by a trusted Ed25519 key.

    The file need not be here: an OpenSSH signature covers the hash alone. What passes must still be verified with the
    file. Nothing is started and nothing is written, so that a flood costs little.

    Args:
        signature: the armoured text.
        digests: the hashes of the file by OpenSSH's names, `sha256` or `sha512`.
        allowed_signers: the trusted keys.
        namespace: what the signature must be for.
        other_keys: whether a trusted key of another kind passes, where `verify` follows at once.
        place: what is signed, in messages.

    Raises:
        SignatureError: the signature is malformed, of another key, or not of such a file.
    """
    from edge_runtime.bundle.ed25519 import verifies  # noqa: PLC0415 - computes a table; only for transfers

    blob = _parse(signature, "signature", place)
    digest = digests.get(blob.hash_name.decode("ascii", "replace"))
    if blob.namespace != namespace.encode():
        raise SignatureError(f"{place}: signature: found a signature for another purpose: sign it with -n {namespace}")
    if digest is None:
        raise SignatureError(f"{place}: signature: expected the {blob.hash_name.decode(errors='replace')} of the file")
    _require_signers(allowed_signers, place)
    if base64.b64encode(blob.key) not in allowed_signers.read_bytes().split():
        raise SignatureError(_stranger(place, allowed_signers))
    key, signed = _strings(blob.key), _strings(blob.signature)
    if len(key) != 2 or len(signed) != 2 or key[0] != _ED25519 or signed[0] != _ED25519:
        if other_keys == "pass" and key and key[0] != _ED25519:
            return
        raise SignatureError(
            f"{place}: signature: expected an Ed25519 key, found {key[0].decode(errors='replace') if key else 'none'}: "
            "add a signed release document with `edge-convert sign`"
        )
    covered = (blob.namespace, blob.reserved, blob.hash_name, digest)
    message = _MAGIC + b"".join(struct.pack(">I", len(part)) + part for part in covered)
    if not verifies(key[1], message, signed[1]):
        raise SignatureError(f"{place}: signature: found one of another file: fetch it again, or sign it again")


def require_usable_key(signature: bytes, allowed_signers: Path, *, namespace: str = NAMESPACE, place: str) -> str:
    """Refuse a signature whose key may not sign this now: expired, not yet valid, revoked, or for another purpose.

    Returns the key, as text of base64.

    With `precheck`, all of what `verify` finds, for a file that is not here yet. A list of revoked keys that is no KRL
    is read line by line.

    Raises:
        SignatureError: the key may not.
    """
    key = base64.b64encode(_parse(signature, "signature", place).key)
    program = _ssh_keygen(place)
    when = _time_option(_verify_time(allowed_signers, None))
    with _in_memory(signature) as (sig, handle):
        command = [program, "-Y", "find-principals", *when, "-s", sig, "-f", str(allowed_signers.absolute())]
        status, _, complaint = _run(command, b"", place, handle)
    if status != 0:
        raise SignatureError(_explain(place, complaint, allowed_signers))
    lines = [line for line in allowed_signers.read_bytes().splitlines() if key in line.split()]
    if not any(_is_for(namespace, line) for line in lines if not line.lstrip().startswith(b"#")):
        raise SignatureError(_explain(place, "not permitted for use in signature namespace", allowed_signers))
    revoked = allowed_signers.absolute().with_name("revoked_keys")
    if revoked.exists() and _is_revoked(key, revoked, program, place):
        raise SignatureError(_explain(place, "revoked", allowed_signers))
    return key.decode()


def _is_for(namespace: str, line: bytes) -> bool:
    """Whether a line of `allowed_signers` lets its key sign in a namespace; its option is a list of patterns."""
    option = re.search(rb'\bnamespaces="([^"]*)"', line, re.IGNORECASE)
    if option is None:
        return True
    patterns = option[1].decode(errors="replace").split(",")
    is_excluded = any(each.startswith("!") and fnmatchcase(namespace, each[1:]) for each in patterns)
    return not is_excluded and any(fnmatchcase(namespace, each) for each in patterns)


def _is_revoked(key: bytes, revoked: Path, program: str, place: str) -> bool:
    text = revoked.read_bytes()
    if not text.startswith(_KRL):
        return any(key in line.split() for line in text.splitlines() if not line.lstrip().startswith(b"#"))
    kind = _strings(base64.b64decode(key))[0]
    with _in_memory(kind + b" " + key + b"\n") as (public, handle):
        status, _, _ = _run([program, "-Q", "-f", str(revoked), public], b"", place, handle)
    return status != 0


def _read_data(path: Path) -> bytes:
    try:
        return read_file(path, DEFAULT_LIMITS.max_bytes)
    except BundleError as error:
        raise SignatureError(str(error)) from error


def _read_signature(signature: Path, place: str) -> bytes:
    try:
        if not stat.S_ISREG(signature.stat().st_mode):
            raise SignatureError(f"{place}: {signature.name}: expected a signature, found no such file: sign it again")
        return read_file(signature, MAX_SIGNATURE_BYTES)
    except OSError as error:
        raise SignatureError(
            f"{place}: expected its signature in {signature.name}, found none: sign it with edge-convert sign"
        ) from error
    except BundleError as error:
        raise SignatureError(
            f"{place}: {signature.name}: expected a signature, found no such file: sign it again"
        ) from error


def _parse(text: bytes, what: str, place: str) -> _Blob:
    """The form of `PROTOCOL.sshsig`: armour, then magic, version, key, namespace, reserved, hash, signature."""
    lines = text.splitlines()
    if len(lines) > 2 and lines[0] == _BEGIN and lines[-1] == _END:
        body = b"".join(lines[1:-1])
        try:
            blob = base64.b64decode(body, validate=True)
        except binascii.Error:
            blob = b""
        head = _MAGIC + struct.pack(">I", 1)
        if blob.startswith(head) and base64.b64encode(blob) == body:
            strings = _strings(blob[len(head) :])
            if len(strings) == 5 and strings[2] == b"":
                return _Blob(*strings)
    raise SignatureError(f"{place}: {what}: expected an OpenSSH signature, found none: sign it again")


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
            f"{place}: cannot check its signature: {allowed_signers} names no key: add the keys that you trust"
        )


def _ssh_keygen(place: str) -> str:
    program = shutil.which("ssh-keygen")
    if program is None:
        raise SignatureError(f"{place}: cannot check its signature: ssh-keygen is missing: install openssh-client")
    return program


def _verify_time(allowed_signers: Path, at: float | None) -> float:
    """The time for the validity of keys: that of the admission, else the clock, unless that is certainly behind."""
    if at is not None:
        return at
    try:
        written = allowed_signers.stat().st_mtime
    except OSError:
        written = 0.0
    now = time.time()
    return max(now, written, _EARLIEST)


def _time_option(judged_at: float) -> list[str]:
    """ssh-keygen's own clock where it agrees, so that releases without the option (8.2 to 8.6) still work."""
    if abs(judged_at - time.time()) < 1.0:
        return []
    return ["-O", "verify-time=" + time.strftime("%Y%m%d%H%M%S", time.localtime(judged_at))]


@contextmanager
def _in_memory(text: bytes) -> Iterator[tuple[str, int]]:
    """A path, for a child, to bytes in memory."""
    handle = os.memfd_create("signature", os.MFD_CLOEXEC)
    try:
        os.write(handle, text)
        yield f"/proc/self/fd/{handle}", handle
    finally:
        os.close(handle)


def _run(command: Sequence[str], data: bytes, place: str, handle: int) -> tuple[int, str, str]:
    try:
        done = subprocess.run(
            command, input=data, capture_output=True, timeout=_TIMEOUT_S, check=False,
            env=_ENVIRONMENT, pass_fds=(handle,),
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SignatureError(f"{place}: cannot check its signature: ssh-keygen failed: {error}") from error
    return done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")


def _explain(place: str, complaint: str, allowed_signers: Path) -> str:
    for words, found, remedy in _REASONS:
        if words in complaint:
            return f"{place}: signature: found {found}: {remedy}"
    if "No principal matched" in complaint:
        return _stranger(place, allowed_signers)
    quoted = " ".join(complaint.split())[:200] or "no reason given"
    return f"{place}: signature: not verified by ssh-keygen ({quoted}): sign it again"


def _stranger(place: str, allowed_signers: Path) -> str:
    return (
        f"{place}: signature: found the key of a stranger: sign it with a key that {allowed_signers} names, "
        "or add that key there"
    )
