"""Model files that carry code: each is refused before any of it runs, and says which part needs --trust."""

import io
import json
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import skops.io
from sklearn.linear_model import LogisticRegression

from converter.cli import main
from converter.load.savedmodel import _computes
from converter.load.savedmodel_ops import COMPUTING, SAVING
from converter.load.torch_archive import checked_copy, code_in, is_plain_arithmetic


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
    output = refused(tmp_path / "m.pt", capsys)
    assert "TorchScript is a program" in output
    assert "add --trust; better, save the model with torch.export.save" in output


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
    output = refused(program(tmp_path, **entries), capsys)
    assert words in output
    assert "add --trust" in output


@pytest.mark.parametrize(
    ("container", "words"),
    [
        ({"type": "builtins.dict", "context": json.dumps([{"__enum__": True, "fqn": "antigravity:x", "name": "y"}]),
          "children_spec": []}, "a module to import for 'antigravity:x'"),
        ({"type": "collections.defaultdict", "context": {"default_factory_module": "antigravity"},
          "children_spec": []}, "arguments in a 'collections.defaultdict'"),
        ({"type": "collections.namedtuple", "context": "[]", "children_spec": []}, "arguments in a"),
    ],
)  # fmt: skip
def test_arguments_that_torch_would_import_a_module_for_need_trust(
    container: Any, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The shape of the arguments stands as JSON in a string, and inside that once more, with names of modules."""
    outer = {"type": "builtins.tuple", "context": "null", "children_spec": [container]}
    for text in (json.dumps([1, outer]), json.dumps([1, outer]).replace("_", "\\u005f")):
        document = {"graph_module": {"signature": {"in_spec": text}}}
        assert words in refused(program(tmp_path, **{"models/model.json": document}), capsys)


def test_torch_gets_the_archive_that_was_checked(tmp_path: Path) -> None:
    """Python looks for an archive's list from the end, torch at the place that the end names: a file can have two."""
    torch = pytest.importorskip("torch")
    entries = {"version": "3\n", "models/model.json": {"what": "harmless"}}
    harmless = program(tmp_path, **entries).read_bytes()
    harmful = program(tmp_path, **entries | {"models/model.json": {"what": "harmful!"}}).read_bytes()
    path, copy = tmp_path / "two.pt2", tmp_path / "copy.pt2"
    path.write_bytes(two_faced(harmful, harmless))
    assert b"harmless" in zipfile.ZipFile(path).read("m/models/model.json")
    assert b"harmful!" in torch._C.PyTorchFileReader(str(path)).get_record("models/model.json")
    assert checked_copy(path, copy) == []
    assert b"harmless" in torch._C.PyTorchFileReader(str(copy)).get_record("models/model.json")
    assert b"harmful!" not in copy.read_bytes()


def two_faced(first: bytes, second: bytes) -> bytes:
    """One file of two archives with equally long lists: `first` by the places that it names, `second` from its end."""
    count, size, at = struct.unpack("<HII", first[-12:-2])
    assert struct.unpack("<HI", second[-12:-6]) == (count, size)
    entries, shift, position = bytearray(second[-22 - size : -22]), len(first) - 22, 0
    hidden = len(second) - 22 + shift - size - at  # what a reader from the end takes for bytes before the archive
    while position < size:
        lengths = struct.unpack("<HHH", entries[position + 28 : position + 34])
        (place,) = struct.unpack("<I", entries[position + 42 : position + 46])
        struct.pack_into("<I", entries, position + 42, (place + shift - hidden) & 0xFFFFFFFF)
        position += 46 + sum(lengths)
    return first[:-22] + second[: -22 - size] + bytes(entries) + first[-22:]


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


def test_hdf5_behind_a_zip_is_not_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Keras gets is a fresh archive of the members that were checked, under the suffix of an archive."""
    monkeypatch.setenv("KERAS_BACKEND", "torch")
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


@pytest.mark.parametrize("form", ["h5", "keras"])
@pytest.mark.parametrize("way", ["a link", "an external dataset", "a virtual dataset"])
def test_every_way_of_hdf5_to_name_another_file_is_refused(
    form: str, way: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In an HDF5 model, and in the weights inside an archive."""
    h5py = pytest.importorskip("h5py")
    path, weights = tmp_path / f"m.{form}", tmp_path / "w.h5"
    hdf5(weights, keras_config("Dense"))
    with h5py.File(weights, "r+") as file:
        group = file.create_group("layers/dense/vars")
        if way == "a link":
            group["0"] = h5py.ExternalLink("/etc/secret.h5", "/x")
        elif way == "an external dataset":
            group.create_dataset("0", (4,), "f4", external=[("/etc/secret", 0, 16)])
        else:
            layout = h5py.VirtualLayout((4,), "f4")
            layout[:] = h5py.VirtualSource("/etc/secret.h5", "x", (4,))
            group.create_virtual_dataset("0", layout)
    if form == "h5":
        path.write_bytes(weights.read_bytes())
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("config.json", json.dumps(keras_config("Dense")))
            archive.writestr("metadata.json", "{}")
            archive.write(weights, "model.weights.h5")
    output = refused(path, capsys)
    assert "another file at" in output
    assert "layers/dense/vars/0" in output


# -- ONNX ----------------------------------------------------------------------------------------------------------


def constant(location: str) -> Any:
    """A node whose weights are in another file."""
    tensor = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[2, 2])
    if location:
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)
    else:
        tensor.raw_data = bytes(16)
    return onnx.helper.make_node("Constant", [], ["w"], value=tensor)


def onnx_model(inner: list[Any], where: str) -> Any:
    """A model with nodes in a function, in a branch, or in a branch inside a function."""
    make, info = onnx.helper, onnx.helper.make_tensor_value_info
    nodes = [*inner, make.make_node("MatMul", ["x", "w"], ["y"])]
    if "branch" in where:
        bodies = [make.make_graph(nodes, name, [], [info("y", 1, ["N", 2])]) for name in ("then", "else")]
        asked = make.make_tensor("c", onnx.TensorProto.BOOL, [], [True])
        nodes = [make.make_node("Constant", [], ["ask"], value=asked),
                 make.make_node("If", ["ask"], ["y"], then_branch=bodies[0], else_branch=bodies[1])]  # fmt: skip
    functions = []
    if "function" in where:
        opsets = [make.make_opsetid("", 18), make.make_opsetid("strange", 1)]
        functions = [make.make_function("own", "F", ["x"], ["y"], nodes, opsets)]
        nodes = [make.make_node("F", ["x"], ["y"], domain="own")]
    graph = make.make_graph(nodes, "g", [info("x", 1, ["N", 2])], [info("y", 1, ["N", 2])])
    imports = [make.make_opsetid(name, version) for name, version in (("", 18), ("own", 1), ("strange", 1))]
    return make.make_model(graph, functions=functions, opset_imports=imports)


@pytest.mark.parametrize("where", ["graph", "branch", "function", "branch in a function"])
@pytest.mark.parametrize("location", ["../../../etc/passwd", "/etc/passwd", "m.onnx", ""])
def test_weights_of_other_files_and_foreign_operators_are_found_wherever_they_stand(
    where: str, location: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In functions and in the bodies of branches as in the graph; by a path, a link or the name of the file itself."""
    path = tmp_path / "m.onnx"
    inner = (
        [constant(location)] if location else [constant(""), onnx.helper.make_node("Do", ["w"], [], domain="strange")]
    )
    path.write_bytes(onnx_model(inner, where).SerializeToString())
    output = refused(path, capsys)
    assert ("weights in other files are not accepted" if location else "found strange.Do") in output


# -- TensorFlow ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ReadFile", "WriteFile", "_Send", "PyFunc", "Foreign>Op"])
def test_a_function_with_the_name_of_an_operator_excuses_no_operator(name: str) -> None:
    """TensorFlow may take its own operator for the name; functions that it writes itself are named otherwise."""
    assert not _computes(name, {name: None}, saves=True)
    assert _computes("__inference_call_12", {"__inference_call_12": None}, saves=False)
    assert _computes("MyModel_lstm_while_body_7", {"MyModel_lstm_while_body_7": None}, saves=False)


@pytest.mark.parametrize("other", ["saved_model.pbtxt", "saved_model.cpb"])
def test_a_folder_with_two_programs_is_refused(other: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Which of them TensorFlow reads depends on its release: only one is checked."""
    folder = tmp_path / "m"
    folder.mkdir()
    for name in ("saved_model.pb", other):
        (folder / name).write_bytes(b"")
    assert f"expected one program, saved_model.pb, found {other} beside it" in refused(folder, capsys)


@pytest.mark.parametrize(
    "name",
    ["ImmutableConst", "TFRecordDataset", "ExperimentalDatasetToTFRecord", "ReadFile", "WriteFile", "PyFunc",
     "EagerPyFunc", "PrintV2", "LoadDataset", "SaveV2", "RestoreV2", "MergeV2Checkpoints", "SqlDataset", "RpcCall",
     "InitializeTableFromTextFileV2", "MatchingFiles", "DebugIdentityV3", "SomethingOfNextYear", "XlaHostCompute"],
)  # fmt: skip
def test_an_operator_that_is_not_known_to_only_compute_needs_trust(name: str) -> None:
    """An allow-list: what slips through a list of dangers is not on it."""
    assert name not in COMPUTING


def test_the_list_holds_operators_of_tensorflow_and_none_that_reaches_out() -> None:
    """Against the names of TensorFlow 2.21: each allowed one is an operator, and none of outside is allowed."""
    every = set((Path(__file__).parent / "tensorflow_operators.txt").read_text().split())
    assert len(every) > 1600
    assert every >= COMPUTING | SAVING
    outside = re.compile(
        "File|Dataset|Iterator|Save|Restore|Read|Write|Print|Py|Rpc|Send|Recv|Remote|Server|Service|Host|Sql|Debug"
        "|Summary|Assert|Table|Queue|Stack|Barrier|Immutable|Decode|Encode|Checkpoint|Xla|TPU|Tpu|Collective|Symbolic"
    )
    # They check a condition, mark a variable, and read and write variables, lists and arrays of the program itself.
    harmless = {"Assert", "DisableCopyOnRead", "ReadVariableOp", "TensorArrayReadV3", "TensorArrayWriteV3",
                "TensorListStack"}  # fmt: skip
    assert {name for name in COMPUTING if outside.search(name)} == harmless


def test_saving_stands_apart() -> None:
    """Saving and restoring are allowed where TensorFlow puts them, and nowhere else."""
    assert SAVING.isdisjoint(COMPUTING)
    assert {"Conv2D", "MatMul", "StatefulPartitionedCall", "ReadVariableOp", "Softmax"} <= COMPUTING
