"""Signatures of bundles, made by `ssh-keygen -Y` in the namespace `edge-bundle`: `NAME.onnx.sig` beside the bundle."""

import subprocess
from pathlib import Path

from edge_runtime.errors import CommandError

NAMESPACE = "edge-bundle"
_SECONDS = 60


def sign(bundle: Path, key: Path) -> Path:
    """Sign a file.

    Returns:
        the signature's path.

    Raises:
        CommandError: the key or the file cannot be used.
    """
    for path, what in ((key, "a private key"), (bundle, "a bundle")):
        if not path.is_file():
            raise CommandError(f"{path}: expected {what}, found no such file")
    signature = bundle.with_name(bundle.name + ".sig")
    signature.unlink(missing_ok=True)  # ssh-keygen would ask whether to overwrite it
    _ssh_keygen("-Y", "sign", "-q", "-f", str(key), "-n", NAMESPACE, str(bundle), place=key)
    return signature


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
