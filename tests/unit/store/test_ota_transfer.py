"""The checks of an offer before a byte of it is received, each at its edge, and the length of the next chunk."""

from typing import Any

import msgspec
import pytest

from edge_runtime.bundle.onnx_file import DEFAULT_LIMITS
from edge_runtime.store.http_file import HttpFile
from edge_runtime.store.ota_parts import Offer
from edge_runtime.store.ota_transfer import CHUNK_BYTES, Transfer, http_file, length, problem_of

SIGNATURE = "-----BEGIN SSH SIGNATURE-----\nabc\n-----END SSH SIGNATURE-----\n"
HEX = "0123456789abcdef"
GOOD = Offer(transfer="t", size=100_000, sha256=HEX * 4, sha512=HEX * 8, signature=SIGNATURE)
MOST = DEFAULT_LIMITS.max_bytes


@pytest.mark.parametrize(
    "changes",
    [{}, {"size": 1}, {"size": MOST}, {"sha512": "", "release": "{}"}, {"sha512": "x", "release": "{}"}],
)
def test_a_good_offer_has_no_fault(changes: dict[str, Any]) -> None:
    """From one byte to the largest file that is read; with a release document it needs no SHA-512."""
    assert problem_of(msgspec.structs.replace(GOOD, **changes)) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"size": 0}, f"expected a bundle of at most {MOST} bytes, found 0"),
        ({"size": MOST + 1}, f"expected a bundle of at most {MOST} bytes, found {MOST + 1}"),
        ({"sha256": "0f" * 31 + "0"}, "expected the SHA-256 in hex"),
        ({"sha256": "0f" * 32 + "0"}, "expected the SHA-256 in hex"),
        ({"sha256": "0F" * 32}, "expected the SHA-256 in hex"),
        ({"sha256": "../" * 21 + "a"}, "expected the SHA-256 in hex"),
        ({"signature": ""}, "expected the bundle's signature, found none"),
        ({"signature": "x" + SIGNATURE}, "expected the bundle's signature, found none"),
        ({"sha512": ""}, "expected the SHA-512 in hex or a release document"),
        ({"sha512": "a9" * 63 + "a"}, "expected the SHA-512 in hex or a release document"),
        ({"sha512": "a9" * 64 + "a"}, "expected the SHA-512 in hex or a release document"),
        ({"sha512": "A9" * 64}, "expected the SHA-512 in hex or a release document"),
    ],
)
def test_the_first_fault_of_an_offer_is_named(changes: dict[str, Any], words: str) -> None:
    """The digest names a file, so it is nothing but a digest."""
    found = problem_of(msgspec.structs.replace(GOOD, **changes))
    assert found is not None
    assert found.startswith(words)


def test_chunks_are_of_32_kib_and_the_last_is_what_is_left() -> None:
    """A file of three chunks and a byte."""
    transfer = Transfer(msgspec.structs.replace(GOOD, size=3 * 32_768 + 1))
    lengths = []
    while count := length(transfer):
        lengths.append(count)
        transfer.held += count
    assert CHUNK_BYTES == 32_768
    assert lengths == [32_768, 32_768, 32_768, 1]


def test_a_new_transfer_has_nothing_and_awaits_nothing() -> None:
    """Also: no failure of a server so far, so that the first one is never taken for the second."""
    new = Transfer(GOOD)
    assert (new.held, new.asked, new.brought, new.heard, new.reported) == (0, None, False, 0.0, 0.0)
    assert (new.file, new.broke_at) == (None, None)
    assert new != Transfer(GOOD)


def test_a_file_at_a_url_is_read_by_http() -> None:
    """Nothing is contacted before the first piece is read."""
    file = http_file("http://192.0.2.1/x.onnx", 10)
    assert isinstance(file, HttpFile)
    file.close()
