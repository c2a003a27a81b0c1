"""The model that every target of the benchmark runs, an MLP 6-32-16-3 with fixed random weights; and a heavier one.

It is made here, in the bundle's normal form, and not trained: only its size matters. The windowed form puts a
mean over the window before the same layers, so that a window of 128 readings costs little more than one reading
and the figures show the runtime's own cost. onnxruntime's `ReduceMean` has other last bits for one window than
for several; its `GlobalAveragePool`, like most models that are converted, has the same (`any_batch`).
"""

import itertools
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from benchmarks.names import CHANNELS, LABELS
from edge_runtime.bundle import manifest as m

LAYERS = (6, 32, 16, 3)


def write_bundle(path: Path, *, name: str = "mlp", length: int = 1, stride: int = 1, any_batch: bool = False) -> Path:
    """Write the model for windows of `length` readings, one every `stride`, and return its path."""
    return _write(path, _graph(length, any_batch=any_batch), name, length, stride=stride)


def write_convolution(path: Path, *, length: int, stride: int) -> Path:
    """Write a model that has something to do: two 1-D convolutions of 64 filters over the window, 6 MFLOP a window."""
    return _write(path, _convolution(length), "convolution", length, stride=stride)


def _write(path: Path, graph: onnx.GraphProto, name: str, length: int, *, stride: int) -> Path:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    manifest = m.Manifest(
        name=name,
        version="1.0.0",
        task="classification",
        input=m.Input(
            channels=tuple(m.Channel(name=channel, range=(-100.0, 100.0)) for channel in CHANNELS),
            window=m.Window(length=length, stride=stride),
        ),
        output=m.Output(labels=LABELS),
        batch_invariant=_is_batch_invariant(model.SerializeToString(), length),
    )
    entry = model.metadata_props.add()
    entry.key, entry.value = m.METADATA_KEY, m.write_manifest(manifest)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return path


def _graph(length: int, *, any_batch: bool = False) -> onnx.GraphProto:
    random = np.random.default_rng(7)
    nodes = [helper.make_node("ReduceMean", ["window"], ["x0"], axes=[1], keepdims=0)]
    if any_batch:
        turned = helper.make_node("Transpose", ["window"], ["turned"], perm=[0, 2, 1])
        pooled = helper.make_node("GlobalAveragePool", ["turned"], ["mean"])
        nodes = [turned, pooled, helper.make_node("Flatten", ["mean"], ["x0"])]
    weights = []
    for layer, (rows, columns) in enumerate(itertools.pairwise(LAYERS)):
        weights.append(numpy_helper.from_array(_normal(random, (rows, columns), 0.5), f"w{layer}"))
        weights.append(numpy_helper.from_array(_normal(random, (columns,), 0.1), f"b{layer}"))
        last = layer == len(LAYERS) - 2
        made = "logits" if last else f"h{layer}"
        nodes.append(helper.make_node("Gemm", [f"x{layer}", f"w{layer}", f"b{layer}"], [made]))
        if not last:
            nodes.append(helper.make_node("Relu", [made], [f"x{layer + 1}"]))
    nodes.append(helper.make_node("Softmax", ["logits"], ["scores"], axis=1))
    nodes.append(helper.make_node("ArgMax", ["scores"], ["label"], axis=1, keepdims=0))
    window = helper.make_tensor_value_info("window", TensorProto.FLOAT, ["N", length, len(CHANNELS)])
    label = helper.make_tensor_value_info("label", TensorProto.INT64, ["N"])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", len(LABELS)])
    return helper.make_graph(nodes, "mlp", [window], [label, scores], weights)


def _convolution(length: int) -> onnx.GraphProto:
    random = np.random.default_rng(7)
    shapes = {"w0": (64, len(CHANNELS), 5), "b0": (64,), "w1": (64, 64, 5), "b1": (64,)}
    shapes |= {"w2": (64, len(LABELS)), "b2": (len(LABELS),)}
    weights = [numpy_helper.from_array(_normal(random, shape, 0.1), name) for name, shape in shapes.items()]
    nodes = [
        helper.make_node("Transpose", ["window"], ["c"], perm=[0, 2, 1]),
        helper.make_node("Conv", ["c", "w0", "b0"], ["c0"], kernel_shape=[5], pads=[2, 2]),
        helper.make_node("Relu", ["c0"], ["r0"]),
        helper.make_node("Conv", ["r0", "w1", "b1"], ["c1"], kernel_shape=[5], pads=[2, 2]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("ReduceMean", ["r1"], ["mean"], axes=[2], keepdims=0),
        helper.make_node("Gemm", ["mean", "w2", "b2"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["scores"], axis=1),
        helper.make_node("ArgMax", ["scores"], ["label"], axis=1, keepdims=0),
    ]
    window = helper.make_tensor_value_info("window", TensorProto.FLOAT, ["N", length, len(CHANNELS)])
    label = helper.make_tensor_value_info("label", TensorProto.INT64, ["N"])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", len(LABELS)])
    return helper.make_graph(nodes, "convolution", [window], [label, scores], weights)


def _normal(random: np.random.Generator, shape: tuple[int, ...], scale: float) -> NDArray[np.float32]:
    return random.normal(0.0, scale, shape).astype(np.float32)


def _is_batch_invariant(model: bytes, length: int) -> bool:
    """Whether the last bits stay the same whatever the batch, which the manifest must not claim unmeasured."""
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    windows = _normal(np.random.default_rng(3), (300, length, len(CHANNELS)), 1.0)
    singly = np.concatenate([session.run(["scores"], {"window": windows[i : i + 1]})[0] for i in range(len(windows))])
    return all(
        np.array_equal(session.run(["scores"], {"window": windows[:batch]})[0], singly[:batch])
        for batch in (2, 3, 4, 7, 8, 16, 20, 32, 64, 100, 256, 300)
    )
