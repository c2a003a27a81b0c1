"""hashlib without OpenSSL, whose library takes 3.3 MiB of memory, where a device hashes only small data.

`import_light` is called once, before any other import of hashlib, which then has Python's own functions: the same
digests at a fifth of the speed. `use_openssl` gives it those of OpenSSL again; `sha256` calls it for data from
`LARGE_BYTES` on. Code on a device's path calls `hashlib.sha256` by its module, never by a name imported from it.

Weak point: it depends on hashlib's import of `_hashlib`. Where hashlib has changed, or Python was built without
functions of its own, OpenSSL's are used as ever.
"""

import importlib
import logging
import sys

LARGE_BYTES = 1 << 20  # Python's own function takes some 10 ms for these on a slow board
_OPENSSL = "_hashlib"


def import_light() -> None:
    """Import hashlib without OpenSSL, unless one of the two is loaded already."""
    if "hashlib" in sys.modules or _OPENSSL in sys.modules:
        return
    sys.modules[_OPENSSL] = None  # type: ignore[assignment]  # an import of it fails
    logging.disable()  # hashlib reports functions that Python was built without
    try:
        hashlib = importlib.import_module("hashlib")
    finally:
        del sys.modules[_OPENSSL]
        logging.disable(logging.NOTSET)
    if not all(hasattr(hashlib, name) for name in hashlib.algorithms_guaranteed):
        importlib.reload(hashlib)


def use_openssl() -> None:
    """Give hashlib the functions of OpenSSL, where it has them: for large data."""
    if _OPENSSL not in sys.modules:
        importlib.reload(importlib.import_module("hashlib"))


def sha256(data: bytes) -> str:
    """The SHA-256 of bytes of any length, in hexadecimal digits."""
    if len(data) >= LARGE_BYTES:
        use_openssl()
    import hashlib  # noqa: PLC0415 - by `import_light`, where that is called

    return hashlib.sha256(data).hexdigest()
