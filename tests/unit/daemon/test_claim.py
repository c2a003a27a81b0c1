"""One daemon an outbox."""

import os
from pathlib import Path

import pytest

from edge_runtime.daemon.claim import Claim
from edge_runtime.errors import EXIT_CONFIG, ConfigError


def test_a_second_daemon_is_told_who_has_the_outbox(tmp_path: Path) -> None:
    """Process and device stand in the message; the exit code keeps systemd from trying again and again."""
    outbox = tmp_path / "below" / "outbox.db"
    first = Claim(outbox, "press-07")
    with pytest.raises(ConfigError) as caught:
        Claim(outbox, "press-08")
    assert caught.value.exit_code == EXIT_CONFIG
    assert f"found {outbox} in use by process {os.getpid()}, device press-07: stop that daemon" in str(caught.value)
    first.release()
    Claim(outbox, "press-08").release()


def test_what_a_killed_daemon_wrote_is_no_claim(tmp_path: Path) -> None:
    """The kernel lets go of the lock with the process; the file that it leaves says nothing."""
    (tmp_path / "outbox.db.lock").write_text("process 1, device gone")
    claim = Claim(tmp_path / "outbox.db", "press-07")
    assert (tmp_path / "outbox.db.lock").read_text() == f"process {os.getpid()}, device press-07"
    claim.release()


@pytest.mark.parametrize("content", [b"", b"\xff\x00\x1b[31m", b"x" * 10_000])
def test_a_strange_lock_file_is_not_shown(content: bytes, tmp_path: Path) -> None:
    """Whatever stands in it, the message is one readable line."""
    first = Claim(tmp_path / "outbox.db", "press-07")
    (tmp_path / "outbox.db.lock").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        Claim(tmp_path / "outbox.db", "press-08")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000
    first.release()


def test_a_folder_that_cannot_be_made_is_no_fault_of_the_claim(tmp_path: Path) -> None:
    """The outbox itself says so, and tries again."""
    (tmp_path / "file").write_text("")
    Claim(tmp_path / "file" / "outbox.db", "press-07").release()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
