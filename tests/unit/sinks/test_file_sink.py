"""The file sink: written at once, on the disk within a second, and a disk that fails costs what is counted."""

import os
from pathlib import Path

import pytest

from edge_runtime.sinks import file_sink, json_lines
from tests.unit.sinks.conftest import Begin


def test_a_prediction_is_a_line_and_is_synchronised_soon(
    tmp_path: Path, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line is there at once; the synchronisation follows by itself."""
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    monkeypatch.setattr(file_sink, "SYNC_S", 0.05)
    bench = begin("file", path=str(tmp_path / "deep" / "p.jsonl"))
    bench.offer(b'{"n":1}', b'{"n":2}')
    bench.until(lambda: bench.counters.counts["written"] == 2)
    assert (tmp_path / "deep" / "p.jsonl").read_bytes() == b'{"n":1}\n{"n":2}\n'
    bench.until(lambda: synced)
    assert bench.sink.state.endswith(": open")
    assert bench.changes == 0


def test_a_full_disk_is_one_sentence_and_what_waits_is_written_when_there_is_room(
    tmp_path: Path, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted at each try, logged once, in order afterwards."""
    write = json_lines._write_whole

    def full(handle: int, data: bytes) -> None:
        del handle, data
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(file_sink, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(json_lines, "_write_whole", full)
    bench = begin("file", path=str(tmp_path / "p"))
    bench.offer(b"one")
    bench.until(lambda: bench.counters.errors["sink_disk"] >= 2)
    bench.offer(b"two")
    assert bench.changes == 1
    assert "cannot be written (No space left on device)" in bench.sink.state
    monkeypatch.setattr(json_lines, "_write_whole", write)
    bench.until(lambda: bench.counters.counts["written"] == 2)
    assert (tmp_path / "p").read_bytes() == b"one\ntwo\n"
    assert bench.sink.state.endswith(": open")
    assert not bench.counters.dropped


def test_beyond_its_memory_the_oldest_go_and_alarms_last(tmp_path: Path, begin: Begin) -> None:
    """A path that cannot be written for a day costs a megabyte of memory and no more."""
    (tmp_path / "p").mkdir()
    bench = begin("file", path=str(tmp_path / "p"))
    bench.offer(b"alarm", alarm=True)
    bench.until(lambda: bench.counters.errors["sink_disk"])
    large = b"x" * 300_000
    bench.offer(*(large + str(number).encode() for number in range(6)))
    assert bench.counters.dropped == {"sink_full": 3}
    (tmp_path / "p").rmdir()
    bench.until(lambda: bench.counters.counts["written"])
    found = (tmp_path / "p").read_bytes().split(b"\n")[:-1]
    assert [line[-1:] for line in found] == [b"m", b"3", b"4", b"5"]
    assert found[0] == b"alarm"


def test_a_stop_puts_everything_on_the_disk(tmp_path: Path, begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written and synchronised, though no second has passed."""
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    bench = begin("file", path=str(tmp_path / "p"))
    bench.offer(b"one", b"two")
    bench.end()
    assert (tmp_path / "p").read_bytes() == b"one\ntwo\n"
    assert synced


def test_a_stop_does_not_wait_for_a_disk_that_fails(tmp_path: Path, begin: Begin) -> None:
    """What could not be written is counted."""
    (tmp_path / "p").mkdir()
    bench = begin("file", path=str(tmp_path / "p"))
    bench.offer(b"one")
    bench.end()
    assert bench.counters.dropped == {"stopped": 1}


def test_a_line_that_is_longer_than_a_file_may_be_is_counted(tmp_path: Path, begin: Begin) -> None:
    """And its neighbours are written."""
    bench = begin("file", path=str(tmp_path / "p"), max_bytes=1024)
    bench.offer(b"x" * 1024, b"y" * 1023)
    bench.until(lambda: bench.counters.counts["written"] == 1)
    assert bench.counters.dropped == {"too_long": 1}
    assert (tmp_path / "p").read_bytes() == b"y" * 1023 + b"\n"
