"""What outlives a start: its number, and incomplete windows."""

import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.config.tables import Config
from edge_runtime.daemon import state
from edge_runtime.daemon.state import (
    StateFolder,
    outbox_path,
    outbox_thread,
    restore_windows,
    save_windows,
    state_folder,
)
from edge_runtime.stream.pipeline import Pipeline
from edge_runtime.stream.seen import SavedSeen
from edge_runtime.stream.sources.kind import Remembering
from edge_runtime.stream.windows import SavedStream, Windows
from edge_runtime.system.loop import Loop

STREAM = SavedStream("k", memoryview(b"\0" * 8), 1, 1, 1, 0.0, None)


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


def _pipeline(
    digest: str = "digest", *, expiry: float = 60.0, readings: int = 0, windows: Windows | None = None
) -> Pipeline:
    """What a stop needs of one: two readings make a window, where nothing else is reported."""
    windows = Windows((2, 1), length=2, stride=2) if windows is None else windows
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


def test_the_windows_of_many_keys_are_kept_and_taken_back_without_a_copy_of_all_of_them(tmp_path: Path) -> None:
    """A device whose windows take half of its memory can stop, and start with the file's bytes beside the windows."""
    folder, keys, length = StateFolder(tmp_path, "d"), 400, 2000
    size = keys * length * 4
    names: list[str | None] = [f"key-{number}" for number in range(keys)]

    before, after = (_pipeline(windows=Windows((length, 1), length=length, stride=1)) for _ in range(2))
    for number in range(3):
        before.windows.push(np.full((keys, 1), number + 0.5, np.float32), names, None, 0.0)
    expected = [(each.key, bytes(each.ring), each.filled, each.until) for each in before.windows.save()]
    tracemalloc.start()
    try:
        save_windows(folder, [before], {})
        at_stop = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        restore_windows(folder, [after], {}, 0.0)
        at_start = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [(each.key, bytes(each.ring), each.filled, each.until) for each in after.windows.save()] == expected
    assert at_stop < 0.2 * size
    assert at_start < 2.2 * size


def test_a_file_in_parts_is_read_like_one_that_was_encoded_at_once(tmp_path: Path) -> None:
    """By a release that knows nothing of parts; and a file of such a release is read here."""
    folder = StateFolder(tmp_path, "d")
    seen = SavedSeen(readings=[("k", "7", 1)], filters=["s/+"])
    folder.save_windows({"m": ("digest", [STREAM]), "n": ("other", [])}, {"s": seen})
    path = tmp_path / "d.windows"
    found = msgspec.msgpack.decode(path.read_bytes(), type=state.SavedWindows)
    path.write_bytes(msgspec.msgpack.encode(found))
    again = folder.take_windows()
    assert again == found
    assert again is not None
    assert again.models == {"m": ("digest", [STREAM]), "n": ("other", [])}
    assert again.sources == {"s": seen}


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
        (60.0, "same", 60.0, True),
        (59.0, "same", 1e9, True),  # a clock that was set meanwhile says nothing while the machine stayed up
        (61.0, "same", 0.0, False),
        (5.0, "another", 59.0, True),
        (5.0, "another", 61.0, False),
        (5.0, "", 61.0, False),  # a kernel without a boot id: as after a reboot
    ],
)
def test_windows_older_than_the_expiry_of_keys_are_not_taken_up(
    uptime: float, boot: str, wall: float, is_fresh: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Age is judged by the uptime, and after a reboot by the wall clock."""
    monkeypatch.setattr(state, "_uptime", lambda: 100.0)
    monkeypatch.setattr(state, "_boot_id", lambda: boot and "same")
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
    assert StateFolder(folder, "d").take_windows() is None


def test_two_devices_share_a_folder(tmp_path: Path) -> None:
    """Files carry the device's name."""
    StateFolder(tmp_path, "a").save_windows({"m": ("digest", [STREAM])})
    assert StateFolder(tmp_path, "b").take_windows() is None


def test_the_first_start_is_the_clock_and_each_later_one_a_second_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that stands at its beginning gives 1, 2, 3; with a file or within a process."""
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert [StateFolder(tmp_path, "d").next_start() for _ in range(3)] == [1, 2, 3]
    assert StateFolder(None, "d").next_start() == 1
    assert StateFolder(tmp_path, "d").next_start(above=10) == 11, "what the process knows counts as well"
    assert StateFolder(tmp_path, "d").next_start() == 12


@pytest.mark.parametrize(("elapsed", "expires_after"), [(0.25, 59.75), (10.0, 50.0)])
@pytest.mark.parametrize("boot", ["same", "another"])
def test_a_key_is_as_old_after_a_stop_as_its_windows(
    elapsed: float, expires_after: float, boot: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The seconds of the stop count towards its expiry, and no second more."""
    monkeypatch.setattr(state, "_uptime", lambda: 100.0)
    monkeypatch.setattr(state, "_boot_id", lambda: "same")
    monkeypatch.setattr(time, "time", lambda: 1_700_000_000.0)
    folder = StateFolder(tmp_path, "d")
    save_windows(folder, [_pipeline(readings=1)], {})
    monkeypatch.setattr(state, "_boot_id", lambda: boot)
    monkeypatch.setattr(state, "_uptime", lambda: 100.0 + elapsed)
    monkeypatch.setattr(time, "time", lambda: 1_700_000_000.0 + elapsed)
    after = _pipeline()
    restore_windows(folder, [after], {}, 1000.0)
    expiry = 1000.0 + expires_after - 60.0  # of keys that were silent for 60 s by then
    assert after.windows.expire(expiry) == []
    assert after.windows.expire(expiry + 0.125) == ["k"]


def test_a_clock_that_was_set_back_makes_no_window_younger_than_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An age is never below zero: the key would outlive its expiry."""
    folder = StateFolder(tmp_path, "d")
    for boot, uptime, wall in (("same", 1.0, 0.0), ("another", 0.0, 1.0)):
        monkeypatch.setattr(state, "_boot_id", lambda: "same")
        monkeypatch.setattr(state, "_uptime", lambda: 100.0)
        monkeypatch.setattr(time, "time", lambda: 1_700_000_000.0)
        folder.save_windows({"m": ("digest", [STREAM])})
        monkeypatch.setattr(state, "_boot_id", lambda boot=boot: boot)
        monkeypatch.setattr(state, "_uptime", lambda uptime=uptime: uptime)
        monkeypatch.setattr(time, "time", lambda wall=wall: wall)
        found = folder.take_windows()
        assert found is not None
        assert found.age() == 0.0


def test_what_the_sources_have_seen_is_kept_and_given_back_by_name(tmp_path: Path) -> None:
    """Also where no window is incomplete, and only to a source that is still there."""
    folder, given = StateFolder(tmp_path, "d"), dict[str, SavedSeen]()

    def source(name: str) -> Remembering:
        return cast(
            "Remembering",
            SimpleNamespace(
                save=lambda _: SavedSeen(readings=[("k", name, 7)], filters=[f"s/{name}"]),
                restore=lambda saved, _: given.__setitem__(name, saved),
            ),
        )

    save_windows(folder, [_pipeline()], {"a": source("a"), "gone": source("gone")})
    restore_windows(folder, [_pipeline()], {"a": source("a"), "new": source("new")}, 0.0)
    assert list(given) == ["a"]
    assert (given["a"].readings, given["a"].filters) == ([("k", "a", 7)], ["s/a"])


def test_a_start_without_saved_windows_begins_with_empty_ones(tmp_path: Path) -> None:
    """The first start, and every one after a crash."""
    after = _pipeline()
    restore_windows(StateFolder(tmp_path, "d"), [after], {}, 0.0)
    restore_windows(StateFolder(None, "d"), [after], {}, 0.0)
    assert len(after.windows) == 0


def test_windows_that_cannot_be_kept_are_reported_and_end_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A folder that cannot be written: a stop goes on without them."""
    blocked = tmp_path / "file"
    blocked.write_text("")
    save_windows(StateFolder(blocked / "below", "d"), [_pipeline(readings=1)], {})
    assert [record.getMessage() for record in caplog.records] == ["incomplete windows are not kept"]


def test_a_file_of_the_release_before_is_taken_and_one_of_a_later_format_is_not(tmp_path: Path) -> None:
    """Written down as it stands on disk; a format that is not known is not guessed at, and is gone afterwards."""
    stream = ["k", bytes(8), 1, 1, 1, 0.0, None]
    for number, is_taken in ((1, True), (2, False), (0, False)):
        content = {"format": number, "saved": 1e9, "models": {"m": ["digest", [stream]]}}
        (tmp_path / "d.windows").write_bytes(msgspec.msgpack.encode(content))
        found = StateFolder(tmp_path, "d").take_windows()
        assert (found is not None) is is_taken, number
        assert not (tmp_path / "d.windows").exists()
        if found is not None:
            assert found.models == {"m": ("digest", [STREAM])}


def test_a_small_file_is_read_back_by_its_name_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    """The folder is made where it is missing, with those above it; without a folder nothing is kept."""
    folder = StateFolder(tmp_path / "one" / "two", "d")
    assert folder.read("what") is None
    folder.write("what", b"first")
    folder.write("what", b"second")
    assert folder.read("what") == b"second"
    path = tmp_path / "one" / "two" / "d.what"
    assert path.read_bytes() == b"second"
    assert path.stat().st_mode & 0o777 == 0o600
    nowhere = StateFolder(None, "d")
    nowhere.write("what", b"third")
    assert nowhere.read("what") is None
    nowhere.save_windows({"m": ("digest", [STREAM])})
    assert nowhere.take_windows() is None


@pytest.mark.parametrize(
    ("configured", "directory", "folder", "outbox"),
    [
        ("/data/box.db", "/var/lib/a", "/data", "/data/box.db"),
        (None, "/var/lib/a", "/var/lib/a", "/var/lib/a/outbox.db"),
        (None, "/var/lib/a:/var/lib/b", "/var/lib/a", "/var/lib/a/outbox.db"),  # systemd joins several with colons
        (None, "", None, None),
        (None, None, None, None),
    ],
)
def test_the_state_stands_beside_the_outbox_or_where_systemd_says(
    configured: str | None,
    directory: str | None,
    folder: str | None,
    outbox: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without either there is none, and predictions wait in memory alone."""
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    if directory is not None:
        monkeypatch.setenv("STATE_DIRECTORY", directory)
    table = SimpleNamespace(path=configured, max_bytes=1_000_000, max_age=None)
    config = cast("Config", SimpleNamespace(outbox=table))
    assert state_folder(config) == (None if folder is None else Path(folder))
    assert outbox_path(config) == (None if outbox is None else Path(outbox))
    thread = outbox_thread(config, cast("Loop", SimpleNamespace(call_soon_threadsafe=None)))
    assert (thread is None) is (outbox is None)
    if thread is not None:
        assert thread.stop(10.0)
