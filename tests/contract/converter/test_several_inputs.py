"""Models with several inputs and outputs: a group of channels each, constants for every row, names for every number."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from converter.cli import main
from converter.commands.inspect import manifest_of
from converter.session import run, session_of
from edge_runtime.bundle.model import Model
from edge_runtime.bundle.open import open_bundle
from tests.support.graphs import save

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
LENGTH = 6


def noise(*shape: int) -> NDArray[np.float32]:
    """Numbers around zero, the same each time."""
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def build(folder: Path, model: Path, spec: str, *arguments: str) -> int:
    """Run `build`; the bundle is `out.onnx`."""
    (folder / "spec.toml").write_text(spec)
    names = ["build", str(model), "--spec", str(folder / "spec.toml"), "-o", str(folder / "out.onnx")]
    return main([*names, *arguments])


def channels(*names: str) -> str:
    """Tables of channels."""
    return "".join(f'[[channel]]\nname = "{name}"\n' for name in names)


def inputs(**groups: list[str]) -> str:
    """Tables of inputs."""
    return "".join(
        f'[[input]]\nname = "{name}"\nchannels = {group}\n'.replace("'", '"') for name, group in groups.items()
    )


def two_towers(path: Path, batch: int | str) -> Path:
    """Motion over time, channels first, and the last temperatures; a value out."""
    nodes = [
        helper.make_node("Flatten", ["motion"], ["m"], axis=1),
        helper.make_node("MatMul", ["m", "w1"], ["h1"]),
        helper.make_node("MatMul", ["climate", "w2"], ["h2"]),
        helper.make_node("Concat", ["h1", "h2"], ["h"], axis=1),
        helper.make_node("Tanh", ["h"], ["t"]),
        helper.make_node("MatMul", ["t", "w3"], ["y"]),
    ]
    weights = {"w1": noise(3 * LENGTH, 4), "w2": noise(2, 4), "w3": noise(8, 1)}
    given = [("motion", FLOAT, [batch, 3, LENGTH]), ("climate", FLOAT, [batch, 2])]
    return save(path, nodes, given, [("y", FLOAT, [batch, 1])], constants=weights)


@pytest.mark.parametrize("batch", [1, "N"])
def test_each_input_takes_its_group_of_channels(batch: int | str, tmp_path: Path) -> None:
    """Channels in another order than the inputs; an input without a time axis gets the last reading of the window."""
    model = two_towers(tmp_path / "m.onnx", batch)
    names = ("temperature", "x", "y", "z", "humidity")
    spec = f'task = "regression"\n[window]\nlength = {LENGTH}\n{channels(*names)}'
    spec += inputs(motion=["x", "y", "z"], climate=["temperature", "humidity"])
    x = noise(40, LENGTH, 5)
    np.savez(tmp_path / "d.npz", x=x)
    assert build(tmp_path, model, spec, "--data", str(tmp_path / "d.npz"), "--quantize", "none") == 0
    session = onnxruntime.InferenceSession(model)
    wanted = [
        session.run(None, {"motion": row[None, :, 1:4].transpose(0, 2, 1), "climate": row[None, -1][:, [0, 4]]})[0][0]
        for row in x
    ]
    found = np.asarray(run(session_of((tmp_path / "out.onnx").read_bytes()), x).value)
    np.testing.assert_allclose(found, np.array(wanted), atol=1e-5)
    assert manifest_of(tmp_path / "out.onnx").channel_names == names
    assert np.asarray(Model(open_bundle(tmp_path / "out.onnx")).run(x).value).tobytes() == np.asarray(found).tobytes()


@pytest.mark.parametrize(
    ("groups", "answered"),
    [
        ({"motion": ["x", "y", "z", "t"]}, "inputs that nothing feeds: climate: name each in [[input]]"),
        ({"motion": ["x", "y"], "climate": ["z", "t"]}, "expected 18 values as the input takes, found 2 channels"),
        ({"motion": ["x", "y", "z"], "weather": ["t"]}, "[[input]] name: expected one of motion, climate"),
        ({"motion": ["x", "y", "q"], "climate": ["z", "t"]}, "input motion: channels: expected some of x, y, z, t"),
        (None, "or name each with its channels in [[input]]"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(
    groups: dict[str, list[str]] | None, answered: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each in a sentence that says which one and why."""
    model = two_towers(tmp_path / "m.onnx", "N")
    spec = f'task = "regression"\n[window]\nlength = {LENGTH}\n{channels("x", "y", "z", "t")}'
    assert build(tmp_path, model, spec + (inputs(**groups) if groups else ""), "--quantize", "none") == 1
    said_here = capsys.readouterr().err
    assert answered in said_here
    assert "Traceback" not in said_here


def test_tokens_and_masks_of_a_language_model_come_as_channels(tmp_path: Path) -> None:
    """Three inputs of int64 over the window; each is a channel."""
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["wide"]),
        helper.make_node("Mul", ["rows", "wide"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "one"], ["y"], keepdims=0),
    ]
    given = [("input_ids", INT64, ["batch", "sequence"]), ("attention_mask", INT64, ["batch", "sequence"])]
    table = {"table": noise(30, 4), "last": np.array([2]), "one": np.array([1])}
    model = save(tmp_path / "m.onnx", nodes, given, [("y", FLOAT, ["batch", 4])], constants=table)
    ids = np.random.default_rng(0).integers(0, 30, size=(50, LENGTH))
    mask = (np.arange(LENGTH) < np.random.default_rng(1).integers(1, LENGTH + 1, size=50)[:, None]).astype(np.int64)
    x = np.stack([ids, mask], axis=2)
    np.savez(tmp_path / "d.npz", x=x)
    ranges = '[[channel]]\nname = "id"\nrange = [0, 29]\n[[channel]]\nname = "mask"\nrange = [0, 1]\n'
    spec = f'task = "embedding"\n[window]\nlength = {LENGTH}\n{ranges}' + inputs(
        input_ids=["id"], attention_mask=["mask"]
    )
    assert build(tmp_path, model, spec, "--data", str(tmp_path / "d.npz"), "--quantize", "none") == 0
    wanted = onnxruntime.InferenceSession(model).run(None, {"input_ids": ids, "attention_mask": mask})[0]
    found = run(session_of((tmp_path / "out.onnx").read_bytes()), x.astype(np.float32)).tensors()["embedding"]
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("batch", [1, "batch"])
def test_constants_are_repeated_for_every_row(batch: int | str, tmp_path: Path) -> None:
    """A length for each row, and a mask as long as the window: one number in the specification serves for both."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("Cast", ["mask"], ["m"], to=FLOAT),
        helper.make_node("Unsqueeze", ["m", "last"], ["wide"]),
        helper.make_node("Mul", ["rows", "wide"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "one"], ["sum"], keepdims=0),
        helper.make_node("Cast", ["lengths"], ["l"], to=FLOAT),
        helper.make_node("Unsqueeze", ["l", "one"], ["column"]),
        helper.make_node("Concat", ["sum", "column"], ["y"], axis=1),
    ]
    sequence = LENGTH if batch == 1 else "sequence"
    given = [("ids", INT64, [batch, sequence]), ("mask", INT64, [batch, sequence]), ("lengths", INT64, [batch])]
    table = {"table": noise(30, 4), "last": np.array([2]), "one": np.array([1])}
    model = save(tmp_path / "m.onnx", nodes, given, [("y", FLOAT, [batch, 5])], constants=table)
    ids = np.random.default_rng(0).integers(0, 30, size=(50, LENGTH))
    np.savez(tmp_path / "d.npz", x=ids)
    spec = f'task = "regression"\n[frame]\nshape = [{LENGTH}]\ndtype = "int64"\nrange = [0, 29]\n'
    spec += "[constants]\nmask = 1\nlengths = 17\n"
    assert build(tmp_path, model, spec, "--data", str(tmp_path / "d.npz"), "--quantize", "none") == 0
    manifest = manifest_of(tmp_path / "out.onnx")
    assert manifest.batch_free
    session = onnxruntime.InferenceSession(model)
    ones = {"mask": np.ones((1, LENGTH), np.int64), "lengths": np.array([17])}
    wanted = np.concatenate([session.run(None, {"ids": row[None], **ones})[0] for row in ids])
    for size in (1, 7, 50):
        found = np.asarray(
            run(session_of((tmp_path / "out.onnx").read_bytes()), ids.astype(np.float32), batch=size).value
        )
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_several_outputs_of_a_regression_stand_side_by_side(tmp_path: Path) -> None:
    """Two heads, in the order of the specification, whose names become those of the targets."""
    nodes = [helper.make_node("MatMul", ["x", "w1"], ["power"]), helper.make_node("MatMul", ["x", "w2"], ["wear"])]
    model = save(
        tmp_path / "m.onnx", nodes, [("x", FLOAT, ["N", 3])], [("power", FLOAT, ["N", 1]), ("wear", FLOAT, ["N", 2])],
        constants={"w1": noise(3, 1), "w2": noise(3, 2)},
    )  # fmt: skip
    x = noise(40, 3)
    np.savez(tmp_path / "d.npz", x=x)
    spec = 'task = "regression"\n[[output]]\nname = "wear"\n[[output]]\nname = "kilowatts"\ntensor = "power"\n'
    assert build(tmp_path, model, spec, "--data", str(tmp_path / "d.npz"), "--quantize", "none") == 0
    targets = [target.name for target in manifest_of(tmp_path / "out.onnx").output.targets]
    assert targets == ["wear_0", "wear_1", "kilowatts"]
    power, wear = onnxruntime.InferenceSession(model).run(None, {"x": x})
    found = np.asarray(run(session_of((tmp_path / "out.onnx").read_bytes()), x[:, None]).value)
    np.testing.assert_allclose(found, np.concatenate([wear, power], axis=1), atol=1e-5)
