"""Models that are large in different ways, for the cost of loading them: random weights in the bundle's normal form."""

import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from benchmarks.names import CHANNELS
from edge_runtime.bundle import manifest as m

LENGTH = 64
Graph = tuple[list[Any], dict[str, NDArray[Any]]]


def _weights(random: np.random.Generator, rows: int, *shape: int) -> NDArray[np.float32]:
    """Scaled so that numbers neither vanish nor grow through many layers of `rows` inputs."""
    return random.normal(0.0, rows**-0.5, shape).astype(np.float32)


def _convolutions(random: np.random.Generator, blocks: int = 36, width: int = 128) -> Graph:
    """A residual network: two convolutions with normalisation a block, 41 MiB."""
    nodes = [
        helper.make_node("Unsqueeze", ["window", "axis"], ["image"]),
        helper.make_node("Conv", ["image", "first"], ["b0"], pads=[1] * 4, strides=[4, 1]),
    ]
    constants: dict[str, NDArray[Any]] = {
        "axis": np.array([1], np.int64),
        "first": _weights(random, 9, width, 1, 3, 3),
        "out": _weights(random, width, width, 1),
    }
    for block in range(blocks):
        found = f"b{block}"
        for half in range(2):
            name = f"{block}_{half}"
            constants[f"w{name}"] = _weights(random, 9 * width, width, width, 3, 3)
            for part, value in (("scale", 0.5), ("bias", 0.0), ("mean", 0.0), ("variance", 1.0)):
                constants[f"{part}{name}"] = np.full(width, value, np.float32)
            statistics = [f"{part}{name}" for part in ("scale", "bias", "mean", "variance")]
            nodes += [
                helper.make_node("Conv", [found, f"w{name}"], [f"c{name}"], pads=[1] * 4),
                helper.make_node("BatchNormalization", [f"c{name}", *statistics], [f"n{name}"]),
                helper.make_node("Relu", [f"n{name}"], [f"r{name}"]),
            ]
            found = f"r{name}"
        nodes.append(helper.make_node("Add", [found, f"b{block}"], [f"b{block + 1}"]))
    nodes += [
        helper.make_node("GlobalAveragePool", [f"b{blocks}"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "out"], ["value"]),
    ]
    return nodes, constants


def _small_nodes(random: np.random.Generator, layers: int = 600, width: int = 64) -> Graph:
    """Five nodes a layer, as exporters write them: 3,000 nodes, 10 MiB."""
    rows = LENGTH * len(CHANNELS)
    nodes = [
        helper.make_node("Flatten", ["window"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "in"], ["x0"]),
    ]
    constants = {"in": _weights(random, rows, rows, width), "out": _weights(random, width, width, 1)}
    for layer in range(layers):
        constants[f"w{layer}"] = _weights(random, width, width, width)
        constants[f"b{layer}"] = np.zeros(width, np.float32)
        nodes += [
            helper.make_node("MatMul", [f"x{layer}", f"w{layer}"], [f"m{layer}"]),
            helper.make_node("Add", [f"m{layer}", f"b{layer}"], [f"a{layer}"]),
            helper.make_node("Sigmoid", [f"a{layer}"], [f"s{layer}"]),
            helper.make_node("Mul", [f"a{layer}", f"s{layer}"], [f"z{layer}"]),
            helper.make_node("Identity", [f"z{layer}"], [f"x{layer + 1}"]),
        ]
    return [*nodes, helper.make_node("MatMul", [f"x{layers}", "out"], ["value"])], constants


def _products(random: np.random.Generator, width: int = 2048) -> Graph:
    """A few wide layers, 35 MiB: nothing in them to optimise."""
    sizes = (LENGTH * len(CHANNELS), width, width, width, 1)
    nodes = [helper.make_node("Flatten", ["window"], ["x0"], axis=1)]
    constants: dict[str, NDArray[Any]] = {}
    for layer, (rows, columns) in enumerate(itertools.pairwise(sizes)):
        constants[f"w{layer}"] = _weights(random, rows, rows, columns)
        made = "value" if layer == len(sizes) - 2 else f"m{layer}"
        nodes.append(helper.make_node("MatMul", [f"x{layer}", f"w{layer}"], [made]))
        if made != "value":
            nodes.append(helper.make_node("Relu", [made], [f"x{layer + 1}"]))
    return nodes, constants


GRAPHS: dict[str, Callable[[np.random.Generator], Graph]] = {
    "convolutions": _convolutions,
    "small nodes": _small_nodes,
    "matrix products": _products,
}


def write_large(folder: Path) -> Iterable[tuple[str, Path]]:
    """Write every model that is not there yet; its name and its bundle."""
    for name, make in GRAPHS.items():
        path = folder / f"{name.replace(' ', '-')}.onnx"
        if not path.exists():
            _write(path, *make(np.random.default_rng(7)))
        yield name, path


def _write(path: Path, nodes: list[Any], constants: dict[str, NDArray[Any]]) -> None:
    window = helper.make_tensor_value_info("window", TensorProto.FLOAT, ["N", LENGTH, len(CHANNELS)])
    value = helper.make_tensor_value_info("value", TensorProto.FLOAT, ["N", 1])
    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, path.stem, [window], [value], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    manifest = m.Manifest(
        name=path.stem,
        version="1.0.0",
        task="regression",
        input=m.Input(
            channels=tuple(m.Channel(name=channel, range=(-100.0, 100.0)) for channel in CHANNELS),
            window=m.Window(length=LENGTH, stride=LENGTH),
        ),
        output=m.Output(targets=(m.Target(name="value"),)),
    )
    entry = model.metadata_props.add()
    entry.key, entry.value = m.METADATA_KEY, m.write_manifest(manifest)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
