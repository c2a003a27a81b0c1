"""CSV files as programs write them: by pyarrow and without it the same readings, and nothing guessed."""

import csv
import gzip
import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import csv as arrow_csv

from edge_runtime.recordings import csv_files
from edge_runtime.recordings.blocks import Block, Fault, RecordingError, Wanted
from edge_runtime.recordings.files import open_recording

WANTED = Wanted(("a", "b"), (1, 2), columns=("note",))


def read(path: Path, wanted: Wanted = WANTED, *, most: int = 7, size: int | None = None) -> list[Block]:
    """Every block of a file."""
    recording = open_recording(path, wanted)
    return [block for piece in recording.pieces(size) for block in recording.blocks(piece, most)]


def rows_of(blocks: list[Block]) -> list[tuple[Any, ...]]:
    """Line, values and kept columns of every reading."""
    found: list[tuple[Any, ...]] = []
    for block in blocks:
        names = list(WANTED.columns) if len(block) else []
        columns = [block.columns.values(name) for name in names]
        found += [
            (row, values, *kept) for row, values, *kept in zip(block.rows, block.values.tolist(), *columns, strict=True)
        ]
    return found


def faults_of(blocks: list[Block]) -> list[tuple[int, str, str]]:
    """Line, reason and text of what was no reading."""
    return [(fault.row, fault.reason, fault.text) for block in blocks for fault in block.faults]


@pytest.fixture(params=["pyarrow", "codec"])
def by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to read; the second one as where pyarrow is not installed."""
    if request.param == "codec":
        monkeypatch.setitem(sys.modules, "pyarrow.csv", None)
    return str(request.param)


def write(path: Path, content: str) -> Path:
    """A text file."""
    path.write_bytes(content.encode())
    return path


def test_a_line_break_in_quotes_belongs_to_its_row(tmp_path: Path, by: str) -> None:
    """A quoted line break invents no reading, and lines are counted on behind it."""
    content = 'a,b,note\n1,2,"two\nlines"\n3,4,"say ""hello"",\r\nand go"\nx,6,bad\n7,8,end\n'
    blocks = read(write(tmp_path / "in.csv", content))
    values = [row[:2] for row in rows_of(blocks)]
    assert values == [(2, [1.0, 2.0]), (4, [3.0, 4.0]), (7, [7.0, 8.0])]
    assert [(row, reason) for row, reason, _ in faults_of(blocks)] == [(6, "wrong_type")]


def test_a_stray_quote_costs_its_own_line(tmp_path: Path, by: str) -> None:
    """A quote that nothing closes, or that another stray one closes far below, makes its own line malformed."""
    good = "".join(f"{n},{n},x\n" for n in range(40))
    for other in ("", '9,9,"stray too\n'):
        content = 'a,b,note\n1,2,"stray\n' + good + other + "5,5,end\n"
        blocks = read(write(tmp_path / "in.csv", content))
        faults = faults_of(blocks)
        assert [reason for _, reason, _ in faults] == ["malformed"] * (2 if other else 1)
        assert faults[0][0] == 2
        assert len(rows_of(blocks)) == 41


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_blank_lines_and_line_ends_make_no_difference(tmp_path: Path, by: str, end: str) -> None:
    """Blank lines are no readings; the last line needs no end; lines are counted as an editor counts them."""
    content = end.join(["a,b,note", "1,2,x", "", "3,4,y", "", "", "bad,4,y", "5,6,z"])
    blocks = read(write(tmp_path / "in.csv", content))
    assert [row[0] for row in rows_of(blocks)] == [2, 4, 8]
    assert faults_of(blocks) == [(7, "wrong_type", "bad,4,y")]


def test_a_file_of_pieces_is_the_file(tmp_path: Path, by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever a file is cut into pieces, with quoted line breaks or without, each row is read once."""
    monkeypatch.setattr(csv_files, "BLOCK_BYTES", 200)
    monkeypatch.setattr(csv_files, "LEAST_BLOCK_BYTES", 100)
    for quoted in (False, True):
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["a", "b", "note"])
        writer.writerows([n, n / 8, f"line\n{n}" if quoted and n % 3 == 0 else f"n{n}"] for n in range(300))
        path = write(tmp_path / "in.csv", file.getvalue())
        whole = [values for _, values, _ in rows_of(read(path))]
        assert len(whole) == 300
        for size in (50, 117, 1000):
            blocks = read(path, size=size)
            assert [values for _, values, _ in rows_of(blocks)] == whole
            assert sum(block.lines for block in blocks) == file.getvalue().count("\n")
            assert len(open_recording(path, WANTED).pieces(size)) > 2
            assert sum(block.done for block in blocks) <= path.stat().st_size


ODD = [
    "",
    " ",
    "1.5",
    " 2 ",
    "+3",
    ".5",
    "5.",
    "1e3",
    "1E-400",
    "1e400",
    "nan",
    "NaN",
    "inf",
    "-inf",
    "NA",
    "null",
    "0x10",
    "1_0",
    "1,5",
    "\N{ARABIC-INDIC DIGIT ONE}",
    "1d5",
    "007",
    "1.00000017881393432617187499",  # float32 by way of float64 is another one than at once
    "-0",
    "true",
    "1 2",
    "\x00",
    "\x01",
    '"',
    'a"b',
    "\ufeff1",
]
CELLS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.integers(-(10**30), 10**30).map(str),
    st.sampled_from(ODD),
    st.text(max_size=4),
)


@given(rows=st.lists(st.tuples(CELLS, CELLS, st.text(max_size=6)), max_size=12), quote=st.booleans(), raw=st.booleans())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_both_ways_give_the_same_bits(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, str]], *, quote: bool, raw: bool
) -> None:
    """Whatever stands in a file: with pyarrow and without it the same readings to the last bit, and the same faults."""
    path = tmp_path_factory.mktemp("csv") / "in.csv"
    if raw:
        content = "a,b,note\n" + "".join(",".join(row) + "\n" for row in rows)
    else:
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL if quote else csv.QUOTE_MINIMAL)
        writer.writerows([("a", "b", "note"), *rows])
        content = file.getvalue()
    with_arrow, without = read_both_ways(path, content)
    assert with_arrow == without


NUMBERS = st.one_of(
    st.floats(-1e6, 1e6).map(repr), st.sampled_from(["1.5", "007", "-0", "1e3", "1.00000017881393432617187499"])
)


@given(rows=st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=12), odd=CELLS, where=st.integers(0, 23))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_one_odd_cell_is_judged_alike(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], odd: str, where: int
) -> None:
    """One cell of any kind among good numbers, which pyarrow might read in its own way: both ways read the same."""
    cells = [list(row) for row in rows]
    cells[where // 2 % len(cells)][where % 2] = odd
    content = "a,b\n" + "".join(",".join(row) + "\n" for row in cells)
    with_arrow, without = read_both_ways(tmp_path_factory.mktemp("csv") / "in.csv", content)
    assert with_arrow == without


@pytest.mark.parametrize("where", ["a", "b"])
@pytest.mark.parametrize("odd", ODD)
def test_each_odd_cell_is_judged_alike(tmp_path: Path, odd: str, where: str) -> None:
    """The same for each of those that are known to be odd, so that none is left to chance."""
    row = f"{odd},2" if where == "a" else f"2,{odd}"
    with_arrow, without = read_both_ways(tmp_path / "in.csv", f"a,b\n1.5,0.25\n{row}\n3,4\n")
    assert with_arrow == without


def read_both_ways(path: Path, content: str) -> list[list[Any]]:
    """Readings and faults of a file, with pyarrow and without it."""
    path.write_bytes(content.encode("utf-8", "replace"))
    found: list[list[Any]] = []
    for module in (arrow_csv, None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, "pyarrow.csv", module)
            try:
                blocks = read(path, Wanted(("a", "b"), (1, 2)))
            except RecordingError as error:
                found.append([str(error)])
                continue
            readings = [
                (row, values.tobytes())
                for block in blocks
                for row, values in zip(block.rows, block.values, strict=True)
            ]
            found.append([readings, faults_of(blocks)])
    return found


def test_a_delimiter_at_the_end_of_rows_is_read_where_it_is_named(tmp_path: Path, by: str) -> None:
    """With `--trailing-delimiter` rows end in one that the header lacks; the columns are not shifted."""
    path = write(tmp_path / "in.csv", "a,b,note\n1,2,x,\n3,4,y,\n5,6,z\n")
    with pytest.raises(RecordingError, match=r"take the delimiter off, or allow it \(trailing delimiter\)"):
        read(path)
    blocks = read(path, Wanted(("a", "b"), (1, 2), columns=("note",), trailing_delimiter=True))
    assert [row[1:] for row in rows_of(blocks)] == [([1.0, 2.0], "x"), ([3.0, 4.0], "y")]
    assert [(row, reason) for row, reason, _ in faults_of(blocks)] == [(4, "malformed")]
    path = write(tmp_path / "in.csv", "a,b,note\n1,2,x\n")
    with pytest.raises(RecordingError, match="leave --trailing-delimiter out"):
        read(path, Wanted(("a", "b"), (1, 2), trailing_delimiter=True))


def test_a_name_that_stands_twice_is_refused_only_where_it_is_read(tmp_path: Path, by: str) -> None:
    """Of two columns of one name none is picked; a name that nothing reads may stand twice."""
    path = write(tmp_path / "in.csv", "a,x,b,x,note\n1,9,2,9,k\n")
    assert rows_of(read(path)) == [(2, [1.0, 2.0], "k")]
    path = write(tmp_path / "in.csv", "a,b,a,note\n1,2,3,k\n")
    with pytest.raises(RecordingError, match="expected one column a, found 2: columns 1 and 3: rename one of them"):
        read(path)


def test_a_decimal_comma_is_read_where_it_is_named(tmp_path: Path, by: str) -> None:
    """`--decimal ,` reads commas, and takes no point for one."""
    path = write(tmp_path / "in.csv", "a;b;note\n1,5;-2,25;x\n1.5;2;x\n1.000,5;2;x\n;3,5;y\n")
    wanted = Wanted(("a", "b"), (1, 2), columns=("note",), delimiter=";", decimal=",")
    blocks = read(path, wanted)
    assert [row[:1] for row in rows_of(blocks)] == [(2,), (5,)]
    np.testing.assert_array_equal(
        np.concatenate([block.values for block in blocks]), np.array([[1.5, -2.25], [np.nan, 3.5]], np.float32)
    )
    assert [(row, reason) for row, reason, _ in faults_of(blocks)] == [(3, "wrong_type"), (4, "wrong_type")]
    with pytest.raises(RecordingError, match="expected another delimiter than the decimal"):
        read(path, Wanted(("a", "b"), (1, 2), decimal=","))


def test_a_wrong_delimiter_is_named(tmp_path: Path, by: str) -> None:
    """A header that is one column under the delimiter of the suffix says which one it seems to have."""
    path = write(tmp_path / "in.csv", "a;b;note\n1;2;x\n")
    with pytest.raises(RecordingError, match=r"found none for a, b, note.*add --delimiter ';'"):
        read(path)


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16", "utf-16-le", "utf-8-sig"])
def test_other_encodings_are_read_where_they_are_named(tmp_path: Path, by: str, encoding: str) -> None:
    """`--encoding` reads the file as that; the kept text is what it was."""
    path = tmp_path / "in.csv"
    path.write_bytes("a,b,note\n1,2,größer\n".encode(encoding))
    assert rows_of(read(path, Wanted(("a", "b"), (1, 2), columns=("note",), encoding=encoding))) == [
        (2, [1.0, 2.0], "größer")
    ]


def test_another_encoding_is_told_from_nonsense(tmp_path: Path, by: str) -> None:
    """Without `--encoding` a file in another one is refused in words that name the option; damaged text as well."""
    path = tmp_path / "in.csv"
    path.write_bytes("a,b,note\n1,2,x\n".encode("utf-16"))
    with pytest.raises(RecordingError, match="found the mark of UTF-16: add --encoding utf-16"):
        read(path)
    path.write_bytes("a,b,note,größe\n1,2,x,3\n".encode("latin-1"))
    with pytest.raises(RecordingError, match="expected a header in UTF-8, found byte 0xf6: add --encoding"):
        read(path)
    path.write_bytes(b"a,b,note\n1,2,\x81\n")
    with pytest.raises(RecordingError, match="cannot be read: expected text in cp1252"):
        read(path, Wanted(("a", "b"), (1, 2), columns=("note",), encoding="cp1252"))


def test_line_ends_of_old_programs_are_refused_in_words(tmp_path: Path, by: str) -> None:
    """A file whose lines end with CR alone is one long line to every reader, and is named as what it is."""
    with pytest.raises(RecordingError, match="found CR alone"):
        read(write(tmp_path / "in.csv", "a,b,note\r1,2,x\r"))


@pytest.fixture(params=["gz", "zst"])
def compressed(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, bytes]:
    """A compressed file, and its text."""
    text = ("a,b,note\n" + "".join(f"{n},{n},x\n" for n in range(5_000)) + "x,1,y\n").encode()
    path = tmp_path / f"in.csv.{request.param}"
    with path.open("wb") as file:
        if request.param == "gz":
            file.write(gzip.compress(text))
        else:
            file.write(pa.compress(text, "zstd", asbytes=True))
    return path, text


def test_compressed_files_are_read(compressed: tuple[Path, bytes]) -> None:
    """`.csv.gz` and `.csv.zst` are read as one piece, with the lines of the text."""
    path, _ = compressed
    blocks = read(path, most=1000, size=100)
    assert len(rows_of(blocks)) == 5_000
    assert faults_of(blocks) == [(5_002, "wrong_type", "x,1,y")]
    assert sum(block.done for block in blocks) == path.stat().st_size


def test_a_compressed_file_that_ends_too_soon_is_a_fault(compressed: tuple[Path, bytes]) -> None:
    """Half of a compressed file is named, and never read as a shorter one."""
    path, _ = compressed
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(RecordingError, match="cannot be read"):
        read(path)


def test_a_long_line_is_skipped(tmp_path: Path, by: str) -> None:
    """A line beyond the limit is counted as too long, and the next one is read."""
    content = "a,b,note\n1,2,x\n3,4," + "y" * 200_000 + "\n5,6,z\n"
    wanted = Wanted(("a", "b"), (1, 2), columns=("note",), max_line_bytes=1000)
    blocks = read(write(tmp_path / "in.csv", content), wanted)
    assert [row[1] for row in rows_of(blocks)] == [[1.0, 2.0], [5.0, 6.0]]
    assert [(row, reason) for row, reason, _ in faults_of(blocks)] == [(3, "too_long")]


def test_pyarrow_reads_the_good_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One bad row does not send its whole file to the slow reader."""
    rows: list[int] = []
    by_codec = csv_files.CsvRecording._by_codec

    def counted(self: Any, text: bytes, line: int) -> Block:
        rows.append(text.count(b"\n"))
        return by_codec(self, text, line)

    monkeypatch.setattr(csv_files.CsvRecording, "_by_codec", counted)
    content = "a,b,note\n" + "".join(f"{n}.25,{n}.5,{n}\n" if n != 30_000 else "x,1,2\n" for n in range(60_000))
    blocks = read(write(tmp_path / "in.csv", content), most=100_000)
    assert len(rows_of(blocks)) == 59_999
    assert faults_of(blocks) == [(30_002, "wrong_type", "x,1,2")]
    assert 0 < sum(rows) < 2_000


def test_faults_are_in_their_places(tmp_path: Path, by: str) -> None:
    """Faults come with the readings around them, in the order of the file, however small the blocks are."""
    content = "a,b,note\n" + "".join("x,1,2\n" if n % 10 == 3 else f"{n},{n},k\n" for n in range(100))
    blocks = read(write(tmp_path / "in.csv", content), most=4)
    assert [fault[0] for fault in faults_of(blocks)] == [n + 2 for n in range(100) if n % 10 == 3]
    assert all(len(block) <= 4 for block in blocks)


@pytest.mark.parametrize(
    "moment",
    [
        "2026-11-23T11:19:04.123456Z",
        "2026-11-23 11:19:04.123456789",
        "2026-11-23",
        "2026-11-23T11:19:04+02:00",
        "1763896744.5",
        "20261123T111904",
        "2026-W48-1",
        " 2026-11-23 11:19 ",
    ],
)
def test_times_of_the_usual_forms_are_the_stream_s(
    tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A text time is the same second whichever way it is read."""
    path = write(tmp_path / "in.csv", f"a,b,t\n1,2,{moment}\n3,4,{moment}\n")
    wanted = Wanted(("a", "b"), (1, 2), time="t", columns=("t",))
    (by_arrow,) = [block.times for block in read(path, wanted) if len(block)]
    monkeypatch.setitem(sys.modules, "pyarrow.csv", None)
    (by_codec,) = [block.times for block in read(path, wanted) if len(block)]
    assert by_arrow == by_codec
    assert by_codec is not None
    assert by_codec[0] is not None


def test_the_first_fault_of_a_reason_says_why(tmp_path: Path, by: str) -> None:
    """A time in another form is refused with what was expected and what was found."""
    path = write(tmp_path / "in.csv", "a,b,t\n1,2,23.11.2026 11:19\n")
    faults: list[Fault] = [
        fault for block in read(path, Wanted(("a", "b"), (1, 2), time="t", columns=("t",))) for fault in block.faults
    ]
    assert [fault.reason for fault in faults] == ["bad_time"]
    assert "expected a time such as 2026-11-23T11:19:04Z or Unix seconds, found '23.11.2026 11:19'" in faults[0].why


@pytest.mark.parametrize("code", [*range(32), 127])
def test_control_characters_are_no_part_of_numbers(tmp_path: Path, code: int) -> None:
    """In a file of nothing but numbers, each control character has the same effect with pyarrow and without it."""
    for cell in (f"{chr(code)}1", f"1{chr(code)}", chr(code)):
        path = write(tmp_path / "in.csv", f"a,b\n5,6\n{cell},2\n7,8\n")
        found = []
        for module in (arrow_csv, None):
            with pytest.MonkeyPatch.context() as patch:
                patch.setitem(sys.modules, "pyarrow.csv", module)
                blocks = read(path, Wanted(("a", "b"), (1, 2)))
            found.append((b"".join(block.values.tobytes() for block in blocks), faults_of(blocks)))
        assert found[0] == found[1]
