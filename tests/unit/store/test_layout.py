"""The folder of the store: which names it has, what its files are called, and what an error of the disk says."""

import errno
import fcntl
import os
from pathlib import Path

import pytest

from edge_runtime.errors import CommandError
from edge_runtime.store import layout
from edge_runtime.store.layout import StoreFolder, is_valid_name, quoted


@pytest.fixture
def folder(tmp_path: Path) -> StoreFolder:
    """An empty store."""
    made = StoreFolder(tmp_path / "models")
    made.make()
    return made


def _state(folder: StoreFolder, name: str) -> None:
    folder.of(name).mkdir()
    folder.state(name).write_bytes(b"{}")


def test_names_are_those_with_a_state_in_order(folder: StoreFolder) -> None:
    """The store's own folders, a folder without a state, and a file are none."""
    for name in ("pump", "fan/left", "fan", ".hidden"):
        _state(folder, name)
    folder.of("empty").mkdir()
    (folder.root / "readme").write_text("no folder")
    folder.incoming.mkdir()
    (folder.incoming / "state.json").write_bytes(b"{}")
    assert sorted(folder.names()) == [".hidden", "fan", "fan/left", "pump"]
    assert folder.names() == [".hidden", "fan", "fan/left", "pump"]


def test_a_store_that_is_not_there_has_no_names(tmp_path: Path) -> None:
    """A device without models is no error; a store that cannot be read is one."""
    assert StoreFolder(tmp_path / "models").names() == []
    (tmp_path / "file").write_text("")
    with pytest.raises(CommandError, match=r"file: cannot be read: Not a directory"):
        StoreFolder(tmp_path / "file").names()


def test_a_store_is_made_with_the_folders_above_it(tmp_path: Path) -> None:
    """`make` twice changes nothing."""
    folder = StoreFolder(tmp_path / "a" / "b" / "models")
    folder.make()
    (folder.root / ".floors" / "x.json").write_text("kept")
    folder.make()
    assert (folder.root / ".floors" / "x.json").read_text() == "kept"


def test_a_new_store_survives_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The names of its folders are on the disk before anything is written into them."""
    synced: list[Path] = []
    monkeypatch.setattr("edge_runtime.system.durable.sync_folder", synced.append)
    StoreFolder(tmp_path / "a" / "models").make()
    assert synced == [tmp_path / "a", tmp_path / "a" / "models"]


def test_every_path_is_below_the_store(tmp_path: Path) -> None:
    """Where each file is, for a plain name and for one that tries to leave the folder."""
    folder = StoreFolder(tmp_path)
    assert folder.state("fan") == tmp_path / "fan" / "state.json"
    assert folder.bundle("fan", "ab12") == tmp_path / "fan" / "ab12.onnx"
    assert folder.floor("fan") == tmp_path / ".floors" / "fan.json"
    assert folder.staging == tmp_path / ".staging"
    assert folder.incoming == tmp_path / ".incoming"
    for name in ("..", "../../etc", "/etc/passwd", ".", ".lock", "a/../b"):
        assert folder.of(name).resolve().parent == tmp_path.resolve()
        assert folder.floor(name).resolve().parent == (tmp_path / ".floors").resolve()
        assert not folder.of(name).name.startswith(".")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("fan", "fan"), ("a b", "a%20b"), (".x.y", "%2Ex.y"), ("..", "%2E."), ("a/b", "a%2Fb"), ("ä", "%C3%A4")],
)
def test_a_name_is_quoted_as_a_url_is(name: str, expected: str) -> None:
    """A dot at the beginning too, since such names are the store's own."""
    assert quoted(name) == expected


def test_a_name_has_to_fit_into_a_file_name() -> None:
    """230 bytes as quoted: with `.new-` before it and `.json` behind it, that is below the 255 of a file name."""
    assert is_valid_name("n" * 230)
    assert not is_valid_name("n" * 231)
    assert is_valid_name("ä" * 38)  # 6 bytes each
    assert not is_valid_name("ä" * 39)
    assert not is_valid_name("a\nb")
    assert len(f".new-{'n' * 230}.json") <= 255


def test_the_device_class_is_kept(folder: StoreFolder) -> None:
    """None before it was noted, and after a class was taken out of the device file."""
    assert folder.device_class() is None
    folder.note_device_class("pi5")
    assert folder.device_class() == "pi5"
    before = (folder.root / ".class").stat()
    folder.note_device_class("pi5")
    assert (folder.root / ".class").stat() == before  # the card is written only for a change
    folder.note_device_class(None)
    assert folder.device_class() is None
    (folder.root / ".class").write_bytes(b"\xff\xfe")
    assert folder.device_class() is None


def test_no_class_is_noted_where_there_is_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device without a store gets none by this, and a store that cannot be written is left as it is."""
    StoreFolder(tmp_path / "models").note_device_class("pi5")
    assert not (tmp_path / "models").exists()

    def full(_path: Path, _data: bytes) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(layout, "replace_file", full)
    folder = StoreFolder(tmp_path)
    folder.note_device_class("pi5")
    assert folder.device_class() is None


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "the quota is used up"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "permission denied"),
        (errno.EPERM, "permission denied"),
        (errno.EIO, "the disk reports an error"),
        (errno.EMFILE, os.strerror(errno.EMFILE)),
    ],
)
def test_an_error_of_the_disk_is_reported_with_what_to_do(folder: StoreFolder, number: int, words: str) -> None:
    """Each error that a disk has often gets its own remedy, and others the system's text."""
    with pytest.raises(CommandError, match=words) as caught, folder.writing():
        raise OSError(number, os.strerror(number))
    assert str(caught.value).startswith(f"{folder.root}: cannot be written: ")
    with pytest.raises(CommandError, match=words), folder.changing("fan"):
        raise OSError(number, os.strerror(number))


def test_an_error_without_a_number_is_reported_with_its_text(folder: StoreFolder) -> None:
    """Python makes such errors."""
    with pytest.raises(CommandError, match="cannot be written: odd"), folder.writing():
        raise OSError("odd")


def test_a_change_needs_a_store_and_its_lock(
    folder: StoreFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two changes never run together: the second waits, for ten seconds at most."""
    assert layout._LOCK_WAIT_S == 10.0
    monkeypatch.setattr(layout, "_LOCK_WAIT_S", 0.0)
    none = StoreFolder(tmp_path / "none")
    with pytest.raises(CommandError, match="expected a model named fan, found no store"), none.changing("fan"):
        raise AssertionError("entered")
    assert not (tmp_path / "none").exists()
    is_held = pytest.raises(CommandError, match="expected its lock to be free, found it held")
    with folder.changing("fan"), is_held, folder.changing("fan"):
        raise AssertionError("entered twice")
    with (folder.root / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # free again
