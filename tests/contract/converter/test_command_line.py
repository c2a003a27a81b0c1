"""`edge-convert` from outside: what it writes, what it refuses, and what it says."""

import dataclasses
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import skops.io
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.tree import DecisionTreeClassifier

from converter.cli import main
from converter.commands.inspect import manifest_of
from edge_runtime.bundle.manifest import METADATA_KEY, read_manifest
from edge_runtime.bundle.open import open_bundle
from tests.support.waiting import patient

Write = Callable[[Any], Path]


def readings(n: int = 200) -> tuple[Any, Any]:
    """Two channels, two classes."""
    x = np.random.default_rng(0).normal(size=(n, 2)).astype(np.float32)
    return x, (x[:, 0] + 0.2 * x[:, 1] > 0).astype(np.int64)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A fitted network in a skops file."""
    x, y = readings()
    fitted = make_pipeline(StandardScaler(), MLPClassifier((8,), max_iter=40, random_state=0)).fit(x, y)
    skops.io.dump(fitted, tmp_path / "net.skops")
    return tmp_path / "net.skops"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Readings and their classes."""
    x, y = readings()
    np.savez(tmp_path / "data.npz", x=x, y=y)
    return tmp_path / "data.npz"


def build(*arguments: str | Path) -> int:
    """Run the command in this process."""
    return main(["build", *map(str, arguments)])


def refused(capsys: pytest.CaptureFixture[str], out: Path, *arguments: str | Path) -> str:
    """Run a command that must fail with messages and without a file, and hand back what it reported."""
    capsys.readouterr()
    assert build(*arguments, "-o", out) == 1
    noted = capsys.readouterr().err
    assert noted.strip()
    assert "Traceback" not in noted
    assert not out.exists()
    assert not [path for path in out.parent.iterdir() if path.name.startswith(f".{out.name}")]
    return noted


def test_build_writes_a_bundle_that_a_device_opens(model: Path, data: Path, tmp_path: Path) -> None:
    """The file holds its manifest, golden rows and limits, and the runtime takes it as it is."""
    out = tmp_path / "net.onnx"
    assert build(model, "--data", data, "-o", out) == 0
    manifest = open_bundle(out).manifest
    assert (manifest.name, manifest.version, manifest.task) == ("net", "1.0.0", "classification")
    assert manifest.output.labels == ("0", "1")
    assert manifest.input.tensor_shape == (1, 2)
    assert manifest.selftest is not None
    assert manifest.selftest.input.shape[0] >= 3
    assert (manifest.requires.opset, manifest.requires.ir_version) == (17, 8)
    assert manifest.source.framework == "scikit-learn"
    assert len(manifest.source.digest) == 64
    session = onnxruntime.InferenceSession(out)
    assert [(i.name, i.type, i.shape) for i in session.get_inputs()] == [("window", "tensor(float)", ["N", 1, 2])]
    assert [(o.name, o.type) for o in session.get_outputs()] == [
        ("label", "tensor(int64)"),
        ("scores", "tensor(float)"),
    ]
    assert session.get_modelmeta().custom_metadata_map.keys() == {METADATA_KEY}


@pytest.mark.parametrize("method", ["auto", "none", "int8", "dynamic", "float16"])
def test_every_way_to_quantise_is_recorded_and_shown(
    method: str, model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table and the manifest tell the metric, the differing labels and the bytes of each form."""
    out = tmp_path / "net.onnx"
    assert build(model, "--data", data, "-o", out, "--quantize", method, "--prefer", "size") == 0
    noted = capsys.readouterr().out
    assert "accuracy" in noted
    assert "differing labels" in noted
    record = manifest_of(out).quantization
    assert record["bytes"] == out.stat().st_size
    assert record["requested"] == method
    assert method == "auto" or record["method"] == method
    assert record["drop"] <= 0.01
    if method == "auto":
        smallest = min(record["candidates"], key=lambda form: form["bytes"])
        assert record["bytes"] == smallest["bytes"]
    types = {node.op_type for node in _nodes(out)}
    assert ("QuantizeLinear" in types) == (record["method"] == "int8")
    assert ("MatMulInteger" in types) == (record["method"] == "dynamic")


def _nodes(path: Path) -> Any:
    import onnx  # noqa: PLC0415

    return onnx.load(path).graph.node


def test_equal_inputs_give_byte_equal_bundles(model: Path, data: Path, tmp_path: Path) -> None:
    """With `SOURCE_DATE_EPOCH` set, two runs in two processes write the same bytes."""
    usual = {name: text for name, text in os.environ.items() if name != "OMP_NUM_THREADS"}  # with as many as elsewhere
    for name in ("a.onnx", "b.onnx"):
        done = subprocess.run(
            [sys.executable, "-m", "converter.cli", "build", model, "--data", data, "-o", tmp_path / name],
            env={**usual, "SOURCE_DATE_EPOCH": "1700000000", "PYTHONHASHSEED": str(len(name) + ord(name[0]))},
            cwd=Path(__file__).resolve().parents[3],
            capture_output=True,
            check=False,
            timeout=patient(120),
        )
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert manifest_of(tmp_path / "a.onnx").source.converted == "2023-11-14T22:13:20Z"


def test_trees_are_told_in_words_that_they_are_not_quantised(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tree stays float32, and both the output and the manifest say why."""
    x, y = readings()
    skops.io.dump(DecisionTreeClassifier().fit(x, y), tmp_path / "tree.skops")
    for method in ("auto", "int8"):
        assert build(tmp_path / "tree.skops", "--data", data, "-o", tmp_path / "tree.onnx", "--quantize", method) == 0
        assert "trees are not quantised" in capsys.readouterr().out
        record = manifest_of(tmp_path / "tree.onnx").quantization
        assert record["method"] == "none"
        assert "nothing to quantise" in record["reason"]


def test_over_the_limit_no_file_is_written(
    tmp_path: Path, data: Path, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A form that loses more than `--max-drop` is refused, and the table shows by how much."""
    from converter import quantize, search  # noqa: PLC0415

    spoilt = quantize._static

    def calibrated_on_nothing(
        before: Path, after: Path, nodes: Any, recipe: Any, *, calibration: Any, states: Any
    ) -> None:
        spoilt(before, after, nodes, recipe, calibration=calibration * 0.0, states=states)

    monkeypatch.setattr(quantize, "_static", calibrated_on_nothing)
    monkeypatch.setattr(search, "sparing", lambda *_: [])
    out = tmp_path / "net.onnx"
    assert build(model, "--data", data, "-o", out, "--quantize", "int8") == 1
    noted = capsys.readouterr()
    assert "int8 static" in noted.out
    assert "more than --max-drop 0.01" in noted.err
    assert not out.exists()


def test_a_conversion_that_changes_answers_is_refused(
    tmp_path: Path, data: Path, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The float ONNX is held to the source before anything is made of it."""
    from converter.load.sklearn import SklearnModel  # noqa: PLC0415

    honest = SklearnModel.predict

    def other(self: SklearnModel, windows: Any) -> Any:
        return honest(self, -windows)

    monkeypatch.setattr(SklearnModel, "predict", other)
    assert "does not answer as the source does" in refused(capsys, tmp_path / "net.onnx", model, "--data", data)


def test_a_bundle_that_fails_in_a_fresh_process_is_not_written(
    tmp_path: Path, data: Path, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trial compares golden rows in a process of its own, and a stranger's answer ends the build."""
    from converter import package, session  # noqa: PLC0415

    def wrong(*arguments: Any) -> Any:
        answer = session.run(*arguments)
        assert answer.scores is not None
        return dataclasses.replace(answer, scores=answer.scores + np.float32(0.5))

    monkeypatch.setattr(package, "run", wrong)
    assert "failed its trial in a fresh process" in refused(capsys, tmp_path / "net.onnx", model, "--data", data)


def test_an_onnx_file_in_normal_form_needs_no_data(model: Path, data: Path, tmp_path: Path) -> None:
    """A bundle converts again without --data, and keeps its labels."""
    assert build(model, "--data", data, "-o", tmp_path / "net.onnx", "--quantize", "none") == 0
    assert build(tmp_path / "net.onnx", "--quantize", "none", "-o", tmp_path / "again.onnx") == 0
    assert manifest_of(tmp_path / "again.onnx").output.labels == ("0", "1")


def test_labels_of_the_specification_order_the_scores(tmp_path: Path) -> None:
    """`labels` that name the model's classes in another order put scores and labels in that order."""
    x, y = readings()
    fitted = LogisticRegression().fit(x, np.array(["calm", "busy"])[y])
    skops.io.dump(fitted, tmp_path / "room.skops")
    (tmp_path / "room.toml").write_text('labels = ["calm", "busy"]')
    np.savez(tmp_path / "data.npz", x=x, y=np.array(["calm", "busy"])[y])
    out = tmp_path / "room.onnx"
    assert (
        build(tmp_path / "room.skops", "--spec", tmp_path / "room.toml", "--data", tmp_path / "data.npz", "-o", out)
        == 0
    )
    label, scores = onnxruntime.InferenceSession(out).run(None, {"window": x[:, None, :]})
    assert [["calm", "busy"][i] for i in label] == list(fitted.predict(x))
    np.testing.assert_allclose(scores[:, 1], fitted.predict_proba(x)[:, 0], atol=1e-3)


def test_a_table_gives_windows_that_stay_within_their_recording(tmp_path: Path) -> None:
    """CSV rows become windows by group, and several targets come from several columns."""
    rng = np.random.default_rng(0)
    lines = ["recording,a,b,up,down"]
    for recording in range(12):
        for _ in range(9):
            a, b = rng.normal(size=2)
            lines.append(f"r{recording},{a},{b},{a + b},{a - b}")
    (tmp_path / "data.csv").write_text("\n".join(lines))
    table = np.array([[float(v) for v in line.split(",")[1:]] for line in lines[1:]])
    windows = table[:, :2].reshape(12, 9, 2)[:, :8].reshape(24, 8)
    truth = table[:, 2:].reshape(12, 9, 2)[:, 3:8:4].reshape(24, 2)
    skops.io.dump(LinearRegression().fit(windows, truth), tmp_path / "sum.skops")
    (tmp_path / "sum.toml").write_text(
        'targets = ["sum"]\n[window]\nlength = 4\n[[channel]]\nname = "a"\n[[channel]]\nname = "b"\n'
        '[data]\nlabel = ["up", "down"]\ngroup = "recording"\n'
    )
    out = tmp_path / "sum.onnx"
    assert build(tmp_path / "sum.skops", "--spec", tmp_path / "sum.toml", "--data", tmp_path / "data.csv",
                 "-o", out, "--quantize", "none") == 0  # fmt: skip
    manifest = manifest_of(out)
    assert [target.name for target in manifest.output.targets] == ["sum", "output_1"]
    assert manifest.quantization["rows"] == 24
    assert manifest.quantization["final_metric"] == pytest.approx(1.0)


def test_columns_of_a_table_name_the_channels_that_nobody_named(model: Path, tmp_path: Path) -> None:
    """Without [[channel]], the columns beside label, group and time are the channels."""
    x, y = readings()
    rows = ["speed,torque,state", *(f"{a},{b},{label}" for (a, b), label in zip(x, y, strict=True))]
    (tmp_path / "data.csv").write_text("\n".join(rows))
    (tmp_path / "spec.toml").write_text('[data]\nlabel = "state"')
    out = tmp_path / "net.onnx"
    assert build(model, "--spec", tmp_path / "spec.toml", "--data", tmp_path / "data.csv", "-o", out) == 0
    assert manifest_of(out).channel_names == ("speed", "torque")


def test_a_flat_model_takes_frames_of_its_size(tmp_path: Path) -> None:
    """Pixels of a small picture are scaled in the graph and flattened row by row."""
    pixels = np.random.default_rng(0).integers(0, 256, size=(120, 4, 4)).astype(np.uint8)
    truth = (pixels[:, :2].mean(axis=(1, 2)) > 128).astype(int)
    fitted = LogisticRegression(max_iter=500).fit(pixels.reshape(120, 16) / 256.0, truth)
    skops.io.dump(fitted, tmp_path / "light.skops")
    (tmp_path / "spec.toml").write_text('[frame]\nshape = [4, 4]\ndtype = "uint8"\nscale = 0.00390625')
    np.savez(tmp_path / "data.npz", x=pixels, y=truth)
    out = tmp_path / "light.onnx"
    assert build(tmp_path / "light.skops", "--spec", tmp_path / "spec.toml", "--data", tmp_path / "data.npz", "-o", out,
                 "--quantize", "none") == 0  # fmt: skip
    label, _ = onnxruntime.InferenceSession(out).run(None, {"window": pixels.astype(np.float32)})
    np.testing.assert_array_equal(label, fitted.predict(pixels.reshape(120, 16) / 256.0))


def test_inspect_shows_the_manifest_to_people_and_programs(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`inspect` prints lines for a person, and with --json exactly the manifest."""
    out = tmp_path / "net.onnx"
    assert build(model, "--data", data, "-o", out) == 0
    capsys.readouterr()
    assert main(["inspect", str(out)]) == 0
    assert "labels        0, 1" in capsys.readouterr().out
    assert main(["inspect", str(out), "--json"]) == 0
    noted = capsys.readouterr().out
    assert read_manifest(json.dumps(json.loads(noted)), "x") == manifest_of(out)


def test_compare_puts_two_bundles_side_by_side(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`compare` runs both on the same rows and counts the labels that differ."""
    for method in ("none", "int8"):
        assert build(model, "--data", data, "-o", tmp_path / f"{method}.onnx", "--quantize", method) == 0
    capsys.readouterr()
    arguments = ["compare", str(tmp_path / "none.onnx"), str(tmp_path / "int8.onnx"), "--data", str(data)]
    assert main(arguments) == 0
    noted = capsys.readouterr().out
    assert "none.onnx" in noted
    assert "int8.onnx" in noted
    assert "accuracy" in noted


def test_a_signed_bundle_verifies_and_a_changed_one_does_not(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """keygen, build --sign, verify: the signature is made of the bytes that were written."""
    key, out, signers = tmp_path / "key", tmp_path / "net.onnx", tmp_path / "allowed_signers"
    assert main(["keygen", str(key), "--principal", "press"]) == 0
    signers.write_text(capsys.readouterr().out.splitlines()[-1] + "\n")
    assert build(model, "--data", data, "-o", out, "--sign", key) == 0
    assert main(["verify", str(out), "--allowed-signers", str(signers)]) == 0
    assert "press" in capsys.readouterr().out
    out.write_bytes(out.read_bytes() + b"\0")
    assert main(["verify", str(out), "--allowed-signers", str(signers)]) == 1
    assert main(["sign", str(out), "--key", str(key)]) == 0
    assert main(["verify", str(out), "--allowed-signers", str(signers)]) == 0
    assert main(["keygen", str(key)]) == 1
    assert "never overwritten" in capsys.readouterr().err
    assert build(model, "--data", data, "-o", out) == 0
    assert not out.with_name("net.onnx.sig").exists()


class Canary:
    """Unpickling it leaves a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (open, (self.path, "w"))


@pytest.mark.parametrize("name", ["m.pkl", "m.joblib", "m.skops", "m.onnx", "m.txt", "m.json", "m"])
@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
def test_a_pickle_is_refused_before_a_byte_is_unpickled(
    name: str, protocol: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever a pickle is called, it needs --trust, and nothing in it runs without."""
    canary = tmp_path / "canary"
    (tmp_path / name).write_bytes(pickle.dumps(Canary(str(canary)), protocol=protocol))
    noted = refused(capsys, tmp_path / "out.onnx", tmp_path / name, "--quantize", "none")
    assert "this is a pickle" in noted
    assert "--trust" in noted
    assert not canary.exists()


@pytest.mark.parametrize("compress", [0, 3, ("gzip", 3), ("bz2", 3), ("xz", 3), ("lzma", 3)])
def test_a_joblib_file_needs_trust_however_it_is_compressed(
    compress: Any, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --trust it is loaded; without, it is refused."""
    import joblib  # noqa: PLC0415

    x, y = readings()
    path = tmp_path / "model.bin"
    joblib.dump(LogisticRegression().fit(x, y), path, compress=compress)
    assert "this is a pickle" in refused(capsys, tmp_path / "out.onnx", path, "--data", data)
    assert build(path, "--data", data, "-o", tmp_path / "out.onnx", "--trust") == 0


def test_a_skops_file_with_strange_types_lists_them(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A function of another package is named and refused."""
    x, y = readings()
    strange = make_pipeline(FunctionTransformer(os.path.basename), LogisticRegression())
    strange.steps[1][1].fit(x, y)
    skops.io.dump(strange, tmp_path / "strange.skops")
    noted = refused(capsys, tmp_path / "out.onnx", tmp_path / "strange.skops", "--data", data)
    assert "posixpath.basename" in noted
    assert "--trust" in noted


BAD_SPEC = 'nmae = "x"\nversion = 3\nlabels = ["a", "a"]\n[window]\nlenght = 4\n'


def test_every_mistake_of_a_specification_is_told_at_once(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unknown keys come with the nearest known one, and no mistake hides another."""
    (tmp_path / "bad.toml").write_text(BAD_SPEC)
    noted = refused(capsys, tmp_path / "out.onnx", model, "--spec", tmp_path / "bad.toml", "--data", data)
    assert "nmae: unknown key; did you mean `name`?" in noted
    assert "version: expected a text, found 3" in noted
    assert "window.lenght: unknown key; did you mean `length`?" in noted
    assert "window.length: expected a whole number, found nothing" in noted


def _channels(*names: str) -> str:
    return "".join(f'[[channel]]\nname = "{name}"\n' for name in names)


# What is written in the specification, and the message that it must cause.
MESSAGES = {
    "missing label column": ('[data]\nlabel = "state"', "expected a label column 'state', found a, b, y"),
    "missing channel column": (_channels("a", "c"), "expected a column 'c', found a, b, y"),
    "too many channels": (_channels("a", "b", "y"), "the specification has 3 over windows of 1, which makes 3 values"),
    "window": ("[window]\nlength = 3", "window.length: the model takes 2 values, which 3 readings cannot make up"),
    "classes": ('labels = ["a", "b", "c"]', "labels: the specification has 3, the model has 2 classes"),
    "task": ('task = "regression"', "task: the specification says regression, the model is a classification"),
}


@pytest.mark.parametrize("case", MESSAGES)
def test_a_model_a_specification_and_data_that_disagree_are_refused(
    case: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each disagreement is one message that says what was expected and what was found."""
    x, y = readings()
    lines = ["a,b,y", *(f"{a},{b},{label}" for (a, b), label in zip(x, y, strict=True))]
    (tmp_path / "data.csv").write_text("\n".join(lines))
    spec, message = MESSAGES[case]
    if "[[channel]]" not in spec and case not in ("window", "classes", "task"):
        spec += '\n[[channel]]\nname = "a"\n[[channel]]\nname = "b"'
    (tmp_path / "spec.toml").write_text(spec)
    noted = refused(
        capsys, tmp_path / "out.onnx", model, "--spec", tmp_path / "spec.toml", "--data", tmp_path / "data.csv"
    )
    assert message in noted


def _nan(x: Any, y: Any) -> dict[str, Any]:
    x[7, 1] = np.nan
    return {"x": x, "y": y}


DATA = {
    "NaN": (_nan, "found 1 that are NaN or infinite, the first in row 7 in channel 'channel_1'"),
    "few": (lambda x, y: {"x": x[:5], "y": y[:5]}, "too few rows: expected at least 10 windows"),
    "none": (lambda x, y: {"x": x[:0], "y": y[:0]}, "too few rows"),
    "no x": (lambda x, y: {"data": x}, "expected an array `x`, found data"),
    "width": (lambda x, y: {"x": x[:, :1], "y": y}, "x: expected windows of 1 x 2, found 1"),
    "length of y": (lambda x, y: {"x": x, "y": y[:9]}, "y: expected 200 rows as in x, found 9"),
    "labels": (lambda x, y: {"x": x, "y": y + 4}, "labels: expected 0, 1, found '4', '5'"),
    "objects": (lambda x, y: {"x": x, "y": y.astype(object)}, "expected a .npz archive of plain arrays"),
}  # fmt: skip


@pytest.mark.parametrize("case", DATA)
def test_bad_data_is_refused(case: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A fault of the data is named with its row and channel."""
    make, message = DATA[case]
    np.savez(tmp_path / "bad.npz", **make(*readings()))
    assert message in refused(capsys, tmp_path / "out.onnx", model, "--data", tmp_path / "bad.npz")


@pytest.mark.parametrize("suffix", [".skops", ".onnx", ".joblib"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.98])
def test_a_truncated_file_is_told_from_a_whole_one(
    suffix: str, share: float, model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that ends early is refused with one message, wherever it ends."""
    whole = model
    if suffix == ".onnx":
        whole = tmp_path / "whole.onnx"
        assert build(model, "--data", data, "-o", whole, "--quantize", "none") == 0
    if suffix == ".joblib":
        import joblib  # noqa: PLC0415

        whole = tmp_path / "whole.joblib"
        joblib.dump(LogisticRegression().fit(*readings()), whole)
    cut = tmp_path / f"cut{suffix}"
    cut.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * share)])
    noted = refused(capsys, tmp_path / "out.onnx", cut, "--data", data, "--trust")
    assert str(cut) in noted
    assert len(noted.strip().splitlines()) == 1


def test_missing_files_and_folders_are_named(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each file that is not there is one message."""
    gone = tmp_path / "gone"
    out = tmp_path / "out.onnx"
    assert "no such file" in refused(capsys, out, gone, "--data", data)
    assert "no such file" in refused(capsys, out, model, "--data", gone)
    assert "no such file" in refused(capsys, out, model, "--data", data, "--spec", gone)
    assert "no such file" in refused(capsys, out, model, "--data", data, "--sign", gone)
    assert build(model, "--data", data, "-o", gone / "out.onnx") == 1
    assert "folder that exists" in capsys.readouterr().err
    assert "expected --data" in refused(capsys, out, model)


def test_usage_is_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong command line has another exit code than a failed run."""
    for arguments in ([], ["bake"], ["build"], ["build", "m", "-o", "x", "--quantize", "int4"]):
        assert main(arguments) == 2
    assert main(["--help"]) == 0
    assert "usage" in capsys.readouterr().out


def test_an_unfitted_model_and_a_transformer_are_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What predicts nothing, or always the same, is no model."""
    out = tmp_path / "out.onnx"
    skops.io.dump(LogisticRegression(), tmp_path / "new.skops")
    assert "expected a fitted model" in refused(capsys, out, tmp_path / "new.skops", "--data", data)
    x, y = readings()
    skops.io.dump(DecisionTreeClassifier().fit(x, y * 0), tmp_path / "one.skops")
    assert "expected two classes or more" in refused(capsys, out, tmp_path / "one.skops", "--data", data)
    skops.io.dump(StandardScaler().fit(readings()[0]), tmp_path / "scaler.skops")
    assert "found sklearn.StandardScaler" in refused(capsys, out, tmp_path / "scaler.skops", "--data", data)
