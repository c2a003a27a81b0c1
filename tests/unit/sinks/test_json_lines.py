"""JSON Lines within a bound: whole lines only, whatever happened to the file."""

import itertools
import os
import random
from pathlib import Path

import pytest

from edge_runtime.sinks.json_lines import JsonLinesFile


def lines_of(path: Path) -> list[bytes]:
    """Every line of the older file and then of the newer one."""
    older = path.with_name(f"{path.name}.1")
    return b"".join(each.read_bytes() for each in (older, path) if each.exists()).split(b"\n")[:-1]


def size_of(path: Path) -> int:
    """Bytes of both files."""
    return sum(each.stat().st_size for each in path.parent.iterdir())


def test_both_files_never_exceed_the_bound_by_a_byte_and_the_newest_lines_are_kept(tmp_path: Path) -> None:
    """With lines of every length up to the longest, over openings and closings; no line is torn or out of order."""
    rng = random.Random(4)
    path = tmp_path / "p.jsonl"
    file = JsonLinesFile(path, 2048)
    made: list[bytes] = []
    for number in range(400):
        line = b"%d " % number
        line += b"x" * rng.choice([0, 1, 100, 100, rng.randrange(1000), 1024 - 1 - len(line)])
        if rng.random() < 0.05:
            line += b"y" * rng.choice([2048 - 1 - len(line), rng.randrange(2048 - len(line))])
        made.append(line)
        assert file.write([line]) == 1
        if rng.random() < 0.2:
            file.sync()
        if rng.random() < 0.1:
            file.close()
        assert size_of(path) <= 2048
        found = lines_of(path)
        assert found == made[len(made) - len(found) :]
    file.close()
    assert file.rotated > 100
    assert file.torn == 0


@pytest.mark.parametrize(("length", "files"), [(19, 1), (20, 2)])
def test_a_file_holds_half_of_the_bound_and_no_byte_more(tmp_path: Path, length: int, files: int) -> None:
    """Line ends count; so both halves fit, and the older one is not removed before its time."""
    path = tmp_path / "p"
    file = JsonLinesFile(path, 2 * 100)
    for _ in range(4):
        file.write([b"x" * 19])  # 80 of 100 bytes
    file.write([b"y" * length])
    assert len(list(tmp_path.iterdir())) == files


def test_many_lines_at_once_are_as_many_lines_one_by_one(tmp_path: Path) -> None:
    """Also where they fill several files."""
    made = [b"%d" % number for number in range(5000)]
    one, many = JsonLinesFile(tmp_path / "a" / "p", 20_000), JsonLinesFile(tmp_path / "b" / "p", 20_000)
    for line in made:
        one.write([line])
    assert many.write(made) == len(made)
    assert lines_of(tmp_path / "a" / "p") == lines_of(tmp_path / "b" / "p")


@pytest.mark.parametrize(
    "left", [b"", b"torn", b"whole\n", b"whole\ntorn", b"\0\0\0", b"whole\n\0\0", b"a\n" + b"t" * 150_000]
)
def test_an_incomplete_last_line_is_cut_off(tmp_path: Path, left: bytes) -> None:
    """As a power cut leaves it; what was whole stays."""
    path = tmp_path / "p"
    path.write_bytes(left)
    file = JsonLinesFile(path, 1_000_000)
    file.write([b"next"])
    assert path.read_bytes() == left[: left.rfind(b"\n") + 1] + b"next\n"
    assert file.torn == (0 if left in {b"", b"whole\n"} else 1)


def test_a_disk_that_is_full_in_the_middle_of_a_line_leaves_whole_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many bytes it still took; and when there is room again, nothing is missing."""
    write = os.write
    for room in range(1, 24):  # of 24 bytes
        path = tmp_path / str(room)
        file = JsonLinesFile(path, 10_000)
        left = itertools.count(room, -3)

        def write_some(handle: int, data: bytes, left: "itertools.count[int]" = left) -> int:
            now = next(left)
            if now <= 0:
                raise OSError(28, "No space left on device")
            return write(handle, bytes(data)[: min(3, now)])

        monkeypatch.setattr(os, "write", write_some)
        lines = [b"first line", b"second", b"third"]
        with pytest.raises(OSError, match="No space"):
            file.write(lines)
        assert path.read_bytes() == b""
        monkeypatch.setattr(os, "write", write)
        assert file.write(lines) == 3
        assert lines_of(path) == lines


def test_a_file_that_was_moved_away_is_begun_anew(tmp_path: Path) -> None:
    """As other programs rotate files."""
    path = tmp_path / "p"
    file = JsonLinesFile(path, 10_000)
    file.write([b"one"])
    path.rename(tmp_path / "moved")
    file.sync()
    file.write([b"two"])
    assert path.read_bytes() == b"two\n"
    path.unlink()
    file.sync()
    file.write([b"three"])
    assert path.read_bytes() == b"three\n"


def test_files_of_a_larger_bound_are_brought_within_the_new_one(tmp_path: Path) -> None:
    """The newest lines stay, whole."""
    path = tmp_path / "p"
    made = [b"%04d" % number for number in range(2000)]
    JsonLinesFile(path, 16_384).write(made)
    file = JsonLinesFile(path, 2048)
    file.write([b"last"])
    found = lines_of(path)
    assert size_of(path) <= 2048
    assert found == [*made, b"last"][-len(found) :]
    assert len(found) > 100


@pytest.mark.parametrize("kind", ["folder", "pipe", "link"])
def test_what_is_no_regular_file_is_refused(tmp_path: Path, kind: str) -> None:
    """A pipe would hang, and a link could lead to a file of another account."""
    path = tmp_path / "p"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(tmp_path / "other")
    with pytest.raises(OSError):
        JsonLinesFile(path, 2048).write([b"x"])
