"""int8 products are exact: on a processor that saturates (x86 without VNNI) as on every other."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from converter.graph.int8 import separate
from converter.graph.shrink import compact
from converter.session import run, session_of
from edge_runtime.bundle import int8, int8_operators, model
from edge_runtime.bundle.golden import check_golden
from edge_runtime.bundle.model import Model
from edge_runtime.bundle.onnx_file import read_onnx
from edge_runtime.bundle.open import open_bundle
from edge_runtime.bundle.optimised_copy import key_of
from tests.support import builders

WIDTH = 16
STEP = 0.05
WEIGHT_STEP = 0.0103  # no sum of whole numbers falls between two steps
ROOT = Path(__file__).parents[3]
RNG = np.random.default_rng(0)
WEIGHTS = RNG.integers(-127, 128, (2, WIDTH, WIDTH)).astype(np.int8)
WINDOWS = RNG.normal(0.0, 3.0, (8, 1, WIDTH)).astype(np.float32)


def rounded(values: NDArray[Any]) -> NDArray[np.int64]:
    """int8 of step `STEP`: half to even, as the standard says."""
    return np.clip(np.rint(values / np.float32(STEP)), -128, 127).astype(np.int64)


def by_hand(weights: NDArray[Any]) -> NDArray[Any]:
    """The network of `products` in whole numbers of 64 bits, which no processor saturates."""
    x = rounded(WINDOWS.reshape(len(WINDOWS), -1))
    for weight in weights:
        x = np.clip(np.rint(x @ weight.astype(np.int64) * WEIGHT_STEP), -128, 127).astype(np.int64)
    return x * np.float32(STEP)


def products(*, opset: int = 17, share: str = "", zeros: bool = True, constant_nodes: bool = False) -> builders.Draft:
    """Two int8 products in a row, in QDQ form; the second may share weights, zero point or the whole node."""
    names = tuple(f"c{index}" for index in range(WIDTH))
    draft = builders.regression(name="int8", channels=names, targets=[f"t{index}" for index in range(WIDTH)])
    constants = {"step": np.float32(STEP), "weight_step": np.full(WIDTH, WEIGHT_STEP, np.float32), "zero": np.int8(0)}
    nodes = [helper.make_node("Flatten", ["window"], ["x0"], axis=1)]
    for index in range(2):
        first = "0" if share in ("weights", "node") else str(index)
        constants[f"w{first}"] = WEIGHTS[int(first)]
        point = [f"z{0 if share else index}"] if zeros else []
        constants.update({name: np.zeros(WIDTH, np.int8) for name in point})
        nodes += [
            helper.make_node("QuantizeLinear", [f"x{index}", "step", "zero"], [f"q{index}"]),
            helper.make_node("DequantizeLinear", [f"q{index}", "step", "zero"], [f"d{index}"]),
        ]
        made = f"m{first if share == 'node' else index}"
        if share != "node" or not index:
            nodes.append(helper.make_node("DequantizeLinear", [f"w{first}", "weight_step", *point], [made], axis=1))
        nodes.append(helper.make_node("MatMul", [f"d{index}", made], [f"x{index + 1}"]))
    nodes += [
        helper.make_node("QuantizeLinear", ["x2", "step", "zero"], ["q2"]),
        helper.make_node("DequantizeLinear", ["q2", "step", "zero"], ["value"]),
    ]
    graph = draft.model.graph
    del graph.node[:], graph.initializer[:]
    tensors = {name: numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()}
    if constant_nodes:
        moved = [name for name in tensors if name[0] in "wz" and tensors[name].data_type == TensorProto.INT8]
        nodes[:0] = [helper.make_node("Constant", [], [name], value=tensors.pop(name)) for name in moved]
    graph.node.extend(nodes)
    graph.initializer.extend(tensors.values())
    draft.model.opset_import[0].version = opset
    draft.model.ir_version = 10 if opset > 20 else 8
    expected = by_hand(np.stack([WEIGHTS[0], WEIGHTS[0]]) if share in ("weights", "node") else WEIGHTS)
    draft.manifest["requires"] = {"onnxruntime": "1.20", "opset": opset, "ir_version": draft.model.ir_version}
    draft.manifest["selftest"] = {
        "input": builders.tensor_document(WINDOWS),
        "outputs": {"value": builders.tensor_document(expected.astype(np.float32))},
        "atol": 1e-5, "rtol": 0.0, "label_mismatches": 0,
    }  # fmt: skip
    return draft


KINDS: list[dict[str, Any]] = [
    {}, {"share": "zero"}, {"share": "weights"}, {"share": "node"}, {"zeros": False}, {"opset": 21},
    {"constant_nodes": True}, {"constant_nodes": True, "share": "zero"},
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_bundle_of_int8_answers_as_whole_numbers_do(kind: dict[str, Any], tmp_path: Path) -> None:
    """However its constants are shared; a bundle of shared ones is from another tool or release, and runs unfused."""
    bundle = open_bundle(products(**kind).save(tmp_path / "b.onnx"))
    assert bundle.facts.int8 == ("shared" if "share" in kind or "zeros" in kind else "apart")
    check_golden(Model(bundle))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_converter_computes_int8_exactly_whatever_a_graph_shares(kind: dict[str, Any], tmp_path: Path) -> None:
    """Sessions of the proof, and the compacted graph that is shipped, whose constants each have one reader."""
    draft = products(**kind)
    graph = onnx.load_model_from_string(draft.to_bytes())
    expected = by_hand(WEIGHTS[[0, 0]] if kind.get("share") in ("weights", "node") else WEIGHTS)
    found = run(session_of(draft.to_bytes()), WINDOWS).value
    assert found is not None
    np.testing.assert_allclose(found, expected, atol=1e-5)
    draft.model = compact(graph)
    del draft.model.metadata_props[:]
    bundle = open_bundle(draft.save(tmp_path / "compact.onnx"))
    assert bundle.facts.int8 == "apart"
    check_golden(Model(bundle))


def test_products_that_are_int8_in_the_file_are_exact_once_their_constants_are_apart() -> None:
    """As dynamic quantisation writes them; onnxruntime's quantiser and `compact` share a zero point of nought."""
    nodes = []
    for index in range(2):
        nodes += [
            helper.make_node("MatMulInteger", [f"x{index}", f"w{index}", "zero_of_x", "zero"], [f"i{index}"]),
            helper.make_node("Cast", [f"i{index}"], [f"f{index}"], to=TensorProto.FLOAT),
            helper.make_node("QuantizeLinear", [f"f{index}", "step", "zero_of_x"], [f"x{index + 1}"]),
        ]
    nodes.append(helper.make_node("Cast", ["x2"], ["value"], to=TensorProto.FLOAT))
    nodes.insert(0, helper.make_node("Cast", ["window"], ["x0"], to=TensorProto.UINT8))
    constants = {"w0": WEIGHTS[0], "w1": WEIGHTS[1], "zero": np.int8(0), "zero_of_x": np.uint8(3)}
    constants["step"] = np.float32(400.0)
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", WIDTH]) for name in ("window", "value")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    whole = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    x = np.random.default_rng(1).integers(100, 256, (8, WIDTH)).astype(np.float32)
    expected = x.astype(np.int64)
    for weight in WEIGHTS:
        expected = np.clip(np.rint((expected - 3) @ weight.astype(np.int64) / 400.0) + 3, 0, 255).astype(np.int64)
    found = session_of(whole.SerializeToString()).run(None, {"window": x})[0]
    np.testing.assert_array_equal(found, expected)
    assert read_onnx(whole.SerializeToString(), "m").int8 == "shared"
    assert read_onnx(compact(whole).SerializeToString(), "m").int8 == "apart"


def test_constants_in_the_bodies_of_conditions_are_kept_apart_too() -> None:
    """Two branches that read the same weights."""

    def body(name: str) -> Any:
        nodes = [
            helper.make_node("DequantizeLinear", ["w", "step", "zero"], [f"{name}_w"]),
            helper.make_node("Conv", ["x", f"{name}_w"], [name]),
        ]
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)])

    branch = helper.make_node("If", ["which"], ["y"], then_branch=body("yes"), else_branch=body("no"))
    tensors = [
        numpy_helper.from_array(WEIGHTS[0, :, :, None, None], "w"),
        numpy_helper.from_array(np.array(0.01, np.float32), "step"),
        numpy_helper.from_array(np.array(0, np.int8), "zero"),
    ]
    inputs = [helper.make_tensor_value_info("which", TensorProto.BOOL, []),
              helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", WIDTH, 1, 1])]  # fmt: skip
    graph = helper.make_graph([branch], "g", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    graph.initializer.extend(tensors)
    whole = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert read_onnx(whole.SerializeToString(), "m").int8 == "shared"
    assert separate(whole) == 2
    assert read_onnx(whole.SerializeToString(), "m").int8 == "apart"
    x = RNG.normal(size=(3, WIDTH, 1, 1)).astype(np.float32)
    found = session_of(whole.SerializeToString()).run(None, {"which": np.array(True), "x": x})[0]
    expected = x[..., 0, 0] @ (WEIGHTS[0].T * np.float32(0.01))
    np.testing.assert_allclose(found[..., 0, 0], expected, rtol=1e-5, atol=1e-5)
    assert separate(whole) == 0


def entries(settings: Any) -> str:
    """The session entry that makes x86 exact, as a session has it."""
    try:
        return str(settings.get_session_config_entry(int8_operators.EXACT_ENTRY[0]))
    except RuntimeError:
        return "none"


@pytest.mark.parametrize(("saturating", "entry"), [(True, "1"), (False, "none")])
def test_the_entry_is_set_only_where_there_are_int8_products_that_saturate(
    saturating: bool, entry: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A float bundle's sessions are as they were, and so are those of a processor that adds up in 32 bits."""
    monkeypatch.setattr(int8, "saturates", lambda: saturating)
    assert entries(model.session_settings(model.ModelOptions(), "none")) == "none"
    assert entries(model.session_settings(model.ModelOptions(), "apart")) == entry


@pytest.mark.parametrize(("saturating", "level"), [(True, "ORT_ENABLE_BASIC"), (False, "ORT_ENABLE_ALL")])
def test_shared_constants_run_unfused_only_where_the_processor_saturates(saturating: bool, level: str) -> None:
    """An ARM board runs a bundle of an earlier release as fast as before."""
    settings = onnxruntime.SessionOptions()
    int8.set_exact(settings, "shared", saturating=saturating)
    assert settings.graph_optimization_level == getattr(onnxruntime.GraphOptimizationLevel, level)
    assert entries(settings) == "none"


@pytest.mark.parametrize(
    ("machine", "cpuinfo", "expected"),
    [
        ("x86_64", "flags\t\t: fpu avx2\n", True),
        ("x86_64", "flags\t\t: fpu avx2 avx512f avx512bw avx512dq avx512vl avx512_vnni\n", False),
        ("x86_64", "flags\t\t: fpu avx2 avx512_vnni\n", True),
        ("x86_64", "flags\t\t: fpu avx2 avx_vnni\n", False),
        ("aarch64", "Features\t: fp asimd\n", False),
    ],
)
def test_a_processor_saturates_that_is_x86_without_vnni(
    machine: str, cpuinfo: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dot-product instructions of VNNI add up in 32 bits."""
    monkeypatch.setattr("edge_runtime.bundle.int8.platform.machine", lambda: machine)
    monkeypatch.setattr("edge_runtime.bundle.int8.Path.read_text", lambda *_, **__: cpuinfo)
    asked: Callable[[], bool] = int8.saturates.__wrapped__
    assert asked() is expected


def test_a_bundle_that_cannot_run_fused_is_named_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is slower than it need be is reported, with the remedy."""
    monkeypatch.setattr(int8, "saturates", lambda: True)
    Model(open_bundle(products(share="zero").save(tmp_path / "b.onnx")))
    assert "int8 products run unfused, slower: convert the model again" in caplog.text


def test_an_optimised_copy_that_was_made_without_the_entry_is_stale(tmp_path: Path) -> None:
    """Its graph holds kernels that saturate; copies of float bundles stay what they are."""
    bundle = open_bundle(products().save(tmp_path / "b.onnx"))
    plain = msgspec.structs.replace(bundle, facts=msgspec.structs.replace(bundle.facts, int8="none"))
    assert key_of(bundle) != key_of(plain)


def test_a_copy_is_for_processors_that_saturate_or_for_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One with the entry would be slower where it is not needed; without it, wrong where it is."""
    bundle, keys = open_bundle(products().save(tmp_path / "b.onnx")), set()
    for saturating in (True, False):
        monkeypatch.setattr(int8, "saturates", lambda saturating=saturating: saturating)
        keys.add(key_of(bundle))
    assert len(keys) == 2


def test_every_session_is_made_where_exactness_is_seen_to() -> None:
    """No other module of the converter or the runtime makes one."""
    makers = {
        str(path.relative_to(ROOT))
        for folder in ("converter", "edge_runtime")
        for path in (ROOT / folder).rglob("*.py")
        if re.search(r"\bInferenceSession\(", path.read_text())
    }
    assert makers == {
        "converter/footprint.py",
        "converter/session.py",
        "converter/trial.py",
        "edge_runtime/bundle/model.py",
    }
    for path in makers:
        assert "set_exact" in (ROOT / path).read_text()
