"""The check of an Ed25519 signature without its file, held against ssh-keygen's own signatures and RFC 8032."""

import base64
import hashlib
from pathlib import Path

import pytest

from edge_runtime.bundle.ed25519 import verifies
from edge_runtime.bundle.signature import precheck
from edge_runtime.errors import SignatureError
from tests.support import builders

# RFC 8032, section 7.1, tests 1 to 3: public key, message, signature.
VECTORS = [
    (
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        (
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
            "d25bf5f0595bbe24655141438e7a100b"
        ),
    ),
    (
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        (
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c"
            "387b2eaeb4302aeeb00d291612bb0c00"
        ),
    ),
    (
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        (
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc659"
            "4a7c15e9716ed28dc027beceea1ec40a"
        ),
    ),
]


@pytest.mark.parametrize(("key", "message", "signature"), VECTORS)
def test_the_vectors_of_the_standard_hold(key: str, message: str, signature: str) -> None:
    """Each vector verifies, and with any one bit of it flipped it does not."""
    parts = [bytes.fromhex(text) for text in (key, message, signature)]
    assert verifies(parts[0], parts[1], parts[2])
    for place, part in enumerate(parts):
        for bit in range(0, 8 * len(part), 37):
            changed = bytearray(part)
            changed[bit // 8] ^= 1 << bit % 8
            spoiled = [*parts[:place], bytes(changed), *parts[place + 1 :]]
            assert not verifies(spoiled[0], spoiled[1], spoiled[2])


def test_a_signature_with_a_scalar_above_the_order_is_refused() -> None:
    """Section 5.1.7 wants 0 <= S < L: a second form of a good signature does not pass."""
    key, message, signature = (bytes.fromhex(text) for text in VECTORS[1])
    order = 2**252 + 27742317777372353535851937790883648493
    malleable = (int.from_bytes(signature[32:], "little") + order).to_bytes(32, "little")
    assert not verifies(key, message, signature[:32] + malleable)
    assert not verifies(key[:-1], message, signature)
    assert not verifies(b"\xff" * 32, message, signature)


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> builders.Signer:
    """The trusted key."""
    return builders.signer(tmp_path_factory.mktemp("keys"))


def test_a_signature_is_checked_without_its_file(signer: builders.Signer, tmp_path: Path) -> None:
    """What ssh-keygen signed passes by the file's hash alone; another hash, key or purpose does not."""
    file, text, digest = tmp_path / "file", b"", b""
    for size in (1, 1000, 70_000):
        file.write_bytes(b"x" * size)
        text = signer.sign(file).read_bytes()
        digest = hashlib.sha512(file.read_bytes()).digest()
        precheck(text, {"sha512": digest}, signer.allowed, place="offer")
        with pytest.raises(SignatureError, match="of another file"):
            precheck(text, {"sha512": digest[::-1]}, signer.allowed, place="offer")
        with pytest.raises(SignatureError, match="expected the sha512"):
            precheck(text, {}, signer.allowed, place="offer")
    stranger = builders.signer(tmp_path / "stranger")
    with pytest.raises(SignatureError, match="stranger"):
        precheck(text, {"sha512": digest}, stranger.allowed, place="offer")
    other = signer.sign(file, "edge-bundle-rollback").read_bytes()
    with pytest.raises(SignatureError, match="another purpose"):
        precheck(other, {"sha512": digest}, signer.allowed, place="offer")


def test_no_changed_signature_passes(signer: builders.Signer, tmp_path: Path) -> None:
    """Every byte of the signature counts."""
    file = tmp_path / "file"
    file.write_bytes(b"content")
    lines = signer.sign(file).read_bytes().splitlines()
    blob = base64.b64decode(b"".join(lines[1:-1]))
    digest = hashlib.sha512(b"content").digest()
    for place in range(0, len(blob), 5):
        changed = bytearray(blob)
        changed[place] ^= 1
        text = b"\n".join([lines[0], base64.b64encode(changed), lines[-1]])
        with pytest.raises(SignatureError):
            precheck(text, {"sha512": digest}, signer.allowed, place="offer")
