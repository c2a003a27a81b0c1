"""Odd values, and JSON documents with some of them in place of good ones. Seeded: the same hand gives the same."""

import json
import random
from typing import Any

_NUMBERS: list[Any] = [
    0, -1, 1, 2, 255, 65_536, 2**31, -(2**31), 2**53, 2**53 + 1, 2**63, -(2**63), 2**64, 10**30, -(10**30), 10**400,
    0.0, -0.0, 0.5, 1e308, -1e308, 5e-324, 1e39, 1e-46, 253_402_300_800, float("nan"), float("inf"),
]  # fmt: skip
_TEXTS: list[Any] = [
    "", " ", "a", "/", "..", "../../etc/passwd", "/etc/passwd", "a/b", "+", "#", "$SYS", "-", "a\0b", "\x1b[2J",
    "\x7f",
    "\u202e", "\ufffe", "\ud800", "é", "0" * 64, "a" * 64, "A" * 64, "a" * 64 + "\n", "x" * 5000, "1.0.0", "1e3",
    "NaN",
    "true", "null", "01", "0x10", "25:61", "aa:bb", "2026-11-23T11:19:04Z", "{}",
    "[" * 500, "-----BEGIN SSH SIGNATURE-----",
    "=", "AAAA", "<script>", "%s%n", "';--",
]  # fmt: skip
_OTHERS: list[Any] = [None, True, False, [], {}, [[]], [None], {"": 0}, [0] * 300, {"a": {"a": {"a": {}}}}]


def odd_value(rng: random.Random) -> Any:
    """A value that few expect."""
    kind = rng.randrange(6)
    if kind < 2:
        return rng.choice(_NUMBERS)
    if kind < 4:
        return rng.choice(_TEXTS)
    if kind == 4:
        return _copy(rng.choice(_OTHERS))  # what is put into a document is changed with it
    deep: Any = rng.choice(_NUMBERS)
    for _ in range(rng.choice((1, 3, 100, 2000))):
        deep = [deep] if rng.random() < 0.5 else {"a": deep}
    return deep


def odd_document(document: Any, rng: random.Random) -> Any:
    """A copy with one to four members changed, doubled, missing or new."""
    made = _copy(document)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        place = _some_container(made, rng)
        if isinstance(place, dict):
            key: Any = rng.choice(list(place)) if place and rng.random() < 0.9 else rng.choice(_TEXTS)
            if rng.random() < 0.15:
                place.pop(key, None)
            else:
                place[key] = odd_value(rng)
        elif place:
            at = rng.randrange(len(place))
            kind = rng.randrange(3)
            if kind == 0:
                place[at] = odd_value(rng)
            elif kind == 1:
                del place[at]
            else:
                place.insert(at, place[at])
        else:
            place.append(odd_value(rng))
    return made


def as_json(document: Any) -> bytes:
    """The document as bytes; numbers that JSON does not have are written as Python does."""
    try:
        return json.dumps(document).encode()
    except RecursionError:
        return b'{"a":' * 3000 + b"0" + b"}" * 3000


def _some_container(document: Any, rng: random.Random) -> Any:
    place = document
    while True:
        inner = [
            each for each in (place.values() if isinstance(place, dict) else place) if isinstance(each, dict | list)
        ]
        if not inner or rng.random() < 0.4:
            return place
        place = rng.choice(inner)


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(each) for key, each in value.items()}
    return [_copy(each) for each in value] if isinstance(value, list) else value
