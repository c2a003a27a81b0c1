import base64
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_runtime.bundle import selftest
from edge_runtime.bundle.measured import MIB, read_measured, write_measured
from edge_runtime.bundle.open import open_bundle
from edge_runtime.bundle.selftest import Budget, run_selftest
from edge_runtime.errors import BundleError
from tests.support import builders
from tests.support.waiting import patient


def _refusal(draft: builders.Draft, folder: Path, budget: Budget = Budget()) -> str:  # noqa: B008 - frozen
    path = draft.save(folder / "model.onnx")
    with pytest.raises(BundleError) as caught:
        run_selftest(open_bundle(path), budget)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


def _constant(name: str, values: Any) -> Any:
    return numpy_helper.from_array(np.asarray(values), name)


def hanging() -> builders.Draft:
    """A regression that first counts to 2**62."""
    draft = builders.regression()
    graph = draft.model.graph
    body = helper.make_graph(
        [helper.make_node("Identity", ["go_on"], ["still"]), helper.make_node("Add", ["sum_in", "one"], ["sum_out"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum_in", TensorProto.FLOAT, ["N", 1]),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum_out", TensorProto.FLOAT, ["N", 1]),
        ],
        [_constant("one", np.float32(1))],
    )
    graph.initializer.extend([_constant("times", np.int64(2**62)), _constant("yes", np.bool_(True))])
    graph.node[-1].output[0] = "before"
    graph.node.append(helper.make_node("Loop", ["times", "yes", "before"], ["value"], body=body))
    return draft


def greedy(elements: int) -> builders.Draft:
    """A regression that fills `elements` floats on the way."""
    draft = builders.regression()
    graph = draft.model.graph
    graph.initializer.append(_constant("many", np.array([elements], np.int64)))
    graph.node[-1].output[0] = "before"
    graph.node.extend(
        [
            helper.make_node(
                "ConstantOfShape", ["many"], ["block"], value=_constant("seed", np.array([1], np.float32))
            ),
            helper.make_node("Cos", ["block"], ["cosines"]),
            helper.make_node("ReduceMax", ["cosines"], ["most"], keepdims=0),
            helper.make_node("Add", ["before", "most"], ["value"]),
        ]
    )
    return draft


def test_a_sound_bundle_proves_itself(tmp_path: Path) -> None:
    """The golden answers come out, and latency and memory are measured on this very device."""
    bundle = open_bundle(builders.stateful().save(tmp_path / "model.onnx"))
    measured = run_selftest(bundle)
    assert (measured.name, measured.version, measured.digest) == ("drowsy", "1.0.0", bundle.digest)
    assert measured.rows == builders.GOLDEN_ROWS
    assert measured.median_ms > 0
    assert measured.p99_ms >= measured.median_ms
    assert measured.peak_rss_bytes > 20 * MIB


def test_the_figures_can_be_kept_beside_the_bundle(tmp_path: Path) -> None:
    """`NAME.measured.json` holds what this device measured; the bundle itself stays byte for byte what it was."""
    path = builders.anomaly().save(tmp_path / "model.onnx")
    before = path.read_bytes()
    sidecar = write_measured(path, run_selftest(open_bundle(path)))
    assert sidecar == tmp_path / "model.measured.json"
    assert json.loads(sidecar.read_text())["median_ms"] > 0
    assert path.read_bytes() == before


def test_figures_of_another_file_or_damaged_ones_are_none(tmp_path: Path) -> None:
    """A sidecar counts only for the very file that it measured, and a broken one is as good as none."""
    path = builders.anomaly().save(tmp_path / "model.onnx")
    measured = run_selftest(open_bundle(path))
    sidecar = write_measured(path, measured)
    assert read_measured(path, measured.digest) == measured
    assert read_measured(path, "0" * 64) is None
    whole = sidecar.read_bytes()
    for broken in (
        whole[:40],
        b"",
        b"[]",
        b"\xff" * 9,
        b"[" * 30_000,
        whole.replace(b'"median_ms": ', b'"median_ms": -'),
    ):
        sidecar.write_bytes(broken)
        assert read_measured(path, measured.digest) is None
    sidecar.unlink()
    assert read_measured(path, measured.digest) is None


def test_wrong_labels_are_told(tmp_path: Path) -> None:
    """A model that answers another class than on the converter's machine is refused, with the count."""
    draft = builders.classification()
    labels = np.frombuffer(draft_label(draft), np.int64)
    draft.manifest["selftest"]["outputs"]["label"] = builders.tensor_document(1 - labels)
    assert f"found {builders.GOLDEN_ROWS} of {builders.GOLDEN_ROWS}" in _refusal(draft, tmp_path)


def draft_label(draft: builders.Draft) -> bytes:
    """The golden labels of a draft, as bytes."""
    return base64.b64decode(draft.manifest["selftest"]["outputs"]["label"]["data"])


def test_a_few_wrong_labels_can_be_allowed(tmp_path: Path) -> None:
    """The manifest says how many labels may differ on another processor."""
    draft = builders.classification()
    labels = np.frombuffer(draft_label(draft), np.int64).copy()
    labels[0] = 1 - labels[0]
    draft.manifest["selftest"]["outputs"]["label"] = builders.tensor_document(labels)
    draft.manifest["selftest"]["label_mismatches"] = 1
    run_selftest(open_bundle(draft.save(tmp_path / "model.onnx")))


def test_scores_outside_the_tolerance_are_told(tmp_path: Path) -> None:
    """A number further off than the manifest allows is refused, with the distance."""
    draft = builders.regression()
    draft.manifest["selftest"]["outputs"]["value"] = builders.tensor_document(np.full((4, 1), 7.0, np.float32))
    assert "found it off by" in _refusal(draft, tmp_path)


def test_an_answer_of_another_shape_is_told(tmp_path: Path) -> None:
    """Outputs whose shape the graph leaves open are seen when they run."""
    draft = builders.regression(targets=("a", "b"))
    draft.model.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "K"
    draft.manifest["output"]["targets"].pop()
    draft.manifest["selftest"]["outputs"]["value"] = builders.tensor_document(np.zeros((4, 1), np.float32))
    assert "shape" in _refusal(draft, tmp_path)


def test_nan_is_told(tmp_path: Path) -> None:
    """A model that answers NaN is refused, even where its golden vectors hold NaN too."""
    draft = builders.regression()
    draft.model.graph.node[-1].output[0] = "before"
    draft.model.graph.initializer.append(_constant("minus", np.float32(-1e9)))
    draft.model.graph.node.extend(
        [
            helper.make_node("Add", ["before", "minus"], ["below"]),
            helper.make_node("Sqrt", ["below"], ["value"]),
        ]
    )
    draft.refresh_golden(np.ones((2, 1, 2), np.float32))
    assert "NaN" in _refusal(draft, tmp_path)


def test_a_model_that_hangs_is_killed(tmp_path: Path) -> None:
    """An endless loop ends with the wall time or the processor time, whichever is first."""
    assert "hangs" in _refusal(hanging(), tmp_path, Budget(wall_s=3.0))


def test_a_model_that_burns_the_processor_is_killed(tmp_path: Path) -> None:
    """The limit on processor time holds without a watch on the clock."""
    assert "1 s of processor time" in _refusal(hanging(), tmp_path, Budget(cpu_s=1))


def test_a_model_that_exhausts_memory_is_refused(tmp_path: Path) -> None:
    """A file of a kilobyte that wants 40 GB gets none of it."""
    assert "MiB of memory, found more" in _refusal(greedy(10_000_000_000), tmp_path)


def test_a_model_over_its_memory_budget_is_refused(tmp_path: Path) -> None:
    """The peak of resident memory is judged where the device sets a budget."""
    draft = greedy(30_000_000)
    draft.refresh_golden(np.ones((2, 1, 2), np.float32))
    message = _refusal(draft, tmp_path, Budget(memory_bytes=100 * MIB))
    assert "at most 100 MiB of memory" in message


def test_a_model_over_its_latency_budget_is_refused(tmp_path: Path) -> None:
    """The median of one window is judged where the device sets a budget."""
    assert "ms a window" in _refusal(builders.classification(), tmp_path, Budget(latency_ms=1e-9))


def test_a_bundle_without_golden_vectors_cannot_prove_itself(tmp_path: Path) -> None:
    """No golden vectors is a refusal, not a pass."""
    draft = builders.classification()
    del draft.manifest["selftest"]
    assert "expected golden vectors, found none" in _refusal(draft, tmp_path)


def test_a_graph_that_onnxruntime_refuses_is_told_in_its_words(tmp_path: Path) -> None:
    """What only onnxruntime can see, such as shapes that do not fit, is reported on one line."""
    draft = builders.regression()
    draft.model.graph.node[1].input[1] = "bias"
    assert "self-test: " in _refusal(draft, tmp_path)


def test_names_of_a_damaged_graph_do_not_reach_the_terminal(tmp_path: Path) -> None:
    """What onnxruntime quotes of a stranger's file is shown without its control characters."""
    draft = builders.regression()
    draft.model.graph.node[1].input[0] = "fl\x1b[2Jat\n"
    message = _refusal(draft, tmp_path)
    assert message.isprintable()
    assert "fl?[2Jat" in message


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("SIGSEGV", "crashed onnxruntime (SIGSEGV)"),
        ("SIGILL", "(SIGILL)"),
        ("SIGABRT", "(SIGABRT)"),
        ("SIGKILL", "killed"),
    ],
)
def test_a_crash_is_named_by_its_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: str) -> None:
    """A child that dies ends no other process, and its signal is named."""
    number = int(signal.Signals[name])
    dying = [sys.executable, "-c", f"import os; os.kill(os.getpid(), {number})"]
    monkeypatch.setattr(selftest, "_command", lambda *_: dying)
    assert words in _refusal(builders.classification(), tmp_path)


@pytest.mark.parametrize(
    "code", ["pass", "import os; os.write({fd}, b'nonsense')", "import os; os.write({fd}, b'[' * 9**6)"]
)
def test_a_child_that_reports_nothing_sensible_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    """Silence, nonsense and endless talk are failures, not passes."""
    monkeypatch.setattr(selftest, "_command", lambda _b, _l, fd: [sys.executable, "-c", code.replace("{fd}", str(fd))])
    assert "self-test: " in _refusal(builders.classification(), tmp_path, Budget(wall_s=20))


def test_a_child_can_write_no_file(tmp_path: Path) -> None:
    """The limits of the child hold: not one byte goes to a file."""
    code = (
        "import pathlib, sys; from edge_runtime.bundle import selftest; selftest._limit(5, 5.0, 1 << 30); "
        "pathlib.Path(sys.argv[1]).write_text('x')"
    )
    root = str(Path(selftest.__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", code, str(tmp_path / "x")]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=patient(60), check=False)
    assert b"File too large" in done.stderr
    assert (tmp_path / "x").stat().st_size == 0


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_no_descriptor_is_left_behind(tmp_path: Path) -> None:
    """Ten self-tests, good and bad, leave as many open files as there were before."""
    bundle = open_bundle(builders.classification().save(tmp_path / "model.onnx"))
    run_selftest(bundle)
    before = _open_files()
    for _ in range(3):
        run_selftest(bundle)
        with pytest.raises(BundleError):
            run_selftest(bundle, Budget(latency_ms=1e-9))
    assert _open_files() == before
