"""The facts of an ONNX file without running it: `read_onnx` turns its bytes into `OnnxFacts`, or refuses them.

This code is the first to read a file of unknown origin. It is plain Python that parses the protobuf wire format: no
native parser, no recursion, every length is checked against the available bytes, and every count is bounded by
`Limits`. It reads only the fields that decide whether the file is safe to load, and is stricter than onnxruntime where
two readers could understand a file differently (a field given twice, a wrong wire type). It does not check what the
operators compute: the self-test in a child process does that.

Field numbers are those of `onnx/onnx.proto` (IR version 14); each message below names its own.

Longer than 500 lines, on purpose: the messages of one format stand together, so that each bound can be read against the
one before it.
"""

import re
from collections.abc import Iterator

import msgspec

from edge_runtime.bundle.int8_operators import Int8, has_int8
from edge_runtime.errors import BundleError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types; 3 and 4 (groups) are no part of ONNX
_REPEATED = -1

_MODEL_IR, _MODEL_GRAPH = 1, 7
_NODE_OP, _NODE_DOMAIN = 4, 7
_ATTRIBUTE_T, _ATTRIBUTE_G, _ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS = 5, 6, 10, 11
_ATTRIBUTE_REF, _ATTRIBUTE_SPARSE = 21, (22, 23)
_TENSOR_TYPE, _TENSOR_STRINGS, _TENSOR_NAME, _TENSOR_RAW, _TENSOR_LOCATION = 2, 6, 8, 9, 14
_TENSOR_FLOATS, _TENSOR_INT32S, _TENSOR_INT64S, _TENSOR_DOUBLES, _TENSOR_UINT64S = 4, 5, 7, 10, 11
_LOCATION_EXTERNAL = 1

# The typed field that holds values without `raw_data`, and its entries for each element.
_FLOAT_FIELD, _DOUBLE_FIELD = {1: 1, 14: 2}, {11: 1, 15: 2}
_INT32_FIELD = frozenset({2, 3, 4, 5, 6, 9, 10, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26})
_UINT64_FIELD = frozenset({12, 13})
_STRING = 8
# Bits of one element by TensorProto.DataType; types below a byte are packed and the last byte is padded.
_BITS = {
    1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128,
    16: 16, 17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8, 25: 2, 26: 2,
}  # fmt: skip
FLOAT, INT64 = 1, 7
TYPE_NAMES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "string", 9: "bool",
    10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128", 16: "bfloat16",
}  # fmt: skip

# The attributes of a tree ensemble are runs of a million small fields. A run of `floats` (field 7, unpacked), `ints`
# (8) or `strings` (9) of up to 16 bytes holds nothing that we look at, and the regular expression skips it a hundred
# times faster than a loop. Possessive, so it keeps no stack.
_RUN = re.compile(
    rb"(?:\x3d.{4}|\x40[\x80-\xff]{0,9}[\x00-\x7f]|\x4a(?:"
    + b"|".join(re.escape(bytes([size])) + b".{%d}" % size for size in range(17))
    + b"))++",
    re.DOTALL,
)
_CONTINUED = bytes(range(0x80, 0x100))
_MAX_DIM = 2**31 - 1
_WHOLE = "the model"  # the name of the outermost message: if that is too short, the file was truncated

# First bytes of files that are often mistaken for a bundle.
_FOREIGN = (
    (b"version https://git-lfs", "a Git LFS pointer: fetch the file itself (git lfs pull)"),
    (b"PK\x03\x04", "a zip archive (a skops, npz or Keras file?): convert it with edge-convert build"),
    (b"\x80", "a pickle or joblib file: convert it with edge-convert build"),
    (b"\x89HDF", "an HDF5 file (Keras?): convert it with edge-convert build"),
    (b"\x1f\x8b", "a gzip archive: unpack it first"),
    (b"-----BEGIN", "a key or a signature: name the bundle, not the .sig"),
    (b"{", "JSON text: name the bundle itself"),
)


class Limits(msgspec.Struct, frozen=True):
    """Limits of a model. The defaults allow every model that a small device can run."""

    max_bytes: int = 256 * 1024 * 1024
    max_manifest_bytes: int = 16 * 1024 * 1024
    max_nodes: int = 50_000
    max_tensors: int = 100_000
    max_fields: int = 2_000_000
    max_depth: int = 8
    max_rank: int = 16


DEFAULT_LIMITS = Limits()


Dims = tuple[int | str | None, ...] | None


class ValueInfo(msgspec.Struct, frozen=True):
    """An input or output of the graph; a dimension is a number, a symbol, or None where it is not given."""

    name: str
    type: int
    dims: Dims

    def __str__(self) -> str:
        """`float32 [N, 2, 3]`, as messages show it."""
        kind = TYPE_NAMES.get(self.type, f"type {self.type}")
        if self.dims is None:
            return f"{kind} of unknown shape"
        return f"{kind} [{', '.join('?' if dim is None else str(dim) for dim in self.dims)}]"


class OnnxFacts(msgspec.Struct):
    """The facts of a file. `operators` counts nodes by (domain, op_type), subgraphs included."""

    ir_version: int = 0
    opsets: dict[str, int] = msgspec.field(default_factory=dict)
    metadata: dict[str, bytes] = msgspec.field(default_factory=dict)
    inputs: tuple[ValueInfo, ...] = ()
    outputs: tuple[ValueInfo, ...] = ()
    operators: dict[tuple[str, str], int] = msgspec.field(default_factory=dict)
    nodes: int = 0
    tensors: int = 0
    tensor_bytes: int = 0
    depth: int = 0
    int8: Int8 = "none"


def read_onnx(data: bytes, place: str, limits: Limits = DEFAULT_LIMITS) -> OnnxFacts:
    """Read the facts of an ONNX file from its bytes.

    Args:
        data: the whole file.
        place: its name, for messages.
        limits: of its counts and sizes.

    Raises:
        BundleError: it is no ONNX file, is truncated, damaged or over a limit, or has an unsupported part: external
            data, local functions, sparse tensors, training graphs.
    """
    if not data:
        raise BundleError(f"{place}: expected an ONNX file, found an empty one: copy it again")
    if data[0] != _MODEL_IR << 3:  # every writer puts ir_version first
        raise BundleError(f"{place}: expected an ONNX file, found {_describe(data)}")
    return _Reader(data, place, limits).model()


def _describe(data: bytes) -> str:
    if data[4:8] == b"TFL3":
        return "a TFLite file: convert it with edge-convert build"
    for magic, words in _FOREIGN:
        if data.startswith(magic):
            return words
    return f"a file that begins with {data[:8].hex(' ')}: name a bundle that edge-convert build wrote"


class _Reader:
    """One pass over the bytes of one file."""

    def __init__(self, data: bytes, place: str, limits: Limits) -> None:
        self._data = data
        self._place = place
        self._limits = limits
        self._fields = 0
        self._facts = OnnxFacts()
        self._graphs: list[tuple[int, int, int]] = []  # start, end, depth of those still to be read

    # -- messages, from the outside in ----------------------------------------------------------------------------

    def model(self) -> OnnxFacts:
        """ModelProto: ir_version 1, graph 7, opset_import 8, metadata_props 14, training_info 20, functions 25."""
        facts, main = self._facts, None
        for number, wire, start, end in self._walk(0, len(self._data), _WHOLE, {_MODEL_IR, _MODEL_GRAPH}):
            match number:
                case 1:
                    facts.ir_version = self._number(wire, start, "ir_version")
                case 7:
                    main = self._span(wire, start, end, "graph")
                case 8:
                    self._opset(*self._span(wire, start, end, "opset_import"))
                case 14:
                    self._metadata(*self._span(wire, start, end, "metadata_props"))
                case 20:
                    raise self._refuse("no training graph", "one", "convert the model again for inference")
                case 25:
                    raise self._refuse("no local functions", "one", "convert it again with functions inlined")
                case _:
                    pass
        if main is None:
            raise self._damaged("it holds no graph")
        self._graphs.append((*main, 0))
        while self._graphs:
            self._graph(*self._graphs.pop())
        operators = {operator for _, operator in facts.operators}
        if has_int8(operators):
            from edge_runtime.bundle.int8 import int8_of  # noqa: PLC0415 - only where a model computes in int8

            facts.int8 = int8_of(self._data, operators)
        return facts

    def _opset(self, start: int, end: int) -> None:
        """OperatorSetIdProto: domain 1, version 2."""
        domain, version = "", 0
        for number, wire, low, high in self._walk(start, end, "an opset_import", {1, 2}):
            if number == 1:
                domain = self._text(wire, low, high, "the domain of an opset_import")
            elif number == 2:
                version = self._number(wire, low, "the version of an opset_import")
        domain = "" if domain == "ai.onnx" else domain
        if domain in self._facts.opsets:
            raise self._damaged(f"it imports the operators of {domain or 'ai.onnx'} twice")
        self._facts.opsets[domain] = version

    def _metadata(self, start: int, end: int) -> None:
        """StringStringEntryProto: key 1, value 2."""
        key, value = "", b""
        for number, wire, low, high in self._walk(start, end, "a metadata entry", {1, 2}):
            if number == 1:
                key = self._text(wire, low, high, "the key of a metadata entry")
            elif number == 2:
                first, last = self._span(wire, low, high, "the value of a metadata entry")
                if last - first > self._limits.max_manifest_bytes:
                    limit = f"a metadata entry of at most {self._limits.max_manifest_bytes} bytes"
                    raise self._refuse(limit, str(last - first), "convert with fewer golden rows")
                value = self._data[first:last]
        if key in self._facts.metadata:
            raise self._damaged(f"its metadata holds {key!r} twice")
        self._facts.metadata[key] = value

    def _graph(self, start: int, end: int, depth: int) -> None:
        """GraphProto: node 1, initializer 5, input 11, output 12, sparse_initializer 15."""
        facts = self._facts
        facts.depth = max(facts.depth, depth)
        if depth > self._limits.max_depth:
            raise self._refuse(f"at most {self._limits.max_depth} nested subgraphs", f"{depth} or more", "simplify it")
        inputs: list[ValueInfo] = []
        outputs: list[ValueInfo] = []
        constants: set[str] = set()
        for number, wire, low, high in self._walk(start, end, "a graph", set()):
            match number:
                case 1:
                    self._node(*self._span(wire, low, high, "a node"), depth)
                case 5:
                    constants.add(self._tensor(*self._span(wire, low, high, "an initializer")))
                case 11 if depth == 0:
                    inputs.append(self._value_info(*self._span(wire, low, high, "an input")))
                case 12 if depth == 0:
                    outputs.append(self._value_info(*self._span(wire, low, high, "an output")))
                case 15:
                    raise self._refuse("no sparse initializers", "one", "convert it again with dense ones")
                case _:
                    pass
        if depth == 0:
            # Up to IR version 3 initializers are listed as inputs too.
            facts.inputs = tuple(value for value in inputs if value.name not in constants)
            facts.outputs = tuple(outputs)

    def _node(self, start: int, end: int, depth: int) -> None:
        """NodeProto: op_type 4, attribute 5, domain 7."""
        facts = self._facts
        facts.nodes += 1
        if facts.nodes > self._limits.max_nodes:
            raise self._refuse(f"at most {self._limits.max_nodes} nodes", "more", "simplify the model")
        op_type = domain = ""
        for number, wire, low, high in self._walk(start, end, "a node", {_NODE_OP, _NODE_DOMAIN}):
            match number:
                case 4:
                    op_type = self._text(wire, low, high, "the operator of a node")
                case 5:
                    self._attribute(*self._span(wire, low, high, "an attribute"), depth)
                case 7:
                    domain = self._text(wire, low, high, "the domain of a node")
                case _:
                    pass
        if not op_type:
            raise self._damaged("it has a node without an operator")
        key = ("" if domain == "ai.onnx" else domain, op_type)
        facts.operators[key] = facts.operators.get(key, 0) + 1

    def _attribute(self, start: int, end: int, depth: int) -> None:
        """AttributeProto: t 5, g 6, tensors 10, graphs 11, ref_attr_name 21, sparse_tensor 22, sparse_tensors 23."""
        for number, wire, low, high in self._walk(start, end, "an attribute", {_ATTRIBUTE_T, _ATTRIBUTE_G}, runs=True):
            if number in (_ATTRIBUTE_T, _ATTRIBUTE_TENSORS):
                self._tensor(*self._span(wire, low, high, "a tensor attribute"))
            elif number in (_ATTRIBUTE_G, _ATTRIBUTE_GRAPHS):
                self._graphs.append((*self._span(wire, low, high, "a subgraph"), depth + 1))
            elif number in _ATTRIBUTE_SPARSE:
                raise self._refuse("no sparse tensors", "one", "convert it again with dense ones")
            elif number == _ATTRIBUTE_REF:
                raise self._damaged("an attribute refers to a function, and there is none")

    def _tensor(self, start: int, end: int) -> str:
        """Check one TensorProto and return its name: the values that it declares must all be here.

        dims 1, data_type 2, segment 3, the typed values 4 to 7, 10 and 11, name 8, raw_data 9, external_data 13,
        data_location 14.
        """
        facts = self._facts
        facts.tensors += 1
        if facts.tensors > self._limits.max_tensors:
            raise self._refuse(f"at most {self._limits.max_tensors} tensors", "more", "simplify the model")
        name, kind, raw, dims = "", 0, None, list[int]()
        counts = dict.fromkeys((_TENSOR_FLOATS, _TENSOR_INT32S, _TENSOR_INT64S, _TENSOR_DOUBLES, _TENSOR_UINT64S), 0)
        strings = 0
        single = {_TENSOR_TYPE, _TENSOR_NAME, _TENSOR_RAW, _TENSOR_LOCATION}
        for number, wire, low, high in self._walk(start, end, "a tensor", single):
            match number:
                case 1:
                    dims += self._varints(wire, low, high, self._limits.max_rank)
                case 2:
                    kind = self._number(wire, low, "the type of a tensor")
                case 3:
                    raise self._refuse("no segmented tensors", "one", "convert it again")
                case 4 | 5 | 7 | 10 | 11:
                    counts[number] += self._count(number, wire, low, high)
                case 6:
                    strings += 1
                case 8:
                    name = self._text(wire, low, high, "the name of a tensor")
                case 9:
                    first, last = self._span(wire, low, high, "raw_data")
                    raw = last - first
                case 13:
                    raise self._external(name)
                case 14 if self._number(wire, low, "data_location") == _LOCATION_EXTERNAL:
                    raise self._external(name)
                case _:
                    pass
        self._check_values(name, kind, dims, raw, counts={**counts, _TENSOR_STRINGS: strings})
        return name

    def _check_values(self, name: str, kind: int, dims: list[int], raw: int | None, *, counts: dict[int, int]) -> None:
        if len(dims) > self._limits.max_rank:
            raise self._refuse(f"tensors of at most {self._limits.max_rank} axes", str(len(dims)), "simplify the model")
        elements = 1
        for dim in dims:
            if not 0 <= dim <= _MAX_DIM:
                raise self._damaged(f"tensor {name!r} has an axis of {dim}")
            elements *= dim
        place, expected = _where_values_stand(kind, elements)
        if place is None:
            raise self._damaged(f"tensor {name!r} has the unknown type {kind}")
        if raw is not None and kind != _STRING:
            place, expected = _TENSOR_RAW, (elements * _BITS[kind] + 7) // 8
        found = {**counts, _TENSOR_RAW: raw or 0}
        if found[place] != expected:
            raise self._damaged(
                f"tensor {name!r} of shape {dims} should hold {expected} values or bytes, has {found[place]}"
            )
        if any(count for other, count in found.items() if other != place):
            raise self._damaged(f"tensor {name!r} holds its values in two places")
        self._facts.tensor_bytes += (elements * _BITS.get(kind, 0) + 7) // 8

    def _value_info(self, start: int, end: int) -> ValueInfo:
        """ValueInfoProto: name 1, type 2."""
        name, kind, dims = "", 0, None
        for number, wire, low, high in self._walk(start, end, "an input or output", {1, 2}):
            if number == 1:
                name = self._text(wire, low, high, "the name of an input or output")
            elif number == 2:
                kind, dims = self._type(*self._span(wire, low, high, "the type of an input or output"))
        return ValueInfo(name, kind, dims)

    def _type(self, start: int, end: int) -> tuple[int, Dims]:
        """TypeProto: tensor_type 1, sequence_type 4, map_type 5, opaque_type 7, sparse_tensor_type 8, optional 9."""
        kind, dims = 0, None
        for number, wire, low, high in self._walk(start, end, "a type", {1}):
            if number == 1:
                kind, dims = self._tensor_type(*self._span(wire, low, high, "a tensor type"))
            elif number in (4, 5, 7, 8, 9):
                raise self._refuse("inputs and outputs to be tensors", "another type", "convert it again")
        return kind, dims

    def _tensor_type(self, start: int, end: int) -> tuple[int, Dims]:
        """TypeProto.Tensor: elem_type 1, shape 2."""
        kind, dims = 0, None
        for number, wire, low, high in self._walk(start, end, "a tensor type", {1, 2}):
            if number == 1:
                kind = self._number(wire, low, "an element type")
            elif number == 2:
                dims = self._shape(*self._span(wire, low, high, "a shape"))
        return kind, dims

    def _shape(self, start: int, end: int) -> tuple[int | str | None, ...]:
        """TensorShapeProto: dim 1; Dimension: dim_value 1, dim_param 2."""
        dims: list[int | str | None] = []
        for number, wire, low, high in self._walk(start, end, "a shape", set()):
            if number != 1:
                continue
            dim: int | str | None = None
            first, last = self._span(wire, low, high, "a dimension")
            for which, inner, begin, stop in self._walk(first, last, "a dimension", {1, 2}):
                if which == 1:
                    dim = self._number(inner, begin, "a dimension")
                elif which == 2:
                    dim = self._text(inner, begin, stop, "a dimension") or None
            dims.append(dim)
            if len(dims) > self._limits.max_rank:
                raise self._refuse(f"at most {self._limits.max_rank} axes", "more", "convert it again")
        return tuple(dims)

    # -- the wire --------------------------------------------------------------------------------------------------

    def _walk(
        self, start: int, end: int, what: str, single: set[int], *, runs: bool = False
    ) -> Iterator[tuple[int, int, int, int]]:
        """The fields of one message: number, wire type, and the value (varint) or the span of the bytes."""
        data, position, seen = self._data, start, 0
        while position < end:
            if runs and (run := _RUN.match(data, position, end)):
                position = run.end()
                continue
            self._fields += 1
            if self._fields > self._limits.max_fields:
                raise self._refuse(f"at most {self._limits.max_fields} fields", "more", "simplify the model")
            tag, position = self._varint(position, end, what)
            number, wire = tag >> 3, tag & 7
            if not 0 < number < 2**29:
                raise self._damaged(f"{what} has a field of number {number}")
            if number in single:
                if seen >> number & 1:
                    raise self._damaged(f"{what} has field {number} twice")
                seen |= 1 << number
            if wire == _VARINT:
                value, position = self._varint(position, end, what)
                yield number, wire, value, _REPEATED
                continue
            if wire == _BYTES:
                size, position = self._varint(position, end, what)
            elif wire in (_FIXED32, _FIXED64):
                size = 4 if wire == _FIXED32 else 8
            else:
                raise self._damaged(f"{what} has a field of wire type {wire}")
            if size > end - position:
                raise self._short(position + size, end, what)
            yield number, wire, position, position + size
            position += size

    def _varint(self, position: int, end: int, what: str) -> tuple[int, int]:
        value = shift = 0
        data = self._data
        while position < end:
            byte = data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, position
            shift += 7
            if shift > 63:
                raise self._damaged(f"{what} has a number of more than 64 bits")
        raise self._short(position + 1, end, what)

    def _varints(self, wire: int, start: int, end: int, limit: int) -> list[int]:
        """A repeated int64, packed or not, of at most `limit` entries and one more, so that the caller sees excess."""
        if wire == _VARINT:
            return [_signed(start)]
        values: list[int] = []
        start, end = self._span(wire, start, end, "dims")
        while start < end and len(values) <= limit:
            value, start = self._varint(start, end, "dims")
            values.append(_signed(value))
        return values

    def _count(self, number: int, wire: int, start: int, end: int) -> int:
        """How many entries one field of a repeated number holds."""
        if wire != _BYTES:
            return 1
        size = {_TENSOR_FLOATS: 4, _TENSOR_DOUBLES: 8}.get(number)
        if size is None:  # packed varints end with a byte below 0x80
            return len(self._data[start:end].translate(None, _CONTINUED))
        if (end - start) % size:
            raise self._damaged("a tensor holds a broken number")
        return (end - start) // size

    def _number(self, wire: int, value: int, what: str) -> int:
        if wire != _VARINT:
            raise self._damaged(f"{what} is no number")
        return _signed(value)

    def _span(self, wire: int, start: int, end: int, what: str) -> tuple[int, int]:
        if wire != _BYTES:
            raise self._damaged(f"{what} has wire type {wire}")
        return start, end

    def _text(self, wire: int, start: int, end: int, what: str) -> str:
        start, end = self._span(wire, start, end, what)
        if end - start > 4096:
            raise self._refuse(f"{what} of at most 4096 bytes", str(end - start), "shorten it")
        try:
            return self._data[start:end].decode()
        except UnicodeDecodeError as error:
            raise self._damaged(f"{what} is not UTF-8") from error

    # -- refusals --------------------------------------------------------------------------------------------------

    def _short(self, needed: int, end: int, what: str) -> BundleError:
        if what == _WHOLE:
            return BundleError(
                f"{self._place}: truncated: {what} needs {needed} bytes or more, found {end}: copy the file again"
            )
        return self._damaged(f"{what} is shorter than it says")

    def _damaged(self, what: str) -> BundleError:
        return BundleError(
            f"{self._place}: expected a sound ONNX file, found a damaged one: {what}: copy it again or convert it again"
        )

    def _refuse(self, expected: str, found: str, remedy: str) -> BundleError:
        return BundleError(f"{self._place}: expected {expected}, found {found}: {remedy}")

    def _external(self, name: str) -> BundleError:
        return self._refuse(
            "every tensor inside the file", f"external data ({name or 'unnamed'})", "save the model as one file"
        )


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _where_values_stand(kind: int, elements: int) -> tuple[int | None, int]:
    """The typed field of a tensor type, and how many entries of it make `elements`."""
    if kind in _FLOAT_FIELD:
        return _TENSOR_FLOATS, elements * _FLOAT_FIELD[kind]
    if kind in _DOUBLE_FIELD:
        return _TENSOR_DOUBLES, elements * _DOUBLE_FIELD[kind]
    if kind in _INT32_FIELD:
        return _TENSOR_INT32S, elements if _BITS[kind] >= 8 else (elements * _BITS[kind] + 7) // 8
    if kind == INT64:
        return _TENSOR_INT64S, elements
    if kind in _UINT64_FIELD:
        return _TENSOR_UINT64S, elements
    return (_TENSOR_STRINGS, elements) if kind == _STRING else (None, 0)
