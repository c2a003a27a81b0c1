"""Inputs for the targets, made of good ones by a seeded random hand: the same seed gives the same inputs."""

import random
from collections.abc import Iterator

_DELICATE = [
    *(
        b"\n",
        b"\r",
        b"\0",
        b"\xff",
        b"\xc3",
        b"\xed\xa0\x80",
        b",",
        b";",
        b'"',
        b"'",
        b"\\",
        b"{",
        b"}",
        b"[",
        b"]",
        b":",
    ),
    *(b"NaN", b"-Infinity", b"null", b"true", b"1e400", b"-0", b"9" * 400, b"0.1e-400", b"\\ud800", b"\\u0000", b"],["),
    *(b"[" * 2000, b'{"a":' * 2000, b"x" * 70_000, b"=", b"#", b"[[source]]", b'"""', b"2026-11-23T11:19:04Z", b"inf"),
]


def mutations(seeds: list[bytes], count: int, seed: int) -> Iterator[bytes]:
    """`count` inputs, each a few changes away from one of the seeds or from an input before it."""
    rng = random.Random(seed)
    pool = list(seeds)
    for _ in range(count):
        data = bytearray(rng.choice(pool))
        for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
            _change(data, rng, pool)
        made = bytes(data[:100_000])
        if len(made) < 5000 and rng.random() < 0.05:
            pool.append(made)
            if len(pool) > 200:
                del pool[len(seeds)]
        yield made


def _change(data: bytearray, rng: random.Random, pool: list[bytes]) -> None:
    at = rng.randrange(len(data) + 1)
    kind = rng.randrange(7)
    if kind == 0 and data:
        data[at % len(data)] ^= 1 << rng.randrange(8)
    elif kind == 1:
        data[at:at] = bytes([rng.randrange(256)])
    elif kind == 2:
        del data[at : at + rng.choice((1, 1, 2, 5, 50))]
    elif kind == 3:
        data[at : at + rng.choice((0, 0, 1, 4))] = rng.choice(_DELICATE)
    elif kind == 4:
        piece = data[at : at + rng.randrange(1, 40)]
        data[at:at] = piece * rng.choice((1, 2, 30))
    elif kind == 5:
        other = rng.choice(pool)
        start = rng.randrange(len(other) + 1)
        data[at:] = other[start:]
    elif data:
        data[at % len(data)] = rng.randrange(48, 58)
