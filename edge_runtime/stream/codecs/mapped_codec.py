"""Documents whose channels are at paths: nested members, items of arrays, a bare value, rows inside an object.

The slower alternative to `object_codec.py`: each document is parsed as a whole, and each channel is looked up and read
by itself. Guarantee: a reading has the values at its paths, or is counted with the path at fault; a bad row does not
affect other rows. Weak point: several times the work of the flat form (`docs/performance.md`).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from edge_runtime.errors import ConfigError
from edge_runtime.stream.codecs.channel_table import ChannelTable
from edge_runtime.stream.codecs.channel_values import Reader, make_reader
from edge_runtime.stream.codecs.columns import Decoded, Members, Rows, judge
from edge_runtime.stream.codecs.object_codec import Syntax
from edge_runtime.stream.codecs.paths import PathError, ValuePath, kind_of, member, parse_path
from edge_runtime.stream.origin import NO_IDENTITY, Origin, RejectedError, identity_text
from edge_runtime.system.counters import Counters

_BY_IDENTITY = "identity"  # of `Members.identity`: the identity is in `Origin.id`, whatever its path
_MOST_ROWS = 100_000  # of one frame: no sensor sends more


class Place(msgspec.Struct, frozen=True, eq=False):
    """One channel: its path, and the reader of its values."""

    name: str
    path: ValuePath
    read: Reader


class OriginPlaces:
    """The paths of the members that are not channels.

    Args:
        members: their names, or their paths.
        taken: names of members that are channels, and serve no other purpose.
        lenient: a name with a dot is a path only if no member of that name exists, as without a mapping.
    """

    def __init__(self, members: Members, taken: frozenset[str], *, lenient: bool = False) -> None:
        def place(text: str) -> ValuePath:
            try:
                found = parse_path(text)
            except PathError as error:
                if lenient:
                    return member(text)
                raise ConfigError(f"{members.place}: {error}") from error
            return msgspec.structs.replace(found, literal=True) if lenient else found

        self.key = None if members.key is None else place(members.key)
        self._time = None if members.time in taken else place(members.time)
        self._own: list[ValuePath] = []
        if members.identity is None:
            self._own = [member(name) for name in ("id", "seq") if name not in taken]
            if self._time is not None:
                self._own.append(self._time)
        elif members.identity != NO_IDENTITY:
            self._own = [place(members.identity)]

    def read(self, item: Any, document: Any, row: int | None) -> Origin:
        """Read the members that are not channels; `row`, the number of a row, makes an identity of the document unique.

        Raises:
            RejectedError: the identity is neither text nor a number.
        """
        time = None if self._time is None else self._time.find(item, document)
        identity = None
        for path in self._own:
            found = path.find(item, document)
            if found is None or found == "":
                continue
            identity = found
            if row is not None and path.from_document:
                identity = f"{identity_text(found)}#{row}"
            break
        return Origin(time, identity, None, None if self.key is None else self.key.find(item, document))

    @property
    def paths(self) -> list[ValuePath]:
        """All paths."""
        return [path for path in (self.key, self._time, *self._own) if path is not None]


def origin_members(members: Members) -> Members:
    """The members that `judge` needs for the result of `OriginPlaces`."""
    return msgspec.structs.replace(members, identity=NO_IDENTITY if members.identity == NO_IDENTITY else _BY_IDENTITY)


def channel_places(
    members: Members,
    channels: Mapping[str, ChannelTable] | None,
    *,
    is_text: bool = False,
    whole: bool = False,
) -> list[Place]:
    """The place of each channel of a source.

    Args:
        members: of the source.
        channels: the table of the device file; None if each channel is the member of its own name.
        is_text: every value is received as text.
        whole: whether a channel without a path is the whole document.

    Raises:
        ConfigError: a channel has no place, or its values cannot be converted to those of the bundle.
    """
    mistakes = []
    places = []
    for name in members.channels:
        if channels is not None and name not in channels:
            from edge_runtime.config.convert import nearest  # noqa: PLC0415 - only for a mistake

            near = nearest(name, [each for each in channels if each not in members.channels])
            remedy = f"did you mean it by {near}?" if near else f'add {name} = "PATH"'
            mistakes.append(f"{members.place}.channels: expected every channel of the model, found no {name}: {remedy}")
            continue
        table = ChannelTable() if channels is None else channels[name]
        where = f"{members.place}.channels.{name}"
        try:
            path = parse_path(table.path) if table.path is not None else ValuePath(".", ()) if whole else member(name)
            read = make_reader(
                name,
                table,
                place=where,
                wanted=members.units.get(name, ""),
                categories=members.categories.get(name),
                is_text=is_text,
            )
        except PathError as error:
            mistakes.append(f"{where}.path: {error}")
        except ConfigError as error:
            mistakes.extend(error.mistakes)
        else:
            places.append(Place(name, path, read))
    if mistakes:
        raise ConfigError(mistakes)
    return places


class MappedDecoder:
    """Decodes documents by reading each channel at its path.

    Args:
        members: of the source.
        places: of the channels, in their order.
        origins: the places of the other members.
        document: parses a frame.
        rows: the path of the array of readings; None for the document itself.
        is_text: numbers of the other members are text, as in pairs.
    """

    def __init__(
        self,
        members: Members,
        places: Sequence[Place],
        origins: OriginPlaces,
        document: Callable[[bytes], Any],
        *,
        rows: ValuePath | None = None,
        is_text: bool = False,
    ) -> None:
        self._shape = (len(members.channels),)
        self._members = origin_members(members)
        self._places = places
        self._origins = origins
        self._document = document
        self._rows = rows
        self._is_text = is_text
        begin_with_item = any(path.steps[:1] and type(path.steps[0]) is int for path in self._all_paths())
        self._splits_arrays = rows is None and not begin_with_item

    def decode(self, frames: Sequence[bytes], counters: Counters) -> Decoded:
        """Every reading of the frames; the others are counted in `counters.rejected`."""
        found = Rows()
        for index, frame in enumerate(frames):
            try:
                document = self._document(frame)
                items, numbered = self._items(document)
            except RejectedError as error:
                counters.reject(error.reason, error.why, frame=index)
                continue
            for row, item in enumerate(items):
                try:
                    values = self._values(item, document)
                    origin = self._origins.read(item, document, row if numbered else None)
                except RejectedError as error:
                    counters.reject(error.reason, error.why, frame=index)
                    continue
                found.frames.append(index)
                found.values.append(values)
                found.origins.append(origin)
        return judge(found, self._shape, counters, self._members, is_text=self._is_text)

    def _all_paths(self) -> list[ValuePath]:
        return [place.path for place in self._places] + self._origins.paths

    def _items(self, document: Any) -> tuple[list[Any], bool]:
        """The readings of a document, and whether they are rows of it."""
        if self._rows is None:
            if type(document) is not list or not self._splits_arrays:
                return [document], False
            array, what = document, "the array"
        else:
            array, what = self._rows.find(document, document), f"`{self._rows.text}`"
            if array is None:
                raise RejectedError(
                    "malformed", f"expected readings in {what}, {self._rows.explain(document, document)}"
                )
            if type(array) is not list:
                raise RejectedError("malformed", f"expected an array of readings in {what}, found {kind_of(array)}")
        if not array:
            raise RejectedError("malformed", f"expected readings in {what}, found an empty array")
        if len(array) > _MOST_ROWS:
            raise RejectedError("malformed", f"expected at most {_MOST_ROWS} readings in {what}, found {len(array)}")
        return array, True

    def _values(self, item: Any, document: Any) -> list[float | None]:
        values = [place.read(place.path.find(item, document)) for place in self._places]
        if values.count(None) == len(values):
            raise RejectedError("missing_channel", self._places[0].path.explain(item, document))
        return values


def document_decoder(
    syntax: Syntax,
    members: Members,
    *,
    channels: Mapping[str, ChannelTable] | None,
    rows: str | None,
) -> MappedDecoder:
    """Make the decoder of JSON or MessagePack by paths.

    Raises:
        ConfigError: the table does not fit the channels.
    """
    places = channel_places(members, channels)
    taken = frozenset(str(place.path.steps[0]) for place in places if len(place.path.steps) == 1)
    lenient = channels is None and rows is None
    origins = OriginPlaces(members, taken, lenient=lenient)

    def document(frame: bytes) -> Any:
        found, reason = syntax.plain(frame)
        if reason:
            raise RejectedError(reason, syntax.explain(frame, reason))
        return found

    return MappedDecoder(members, places, origins, document, rows=None if rows is None else parse_path(rows))
