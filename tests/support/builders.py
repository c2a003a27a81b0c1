"""Valid bundles for tests, made with the `onnx` package: each test takes one and spoils one thing.

A `Draft` is an ONNX model and its manifest as plain data, both open to change; `Draft.save` puts the second into the
first. The golden vectors were computed by onnxruntime when the draft was made, so a draft that is unchanged
passes its own self-test. Equal arguments give equal bytes.
"""

import base64
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edge_runtime.bundle.manifest import METADATA_KEY
from tests.support.waiting import patient

OPSET = 17
IR_VERSION = 8
GOLDEN_ROWS = 4


@dataclass
class Draft:
    """A bundle that is not yet a file: `model` is an `onnx.ModelProto`, `manifest` the JSON document as a dict."""

    model: Any
    manifest: dict[str, Any]

    def to_bytes(self, manifest_text: str | bytes | None = None) -> bytes:
        """The bytes of the file; `manifest_text` stands in for the manifest where a test wants a broken one."""
        model = type(self.model)()
        model.CopyFrom(self.model)
        text = msgspec.json.encode(self.manifest, order="sorted") if manifest_text is None else manifest_text
        entry = model.metadata_props.add()
        entry.key = METADATA_KEY
        entry.value = text
        return bytes(model.SerializeToString(deterministic=True))

    def save(self, path: Path) -> Path:
        """Write the bundle and return its path."""
        path.write_bytes(self.to_bytes())
        return path

    def run(self, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """What onnxruntime answers to `feeds`, by output name."""
        return _run(self.model, feeds)

    def refresh_golden(self, windows: NDArray[Any]) -> None:
        """Compute the golden vectors again, after a change of the model that is meant to be valid."""
        self.manifest["selftest"] = _golden(self.model, windows, self.manifest.get("state", ()))


def classification(
    *,
    name: str = "activity",
    version: str = "1.0.0",
    length: int = 1,
    channels: Sequence[str] = ("temperature", "humidity"),
    labels: Sequence[str] = ("low", "high"),
    stride: int | None = None,
    seed: int = 1,
) -> Draft:
    """A softmax over one matrix product; `label` is the largest score."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(length * len(channels), len(labels)))
    nodes = [
        helper.make_node("Flatten", ["window"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "weights"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["scores"], axis=1),
        helper.make_node("ArgMax", ["scores"], ["label"], axis=1, keepdims=0),
    ]
    outputs = [
        helper.make_tensor_value_info("label", TensorProto.INT64, ["N"]),
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", len(labels)]),
    ]
    constants = {"weights": weights, "bias": rng.normal(size=len(labels))}
    model = _model(nodes, (length, len(channels)), outputs, constants)
    manifest = _manifest(name, version, "classification", channels=channels, length=length, stride=stride)
    manifest["output"] = {"labels": list(labels)}
    return _draft(model, manifest, rng)


def regression(
    *,
    name: str = "power",
    version: str = "1.0.0",
    length: int = 1,
    channels: Sequence[str] = ("current", "voltage"),
    targets: Sequence[str] = ("power",),
    stride: int | None = None,
    seed: int = 2,
) -> Draft:
    """One matrix product with a bias."""
    rng = np.random.default_rng(seed)
    nodes = [
        helper.make_node("Flatten", ["window"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "weights"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["value"]),
    ]
    outputs = [helper.make_tensor_value_info("value", TensorProto.FLOAT, ["N", len(targets)])]
    constants = {
        "weights": rng.normal(size=(length * len(channels), len(targets))),
        "bias": rng.normal(size=len(targets)),
    }
    model = _model(nodes, (length, len(channels)), outputs, constants)
    manifest = _manifest(name, version, "regression", channels=channels, length=length, stride=stride)
    manifest["output"] = {"targets": [{"name": target, "unit": ""} for target in targets]}
    return _draft(model, manifest, rng)


def anomaly(
    *,
    name: str = "vibration",
    version: str = "1.0.0",
    length: int = 1,
    channels: Sequence[str] = ("accel_x", "accel_y", "accel_z"),
    threshold: float = 2.0,
    stride: int | None = None,
    seed: int = 3,
) -> Draft:
    """The mean distance of a window from zero."""
    rng = np.random.default_rng(seed)
    nodes = [
        helper.make_node("Abs", ["window"], ["distance"]),
        helper.make_node("ReduceMean", ["distance"], ["score"], axes=[1, 2], keepdims=0),
    ]
    outputs = [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N"])]
    model = _model(nodes, (length, len(channels)), outputs, {})
    manifest = _manifest(name, version, "anomaly", channels=channels, length=length, stride=stride)
    manifest["output"] = {"threshold": threshold}
    return _draft(model, manifest, rng)


def stateful(
    *,
    name: str = "drowsy",
    version: str = "1.0.0",
    length: int = 2,
    channels: Sequence[str] = ("left", "right"),
    hidden: int = 3,
    stride: int | None = None,
    seed: int = 4,
) -> Draft:
    """A classifier with memory: `memory_out` is tanh of half of `memory` plus the projected mean of the window."""
    rng = np.random.default_rng(seed)
    labels = ("awake", "asleep")
    nodes = [
        helper.make_node("ReduceMean", ["window"], ["mean"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["mean", "inward"], ["seen"]),
        helper.make_node("Mul", ["memory", "half"], ["kept"]),
        helper.make_node("Add", ["seen", "kept"], ["sum"]),
        helper.make_node("Tanh", ["sum"], ["memory_out"]),
        helper.make_node("MatMul", ["memory_out", "outward"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["scores"], axis=1),
        helper.make_node("ArgMax", ["scores"], ["label"], axis=1, keepdims=0),
    ]
    outputs = [
        helper.make_tensor_value_info("label", TensorProto.INT64, ["N"]),
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", len(labels)]),
        helper.make_tensor_value_info("memory_out", TensorProto.FLOAT, ["N", hidden]),
    ]
    constants = {
        "inward": rng.normal(size=(len(channels), hidden)),
        "half": np.array(0.5),
        "outward": rng.normal(size=(hidden, len(labels))),
    }
    inputs = [helper.make_tensor_value_info("memory", TensorProto.FLOAT, ["N", hidden])]
    model = _model(nodes, (length, len(channels)), outputs, constants, more_inputs=inputs)
    manifest = _manifest(name, version, "classification", channels=channels, length=length, stride=stride)
    manifest["output"] = {"labels": list(labels)}
    manifest["state"] = [{"input": "memory", "output": "memory_out", "shape": [hidden], "type": "float32"}]
    return _draft(model, manifest, rng)


def frame(
    *,
    name: str = "picture",
    version: str = "1.0.0",
    shape: Sequence[int] = (4, 6, 3),
    labels: Sequence[str] = ("a", "b"),
) -> Draft:
    """A classifier whose one reading is a whole frame of bytes."""
    size = int(np.prod(shape))
    draft = classification(name=name, version=version, channels=[f"c{i}" for i in range(size)], labels=labels)
    dims = draft.model.graph.input[0].type.tensor_type.shape.dim
    del dims[1:]
    for extent in shape:
        dims.add().dim_value = extent
    draft.manifest["input"] = {"shape": list(shape), "dtype": "uint8"}
    windows = np.random.default_rng(5).integers(0, 256, size=(GOLDEN_ROWS, *shape)).astype(np.float32)
    draft.refresh_golden(windows)
    return draft


def tokens(*, name: str = "tokens", length: int = 5, vocabulary: int = 11, labels: Sequence[str] = ("a", "b")) -> Draft:
    """A classifier of a row of whole numbers, each of which chooses a row of a table."""
    rng = np.random.default_rng(7)
    table, weights = rng.normal(size=(vocabulary, 4)), rng.normal(size=(4, len(labels)))
    nodes = [
        helper.make_node("Cast", ["window"], ["ids"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "ids"], ["rows"], axis=0),
        helper.make_node("ReduceMean", ["rows"], ["mean"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["mean", "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["scores"], axis=1),
        helper.make_node("ArgMax", ["scores"], ["label"], axis=1, keepdims=0),
    ]
    outputs = [
        helper.make_tensor_value_info("label", TensorProto.INT64, ["N"]),
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", len(labels)]),
    ]
    model = _model(nodes, (length,), outputs, {"table": table, "weights": weights})
    manifest = _manifest(name, "1.0.0", "classification", channels=[], length=1, stride=None)
    manifest["input"] = {"shape": [length], "dtype": "int64", "range": [0, vocabulary - 1]}
    manifest["output"] = {"labels": list(labels)}
    draft = Draft(model, manifest)
    draft.refresh_golden(rng.integers(0, vocabulary, size=(GOLDEN_ROWS, length)).astype(np.float32))
    return draft


def tensors(*, name: str = "maps", channels: Sequence[str] = ("u", "v", "w"), task: str = "tensor") -> Draft:
    """Two named tensors, one of whole numbers, of a window of two readings; or one, as an embedding."""
    nodes = [
        helper.make_node("Mul", ["window", "weights"], ["heat"]),
        helper.make_node("ArgMax", ["heat"], ["peak"], axis=1, keepdims=0),
    ]
    shape = (2, len(channels))
    outputs = [
        helper.make_tensor_value_info("heat", TensorProto.FLOAT, ["N", *shape]),
        helper.make_tensor_value_info("peak", TensorProto.INT64, ["N", len(channels)]),
    ]
    declared = [{"name": "heat", "shape": list(shape)}, {"name": "peak", "shape": [len(channels)], "dtype": "int64"}]
    if task == "embedding":
        nodes = [nodes[0], helper.make_node("Flatten", ["heat"], ["embedding"], axis=1)]
        outputs = [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", 2 * len(channels)])]
        declared = [{"name": "embedding", "shape": [2 * len(channels)]}]
    rng = np.random.default_rng(8)
    model = _model(nodes, shape, outputs, {"weights": rng.normal(size=shape)})
    manifest = _manifest(name, "1.0.0", task, channels=channels, length=2, stride=None)
    manifest["output"] = {"tensors": declared}
    return _draft(model, manifest, rng)


def multilabel(
    *,
    name: str = "alerts",
    channels: Sequence[str] = ("temperature", "humidity", "pressure"),
    labels: Sequence[str] = ("hot", "wet", "loud"),
    length: int = 1,
) -> Draft:
    """Labels that may be there together: each has a sigmoid of its own, and is there above one half."""
    rng = np.random.default_rng(10)
    nodes = [
        helper.make_node("ReduceMean", ["window"], ["mean"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["mean", "weights"], ["sums"]),
        helper.make_node("Sigmoid", ["sums"], ["scores"]),
        helper.make_node("Greater", ["sums", "nought"], ["yes"]),
        helper.make_node("Cast", ["yes"], ["labels"], to=TensorProto.INT64),
    ]
    outputs = [
        helper.make_tensor_value_info("labels", TensorProto.INT64, ["N", len(labels)]),
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", len(labels)]),
    ]
    constants = {"weights": rng.normal(size=(len(channels), len(labels))), "nought": np.array(0.0)}
    model = _model(nodes, (length, len(channels)), outputs, constants)
    manifest = _manifest(name, "1.0.0", "multilabel", channels=channels, length=length, stride=None)
    manifest["output"] = {"labels": list(labels)}
    return _draft(model, manifest, rng)


def detection(*, name: str = "boxes", labels: Sequence[str] = ("cat", "dog"), most: int = 3) -> Draft:
    """A detector of a kind: each of `most` readings of a window is a box; its sum is the score, its first the label."""
    nodes = [
        *(
            helper.make_node("Constant", [], [key], value=numpy_helper.from_array(np.array([value])))
            for key, value in (("zero", 0), ("one", 1), ("two", 2))
        ),
        helper.make_node("Abs", ["window"], ["boxes"]),
        helper.make_node("ReduceMean", ["boxes"], ["mean"], axes=[2], keepdims=0),
        helper.make_node("Div", ["mean", "ten"], ["scores"]),
        helper.make_node("Slice", ["window", "zero", "one", "two"], ["first"]),
        helper.make_node("Squeeze", ["first", "two"], ["flat"]),
        helper.make_node("Greater", ["flat", "nought"], ["yes"]),
        helper.make_node("Cast", ["yes"], ["place"], to=TensorProto.INT64),
        helper.make_node("Sub", ["place", "one"], ["label"]),
    ]
    outputs = [
        helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["N", most, 4]),
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", most]),
        helper.make_tensor_value_info("label", TensorProto.INT64, ["N", most]),
    ]
    channels = ("left", "top", "right", "bottom")
    model = _model(nodes, (most, 4), outputs, {"ten": np.array(10.0), "nought": np.array(0.0)})
    manifest = _manifest(name, "1.0.0", "detection", channels=channels, length=most, stride=None)
    manifest["output"] = {"labels": list(labels), "detections": most}
    return _draft(model, manifest, np.random.default_rng(9))


@dataclass(frozen=True)
class Signer:
    """A signing key made for a test, and the `allowed_signers` file that names it."""

    key: Path
    allowed: Path

    def sign(self, bundle: Path, namespace: str = "edge-bundle") -> Path:
        """Write `BUNDLE.sig` as `ssh-keygen` does, and return its path."""
        signature = bundle.with_name(bundle.name + ".sig")
        signature.unlink(missing_ok=True)
        command = ["ssh-keygen", "-q", "-Y", "sign", "-f", str(self.key), "-n", namespace, str(bundle)]
        subprocess.run(command, check=True, capture_output=True, timeout=patient(30))
        return signature


def signer(folder: Path, principal: str = "builder@example", options: str = "") -> Signer:
    """A new ed25519 key in `folder`; `options` goes before the key in `allowed_signers`."""
    folder.mkdir(parents=True, exist_ok=True)
    key = folder / "signing-key"
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", principal, "-f", str(key)]
    subprocess.run(command, check=True, capture_output=True, timeout=patient(30))
    kind, text, *_ = key.with_suffix(".pub").read_text().split()
    allowed = folder / "allowed_signers"
    allowed.write_text(" ".join(part for part in (principal, options, kind, text) if part) + "\n")
    return Signer(key, allowed)


def tensor_document(values: NDArray[Any]) -> dict[str, Any]:
    """A golden tensor as the manifest holds it."""
    little = np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<"))
    return {
        "shape": list(values.shape),
        "dtype": values.dtype.name,
        "data": base64.b64encode(little.tobytes()).decode(),
    }


def _model(
    nodes: Sequence[Any],
    shape: tuple[int, ...],
    outputs: Sequence[Any],
    constants: dict[str, NDArray[Any]],
    *,
    more_inputs: Sequence[Any] = (),
) -> Any:
    window = helper.make_tensor_value_info("window", TensorProto.FLOAT, ["N", *shape])
    initializers = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()]
    graph = helper.make_graph(list(nodes), "bundle", [window, *more_inputs], list(outputs), initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="tests")
    model.ir_version = IR_VERSION
    onnx.checker.check_model(model)
    return model


def _manifest(
    name: str, version: str, task: str, *, channels: Sequence[str], length: int, stride: int | None
) -> dict[str, Any]:
    return {
        "format": 1,
        "name": name,
        "version": version,
        "task": task,
        "input": {
            "channels": [{"name": channel, "unit": "1", "range": [-1e6, 1e6]} for channel in channels],
            "window": {"length": length, "stride": stride or length},
        },
        "requires": {"onnxruntime": "1.20", "opset": OPSET, "ir_version": IR_VERSION},
        "source": {"framework": "tests", "version": "1"},
    }


def _draft(model: Any, manifest: dict[str, Any], rng: np.random.Generator) -> Draft:
    window = manifest["input"]
    shape = (GOLDEN_ROWS, window["window"]["length"], len(window["channels"]))
    draft = Draft(model, manifest)
    draft.refresh_golden(rng.normal(size=shape).astype(np.float32))
    return draft


def _golden(model: Any, windows: NDArray[Any], states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    feeds = {"window": windows}
    for state in states:
        feeds[state["input"]] = np.zeros((len(windows), *state["shape"]), np.float32)
    outputs = _run(model, feeds)
    return {
        "input": tensor_document(windows),
        "outputs": {name: tensor_document(value) for name, value in outputs.items()},
        "atol": 1e-4,
        "rtol": 1e-3,
        "label_mismatches": 0,
    }


def _run(model: Any, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.x64quantprecision", "1")  # as every processor but some of x86 computes
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def echo(*, name: str = "echo", length: int = 3, stride: int | None = None) -> Draft:
    """A regression that answers with the first channel of every reading of its window, so that a wrong window shows."""
    draft = regression(
        name=name,
        length=length,
        channels=("number", "other"),
        targets=[f"t{place}" for place in range(length)],
        stride=stride,
    )
    weights = np.zeros((2 * length, length), np.float32)
    weights[::2] = np.eye(length)
    for constant in draft.model.graph.initializer:
        values = weights if constant.name == "weights" else np.zeros(length, np.float32)
        constant.CopyFrom(numpy_helper.from_array(values, constant.name))
    draft.refresh_golden(np.zeros((GOLDEN_ROWS, length, 2), np.float32))
    return draft
