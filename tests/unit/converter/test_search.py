"""The search for the form to ship, and what is said about it."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from sklearn.neural_network import MLPClassifier

from converter.cli import main
from converter.commands.inspect import manifest_of
from converter.quantize import Recipe, stages
from converter.targets import warnings_for


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


def model_and_data(tmp_path: Path) -> list[str]:
    """A network with three products, and the arguments that convert it."""
    import skops.io  # noqa: PLC0415

    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 6)).astype(np.float32)
    y = (np.sin(3 * x[:, 0]) + x[:, 1] > 0).astype(int)
    skops.io.dump(MLPClassifier((32, 32), max_iter=300, random_state=0).fit(x, y), tmp_path / "m.skops")
    np.savez(tmp_path / "d.npz", x=x, y=y)
    return ["build", str(tmp_path / "m.skops"), "--data", str(tmp_path / "d.npz"), "-o", str(tmp_path / "m.onnx")]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_sensitive_nodes_stay_in_float_where_int8_alone_would_lose_too_much(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model with one node that int8 ruins still becomes int8, but for that node."""
    from converter import quantize  # noqa: PLC0415

    honest = quantize._static

    def ruins_the_first(before: Path, after: Path, nodes: list[str], recipe: Any, rows: Any, states: Any) -> None:
        first = quantize.products_of(onnx.load(before))[0]
        honest(before, after, nodes, recipe, rows * (0.0 if first in nodes else 1.0), states)

    monkeypatch.setattr(quantize, "_static", ruins_the_first)
    assert main([*model_and_data(tmp_path), "--quantize", "int8"]) == 0
    said = capsys.readouterr().out
    assert "looking for the nodes that int8 hurts most" in said
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


def test_a_target_device_warns_of_what_it_cannot_carry() -> None:
    """Too large a file, and int8 on cores without dot products."""
    assert warnings_for(None, 1 << 40, "int8") == []
    assert warnings_for("pi5", 1000, "int8") == []
    large, slow = warnings_for("zero2w", 100 << 20, "dynamic")
    assert "more than its budget of 48 MB" in large
    assert "no int8 dot products" in slow
