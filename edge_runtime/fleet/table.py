"""Rows as text: columns as wide as their content, without a library. Pure."""

from collections.abc import Sequence


def render(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A plain text table; what is unprintable in a cell is shown as a question mark."""
    lines = [[printable(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def size_in_words(count: int) -> str:
    """Bytes with a unit, short enough for a cell."""
    for unit, size in (("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}" if count < 1000 * size else f"{count / size:,.0f} {unit}"
    return f"{count} bytes"


def folded(names: Sequence[str], most: int = 12) -> str:
    """Names with a number at their end as ranges: `press-01..40, roof`; of many, the first few.

    Neighbours only, in the order given.
    """
    parts: list[str] = []
    at = 0
    while at < len(names):
        end = at
        while end + 1 < len(names) and _follows(names[end], names[end + 1]):
            end += 1
        if end - at >= 2:
            parts.append(f"{names[at]}..{_number(names[end])}")
        else:
            parts += names[at : end + 1]
        at = end + 1
    return ", ".join(parts) if len(parts) <= most else f"{', '.join(parts[:most])} and {len(parts) - most} more"


def _number(name: str) -> str:
    return name[len(name.rstrip("0123456789")) :]


def _follows(first: str, second: str) -> bool:
    one, two = _number(first), _number(second)
    stem = first[: len(first) - len(one)]
    return bool(one) and second == f"{stem}{two}" and len(one) == len(two) and int(two) == int(one) + 1


def printable(text: str) -> str:
    """Text that moves no cursor: what is unprintable becomes a question mark."""
    return "".join(each if each.isprintable() else "?" for each in text)


def duration(seconds: float) -> str:
    """Seconds in words: `3 d 4 h`, `12 min`, `5 s`."""
    whole = int(seconds)
    if whole >= 86_400:
        return f"{whole // 86_400} d {whole % 86_400 // 3600} h"
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 60} min" if whole >= 60 else f"{whole} s"
