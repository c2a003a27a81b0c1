"""What outlives a start: its number, and incomplete windows."""

import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.daemon import state
from edge_runtime.daemon.state import StateFolder, restore_windows, save_windows
from edge_runtime.stream.pipeline import Pipeline
from edge_runtime.stream.windows import SavedStream, Windows

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


START = """
import sys, time
time.time = lambda: 1_700_000_000.5
from pathlib import Path
from edge_runtime.daemon.state import StateFolder
print(StateFolder(Path(sys.argv[1]), "d").next_start())
"""


def test_processes_of_one_second_have_numbers_of_their_own(tmp_path: Path) -> None:
    """A device without a battery for its clock starts in the same second again and again: only the file tells."""
    numbers = [
        int(subprocess.run([sys.executable, "-c", START, str(tmp_path)], check=True, capture_output=True).stdout)
        for _ in range(3)
    ]
    assert numbers == [1_700_000_000, 1_700_000_001, 1_700_000_002]


def _pipeline(digest: str = "digest", *, expiry: float = 60.0, readings: int = 0) -> Pipeline:
    """What a stop needs of one: two readings make a window."""
    windows = Windows((2, 1), length=2, stride=2)
    for number in range(readings):
        windows.push(np.full((1, 1), number + 1.0, np.float32), ["k"], [float(number)], 0.0)
    return cast(
        "Pipeline",
        SimpleNamespace(
            config=SimpleNamespace(name="m", key_expiry=expiry),
            model=SimpleNamespace(bundle=SimpleNamespace(digest=digest), manifest=SimpleNamespace(state=[])),
            windows=windows,
            save_windows=lambda _: windows.save(),
            restore_windows=lambda saved, _, now: windows.restore(saved, [], now),
        ),
    )


def _is_taken_up(pipeline: Pipeline) -> bool:
    """Whether the next reading completes the window that was begun before the stop."""
    found = pipeline.windows.push(np.full((1, 1), 2.0, np.float32), ["k"], [1.0], 0.0)
    return bool(found.rows) and found.windows.ravel().tolist() == [1.0, 2.0]


def test_windows_of_a_clean_stop_are_taken_up_by_the_same_bundle(tmp_path: Path) -> None:
    """One reading before the stop and one behind it are a window."""
    folder = StateFolder(tmp_path, "d")
    save_windows(folder, [_pipeline(readings=1)], {})
    after = _pipeline()
    restore_windows(folder, [after], {}, 0.0)
    assert _is_taken_up(after)


def test_windows_of_another_bundle_are_not_taken_up(tmp_path: Path) -> None:
    """The readings that another model was fed may mean something else to this one."""
    folder = StateFolder(tmp_path, "d")
    save_windows(folder, [_pipeline(readings=1)], {})
    after = _pipeline("digest of another bundle")
    restore_windows(folder, [after], {}, 0.0)
    assert not _is_taken_up(after)


@pytest.mark.parametrize(
    ("uptime", "boot", "wall", "is_fresh"),
    [
        (59.0, "same", 1e9, True),  # a clock that was set meanwhile says nothing while the machine stayed up
        (61.0, "same", 0.0, False),
        (5.0, "another", 59.0, True),
        (5.0, "another", 61.0, False),
    ],
)
def test_windows_older_than_the_expiry_of_keys_are_not_taken_up(
    uptime: float, boot: str, wall: float, is_fresh: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Age is judged by the uptime, and after a reboot by the wall clock."""
    monkeypatch.setattr(state, "_uptime", lambda: 100.0)
    monkeypatch.setattr(state, "_boot_id", lambda: "same")
    monkeypatch.setattr(time, "time", lambda: 1_700_000_000.0)
    folder = StateFolder(tmp_path, "d")
    save_windows(folder, [_pipeline(readings=1)], {})
    monkeypatch.setattr(state, "_uptime", lambda: 100.0 + uptime)
    monkeypatch.setattr(state, "_boot_id", lambda: boot)
    monkeypatch.setattr(time, "time", lambda: 1_700_000_000.0 + wall)
    after = _pipeline(expiry=60.0)
    restore_windows(folder, [after], {}, 0.0)
    assert _is_taken_up(after) is is_fresh


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
