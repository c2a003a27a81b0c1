"""Splits a row of text into columns, for CSV readings, whole frames in CSV and recorded files."""

import math

from edge_runtime.stream.codecs.plain_text import BYTE_ORDER_MARK, is_text
from edge_runtime.stream.origin import RejectedError

SPACES = "space"  # as a delimiter: any run of blanks and tabs; those at the ends of a row are ignored


def row_columns(frame: bytes, delimiter: str, width: int) -> list[str]:
    """The columns of a row.

    Raises:
        RejectedError: `noise`, or `malformed` if there are not `width` of them.
    """
    if not is_text(frame):
        raise RejectedError("noise", "expected text, found bytes that are none")
    columns = split_columns(frame.removeprefix(BYTE_ORDER_MARK).decode(), delimiter)
    if len(columns) != width:
        raise RejectedError("malformed", f"expected {width} columns, found {len(columns)}")
    return columns


def split_columns(text: str, delimiter: str) -> list[str]:
    """The columns of a row; empty if its quotes are not closed."""
    if delimiter == SPACES:
        return text.split()
    return text.split(delimiter) if '"' not in text else unquoted_columns(text, delimiter)


def unquoted_columns(text: str, delimiter: str) -> list[str]:
    """The columns of a row in which some are quoted; empty if its quotes are not closed."""
    import csv  # noqa: PLC0415 - only for quotes, which few sensors write

    try:
        rows = list(csv.reader([text], delimiter=delimiter, strict=True))
    except csv.Error:
        return []
    return rows[0] if len(rows) == 1 else []


def number(text: str) -> float | None:
    """The number of one column; None if it is empty."""
    try:
        value = float(text)
    except ValueError:
        if not text.strip():
            return None
        raise RejectedError("wrong_type", f"expected a number, found {text[:40]!r}") from None
    if "_" in text or not text.isascii():  # float() accepts 1_0 as ten, and the digits of every script
        raise RejectedError("wrong_type", f"expected a number, found {text[:40]!r}")
    if not math.isfinite(value):
        raise RejectedError("not_finite", f"expected a finite number, found {text[:40]!r}")
    if not value and not text.strip().lstrip("+-").strip("0"):
        return 0.0  # `-0` is a whole number without a sign, as in `CsvDecoder._all_numbers`
    return value


def number_with(decimal: str, text: str) -> float | None:
    """The number of one column with another decimal sign than the point; None if it is empty."""
    if "." in text:
        raise RejectedError("wrong_type", f"expected a number with {decimal!r}, found {text[:40]!r}")
    return number(text.replace(decimal, "."))
