"""ONNX files from elsewhere: whatever their opset, batch, layout, types and outputs, the bundle answers as they do."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from converter.cli import main
from converter.commands.inspect import manifest_of

FLOAT = TensorProto.FLOAT


def save(
    path: Path, nodes: list[Any], inputs: Any, outputs: Any, *, constants: dict[str, NDArray[Any]], opset: int = 17
) -> Path:
    """A small ONNX file."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs],
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8 if opset < 21 else 10)
    onnx.save(model, path)
    return path


def noise(*shape: int) -> NDArray[np.float32]:
    """Seeded noise."""
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def build(path: Path, spec: str, *arguments: str) -> Path:
    """Build a bundle that must succeed."""
    (path.parent / "spec.toml").write_text(spec)
    out = path.with_name("out.onnx")
    assert main(["build", str(path), "--spec", str(path.parent / "spec.toml"), "-o", str(out), *arguments]) == 0
    return out


def ask(path: Path, windows: NDArray[Any], **states: Any) -> dict[str, Any]:
    """What a bundle answers."""
    session = onnxruntime.InferenceSession(path)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"window": windows.astype(np.float32), **states}), strict=True))


def softmax(x: Any) -> Any:
    """Probabilities of logits."""
    power = np.exp(x - x.max(axis=1, keepdims=True))
    return power / power.sum(axis=1, keepdims=True)


def dense(weights: NDArray[Any], source: str = "x", result: str = "y") -> list[Any]:
    """One matrix product."""
    return [helper.make_node("MatMul", [source, "w"], [result])]


@pytest.mark.parametrize("opset", [9, 11, 13, 18, 21, 22])
@pytest.mark.parametrize("batch", ["N", "?", None, 1])
def test_logits_of_any_opset_and_batch_become_probabilities(opset: int, batch: Any, tmp_path: Path) -> None:
    """An old or new opset, a named, nameless or frozen batch: N is free, and softmax is applied to logits."""
    w = noise(8, 3)
    path = save(
        tmp_path / "m.onnx",
        [helper.make_node("Reshape", ["x", "flat"], ["f"]), *dense(w, "f")],
        [("x", FLOAT, [batch, 4, 2])], [("y", FLOAT, [batch, 3])],
        constants={"w": w, "flat": np.array([1 if batch == 1 else -1, 8])}, opset=opset,
    )  # fmt: skip
    out = build(path, 'task = "classification"\nlabels = ["a", "b", "c"]\n[window]\nlength = 4', "--quantize", "none")
    x = noise(7, 4, 2)
    found = ask(out, x)
    np.testing.assert_allclose(found["scores"], softmax(x.reshape(7, 8) @ w), atol=1e-5)
    np.testing.assert_array_equal(found["label"], (x.reshape(7, 8) @ w).argmax(axis=1))
    assert manifest_of(out).batch_free
    assert onnxruntime.InferenceSession(out).get_inputs()[0].shape == ["N", 4, 2]


def test_a_batch_that_cannot_be_freed_is_told_in_the_manifest(tmp_path: Path) -> None:
    """A graph that sums over its batch runs window by window, and the manifest says so."""
    path = save(
        tmp_path / "m.onnx",
        [helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=0)],
        [("x", FLOAT, [1, 2])], [("y", FLOAT, [2])], constants={"axes": np.array([0])},
    )  # fmt: skip
    out = build(path, 'task = "regression"', "--quantize", "none")
    assert not manifest_of(out).batch_free
    assert onnxruntime.InferenceSession(out).get_inputs()[0].shape == [1, 1, 2]


@pytest.mark.parametrize("layout", ["", '[model]\nlayout = "channel_first"'])
def test_a_channel_first_convolution_gets_its_channels_first(layout: str, tmp_path: Path) -> None:
    """Input [N, channels, length] is recognised by its sizes, or reported in [model]."""
    w = noise(4, 2, 3)
    path = save(
        tmp_path / "m.onnx",
        [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("GlobalAveragePool", ["c"], ["g"]),
         helper.make_node("Flatten", ["g"], ["y"])],
        [("x", FLOAT, ["N", 2, 10])], [("y", FLOAT, ["N", 4])], constants={"w": w},
    )  # fmt: skip
    spec = 'task = "regression"\n[window]\nlength = 10\n[[channel]]\nname = "a"\n[[channel]]\nname = "b"\n'
    out = build(path, spec + layout, "--quantize", "none")
    x = noise(5, 10, 2)
    expected = onnxruntime.InferenceSession(path).run(None, {"x": x.transpose(0, 2, 1)})[0]
    np.testing.assert_allclose(ask(out, x)["value"], expected, atol=1e-6)
    assert [target.name for target in manifest_of(out).output.targets] == [f"output_{i}" for i in range(4)]


@pytest.mark.parametrize("kind", [TensorProto.UINT8, TensorProto.INT8, TensorProto.INT32, TensorProto.FLOAT16,
                                  TensorProto.DOUBLE])  # fmt: skip
def test_inputs_of_other_types_are_cast_in_the_graph(kind: int, tmp_path: Path) -> None:
    """`window` stays float32; rounding, clipping and the cast are inside."""
    w = noise(3, 2)
    path = save(
        tmp_path / "m.onnx",
        [helper.make_node("Cast", ["x"], ["f"], to=FLOAT), *dense(w, "f")],
        [("x", kind, ["N", 3])], [("y", FLOAT, ["N", 2])], constants={"w": w},
    )  # fmt: skip
    out = build(path, 'task = "regression"', "--quantize", "none")
    x = np.array([[[-200.0, 2.6, 300.0]], [[1.0, 0.0, 7.0]]], dtype=np.float32)
    fed = x[:, 0]
    if kind in (TensorProto.UINT8, TensorProto.INT8, TensorProto.INT32):
        limits = {int(TensorProto.UINT8): (0.0, 255.0), int(TensorProto.INT8): (-128.0, 127.0)}
        fed = np.clip(np.rint(fed), *limits.get(int(kind), (-1e9, 1e9)))
    np.testing.assert_allclose(ask(out, x)["value"], fed @ w, rtol=1e-2 if kind == TensorProto.FLOAT16 else 1e-6)


def test_one_probability_of_two_labels_becomes_two_scores(tmp_path: Path) -> None:
    """`[p]` becomes `[1 - p, p]`."""
    w = noise(3, 1)
    nodes = [*dense(w, "x", "z"), helper.make_node("Sigmoid", ["z"], ["p"])]
    path = save(tmp_path / "m.onnx", nodes, [("x", FLOAT, ["N", 3])], [("p", FLOAT, ["N", 1])], constants={"w": w})
    out = build(path, 'task = "classification"\nlabels = ["ok", "worn"]', "--quantize", "none")
    x = noise(9, 1, 3)
    p = 1 / (1 + np.exp(-(x[:, 0] @ w)[:, 0]))
    found = ask(out, x)
    np.testing.assert_allclose(found["scores"], np.stack([1 - p, p], axis=1), atol=1e-6)
    np.testing.assert_array_equal(found["label"], p > 0.5)


@pytest.mark.parametrize("other", ["Sigmoid", "Neg"])
def test_a_probability_made_in_a_branch_and_averaged_is_no_logit(other: str, tmp_path: Path) -> None:
    """Silero's way: an `If` whose branches end in Sigmoid, and a mean; if one branch does not, sigmoid is applied."""
    w = noise(3, 2)

    def branch(kind: str) -> Any:
        made = helper.make_tensor_value_info(f"b_{kind}", FLOAT, None)
        return helper.make_graph([helper.make_node(kind, ["z"], [f"b_{kind}"])], kind, [], [made])

    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["z"]),
        helper.make_node("If", ["yes"], ["both"], then_branch=branch("Sigmoid"), else_branch=branch(other)),
        helper.make_node("ReduceMean", ["both"], ["p"], axes=[1], keepdims=1),
    ]
    constants = {"w": w, "yes": np.array(True)}
    path = save(tmp_path / "m.onnx", nodes, [("x", FLOAT, ["N", 3])], [("p", FLOAT, ["N", 1])], constants=constants)
    out = build(path, 'task = "classification"\nlabels = ["ok", "worn"]', "--quantize", "none")
    x = noise(9, 1, 3)
    p = (1 / (1 + np.exp(-(x[:, 0] @ w)))).mean(axis=1)
    expected = p if other == "Sigmoid" else 1 / (1 + np.exp(-p))
    np.testing.assert_allclose(ask(out, x)["scores"][:, 1], expected, atol=1e-6)


def test_several_outputs_are_chosen_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file with two outputs of numbers says which ones there are, and [model] picks."""
    w = noise(3, 2)
    nodes = [*dense(w), helper.make_node("Neg", ["y"], ["z"])]
    path = save(
        tmp_path / "m.onnx", nodes, [("x", FLOAT, ["N", 3])], [(n, FLOAT, ["N", 2]) for n in "yz"], constants={"w": w}
    )
    assert main(["build", str(path), "--quantize", "none", "-o", str(tmp_path / "o.onnx")]) == 1
    assert "expected one output of numbers, found y, z" in capsys.readouterr().err
    out = build(path, 'task = "regression"\n[model]\noutput = "z"', "--quantize", "none")
    x = noise(4, 1, 3)
    np.testing.assert_allclose(ask(out, x)["value"], -(x[:, 0] @ w), atol=1e-6)


def test_a_reconstruction_becomes_an_anomaly_score_with_a_threshold_from_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The score is the mean squared error; the threshold is a stated quantile of the data's scores."""
    w = np.eye(4, dtype=np.float32) * np.float32(0.9)
    path = save(tmp_path / "m.onnx", dense(w), [("x", FLOAT, [1, 4])], [("y", FLOAT, [1, 4])], constants={"w": w})
    x = noise(200, 4)
    np.savez(tmp_path / "d.npz", x=x)
    out = build(
        path, 'task = "anomaly"\nthreshold_quantile = 0.9', "--data", str(tmp_path / "d.npz"), "--quantize", "none"
    )
    expected = np.mean((x * 0.1) ** 2, axis=1)
    np.testing.assert_allclose(ask(out, x[:, None])["score"], expected, rtol=1e-4)
    assert manifest_of(out).output.threshold == pytest.approx(np.quantile(expected, 0.9), rel=1e-5)
    assert "the 0.9 quantile of 200 rows" in capsys.readouterr().out


def test_states_and_constants_become_part_of_the_normal_form(tmp_path: Path) -> None:
    """A state is batch first outside whatever it is inside, and a constant is no input any more."""
    path = save(
        tmp_path / "m.onnx",
        [helper.make_node("Mul", ["x", "gain"], ["scaled"]),
         helper.make_node("Unsqueeze", ["scaled", "zero"], ["lifted"]),
         helper.make_node("Add", ["lifted", "state"], ["stateN"]),
         helper.make_node("ReduceSum", ["stateN", "axes"], ["y"], keepdims=0)],
        [("x", FLOAT, ["N", 3]), ("state", FLOAT, [1, "N", 3]), ("gain", FLOAT, [])],
        [("y", FLOAT, ["N"]), ("stateN", FLOAT, [1, "N", 3])],
        constants={"zero": np.array([0]), "axes": np.array([0, 2])},
    )  # fmt: skip
    spec = (
        'task = "regression"\n[[state]]\ninput = "state"\noutput = "stateN"\nbatch_axis = 1\n[constants]\ngain = 2.0\n'
    )
    out = build(path, spec + '[model]\ninput = "x"\noutput = "y"', "--quantize", "none")
    session = onnxruntime.InferenceSession(out)
    assert {item.name: item.shape for item in session.get_inputs()} == {"window": ["N", 1, 3], "state": ["N", 1, 3]}
    state = manifest_of(out).state[0]
    assert (state.input, state.output, state.shape) == ("state", "stateN", (1, 3))
    x = noise(4, 2, 3)
    held = np.zeros((4, 1, 3), dtype=np.float32)
    found = {"stateN": held}
    for step in range(2):
        found = ask(out, x[:, step : step + 1], state=found["stateN"])
    held = found["stateN"]
    np.testing.assert_allclose(held[:, 0], 2 * x.sum(axis=1), atol=1e-5)
    np.testing.assert_allclose(found["value"][:, 0], 2 * x.sum(axis=(1, 2)), atol=1e-5)


def test_frames_are_scaled_and_turned_inside_the_graph(tmp_path: Path) -> None:
    """Pixels in height-width-channel order meet a model that wants channels first and values around zero."""
    w = noise(2, 3, 3, 3)
    path = save(
        tmp_path / "m.onnx",
        [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("GlobalAveragePool", ["c"], ["y"])],
        [("x", FLOAT, [1, 3, 6, 5])], [("y", FLOAT, [1, 2, 1, 1])], constants={"w": w},
    )  # fmt: skip
    spec = 'task = "classification"\nlabels = ["none", "person"]\n[frame]\nshape = [6, 5, 3]\ndtype = "uint8"\n'
    spec += 'layout = "hwc"\nscale = 0.0078125\noffset = -1.0\n[model]\nlayout = "chw"'
    pixels = np.random.default_rng(0).integers(0, 256, size=(30, 6, 5, 3)).astype(np.uint8)
    np.savez(tmp_path / "d.npz", x=pixels, y=np.arange(30) % 2)
    out = build(path, spec, "--data", str(tmp_path / "d.npz"), "--quantize", "none")
    manifest = manifest_of(out)
    assert (manifest.input.shape, manifest.input.dtype, manifest.input.channels) == ((6, 5, 3), "uint8", ())
    fed = (pixels.astype(np.float32) * np.float32(0.0078125) - 1).transpose(0, 3, 1, 2)
    session = onnxruntime.InferenceSession(path)
    raw = np.concatenate([session.run(None, {"x": fed[i : i + 1]})[0].reshape(1, 2) for i in range(30)])
    np.testing.assert_allclose(ask(out, pixels)["scores"], softmax(raw), atol=1e-5)


@pytest.mark.parametrize("zipmap", [True, False])
def test_a_file_of_skl2onnx_keeps_its_classes(zipmap: bool, tmp_path: Path) -> None:
    """ZipMap goes, and text classes become labels."""
    from skl2onnx import to_onnx  # noqa: PLC0415
    from sklearn.ensemble import RandomForestClassifier  # noqa: PLC0415

    x = noise(200, 4)
    fitted = RandomForestClassifier(5, random_state=0).fit(x, np.where(x[:, 0] > 0, "up", "down"))
    exported = to_onnx(fitted, x[:1], options={"zipmap": zipmap}, target_opset={"": 17, "ai.onnx.ml": 3})
    onnx.save(exported, tmp_path / "m.onnx")
    out = build(tmp_path / "m.onnx", "", "--quantize", "none")
    assert manifest_of(out).output.labels == ("down", "up")
    found = ask(out, x[:, None])
    assert [("down", "up")[i] for i in found["label"]] == list(fitted.predict(x))
    np.testing.assert_allclose(found["scores"], fitted.predict_proba(x), atol=1e-6)


def test_what_no_device_would_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Weights outside the file, custom operators, inputs that nothing feeds, and frames that do not fit."""
    w = noise(3, 2)
    ends: Any = ([("x", FLOAT, ["N", 3])], [("y", FLOAT, ["N", 2])])
    custom = helper.make_node("Magic", ["x"], ["y"], domain="com.acme")
    inputs, outputs = ([helper.make_tensor_value_info(*item) for item in end] for end in ends)
    graph = helper.make_graph([custom], "g", inputs, outputs)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.acme", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "custom.onnx")
    plain = save(tmp_path / "plain.onnx", dense(w), ends[0], ends[1], constants={"w": w})
    outside = onnx.load(plain)
    onnx.external_data_helper.convert_model_to_external_data(outside, location="w.bin", size_threshold=0)
    onnx.save(outside, tmp_path / "external.onnx")
    two = [("x", FLOAT, ["N", 3]), ("z", FLOAT, ["N", 3])]
    save(
        tmp_path / "two.onnx", [helper.make_node("Add", ["x", "z"], ["y"])], two, [("y", FLOAT, ["N", 3])], constants={}
    )
    for name, spec, message in (
        ("custom.onnx", "", "expected standard operators, found com.acme.Magic"),
        ("external.onnx", "", "weights in other files are not accepted"),
        ("two.onnx", "", "expected one input for the window, found x ['N', 3], z ['N', 3]"),
        ("plain.onnx", "", "task: the model does not tell"),
        ("plain.onnx", '[model]\ninput = "q"', "[model] input: expected one of x, found 'q'"),
        ("plain.onnx", 'task = "regression"\n[frame]\nshape = [2, 2]', "the specification says [2, 2], which makes 4"),
        ("plain.onnx", 'task = "classification"\nlabels = ["a", "b", "c"]', "the specification has 3, the model has 2"),
    ):
        (tmp_path / "spec.toml").write_text(spec)
        capsys.readouterr()
        arguments = ["--spec", str(tmp_path / "spec.toml"), "--quantize", "none", "-o", str(tmp_path / "o.onnx")]
        assert main(["build", str(tmp_path / name), *arguments]) == 1
        stderr = capsys.readouterr().err
        assert message in stderr, stderr
        assert "Traceback" not in stderr
        assert not (tmp_path / "o.onnx").exists()


def test_weights_that_are_elsewhere_or_too_large_to_be_true_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path out of the folder, a link, a constant inside a body, terabytes: one message and no file each."""
    monkeypatch.chdir(tmp_path)
    secret = tmp_path / "secret.bin"
    secret.write_bytes(b"\0" * 24)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "link.bin").symlink_to(secret)
    ends: Any = ([("x", FLOAT, ["N", 3])], [("y", FLOAT, ["N", 3])])
    add = helper.make_node("Add", ["x", "w"], ["y"])

    def elsewhere(location: str, length: int = 3) -> onnx.TensorProto:
        tensor = onnx.TensorProto(name="w", data_type=FLOAT, dims=[length], data_location=onnx.TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value=location)
        return tensor

    def saved(nodes: list[Any], constants: list[Any]) -> Path:
        inputs, outputs = ([helper.make_tensor_value_info(*item) for item in end] for end in ends)
        graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
        opsets = [helper.make_opsetid("", 17)]
        (tmp_path / "models" / "m.onnx").write_bytes(
            helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
        )
        return tmp_path / "models" / "m.onnx"

    huge = onnx.TensorProto(name="w", data_type=FLOAT, dims=[1 << 20, 1 << 20], raw_data=b"\0" * 16)
    side = onnx.numpy_helper.from_array(np.array([1 << 20, 1 << 20]), "side")
    body = helper.make_graph(
        [helper.make_node("Constant", [], ["inner"], value=elsewhere("link.bin"))], "body", [],
        [helper.make_tensor_value_info("inner", FLOAT, [3])],
    )  # fmt: skip
    yes = onnx.numpy_helper.from_array(np.array(True), "yes")
    chosen = helper.make_node("If", ["yes"], ["w"], then_branch=body, else_branch=body)
    filled = helper.make_node("ConstantOfShape", ["side"], ["filled"])
    summed = helper.make_node("ReduceSum", ["filled"], ["w"], keepdims=0)
    elsewhere_message = "weights in other files are not accepted"
    for nodes, constants, message in (
        ([add], [elsewhere("../secret.bin")], elsewhere_message),
        ([add], [elsewhere(str(secret))], elsewhere_message),
        ([add], [elsewhere("link.bin")], elsewhere_message),
        ([chosen, add], [yes], elsewhere_message),
        ([add], [huge], "too small for the declared shape"),
        ([filled, summed, add], [side], "onnxruntime cannot run it"),
    ):
        (tmp_path / "spec.toml").write_text('task = "regression"')
        capsys.readouterr()
        arguments = ["--spec", str(tmp_path / "spec.toml"), "--quantize", "none", "-o", str(tmp_path / "o.onnx")]
        assert main(["build", str(saved(nodes, constants)), *arguments]) == 1
        stderr = capsys.readouterr().err
        assert message in stderr, stderr
        assert len(stderr.strip().splitlines()) == 1
        assert not (tmp_path / "o.onnx").exists()
