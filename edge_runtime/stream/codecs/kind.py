"""The base of every format: a table of keys, its rules, its facts, and the decoder that it makes.

A format is one file in this folder and one line in `registered.py`. Its keys are written in the table of the source
that uses it.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar, Protocol

from msgspec import Meta

from edge_runtime.config.convert import quote
from edge_runtime.config.rules import Finding, first_repeated, rule
from edge_runtime.config.tables import Table, Text
from edge_runtime.errors import ConfigError
from edge_runtime.registered import CODECS, Registry
from edge_runtime.stream.codecs.columns import Decoded, Members
from edge_runtime.system.counters import Counters

IGNORED = "_"  # a column that is skipped

# `elsewhere`: the expectation in the message when the key is given with a format that does not have it.
Columns = Annotated[tuple[Text, ...], Meta(extra={"elsewhere": "no columns"})]


class Decoder(Protocol):
    """A decoder of one format, made for the channels of one source."""

    def decode(self, frames: Sequence[bytes], counters: Counters) -> Decoded:
        """Every reading of the frames; the others are counted in `counters.rejected`."""


class CodecTable(Table, frozen=True, kw_only=True, tag_field="format", tag="codec"):
    """The keys of one format.

    Attributes of the class:
        is_text: whether a frame is a line of text; otherwise it is bytes, which need a framing that finds their end.
    """

    variants: ClassVar[Registry] = CODECS
    is_text: ClassVar[bool] = True

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of a frame by name and in order; empty if a frame names its values itself."""
        return ()

    @property
    def reads_paths(self) -> bool:
        """Whether `key`, `time` and `identity` of the source are paths in a document instead of plain names."""
        return False

    @property
    def mapped_channels(self) -> tuple[str, ...] | None:
        """The channels whose places the device file names; None if each is the member of its own name."""
        return None

    def decoder(self, members: Members, shape: tuple[int, ...] | None) -> Decoder:
        """Make the decoder for a source of these members, or of whole frames of `shape`.

        Raises:
            ConfigError: the keys do not fit the members, or the format cannot hold whole frames.
        """
        raise NotImplementedError


class ColumnsTable(CodecTable, frozen=True, kw_only=True, tag="columns"):
    """The keys of a format whose values are identified by their position, not by a name.

    Attributes:
        fields: The columns of a CSV line or of a raw structure, in order; `_` is skipped. The other formats name
            their values themselves.
    """

    fields: Columns = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of a frame by name and in order."""
        return self.fields


@rule(ColumnsTable, keys=("fields",))
def _each_column_once(table: ColumnsTable) -> Iterator[Finding]:
    twice = first_repeated(tuple(name for name in table.fields if name != IGNORED))
    if twice is not None:
        yield "fields", f"expected every column once, found {quote(twice)} twice"


def column_mistakes(columns: Sequence[str], members: Members) -> Iterator[str]:
    """Why columns of these names cannot provide the members of a source; empty if they can."""
    named = [column for column in columns if column != IGNORED]
    if len(set(named)) != len(named):
        yield f"{members.place}.fields: expected different names, found {', '.join(columns)}"
    missing = [channel for channel in members.channels if channel not in named]
    if missing:
        yield (
            f"{members.place}.fields: expected every channel of the model, found no {', '.join(missing)}: "
            "add it to `fields`"
        )
    if members.key is not None and members.key not in named:
        yield f"{members.place}.key: expected one of the fields ({', '.join(named)}), found {members.key!r}"


def refuse(mistakes: Sequence[str]) -> None:
    """Raise an error if there are mistakes.

    Raises:
        ConfigError: with every mistake.
    """
    if mistakes:
        raise ConfigError(list(mistakes))
