"""The search for the form to ship, and what is reported about it."""

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from sklearn.neural_network import MLPClassifier

from converter import session
from converter.cli import main
from converter.commands.inspect import manifest_of
from converter.quantize import Recipe, stages
from converter.search import Bench
from converter.session import Speed
from converter.targets import TARGETS, HostCore, estimate, this_host, warnings_for
from edge_runtime.bundle.measured import MIB, Measured, write_measured


def test_distribution_is_never_a_calibrator() -> None:
    """Of onnxruntime's calibrators one is unsound, and no request reaches it."""
    tried = [
        recipe for request in ("auto", "int8", "dynamic", "float16") for stage in stages(request) for recipe in stage
    ]
    assert {recipe.calibrator for recipe in tried} == {"MinMax", "Percentile", "Entropy"}


def test_a_recipe_has_a_name_that_tells_it_apart() -> None:
    """The table calls every form by what was done."""
    assert Recipe("int8", True, "Entropy", ("a", "b")).name == "int8 static, per channel, entropy, 2 in float"
    assert Recipe("dynamic").name == "int8 dynamic"


def model_and_data(tmp_path: Path, layers: tuple[int, ...] = (32, 32)) -> list[str]:
    """A network, of three products by default, and the arguments that convert it."""
    import skops.io  # noqa: PLC0415

    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 6)).astype(np.float32)
    y = (np.sin(3 * x[:, 0]) + x[:, 1] > 0).astype(int)
    skops.io.dump(MLPClassifier(layers, max_iter=300, random_state=0).fit(x, y), tmp_path / "m.skops")
    np.savez(tmp_path / "d.npz", x=x, y=y)
    return ["build", str(tmp_path / "m.skops"), "--data", str(tmp_path / "d.npz"), "-o", str(tmp_path / "m.onnx")]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_sensitive_nodes_stay_in_float_where_int8_alone_would_lose_too_much(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model with one node that int8 ruins still becomes int8, but for that node."""
    from converter import quantize  # noqa: PLC0415

    honest = quantize._static

    def ruins_the_first(
        before: Path, after: Path, nodes: list[str], recipe: Any, *, calibration: Any, states: Any
    ) -> None:
        first = quantize.products_of(onnx.load(before))[0]
        rows = calibration * (0.0 if first in nodes else 1.0)
        honest(before, after, nodes, recipe, calibration=rows, states=states)

    monkeypatch.setattr(quantize, "_static", ruins_the_first)
    assert main([*model_and_data(tmp_path), "--quantize", "int8"]) == 0
    output = capsys.readouterr().out
    assert "looking for the nodes that int8 hurts most" in output
    record = manifest_of(tmp_path / "m.onnx").quantization
    assert record["name"] == "int8 static, per channel, 1 in float"
    assert record["drop"] <= 0.01


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_the_report_is_one_page_without_foreign_addresses(tmp_path: Path) -> None:
    """Tables, confusion, reliability and errors are in one file that needs nothing else."""
    page = tmp_path / "proof.html"
    assert main([*model_and_data(tmp_path), "--report", str(page), "--prefer", "latency", "--target", "pi4"]) == 0
    text = page.read_text()
    for heading in ("Every form on the same rows", "What size and time buy", "How far answers move", "Error by layer",
                    "Class by class", "Confusion", "Reliability", "Left out without changing an answer"):  # fmt: skip
        assert f"<h2>{heading}</h2>" in text
    assert not re.search(r"https?:|<script|<link|<img", text)
    assert manifest_of(tmp_path / "m.onnx").target_device == "pi4"


def test_the_search_goes_through_every_kind_of_int8() -> None:
    """float16, dynamic, and static per tensor and per channel with each calibrator; float32 is there from the start."""
    tried = {recipe.name for stage in stages("auto") for recipe in stage}
    static = {
        f"int8 static{fine}{name}" for fine in ("", ", per channel") for name in ("", ", percentile", ", entropy")
    }
    assert tried == {"float16", "int8 dynamic"} | static


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("prefer", ["size", "latency"])
def test_the_best_form_is_the_smallest_or_the_fastest_as_asked(
    prefer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With float16 the fastest, `--prefer latency` keeps it; that int8 is slower is reported in any case."""
    kinds: list[set[int]] = []
    honest = session.session_of

    def session_of(model: bytes) -> Any:
        kinds.append({tensor.data_type for tensor in onnx.load_model_from_string(model).graph.initializer})
        return honest(model)

    def speed(*_: Any) -> Speed:
        """Of the session that was made last."""
        whole = {onnx.TensorProto.INT8, onnx.TensorProto.UINT8} & kinds[-1]
        wall = 900.0 if whole else 10.0 if onnx.TensorProto.FLOAT16 in kinds[-1] else 100.0
        return Speed(wall, wall)

    monkeypatch.setattr("converter.search.session_of", session_of)
    monkeypatch.setattr("converter.search.speed_of", speed)
    assert main([*model_and_data(tmp_path), "--prefer", prefer]) == 0
    record, output = manifest_of(tmp_path / "m.onnx").quantization, capsys.readouterr().out
    assert record["drop"] <= 0.01
    if prefer == "latency":
        assert record["name"] == "float16"
        assert "the fastest form" in record["reason"]
    else:
        least = record["source_metric"] - record["max_drop"]
        admitted = [form["bytes"] for form in record["candidates"] if form["metric"] >= least]
        assert record["bytes"] == min(admitted)
        assert "the smallest form" in record["reason"]
    assert "static int8 is slower than float32 on this machine: 900 us" in output


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_int8_that_is_larger_than_float32_is_said_to_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A network of a few weights grows, whether int8 was asked for or only tried."""
    arguments = model_and_data(tmp_path, (4,))
    for request in ("auto", "int8"):
        assert main([*arguments, "--quantize", request, "--max-drop", "0.2"]) == 0
        assert re.search(r"static int8 is larger than float32 here: [\d,]+ bytes at least", capsys.readouterr().out)
    assert "larger than float32, because the model is small" in manifest_of(tmp_path / "m.onnx").quantization["reason"]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_form_that_does_not_run_is_left_out_and_the_others_are_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that onnxruntime refuses to load, and one that its quantiser fails to make."""
    from converter import quantize  # noqa: PLC0415

    def unloadable(model: onnx.ModelProto) -> onnx.ModelProto:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        copy.graph.node[0].op_type = "Magic"
        return copy

    def fails(*_: Any) -> None:
        raise ValueError("no such weather")

    monkeypatch.setattr(quantize, "_float16", unloadable)
    monkeypatch.setattr(quantize, "_dynamic", fails)
    assert main(model_and_data(tmp_path)) == 0
    output = capsys.readouterr().out
    assert "left out: float16: onnxruntime cannot run it" in output
    assert "left out: int8 dynamic: quantisation failed: ValueError: no such weather" in output
    assert {form["name"] for form in manifest_of(tmp_path / "m.onnx").quantization["candidates"]} == {
        "float32",
        "int8 static",
        "int8 static, per channel",
    }


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_rows_that_judge_never_calibrate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is shown to a quantiser, or ranks nodes, is none of the rows that the metric is made of."""
    from converter import quantize  # noqa: PLC0415

    shown: list[Any] = []
    judged: list[Any] = []
    honest = quantize.candidate

    def watched(model: Any, recipe: Any, calibration: Any, states: Any = ()) -> Any:
        shown.append(calibration)
        return honest(model, recipe, calibration, states)

    def watched_bench(calibration: Any, evaluation: Any, *rest: Any) -> Any:
        judged.append(evaluation)
        return Bench(calibration, evaluation, *rest)

    for module in ("quantize", "search", "conversion"):
        monkeypatch.setattr(f"converter.{module}.candidate", watched)
    monkeypatch.setattr("converter.conversion.Bench", watched_bench)
    assert main([*model_and_data(tmp_path), "--quantize", "int8", "--max-drop", "0"]) in (0, 1)
    (evaluation,) = judged
    known = {row.tobytes() for row in evaluation}
    assert len(known) > 200
    assert sum(map(len, shown)) > 200
    assert not any(row.tobytes() in known for rows in shown for row in rows)


def test_a_target_device_warns_of_what_it_cannot_carry() -> None:
    """Too large a file, too much memory, and int8 on cores without dot products; budgets grow with the board."""
    assert warnings_for(None, 1 << 40, "int8") == []
    assert warnings_for("pi5", 1000, "int8") == []
    large, full, slow = warnings_for("zero2w", 100 << 20, "dynamic", 200 << 20)
    assert "more than its budget of 48 MB" in large
    assert "took 200 MB at its peak, more than the budget of 128 MB" in full
    assert "no int8 dot products" in slow
    assert len(warnings_for("pi4", 40 << 20, "none", 200 << 20)) == 0
    for target in ("pi3", "pi4", "zero2w"):
        assert any("dot products" in text for text in warnings_for(target, 1, "int8"))


def test_a_time_that_nobody_measured_is_called_an_estimate() -> None:
    """Slower cores are reported to be slower, never faster than the machine that converts."""
    host = HostCore(mhz=3000.0, decode=4, flops_per_us=60_000.0)
    texts = {target: estimate(target, 100.0, host) for target in TARGETS}
    assert all("estimate, not measured" in text for text in texts.values())
    assert "0.6 to 0.75 ms" in texts["zero2w"]
    assert "0.12 to 0.16 ms" in texts["pi5"]
    weak = HostCore(mhz=600.0, decode=1, flops_per_us=100.0)
    assert "0.1 to 0.1 ms" in estimate("pi5", 100.0, weak)
    assert this_host().flops_per_us > 0


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_what_a_device_measured_takes_the_place_of_the_estimate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same bytes built again meet the figures beside them; those of another file are never shown."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    arguments = [*model_and_data(tmp_path), "--target", "pi4", "--quantize", "int8", "--max-drop", "1"]
    arguments += ["--prefer", "size"]  # so that no measured time decides about the bytes
    page = tmp_path / "proof.html"
    bundle = tmp_path / "m.onnx"
    assert main(arguments) == 0
    output = capsys.readouterr().out
    assert "estimate, not measured" in output
    assert "no int8 dot products" in output
    assert main(["inspect", str(bundle)]) == 0
    assert "not on a device: m.measured.json is not beside it" in capsys.readouterr().out
    measured = Measured("m", "1.0.0", hashlib.sha256(bundle.read_bytes()).hexdigest(), 8, 1.0, 0.37, 0.5, 200, 70 * MIB,
                        "aarch64 Linux 6.12", "1.20.1")  # fmt: skip
    write_measured(bundle, measured)
    assert main([*arguments, "--report", str(page)]) == 0
    output = capsys.readouterr().out
    assert "estimate" not in output
    words = "0.37 ms a window (99th percentile 0.5 ms), 70 MiB at its peak"
    assert f"measured on aarch64 Linux 6.12: {words}" in output
    assert words in page.read_text()
    assert main(["inspect", str(bundle)]) == 0
    assert f"{words}, on aarch64 Linux 6.12, onnxruntime 1.20.1" in capsys.readouterr().out
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000001")
    assert main(arguments) == 0
    assert "estimate, not measured" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_an_interrupt_during_the_report_says_that_the_bundle_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No message says that nothing was written when something was; and there is no half page."""

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("converter.report.plots.points", interrupted)
    page = tmp_path / "proof.html"
    assert main([*model_and_data(tmp_path), "--report", str(page)]) == 1
    assert f"interrupted: {tmp_path / 'm.onnx'} was written, the report was not" in capsys.readouterr().err
    assert (tmp_path / "m.onnx").exists()
    assert not page.exists()


@pytest.mark.parametrize("kind", ["regression", "anomaly"])
def test_the_report_of_numbers_shows_them_against_the_truth(kind: str, tmp_path: Path) -> None:
    """A regression's values over the true ones, an anomaly's scores beside the threshold; legible in the dark too."""
    import skops.io  # noqa: PLC0415
    from sklearn.ensemble import IsolationForest  # noqa: PLC0415
    from sklearn.linear_model import LinearRegression  # noqa: PLC0415

    x = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
    y = x[:, 0] - x[:, 2]
    fitted = LinearRegression().fit(x, y) if kind == "regression" else IsolationForest(random_state=0).fit(x)
    skops.io.dump(fitted, tmp_path / "m.skops")
    np.savez(tmp_path / "d.npz", x=x, y=y if kind == "regression" else (np.abs(x).max(axis=1) > 2).astype(int))
    page = tmp_path / "proof.html"
    arguments = ["build", str(tmp_path / "m.skops"), "--data", str(tmp_path / "d.npz"), "-o", str(tmp_path / "m.onnx")]
    assert main([*arguments, "--report", str(page), "--max-drop", "0.5"]) == 0
    text = page.read_text()
    assert ("<h2>Predicted and true</h2>" if kind == "regression" else "<h2>Scores and threshold</h2>") in text
    assert "prefers-color-scheme: dark" in text
    assert str(tmp_path) not in text
    assert session.processor() in text
    assert not re.search(r"https?:|<script|<link|<img|nan", text)
