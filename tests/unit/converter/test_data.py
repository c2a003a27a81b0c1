"""Recorded data: windows, groups, and the split that keeps calibration and evaluation apart."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converter.data import Dataset, read_data, split
from converter.spec import DataSpec, Spec
from edge_runtime.bundle.manifest import Channel, Input, Window
from edge_runtime.errors import CommandError


def takes(length: int, stride: int, *names: str) -> Input:
    """A bundle's input."""
    return Input(channels=tuple(Channel(name=name) for name in names), window=Window(length=length, stride=stride))


def table(path: Path, lines: list[str]) -> Path:
    """A file of lines."""
    path.write_text("\n".join(lines))
    return path


def test_no_window_runs_over_the_border_of_a_group(tmp_path: Path) -> None:
    """Windows are cut recording by recording, also where the rows of recordings are interleaved."""
    rows = [f"{'pq'[i % 2]},{i},{i % 3}" for i in range(60)]
    path = table(tmp_path / "d.csv", ["rec,a,y", *rows])
    spec = Spec(data=DataSpec(label="y", group="rec"))
    data = read_data(path, spec, takes(4, 2, "a"))
    assert data.windows.shape == (28, 4, 1)
    parity = data.windows[:, :, 0] % 2
    assert (parity == parity[:, :1]).all()
    assert data.truth is not None
    np.testing.assert_array_equal(data.truth, data.windows[:, -1, 0] % 3)
    assert len(data.readings) == 60


def test_a_time_column_puts_rows_in_order(tmp_path: Path) -> None:
    """Rows may stand in any order in the file."""
    order = np.random.default_rng(0).permutation(40)
    path = table(tmp_path / "d.csv", ["t,a", *(f"2024-01-01T00:00:{i:02d},{i}" for i in order)])
    data = read_data(path, Spec(data=DataSpec(time="t")), takes(4, 4, "a"))
    np.testing.assert_array_equal(data.windows.reshape(-1), np.arange(40))


@pytest.mark.parametrize(
    "times",
    [
        ["2024-10-01 00:00", "2024-09-30 18:00", "2024-09-29 23:59:59.5"],
        ["2024-10-01T02:00+02:00", "2024-09-30T23:30Z", "2024-09-30T18:00-04:00"],
        ["1e9", "9.5", "-3"],
        ["20241001T0000", "20240930", "2024-09-01"],
    ],
)
def test_times_written_as_text_are_read_as_moments(times: list[str], tmp_path: Path) -> None:
    """ISO 8601 with and without a time zone, and numbers; the rows are given from the last to the first."""
    lines = [f"{t},{n}" for t, n in zip(times, (2, 1, 0), strict=True)]
    path = table(tmp_path / "d.csv", ["t,a", *(line for line in lines for _ in range(4))])
    data = read_data(path, Spec(data=DataSpec(time="t")), takes(1, 1, "a"))
    assert data.windows.reshape(-1).tolist() == [0.0] * 4 + [1.0] * 4 + [2.0] * 4


@pytest.mark.parametrize(
    ("times", "words"),
    [
        (["09/28/2024 00:00"], "found '09/28/2024 00:00' in row 0"),
        (["28.09.2024 00:00"], "in ISO 8601 such as"),
        (["2024-09-28", "soon"], "found 'soon' in row 1"),
        (
            ["2024-09-28T00:00Z", "2024-09-28T00:00"],
            "a time zone in every row or in none, found none in row 1",
        ),
    ],
)
def test_times_that_cannot_be_read_are_refused(times: list[str], words: str, tmp_path: Path) -> None:
    """Text has no order in time: 10.09. stands before 28.08. in the alphabet."""
    path = table(tmp_path / "d.csv", ["t,a", *(f"{time},1" for time in times)])
    with pytest.raises(CommandError, match=re.escape(words)):
        read_data(path, Spec(data=DataSpec(time="t")), takes(1, 1, "a"))


def test_parquet_and_csv_give_the_same_windows(tmp_path: Path) -> None:
    """The form of the table does not matter."""
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    values = np.random.default_rng(0).normal(size=(30, 2))
    pq.write_table(pa.table({"b": values[:, 1], "a": values[:, 0], "y": ["on", "off"] * 15}), tmp_path / "d.parquet")
    lines = ["a,b,y", *(f"{float(a)!r},{float(b)!r},{('on', 'off')[i % 2]}" for i, (a, b) in enumerate(values))]
    spec = Spec(data=DataSpec(label="y"))
    one = read_data(tmp_path / "d.parquet", spec, takes(2, 2, "a", "b"))
    other = read_data(table(tmp_path / "d.csv", lines), spec, takes(2, 2, "a", "b"))
    np.testing.assert_array_equal(one.windows, other.windows)
    assert one.truth is not None
    assert other.truth is not None
    assert list(one.truth) == list(other.truth) == ["off"] * 15


@pytest.mark.parametrize("shape", [(30, 4, 2), (30, 8), (120, 2)])
def test_npz_windows_may_be_flat_or_plain_readings(shape: tuple[int, ...], tmp_path: Path) -> None:
    """`x` is [n, length, channels], or flattened time first, or a row a reading."""
    x = np.arange(240, dtype=np.float32)
    np.savez(tmp_path / "d.npz", x=x.reshape(shape), y=np.zeros(shape[0], dtype=int))
    data = read_data(tmp_path / "d.npz", Spec(), takes(4, 4, "a", "b"))
    np.testing.assert_array_equal(data.windows, x.reshape(30, 4, 2))


def dataset(n: int, truth: Any = None, groups: Any = None, overlapping: bool = False) -> Dataset:
    """Windows that know their row."""
    windows = np.arange(n, dtype=np.float32)[:, None, None] + np.zeros((1, 5, 1), dtype=np.float32)
    return Dataset(windows, truth, groups, windows[:, 0], overlapping, "here")


def rows_of(data: Dataset) -> set[int]:
    """Which rows a part has."""
    return {int(row) for row in data.windows[:, 0, 0]}


def test_no_row_both_calibrates_and_judges() -> None:
    """The parts are disjoint, each class is in both, and the same seed gives the same split."""
    truth = np.array([0] * 80 + [1] * 20)
    one, other = split(dataset(100, truth), seed=3)
    assert rows_of(one).isdisjoint(rows_of(other))
    assert len(one) + len(other) == 100
    assert one.truth is not None
    assert (one.truth == 0).sum() == 24
    assert (one.truth == 1).sum() == 6
    assert rows_of(split(dataset(100, truth), seed=3)[0]) == rows_of(one)
    assert rows_of(split(dataset(100, truth), seed=4)[0]) != rows_of(one)


def test_a_recording_is_on_one_side_only() -> None:
    """Where there are groups, whole groups are dealt out."""
    groups = np.repeat(np.arange(10), 10)
    one, other = split(dataset(100, np.zeros(100), groups))
    assert one.groups is not None
    assert other.groups is not None
    assert set(one.groups.tolist()).isdisjoint(other.groups.tolist())
    assert 20 <= len(one) <= 40


def test_overlapping_windows_of_one_recording_share_no_reading() -> None:
    """They are cut once in time, with a gap of a window."""
    one, other = split(dataset(100, overlapping=True))
    assert max(rows_of(one)) + 4 < min(rows_of(other))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a,y", *["1,0"] * 20, "x,1"], "column 'a': expected numbers, found string"),
        (["a,y", *["1,0"] * 20, "1,"], "column 'y': expected a value in every row, found 1 empty"),
        (
            ["a,y", *["1,0"] * 20, ",1"],
            "expected finite numbers, found 1 that are NaN or infinite, the first in row 20",
        ),
        (["a,y", *["1,0"] * 20, "1,2,3"], "cannot be read as a table"),
        (["a,y", ""], "too few rows"),
        ([], "cannot be read as a table"),
    ],
)
def test_a_bad_table_is_refused_with_its_column(lines: list[str], message: str, tmp_path: Path) -> None:
    """Each message names the file and the column."""
    path = table(tmp_path / "d.csv", lines)
    with pytest.raises(CommandError) as refusal:
        read_data(path, Spec(data=DataSpec(label="y")), takes(1, 1, "a"))
    assert str(refusal.value).startswith(str(path))
    assert message in str(refusal.value)


def test_recordings_shorter_than_a_window_are_too_few_rows(tmp_path: Path) -> None:
    """Rows that make up no window are no data."""
    path = table(tmp_path / "d.csv", ["a", *["1"] * 5])
    with pytest.raises(CommandError, match="expected recordings of at least 8 readings"):
        read_data(path, Spec(), takes(8, 8, "a"))


def test_other_files_are_refused(tmp_path: Path) -> None:
    """Only .npz, .csv and .parquet are data."""
    (tmp_path / "d.xls").write_text("x")
    with pytest.raises(CommandError, match=r"expected \.npz, \.csv or \.parquet, found \.xls"):
        read_data(tmp_path / "d.xls", Spec(), takes(1, 1, "a"))
