"""The recipe of CONTRIBUTING.md for a loader, followed literally: its code is run."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from converter import load
from converter.cli import main
from converter.commands.inspect import manifest_of
from converter.session import run, session_of
from tests.support.recipes import code


def test_a_loader_by_its_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One file and one line, and `build` reads the new kind of model; without the line it is refused as unknown."""
    weights, x = np.array([0.5, -2.0, 3.0]), np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    np.savez(tmp_path / "m.npz", weights=weights, bias=0.25)
    np.savez(tmp_path / "d.npz", x=x)
    out = tmp_path / "m.onnx"
    arguments = ["build", str(tmp_path / "m.npz"), "--data", str(tmp_path / "d.npz"), "-o", str(out)]
    assert main([*arguments, "--quantize", "none"]) == 1
    assert "found an archive that no loader knows" in capsys.readouterr().err
    name = "converter.load.weights"
    assert importlib.util.find_spec(name) is None, f"{name} exists: the recipe needs another example"
    path = tmp_path / "weights.py"
    path.write_text(code("loader converter/load/weights.py"))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    line = code("loader line").strip().strip('",')
    monkeypatch.setattr(load, "LOADERS", [line, *load.LOADERS])
    assert main([*arguments, "--quantize", "none"]) == 0, capsys.readouterr().err
    found = run(session_of(out.read_bytes()), x[:, None, :]).value
    assert found is not None
    np.testing.assert_allclose(found[:, 0], x @ weights + 0.25, rtol=1e-5, atol=1e-5)
    assert manifest_of(out).source.framework == "numpy"


def test_every_loader_is_registered() -> None:
    """A file of `converter/load` with a `LOADER` has its line."""
    folder = Path(load.__file__).parent
    there = {f"converter.load.{path.stem}" for path in folder.glob("*.py") if "\nLOADER = " in path.read_text()}
    assert there == set(load.LOADERS)
