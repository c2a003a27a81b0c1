"""PyTorch: the module, its ONNX export and the final bundle, on the same rows."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converter.cli import main
from converter.commands.inspect import manifest_of
from converter.session import run, session_of

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytestmark = [pytest.mark.filterwarnings("ignore")]

SPEC = (
    'task = "classification"\nlabels = ["a", "b", "c", "d"]\n[window]\nlength = 20\n[model]\nlayout = "channel_first"\n'
)
SPEC += "".join(f'[[channel]]\nname = "{name}"\n' for name in "xyz")

SOURCE = """
import torch

class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.convolution = torch.nn.Conv1d(3, 8, 5)
        self.dense = torch.nn.Linear(8, 4)

    def forward(self, x):
        return self.dense(torch.relu(self.convolution(x)).mean(-1))

def network():
    return Network()
"""


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A small convolutional network, in a module of its own."""
    (tmp_path / "nets.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    import nets  # type: ignore[import-not-found]  # noqa: PLC0415 - written above

    return nets.network().eval()


def saved(network: Any, kind: str, folder: Path) -> list[str]:
    """The network as one of the three things that the converter takes."""
    if kind == "program":
        shapes = ({0: torch.export.Dim("n")},)
        torch.export.save(
            torch.export.export(network, (torch.zeros(2, 3, 20),), dynamic_shapes=shapes), folder / "m.pt2"
        )
        return [str(folder / "m.pt2")]
    if kind == "program of batch 1":
        torch.export.save(torch.export.export(network, (torch.zeros(1, 3, 20),)), folder / "m.pt2")
        return [str(folder / "m.pt2")]
    if kind == "script":
        torch.jit.script(network).save(folder / "m.pt")
        return [str(folder / "m.pt"), "--trust"]
    return ["nets:network", "--trust"]


@pytest.mark.parametrize("kind", ["program", "program of batch 1", "script", "function"])
def test_a_network_answers_as_its_module(kind: str, network: Any, tmp_path: Path) -> None:
    """Logits become probabilities that are the module's to 1e-5, for any batch, and int8 keeps the labels."""
    x = np.random.default_rng(0).normal(size=(120, 20, 3)).astype(np.float32)
    with torch.no_grad():
        expected = torch.softmax(network(torch.from_numpy(x.transpose(0, 2, 1).copy())), dim=1).numpy()
    np.savez(tmp_path / "d.npz", x=x, y=expected.argmax(axis=1))
    (tmp_path / "spec.toml").write_text(SPEC)
    common = ["--spec", str(tmp_path / "spec.toml"), "--data", str(tmp_path / "d.npz"), "--max-drop", "0.05"]
    for method in ("none", "int8"):
        out = tmp_path / f"{method}.onnx"
        assert main(["build", *saved(network, kind, tmp_path), *common, "--quantize", method, "-o", str(out)]) == 0
        found = run(session_of(out.read_bytes()), x)
        assert found.scores is not None
        assert np.mean(found.label == expected.argmax(axis=1)) >= (1.0 if method == "none" else 0.95)
        np.testing.assert_allclose(found.scores, expected, atol=1e-5 if method == "none" else 0.05)
    manifest = manifest_of(tmp_path / "none.onnx")
    assert manifest.source.framework == "PyTorch"
    assert manifest.batch_free


class Canary:
    """Unpickling it leaves a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (open, (self.path, "w"))


def test_nothing_is_run_without_trust(network: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Functions, whole pickled modules and weights alone are refused, each with what to do."""
    canary = tmp_path / "canary"
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    torch.save(Canary(str(canary)), tmp_path / "module.pt")
    (tmp_path / "old.pt").write_bytes(pickle.dumps(Canary(str(canary))))
    for name, message in (
        ("nets:network", "add --trust"),
        (str(tmp_path / "weights.pt"), "found PyTorch weights without one"),
        (str(tmp_path / "module.pt"), "found PyTorch weights without one"),
        (str(tmp_path / "old.pt"), "this is a pickle"),
    ):
        assert main(["build", name, "--quantize", "none", "-o", str(tmp_path / "o.onnx")]) == 1
        assert message in capsys.readouterr().err
    assert not canary.exists()


def test_a_script_without_a_specification_asks_for_one(
    network: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """TorchScript does not tell the shape of its input."""
    assert (
        main(["build", *saved(network, "script", tmp_path), "--quantize", "none", "-o", str(tmp_path / "o.onnx")]) == 1
    )
    assert "expected [[channel]] or [frame] in --spec" in capsys.readouterr().err
