import os
import time
from pathlib import Path

import pytest

from edge_runtime.bundle import signature
from edge_runtime.bundle.signature import require_signature
from edge_runtime.errors import SignatureError
from tests.support import builders


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> builders.Signer:
    """A key, and the file that allows it."""
    return builders.signer(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def bundle(tmp_path: Path, keys: builders.Signer) -> Path:
    """A signed bundle."""
    path = builders.classification().save(tmp_path / "model.onnx")
    keys.sign(path)
    return path


def _refusal(bundle: Path, allowed: Path) -> str:
    with pytest.raises(SignatureError) as caught:
        require_signature(bundle, allowed)
    assert str(bundle) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_bundle_signed_by_an_allowed_key_passes(bundle: Path, keys: builders.Signer) -> None:
    """The principal that ssh-keygen names is returned, for the log."""
    assert require_signature(bundle, keys.allowed) == "builder@example"


def test_a_bundle_without_signature_is_refused(tmp_path: Path, keys: builders.Signer) -> None:
    """No .sig file is a refusal, not a reason to carry on."""
    path = builders.classification().save(tmp_path / "model.onnx")
    assert "found none: sign it with edge-convert sign" in _refusal(path, keys.allowed)


def test_a_changed_bundle_is_refused(bundle: Path, keys: builders.Signer) -> None:
    """One flipped bit after signing is called a change."""
    data = bytearray(bundle.read_bytes())
    data[-1] ^= 1
    bundle.write_bytes(data)
    assert "changed after it was signed" in _refusal(bundle, keys.allowed)


def test_the_bytes_that_were_read_are_the_bytes_that_are_checked(bundle: Path, keys: builders.Signer) -> None:
    """A file that is swapped between reading and checking does not lend its signature to the bytes read before."""
    with pytest.raises(SignatureError, match="changed after"):
        require_signature(bundle, keys.allowed, data=b"something else")


def test_the_key_of_a_stranger_is_refused(bundle: Path, tmp_path: Path) -> None:
    """A good signature by a key that is not allowed names that key."""
    stranger = builders.signer(tmp_path / "other")
    assert "the key of a stranger" in _refusal(bundle, stranger.allowed)


def test_a_signature_for_another_purpose_is_refused(bundle: Path, keys: builders.Signer) -> None:
    """A signature that the same person made for files or git does not pass for a bundle's."""
    keys.sign(bundle, namespace="file")
    assert "for another purpose" in _refusal(bundle, keys.allowed)


def test_the_signature_of_another_bundle_is_refused(bundle: Path, tmp_path: Path, keys: builders.Signer) -> None:
    """A signature belongs to one file."""
    other = builders.regression().save(tmp_path / "other.onnx")
    (tmp_path / "other.onnx.sig").write_bytes(bundle.with_name("model.onnx.sig").read_bytes())
    assert "changed after" in _refusal(other, keys.allowed)


@pytest.mark.parametrize("text", ["nonsense\n", "-----BEGIN SSH SIGNATURE-----\nAAAA\n-----END SSH SIGNATURE-----\n"])
def test_a_sig_file_that_is_no_signature_is_refused(bundle: Path, keys: builders.Signer, text: str) -> None:
    """A damaged .sig file is a refusal."""
    bundle.with_name("model.onnx.sig").write_text(text)
    assert "expected an OpenSSH signature" in _refusal(bundle, keys.allowed)


def test_a_signature_has_one_form_and_any_flipped_bit_is_a_refusal(bundle: Path, keys: builders.Signer) -> None:
    """Not even the parts that ssh-keygen overlooks, such as a version of 0, may be changed."""
    signature = bundle.with_name("model.onnx.sig")
    good = signature.read_bytes()
    assert b"U1NIU0lHAAAAAQ" in good  # SSHSIG, version 1
    signature.write_bytes(good.replace(b"U1NIU0lHAAAAAQ", b"U1NIU0lHAAAAAA"))
    assert "expected an OpenSSH signature" in _refusal(bundle, keys.allowed)
    data = bundle.read_bytes()
    for at in range(0, len(good), 7):
        spoiled = bytearray(good)
        spoiled[at] ^= 1 << at % 8
        signature.write_bytes(spoiled)
        with pytest.raises(SignatureError):
            require_signature(bundle, keys.allowed, data=data)


def test_an_empty_sig_file_is_refused(bundle: Path, keys: builders.Signer) -> None:
    """A .sig file of no bytes is no signature."""
    bundle.with_name("model.onnx.sig").write_bytes(b"")
    assert "found no such file" in _refusal(bundle, keys.allowed)


def test_a_revoked_key_is_refused(bundle: Path, tmp_path: Path, keys: builders.Signer) -> None:
    """A key in `revoked_keys` beside `allowed_signers` signs nothing any more."""
    allowed = tmp_path / "allowed_signers"
    allowed.write_bytes(keys.allowed.read_bytes())
    (tmp_path / "revoked_keys").write_bytes(keys.key.with_suffix(".pub").read_bytes())
    assert "a revoked key" in _refusal(bundle, allowed)


def test_an_expired_key_is_refused(bundle: Path, tmp_path: Path, keys: builders.Signer) -> None:
    """A key may be given an end."""
    kind, text, *_ = keys.key.with_suffix(".pub").read_text().split()
    allowed = tmp_path / "allowed_signers"
    allowed.write_text(f'me@example valid-before="20250301" {kind} {text}\n')
    assert "has expired" in _refusal(bundle, allowed)


def test_a_key_kept_for_another_purpose_is_refused(bundle: Path, tmp_path: Path, keys: builders.Signer) -> None:
    """`namespaces=` in `allowed_signers` is honoured."""
    kind, text, *_ = keys.key.with_suffix(".pub").read_text().split()
    allowed = tmp_path / "allowed_signers"
    allowed.write_text(f'me@example namespaces="git" {kind} {text}\n')
    assert "may not sign bundles" in _refusal(bundle, allowed)


def test_a_clock_that_was_never_set_refuses_nothing(
    bundle: Path, tmp_path: Path, keys: builders.Signer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a device without a clock, in 1970, a key with dates is judged by the time its file was written."""
    kind, text, *_ = keys.key.with_suffix(".pub").read_text().split()
    allowed = tmp_path / "allowed_signers"
    allowed.write_text(f'me@example valid-after="20250301",valid-before="20250501" {kind} {text}\n')
    os.utime(allowed, (1_743_465_600, 1_743_465_600))  # 2025-04-01
    assert "has expired" in _refusal(bundle, allowed)
    monkeypatch.setattr(time, "time", lambda: 100.0)
    assert require_signature(bundle, allowed) == "me@example"


def test_without_allowed_signers_nothing_passes(bundle: Path, tmp_path: Path) -> None:
    """A missing or empty list of keys is named, and trusts no key."""
    assert "No such file" in _refusal(bundle, tmp_path / "absent")
    (tmp_path / "empty").write_text("# no key yet\n")
    assert "names no key" in _refusal(bundle, tmp_path / "empty")


def test_without_ssh_keygen_nothing_passes(
    bundle: Path, keys: builders.Signer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On a device without OpenSSH's tools the message names the package."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "install openssh-client" in _refusal(bundle, keys.allowed)


def test_no_way_around_the_signer_is_used() -> None:
    """`check-novalidate` checks the arithmetic and not the signer, so it appears nowhere."""
    assert "check-novalidate" not in Path(signature.__file__).read_text()
