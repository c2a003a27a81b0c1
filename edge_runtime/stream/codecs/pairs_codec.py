"""Lines of `name:value` or `name=value` pairs, as many small boards print them.

A name begins at the start of the line or after a blank, a comma, a semicolon, `|` or `&`; its value extends to the
next name. Of two equal names the last one counts, as in JSON. Guarantee: a line that does not begin with a name is
refused, since its beginning may be the rest of a truncated number.
"""

import re
from collections.abc import Iterator
from typing import Any

from edge_runtime.config.rules import Finding, rule
from edge_runtime.stream.codecs.columns import Members
from edge_runtime.stream.codecs.kind import Decoder
from edge_runtime.stream.codecs.mapping import NamedTable, refuse_whole_frames
from edge_runtime.stream.codecs.plain_text import BYTE_ORDER_MARK, is_text
from edge_runtime.stream.origin import RejectedError

_BETWEEN = " \t\r\n,;|&"


class PairsTable(NamedTable, frozen=True, kw_only=True, tag="pairs"):
    """`format = "pairs"`: a line of `name:value` or `name=value` pairs."""

    @property
    def reads_paths(self) -> bool:
        """False: `key`, `time` and `identity` are names of pairs."""
        return False

    def decoder(self, members: Members, shape: tuple[int, ...] | None) -> Decoder:
        """The decoder of lines."""
        from edge_runtime.stream.codecs.mapped_codec import MappedDecoder, OriginPlaces, channel_places  # noqa: PLC0415 - only where it is used

        refuse_whole_frames(members, shape, "pairs")
        places = channel_places(members, self.channels, is_text=True)
        names = frozenset(str(place.path.steps[0]) for place in places)
        origins = OriginPlaces(members, names, lenient=True)
        wanted = names.union(*(map(str, path.steps) for path in origins.paths))
        return MappedDecoder(members, places, origins, _Pairs(wanted).document, is_text=True)


@rule(PairsTable, keys=("channels",))
def _names_of_pairs(table: PairsTable) -> Iterator[Finding]:
    from edge_runtime.stream.codecs.paths import PathError, parse_path  # noqa: PLC0415 - only where there is a path

    for name, channel in (table.channels or {}).items():
        try:
            steps = () if channel.path is None else parse_path(channel.path).steps
        except PathError:
            continue  # reported at the path
        if channel.path is not None and (len(steps) != 1 or type(steps[0]) is not str):
            yield (
                f"channels.{name}",
                f'expected the name of a pair, found "{channel.path}": put a name with a dot in quotes',
            )


class _Pairs:
    """Parses lines.

    Args:
        wanted: the names to find, which may contain blanks or begin with a digit.
    """

    def __init__(self, wanted: frozenset[str]) -> None:
        listed = "|".join(re.escape(name) for name in sorted(wanted, key=len, reverse=True))
        self._name = re.compile(rf"(?<![^{re.escape(_BETWEEN)}])(?P<name>{listed}|[^\W\d][^\s:=,;|&]*)\s*[:=]")

    def document(self, frame: bytes) -> Any:
        """The pairs of a line."""
        if not is_text(frame):
            raise RejectedError("noise", "expected text, found bytes that are none")
        text = frame.removeprefix(BYTE_ORDER_MARK).decode()
        found = list(self._name.finditer(text))
        if not found or text[: found[0].start()].strip(_BETWEEN):
            begin = text[: found[0].start()] if found else text
            raise RejectedError("malformed", f"expected pairs such as T:21.5, found {begin.strip()[:60]!r}")
        stops = [each.start() for each in found[1:]] + [len(text)]
        return {
            each["name"]: text[each.end() : stop].strip(_BETWEEN) or None
            for each, stop in zip(found, stops, strict=True)
        }
