"""A replay source on real files: the rows of the recording, once and in order, at the pace that was asked for."""

import datetime as dt
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from edge_runtime.errors import ConfigError
from edge_runtime.readings import Batch
from edge_runtime.recordings.files import FORMATS
from edge_runtime.stream.sources.replay import ReplaySource, ReplaySourceTable
from edge_runtime.system.counters import Counters
from edge_runtime.system.loop import Loop
from tests.support.tables import table
from tests.support.waiting import Deadline

CHANNELS = ("x", "y")
START = 1_763_896_744.0


class Clock(Loop):
    """A loop whose time is a number, and jumps to whatever is due next."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.time = lambda: self.now

    def run_until(self, condition: Callable[[], object]) -> None:
        """Play timers, and let time pass between them, until something is true."""
        for _ in range(200_000):
            if condition():
                return
            timer = self._timers.pop(0)
            self._timers.sort()
            if timer.callback is not None:
                self.now = max(self.now, timer.when)
                timer.callback()
        raise AssertionError("in vain")

    def call_later(self, delay: float, callback: Callable[[], object]) -> Any:
        """As the loop does, by this clock."""
        return self.call_at(self.now + delay, callback)


class Bench:
    """A clock, and what the source delivered when."""

    def __init__(self) -> None:
        self.loop = Clock()
        self.counters = Counters()
        self.batches: list[Batch] = []
        self.moments: list[float] = []
        self.states: list[tuple[str, bool]] = []

    def source(self, *files: Path, channels: tuple[str, ...] = CHANNELS, **options: Any) -> ReplaySource:
        """A source of these files at full speed by default."""
        arguments = {key: options.pop(key) for key in ("shape", "paused", "units") if key in options}
        shape = arguments.pop("shape", None)
        if "mapping" in options:
            options["channels"] = options.pop("mapping")
        config = table(
            ReplaySourceTable, **{"name": "tape", "files": tuple(map(str, files)), "speed": "full", **options}
        )
        source = ReplaySource(config, channels, shape, self.loop, sink=self.take, counters=self.counters, **arguments)
        source.on_state = lambda: self.states.append((source.state, source.finished))
        return source

    def take(self, batch: Batch) -> None:
        """The sink."""
        self.batches.append(batch)
        self.moments += [self.loop.now - 1000.0] * len(batch)

    def play(self, *files: Path, **options: Any) -> ReplaySource:
        """Play to the end."""
        source = self.source(*files, **options)
        source.start()
        self.loop.run_until(lambda: source.finished)
        return source

    def column(self, name: str) -> list[Any]:
        """One column of everything that was delivered."""
        return [item for batch in self.batches for item in getattr(batch, name)]

    @property
    def rows(self) -> list[list[float]]:
        """Every reading so far."""
        return [row for batch in self.batches for row in batch.values.tolist()]


@pytest.fixture
def bench() -> Iterator[Bench]:
    """A bench of its own for each test."""
    made = Bench()
    yield made
    made.loop.close()


def write_csv(path: Path, count: int = 5, step: float = 2.0) -> Path:
    """A recording of `count` readings, `step` seconds apart."""
    lines = [f"{START + i * step},{i * 10},junk,{i}" for i in range(count)]
    path.write_text("\n".join(["time,y,note,x", *lines]) + "\n")
    return path


def write_jsonl(path: Path, count: int = 5, step: float = 2.0) -> Path:
    """The same as JSON Lines."""
    lines = [json.dumps({"x": i, "y": i * 10, "time": START + i * step}) for i in range(count)]
    path.write_text("\n".join(lines))
    return path


def write_parquet(path: Path, count: int = 5, step: float = 2.0) -> Path:
    """The same as Parquet."""
    columns = {"x": list(range(count)), "y": [10.0 * i for i in range(count)], "note": ["junk"] * count}
    columns["time"] = [START + i * step for i in range(count)]
    parquet.write_table(pa.table(columns), path)
    return path


WRITERS = [("csv", write_csv), ("jsonl", write_jsonl), ("parquet", write_parquet)]


@pytest.mark.parametrize(("suffix", "write"), WRITERS)
def test_every_format_gives_the_same_readings(bench: Bench, tmp_path: Path, suffix: str, write: Any) -> None:
    """CSV, JSON Lines and Parquet give the channels in the order of the model, with the times of the recording."""
    bench.play(write(tmp_path / f"tape.{suffix}"))
    assert bench.rows == [[i, 10 * i] for i in range(5)]
    assert bench.column("times") == [START + 2 * i for i in range(5)]
    assert bench.column("keys") == [None] * 5
    assert bench.column("receipts") == [None] * 5
    assert all(batch.own_times for batch in bench.batches)
    assert bench.counters.counts["readings"] == 5
    assert bench.batches[0].values.dtype == np.float32


@pytest.mark.parametrize(("suffix", "write"), WRITERS)
def test_a_channel_may_be_another_column_in_another_unit(bench: Bench, tmp_path: Path, suffix: str, write: Any) -> None:
    """Columns by their own names, scaled, and converted to what the bundle measures; other units are refused."""
    path = write(tmp_path / f"tape.{suffix}")
    bench.play(path)
    plain, bench.batches = bench.rows, []
    channels = {
        "temperature": {"path": "x", "scale": 0.5, "offset": -1.0, "unit": "°C"},
        "level": "y",
    }
    units = {"temperature": "K", "level": "m"}
    bench.play(path, mapping=channels, channels=("level", "temperature"), units=units)
    expected = [[y, 0.5 * x - 1.0 + 273.15] for x, y in plain]
    np.testing.assert_allclose(bench.rows, expected, rtol=1e-6)
    config = table(ReplaySourceTable, name="tape", files=(str(path),), speed="full", channels=channels)
    with pytest.raises(ConfigError, match='expected "V", the unit of the bundle, found "°C"'):
        config.check_channels_of(("temperature",), None, units={"temperature": "V"})
    with pytest.raises(ConfigError, match="found no depth"):
        config.check_channels_of(("depth",), None)
    config = table(ReplaySourceTable, name="tape", files=(str(path),), speed="full", channels={"level": "z"})
    if suffix != "jsonl":  # whose objects may each have other members
        with pytest.raises(ConfigError, match="z"):
            config.check_channels_of(("level",), None)


@pytest.mark.parametrize(("suffix", "write"), WRITERS)
def test_batches_are_bounded_and_others_get_their_turn(bench: Bench, tmp_path: Path, suffix: str, write: Any) -> None:
    """At full speed a wake-up brings at most 256 readings, and another timer runs between any two batches."""
    turns: list[int] = []

    def other() -> None:
        turns.append(len(bench.batches))
        if not source.finished:
            bench.loop.call_later(0.0, other)

    source = bench.source(write(tmp_path / f"tape.{suffix}", count=1000))
    source.start()
    other()
    bench.loop.run_until(lambda: source.finished)
    assert sum(map(len, bench.batches)) == 1000
    assert max(map(len, bench.batches)) <= 256
    assert set(turns) >= set(range(len(bench.batches)))


def test_the_real_loop_serves_a_replay_at_full_speed(bench: Bench, tmp_path: Path) -> None:
    """On the daemon's loop a full-speed replay lets each pass end."""
    loop = Loop()
    config = table(
        ReplaySourceTable, name="tape", files=(str(write_csv(tmp_path / "t.csv", count=2000)),), speed="full"
    )
    source = ReplaySource(config, CHANNELS, None, loop, sink=bench.take, counters=bench.counters)
    source.start()
    until = Deadline(20.0)
    while not source.finished and not until.over:
        before = len(bench.batches)
        loop.run_once(0.1)
        assert len(bench.batches) <= before + 1
    loop.close()
    assert bench.counters.counts["readings"] == 2000


@pytest.mark.parametrize(("speed", "gap"), [("recorded", 2.0), (4.0, 0.5), (1, 2.0)])
def test_the_pace_is_that_of_the_recording(bench: Bench, tmp_path: Path, speed: Any, gap: float) -> None:
    """`recorded` keeps the distances of the recording; a number divides them."""
    bench.play(write_csv(tmp_path / "t.csv"), write_jsonl(tmp_path / "t.jsonl"), speed=speed)
    np.testing.assert_allclose(bench.moments, [0, gap, 2 * gap, 3 * gap, 4 * gap] + [(i + 4) * gap for i in range(5)])


def test_a_time_that_steps_back_is_due_at_once(bench: Bench, tmp_path: Path) -> None:
    """A recording whose clock jumped back does not stop the replay."""
    path = tmp_path / "t.csv"
    path.write_text("time,x,y\n100,0,0\n101,1,0\n50,2,0\n51,3,0\n102,4,0\n")
    bench.play(path, speed="recorded")
    np.testing.assert_allclose(bench.moments, [0, 1, 1, 1, 2])


def test_a_file_without_times_is_played_at_rate_hz(bench: Bench, tmp_path: Path) -> None:
    """`rate_hz` paces a recording that holds no times, and a factor applies to it too."""
    path = tmp_path / "t.csv"
    path.write_text("x,y\n1,2\n3,4\n5,6\n")
    before = time.time()
    bench.play(path, speed=2.0, rate_hz=10.0)
    np.testing.assert_allclose(np.diff(bench.moments), [0.05, 0.05])
    assert all(before <= moment <= time.time() for moment in bench.column("times"))


def test_times_may_be_those_of_the_replay(bench: Bench, tmp_path: Path) -> None:
    """With `times = "now"` readings carry the time of the replay, and are other readings than the recorded ones."""
    before = time.time()
    bench.play(write_csv(tmp_path / "t.csv"), times="now")
    assert not any(batch.own_times for batch in bench.batches)
    assert all(before <= moment <= time.time() for moment in bench.column("times"))
    assert bench.column("identities") == [None] * 5


def test_a_loop_plays_again_and_again(bench: Bench, tmp_path: Path) -> None:
    """With `loop` the recording begins anew after its end, and no reading counts as a repeat of an earlier one."""
    source = bench.source(write_csv(tmp_path / "t.csv"), loop=True, speed="recorded")
    source.start()
    bench.loop.run_until(lambda: bench.counters.counts["readings"] >= 23)
    assert bench.rows[:10] == [[i, 10 * i] for i in range(5)] * 2
    assert not source.finished
    assert bench.column("identities")[:10] == [None] * 10
    source.stop()
    assert bench.states[-1] == ("stopped", False)


@pytest.mark.parametrize("content", ["x,y\n", "x,y\nbad\n", "x,y"])
def test_a_loop_of_nothing_ends(bench: Bench, tmp_path: Path, content: str) -> None:
    """A recording without one good reading ends, also with `loop`, instead of spinning for ever."""
    path = tmp_path / "t.csv"
    path.write_text(content)
    assert bench.play(path, loop=True).finished
    assert not bench.batches


def test_the_end_is_announced_once(bench: Bench, tmp_path: Path) -> None:
    """The end is reported once: `finished` is true, and the source is still no fault."""
    source = bench.play(write_csv(tmp_path / "t.csv"))
    source._step()
    assert bench.states == [("playing", False), ("finished", True)]
    assert source.is_open


def test_back_pressure_holds_the_replay(bench: Bench, tmp_path: Path) -> None:
    """While the way downstream is full nothing is read, and nothing is lost when it is free again."""
    full = [True]
    source = bench.source(write_csv(tmp_path / "t.csv", count=600), paused=lambda: full[0])
    source.start()
    bench.loop.run_until(lambda: bench.loop.now > 1001)
    assert not bench.batches
    full[0] = False
    bench.loop.run_until(lambda: bench.batches)
    full[0] = True
    held = len(bench.batches)
    bench.loop.run_until(lambda: bench.loop.now > 1002)
    assert len(bench.batches) == held
    full[0] = False
    bench.loop.run_until(lambda: source.finished)
    assert bench.rows == [[i, 10 * i] for i in range(600)]


def test_a_stopped_replay_is_quiet(bench: Bench, tmp_path: Path) -> None:
    """After `stop`, also out of the sink, nothing more is delivered."""
    source = bench.source(write_csv(tmp_path / "t.csv", count=600))

    def stop_at_once(batch: Batch) -> None:
        bench.take(batch)
        source.stop()

    source._sink = stop_at_once
    source.start()
    bench.loop.run_until(lambda: not any(timer.callback for timer in bench.loop._timers))
    assert len(bench.batches) == 1
    assert not source.is_open


def test_bad_rows_are_counted_and_skipped(bench: Bench, tmp_path: Path) -> None:
    """A bad row of a recording is counted under its reason, as it would be on a port."""
    path = tmp_path / "t.csv"
    path.write_bytes(b"time,x,y\n1,2,3\n1,2\n1,a,3\n,nan,1\n9e99,1,1\n1,2,\x00\n" + b"1," * 40_000 + b"\n4,5,6")
    bench.play(path)
    assert bench.rows == [[2, 3], [5, 6]]
    assert bench.counters.rejected == {
        "malformed": 1,
        "wrong_type": 1,
        "not_finite": 1,
        "bad_time": 1,
        "noise": 1,
        "too_long": 1,
    }


def test_keys_and_identities_come_from_columns(bench: Bench, tmp_path: Path) -> None:
    """The key column tells streams apart; `id`, `seq` or the time make a reading known again."""
    path = tmp_path / "t.csv"
    path.write_text("stamp,machine,x,y,seq\n2025-11-23T11:19:04Z,m1,1,2,7\n2025-11-23T11:19:05Z,m2,3,4,\n")
    bench.play(path, key="machine", time="stamp")
    assert bench.column("keys") == ["m1", "m2"]
    assert bench.column("identities") == ["7", "2025-11-23T11:19:05Z"]
    assert bench.column("times") == [START, START + 1]


def test_csv_as_other_programs_write_it(bench: Bench, tmp_path: Path) -> None:
    """Quotes, a byte order mark, Windows line ends, and a column of row names without a name of its own are read."""
    path = tmp_path / "t.txt"
    path.write_bytes(
        b'\xef\xbb\xbf"time","x","y"\r\n"1","2025-11-23 11:19:04","1","2"\r\n"2",2025-11-23 11:19:05,3,4\r\n'
    )
    bench.play(path, index_column=True)
    assert bench.rows == [[1, 2], [3, 4]]
    assert bench.column("times") == [START, START + 1]


def test_parquet_times_and_missing_values(bench: Bench, tmp_path: Path) -> None:
    """A timestamp column is the time, a null is a missing channel, and a bad key costs its row."""
    path = tmp_path / "t.parquet"
    zone = dt.UTC
    moments = [dt.datetime(2025, 11, 23, 11, 19, 4, 250_000, zone), dt.datetime(2025, 11, 23, tzinfo=zone)]
    table = pa.table(
        {
            "x": pa.array([1, None, 3]),
            "y": pa.array([1.0, 2.0, 3.0], pa.float32()),
            "time": pa.array([*moments, None], pa.timestamp("ns", "UTC")),
            "machine": ["a", "b", "c/d"],
        }
    )
    parquet.write_table(table, path)
    bench.play(path, key="machine")
    np.testing.assert_array_equal(bench.rows, [[1, 1], [np.nan, 2]])
    assert bench.column("times") == [moment.timestamp() for moment in moments]
    assert bench.column("keys") == ["a", "b"]
    assert bench.counters.rejected == {"bad_key": 1}


def test_frames_are_replayed_from_json_lines(bench: Bench, tmp_path: Path) -> None:
    """A model of whole frames is fed from JSON Lines; other formats are refused at start."""
    path = tmp_path / "t.jsonl"
    path.write_text('{"frame": [[1, 2], [3, 4]], "time": 5}\n[5, 6, 7, 8]\n')
    bench.play(path, channels=(), shape=(2, 2))
    assert np.concatenate([batch.values for batch in bench.batches]).tolist() == [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]
    with pytest.raises(ConfigError, match="expected JSON Lines or NumPy for a model of whole frames, found csv"):
        bench.source(write_csv(tmp_path / "t.csv"), channels=(), shape=(2, 2))


def test_every_file_that_cannot_be_played_is_named_at_start(bench: Bench, tmp_path: Path) -> None:
    """All mistakes of all files come at once, each with its place, what was expected and what was found."""
    lacking, broken, text, odd = (tmp_path / name for name in ("a.csv", "b.parquet", "c.parquet", "d.dat"))
    lacking.write_text("time,x\n1,2\n")
    broken.write_bytes(b"PAR1 no")
    parquet.write_table(pa.table({"x": ["1"], "y": [2.0]}), text)
    odd.touch()
    with pytest.raises(ConfigError) as caught:
        bench.source(lacking, broken, text, odd, tmp_path / "none.csv", tmp_path)
    found = [mistake.removeprefix('source "tape".files: ') for mistake in caught.value.mistakes]
    assert found[0] == f"{lacking}: expected a column for each of x, y, found none for y; its columns are time, x"
    assert found[1].startswith(f"{broken}: expected a Parquet file, found none")
    assert found[2] == f"{text}: column x: expected numbers, found string"
    assert found[3] == f"{odd}: expected one of {', '.join(FORMATS)}, found .dat: set `format`"
    assert found[4] == f"{tmp_path}/none.csv: cannot be read: No such file or directory"
    assert found[5].startswith(f"{tmp_path}: expected one of .csv")
    assert len(found) == 6


def test_a_paced_file_without_times_needs_a_rate(bench: Bench, tmp_path: Path) -> None:
    """Without a time column there is no recorded pace; the message says what to set."""
    path = tmp_path / "t.csv"
    path.write_text("x,y\n1,2\n")
    with pytest.raises(ConfigError, match="expected a column 'time' to keep the pace by, found none: set `rate_hz`"):
        bench.source(path, speed="recorded")


def test_parquet_without_its_library_names_what_to_install(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without pyarrow the message is the command that installs it."""
    path = write_parquet(tmp_path / "t.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"pip install 'edge-inference-runtime\[batch\]'"):
        bench.source(path)


def test_a_file_that_vanishes_is_counted_and_the_next_one_is_played(bench: Bench, tmp_path: Path) -> None:
    """A file that can no longer be read costs what it held, and the replay goes on."""
    files = [write_csv(tmp_path / "a.csv"), write_parquet(tmp_path / "b.parquet"), write_jsonl(tmp_path / "c.jsonl")]
    source = bench.source(*files)
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:40])
    source.start()
    bench.loop.run_until(lambda: source.finished)
    assert bench.counters.errors == {"read_failed": 2}
    assert len(bench.rows) == 5


@pytest.mark.shared_data
def test_the_occupancy_recordings_are_played_as_they_are(bench: Bench, shared_data: Path) -> None:
    """The UCI occupancy files, quotes and row names and all, give every row."""
    channels = ("Temperature", "Humidity", "Light", "CO2", "HumidityRatio")
    folder = shared_data / "uci-occupancy"
    bench.play(folder / "datatest.txt", folder / "datatest2.txt", channels=channels, time="date", index_column=True)
    assert len(bench.rows) == 2665 + 9752
    assert not bench.counters.rejected
    np.testing.assert_array_equal(
        bench.batches[0].values[0], np.array([23.7, 26.272, 585.2, 749.2, 0.00476416302416414], np.float32)
    )
