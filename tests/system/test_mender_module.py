"""The example for Mender: its update module, called as Mender's client does, on a real store."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_runtime.store.install import Policy
from edge_runtime.store.store import ModelStore
from tests.support import builders
from tests.support.installed import Installed, clean_environment
from tests.support.waiting import patient

pytestmark = [pytest.mark.system]

MODULE = Path(__file__).resolve().parents[2] / "examples" / "mender" / "edge_model.py"


class Client:
    """Calls the module with a state and a folder, from within that folder.

    Attributes:
        store: of the device; it runs `m` 1.0.0.
        tree: the folder of the update, as Mender lays it out.
    """

    def __init__(self, folder: Path, runtime: Path) -> None:
        self.keys = builders.signer(folder / "keys")
        self.store = ModelStore(folder / "store")
        self.tree = folder / "tree"
        self._folder = folder
        self._environment = clean_environment() | {
            "EDGE_RUNTIME": str(runtime),
            "EDGE_ACCOUNT": "",
            "EDGE_STORE": str(self.store.root),
            "EDGE_ALLOWED_SIGNERS": str(self.keys.allowed),
            "EDGE_CONFIRM_S": "0",
        }

    def bundle(self, version: str, folder: Path) -> Path:
        """A signed bundle."""
        folder.mkdir(parents=True, exist_ok=True)
        path = builders.classification(name="m", version=version).save(folder / "m.onnx")
        self.keys.sign(path)
        return path

    def deliver(self, version: str) -> Path:
        """A new update: the folder as it is after the download."""
        for each in sorted(self.tree.rglob("*"), reverse=True):
            each.rmdir() if each.is_dir() else each.unlink()
        for name in ("header", "tmp", "files"):
            (self.tree / name).mkdir(parents=True, exist_ok=True)
        (self.tree / "version").write_text("3\n")
        return self.bundle(version, self.tree / "files")

    def __call__(self, *words: str, code: int = 0, **environment: str) -> str:
        """One call; what it printed, stderr where it is to fail."""
        done = subprocess.run(
            [sys.executable, str(MODULE), *words], cwd=self.tree, env=self._environment | environment,
            capture_output=True, text=True, check=False, timeout=patient(120),
        )  # fmt: skip
        assert "Traceback" not in done.stderr
        assert done.returncode == code, done.stderr
        return done.stderr if code else done.stdout

    def state(self, name: str, *, code: int = 0, **environment: str) -> str:
        """A state, with the folder."""
        return self(name, str(self.tree), code=code, **environment)

    @property
    def serves(self) -> str:
        """The version in service."""
        return self.store.slot("m").version


@pytest.fixture
def client(tmp_path: Path, installed: Installed) -> Client:
    """The device runs 1.0.0, and an update to 1.1.0 has been downloaded."""
    made = Client(tmp_path, installed.edge_runtime)
    made.store.install(made.bundle("1.0.0", tmp_path), Policy(allowed_signers=made.keys.allowed))
    made.store.confirm("m", made.store.slot("m").digest)
    made.deliver("1.1.0")
    return made


def test_an_update_is_installed_committed_and_needs_no_reboot(client: Client) -> None:
    """The questions are answered as the protocol has them; the bundle serves after the install and not before."""
    assert client("SupportsRollback") == "Yes\n"
    assert client("NeedsArtifactReboot") == "No\n"
    assert client.state("Download") == ""
    assert client.serves == "1.0.0"
    assert client.state("ArtifactInstall").startswith("m 1.1.0 (")
    assert client.serves == "1.1.0"
    for name in ("ArtifactVerifyReboot", "ArtifactCommit", "Cleanup"):
        assert client.state(name) == ""
    assert client.serves == "1.1.0"
    assert client.state("SomethingOfTheFuture") == ""


def test_a_commit_waits_for_the_end_of_probation(client: Client) -> None:
    """One that is not confirmed in time fails, so that Mender rolls back; one that is confirmed succeeds."""
    client.state("ArtifactInstall")
    why = client.state("ArtifactCommit", code=1, EDGE_CONFIRM_S="0.1")
    assert "still on probation after 0.1 s" in why
    client.store.confirm("m", client.store.slot("m").digest)
    assert client.state("ArtifactCommit", EDGE_CONFIRM_S="0.1") == ""


def test_a_rollback_takes_back_this_update_and_nothing_else(client: Client) -> None:
    """Once; not where the install never began or was refused, nor where the device went back by itself."""
    client.state("ArtifactRollback")
    assert client.serves == "1.0.0", "nothing had begun"
    client.state("ArtifactInstall")
    client.state("ArtifactRollback")
    assert client.serves == "1.0.0"
    client.state("ArtifactRollback")
    assert client.serves == "1.0.0"

    client.deliver("1.2.0")
    client.state("ArtifactInstall")
    client.store.fail("m", client.store.slot("m").digest, "answers NaN")
    assert "found it rejected: answers NaN" in client.state("ArtifactCommit", code=1)
    client.state("ArtifactRollback")
    assert client.serves == "1.0.0"


def test_an_update_to_what_runs_already_takes_nothing_back(client: Client) -> None:
    """The install changes nothing then, and so does its rollback; a repeated install of one update still goes back."""
    client.state("ArtifactInstall")
    assert "already" in client.state("ArtifactInstall")
    client.state("ArtifactRollback")
    assert client.serves == "1.0.0"

    client.deliver("1.2.0")
    client.state("ArtifactInstall")
    client.store.confirm("m", client.store.slot("m").digest)
    client.deliver("1.2.0")
    assert "already" in client.state("ArtifactInstall")
    client.state("ArtifactRollback")
    assert client.serves == "1.2.0"


def _unsigned(path: Path) -> None:
    path.with_name(path.name + ".sig").unlink()


def _changed(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def _two(path: Path) -> None:
    (path.parent / "n.onnx").write_bytes(b"x")


@pytest.mark.parametrize(
    ("spoil", "why"),
    [(_unsigned, "signature"), (_changed, "sign"), (_two, "expected one .onnx bundle, found m.onnx, n.onnx")],
)
def test_what_the_store_refuses_fails_the_update_and_changes_nothing(
    client: Client, spoil: Callable[[Path], None], why: str
) -> None:
    """Whoever holds the Mender server cannot bring what no trusted key has signed; the reason is one line."""
    spoil(client.tree / "files" / "m.onnx")
    text = client.state("ArtifactInstall", code=1)
    assert text.startswith("edge-model: ")
    assert text.count("\n") == 1
    assert why in text
    client.state("ArtifactRollback")
    assert client.serves == "1.0.0"


def test_a_device_without_the_runtime_is_named(client: Client) -> None:
    """The module says what is missing."""
    assert "is edge-runtime installed?" in client.state("ArtifactInstall", code=1, EDGE_RUNTIME="/nowhere/edge-runtime")
