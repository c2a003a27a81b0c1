"""Where a daemon keeps what `edge-runtime status` shows."""

import json
import os
from pathlib import Path

import pytest

from edge_runtime.daemon.status_file import StatusFile, own_folder, status_files

GONE = 2**22 + 1  # above the highest number that the kernel gives to a process


def test_a_service_writes_where_systemd_says(tmp_path: Path) -> None:
    """One file a device; a clean stop takes it away."""
    file = StatusFile("press", {"RUNTIME_DIRECTORY": f"{tmp_path}:/elsewhere"})
    file.write({"pid": 1})
    assert json.loads((tmp_path / "press.status.json").read_text()) == {"pid": 1}
    file.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_daemon_in_the_foreground_is_found_by_the_same_user(tmp_path: Path) -> None:
    """Its folder is its user's own, and closed to others."""
    environ = {"XDG_RUNTIME_DIR": str(tmp_path)}
    file = StatusFile("press", environ)
    file.write({"pid": os.getpid()})
    (found,) = status_files(own_folder(environ), "press")
    assert json.loads(found.read_text()) == {"pid": os.getpid()}
    assert own_folder(environ).stat().st_mode & 0o777 == 0o700
    assert list(status_files(own_folder(environ), "other")) == []
    file.remove()
    assert list(status_files(own_folder(environ), None)) == []


def test_what_a_killed_daemon_left_goes_at_the_next_start(tmp_path: Path) -> None:
    """Of the same device; the file of another device, or of a process that lives, stays."""
    environ = {"XDG_RUNTIME_DIR": str(tmp_path)}
    left = own_folder(environ)
    for pid, device in ((GONE, "press"), (GONE, "saw"), (os.getppid(), "press")):
        (left / str(pid)).mkdir(parents=True, exist_ok=True, mode=0o700)
        (left / str(pid) / f"{device}.status.json").write_text("{}")
    left.chmod(0o700)
    StatusFile("press", environ).write({})
    found = {(path.parent.name, path.name) for path in status_files(left, None)}
    assert found == {
        (str(GONE), "saw.status.json"),
        (str(os.getppid()), "press.status.json"),
        (str(os.getpid()), "press.status.json"),
    }


@pytest.mark.parametrize("kind", ["open to others", "a link", "a file"])
def test_a_folder_that_is_not_ours_alone_is_not_used(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Shared memory is open to all: whoever was there first must not choose where we write; the log says so."""
    folder = own_folder({"XDG_RUNTIME_DIR": str(tmp_path)})
    if kind == "open to others":
        folder.mkdir()
        folder.chmod(0o777)
    elif kind == "a link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "elsewhere")
    else:
        folder.write_text("")
    file = StatusFile("press", {"XDG_RUNTIME_DIR": str(tmp_path)})
    file.write({"pid": 1})
    file.remove()
    assert not any(path.is_file() and path.name == "press.status.json" for path in tmp_path.rglob("*"))
    assert "no status file is kept" in caplog.text


def test_a_full_disk_is_a_line_and_no_fault(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The folder has gone: the daemon goes on."""
    file = StatusFile("press", {"RUNTIME_DIRECTORY": str(tmp_path / "gone")})
    file.write({})
    assert "the status file cannot be written" in caplog.text
