import hashlib
import json
import re
from pathlib import Path

import pytest

from edge_runtime.cli import main
from tests.support import builders


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> builders.Signer:
    """The key that the device trusts."""
    return builders.signer(tmp_path_factory.mktemp("keys"))


class Command:
    """`edge-runtime models` with a store and the keys of this test."""

    def __init__(self, folder: Path, keys: builders.Signer, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.keys = keys
        self._capsys = capsys

    def __call__(self, *words: str | Path) -> tuple[int, str, str]:
        """Exit code, standard output, standard error."""
        options = ["models", "--store", str(self.folder / "models"), "--allowed-signers", str(self.keys.allowed)]
        code = main([*options, *map(str, words)])
        captured = self._capsys.readouterr()
        return code, captured.out, captured.err

    def bundle(self, version: str, *, signed: bool = True) -> Path:
        """A bundle file."""
        path = builders.classification(version=version, seed=sum(version.encode())).save(
            self.folder / f"{version}.onnx"
        )
        if signed:
            self.keys.sign(path)
        return path


@pytest.fixture
def models(tmp_path: Path, keys: builders.Signer, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command, on an empty store."""
    return Command(tmp_path, keys, capsys)


def test_list_of_an_empty_store_is_an_empty_array(models: Command) -> None:
    """A program that asks gets JSON, a person gets a sentence."""
    assert models("list", "--json") == (0, "[]\n", "")
    assert "nothing is installed" in models("list")[1]


def test_the_life_of_a_model_on_a_device(models: Command) -> None:
    """Install, upgrade, roll back, activate: at every step exactly one bundle is active or on probation."""
    digests = {}
    for version in ("1.0.0", "1.1.0"):
        path = models.bundle(version)
        code, out, err = models("install", path)
        assert (code, err) == (0, "")
        assert out.startswith(f"activity {version} (")
        assert "ms a window" in out
        digests[version] = hashlib.sha256(path.read_bytes()).hexdigest()
    listed = json.loads(models("list", "--json")[1])
    assert [(each["name"], each["version"], each["digest"], each["state"]) for each in listed] == [
        ("activity", "1.1.0", digests["1.1.0"], "probation"),
        ("activity", "1.0.0", digests["1.0.0"], "previous"),
    ]
    assert models("rollback", "activity")[0] == 0
    listed = json.loads(models("list", "--json")[1])
    assert [(each["version"], each["state"]) for each in listed] == [("1.0.0", "probation"), ("1.1.0", "staged")]
    assert models("activate", "activity", "1.1.0")[0] == 0
    assert "1.1.0" in models("list")[1].splitlines()[1]
    assert models("selftest", "activity")[0] == 0


def test_installing_the_active_bundle_again_succeeds(models: Command) -> None:
    """A flash that is repeated ends with 0."""
    path = models.bundle("1.0.0")
    assert models("install", path)[0] == 0
    code, out, _ = models("install", path)
    assert code == 0
    assert "nothing to do" in out


@pytest.mark.parametrize(
    "words",
    [("install", "absent.onnx"), ("rollback", "activity"), ("activate", "activity", "1.0.0"), ("selftest", "x")],
)
def test_a_refusal_is_exit_1_and_one_line(models: Command, words: tuple[str, ...]) -> None:
    """Whatever cannot be done is reported on one line of standard error."""
    code, out, err = models(*words)
    assert (code, out) == (1, "")
    assert err.count("\n") == 1


def test_an_unsigned_bundle_is_refused_and_taken_only_when_told_so(models: Command) -> None:
    """`--unsigned allow` is the one way in without a signature."""
    path = models.bundle("1.0.0", signed=False)
    code, _, err = models("install", path)
    assert code == 1
    assert "1.0.0.onnx.sig, found none" in err
    assert models("install", "--unsigned", "allow", path)[0] == 0


def test_budgets_are_set_on_the_command_line(models: Command) -> None:
    """A device with little time or memory says so."""
    path = models.bundle("1.0.0")
    assert "ms a window" in models("install", "--max-latency", "0.0000001", path)[2]
    assert "MiB of memory" in models("install", "--max-memory", "1", path)[2]
    assert models("install", "--max-latency", "10000", "--max-memory", "4096", path)[0] == 0


def test_measuring_writes_the_figures_beside_the_bundle(models: Command) -> None:
    """`selftest --measure` keeps what this device measured."""
    models("install", models.bundle("1.0.0"))
    code, out, _ = models("selftest", "activity", "--measure")
    assert code == 0
    sidecar = Path(out.splitlines()[1].removeprefix("written to "))
    assert json.loads(sidecar.read_text())["version"] == "1.0.0"


def test_what_was_measured_here_is_listed(models: Command) -> None:
    """`list` shows the time and the memory of the bundles that were measured, and a dash for the others."""
    models("install", models.bundle("1.0.0"))
    models("selftest", "activity", "--measure")
    models("install", models.bundle("1.1.0"))
    head, active, previous = models("list")[1].splitlines()
    assert "MEASURED HERE" in head
    assert active.split()[:3] == ["activity", "1.1.0", "probation"]
    assert re.search(r" - *$", active)
    assert re.search(r"previous .* [\d.e-]+ ms, \d+ MiB", previous)
    listed = json.loads(models("list", "--json")[1])
    assert [entry.get("measured", {}).get("version") for entry in listed] == [None, "1.0.0"]
    models("rollback", "activity")
    assert re.search(r"1\.0\.0 .* ms, \d+ MiB", models("list")[1].splitlines()[1])


def test_an_unknown_verb_is_wrong_usage(models: Command) -> None:
    """Exit 2 tells a mistyped command from a refusal."""
    assert models("frobnicate")[0] == 2
