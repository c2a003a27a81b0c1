"""Which files a name stands for, and what is reported of the others."""

import gzip
import os
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from edge_runtime.batch.run import PredictOptions, PredictSummary, predict
from edge_runtime.errors import CommandError
from edge_runtime.recordings.blocks import Wanted
from edge_runtime.recordings.files import find_files, open_all
from tests.support import builders

ROWS = "temperature,humidity\n1,2\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(*names: str) -> None:
    """Files of one reading each."""
    for name in names:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(ROWS)


def run(*files: str, output: str = "out.csv", **options: Any) -> PredictSummary:
    """The command."""
    bundle = builders.classification().save(Path.cwd() / "comfort.onnx")
    return predict(PredictOptions(bundle, files, Path(output), workers=1, **options))


def test_bookkeeping_files_are_no_recordings() -> None:
    """Names that begin with a dot or an underscore, also those of folders, are left out and reported, as in Spark."""
    make("d/a.csv", "d/_SUCCESS", "d/_a.csv", "d/.a.csv.crc", "d/._a.csv", "d/_temporary/0/b.csv", "d/.ipynb/c.csv")
    make("d/sub/b.csv", "d/note.pdf", "d/part-0.csv.crc")
    found = find_files(["d"])
    assert list(map(str, found.files)) == ["d/a.csv", "d/sub/b.csv"]
    assert found.passed_over["begins with . or _"] == (6, "d/._a.csv")
    assert found.passed_over["another suffix"] == (2, "d/note.pdf")
    assert run("d").windows == 2


def test_a_pattern_passes_over_the_same_files() -> None:
    """A pattern is no way around; a file that is named is read, whatever its name begins with."""
    make("d/a.csv", "d/_b.csv", "d/.c.csv", "d/x.pdf", "_e/f.csv")
    found = find_files(["d/*"])
    assert list(map(str, found.files)) == ["d/a.csv"]
    assert found.passed_over == {"begins with . or _": (2, "d/.c.csv"), "another suffix": (1, "d/x.pdf")}
    assert list(map(str, find_files(["d/_b.csv", "_e"]).files)) == ["d/_b.csv", "_e/f.csv"]
    assert list(map(str, find_files(["d/x*"], any_suffix=True).files)) == ["d/x.pdf"]


def test_one_file_by_several_names_is_read_once() -> None:
    """A relative and an absolute path, a folder and a file in it, and a link: read once, and reported."""
    make("d/a.csv")
    Path("d/b.csv").symlink_to(Path("d/a.csv").absolute())
    found = find_files(["d/a.csv", str(Path("d/a.csv").absolute()), "d", "./d/../d/a.csv"])
    assert list(map(str, found.files)) == ["d/a.csv"]
    assert found.passed_over["read already"][0] == 4
    assert run("d/a.csv", str(Path("d/a.csv").absolute())).windows == 1


def test_links_that_lead_nowhere_or_to_folders_are_said() -> None:
    """A broken link is no file, and a link to a folder is not followed: both are named."""
    make("d/a.csv", "elsewhere/b.csv")
    Path("d/gone.csv").symlink_to("nothing.csv")
    Path("d/there").symlink_to(Path("elsewhere").absolute())
    found = find_files(["d"])
    assert "d/a.csv" in list(map(str, found.files))
    assert found.passed_over["link to nothing"] == (1, "d/gone.csv")
    assert found.passed_over["link to a folder"] == (1, "d/there")
    with pytest.raises(CommandError, match=r"gone\.csv: cannot be read: No such file"):
        run("d/gone.csv")


@pytest.mark.parametrize(
    ("marker", "kind"),
    [
        ("_delta_log/00000.json", "Delta"),
        (".hoodie/hoodie.properties", "Hudi"),
        ("metadata/v1.metadata.json", "Iceberg"),
    ],
)
def test_tables_whose_files_are_not_their_rows_are_refused(marker: str, kind: str) -> None:
    """The Parquet files of such a table also hold rows that it has deleted, so that they are no recording."""
    make("t/part-0.csv", f"t/{marker}")
    with pytest.raises(CommandError, match=f"^t: expected recordings, found a {kind} table.*write its current version"):
        find_files(["t"])
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pipe({f"/t/{name}": ROWS.encode() for name in ("part-0.csv", marker)})
    with pytest.raises(CommandError, match=f"found a {kind} table"):
        find_files(["memory://t"])


def test_a_remote_folder_passes_over_the_same_files() -> None:
    """The rules hold behind a URL."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    names = ["a.csv", "_SUCCESS", ".b.csv", "_temporary/c.csv", "note.pdf", "d.csv.gz"]
    system.pipe({f"/_run/{name}": b"" for name in names})
    found = find_files(["memory://_run"])
    assert [str(file).rpartition("/")[2] for file in found.files] == ["a.csv", "d.csv.gz"]
    assert {reason: count for reason, (count, _) in found.passed_over.items()} == {
        "begins with . or _": 3,
        "another suffix": 1,
    }
    assert [file.name for file in find_files(["memory://_run/*.csv"]).files] == ["a.csv"]


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl", "csv.gz"])
def test_hive_folders_give_columns(kind: str) -> None:
    """`room=kitchen/` is a column of text for `--key` and `--keep`, beside those of the file."""
    import gzip  # noqa: PLC0415

    for room in ("kitchen", "living%20room"):
        path = Path(f"d/year=2026/room={room}/part-0.{kind}")
        path.parent.mkdir(parents=True)
        if kind == "parquet":
            parquet.write_table(pa.table({"temperature": [1.0, 2.0], "humidity": [2.0, 3.0], "n": [7, 8]}), path)
        elif kind == "jsonl":
            path.write_text('{"temperature": 1, "humidity": 2, "n": 7}\n{"temperature": 2, "humidity": 3, "n": 8}\n')
        else:
            text = b"temperature,humidity,n\n1,2,7\n2,3,8\n"
            path.write_bytes(gzip.compress(text) if kind.endswith("gz") else text)
    summary = run("d", output="out.parquet", key="room", keep=("year", "n"))
    assert summary.windows == 4
    table = parquet.read_table("out.parquet").to_pydict()
    assert table["room"] == ["kitchen"] * 2 + ["living room"] * 2
    assert table["year"] == ["2026"] * 4
    assert list(map(int, table["n"])) == [7, 8, 7, 8]


def test_a_column_of_the_file_goes_before_its_folder() -> None:
    """A name that stands in both means the file's; one that stands in neither is named as missing."""
    path = Path("d/room=attic/a.csv")
    path.parent.mkdir(parents=True)
    path.write_text("temperature,humidity,room\n1,2,cellar\n")
    run("d", keep=("room",))
    assert Path("out.csv").read_text().splitlines()[1].startswith("cellar,")
    with pytest.raises(CommandError, match="found none for floor"):
        run("d", keep=("room", "floor"))


def test_hive_keys_have_windows_of_their_own() -> None:
    """Each file is a recording, and its folder's key is that of its windows."""
    bundle = builders.classification(length=2).save(Path.cwd() / "w.onnx")
    make("d/room=a/1.csv", "d/room=__HIVE_DEFAULT_PARTITION__/1.csv")
    for path in Path("d").rglob("*.csv"):
        path.write_text("temperature,humidity\n1,2\n3,4\n5,6\n7,8\n")
    options = PredictOptions(bundle, ["d"], Path("o.csv"), key="room", workers=1)
    assert predict(options).windows == 4


def test_what_is_not_read_does_not_stop_a_folder_without_anything() -> None:
    """A folder in which everything is passed over stands for nothing, and is an error."""
    make("d/_a.csv")
    with pytest.raises(CommandError, match="d: expected recorded files, found a folder without"):
        find_files(["d"])


def test_many_small_files_share_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand files are a hundred parts or so, and each is a recording of its own all the same."""
    bundle = builders.classification(length=2).save(Path.cwd() / "w.onnx")
    rng = np.random.default_rng(1)
    for number in range(300):
        rows = "".join(f"{a},{b}\n" for a, b in rng.normal(size=(3, 2)))
        make(f"d/{number:03}.csv")
        Path(f"d/{number:03}.csv").write_text("temperature,humidity\n" + rows)
    Path("d/150.csv").write_text("temperature,humidity\n1,2\nx,2\n3,4\n")
    monkeypatch.setattr("edge_runtime.batch.run.remove_parts", lambda _: None)
    summary = predict(PredictOptions(bundle, ["d"], Path("o.csv"), workers=1))
    assert len(list(Path("o.csv.parts").glob("*.part"))) <= 160
    assert (summary.windows, summary.readings) == (300, 900)
    assert Path("o.csv.rejected.csv").read_text().splitlines()[1:] == [f'd{os.sep}150.csv,3,wrong_type,"x,2"']


def test_a_file_that_another_has_replaced_is_looked_at_again() -> None:
    """A file is looked at once before it is read; one that has taken its place since is read by its own header."""
    path, wanted = Path("in.csv"), Wanted(("a", "b"), (1, 2))
    path.write_text("a,b\n1,2\n")
    opened = open_all([path], wanted)
    (known,) = opened
    assert opened.open("in.csv", wanted) is known
    path.with_suffix(".new").write_text("b,note,a\n20,x,10\n")
    path.with_suffix(".new").replace(path)
    recording = opened.open("in.csv", wanted)
    (block,) = recording.blocks(recording.pieces(None)[0], 10)
    assert block.values.tolist() == [[10.0, 20.0]]


def test_more_files_than_are_kept_open_are_read_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond so many, a file is looked at again when it is read, so that memory does not grow with their number."""
    monkeypatch.setattr("edge_runtime.recordings.files.MOST_KEPT", 3)
    make(*(f"d/{number}.csv" for number in range(8)))
    assert len(open_all(find_files(["d"]).files, Wanted(("temperature", "humidity"), (1, 2)))._known) == 3
    assert (run("d").windows, run("d").files) == (8, 8)


TEXT = "temperature,humidity\n1,2\n"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", TEXT.encode("utf-16"), "found the mark of UTF-16: add --encoding utf-16"),
        ("a.csv", TEXT.encode("utf-16-le"), "found text of UTF-16 without its mark: add --encoding utf-16-le"),
        ("a.csv", TEXT.encode("utf-16-be"), "found text of UTF-16 without its mark: add --encoding utf-16-be"),
        ("a.csv", TEXT.encode("utf-32"), "found the mark of UTF-32: add --encoding utf-32"),
        ("a.csv", gzip.compress(TEXT.encode(), mtime=0), "found gzip data: unpack it once more, or give it a name"),
        (
            "a.csv.gz",
            gzip.compress(gzip.compress(TEXT.encode(), mtime=0), mtime=0),
            "found gzip data: unpack it once more",
        ),
        ("a.jsonl", gzip.compress(TEXT.encode(), mtime=0), "found gzip data: unpack it once more"),
        ("a.csv", b"PK\x03\x04\x14\x00\x06\x00", "found a spreadsheet or an archive: save the table as CSV"),
        ("a.csv", b"PAR1\x15\x04PAR1", "found a Parquet file: add --format parquet"),
        ("a.csv", b"# logger\ntemperature,humidity\n1,2\n", "take the lines above the header away, of which"),
        ("a.csv", b"sep=;\ntemperature;humidity\n1;2\n", "take the lines above the header away, of which"),
        ("a.csv", b"Temperature,Humidity\n1,2\n", "names differ by upper and lower case: write them as"),
        (
            "a.json",
            b'[\n  {"temperature": 1, "humidity": 2}\n]\n',
            "found one over several lines: write each on a line",
        ),
    ],
)
def test_a_file_of_another_kind_is_refused_with_the_remedy(name: str, content: bytes, words: str) -> None:
    """What a file really is, or what is odd about its header, is in the refusal, and what to do about it."""
    Path(name).write_bytes(content)
    with pytest.raises(CommandError) as refused:
        run(name)
    assert str(refused.value).startswith(f"{name}: expected ")
    assert words in str(refused.value)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"])
def test_what_a_refusal_recommends_is_read(encoding: str) -> None:
    """With the encoding that is named, the same file is read."""
    Path("a.csv").write_bytes(TEXT.encode(encoding))
    assert run("a.csv", encoding=encoding).windows == 1
