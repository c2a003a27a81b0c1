"""The script that takes a file in on a device, run here by `sh`: interrupted, resumed, and overtaken."""

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from edge_runtime.fleet.transfer import _RECEIVE
from tests.support.waiting import wait_until

CONTENT = os.urandom(300_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


def begin(folder: Path, token: str = "") -> tuple[subprocess.Popen[bytes], int]:
    """Start to take `CONTENT` in; the process, and how much of it is there already."""
    words = ["sh", "-c", _RECEIVE, "receive", str(folder), "bundle.onnx", DIGEST, str(len(CONTENT)), token]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def give(process: subprocess.Popen[bytes], content: bytes) -> None:
    """Hand it some of the content, and no end."""
    assert process.stdin is not None
    process.stdin.write(content)
    process.stdin.flush()


def held(folder: Path) -> int:
    """Bytes of the part."""
    return sum(path.stat().st_size for path in folder.glob("*.part*"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the file goes; its neighbours are other transfers' folders."""
    return tmp_path / "incoming" / "flash"


def test_what_is_there_is_not_sent_again(folder: Path) -> None:
    """A transfer that ends early leaves its part, and the next one goes on behind it."""
    first, at_first = begin(folder)
    assert at_first == 0
    assert first.communicate(CONTENT[:200_000])
    assert first.returncode != 0
    second, there = begin(folder)
    assert there == 200_000
    second.communicate(CONTENT[there:])
    assert second.returncode == 0
    assert (folder / "bundle.onnx").read_bytes() == CONTENT
    assert not held(folder)


@pytest.mark.parametrize("when", ["before the rest", "in the middle of it", "after the end"])
def test_what_a_dead_connection_sends_at_last_changes_nothing(when: str, folder: Path) -> None:
    """A cut transfer that comes back to life beside its successor, or behind it, does not touch what is right."""
    dead, _ = begin(folder, "same")
    give(dead, CONTENT[: 2 << 16])
    wait_until(lambda: held(folder) == 2 << 16, "the first part")
    alive, there = begin(folder, "same")  # the next try of the same sender
    assert there == 2 << 16
    middle = 200_000 if when == "in the middle of it" else len(CONTENT) if when == "after the end" else there
    give(alive, CONTENT[there:middle])
    if when == "after the end":
        alive.communicate()
        assert alive.returncode == 0
    dead.communicate(CONTENT[2 << 16 :][: 2 << 16])
    if when != "after the end":
        alive.communicate(CONTENT[middle:])
        assert alive.returncode == 0
    assert (folder / "bundle.onnx").read_bytes() == CONTENT


def test_a_transfer_that_is_alive_is_not_disturbed(folder: Path) -> None:
    """A second sender of the same file is refused while the first is alive, whatever the clock of the device says."""
    first, _ = begin(folder)
    give(first, CONTENT[: 2 << 16])
    wait_until(lambda: held(folder) == 2 << 16, "the first part")
    for path in folder.glob("*.part*"):
        os.utime(path, (0, 0))
    words = ["sh", "-c", _RECEIVE, "receive", str(folder), "bundle.onnx", DIGEST, str(len(CONTENT))]
    second = subprocess.run(words, input=b"", capture_output=True, check=False)
    assert second.returncode == 75
    assert b"another transfer of this file is under way" in second.stderr
    first.communicate(CONTENT[2 << 16 :])
    assert first.returncode == 0


def test_what_arrives_damaged_is_refused_and_forgotten(folder: Path) -> None:
    """The digest decides, and a bad part is not gone on with."""
    first, _ = begin(folder)
    first.communicate(CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]))
    assert first.returncode == 65
    assert not (folder / "bundle.onnx").exists()
    again, there = begin(folder)
    assert there == 0
    again.communicate(CONTENT)
    assert again.returncode == 0
