"""Signatures of bundles, made by `ssh-keygen -Y` in the namespace `edge-bundle`: `NAME.onnx.sig` beside the bundle.

A signed release document, `NAME.onnx.release` (`edge_runtime/bundle/release.py`), is written beside it. A device checks
the document before the bundle is sent.
"""

import subprocess
import time
from pathlib import Path

import msgspec

from edge_runtime.bundle.open import open_bundle
from edge_runtime.bundle.release import RELEASE_SUFFIX, Release
from edge_runtime.bundle.signature import NAMESPACE, SUFFIXES
from edge_runtime.errors import CommandError

_SECONDS = 60


def sign(bundle: Path, key: Path, *, suffix: str = SUFFIXES[0]) -> Path:
    """Sign a file.

    Args:
        bundle: the file.
        key: the private key.
        suffix: of the signature, after the file's name.

    Returns:
        the signature's path.

    Raises:
        CommandError: the key or the file cannot be used.
    """
    for path, what in ((key, "a private key"), (bundle, "a bundle")):
        if not path.is_file():
            raise CommandError(f"{path}: expected {what}, found no such file")
    made, signature = (bundle.with_name(bundle.name + each) for each in (SUFFIXES[0], suffix))
    kept = made.read_bytes() if made != signature and made.exists() else None
    made.unlink(missing_ok=True)  # ssh-keygen would ask whether to overwrite it
    _ssh_keygen("-Y", "sign", "-q", "-f", str(key), "-n", NAMESPACE, str(bundle), place=key)
    made.replace(signature)
    if kept is not None:
        made.write_bytes(kept)
    return signature


def sign_release(bundle: Path, key: Path, *, sequence: int | None = None, expires: int | None = None) -> Path:
    """Write the release document of a bundle and sign it.

    Args:
        bundle: the bundle.
        key: the private key.
        sequence: rises with every release of a model; by default the Unix time.
        expires: Unix time after which devices do not install it any more; None for never.

    Returns:
        the document's path.

    Raises:
        BundleError: the file is no bundle.
        CommandError: the key cannot be used.
    """
    opened = open_bundle(bundle)
    manifest = opened.manifest
    release = Release(
        name=manifest.name,
        version=manifest.version,
        digest=opened.digest,
        size=opened.size,
        sequence=int(time.time()) if sequence is None else sequence,
        expires=expires,
        device_class=manifest.target_device,
    )
    path = bundle.with_name(bundle.name + RELEASE_SUFFIX)
    path.write_bytes(msgspec.json.encode(release) + b"\n")
    sign(path, key)
    return path


def remove_release(bundle: Path) -> None:
    """Remove the release document, with its signatures, of a bundle that will be replaced."""
    release = bundle.with_name(bundle.name + RELEASE_SUFFIX)
    for path in (release, *(release.with_name(release.name + suffix) for suffix in SUFFIXES)):
        path.unlink(missing_ok=True)


def sign_again(bundle: Path, key: Path) -> list[Path]:
    """Add the signature of a second key to a bundle that is signed, and to its release document.

    Raises:
        CommandError: there is no first signature, or the key cannot be used.
    """
    release = bundle.with_name(bundle.name + RELEASE_SUFFIX)
    if not bundle.with_name(bundle.name + SUFFIXES[0]).is_file():
        raise CommandError(f"{bundle}: expected a first signature, found none: sign it without --second")
    return [sign(path, key, suffix=SUFFIXES[1]) for path in (bundle, release) if path.is_file()]


def make_key(path: Path, comment: str) -> None:
    """Make an Ed25519 key pair without passphrase: `path` and `path.pub`.

    Raises:
        CommandError: it exists already, or cannot be written.
    """
    if path.exists():
        raise CommandError(f"{path}: expected a new file, found one already: keys are never overwritten")
    _ssh_keygen("-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path), place=path)


def _ssh_keygen(*arguments: str, place: Path) -> None:
    try:
        done = subprocess.run(
            ["ssh-keygen", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    except FileNotFoundError as error:
        raise CommandError("ssh-keygen: expected it on the path, found none: install the OpenSSH client") from error
    except subprocess.TimeoutExpired as error:
        raise CommandError(f"{place}: ssh-keygen gave no answer within {_SECONDS} s") from error
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise CommandError(f"{place}: ssh-keygen refused: {lines[-1] if lines else done.returncode}")
