"""The files of a name's bundles: moved in whole, looked at before they serve, removed when no record names them."""

import errno
import hashlib
from pathlib import Path

import pytest

from edge_runtime.errors import BundleError, CommandError, SignatureError
from edge_runtime.store import pruning
from edge_runtime.store.layout import StoreFolder
from edge_runtime.store.pruning import BundleFolder
from edge_runtime.store.records import BundleRecord, SlotState
from edge_runtime.store.trust import Trust, open_trusted
from edge_runtime.system import durable
from tests.support import builders


@pytest.fixture
def folder(tmp_path: Path) -> StoreFolder:
    """An empty store."""
    folder = StoreFolder(tmp_path / "models")
    folder.make()
    return folder


@pytest.fixture
def bundles(folder: StoreFolder) -> BundleFolder:
    """Its files."""
    return BundleFolder(folder)


def _stage(folder: StoreFolder, *suffixes: str) -> Path:
    folder.staging.mkdir(exist_ok=True)
    staged = folder.staging / "bundle.onnx"
    for suffix in ("", *suffixes):
        staged.with_name(f"bundle.onnx{suffix}").write_text(f"content{suffix}")
    return staged


def _names(folder: StoreFolder) -> list[str]:
    return sorted(path.name for path in folder.of("m").iterdir())


def test_a_bundle_is_moved_in_with_both_of_its_signatures(folder: StoreFolder, bundles: BundleFolder) -> None:
    """Under its digest; nothing is left where it was looked at."""
    bundles.keep("m", "d", _stage(folder, ".sig", ".sig2"))
    assert _names(folder) == ["d.onnx", "d.onnx.sig", "d.onnx.sig2"]
    assert (folder.of("m") / "d.onnx.sig2").read_text() == "content.sig2"
    assert list(folder.staging.iterdir()) == []


def test_a_signature_is_there_before_its_bundle(
    folder: StoreFolder, bundles: BundleFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut between the two leaves a signature without a bundle, and never the other way round."""
    moved: list[str] = []
    replace = Path.replace

    def noting(self: Path, target: Path) -> Path:
        moved.append(target.name)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", noting)
    bundles.keep("m", "d", _stage(folder, ".sig"))
    assert moved == ["d.onnx.sig", "d.onnx"]


def test_a_folder_is_synced_where_something_was_moved(
    folder: StoreFolder, bundles: BundleFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the name would not outlive a power cut; a renewal without a signature writes nothing."""
    synced: list[str] = []
    monkeypatch.setattr(pruning, "sync_folder", lambda path: synced.append(path.name))
    bundles.keep("m", "d", _stage(folder))
    assert synced == ["m"]
    bundles.renew_signature("m", "d", _stage(folder))
    assert synced == ["m"]
    bundles.renew_signature("m", "d", _stage(folder, ".sig"))
    assert synced == ["m", "m"]
    assert _names(folder) == ["d.onnx", "d.onnx.sig"]


def test_files_that_no_record_names_are_removed_with_all_that_belongs_to_them(
    folder: StoreFolder, bundles: BundleFolder
) -> None:
    """The state itself and everything of a bundle that is kept stay."""
    folder.of("m").mkdir()
    for digest in ("active", "before", "staged", "rejected", "gone"):
        for suffix in (".onnx", ".onnx.sig", ".measured.json", ".onnx.optimised"):
            (folder.of("m") / f"{digest}{suffix}").write_text("x")
    (folder.of("m") / "state.json").write_text("{}")
    (folder.of("m") / "gone.folder").mkdir()
    state = SlotState(
        active=BundleRecord(version="3", digest="active"),
        history=[BundleRecord(version="2", digest="before")],
        staged=[BundleRecord(version="4", digest="staged")],
        rejected=[BundleRecord(version="1", digest="rejected")],
    )
    bundles.prune("m", state)
    assert {name.partition(".")[0] for name in _names(folder)} == {"active", "before", "staged", "state"}
    assert len(_names(folder)) == 3 * 4 + 1


def test_a_file_that_cannot_be_removed_costs_its_space_and_nothing_else(
    folder: StoreFolder, bundles: BundleFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others go."""
    folder.of("m").mkdir()
    for name in ("a", "b", "c"):
        (folder.of("m") / f"{name}.onnx").write_text("x")
    remove = durable.remove

    def failing(path: Path) -> None:
        if path.name == "b.onnx":
            raise OSError(errno.EROFS, "Read-only file system")
        remove(path)

    monkeypatch.setattr(pruning, "remove", failing)
    bundles.prune("m", SlotState(active=BundleRecord(version="1", digest="none")))
    assert _names(folder) == ["b.onnx"]


def test_a_file_is_what_was_installed_or_it_is_damaged(folder: StoreFolder, bundles: BundleFolder) -> None:
    """Missing, cut or changed: each is reported with its place."""
    digest = hashlib.sha256(b"content").hexdigest()
    record = BundleRecord(version="1", digest=digest)
    bundles.keep("m", digest, _stage(folder))
    assert bundles.damage("m", record) is None
    bundles.require_sound("m", record)
    path = folder.bundle("m", digest)
    path.write_bytes(b"kontent")
    assert bundles.damage("m", record) == (
        f"{path}: expected the bundle that was installed, found it damaged: install it again"
    )
    with pytest.raises(CommandError, match="found it damaged"):
        bundles.require_sound("m", record)
    path.unlink()
    damage = bundles.damage("m", record)
    assert damage is not None
    assert str(path) in damage


def test_a_bundle_is_opened_only_when_it_is_signed_and_the_one_that_was_let_in(tmp_path: Path) -> None:
    """In this order: nothing is parsed before its signature has held."""
    path = builders.classification().save(tmp_path / "a.onnx")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    signer = builders.signer(tmp_path / "keys")
    trust = Trust(signer.allowed)
    assert Trust(signer.allowed).signatures == 1
    assert open_trusted(path, None, digest=digest).digest == digest
    assert open_trusted(path, None).digest == digest
    with pytest.raises(BundleError, match=r"expected digest 0{12}, found .*install again"):
        open_trusted(path, None, digest="0" * 64)
    with pytest.raises(SignatureError):
        open_trusted(path, trust, digest=digest)
    path.write_bytes(b"no bundle")
    with pytest.raises(SignatureError):
        open_trusted(path, trust)
    path.write_bytes(builders.classification().to_bytes())
    signer.sign(path)
    assert open_trusted(path, trust).size == path.stat().st_size
    with pytest.raises(SignatureError):
        open_trusted(path, Trust(signer.allowed, signatures=2))
