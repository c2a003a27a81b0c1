"""The ring of files: within its budget at any moment, and whole whatever happens to the process or the disk."""

import errno
import os
import random
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from edge_runtime.capture import ring as ring_module
from edge_runtime.capture.entries import MAGIC, SUFFIX, Captured, Labelled
from edge_runtime.capture.folder import read_captures
from edge_runtime.capture.ring import FILES, CaptureItem, CaptureRing
from edge_runtime.errors import CommandError
from tests.support.waiting import patient
from tests.unit.capture.test_entries import FACTS, _captured

OTHER = msgspec.structs.replace(FACTS, digest="cd" * 32, version="2.0.0")


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for a disk shows nothing here; the flood below waits for it in a process of its own."""
    monkeypatch.setattr(os, "fdatasync", lambda _: None)
    monkeypatch.setattr(os, "fsync", lambda _: None)


def _item(number: int, facts: object = FACTS) -> CaptureItem:
    return CaptureItem(_captured(number), facts)  # type: ignore[arg-type]


def _numbers(folder: Path) -> list[int]:
    return [int(found.entry.id.rpartition("/")[2]) for found in read_captures(folder).windows]


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _opened(folder: Path, max_bytes: int) -> CaptureRing:
    ring = CaptureRing(folder, max_bytes)
    ring.open()
    return ring


def test_the_newest_captures_stay_within_the_budget(tmp_path: Path) -> None:
    """The oldest make room, a file at a time, so that at least 14 of 16 parts are always in use."""
    ring = _opened(tmp_path / "c", 20_000)
    for number in range(500):
        ring.write([_item(number, FACTS if number % 3 else OTHER)])
        assert _size(tmp_path / "c") <= 20_000
    numbers = _numbers(tmp_path / "c")
    assert numbers == list(range(numbers[0], 500))
    assert _size(tmp_path / "c") > 20_000 * (FILES - 2) // FILES
    assert {found.facts.version for found in read_captures(tmp_path / "c").windows} == {"1.0.0", "2.0.0"}


@pytest.mark.parametrize("seed", range(10))
def test_no_write_of_any_size_leaves_the_budget(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked at before and after each system call that makes a file larger; what does not fit at all is counted."""
    folder, budget = tmp_path / "c", 4096 + 997 * seed
    sizes: list[int] = []
    write = os.write

    def watched(handle: int, data: bytes) -> int:
        sizes.append(_size(folder) + len(data))
        return write(handle, data)

    monkeypatch.setattr(os, "write", watched)
    chance = random.Random(seed)
    ring = _opened(folder, budget)
    added = too_large = 0
    for _ in range(60):
        items = []
        for _ in range(chance.choice([1, 2, 30])):
            floats = chance.choice([6, 6, 6, 60, budget // 8, budget // 4 + 8])
            facts = msgspec.structs.replace(FACTS, shape=(floats,), channels=())
            items.append(CaptureItem(msgspec.structs.replace(_captured(added), values=bytes(4 * floats)), facts))
            added += 1
        written = ring.write(items)
        assert written.error is None
        assert written.kept + written.too_large == len(items)
        too_large += written.too_large
        if chance.random() < 0.2:
            ring.close()
            ring = _opened(folder, budget)
    assert too_large
    assert max(sizes) <= budget
    kept = _numbers(folder)
    assert kept == sorted(kept)
    assert kept


def test_a_daemon_that_starts_again_goes_on_behind_the_last_whole_entry(tmp_path: Path) -> None:
    """A torn entry is cut off, and no new file is begun for each start."""
    folder = tmp_path / "c"
    for number in range(5):
        ring = _opened(folder, 100_000)
        assert ring.write([_item(number)]).kept == 1
        ring.close()
        last = max(folder.glob("part-*"))
        with last.open("ab") as file:
            file.write(os.urandom(number))
    assert _numbers(folder) == [0, 1, 2, 3, 4]
    assert len(list(folder.glob("part-*"))) == 1


def test_a_daemon_that_starts_again_adds_nothing_behind_damage(tmp_path: Path) -> None:
    """A card that has changed a byte of a window costs this window; the next one begins a file, with its facts."""
    ring = _opened(tmp_path / "c", 100_000)
    ring.write([_item(number) for number in range(5)])
    ring.close()
    (part,) = (tmp_path / "c").glob("part-*")
    data = bytearray(part.read_bytes())
    data[data.index(b"/1", len(data) // 2)] ^= 0x10
    part.write_bytes(data)
    ring = _opened(tmp_path / "c", 100_000)
    ring.write([_item(5)])
    ring.close()
    found = _numbers(tmp_path / "c")
    assert len(found) == 5
    assert found[-1] == 5
    assert len(list((tmp_path / "c").glob("part-*"))) == 2


def test_a_smaller_budget_takes_effect_at_the_start(tmp_path: Path) -> None:
    """The oldest go."""
    ring = _opened(tmp_path / "c", 40_000)
    ring.write([_item(number) for number in range(100)])
    ring.close()
    _opened(tmp_path / "c", 8_000).close()
    assert _size(tmp_path / "c") <= 8_000
    assert _numbers(tmp_path / "c")[-1] == 99


def test_files_of_others_count_and_stay(tmp_path: Path) -> None:
    """They are not ours to remove; where they leave no room, nothing is kept and that is counted."""
    folder = tmp_path / "c"
    ring = _opened(folder, 10_000)
    (folder / "notes.txt").write_bytes(bytes(6_000))
    for number in range(100):
        ring.write([_item(number)])
        assert _size(folder) <= 10_000
    assert _numbers(folder)[-1] == 99
    (folder / "more.txt").write_bytes(bytes(4_000))
    written = ring.write([_item(100)])
    assert (written.kept, written.too_large + written.lost) == (0, 1)
    assert {"notes.txt", "more.txt"} <= {path.name for path in folder.iterdir()}


def test_a_folder_belongs_to_one_daemon(tmp_path: Path) -> None:
    """Two would each think that the other's files are old ones of its own."""
    first = _opened(tmp_path / "c", 10_000)
    with pytest.raises(CommandError, match="expected a folder of its own, found that of another daemon"):
        CaptureRing(tmp_path / "c", 10_000).open()
    first.close()
    _opened(tmp_path / "c", 10_000).close()


@pytest.mark.parametrize("call", ["write", "fdatasync"])
@pytest.mark.parametrize("before", [0, 3])
def test_a_full_disk_costs_what_was_to_be_written_and_nothing_else(
    call: str, before: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of an entry is taken back, and with room the ring goes on, with the facts that each window needs."""
    folder = tmp_path / "c"
    ring = _opened(folder, 100_000)
    if before:
        ring.write([_item(number) for number in range(before)])
    real = os.write

    def full(handle: int, data: bytes | memoryview = b"") -> int:
        if call == "write":
            if len(data) > 40:
                return real(handle, bytes(data[:40]))
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    size = _size(folder)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        written = ring.write([_item(50, OTHER), _item(51)])
        assert (written.kept, written.lost) == (0, 2)
        assert isinstance(written.error, OSError)
    if call == "write":
        assert _size(folder) == size
    assert ring.write([_item(60), _item(61, OTHER)]).kept == 2
    windows = read_captures(folder).windows
    assert [found.entry.id for found in windows if int(found.entry.id.rpartition("/")[2]) >= 60][-2:] == [
        "room/m/-/1/60",
        "room/m/-/1/61",
    ]
    assert windows[-1].facts == OTHER
    assert not read_captures(folder).damaged


def test_a_disk_without_room_for_one_more_file_costs_the_windows_and_not_the_facts_of_later_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folders may be full before it is: then no part can be begun."""
    folder = tmp_path / "c"
    ring = _opened(folder, 100_000)
    real = os.open

    def full(path: Path, flags: int, *rest: int) -> int:
        if flags & os.O_EXCL:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, flags, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", full)
        written = ring.write([_item(0), _item(1, OTHER)])
    assert (written.kept, written.lost) == (0, 2)
    assert ring.write([_item(2), _item(3, OTHER)]).kept == 2
    found = read_captures(folder)
    assert [window.facts for window in found.windows] == [FACTS, OTHER]
    assert not found.damaged


def test_what_was_kept_before_the_disk_refused_counts_as_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one write of several files: kept, too large and lost are all of the items together."""
    ring = _opened(tmp_path / "c", 20_000)
    huge = CaptureItem(msgspec.structs.replace(_captured(0), values=bytes(40_000)), FACTS)
    real, calls = os.write, list[int]()

    def full(handle: int, data: bytes | memoryview = b"") -> int:
        calls.append(len(data))
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(handle, bytes(data))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        written = ring.write([huge, *(_item(number) for number in range(40))])
    assert len(calls) == 2
    assert written.kept == len(_numbers(tmp_path / "c")) > 1
    assert (written.too_large, written.kept + written.too_large + written.lost) == (1, 41)


def test_a_folder_is_made_with_those_above_it_and_let_go_of_whole(tmp_path: Path) -> None:
    """Nothing stays open behind `close`, nor behind an opening that was refused or failed; then it opens again."""
    folder, before = tmp_path / "above" / "more" / "c", _open_files()
    ring = CaptureRing(folder, 10_000)
    assert not ring.is_open
    ring.open()
    assert ring.is_open
    ring.write([_item(0)])
    with pytest.raises(CommandError):
        CaptureRing(folder, 10_000).open()
    ring.close()
    assert not ring.is_open
    ring.close()
    assert _open_files() == before
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "scandir", _gone)
        with pytest.raises(OSError, match="gone"):
            ring.open()
    assert not ring.is_open
    assert _open_files() == before
    ring.open()
    ring.write([_item(1)])
    ring.close()
    assert _numbers(folder) == [0, 1]


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def _gone(_folder: object) -> None:
    raise OSError(errno.EIO, "gone")


def test_links_and_folders_of_others_take_none_of_the_budget(tmp_path: Path) -> None:
    """A link to a large file is as long as its name on this card, and a folder is no file."""
    (tmp_path / "large").write_bytes(bytes(1_000_000))
    ring = _opened(tmp_path / "c", 10_000)
    (tmp_path / "c" / "link").symlink_to(tmp_path / "large")
    (tmp_path / "c" / "folder").mkdir()
    assert ring.size_on_disk() == 0
    assert ring.write([_item(0)]).kept == 1


def test_a_window_that_takes_the_whole_budget_is_kept(tmp_path: Path) -> None:
    """To the byte; with one byte less it is too large, and costs nothing else."""
    ring = _opened(tmp_path / "c", 10_000)
    ring.write([_item(0)])
    ring.close()
    size = _size(tmp_path / "c")
    assert _opened(tmp_path / "exact", size).write([_item(0)]).kept == 1
    assert _size(tmp_path / "exact") == size
    ring = _opened(tmp_path / "short", size - 1)
    assert ring.write([_item(0)])[:4] == (0, 1, 0, 0)
    assert ring.write([_item(1)])[:4] == (0, 1, 0, 0)


def test_a_window_of_the_whole_budget_takes_the_place_of_all_others(tmp_path: Path) -> None:
    """What made room for it is counted to the byte."""
    ring = _opened(tmp_path / "c", 10_000)
    ring.write([_item(0)])
    ring.close()
    size = _size(tmp_path / "c")
    ring = _opened(tmp_path / "c", size)
    for number in (1, 2):
        assert ring.write([_item(number)])[:4] == (1, 0, 0, size)
        assert _numbers(tmp_path / "c") == [number]


@pytest.mark.parametrize("middle", ["\u00b2", "", "x1"])
def test_a_file_whose_name_has_no_number_is_one_of_others(middle: str, tmp_path: Path) -> None:
    """It counts, stays, and stops no start."""
    ring = _opened(tmp_path / "c", 10_000)
    ring.write([_item(0)])
    ring.close()
    other = tmp_path / "c" / f"part-{middle}-0{SUFFIX}"
    other.write_bytes(bytes(9_000))
    ring = _opened(tmp_path / "c", 10_000)
    for number in range(20):
        ring.write([_item(number)])
    assert other.stat().st_size == 9_000
    assert _size(tmp_path / "c") <= 10_000


@pytest.mark.parametrize("torn", [0, 30])
def test_a_full_disk_after_a_start_costs_neither_facts_nor_windows_of_before(
    torn: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest file goes on with its own facts, and ends where its last whole entry does."""
    folder = tmp_path / "c"
    ring = _opened(folder, 100_000)
    ring.write([_item(0)])
    ring.close()
    size = _size(folder)
    part = next(folder.glob("part-*"))
    part.write_bytes(part.read_bytes() + bytes(torn))
    ring = _opened(folder, 100_000)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", _full)
        assert ring.write([_item(1)]).lost == 1
    assert _size(folder) == size
    assert ring.write([_item(2, OTHER), _item(3)]).kept == 2
    found = read_captures(folder)
    assert [window.facts for window in found.windows] == [FACTS, OTHER, FACTS]
    assert not found.damaged


def test_a_start_goes_on_with_the_facts_of_the_newest_file(tmp_path: Path) -> None:
    """Those of another bundle are added to them."""
    ring = _opened(tmp_path / "c", 100_000)
    ring.write([_item(0)])
    ring.close()
    ring = _opened(tmp_path / "c", 100_000)
    ring.write([_item(1, OTHER)])
    assert [found.facts for found in read_captures(tmp_path / "c").windows] == [FACTS, OTHER]


def _full(_handle: int, _data: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_part_that_was_cut_off_before_its_first_entry_goes_and_one_of_another_release_stays(tmp_path: Path) -> None:
    """What this release cannot read may be read by another: it counts, and is neither cut nor removed."""
    folder = tmp_path / "c"
    folder.mkdir()
    other, empty = (folder / f"part-0000000{number}-00{SUFFIX}" for number in (1, 2))
    empty.write_bytes(MAGIC[:3])
    _opened(folder, 10_000).close()
    assert not empty.exists()
    other.write_bytes(b"another" * 500)
    ring = _opened(folder, 10_000)
    for number in range(100):
        assert ring.write([_item(number)]).kept == 1
        assert _size(folder) <= 10_000
    assert other.read_bytes() == b"another" * 500


def test_a_window_that_the_files_of_others_leave_no_room_for_removes_nothing(tmp_path: Path) -> None:
    """Those that are there would make no room; and a folder that is over its budget by them is not opened."""
    folder = tmp_path / "c"
    ring = _opened(folder, 10_000)
    ring.write([_item(0)])
    (folder / "notes.txt").write_bytes(bytes(6_000))
    large = CaptureItem(msgspec.structs.replace(_captured(1), values=bytes(5_000)), FACTS)
    assert ring.write([large])[:4] == (0, 1, 0, 0)
    assert _numbers(folder) == [0]
    ring.close()
    (folder / "notes.txt").write_bytes(bytes(10_001))
    with pytest.raises(OSError, match="leave no room"):
        CaptureRing(folder, 10_000).open()


def test_the_folder_is_synchronised_once_for_each_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it a power cut takes the file; with each write it would wear the card."""
    synced: list[Path] = []
    ring = _opened(tmp_path / "c", 100_000)
    monkeypatch.setattr(ring_module, "sync_folder", synced.append)
    for number in range(3):
        ring.write([_item(number)])
    assert synced == [tmp_path / "c"]


def test_what_a_disk_does_not_take_back_counts_until_it_makes_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next entry begins a new file, and the half entry before it goes with its own file."""
    folder = tmp_path / "c"
    ring = _opened(folder, 16_000)
    ring.write([_item(0)])
    first, real = next(folder.glob("part-*")), os.write

    def half(handle: int, data: bytes | memoryview) -> int:
        return real(handle, bytes(data[:40])) if len(data) > 40 else _full(handle, data)

    def broken(_handle: int, _size: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    before = first.stat().st_size
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", half)
        patch.setattr(os, "ftruncate", broken)
        assert ring.write([_item(1)]).lost == 1
    size = first.stat().st_size
    assert size > before
    evicted = 0
    for number in range(2, 200):
        written = ring.write([_item(number)])
        assert written.kept == 1
        evicted = written.evicted_bytes
        if not first.exists():
            break
    assert evicted == size
    assert not read_captures(folder).damaged


def test_a_budget_that_is_smaller_than_the_only_file_empties_the_folder_at_the_start(tmp_path: Path) -> None:
    """And the next window begins a file that is there."""
    folder = tmp_path / "c"
    ring = _opened(folder, 100_000)
    ring.write([_item(number) for number in range(20)])
    ring.close()
    assert len(list(folder.glob("part-*"))) == 1
    ring = _opened(folder, 1_000)
    assert _size(folder) == 0
    assert ring.write([_item(20)]).kept == 1
    assert _numbers(folder) == [20]


def test_the_older_of_two_files_makes_room_for_an_entry_of_the_newer_one(tmp_path: Path) -> None:
    """The newer one goes on."""
    folder = tmp_path / "c"
    ring = _opened(folder, 100_000)
    large = CaptureItem(msgspec.structs.replace(_captured(0), values=bytes(15_000)), FACTS)
    ring.write([large])
    size = _size(folder)
    ring.write([_item(1)])
    budget = _size(folder) + 10
    ring.close()
    ring = _opened(folder, budget)
    assert ring.write([_item(2)])[:4] == (1, 0, 0, size)
    assert _numbers(folder) == [1, 2]
    assert len(list(folder.glob("part-*"))) == 1


def test_a_file_that_an_operator_has_removed_costs_nothing(tmp_path: Path) -> None:
    """It made room by itself. The files are numbered, and their owner alone reads them."""
    folder = tmp_path / "c"
    ring = _opened(folder, 4_000)
    for number in range(3):
        ring.write([_item(number)])
    names = sorted(path.name[:14] for path in folder.glob("part-*"))
    assert names == ["part-00000001-", "part-00000002-", "part-00000003-"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.glob("part-*")} == {0o600}
    min(folder.glob("part-*")).unlink()
    for number in range(3, 30):
        assert ring.write([_item(number)]).kept == 1


def test_a_part_that_cannot_be_begun_leaves_no_facts_of_the_one_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next part has its own."""
    folder = tmp_path / "c"
    ring = _opened(folder, 4_000)
    ring.write([_item(0)])
    real = os.open

    def full(path: Path, flags: int, *rest: int) -> int:
        if flags & os.O_EXCL:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, flags, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", full)
        assert ring.write([_item(1)]).lost == 1
    assert ring.write([_item(2)]).kept == 1
    found = read_captures(folder)
    assert [window.facts for window in found.windows] == [FACTS, FACTS]
    assert not found.damaged


_FLOOD = """
import sys
from pathlib import Path
from tests.unit.capture.test_ring import _item, _opened
ring = _opened(Path(sys.argv[1]), int(sys.argv[2]))
number = int(sys.argv[3])
while True:
    ring.write([_item(number + place) for place in range(50)])
    number += 50
    print(number, flush=True)
"""


def test_the_budget_holds_over_kills_in_a_flood(tmp_path: Path) -> None:
    """A process that writes without a pause is killed at any moment; every entry that it had reported is there."""
    folder, budget, number = tmp_path / "c", 60_000, 0
    chance, found_numbers = random.Random(3), [0]
    for _ in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", _FLOOD, str(folder), str(budget), str(number)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        process.stdout.readline()
        until = time.monotonic() + chance.uniform(0.0, 0.2)
        while time.monotonic() < until:
            with os.scandir(folder) as found:
                sizes = 0
                for each in found:
                    try:
                        sizes += each.stat().st_size
                    except FileNotFoundError:
                        continue
            assert sizes <= budget
        process.send_signal(signal.SIGKILL)
        rest = process.communicate(timeout=patient(30))[0].split()
        number = max(map(int, rest), default=number)
        assert _size(folder) <= budget
        found_numbers = _numbers(folder)
        assert found_numbers[-1] >= number - 1
        number = found_numbers[-1] + 1
    assert found_numbers == list(range(found_numbers[0], number))


def test_labels_stand_beside_the_windows(tmp_path: Path) -> None:
    """They need no facts."""
    ring = _opened(tmp_path / "c", 10_000)
    label = Labelled(id="room/m/-/1/1", model="m", label="high", time=2.0)
    ring.write([CaptureItem(label), _item(1)])
    found = read_captures(tmp_path / "c")
    assert found.labels == [label]
    assert isinstance(found.windows[0].entry, Captured)
