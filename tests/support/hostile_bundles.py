"""Files that must never be taken for a bundle, by name: each says what is wrong and what a refusal must mention.

Every case starts from a valid bundle and spoils one thing, with the `onnx` package where that can express it and with
raw protobuf bytes where it cannot. `CASES` maps a name to a `Case`; the bytes are built when asked for.

Longer than 500 lines, on purpose: one file a case, and the cases are read side by side.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.support import builders


@dataclass(frozen=True)
class Case:
    """One hostile file: how it is built, and words that the refusal must hold."""

    build: Callable[[], bytes]
    words: str


CASES: dict[str, Case] = {}


def varint(value: int) -> bytes:
    """A protobuf varint; negative numbers as 64-bit two's complement."""
    value &= 2**64 - 1
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def message(number: int, *parts: bytes) -> bytes:
    """A length-delimited field."""
    body = b"".join(parts)
    return varint(number << 3 | 2) + varint(len(body)) + body


def number_field(number: int, value: int) -> bytes:
    """A varint field."""
    return varint(number << 3) + varint(value)


def _add(name: str, words: str, build: Callable[[], bytes]) -> None:
    assert name not in CASES, name
    CASES[name] = Case(build, words)


def _raw(name: str, data: bytes, words: str) -> None:
    _add(name, words, lambda: data)


def _appended(name: str, tail: bytes, words: str) -> None:
    """A field after the end of a valid bundle, where protobuf reads on."""
    _add(name, words, lambda: builders.classification().to_bytes() + tail)


def _model(
    name: str,
    words: str,
    spoil: Callable[[Any], Any],
    make: Callable[[], builders.Draft] = builders.classification,
) -> None:
    """A change of the ONNX model."""

    def build() -> bytes:
        draft = make()
        spoil(draft.model)
        return draft.to_bytes()

    _add(name, words, build)


def _manifest(
    name: str,
    words: str,
    spoil: Callable[[dict[str, Any]], Any],
    make: Callable[[], builders.Draft] = builders.classification,
) -> None:
    """A change of the manifest."""

    def build() -> bytes:
        draft = make()
        spoil(draft.manifest)
        return draft.to_bytes()

    _add(name, words, build)


def _text(name: str, text: bytes, words: str) -> None:
    """Something else in place of the manifest's JSON, written by hand since it need not be UTF-8."""

    def build() -> bytes:
        model = bytes(builders.classification().model.SerializeToString())
        return model + message(14, message(1, b"edge.manifest"), message(2, text))

    _add(name, words, build)


def _node(name: str, op_type: str, domain: str, words: str) -> None:
    def spoil(model: Any) -> None:
        model.graph.node[0].op_type = op_type
        model.graph.node[0].domain = domain
        if domain:
            model.opset_import.append(helper.make_opsetid(domain, 1))

    _model(name, words, spoil)


def _tensor(name: str, words: str, *parts: bytes) -> None:
    """One more initializer, in raw form, in a graph that is otherwise sound."""

    def build() -> bytes:
        data = builders.classification().model
        graph = bytes(data.graph.SerializeToString()) + message(5, *parts)
        rest = onnx.ModelProto()
        rest.CopyFrom(data)
        rest.ClearField("graph")
        return bytes(rest.SerializeToString()) + message(7, graph)

    _add(name, words, build)


def _raw_graph(name: str, words: str, tail: Callable[[], bytes]) -> None:
    """Raw fields at the end of the main graph."""

    def build() -> bytes:
        data = builders.classification().model
        graph = bytes(data.graph.SerializeToString()) + tail()
        data.ClearField("graph")
        return bytes(data.SerializeToString()) + message(7, graph)

    _add(name, words, build)


# -- no ONNX at all --------------------------------------------------------------------------------------------------

for _name, _bytes, _words in (
    ("empty file", b"", "empty"),
    ("one byte", b"\x08", "truncated"),
    ("text", b"hello", "expected an ONNX file"),
    ("json", b'{"a": 1}', "JSON text"),
    ("zip", b"PK\x03\x04" + bytes(60), "a zip archive"),
    ("gzip", b"\x1f\x8b" + bytes(60), "a gzip archive"),
    ("pickle", b"\x80\x04\x95" + bytes(60), "a pickle or joblib file"),
    ("hdf5", b"\x89HDF\r\n\x1a\n" + bytes(60), "an HDF5 file"),
    ("tflite", b"\x1c\0\0\0TFL3" + bytes(60), "a TFLite file"),
    ("git lfs pointer", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ("signature in place of the bundle", b"-----BEGIN SSH SIGNATURE-----\n", "not the .sig"),
    ("zeros", bytes(4096), "expected an ONNX file"),
    ("elf", b"\x7fELF" + bytes(60), "expected an ONNX file"),
    ("png", b"\x89PNG\r\n\x1a\n" + bytes(60), "expected an ONNX file"),
    ("noise", np.random.default_rng(1).bytes(4096), "expected an ONNX file"),
    ("noise behind the first tag", b"\x08\x08" + np.random.default_rng(2).bytes(4096), "model"),
    ("only the first field", b"\x08\x08", "no graph"),
):
    _raw(_name, _bytes, _words)

for _share in (1, 5, 10, 25, 50, 75, 95):
    _add(
        f"truncated at {_share} percent",
        "truncated",
        lambda share=_share: (data := builders.classification().to_bytes())[: len(data) * share // 100],  # type: ignore[misc]
    )

# -- the wire ----------------------------------------------------------------------------------------------------------

for _name, _bytes, _words in (
    ("trailing 0xff", b"\xff" * 16, "more than 64 bits"),
    ("trailing zeros", bytes(16), "field of number 0"),
    ("field number too large", varint(2**29 << 3) + b"\0", "field of number"),
    ("group", varint(50 << 3 | 3) + varint(50 << 3 | 4), "wire type 3"),
    ("wire type 6", varint(50 << 3 | 6), "wire type 6"),
    ("wire type 7", varint(50 << 3 | 7), "wire type 7"),
    ("endless number", varint(50 << 3) + b"\x80" * 11, "more than 64 bits"),
    ("length of 2 GB", varint(50 << 3 | 2) + varint(2**31), "truncated"),
    ("length of 2**63", varint(50 << 3 | 2) + varint(2**63), "truncated"),
    ("length of minus one", varint(50 << 3 | 2) + varint(-1), "truncated"),
    ("half a fixed number", varint(50 << 3 | 1) + b"\0\0\0", "truncated"),
    ("graph given twice", message(7, b""), "field 7 twice"),
    ("ir version given twice", number_field(1, 9), "field 1 twice"),
    ("graph that is a number", number_field(7, 1), "twice"),
    ("opset that is a number", number_field(8, 1), "wire type 0"),
    ("metadata that is a number", number_field(14, 1), "wire type 0"),
    ("second manifest", message(14, message(1, b"edge.manifest"), message(2, b"{}")), "twice"),
    ("metadata key that is no text", message(14, message(1, b"\xff\xfe")), "not UTF-8"),
    ("metadata key of 10 kB", message(14, message(1, b"k" * 10_000)), "at most 4096 bytes"),
    ("training graph", message(20, message(1, b"")), "no training graph"),
    ("local function", message(25, message(1, b"f"), message(10, b"local")), "no local functions"),
    ("function in place of Relu", message(25, message(1, b"Relu"), message(10, b"")), "no local functions"),
    (
        "chain of 101 functions",
        b"".join(message(25, message(1, b"f%d" % i), message(7, message(4, b"f%d" % (i + 1)))) for i in range(101)),
        "no local functions",
    ),
    ("function that calls itself", message(25, message(1, b"f"), message(7, message(4, b"f"))), "no local functions"),
):
    _appended(_name, _bytes, _words)

# -- versions ----------------------------------------------------------------------------------------------------------


def _ir_version(version: int) -> Callable[[Any], None]:
    return lambda model: setattr(model, "ir_version", version)


def _opset(version: int) -> Callable[[Any], None]:
    return lambda model: setattr(model.opset_import[0], "version", version)


def _ml_opset(version: int) -> Callable[[Any], None]:
    return lambda model: model.opset_import.append(helper.make_opsetid("ai.onnx.ml", version))


for _version in (0, 1, 2, 15, 999, -1, 2**62):
    _model(f"ir version {_version}", "IR version", _ir_version(_version))
for _version in (0, 1, 6, 29, 999, -1, 2**62):
    _model(f"opset {_version}", "expected opset", _opset(_version))
for _version in (0, 6, 99):
    _model(f"ml opset {_version}", "of ai.onnx.ml", _ml_opset(_version))
_model("no opset", "found none", lambda model: model.ClearField("opset_import"))
_model("opset given twice", "twice", lambda model: model.opset_import.append(helper.make_opsetid("", 17)))
_model("opset under both names", "twice", lambda model: model.opset_import.append(helper.make_opsetid("ai.onnx", 17)))

# -- operators ---------------------------------------------------------------------------------------------------------

for _name, _op, _domain in (
    ("unknown operator", "Frobnicate", ""),
    ("operator in lower case", "flatten", ""),
    ("operator with a space", "Flatten ", ""),
    ("operator with a null byte", "Flatten\0", ""),
    ("operator with a lookalike letter", "Flаtten", ""),  # noqa: RUF001 - a Cyrillic letter on purpose
    ("operator with a line break", "Flat\nten", ""),
    ("random numbers", "RandomNormalLike", ""),
    ("dice", "Multinomial", ""),
    ("picture decoder", "ImageDecoder", ""),
    ("text operator", "StringNormalizer", ""),
    ("regular expression", "RegexFullMatch", ""),
    ("training loss", "SoftmaxCrossEntropyLoss", ""),
    ("unknown domain", "Anything", "com.example"),
    ("standard name in a foreign domain", "Flatten", "com.example"),
    ("domain with a dot before it", "Flatten", ".ai.onnx"),
    ("domain in capitals", "Flatten", "AI.ONNX"),
    ("fused operator", "FusedConv", "com.microsoft"),
    ("onnxruntime's Python operator", "PyOp", "pyopmulti"),
    ("operator of extensions", "GPT2Tokenizer", "ai.onnx.contrib"),
    ("optimizer step", "Adam", "ai.onnx.preview.training"),
    ("aten fallback", "ATen", "org.pytorch.aten"),
    ("zip map", "ZipMap", "ai.onnx.ml"),
    ("unknown ml operator", "NeuralNetwork", "ai.onnx.ml"),
):
    _node(_name, _op, _domain, "only operators that bundles may use")


def _wrap(inner: Any, levels: int) -> Any:
    """Node `inner` inside `levels` nested If branches."""
    for _ in range(levels):
        branch = helper.make_graph([inner], "branch", [], [helper.make_tensor_value_info("x", TensorProto.FLOAT, [])])
        inner = helper.make_node("If", ["c"], ["x"], then_branch=branch, else_branch=branch)
    return inner


def _deep(levels: int) -> bytes:
    """The raw bytes of `levels` subgraphs in one another; the `onnx` package itself stops at a hundred."""
    node = message(4, b"Relu")
    for _ in range(levels):
        node = message(4, b"If") + message(5, message(6, message(1, node)))
    return message(1, node)


_hidden = helper.make_node("Evil", [], ["x"], domain="com.example")


def _hide(levels: int) -> Callable[[Any], None]:
    return lambda model: model.graph.node.append(_wrap(_hidden, levels))


for _levels in (1, 3):
    _model(f"foreign operator {_levels} subgraphs deep", "com.example.Evil", _hide(_levels))
_model(
    "foreign operator in a list of graphs",
    "com.example.Evil",
    lambda model: model.graph.node[0].attribute.append(
        helper.make_attribute("graphs", [helper.make_graph([_hidden], "g", [], [])])
    ),
)
for _levels in (9, 33, 101, 1000):
    _raw_graph(f"subgraphs {_levels} deep", "nested subgraphs", lambda n=_levels: _deep(n))  # type: ignore[misc]
_model("no nodes", "without nodes", lambda model: model.graph.ClearField("node"))
_model("node without operator", "without an operator", lambda model: model.graph.node[0].ClearField("op_type"))
_model(
    "domain without opset",
    "none for ai.onnx.ml",
    lambda model: model.graph.node.append(helper.make_node("Scaler", ["window"], ["s"], domain="ai.onnx.ml")),
)
_raw_graph("operator given twice", "twice", lambda: message(1, message(4, b"Relu"), message(4, b"Evil")))
_raw_graph("domain given twice", "twice", lambda: message(1, message(4, b"Relu"), message(7, b""), message(7, b"x")))
_raw_graph("operator that is a number", "wire type 0", lambda: message(1, number_field(4, 1)))
_raw_graph("operator that is no text", "not UTF-8", lambda: message(1, message(4, b"\xc3\x28")))
_raw_graph("operator name of 1 MB", "at most 4096 bytes", lambda: message(1, message(4, b"R" * 2**20)))
_raw_graph("node longer than its graph", "shorter than it says", lambda: varint(1 << 3 | 2) + varint(10**6))
_raw_graph("a million nodes", "nodes", lambda: message(1, message(4, b"Relu")) * 1_000_000)
_raw_graph(
    "a million attributes", "field", lambda: message(1, message(4, b"Relu"), message(5, message(1, b"a")) * 1_000_000)
)
_raw_graph(
    "two million outputs of a node", "fields", lambda: message(1, message(4, b"Relu"), message(2, b"") * 2_000_001)
)
_raw_graph(
    "two hundred thousand tensors", "tensors", lambda: message(5, number_field(2, 1), number_field(1, 0)) * 200_000
)
_raw_graph("sparse initializer", "no sparse", lambda: message(15, b""))
_raw_graph("sparse attribute", "no sparse", lambda: message(1, message(4, b"Relu"), message(5, message(22, b""))))
_raw_graph(
    "list of sparse attributes", "no sparse", lambda: message(1, message(4, b"Relu"), message(5, message(23, b"")))
)
_raw_graph(
    "attribute of a function", "function", lambda: message(1, message(4, b"Relu"), message(5, message(21, b"alpha")))
)
_raw_graph(
    "subgraph given twice", "twice", lambda: message(1, message(4, b"If"), message(5, message(6, b""), message(6, b"")))
)

# -- tensors -----------------------------------------------------------------------------------------------------------

_F32 = number_field(2, 1)


def _entries(**pairs: str) -> bytes:
    return b"".join(message(13, message(1, key.encode()), message(2, value.encode())) for key, value in pairs.items())


for _name, _location in (
    ("relative", "weights.bin"),
    ("absolute", "/etc/passwd"),
    ("with dots", "../../etc/passwd"),
    ("by url", "https://example.com/weights"),
    ("empty", ""),
):
    _tensor(
        f"external data, {_name}",
        "external data",
        number_field(1, 4), _F32, message(8, b"w"), _entries(location=_location), number_field(14, 1),
    )  # fmt: skip
_tensor("external data with a giant offset", "external data", _entries(location="w", offset=str(2**63), length="-1"))
_tensor("external data with a strange key", "external data", _entries(__class__="x"))
_tensor("external data without entries", "external data", number_field(1, 4), _F32, number_field(14, 1))
_tensor(
    "external data beside real data", "external data", number_field(1, 1), _F32, message(9, bytes(4)), _entries(a="b")
)
_raw_graph(
    "external data in an attribute",
    "external data",
    lambda: message(1, message(4, b"Constant"), message(5, message(5, _F32, number_field(14, 1)))),
)
_raw_graph(
    "external data in a subgraph",
    "external data",
    lambda: message(1, message(4, b"If"), message(5, message(6, message(5, _F32, number_field(14, 1))))),
)
for _name, _words, _parts in (
    ("negative axis", "axis of -1", (number_field(1, -1), _F32)),
    ("axis of 2**62 and one of zero", "axis of", (number_field(1, 2**62), number_field(1, 0), _F32)),
    ("overflowing product", "should hold", (number_field(1, 2**31 - 1) * 4, _F32, message(9, bytes(4)))),
    ("product that overflows to four", "should hold", (number_field(1, 2**30) * 4 + number_field(1, 4), _F32)),
    ("more elements than bytes", "should hold", (number_field(1, 1_000_000), _F32, message(9, bytes(4)))),
    ("fewer elements than bytes", "should hold", (number_field(1, 1), _F32, message(9, bytes(400)))),
    ("elements without bytes", "should hold", (number_field(1, 4), _F32)),
    ("scalar without bytes", "should hold", (_F32,)),
    ("broken last element", "should hold", (number_field(1, 2), _F32, message(9, bytes(7)))),
    ("typed values too few", "should hold", (number_field(1, 4), _F32, message(4, struct.pack("<3f", 1, 2, 3)))),
    ("typed values of another type", "should hold", (number_field(1, 1), _F32, message(7, b"\x01"))),
    ("typed values broken", "broken number", (number_field(1, 1), _F32, message(4, bytes(5)))),
    ("values in two places", "two places", (number_field(1, 1), _F32, message(9, bytes(4)), message(4, bytes(4)))),
    ("raw data given twice", "twice", (number_field(1, 1), _F32, message(9, bytes(4)), message(9, bytes(4)))),
    ("type given twice", "twice", (number_field(1, 0), _F32, number_field(2, 7))),
    ("no type", "unknown type 0", (number_field(1, 0),)),
    ("type 99", "unknown type 99", (number_field(1, 0), number_field(2, 99))),
    ("negative type", "unknown type", (number_field(1, 0), number_field(2, -1))),
    ("strings too few", "should hold", (number_field(1, 3), number_field(2, 8), message(6, b"a"))),
    ("strings in raw data", "should hold", (number_field(1, 1), number_field(2, 8), message(9, b"abcd"))),
    ("packed four-bit values too few", "should hold", (number_field(1, 9), number_field(2, 22), message(9, bytes(4)))),
    ("segments", "segmented", (number_field(1, 0), _F32, message(3, b""))),
    ("seventeen axes", "axes", (number_field(1, 1) * 17, _F32, message(9, bytes(4)))),
    ("ten thousand axes", "axes", (message(1, b"\x01" * 10_000), _F32, message(9, bytes(4)))),
    ("name that is no text", "not UTF-8", (number_field(1, 0), _F32, message(8, b"\xff"))),
    ("axes that are text", "should hold", (message(1, b"\x05"), _F32)),
):
    _tensor(f"tensor: {_name}", _words, *_parts)

# -- the normal form ---------------------------------------------------------------------------------------------------

FLOAT = TensorProto.FLOAT


def _set_input(name: str, kind: int, shape: Any) -> Callable[[Any], None]:
    def spoil(model: Any) -> None:
        model.graph.input[0].CopyFrom(helper.make_tensor_value_info(name, kind, shape))

    return spoil


def _set_output(index: int, name: str, kind: int, shape: Any) -> Callable[[Any], None]:
    def spoil(model: Any) -> None:
        model.graph.output[index].CopyFrom(helper.make_tensor_value_info(name, kind, shape))

    return spoil


_model("input of another name", "expected the inputs window", _set_input("input", FLOAT, ["N", 1, 2]))
_model("input of doubles", "expected input window", _set_input("window", TensorProto.DOUBLE, ["N", 1, 2]))
_model("input of int8", "expected input window", _set_input("window", TensorProto.INT8, ["N", 1, 2]))
_model("input of text", "expected input window", _set_input("window", TensorProto.STRING, ["N", 1, 2]))
_model("input without time axis", "expected input window", _set_input("window", FLOAT, ["N", 2]))
_model("input of another length", "expected input window", _set_input("window", FLOAT, ["N", 3, 2]))
_model("input of other channels", "expected input window", _set_input("window", FLOAT, ["N", 1, 5]))
_model("input with a symbolic axis", "expected input window", _set_input("window", FLOAT, ["N", "T", 2]))
_model("input with a negative axis", "expected input window", _set_input("window", FLOAT, ["N", -1, 2]))
_model("input without shape", "expected input window", _set_input("window", FLOAT, None))
_model("input with a fixed batch", "expected input window", _set_input("window", FLOAT, [1, 1, 2]))
_model("input without type", "expected input window", lambda model: model.graph.input[0].ClearField("type"))
_model("no input", "found none", lambda model: model.graph.ClearField("input"))
_model(
    "second input",
    "expected the inputs window",
    lambda model: model.graph.input.append(helper.make_tensor_value_info("more", FLOAT, ["N"])),
)
_model("input given twice", "different names", lambda model: model.graph.input.append(model.graph.input[0]))
_model(
    "input that is a constant",
    "expected the inputs window",
    lambda model: model.graph.initializer.append(numpy_helper.from_array(np.zeros((1, 1, 2), np.float32), "window")),
)
_model(
    "input that is a sequence",
    "to be tensors",
    lambda model: model.graph.input[0].CopyFrom(helper.make_tensor_sequence_value_info("window", FLOAT, ["N", 1, 2])),
)
_model("no output", "found none", lambda model: model.graph.ClearField("output"))
_model("output missing", "expected the outputs label, scores", lambda model: model.graph.output.pop())
_model("output of another name", "expected the outputs", _set_output(1, "probabilities", FLOAT, ["N", 2]))
_model("label of floats", "expected output label", _set_output(0, "label", FLOAT, ["N"]))
_model("label with an axis too many", "expected output label", _set_output(0, "label", TensorProto.INT64, ["N", 1]))
_model("scores of other classes", "expected output scores", _set_output(1, "scores", FLOAT, ["N", 3]))
_model("scores of half precision", "expected output scores", _set_output(1, "scores", TensorProto.FLOAT16, ["N", 2]))
_model("output given twice", "different names", lambda model: model.graph.output.append(model.graph.output[0]))
_model(
    "output too many",
    "expected the outputs",
    lambda model: model.graph.output.append(helper.make_tensor_value_info("logits", FLOAT, ["N", 2])),
)
_manifest("state that the graph lacks", "expected the inputs", lambda m: m.update(state=[
    {"input": "h", "output": "hn", "shape": [1]},
]))  # fmt: skip
_manifest("state of another shape", "input memory", lambda m: m["state"][0].update(shape=[7]), builders.stateful)
_manifest("state of another type", "expected float32", lambda m: m["state"][0].update(type="int8"), builders.stateful)
_manifest("state given twice", "twice", lambda m: m["state"].append(m["state"][0]), builders.stateful)
_manifest("state in place of the window", "twice", lambda m: m["state"][0].update(input="window"), builders.stateful)
_manifest("state that is not declared", "expected the inputs window", lambda m: m.pop("state"), builders.stateful)
_manifest("targets that the graph lacks", "expected output value", lambda m: m["output"].update(
    targets=[{"name": "a"}, {"name": "b"}]
), builders.regression)  # fmt: skip
_manifest("task of another model", "expected the outputs value", lambda m: m.update(
    task="regression", output={"targets": [{"name": "a"}]}
))  # fmt: skip

# -- the manifest ------------------------------------------------------------------------------------------------------

_add("no manifest", "without a manifest", lambda: bytes(builders.classification().model.SerializeToString()))
for _name, _bytes in (
    ("empty", b""),
    ("no JSON", b"hello"),
    ("half of JSON", b'{"format": 1, "name": "a'),
    ("a list", b"[1]"),
    ("null", b"null"),
    ("a million brackets", b"[" * 1_000_000),
    ("nested a hundred thousand deep", b'{"format": 1, "quantization": ' + b'{"a":' * 100_000),
    ("no UTF-8", b'{"format": 1, "name": "\xff\xfe"}'),
    ("without format", b'{"name": "a"}'),
    ("format 0", b'{"format": 0}'),
    ("format 2", b'{"format": 2}'),
    ("format in words", b'{"format": "1"}'),
    ("format beyond 64 bits", b'{"format": 99999999999999999999999999999999}'),
    ("NaN", b'{"format": 1, "x": NaN}'),
):
    _text(f"manifest: {_name}", _bytes, "manifest")


def _update(change: dict[str, Any], *path: str) -> Callable[[dict[str, Any]], None]:
    """Change some keys of the manifest, or of a table in it."""

    def spoil(manifest: dict[str, Any]) -> None:
        for key in path:
            manifest = manifest[key]
        manifest.update(change)

    return spoil


_CHANGES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("name with a slash", {"name": "../../etc"}),
    ("empty name", {"name": ""}),
    ("name with a null byte", {"name": "a\0b"}),
    ("name that is a number", {"name": 7}),
    ("version in words", {"version": "newest"}),
    ("version of one number", {"version": "1"}),
    ("version with a line break", {"version": "1.0.0\n"}),
    ("version of a megabyte", {"version": "1.0." + "9" * 1_000_000}),
    ("version with leading zeros", {"version": "01.0.0"}),
    ("no version", {"version": None}),
    ("unknown task", {"task": "clairvoyance"}),
    ("no input", {"input": {}}),
    ("channel given twice", {"input": {"channels": [{"name": "a"}, {"name": "a"}]}}),
    ("range upside down", {"input": {"channels": [{"name": "a", "range": [1, 0]}, {"name": "b"}]}}),
    ("frame of nothing", {"input": {"shape": [0, 3]}}),
    ("one label", {"output": {"labels": ["only"]}}),
    ("label given twice", {"output": {"labels": ["a", "a"]}}),
    ("three labels for two scores", {"output": {"labels": ["a", "b", "c"]}}),
    ("a newer onnxruntime", {"requires": {"onnxruntime": "99.0"}}),
    ("an onnxruntime in words", {"requires": {"onnxruntime": "latest"}}),
)
for _name, _change in _CHANGES:
    _manifest(f"manifest: {_name}", "", _update(_change))
for _key, _value in (("length", 0), ("length", -1), ("length", 2**62), ("stride", 0), ("rate_hz", 0), ("rate_hz", -5)):
    _manifest(f"manifest: window.{_key} of {_value}", "", _update({_key: _value}, "input", "window"))
_manifest("manifest: no threshold", "threshold", lambda m: m.update(output={}), builders.anomaly)
_manifest("manifest: no targets", "targets", lambda m: m.update(output={}), builders.regression)
_GOLDEN: tuple[tuple[str, dict[str, Any]], ...] = (
    ("input of another shape", {"input": {"shape": [4, 9, 9], "dtype": "float32", "data": ""}}),
    ("input without rows", {"input": {"shape": [0, 1, 2], "dtype": "float32", "data": ""}}),
    ("input of two billion rows", {"input": {"shape": [2**31, 1, 2], "dtype": "float32", "data": ""}}),
    ("input of two to the 62 rows", {"input": {"shape": [2**62, 1, 2], "dtype": "float32", "data": "AAAA"}}),
    ("input of doubles", {"input": {"shape": [1, 1, 2], "dtype": "float64", "data": "A" * 24}}),
    ("input of Python objects", {"input": {"shape": [1, 1, 2], "dtype": "object", "data": "A" * 12}}),
    ("input cut short", {"input": {"shape": [4, 1, 2], "dtype": "float32", "data": "AAAA"}}),
    ("no outputs", {"outputs": {}}),
    ("output of another model", {"outputs": {"value": {"shape": [4], "dtype": "float32", "data": ""}}}),
    ("output of other rows", {"outputs": {"label": {"shape": [3], "dtype": "int64", "data": "A" * 32}}}),
    ("negative tolerance", {"atol": -1.0}),
)
for _name, _change in _GOLDEN:
    _manifest(f"manifest: selftest: {_name}", "selftest", _update(_change, "selftest"))
