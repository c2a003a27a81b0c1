"""Depthwise convolutions over parts of the channels: one convolution in the bundle, to the bit of the interpreter."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from converter.cli import main
from edge_runtime.bundle.model import Model
from edge_runtime.bundle.open import open_bundle
from tests.support.tflite_files import TfliteFile

pytest.importorskip("ai_edge_litert")

ROWS, CHANNELS, KERNELS = 9, 6, (3, 5, 7)
SPEC = f'task = "tensor"\n[frame]\nshape = [{ROWS}, 1, {CHANNELS}]\ndtype = "int8"\n'
SCALE, ZERO, OUT_SCALE, OUT_ZERO = 0.05, -7, 0.11, 4


def mixed(path: Path, *, rectified: bool = False, version: str = "SPLIT") -> Path:
    """Two channels for each kernel; every part is cut so that all kernels end at the same row."""
    rng = np.random.default_rng(1)
    file = TfliteFile()
    graph = file.graph()

    def whole(name: str, shape: tuple[int, ...], scale: float = SCALE, zero: int = ZERO) -> int:
        return file.quantize(graph, file.tensor(graph, name, "INT8", shape), [scale], zero=zero)

    def sizes(name: str, *values: int) -> int:
        return file.tensor(graph, name, "INT32", (len(values),), value=np.array(values, np.int32))

    x = whole("x", (1, ROWS, 1, CHANNELS))
    parts = [whole(f"part{n}", (1, ROWS, 1, 2)) for n in range(3)]
    axis = file.tensor(graph, "axis", "INT32", (), value=np.array(3, np.int32))
    if version == "SPLIT":
        file.operator(graph, "SPLIT", [axis, x], parts, options="SplitOptions", numSplits=3)
    else:
        file.operator(graph, "SPLIT_V", [x, sizes("sizes", 2, 2, 2), axis], parts, options="SplitVOptions", numSplits=3)
    out_rows, convolved = 3, []
    for number, (part, kernel, start) in enumerate(zip(parts, KERNELS, (4, 2, 0), strict=True)):
        taken = part
        if start:
            taken = whole(f"cut{number}", (1, ROWS - start, 1, 2))
            limits = [sizes(f"{kind}{number}", *values) for kind, values in
                      (("begin", (0, start, 0, 0)), ("end", (0, 0, 0, 0)), ("step", (1, 1, 1, 1)))]  # fmt: skip
            file.operator(graph, "STRIDED_SLICE", [part, *limits], [taken], options="StridedSliceOptions",
                          beginMask=13, endMask=15)  # fmt: skip
        scales = [0.02 + 0.01 * number, 0.03]
        kernel_values = rng.integers(-127, 128, (1, kernel, 1, 2)).astype(np.int8)
        weight = file.tensor(graph, f"w{number}", "INT8", kernel_values.shape, value=kernel_values)
        file.quantize(graph, weight, scales, axis=3)
        bias = file.tensor(graph, f"b{number}", "INT32", (2,), value=rng.integers(-900, 900, 2).astype(np.int32))
        file.quantize(graph, bias, [SCALE * scale for scale in scales])
        result = whole(f"y{number}", (1, out_rows, 1, 2), OUT_SCALE, OUT_ZERO)
        function = 1 if rectified and number == 1 else 0
        file.operator(graph, "DEPTHWISE_CONV_2D", [taken, weight, bias], [result], options="DepthwiseConv2DOptions",
                      padding=1, strideH=1, strideW=1, depthMultiplier=1, dilationHFactor=1, dilationWFactor=1,
                      fusedActivationFunction=function)  # fmt: skip
        convolved.append(result)
    joined = whole("joined", (1, out_rows, 1, CHANNELS), OUT_SCALE, OUT_ZERO)
    file.operator(graph, "CONCATENATION", convolved, [joined], options="ConcatenationOptions", axis=-1)
    graph.inputs, graph.outputs = [x], [joined]
    return file.save(path)


def interpreted(path: Path, x: NDArray[Any]) -> NDArray[Any]:
    """What the interpreter gives, in real numbers."""
    from ai_edge_litert.interpreter import Interpreter  # noqa: PLC0415

    interpreter = Interpreter(model_path=str(path))
    interpreter.allocate_tensors()
    rows = []
    for row in x:
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], row[None])
        interpreter.invoke()
        rows.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"])[0])
    return (np.array(rows).astype(np.float32) - np.float32(OUT_ZERO)) * np.float32(OUT_SCALE)


def built(folder: Path, path: Path, x: NDArray[Any]) -> tuple[NDArray[Any], list[str]]:
    """The answers of a bundle, and the kinds of its nodes."""
    (folder / "s.toml").write_text(SPEC)
    np.savez(folder / "d.npz", x=x)
    names = ["--spec", str(folder / "s.toml"), "--data", str(folder / "d.npz"), "-o", str(folder / "o.onnx")]
    assert main(["build", str(path), *names, "--quantize", "none"]) == 0
    (found,) = Model(open_bundle(folder / "o.onnx")).run(x.astype(np.float32)).arrays().values()
    return np.asarray(found), [node.op_type for node in onnx.load(folder / "o.onnx").graph.node]


def windows() -> NDArray[np.int8]:
    """Of the whole range."""
    return np.random.default_rng(2).integers(-128, 128, (40, ROWS, 1, CHANNELS)).astype(np.int8)


@pytest.mark.parametrize("version", ["SPLIT", "SPLIT_V"])
def test_parts_that_are_cut_convolved_and_joined_are_one_convolution(tmp_path: Path, version: str) -> None:
    """Three kernels of 3, 5 and 7 rows, each with its own scales: the same bits, by a single convolution."""
    path, x = mixed(tmp_path / "m.tflite", version=version), windows()
    found, kinds = built(tmp_path, path, x)
    wanted = interpreted(path, x)
    assert len(np.unique(wanted)) > 50
    assert found.reshape(wanted.shape).tobytes() == wanted.tobytes()
    assert kinds.count("Conv") == 1
    assert not {"Split", "Slice", "Concat"}.intersection(kinds)


def test_a_part_with_a_rectifier_of_its_own_keeps_the_parts_apart(tmp_path: Path) -> None:
    """One convolution could not rectify two of its channels: there are three, and the same bits."""
    path, x = mixed(tmp_path / "m.tflite", rectified=True), windows()
    found, kinds = built(tmp_path, path, x)
    wanted = interpreted(path, x)
    assert found.reshape(wanted.shape).tobytes() == wanted.tobytes()
    assert kinds.count("Conv") == 3


def test_whole_numbers_of_a_window_are_rounded_and_limited_by_one_node(tmp_path: Path) -> None:
    """Halves go to the even number, and what int8 cannot hold to its ends, as `Round` and `Clip` would have it."""
    path, x = mixed(tmp_path / "m.tflite"), windows()
    _, kinds = built(tmp_path, path, x)
    assert not {"Round", "Clip", "Cast"}.intersection(kinds)
    given = x.astype(np.float32) + np.random.default_rng(3).choice([0.0, 0.5, -0.49, 300.0, -1e9, np.inf], x.shape)
    given = given.astype(np.float32)
    model = Model(open_bundle(tmp_path / "o.onnx"))
    (found,) = model.run(given).arrays().values()
    wanted = interpreted(path, np.clip(np.rint(given), -128, 127).astype(np.int8))
    assert found.reshape(wanted.shape).tobytes() == wanted.tobytes()
