"""`edge-runtime models`, `edge-convert keygen` and `--version`: what a newcomer types first works, or says how."""

from pathlib import Path

import pytest

from converter.cli import main as convert
from edge_runtime import __version__
from edge_runtime.cli import main
from tests.support import builders


@pytest.mark.parametrize("behind", [True, False], ids=["behind the verb", "before it"])
def test_the_store_may_be_named_on_either_side_of_the_verb(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], behind: bool
) -> None:
    """`models install --store X` and `models --store X install` are the same."""
    bundle = builders.classification(name="vib").save(tmp_path / "vib.onnx")
    places = ["--store", str(tmp_path / "store"), "--allowed-signers", str(tmp_path / "signers")]
    words = ["install", str(bundle), "--unsigned", "allow"]
    assert main(["models", *([*words, *places] if behind else [*places, *words])]) == 0, capsys.readouterr().err
    capsys.readouterr()
    assert main(["models", *(["list", *places] if behind else [*places, "list"])]) == 0
    assert "vib" in capsys.readouterr().out


def test_an_unsigned_bundle_is_refused_with_both_ways_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Sign it, or take it as it is."""
    bundle = builders.classification(name="vib").save(tmp_path / "vib.onnx")
    (tmp_path / "signers").write_text("")
    places = ["--store", str(tmp_path / "store"), "--allowed-signers", str(tmp_path / "signers")]
    assert main(["models", "install", str(bundle), *places]) == 1
    stderr = capsys.readouterr().err
    assert "edge-convert sign" in stderr
    assert "--unsigned allow" in stderr


def test_a_new_key_may_sign_rollbacks_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The key that flashes a device over MQTT takes it back over MQTT."""
    assert convert(["keygen", str(tmp_path / "key")]) == 0
    assert 'namespaces="edge-bundle,edge-bundle-rollback"' in capsys.readouterr().out


def test_both_programs_tell_their_version(capsys: pytest.CaptureFixture[str]) -> None:
    """The first line of every report of a fault."""
    assert (convert(["--version"]), main(["--version"])) == (0, 0)
    assert capsys.readouterr().out == f"edge-convert {__version__}\nedge-runtime {__version__}\n"
