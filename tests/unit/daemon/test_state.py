"""What outlives a start: its number, and incomplete windows."""

import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.daemon.state import StateFolder
from edge_runtime.stream.windows import SavedStream

STREAM = SavedStream("k", b"\0" * 8, 1, 1, 1, 0.0, None)


def test_the_number_of_a_start_is_always_above_every_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within a second, and also when the clock was set back to 1970 in between."""
    numbers = [StateFolder(tmp_path, "d").next_start() for _ in range(5)]
    monkeypatch.setattr(time, "time", lambda: 12.0)
    numbers += [StateFolder(tmp_path, "d").next_start() for _ in range(5)]
    assert numbers == sorted(set(numbers))


def test_starts_without_a_folder_differ_within_a_process() -> None:
    """A reload in the second of the start must not repeat its ids."""
    numbers = [0]
    for _ in range(5):
        numbers.append(StateFolder(None, "d").next_start(above=numbers[-1]))
    assert numbers == sorted(set(numbers))


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"abc", b"-5", b"9" * 5000, b"1.5"])
def test_a_damaged_number_is_no_fault(content: bytes, tmp_path: Path) -> None:
    """The clock stands in, and the next start is above it again."""
    (tmp_path / "d.start").write_bytes(content)
    before = int(time.time())
    first = StateFolder(tmp_path, "d").next_start()
    assert first >= before
    assert StateFolder(tmp_path, "d").next_start() > first


def test_a_folder_that_cannot_be_written_is_no_fault(tmp_path: Path) -> None:
    """A file stands where the folder should be: starts are numbered by the clock, and nothing is kept."""
    blocked = tmp_path / "file"
    blocked.write_text("")
    folder = StateFolder(blocked / "below", "d")
    assert folder.next_start() >= int(time.time()) - 1
    assert folder.take_windows() is None
    with pytest.raises(OSError, match=r".+"):
        folder.save_windows({"m": ("digest", [STREAM])})


def test_windows_are_taken_once(tmp_path: Path) -> None:
    """A crash after they were taken must not bring them back a second time."""
    folder = StateFolder(tmp_path, "d")
    folder.save_windows({"m": ("digest", [STREAM])})
    found = folder.take_windows()
    assert found is not None
    digest, (stream,) = found.models["m"]
    assert (digest, stream.key, stream.ring) == ("digest", "k", STREAM.ring)
    assert folder.take_windows() is None


@settings(max_examples=100)
@given(data=st.binary(max_size=200))
def test_a_damaged_file_of_windows_is_no_fault(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever stands in it, the daemon starts with empty windows."""
    folder = tmp_path_factory.mktemp("state")
    (folder / "d.windows").write_bytes(data)
    StateFolder(folder, "d").take_windows()


def test_two_devices_share_a_folder(tmp_path: Path) -> None:
    """Files carry the device's name."""
    StateFolder(tmp_path, "a").save_windows({"m": ("digest", [STREAM])})
    assert StateFolder(tmp_path, "b").take_windows() is None
