"""Columns of files as they are found: times of any unit, keys of any type, names that stand twice."""

import datetime as dt
import gzip
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from edge_runtime.batch.run import PredictOptions, PredictSummary, predict
from edge_runtime.cli import main
from edge_runtime.errors import CommandError
from edge_runtime.recordings.blocks import Wanted
from edge_runtime.recordings.files import open_recording
from tests.support import builders

NANOS = 1_763_896_744_123_456_789


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, on a machine without pandas."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "pandas", None)
    return tmp_path


def write(**columns: Any) -> Path:
    """Parquet of four readings."""
    path = Path("in.parquet")
    parquet.write_table(pa.table({"temperature": [1.0] * 4, "humidity": [2.0] * 4} | columns), path)
    return path


def run(output: str, length: int = 1, source: str = "in.parquet", **options: Any) -> PredictSummary:
    """The command."""
    bundle = builders.classification(length=length).save(Path.cwd() / "m.onnx")
    return predict(PredictOptions(bundle, [source], Path(output), workers=1, **options))


def times(column: Any, unit: str = "s") -> list[float | None]:
    """The times of a column, as windows see them."""
    wanted = Wanted(("temperature", "humidity"), (1, 2), time="t", columns=("t",), time_unit=unit)
    recording = open_recording(write(t=column), wanted)
    (block,) = [block for piece in recording.pieces(None) for block in recording.blocks(piece, 10)]
    return block.times or []


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet", ".npz"])
def test_nanoseconds_are_kept(suffix: str) -> None:
    """Times and durations finer than Python's are kept to the last digit, without pandas."""
    write(
        t=pa.array([NANOS] * 4, pa.timestamp("ns", "UTC")), d=pa.array([1_500_000_001, -1, 0, None], pa.duration("ns"))
    )
    run(f"out{suffix}", keep=("t", "d"))
    if suffix == ".parquet":
        table = parquet.read_table("out.parquet")
        assert table["t"].cast(pa.int64()).to_pylist() == [NANOS] * 4
        assert table["d"].cast(pa.int64()).to_pylist() == [1_500_000_001, -1, 0, None]
        return
    if suffix == ".npz":
        found = dict(np.load("out.npz"))
        assert found["t"][0].startswith("2025-11-23T11:19:04.123456789")
        return
    text = Path(f"out{suffix}").read_text()
    assert text.count("2025-11-23T11:19:04.123456789") == 4
    assert "PT1.500000001S" in text
    assert "-PT0.000000001S" in text


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_times_of_any_unit_are_times(unit: str) -> None:
    """Timestamps, durations and numbers of any unit are the seconds that they say."""
    factor = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    moments = [1_763_896_744 * factor + n * factor for n in range(4)]
    expected = [1_763_896_744.0 + n for n in range(4)]
    assert times(pa.array(moments, pa.timestamp(unit))) == expected
    assert times(pa.array([n * factor for n in range(4)], pa.duration(unit))) == [0.0, 1.0, 2.0, 3.0]
    assert times(pa.array(moments, pa.int64()), unit) == expected
    assert times(pa.array([dt.date(1970, 1, 2)] * 4)) == [86_400.0] * 4


def test_times_in_another_unit_say_which() -> None:
    """Milliseconds taken for seconds are refused with the unit that would do."""
    write(t=[1_763_896_744_123] * 4)
    with pytest.raises(CommandError, match=r"bad_time 4 .*milliseconds taken for seconds: set --time-unit .ms"):
        run("out.csv", time="t")
    assert run("out.csv", time="t", time_unit="ms").windows == 4


@pytest.mark.parametrize(
    "keys",
    [
        [1.5, 1.5, 2.5, 2.5],
        [dt.date(2026, 1, 1)] * 2 + [dt.date(2026, 1, 2)] * 2,
        ["line/1", "line/1", "line #2", "line #2"],
        [True, True, False, False],
        pa.array([NANOS, NANOS, 0, 0], pa.timestamp("ns")),
        pa.array(["a", "a", "b", "b"]).dictionary_encode(),
    ],
)
def test_keys_need_no_topic_s_rules(keys: Any) -> None:
    """Numbers, dates, truth values and texts that fit into no topic tell streams of a file apart."""
    write(k=keys)
    assert run("out.csv", length=2, key="k").windows == 2


def test_text_keys_of_csv_need_no_topic_s_rules() -> None:
    """The same in a text file."""
    Path("in.csv").write_text("temperature,humidity,k\n1,2,a/b\n1,2,a/b\n1,2,2026-01-01T00:00\n1,2,\n")
    summary = run("out.csv", length=2, source="in.csv", key="k")
    assert (summary.windows, dict(summary.rejected)) == (1, {"bad_key": 1})


def test_names_that_stand_twice_are_refused() -> None:
    """Of two columns of one name in a Parquet file none is picked."""
    table = pa.table([[1.0], [2.0], [3.0]], names=["temperature", "humidity", "temperature"])
    parquet.write_table(table, "in.parquet")
    with pytest.raises(CommandError, match="expected one column temperature, found 2: rename one of them"):
        run("out.csv")


def test_unsorted_times_are_counted() -> None:
    """Times that run backwards break windows up: they are counted, so that the remedy can be named."""
    write(t=[1_763_896_744, 1_763_896_745, 1_763_896_740, 1_763_896_741])
    assert run("out.csv", length=2, time="t").unsorted == 1


def test_a_rejected_reading_fails_the_run_where_that_is_wanted() -> None:
    """`--on-reject fail` keeps the old output and names the reason; without a rejected reading it changes nothing."""
    Path("in.csv").write_text("temperature,humidity\n1,2\nx,2\n")
    Path("out.csv").write_text("good\n")
    with pytest.raises(CommandError, match="1 of 2 readings could not be used: wrong_type 1, listed in out"):
        run("out.csv", source="in.csv", on_reject="fail")
    assert Path("out.csv").read_text() == "good\n"
    Path("in.csv").write_text("temperature,humidity\n1,2\n")
    assert run("out.csv", source="in.csv", on_reject="fail").windows == 1


def test_parquet_and_text_may_stand_side_by_side() -> None:
    """Files of several kinds are one run, where no typed column is kept."""
    write()
    Path("in.csv").write_text("temperature,humidity\n1,2\n")
    assert run("out.csv", source="in.*").windows == 5


def test_unsorted_times_are_named_with_the_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    """The command reports how many there are, and to sort each recording by its column."""
    write(t=[1_763_896_744, 1_763_896_745, 1_763_896_740, 1_763_896_741])
    builders.classification(length=2).save(Path.cwd() / "m.onnx")
    assert main(["predict", "m.onnx", "in.parquet", "-o", "out.csv", "--time", "t", "--workers", "1"]) == 0
    assert "1 readings are earlier than the one before them" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".ndjson.gz", ".jsonl.zst"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "marked"])
def test_json_lines_are_read_packed_and_with_a_byte_order_mark(suffix: str, mark: bytes) -> None:
    """A mark in front of the first object, as Windows writes it, is no part of it; packed lines are the same lines."""
    text = mark + b'{"temperature": 1, "humidity": 2}\r\n{"temperature": 3, "humidity": 4}\n'
    packed = {"gz": gzip.compress, "zst": lambda data: pa.compress(data, "zstd", asbytes=True)}
    Path(f"in{suffix}").write_bytes(packed.get(suffix.rpartition(".")[2], bytes)(text))
    summary = run("out.csv", source=f"in{suffix}")
    assert (summary.windows, summary.rejected) == (2, {})
