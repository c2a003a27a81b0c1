"""hashlib as the daemon loads it, each time in a process of its own, since here all of it is loaded."""

import subprocess
import sys

_BEGIN = """
import sys
from pathlib import Path
from edge_runtime.system import hashing

def has_openssl():
    return "libcrypto" in Path("/proc/self/maps").read_text()
"""
# FIPS 180-2, appendix B.1: the digest of "abc".
_ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def _run(program: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _BEGIN + program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_small_data_is_hashed_without_openssl() -> None:
    """Its library is not even loaded, and every function that Python promises is there."""
    _run(f"""
hashing.import_light()
import hashlib
assert hashing.sha256(b"abc") == hashlib.sha256(b"abc").hexdigest() == hashlib.new("sha256", b"abc").hexdigest()
assert hashing.sha256(b"abc") == "{_ABC}"
assert all(hasattr(hashlib, name) for name in hashlib.algorithms_guaranteed)
assert not has_openssl()
""")


def test_large_data_is_hashed_by_openssl() -> None:
    """From one length on; the digests on both sides of it are those of a hash that is fed piece by piece."""
    _run("""
hashing.import_light()
import hashlib
for size in (hashing.LARGE_BYTES - 1, hashing.LARGE_BYTES):
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    own = hashlib.sha256()
    for at in range(0, size, 4096):
        own.update(data[at : at + 4096])
    assert hashing.sha256(data) == own.hexdigest()
    assert has_openssl() == (size == hashing.LARGE_BYTES)
assert hashlib.sha256.__name__ == "openssl_sha256"
""")


def test_who_needs_openssl_later_gets_it() -> None:
    """TLS, and a key derivation that only OpenSSL has."""
    _run("""
hashing.import_light()
import hashlib, ssl
assert ssl.create_default_context()
hashing.use_openssl()
assert hashlib.pbkdf2_hmac("sha256", b"password", b"salt", 1).hex().startswith("120fb6cffcf8b32c")
""")


def test_a_hashlib_that_is_loaded_stays_as_it_is() -> None:
    """And one of a Python without functions of its own is loaded as ever."""
    _run("""
import hashlib
hashing.import_light()
assert hashlib.sha256.__name__ == "openssl_sha256"
""")
    _run("""
for name in ("_md5", "_sha1", "_sha2", "_sha256", "_sha512", "_sha3"):
    sys.modules[name] = None
hashing.import_light()
import hashlib
assert hashlib.sha256.__name__ == "openssl_sha256"
""")
