"""Model files that carry code: each is refused before any of it runs, and says which part needs --trust."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skops.io
from sklearn.linear_model import LogisticRegression

from converter.cli import main
from converter.load.savedmodel_ops import COMPUTING, SAVING
from converter.load.torch_archive import code_in, is_plain_arithmetic


def refused(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What `build` says to a file without --trust."""
    assert main(["build", str(path), "--quantize", "none", "-o", str(path.parent / "o.onnx")]) == 1
    assert not (path.parent / "o.onnx").exists()
    return capsys.readouterr().err


def fitted() -> LogisticRegression:
    """A model that the strange part hangs on."""
    x = np.random.default_rng(0).normal(size=(40, 2))
    return LogisticRegression().fit(x, (x[:, 0] > 0).astype(int))


# -- skops ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("scipy.stats._distn_infrastructure", "rv_continuous"),
        ("scipy.stats._distn_infrastructure", "rv_discrete"),
        ("numpy.lib._datasource", "DataSource"),
        ("numpy._pytesttester", "PytestTester"),
        ("scipy.io._fortran", "FortranFile"),
        ("scipy.io._netcdf", "netcdf_file"),
    ],
)
def test_a_skops_file_may_name_no_class_that_acts_on_its_state(
    module: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Packages are not trusted as a whole: a distribution of scipy executes the text of its state."""
    model = fitted()
    model.extra_ = np.random.default_rng(0)
    plain = io.BytesIO(skops.io.dumps(model))
    canary = tmp_path / "canary"
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(tmp_path / "m.skops", "w") as target:
        for member in source.namelist():
            data = source.read(member)
            if member == "schema.json":
                schema = json.loads(data)
                state = {"_parse_arg_template": f"open({str(canary)!r}, 'w')", "parse_arg_template": "import os"}
                strange = {"__module__": module, "__class__": name, "__loader__": "ObjectNode", "__id__": 1,
                           "content": skops_dict(state)}  # fmt: skip
                schema["content"]["content"]["extra_"] = strange
                data = json.dumps(schema).encode()
            target.writestr(member, data)
    assert f"types that are not trusted: {module}.{name}" in refused(tmp_path / "m.skops", capsys)
    assert not canary.exists()


def skops_dict(values: dict[str, str]) -> Any:
    """A dictionary as skops writes it."""

    class Holder:
        pass

    holder = fitted()
    holder.extra_ = values
    with zipfile.ZipFile(io.BytesIO(skops.io.dumps(holder))) as archive:
        return json.loads(archive.read("schema.json"))["content"]["content"]["extra_"]


# -- PyTorch -------------------------------------------------------------------------------------------------------


def test_a_torchscript_file_needs_trust_and_is_not_even_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its code may write files as it is loaded and exported, so that nothing of it is run."""
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
        archive.writestr("m/data.pkl", b"\x80\x02}.")
        archive.writestr("m/code/__torch__.py", "def forward(self, x):\n  return x\n")
    said = refused(tmp_path / "m.pt", capsys)
    assert "TorchScript is a program" in said
    assert "add --trust; better, save the model with torch.export.save" in said


def program(folder: Path, **entries: Any) -> Path:
    """An exported program with a graph of one node, and what is added to it."""
    node = {"target": "torch.ops.aten.relu.default", "inputs": [], "outputs": [], "metadata": {}}
    document = {"graph_module": {"graph": {"nodes": [node]}}, "range_constraints": {}}
    members: dict[str, Any] = {
        "models/model.json": document,
        "archive_format": "pt2",
        "data/weights/weight_0": "",
        "data/weights/model_weights_config.json": {"config": {"w": {"use_pickle": False}}},
        **entries,
    }
    with zipfile.ZipFile(folder / "m.pt2", "w") as archive:
        for name, value in members.items():
            data = value if isinstance(value, (str, bytes)) else json.dumps(value)
            archive.writestr(f"m/{name}", data)
    return folder / "m.pt2"


def node(target: str) -> Any:
    """A graph that calls something."""
    return {"graph_module": {"graph": {"nodes": [{"target": target, "inputs": [], "outputs": []}]}}}


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"models/model.json": node("torch.save")}, "a call of 'torch.save'"),
        ({"models/model.json": node("torch.hub.load")}, "a call of 'torch.hub.load'"),
        ({"models/model.json": node("_operator.attrgetter")}, "a call of '_operator.attrgetter'"),
        ({"models/model.json": node("torch.ops.aten.from_file.default")}, "from_file"),
        ({"models/model.json": {"size": {"expr_str": "__import__('os').system('id')"}}}, "the size"),
        ({"models/model.json": {"size": {"expr_str": "Symbol('x').func.__globals__"}}}, "the size"),
        ({"data/weights/model_weights_config.json": {"config": {"w": {"use_pickle": True}}}}, "pickled weights"),
        ({"data/aotinductor/model/model.so": b"\x7fELF"}, "the entry"),
        ({"data/constants/custom_obj_0": b"x"}, "the entry"),
        ({"data/sample_inputs/model.pt": b"cos\nsystem\n(S'id'\ntR."}, "a pickle that names 'os system'"),
        ({"data/sample_inputs/model.pt": b"\x80\x04\x8c\x02os\x8c\x06system\x93."}, "a pickle of objects"),
    ],
)
def test_an_exported_program_that_holds_more_than_numbers_and_a_graph_needs_trust(
    entries: Any, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names of functions, texts that torch evaluates, pickles and libraries are found without running anything."""
    said = refused(program(tmp_path, **entries), capsys)
    assert words in said
    assert "add --trust" in said


def test_a_program_of_numbers_and_a_graph_passes(tmp_path: Path) -> None:
    """What torch.export.save writes today."""
    assert code_in(program(tmp_path)) == []


@pytest.mark.parametrize("text", ["Symbol('s77', positive=True, integer=True)", "2*s0 + 1", "Max(1, s0)//2", "-3"])
def test_sizes_are_arithmetic(text: str) -> None:
    """As torch writes them."""
    assert is_plain_arithmetic(text)


@pytest.mark.parametrize(
    "text",
    ["().__class__", "[x for x in (1,)]", "lambda: 1", "eval('1')", "s0.x", "f'{s0}'", "Symbol('__import__(1)')", "1;2",
     "a" * 5000, "x[0]", "_hidden"],
)  # fmt: skip
def test_what_is_more_than_arithmetic_is_refused(text: str) -> None:
    """Attributes, indices, comprehensions, functions that no list names."""
    assert not is_plain_arithmetic(text)


# -- Keras ---------------------------------------------------------------------------------------------------------


def keras_config(kind: str, **more: Any) -> Any:
    """An architecture with one layer beside its input."""
    layer = {"class_name": kind, "module": "keras.layers", "config": {"name": "x"}, **more}
    return {"class_name": "Sequential", "module": "keras", "config": {"name": "m", "layers": [layer]}}


def hdf5(path: Path, config: Any) -> bytes:
    """An HDF5 model that is nothing but an architecture."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps(config)
    return path.read_bytes()


def zipped(config: Any) -> bytes:
    """A `.keras` archive with an architecture."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("metadata.json", "{}")
        archive.writestr("model.weights.h5", b"")
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["m.h5", "m.keras", "m.onnx"])
def test_a_zip_behind_hdf5_does_not_hide_what_keras_would_load(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """HDF5 ignores a tail and zip ignores a head: the first bytes decide, for the check and for Keras alike."""
    harmless, harmful = keras_config("Dense"), keras_config("Lambda")
    tail = zipped(harmless)
    (tmp_path / name).write_bytes(hdf5(tmp_path / "plain.h5", harmful) + tail)
    assert zipfile.is_zipfile(tmp_path / name)
    assert "it carries code (Lambda)" in refused(tmp_path / name, capsys)


def test_hdf5_behind_a_zip_is_not_looked_at(tmp_path: Path) -> None:
    """What Keras gets is a fresh archive of the members that were checked, under the suffix of an archive."""
    keras = pytest.importorskip("keras")
    pytest.importorskip("torch")
    from converter.load.keras import _is_zip, _rewritten  # noqa: PLC0415

    del keras
    path = tmp_path / "m.h5"
    path.write_bytes(zipped(keras_config("Dense")) + hdf5(tmp_path / "plain.h5", keras_config("Lambda")))
    assert _is_zip(path)
    copy = _rewritten(path, keras_config("Dense"), tmp_path, is_zip=True)
    assert copy.suffix == ".keras"
    assert b"Lambda" not in copy.read_bytes()
    assert zipfile.ZipFile(copy).namelist() == ["metadata.json", "config.json", "model.weights.h5"]


@pytest.mark.parametrize(
    "kind",
    ["Lambda", "TorchModuleWrapper", "JaxLayer", "FlaxLayer", "TFSMLayer", "TFOpLambda", "Custom>Lambda",
     "__typespec__", "keras.layers.Lambda"],
)  # fmt: skip
@pytest.mark.parametrize("form", ["h5", "keras"])
def test_lambda_and_its_kin_are_refused_in_every_form(
    kind: str, form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Alone, wrapped in another layer, and by a registered name."""
    path = tmp_path / f"m.{form}"
    inner = keras_config(kind)["config"]["layers"][0]
    for config in (
        keras_config(kind),
        keras_config("TimeDistributed", config={"layer": inner}),
        keras_config("Dense", registered_name=kind),
    ):
        if form == "h5":
            hdf5(path, config)
        else:
            path.write_bytes(zipped(config))
        assert "it carries code (" in refused(path, capsys)


def test_weights_that_an_hdf5_file_would_read_from_elsewhere_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A link to another file puts that file's content into the bundle."""
    h5py = pytest.importorskip("h5py")
    hdf5(tmp_path / "m.h5", keras_config("Dense"))
    with h5py.File(tmp_path / "m.h5", "r+") as file:
        file["model_weights"] = h5py.ExternalLink("/etc/secret.h5", "/x")
    assert "a link to another file at //model_weights" in refused(tmp_path / "m.h5", capsys)


# -- TensorFlow ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["ImmutableConst", "TFRecordDataset", "ExperimentalDatasetToTFRecord", "ReadFile", "WriteFile", "PyFunc",
     "EagerPyFunc", "PrintV2", "LoadDataset", "SaveV2", "RestoreV2", "MergeV2Checkpoints", "SqlDataset", "RpcCall",
     "InitializeTableFromTextFileV2", "MatchingFiles", "DebugIdentityV3", "SomethingOfNextYear", "XlaHostCompute"],
)  # fmt: skip
def test_an_operator_that_is_not_known_to_only_compute_needs_trust(name: str) -> None:
    """An allow-list: what slips through a list of dangers is not on it."""
    assert name not in COMPUTING


def test_saving_stands_apart() -> None:
    """Saving and restoring are allowed where TensorFlow puts them, and nowhere else."""
    assert SAVING.isdisjoint(COMPUTING)
    assert {"Conv2D", "MatMul", "StatefulPartitionedCall", "ReadVariableOp", "Softmax"} <= COMPUTING
