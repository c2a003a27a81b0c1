"""What `record` leaves in its folder: whole after a fault at any system call, with the bits of the live run."""

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_runtime.batch.run import PredictOptions, predict
from edge_runtime.bringup import recorder as recorder_module
from edge_runtime.bringup.found_channels import finding
from edge_runtime.bringup.part_writer import PartWriter
from edge_runtime.bringup.recorded_rate import StreamRate, median_rate_hz
from edge_runtime.bringup.recorder import Recorder
from edge_runtime.config.load import load_config
from edge_runtime.errors import CommandError
from edge_runtime.readings import Batch
from edge_runtime.recordings.folder import About, RecordedChannel, joined, read_about
from edge_runtime.stream.codecs import Members
from edge_runtime.stream.sources.kind import FramedSourceTable, as_kind
from edge_runtime.stream.sources.replay import ReplaySource, ReplaySourceTable
from edge_runtime.system.counters import Counters
from edge_runtime.system.loop import Loop
from tests.support import builders
from tests.support.tables import table

DEVICE = """
[device]
id = "room"
[[source]]
name = "s"
type = "mqtt"
topics = ["sensors/{key}/x"]
fields = ["x", "y"]
format = "csv"
[upstream]
url = "mqtt://127.0.0.1"
"""


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for a disk shows nothing here."""
    monkeypatch.setattr(os, "fdatasync", lambda _: None)
    monkeypatch.setattr(os, "fsync", lambda _: None)


class _Killed(BaseException):
    """The process ends here."""


def _about() -> About:
    return About(device="room", source="s", channels=[RecordedChannel("x")], key="key", label="label", started=1.0)


def _written(folder: Path, count: int, *, part_bytes: int = 100) -> None:
    """Readings in writes of three, and parts of some lines; it ends as a run does."""
    writer = PartWriter(folder, _about(), part_bytes)
    first = writer.about.readings
    try:
        for number in range(first, first + count):
            writer.add([float(number), "k", number / 3, "calm"])
            if number % 3 == 2:
                writer.flush()
        writer.close(2.0)
    finally:
        writer._unlock()  # as the end of the process does


def _numbers(folder: Path) -> list[int]:
    return [int(float(line.split(b",")[0])) for line in joined(folder)[0].splitlines()[1:]]


def _replayed(folder: Path, channels: tuple[str, ...] = ("x",)) -> list[Batch]:
    """What a source of type `replay` delivers."""
    loop, batches, counters = Loop(), list[Batch](), Counters()
    config = table(ReplaySourceTable, name="tape", path=str(folder), speed="full")
    source = ReplaySource(config, channels, None, loop, sink=batches.append, counters=counters)
    source.start()
    while not source.finished:
        loop.run_once(0.1)
    loop.close()
    assert counters.rejected == {}
    return batches


CALLS = ("write", "fdatasync", "fsync", "open", "replace", "close")


def _failing_at(monkeypatch: pytest.MonkeyPatch, place: int, fault: Callable[[], BaseException]) -> list[str]:
    """Every system call that touches the folder counts; that of this number fails, after half of it where it writes."""
    calls: list[str] = []
    for name in CALLS:
        owner: Any = Path if name == "replace" else os
        real = getattr(owner, name)

        def counted(*words: Any, name: str = name, real: Any = real, **keys: Any) -> Any:
            calls.append(name)
            if len(calls) == place + 1:
                if name == "write":
                    real(words[0], bytes(words[1])[: len(words[1]) // 2])
                elif name == "close":
                    real(*words)  # as the end of a process does, and a close that reports an error
                raise fault()
            return real(*words, **keys)

        monkeypatch.setattr(owner, name, counted)
    return calls


def _places() -> range:
    return range(60)


@pytest.mark.parametrize("before", [0, 7])
def test_a_kill_at_any_system_call_leaves_a_recording_that_reads_and_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    """What a flush has reported is there, in order, each once; the count is exact; the next run goes on behind it."""
    tried = 0
    for place in _places():
        folder = tmp_path / f"r{place}"
        if before:
            _written(folder, before)
        with monkeypatch.context() as patch:
            calls = _failing_at(patch, place, _Killed)
            try:
                _written(folder, 12)
            except _Killed:
                tried += 1
            else:
                break
        if (folder / "recording.json").exists():
            found = _numbers(folder)
            assert found == list(range(len(found))), calls
            assert len(found) >= before
            if found and place % 3 == 0:
                assert sum(len(batch) for batch in _replayed(folder)) == len(found)
        _written(folder, 5)
        found = _numbers(folder)
        assert found == list(range(len(found))), calls
        assert read_about(folder).readings == len(found)
        if place % 3 == 1:
            assert sum(len(batch) for batch in _replayed(folder)) == len(found)
    assert tried > 20


@pytest.mark.parametrize("before", [0, 7])
def test_a_card_that_fails_at_any_system_call_is_one_sentence_and_keeps_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    """Full, or unplugged: never a traceback, and what was there before reads as it did."""
    tried = 0
    for place in _places():
        folder = tmp_path / f"r{place}"
        if before:
            _written(folder, before)
        with monkeypatch.context() as patch:
            code = errno.ENOSPC if place % 2 else errno.EIO
            calls = _failing_at(patch, place, lambda code=code: OSError(code, os.strerror(code)))  # type: ignore[misc]
            answered = ""
            try:
                _written(folder, 12)
            except CommandError as error:
                answered = str(error)
        if not answered:
            break
        tried += 1
        assert answered.startswith(f"{folder}: cannot be ")
        assert os.strerror(code) in answered
        if (folder / "recording.json").exists():
            found = _numbers(folder)
            assert found == list(range(len(found))), calls
            assert len(found) >= before
    assert tried > 20


@pytest.mark.parametrize("torn", [b"2.0,17", b"2.0,", b"2", b"2.0,17645e", b"", b'2.0,"'])
@pytest.mark.parametrize("rows", [0, 1, 3])
def test_a_torn_line_is_never_read_as_a_shorter_number(tmp_path: Path, torn: bytes, rows: int) -> None:
    """`2.0,17645` that a power cut has cut to `2.0,17`: neither a replay nor `predict` reads it, also as the first."""
    folder = tmp_path / "r"
    writer = PartWriter(folder, About(device="room", source="s", channels=[RecordedChannel("x")]))
    writer.add([0.0, 5.0])
    writer.flush()
    writer._unlock()  # as the end of the process does
    (part,) = folder.glob("part-*")
    part.write_bytes(b"time,x\n" + b"1.0,2.5\n" * rows + torn)
    (folder / "part-000002.csv").write_bytes(b"tim")
    assert [row for batch in _replayed(folder) for row in batch.values.tolist()] == [[2.5]] * rows
    assert joined(folder)[0] == b"time,x\n" + b"1.0,2.5\n" * rows
    bundle = builders.regression(channels=("x",), targets=("t",)).save(tmp_path / "m.onnx")
    outcome = predict(PredictOptions(bundle, [str(folder)], tmp_path / "out.csv", workers=1, time="time"))
    assert (outcome.readings, outcome.windows, outcome.rejected) == (rows, rows, {})
    again = PartWriter(folder, About(device="room", source="s", channels=[RecordedChannel("x")]))
    assert again.about.readings == rows
    again.add([9.0, 7.5])
    again.close(1.0)
    assert [row for batch in _replayed(folder) for row in batch.values.tolist()] == [*[[2.5]] * rows, [7.5]]


def _recorder(folder: Path, tmp_path: Path, label: str | None = None) -> Recorder:
    (tmp_path / "device.toml").write_text(DEVICE)
    config = load_config(tmp_path / "device.toml", needs_models=False)
    return Recorder(config, config.source[0], folder, label=label, channels=("x", "y"), loop=Loop())


def _record(recorder: Recorder, values: Any, keys: list[str | None], times: list[float]) -> None:
    count = len(keys)
    recorder._take(Batch("s", np.array(values, np.float32), keys, times, [None] * count, [None] * count))
    assert recorder._fault is None
    assert recorder._writer is not None


ODD = [
    0.1, 1 / 3, -0.0, 1e-45, 1.1754942e-38, 3.4028235e38, -3.4028235e38, 16777217.0, 2.0**53 + 2, 2.0**63 - 1024,
    float("nan"), 1e-7, 123456.789, 0.30000001192092896, 1.0000001, -9.999999e-5,
]  # fmt: skip


def test_a_replayed_recording_has_the_bits_of_the_live_run(tmp_path: Path) -> None:
    """Values that no few digits hold, the smallest and the largest, minus zero, NaN, and ten thousand at random."""
    rng = np.random.default_rng(1)
    bits = rng.integers(0, 2**32, 20_000, dtype=np.uint64).astype(np.uint32).view(np.float32)
    values = np.concatenate([np.array(ODD, np.float32), bits[np.isfinite(bits)]])
    values = values[: len(values) // 2 * 2].reshape(-1, 2)
    times = (1_700_000_000 + rng.random(len(values)).cumsum()).tolist()
    recorder = _recorder(tmp_path / "r", tmp_path)
    _record(recorder, values, ["k"] * len(values), times)
    assert recorder._writer is not None
    recorder._writer.close(1.0)
    batches = _replayed(tmp_path / "r", ("x", "y"))
    found = np.concatenate([batch.values for batch in batches])
    assert np.isnan(found).tolist() == np.isnan(values).tolist()
    known = ~np.isnan(values)
    assert found[known].view(np.uint32).tolist() == values[known].view(np.uint32).tolist()
    assert [time for batch in batches for time in batch.times] == times


def test_keys_that_one_file_name_could_not_tell_apart_stay_apart(tmp_path: Path) -> None:
    """Upper and lower case, composed and decomposed accents, device names of Windows, dots, quotes: a column each."""
    keys = [
        "Press",
        "press",
        "\u00e9",
        "e\u0301",
        "CON",
        "..",
        "up..",
        "a,b",
        'say "so"',
        "a;b",
        "-",
        "nan",
        "1",
        "1.0",
    ]
    recorder = _recorder(tmp_path / "r", tmp_path)
    times = [1_700_000_000.0 + number for number in range(len(keys))]
    _record(recorder, [[number, -number] for number in range(len(keys))], list(keys), times)
    assert recorder._writer is not None
    recorder._writer.close(1.0)
    batches = _replayed(tmp_path / "r", ("x", "y"))
    found = [(key, row[0]) for batch in batches for key, row in zip(batch.keys, batch.values.tolist(), strict=True)]
    assert found == [(key, float(number)) for number, key in enumerate(keys)]
    assert dict(recorder.streams) == dict.fromkeys(keys, 1)


def test_streams_of_different_rates_are_counted_each_and_the_rate_is_their_median(tmp_path: Path) -> None:
    """One key ten times as fast as two others, and one that came once only."""
    recorder = _recorder(tmp_path / "r", tmp_path)
    events = [(number / 10, "fast") for number in range(101)]
    events += [(float(number), key) for number in range(11) for key in ("slow", "slower")] + [(5.5, "once")]
    chance = random.Random(1)
    for time, key in sorted(events, key=lambda each: (each[0], chance.random())):
        _record(recorder, [[1.0, 2.0]], [key], [1_700_000_000.0 + time])
    assert recorder.rate_hz() == 1.0
    assert dict(recorder.streams) == {"fast": 101, "slow": 11, "slower": 11, "once": 1}


def test_a_clock_that_steps_back_loses_no_reading(tmp_path: Path) -> None:
    """The order of arrival stays, and so do the times as they were taken."""
    recorder = _recorder(tmp_path / "r", tmp_path, label="calm")
    times = [10.0, 11.0, 1_700_000_000.0, 1_700_000_001.0, 12.0, 0.0]
    _record(recorder, [[number, 0.0] for number in range(6)], ["k"] * 6, times)
    assert recorder._writer is not None
    recorder._writer.close(1.0)
    batches = _replayed(tmp_path / "r", ("x", "y"))
    assert [time for batch in batches for time in batch.times] == times
    assert [row[0] for batch in batches for row in batch.values.tolist()] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


def test_a_channel_may_have_any_name_that_a_sensor_gives_it(tmp_path: Path) -> None:
    """A comma, a blank, an accent and the word `key`: each is one column, which a replay finds under its name."""
    names = ("a,b", "key", "n\u00e9 m", "c;d")
    recorder = _recorder(tmp_path / "r", tmp_path)
    recorder._channels = names
    _record(recorder, [[1.0, 2.0, 3.0, 4.0]], ["k"], [1_700_000_000.0])
    assert recorder._writer is not None
    recorder._writer.close(1.0)
    assert read_about(tmp_path / "r").key == "_key", "the channel `key` keeps its name"
    (batch,) = _replayed(tmp_path / "r", names)
    assert batch.values.tolist() == [[1.0, 2.0, 3.0, 4.0]]
    assert batch.keys == ["k"]
    (only,) = _replayed(tmp_path / "r", ("c;d", "a,b"))
    assert only.values.tolist() == [[4.0, 1.0]]


def test_the_rate_is_in_the_description_before_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some seconds after the first reading, so that a recording that a kill has ended tells it."""
    monkeypatch.setattr(recorder_module, "DESCRIBE_S", 0.0)
    recorder = _recorder(tmp_path / "r", tmp_path)
    _record(recorder, [[number, 0.0] for number in range(9)], ["k"] * 9, [number / 4 for number in range(9)])
    assert read_about(tmp_path / "r").rate_hz is None
    recorder._flush()
    found = read_about(tmp_path / "r")
    assert (found.rate_hz, found.readings, found.ended) == (4.0, 9, None)


def test_a_key_with_a_line_break_is_counted_and_not_recorded(tmp_path: Path) -> None:
    """A line of such a reading that a power cut tears would look like a whole one."""
    recorder = _recorder(tmp_path / "r", tmp_path)
    _record(recorder, [[1.0, 2.0], [3.0, 4.0]], ["two\nlines", "one"], [1.0, 2.0])
    assert recorder._writer is not None
    recorder._writer.close(1.0)
    assert recorder.counters.rejected == {"bad_key": 1}
    assert joined(tmp_path / "r")[0].splitlines()[1:] == [b"2.0,one,3.0,4.0"]


def test_one_process_records_into_a_folder(tmp_path: Path) -> None:
    """A second one would take the same part numbers: it is refused in a sentence, and the first goes on."""
    first = PartWriter(tmp_path / "r", _about())
    first.add([1.0, "k", 0.5, "calm"])
    first.flush()
    with pytest.raises(CommandError, match="found one that another process records into"):
        PartWriter(tmp_path / "r", _about())
    first.add([2.0, "k", 0.5, "calm"])
    first.close(3.0)
    assert _numbers(tmp_path / "r") == [1, 2]
    PartWriter(tmp_path / "r", _about()).close(4.0)


def test_units_of_the_device_file_are_in_the_recording(tmp_path: Path) -> None:
    """Those under `[source.channels]`; a channel without one has an empty unit."""
    places = '[source.channels]\npower = { path = "P", unit = "W" }\ndoor = { path = "d" }\n[upstream]'
    text = DEVICE.replace('fields = ["x", "y"]\nformat = "csv"', 'format = "json"').replace("[upstream]", places)
    (tmp_path / "device.toml").write_text(text)
    config = load_config(tmp_path / "device.toml", needs_models=False)
    recorder = Recorder(config, config.source[0], tmp_path / "r", label=None, channels=None, loop=Loop())
    _record(recorder, [[1.0, 2.0]], ["k"], [1.0])
    assert recorder.about is not None
    assert recorder.about.channels == [RecordedChannel("power", "W"), RecordedChannel("door")]


def test_members_that_become_no_channel_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Those that the first message lacked, and those whose name no column can have; each is named once in the log."""
    (tmp_path / "device.toml").write_text(DEVICE.replace('fields = ["x", "y"]\nformat = "csv"', 'format = "json"'))
    source = load_config(tmp_path / "device.toml", needs_models=False).source[0]
    framed = as_kind(source)
    assert isinstance(framed, FramedSourceTable)
    found: list[tuple[str, ...]] = []
    decoder = finding(framed, found.append).codec.decoder(Members(()), None)
    counters = Counters()
    first = decoder.decode([b'{"x": 1, "q\\"": 2, "room": "n", "seq": 4}'], counters)
    assert found == [("x",)]
    assert first.values.tolist() == [[1.0]]
    assert counters.counts["unknown_member"] == 1
    later = decoder.decode([b'{"x": 2, "y": 3}', b'{"x": 3, "y": 4}', b'{"x": 4, "room": "s"}'], counters)
    assert later.values.tolist() == [[2.0], [3.0], [4.0]]
    assert counters.counts["unknown_member"] == 3
    assert [getattr(each, "fields", {}).get("member") for each in caplog.records] == ['q"', "y"]


@pytest.mark.parametrize(
    ("times", "rate"),
    [
        ([0.0], None),
        ([0.0, 0.5], None),
        ([number / 8 for number in range(50)], 8.0),
        ([number // 5 / 2 for number in range(101)], 10.0),  # five at a time, twice a second
        (
            [number / 4 for number in range(40)] + [1.7e9 + number / 4 for number in range(40)],
            4.0,
        ),  # a clock that is set
        ([1.7e9 + number / 4 for number in range(40)] + [number / 4 for number in range(40)], 4.0),  # and set back
        ([float(number) for number in range(100)] + [90_000.0 + number for number in range(100)], 1.0),  # off at night
        ([5.0] * 10, None),
    ],
)
def test_the_rate_of_a_recording_leaves_out_steps_of_the_clock_and_pauses(
    times: list[float], rate: float | None
) -> None:
    """The mean of the other steps; bursts count as what they bring."""
    stream = StreamRate()
    for each in times:
        stream.note(each)
    assert median_rate_hz([stream]) == rate
