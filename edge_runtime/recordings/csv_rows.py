"""Where the rows of a CSV file end: at a line break outside of quotes. Pure.

A quote counts at the start of a column, and is doubled inside. A line break inside quotes belongs to the row only if
the result is a whole row with the right number of columns. Otherwise the first line is a row by itself (refused as
`malformed` later), and reading continues with the next line. A single stray quote thus costs only its own line.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from edge_runtime.stream.codecs.rows_of_text import SPACES, split_columns

MOST_QUOTED_BYTES = 1 << 20  # of one row with line breaks
_QUOTE, _LINE_FEED = 34, 10


def last_row_end(buffer: bytes, delimiter: str) -> int:
    """The number of bytes of `buffer`, which begins with a row, that are whole rows; -1 where only `rows` can tell.

    Args:
        buffer: some text.
        delimiter: between columns.
    """
    end = buffer.rfind(b"\n") + 1
    if delimiter == SPACES or b'"' not in buffer:
        return end
    found = np.frombuffer(buffer, np.uint8)
    quotes = np.flatnonzero(found == _QUOTE)
    breaks = np.flatnonzero(found == _LINE_FEED)
    outside = breaks[np.searchsorted(quotes, breaks) % 2 == 0]
    if not len(outside):
        return -1 if len(breaks) else 0
    end = int(outside[-1]) + 1
    quotes = quotes[quotes < end]
    return end if _are_well_formed(found[:end], quotes, ord(delimiter)) else -1


def count_lines(text: bytes) -> int:
    """The number of complete lines plus an incomplete one; numpy is three times as fast as `bytes.count` here."""
    breaks = int(np.count_nonzero(np.frombuffer(text, np.uint8) == _LINE_FEED))
    return breaks + (not text.endswith(b"\n"))


def longest_line(text: bytes) -> int:
    """The bytes of the longest line, without its end."""
    breaks = np.flatnonzero(np.frombuffer(text, np.uint8) == _LINE_FEED)
    return int(np.diff(breaks, prepend=-1, append=len(text)).max()) - 1


def is_regular(text: bytes, delimiter: str, *, only_numbers: bool) -> bool:
    """Whether every CSV reader finds the same rows in `text`, which is whole rows.

    Its quotes are well formed, it has no control characters, and a CR only in front of an LF.

    Args:
        text: whole rows.
        delimiter: between columns.
        only_numbers: every column is read as a number, which no control character is part of.
    """
    returns = text.count(b"\r") if b"\r" in text else 0  # a search is ten times as fast as counting
    if returns and returns != text.count(b"\r\n"):
        return False
    found = np.frombuffer(text, np.uint8)
    if not only_numbers:
        known = int(np.count_nonzero(found == _LINE_FEED)) + returns + text.count(b"\t")
        if np.count_nonzero(found < 32) != known or b"\x7f" in text:
            return False
    if b'"' not in text:
        return True
    quotes = np.flatnonzero(found == _QUOTE)
    if len(quotes) % 2:
        return False
    ended = found if text.endswith(b"\n") else np.append(found, np.uint8(_LINE_FEED))
    return _are_well_formed(ended, quotes, ord(delimiter))


def _are_well_formed(text: NDArray[np.uint8], quotes: NDArray[np.intp], delimiter: int) -> bool:
    """Each quote opens a column, closes one, or is doubled; the number of them is even."""
    borders = np.array([delimiter, _LINE_FEED, 13, _QUOTE], np.uint8)
    opens, closes = quotes[::2], quotes[1::2]
    before = text[opens[opens > 0] - 1]
    after = text[closes + 1]  # a row end follows the last one
    return bool(np.isin(before, borders).all() and np.isin(after, borders).all())


def rows(buffer: bytes, delimiter: str, width: int, *, final: bool) -> Iterator[tuple[int, int]]:
    """The start of each whole row of `buffer`, and of the next one.

    Args:
        buffer: some text that begins with a row.
        delimiter: between columns.
        width: how many columns a row has.
        final: nothing follows `buffer`.
    """
    start, size = 0, len(buffer)
    while start < size:
        end = buffer.find(b"\n", start) + 1
        if not end:
            if final:
                yield start, size
            return
        if delimiter != SPACES and buffer.count(b'"', start, end) % 2:
            whole = _quoted_row_end(buffer, start, end, delimiter, width=width, final=final)
            if whole == 0 and not final and size - start < MOST_QUOTED_BYTES:
                return  # the rest may follow
            end = whole or end
        yield start, end
        start = end


def _quoted_row_end(buffer: bytes, start: int, first: int, delimiter: str, *, width: int, final: bool) -> int:
    """The end of a row whose first line, up to `first`, leaves a quote open; 0 where the end is not in the buffer."""
    limit, at = start + MOST_QUOTED_BYTES, first
    while (quote := buffer.find(b'"', at, limit)) >= 0:
        end = buffer.find(b"\n", quote, limit) + 1
        if not end:
            if not final or len(buffer) > limit:
                return 0
            end = len(buffer)
        if buffer.count(b'"', buffer.rfind(b"\n", start, quote) + 1, end) % 2:
            text = buffer[start:end].rstrip(b"\r\n").decode("utf-8", "replace")
            return end if len(split_columns(text, delimiter)) == width else first
        at = end
    return 0
