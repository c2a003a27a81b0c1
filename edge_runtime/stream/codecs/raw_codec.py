"""Raw: each frame is a packed structure of numbers, as in the memory of a microcontroller.

Every type has a fixed size and there is no padding, so that a frame of another length is `malformed`. `scale` converts
integers to physical units. A NaN is `not_finite`, since a structure cannot leave a channel out.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal, get_args

import numpy as np
from msgspec import Meta

from edge_runtime.config.rules import Finding, rule
from edge_runtime.config.tables import Table, Text
from edge_runtime.stream.codecs.channel_table import path_fault
from edge_runtime.stream.codecs.columns import Decoded, Members, Rows, judge
from edge_runtime.stream.codecs.frame_codec import RawFrameDecoder, refuse_sizes
from edge_runtime.stream.codecs.kind import ColumnsTable, Decoder, column_mistakes, refuse
from edge_runtime.stream.origin import NO_ORIGIN, Origin
from edge_runtime.system.counters import Counters

RawType = Literal[
    "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16", "float32", "float64"
]


class PayloadTable(Table, frozen=True, kw_only=True):
    """`[source.payload]`: bytes encoded as text inside a JSON message.

    Attributes:
        path: The path of the text in the message, such as `uplink_message.frm_payload`.
        encoding: The encoding of the bytes.
    """

    path: Text
    encoding: Literal["base64", "hex"]


class RawTable(ColumnsTable, frozen=True, kw_only=True, tag="raw"):
    """`format = "raw"`: a packed structure of numbers.

    Attributes:
        layout: The type of each field of a raw structure, such as `int16` or `float32`; there is no padding.
        scale: The factor of the numbers of a raw structure: one for all, or one for each field.
        byte_order: The first byte of a number of a raw structure: the low one (`little`) or the high one (`big`).
        payload: The place of the structure's bytes in a JSON message; left out, the frame itself is the structure.
    """

    is_text: ClassVar[bool] = False

    layout: Annotated[tuple[RawType, ...], Meta(extra={"elsewhere": "only"})] = ()
    scale: Annotated[tuple[float, ...], Meta(extra={"elsewhere": "only"})] = ()
    byte_order: Literal["little", "big"] = "little"
    payload: Annotated[PayloadTable, Meta(extra={"elsewhere": "only"})] | None = None

    @property
    def reads_paths(self) -> bool:
        """Whether `key`, `time` and `identity` may be paths of the message around the structure."""
        return self.payload is not None

    def decoder(self, members: Members, shape: tuple[int, ...] | None) -> Decoder:
        """The decoder of structures, or of whole frames as numbers of one type."""
        if self.payload is None:
            return self._frame_decoder(members, shape)
        from edge_runtime.stream.codecs.payload_codec import (  # noqa: PLC0415 - only where it is used
            PayloadDecoder,
            frame_members,
        )

        fields = (self.fields or members.channels) if shape is None else ()
        inner = self._frame_decoder(frame_members(members, fields), shape)
        return PayloadDecoder(members, fields, inner, path=self.payload.path, encoding=self.payload.encoding)

    def _frame_decoder(self, members: Members, shape: tuple[int, ...] | None) -> Decoder:
        columns = (self.fields or members.channels) if shape is None else ("frame",)
        found = layout_mistakes(columns, self.layout, self.scale)
        mistakes = [f"{members.place}.{key}: {text}" for key, text in found]
        if shape is None:
            mistakes.extend(column_mistakes(columns, members))
        refuse(mistakes)
        big_endian = self.byte_order == "big"
        if shape is None:
            return RawDecoder(columns, members, self.layout, scale=self.scale, big_endian=big_endian)
        factor = self.scale[0] if self.scale else 1.0
        return RawFrameDecoder(shape, self.layout[0], scale=factor, big_endian=big_endian)


@rule(PayloadTable, keys=("path",))
def _path_of_the_bytes(table: PayloadTable) -> Iterator[Finding]:
    for fault in path_fault(table.path):
        yield "path", fault


@rule(RawTable, keys=("fields", "layout", "scale"))
def _a_type_for_each_field(table: RawTable) -> Iterator[Finding]:
    wanted = len(table.fields) or 1  # without fields the model takes whole frames of one type
    if len(table.layout) != wanted:
        yield "layout", f"expected a type such as int16 for each of the fields ({wanted}), found {len(table.layout)}"
    if len(table.scale) not in {0, 1, wanted}:
        yield "scale", f"expected one factor, or one for each of the fields ({wanted}), found {len(table.scale)}"


class RawDecoder:
    """Decodes a structure of `columns`, whose types are the items of `layout` in the same order."""

    def __init__(
        self,
        columns: tuple[str, ...],
        members: Members,
        layout: Sequence[str],
        *,
        scale: Sequence[float] = (),
        big_endian: bool = False,
    ) -> None:
        order = ">" if big_endian else "<"
        self._structure = np.dtype([(f"c{i}", order + np.dtype(kind).str[1:]) for i, kind in enumerate(layout)])
        self._shape = (len(members.channels),)
        self._members = members
        self._channels = [columns.index(name) for name in members.channels]
        factors = tuple(scale) * len(columns) if len(scale) == 1 else tuple(scale) or (1.0,) * len(columns)
        self._factors = np.array([factors[column] for column in self._channels], dtype=np.float64)
        self._origin = [columns.index(name) if name in columns else None for name in members.origin_names()]

    def decode(self, frames: Sequence[bytes], counters: Counters) -> Decoded:
        """Every reading of the frames; the others are counted in `counters.rejected`."""
        size = self._structure.itemsize
        if self._members.many and all(frame and not len(frame) % size for frame in frames):
            counts = [len(frame) // size for frame in frames]
            rows = np.repeat(np.arange(len(frames)), counts).tolist()
            return self._decoded(rows, frames, counters)
        rows = [index for index, frame in enumerate(frames) if len(frame) == size]
        if len(rows) < len(frames):
            refuse_sizes(frames, rows, size, counters)
            frames = [frames[index] for index in rows]
        return self._decoded(rows, frames, counters)

    def _decoded(self, rows: list[int], frames: Sequence[bytes], counters: Counters) -> Decoded:
        table = np.frombuffer(b"".join(frames), dtype=self._structure)
        values = np.empty((len(rows), len(self._channels)), dtype=np.float64)
        with np.errstate(over="ignore", invalid="ignore"):  # no warning about a signalling NaN
            for place, column in enumerate(self._channels):
                values[:, place] = table[f"c{column}"]
            values *= self._factors
        values[np.isnan(values)] = math.inf  # in rows for `judge`, NaN means a missing channel
        return judge(Rows(rows, self._origins(table), values), self._shape, counters, self._members)

    def _origins(self, table: Any) -> list[Origin]:
        if all(column is None for column in self._origin):
            return [NO_ORIGIN] * len(table)
        missing = [None] * len(table)
        return [
            Origin(*parts)
            for parts in zip(
                *(missing if column is None else table[f"c{column}"].tolist() for column in self._origin), strict=True
            )
        ]


def layout_mistakes(columns: Sequence[str], layout: Sequence[str], scale: Sequence[float]) -> list[tuple[str, str]]:
    """The mistakes of a structure, as pairs of a key and a sentence; empty if there are none."""
    found = []
    strange = [kind for kind in layout if kind not in get_args(RawType)]
    if strange:
        found.append(("layout", f"expected types such as int16 or float32, found {', '.join(strange)}"))
    if len(layout) != len(columns):
        found.append(("layout", f"expected a type for each of the {len(columns)} fields, found {len(layout)}"))
    if len(scale) not in {0, 1, len(columns)}:
        found.append(("scale", f"expected one factor, or one for each of {len(columns)} fields, found {len(scale)}"))
    return found
