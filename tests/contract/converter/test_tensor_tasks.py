"""Models that answer tensors, vectors and boxes: proven against onnxruntime and a suppression written out here."""

import base64
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from converter.cli import main
from converter.commands.inspect import manifest_of
from converter.session import run, session_of
from edge_runtime.bundle.golden import check_golden
from edge_runtime.bundle.model import Model
from edge_runtime.bundle.open import open_bundle
from edge_runtime.errors import BundleError
from tests.support.graphs import save

FLOAT = TensorProto.FLOAT
FRAME = '[frame]\nshape = [6, 6, 1]\ndtype = "uint8"\nscale = 0.00390625\n'
LABELS = ["cat", "dog", "bird"]
CANDIDATES = 60


def build(folder: Path, model: Path, spec: str, *arguments: str) -> Path:
    """A bundle that must succeed."""
    (folder / "spec.toml").write_text(spec)
    out = folder / "out.onnx"
    assert main(["build", str(model), "--spec", str(folder / "spec.toml"), "-o", str(out), *arguments]) == 0
    return out


def pictures(folder: Path, count: int = 30) -> NDArray[np.uint8]:
    """Frames of noise, saved as data."""
    x = np.random.default_rng(3).integers(0, 256, size=(count, 6, 6, 1)).astype(np.uint8)
    np.savez(folder / "d.npz", x=x)
    return x


def detector(path: Path, *, batch: int | str, turned: bool, parts: bool = False, logits: bool = True) -> Path:
    """Boxes that lie fixed and scores that depend on the picture; `turned` as YOLO has them, candidates last."""
    rng = np.random.default_rng(0)
    middle = rng.uniform(10, 90, (CANDIDATES, 2))
    boxes = np.concatenate([middle, rng.uniform(8, 30, (CANDIDATES, 2))], axis=1).astype(np.float32)
    weights = rng.normal(0, 0.7, (36, CANDIDATES * 3)).astype(np.float32)
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"], axis=1),
        helper.make_node("Sub", ["flat", "half"], ["centred"]),
        helper.make_node("MatMul", ["centred", "weights"], ["product"]),
        helper.make_node("Reshape", ["product", "shape"], ["raw"]),
        helper.make_node("Identity" if logits else "Sigmoid", ["raw"], ["scores"]),
        helper.make_node("Shape", ["raw"], ["sizes"]),
        helper.make_node("Slice", ["sizes", "zero", "one"], ["count"]),
        helper.make_node("Concat", ["count", "ones"], ["repeats"], axis=0),
        helper.make_node("Tile", ["fixed", "repeats"], ["boxes"]),
    ]
    outputs: list[Any] = [("boxes", FLOAT, [batch, CANDIDATES, 4]), ("scores", FLOAT, [batch, CANDIDATES, 3])]
    if not parts:
        nodes.append(helper.make_node("Concat", ["boxes", "scores"], ["all" if turned else "out"], axis=2))
        shape = [batch, CANDIDATES, 7]
        if turned:
            nodes.append(helper.make_node("Transpose", ["all"], ["out"], perm=[0, 2, 1]))
            shape = [batch, 7, CANDIDATES]
        outputs = [("out", FLOAT, shape)]
    constants = {
        "weights": weights, "half": np.float32(0.5), "shape": np.array([-1, CANDIDATES, 3]), "fixed": boxes[None],
        "zero": np.array([0]), "one": np.array([1]), "ones": np.array([1, 1]),
    }  # fmt: skip
    return save(path, nodes, [("x", FLOAT, [batch, 6, 6, 1])], outputs, constants=constants)


def expected(boxes: Any, scores: Any, threshold: float, overlap: float) -> list[tuple[str, float, list[float]]]:
    """Suppression class by class, pair by pair, in Python's own numbers."""
    corners = [(x - w / 2, y - h / 2, x + w / 2, y + h / 2) for x, y, w, h in boxes.tolist()]
    kept: list[tuple[str, float, list[float]]] = []
    for place, label in enumerate(LABELS):
        chosen: list[tuple[float, float, float, float]] = []
        for index in sorted(range(len(corners)), key=lambda each: -scores[each, place]):
            if scores[index, place] <= threshold:
                break
            one = corners[index]
            shares = []
            for other in chosen:
                width = min(one[2], other[2]) - max(one[0], other[0])
                height = min(one[3], other[3]) - max(one[1], other[1])
                common = max(width, 0.0) * max(height, 0.0)
                areas = [(each[2] - each[0]) * (each[3] - each[1]) for each in (one, other)]
                shares.append(common / (sum(areas) - common))
            if all(share <= overlap for share in shares):
                chosen.append(one)
                kept.append((label, float(scores[index, place]), list(one)))
    return sorted(kept, key=lambda each: -each[1])


def detections(bundle: Path, x: Any, batch: int = 7) -> list[list[tuple[str, float, list[float]]]]:
    """What a bundle finds in each frame."""
    found = run(session_of(bundle.read_bytes()), x.astype(np.float32), batch=batch).tensors()
    return [
        [(LABELS[label], float(score), box.tolist()) for label, score, box in zip(*row, strict=True) if label >= 0]
        for row in zip(found["label"].tolist(), found["scores"], found["boxes"], strict=True)
    ]


@pytest.mark.parametrize(
    ("batch", "turned", "parts", "logits"),
    [(1, True, False, False), ("N", False, False, False), ("N", True, False, True), (1, False, True, False)],
    ids=["one output, candidates last, batch of 1", "candidates first", "scores as logits", "boxes and scores apart"],
)
def test_boxes_are_suppressed_inside_the_graph(
    batch: int | str, turned: bool, parts: bool, logits: bool, tmp_path: Path
) -> None:
    """Every detection of every frame is that of a suppression on paper, with its label, score and corners."""
    x = pictures(tmp_path)
    model = detector(tmp_path / "m.onnx", batch=batch, turned=turned, parts=parts, logits=logits)
    spec = f'task = "detection"\nlabels = {json.dumps(LABELS)}\n{FRAME}[detection]\nthreshold = 0.4\noverlap = 0.3\n'
    out = build(tmp_path, model, spec, "--data", str(tmp_path / "d.npz"), "--quantize", "none")
    manifest = manifest_of(out)
    assert (manifest.task, manifest.output.labels, manifest.output.detections) == ("detection", tuple(LABELS), 100)
    session = onnxruntime.InferenceSession(model)
    total = 0
    for row, found in zip(x, detections(out, x), strict=True):
        raw = session.run(None, {"x": row[None].astype(np.float32) * np.float32(0.00390625)})
        table = np.concatenate(raw, axis=2)[0] if parts else raw[0][0].T if turned else raw[0][0]
        scores = 1 / (1 + np.exp(-table[:, 4:])) if logits else table[:, 4:]
        wanted = expected(table[:, :4].astype(np.float64), scores.astype(np.float64), 0.4, 0.3)
        assert [each[0] for each in found] == [each[0] for each in wanted]
        np.testing.assert_allclose([each[1] for each in found], [each[1] for each in wanted], atol=1e-5)
        np.testing.assert_allclose([each[2] for each in found], [each[2] for each in wanted], atol=1e-3)
        total += len(wanted)
    assert total > 100
    check_golden(Model(open_bundle(out)))


def test_only_the_best_detections_are_kept(tmp_path: Path) -> None:
    """`most` bounds the answer, and the highest scores stay."""
    x = pictures(tmp_path, 12)
    model = detector(tmp_path / "m.onnx", batch="N", turned=True, logits=False)
    spec = f'task = "detection"\nlabels = {json.dumps(LABELS)}\n{FRAME}[detection]\nmost = '
    data = ("--data", str(tmp_path / "d.npz"), "--quantize", "none")
    few = detections(build(tmp_path, model, spec + "5\n", *data), x)
    many = detections(build(tmp_path, model, spec + "150\n", *data), x)
    assert [row[:5] for row in many] == few
    assert max(map(len, many)) > 5


@pytest.mark.parametrize(
    ("spec", "answered"),
    [
        ('labels = ["a", "b"]\n', "expected an axis of 6 (boxes and classes of the specification), found [7, 60]"),
        ("", "labels: expected the names of the detector's classes, found none"),
        (f"labels = {json.dumps(LABELS)}\n[detection]\noverlap = 0.0\n", "detection.overlap: expected more than 0"),
        (f"labels = {json.dumps([str(each) for each in range(56)])}\n", "found two in [60, 60]"),
    ],
)
def test_a_detector_that_is_described_otherwise_is_refused(
    spec: str, answered: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence says which size or key does not fit."""
    model = detector(tmp_path / "m.onnx", batch=1, turned=True)
    if "[60, 60]" in answered:
        save(
            model,
            [helper.make_node("ReduceMax", ["x"], ["m"]), helper.make_node("Reshape", ["m", "one"], ["n"]),
             helper.make_node("Expand", ["n", "s"], ["y"])],
            [("x", FLOAT, [1, 6, 6, 1])], [("y", FLOAT, [1, 60, 60])],
            constants={"s": np.array([1, 60, 60]), "one": np.array([1, 1, 1])},
        )  # fmt: skip
    head, _, table = spec.partition("[detection]")
    (tmp_path / "s.toml").write_text(f'task = "detection"\n{head}{FRAME}' + (f"[detection]{table}" if table else ""))
    names = ["build", str(model), "--spec", str(tmp_path / "s.toml"), "-o", str(tmp_path / "o.onnx")]
    assert main([*names, "--quantize", "none"]) == 1
    assert answered in capsys.readouterr().err


def test_a_large_output_has_its_own_task_and_a_small_self_test(tmp_path: Path) -> None:
    """84 x 8400 numbers a frame: all of them are judged, and the file holds a sample of them."""
    x = pictures(tmp_path, 12)
    rng = np.random.default_rng(1)
    constants = {
        "rows": rng.normal(size=(1, 84, 1)).astype(np.float32),
        "columns": rng.normal(size=(1, 1, 8400)).astype(np.float32),
        "last": np.array([2]),
    }
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[2, 3], keepdims=0),
        helper.make_node("Unsqueeze", ["mean", "last"], ["cube"]),
        helper.make_node("Add", ["rows", "cube"], ["left"]),
        helper.make_node("Mul", ["left", "columns"], ["output0"]),
    ]
    model = save(
        tmp_path / "m.onnx",
        nodes,
        [("x", FLOAT, [1, 1, 6, 6])],
        [("output0", FLOAT, [1, 84, 8400])],
        constants=constants,
    )
    spec = f'task = "tensor"\n{FRAME}layout = "hwc"\n[model]\nlayout = "chw"\n'
    out = build(tmp_path, model, spec, "--data", str(tmp_path / "d.npz"), "--quantize", "none")
    manifest = manifest_of(out)
    assert [(each.name, each.shape, each.dtype) for each in manifest.output.tensors] == [
        ("output0", (84, 8400), "float32")
    ]
    assert out.stat().st_size < model.stat().st_size + 20_000
    fed = (x.astype(np.float32) * np.float32(0.00390625)).transpose(0, 3, 1, 2)
    session = onnxruntime.InferenceSession(model)
    found = run(session_of(out.read_bytes()), x[:3].astype(np.float32), batch=2).tensors()["output0"]
    for row in range(3):
        np.testing.assert_allclose(found[row], session.run(None, {"x": fed[row : row + 1]})[0][0], atol=1e-5)
    opened = open_bundle(out)
    golden = opened.manifest.selftest
    assert golden is not None
    assert (golden.every, golden.outputs["output0"].shape) == ({"output0": 691}, (1, 1022))
    check_golden(Model(opened))
    spoilt = bytearray(base64.b64decode(golden.outputs["output0"].data))
    spoilt[2001 * 2 + 1] ^= 0x40  # the exponent of a number in the middle of the sample
    other = msgspec.structs.replace(golden.outputs["output0"], data=base64.b64encode(spoilt).decode())
    manifest = msgspec.structs.replace(
        opened.manifest, selftest=msgspec.structs.replace(golden, outputs={"output0": other})
    )
    model_of = Model(opened)
    model_of.manifest = manifest
    with pytest.raises(BundleError, match="expected the golden output0 within"):
        check_golden(model_of)


def test_several_outputs_are_named_tensors(tmp_path: Path) -> None:
    """Floats and whole numbers under the names of the specification, each in its shape."""
    x = np.random.default_rng(0).normal(size=(40, 8, 3)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x=x)
    model = save(
        tmp_path / "m.onnx",
        [
            helper.make_node("MatMul", ["x", "w"], ["maps"]),
            helper.make_node("ArgMax", ["maps"], ["peaks"], axis=1, keepdims=0),
            helper.make_node("ReduceMean", ["maps"], ["value"], axes=[1, 2], keepdims=0),
        ],
        [("x", FLOAT, ["N", 8, 3])],
        [("maps", FLOAT, ["N", 8, 5]), ("peaks", TensorProto.INT64, ["N", 5]), ("value", FLOAT, ["N"])],
        constants={"w": np.random.default_rng(1).normal(size=(3, 5)).astype(np.float32)},
    )
    channels = "".join(f'[[channel]]\nname = "c{index}"\n' for index in range(3))
    named = ('"heat"\ntensor = "maps"', '"peaks"', '"value"')
    spec = 'task = "tensor"\n' + "".join(f"[[output]]\nname = {each}\n" for each in named)
    out = build(tmp_path, model, f"{spec}[window]\nlength = 8\n{channels}", "--data", str(tmp_path / "d.npz"))
    declared = [(each.name, each.shape, each.dtype) for each in manifest_of(out).output.tensors]
    assert declared == [("heat", (8, 5), "float32"), ("peaks", (5,), "int64"), ("value", (), "float32")]
    names = ("maps", "peaks", "value")
    wanted = dict(zip(names, onnxruntime.InferenceSession(model).run(list(names), {"x": x}), strict=True))
    found = run(session_of(out.read_bytes()), x).tensors()
    np.testing.assert_allclose(found["heat"], wanted["maps"], atol=2e-3)  # the form that was kept may hold float16
    assert (found["peaks"] != wanted["peaks"]).mean() < 0.02
    np.testing.assert_allclose(found["value"], wanted["value"], atol=2e-3)


def test_an_embedding_is_one_vector(tmp_path: Path) -> None:
    """Whatever the shape of the output, and judged by its direction."""
    x = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x=x)
    model = save(
        tmp_path / "m.onnx",
        [
            helper.make_node("MatMul", ["x", "w"], ["h"]),
            helper.make_node("LpNormalization", ["h"], ["n"], axis=1, p=2),
            helper.make_node("Unsqueeze", ["n", "one"], ["e"]),
        ],
        [("x", FLOAT, ["N", 6])], [("e", FLOAT, ["N", 1, 16])],
        constants={"w": np.random.default_rng(1).normal(size=(6, 16)).astype(np.float32), "one": np.array([1])},
    )  # fmt: skip
    out = build(tmp_path, model, 'task = "embedding"\n', "--data", str(tmp_path / "d.npz"))
    manifest = manifest_of(out)
    assert [(each.name, each.shape) for each in manifest.output.tensors] == [("embedding", (16,))]
    assert manifest.quantization["metric"] == "cosine with the source's"
    wanted = onnxruntime.InferenceSession(model).run(None, {"x": x})[0][:, 0]
    found = run(session_of(out.read_bytes()), x[:, None]).tensors()["embedding"]
    assert ((found * wanted).sum(axis=1) > 0.99).all()


def two_outputs(path: Path) -> Path:
    """Boxes as corners, top first, and scores of three classes and "nothing": both have an axis of four."""
    rng = np.random.default_rng(0)
    corner = rng.uniform(10, 60, (CANDIDATES, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(10, 40, (CANDIDATES, 2))], axis=1).astype(np.float32)
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "w"], ["raw"]),
        helper.make_node("Reshape", ["raw", "shape"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["classes"], axis=2),
        helper.make_node("Identity", ["fixed"], ["places"]),
    ]
    weights = rng.normal(0, 1.0, (36, CANDIDATES * 4)).astype(np.float32)
    constants = {"w": weights, "shape": np.array([1, CANDIDATES, 4]), "fixed": boxes[None]}
    outputs = [("classes", FLOAT, [1, CANDIDATES, 4]), ("places", FLOAT, [1, CANDIDATES, 4])]
    return save(path, nodes, [("x", FLOAT, [1, 6, 6, 1])], outputs, constants=constants)


def test_outputs_that_look_alike_are_named_and_a_background_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is guessed where sizes do not tell; with names, corners and background as the specification says."""
    model, x = two_outputs(tmp_path / "m.onnx"), pictures(tmp_path, 12)
    spec = f'task = "detection"\nlabels = {json.dumps(LABELS)}\n{FRAME}[detection]\nboxes = "yxyx"\nbackground = true\n'
    (tmp_path / "s.toml").write_text(spec)
    names = ["build", str(model), "--spec", str(tmp_path / "s.toml"), "--quantize", "none", "--data"]
    assert main([*names, str(tmp_path / "d.npz"), "-o", str(tmp_path / "o.onnx")]) == 1
    assert "expected sizes that tell boxes from scores" in capsys.readouterr().err
    named = '[[output]]\nname = "boxes"\ntensor = "places"\n[[output]]\nname = "scores"\ntensor = "classes"\n'
    out = build(tmp_path, model, spec + named, "--data", str(tmp_path / "d.npz"), "--quantize", "none")
    session = onnxruntime.InferenceSession(model)
    for row, found in zip(x, detections(out, x, batch=1), strict=True):
        classes, places = session.run(None, {"x": row[None].astype(np.float32) * np.float32(0.00390625)})
        top, left, bottom, right = places[0].astype(np.float64).T
        centred = np.stack([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top], axis=1)
        wanted = expected(centred, classes[0, :, 1:].astype(np.float64), 0.25, 0.45)[:100]
        assert [each[0] for each in found] == [each[0] for each in wanted]
        np.testing.assert_allclose([each[2] for each in found], [each[2] for each in wanted], atol=1e-3)


def test_a_tensor_that_is_called_as_the_input_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In our words, with the way out."""
    model = save(
        tmp_path / "m.onnx", [helper.make_node("Abs", ["x"], ["window"])], [("x", FLOAT, ["N", 3])],
        [("window", FLOAT, ["N", 3])], constants={},
    )  # fmt: skip
    (tmp_path / "s.toml").write_text('task = "tensor"\n')
    names = ["build", str(model), "--spec", str(tmp_path / "s.toml"), "--quantize", "none"]
    assert main([*names, "-o", str(tmp_path / "o.onnx")]) == 1
    assert "[[output]] window: expected a name that no input" in capsys.readouterr().err
