import os
from pathlib import Path

import pytest

from edge_runtime.errors import CommandError
from edge_runtime.system.durable import locked, make_folder, remove, replace_file


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was synchronised and renamed, in order, by name."""
    seen: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def record_fsync(handle: int) -> None:
        seen.append(f"sync {Path(f'/proc/self/fd/{handle}').readlink().name}")
        fsync(handle)

    def record_replace(source: Path, target: Path) -> Path:
        seen.append(f"rename {source.name} {target.name}")
        return replace(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(Path, "replace", record_replace)
    return seen


def test_content_is_on_the_disk_before_its_name_and_the_name_before_the_return(
    tmp_path: Path, order: list[str]
) -> None:
    """A power cut never finds the new name with the old or no content."""
    replace_file(tmp_path / "state.json", b"new")
    assert order == ["sync .new-state.json", "rename .new-state.json state.json", f"sync {tmp_path.name}"]
    assert (tmp_path / "state.json").read_bytes() == b"new"


def test_a_new_folder_is_made_known_to_the_disk(tmp_path: Path, order: list[str]) -> None:
    """A folder that was just made survives a power cut; making it again does nothing."""
    make_folder(tmp_path / "activity")
    make_folder(tmp_path / "activity")
    assert order == [f"sync {tmp_path.name}"]


def test_a_half_written_file_of_an_earlier_time_is_no_obstacle(tmp_path: Path) -> None:
    """What a kill left behind is overwritten, not added to."""
    (tmp_path / ".new-state.json").write_bytes(b"half of something longer")
    replace_file(tmp_path / "state.json", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]
    assert (tmp_path / "state.json").read_bytes() == b"new"


def test_a_link_in_place_of_the_half_written_file_is_not_followed(tmp_path: Path) -> None:
    """A link left behind cannot make root write somewhere else."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    (tmp_path / ".new-state.json").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"):
        replace_file(tmp_path / "state.json", b"new")
    assert victim.read_bytes() == b"mine"


def test_removing_takes_folders_files_links_and_nothing(tmp_path: Path) -> None:
    """What is removed may be anything; the target of a link stays."""
    (tmp_path / "kept").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    (tmp_path / "file").touch()
    for name in ("link", "folder", "file", "absent"):
        remove(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_lock_is_held_by_one_and_let_go_of(tmp_path: Path) -> None:
    """The second process is refused at once; after the first has left, the lock is free."""
    path = tmp_path / ".lock"
    with locked(path, "busy", 0.0), pytest.raises(CommandError, match="busy"), locked(path, "busy", 0.0):
        pass
    with locked(path, "busy", 0.0):
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_what_root_writes_belongs_to_the_owner_of_the_folder(tmp_path: Path) -> None:
    """A model that root installed can be used, and gone back from, by the daemon."""
    folder = tmp_path / "models"
    folder.mkdir()
    os.chown(folder, 1234, 1235)
    make_folder(folder / "activity")
    replace_file(folder / "activity" / "state.json", b"new")
    for path in (folder / "activity", folder / "activity" / "state.json"):
        assert (path.stat().st_uid, path.stat().st_gid) == (1234, 1235)
