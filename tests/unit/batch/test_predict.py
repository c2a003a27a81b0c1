import csv
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from edge_runtime.batch import local_engine
from edge_runtime.batch.run import PredictOptions, PredictSummary, predict
from edge_runtime.batch.score import InterruptedPartError, score_part
from edge_runtime.batch.side_by_side import SideBySide
from edge_runtime.bundle.model import Model, ModelError, Scores
from edge_runtime.bundle.open import open_bundle
from edge_runtime.errors import CommandError, EdgeError
from edge_runtime.readings import Floats
from tests.support import builders

CHANNELS = ("temperature", "humidity")


@pytest.fixture
def readings() -> Floats:
    """Sixty readings of two channels."""
    return np.random.default_rng(7).normal(size=(60, 2)).astype(np.float32)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A classifier of single readings."""
    return builders.classification().save(tmp_path / "comfort.onnx")


def write_csv(path: Path, values: Floats, **columns: list[Any]) -> Path:
    """Readings and further columns as CSV."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*CHANNELS, *columns])
        writer.writerows(zip(*values.T, *columns.values(), strict=True))
    return path


def write_json(path: Path, values: Floats, **columns: list[Any]) -> Path:
    """The same as JSON Lines."""
    rows = zip(values.tolist(), *columns.values(), strict=True)
    names = [*CHANNELS, *columns]
    path.write_text("".join(json.dumps(dict(zip(names, [*row, *more], strict=True))) + "\n" for row, *more in rows))
    return path


def write_parquet(path: Path, values: Floats, **columns: list[Any]) -> Path:
    """The same as Parquet, in several row groups."""
    parquet.write_table(pa.table(dict(zip(CHANNELS, values.T, strict=True)) | columns), path, row_group_size=16)
    return path


def write_npz(path: Path, values: Floats, **columns: list[Any]) -> Path:
    """The same as an archive of arrays."""
    arrays: dict[str, Any] = {name: np.array(column) for name, column in columns.items()}
    np.savez(path, x=values, **arrays)
    return path


WRITERS = {".csv": write_csv, ".jsonl": write_json, ".parquet": write_parquet, ".npz": write_npz}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of an output of any format, numbers as they read back."""
    if path.suffix == ".parquet":
        return list(parquet.read_table(path).to_pylist())
    if path.suffix == ".npz":
        arrays = dict(np.load(path, allow_pickle=False))
        return [dict(zip(arrays, row, strict=True)) for row in zip(*(a.tolist() for a in arrays.values()), strict=True)]
    if path.suffix == ".npy":
        table = np.load(path, allow_pickle=False)
        return [dict(zip(table.dtype.names, row, strict=True)) for row in table.tolist()]
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))


def column(path: Path, name: str) -> Floats:
    """One column of an output."""
    return np.array([row[name] for row in read_rows(path)], np.float32)


def run(bundle: Path, *files: Path, output: Path | None, **options: Any) -> PredictSummary:
    """Predict in this process."""
    return predict(PredictOptions(bundle, [str(file) for file in files], output, workers=1, **options))


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet", ".npz", ".npy"])
def test_every_format_in_and_out_says_the_same(
    tmp_path: Path, bundle: Path, readings: Floats, kind: str, suffix: str
) -> None:
    """The kind of file makes no difference: every output reads back to the float32 that onnxruntime gave."""
    source = WRITERS[kind](tmp_path / f"in{kind}", readings)
    output = tmp_path / f"out{suffix}"
    run(bundle, source, output=output)
    expected = builders.classification().run({"window": readings[:, None, :]})
    rows = read_rows(output)
    assert list(rows[0]) == ["label", "score", "score_low", "score_high"]
    assert [row["label"] for row in rows] == [("low", "high")[index] for index in expected["label"]]
    found = np.column_stack([column(output, "score_low"), column(output, "score_high")])
    assert found.tobytes() == expected["scores"].tobytes()
    assert column(output, "score").tobytes() == expected["scores"].max(axis=1).tobytes()


def test_a_regression_has_a_column_for_each_target(tmp_path: Path) -> None:
    """The columns of a regression are its targets, in the order of the manifest."""
    draft = builders.regression(channels=CHANNELS, targets=("power", "heat"))
    bundle = draft.save(tmp_path / "r.onnx")
    values = np.random.default_rng(1).normal(size=(9, 2)).astype(np.float32)
    run(bundle, write_csv(tmp_path / "in.csv", values), output=tmp_path / "out.csv")
    assert list(read_rows(tmp_path / "out.csv")[0]) == ["power", "heat"]
    expected = draft.run({"window": values[:, None, :]})["value"]
    assert column(tmp_path / "out.csv", "heat").tobytes() == np.ascontiguousarray(expected[:, 1]).tobytes()


def test_an_anomaly_has_score_threshold_and_verdict(tmp_path: Path) -> None:
    """An anomaly is a score above the bundle's threshold, which stands beside it."""
    bundle = builders.anomaly(channels=CHANNELS, threshold=1.0).save(tmp_path / "a.onnx")
    values = np.array([[0.5, 0.5], [3.0, 3.0]], np.float32)
    run(bundle, write_csv(tmp_path / "in.csv", values), output=tmp_path / "out.jsonl")
    assert read_rows(tmp_path / "out.jsonl") == [
        {"score": 0.5, "threshold": 1.0, "anomaly": False},
        {"score": 3.0, "threshold": 1.0, "anomaly": True},
    ]


def test_whole_frames_come_from_json_lines_and_numpy(tmp_path: Path) -> None:
    """A model of frames takes each line, or each row of an array, as one frame."""
    draft = builders.frame()
    bundle = draft.save(tmp_path / "f.onnx")
    frames = np.random.default_rng(2).integers(0, 256, size=(5, 4, 6, 3)).astype(np.uint8)
    np.save(tmp_path / "in.npy", frames)
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(frame.tolist()) + "\n" for frame in frames))
    expected = draft.run({"window": frames.astype(np.float32)})["scores"]
    for name in ("in.npy", "in.jsonl"):
        run(bundle, tmp_path / name, output=tmp_path / "out.csv")
        assert column(tmp_path / "out.csv", "score_a").tobytes() == np.ascontiguousarray(expected[:, 0]).tobytes()


def test_each_key_has_windows_of_its_own(tmp_path: Path, readings: Floats) -> None:
    """With a key column, the readings of one key make its windows, as in the daemon."""
    draft = builders.classification(length=4, stride=2)
    bundle = draft.save(tmp_path / "w.onnx")
    keys = [f"k{row % 3}" for row in range(60)]
    expected = [
        readings[key::3][start : start + 4] for start in range(0, 17, 2) for key in range(3)
    ]  # the windows complete in the order of their last readings
    scores = draft.run({"window": np.stack(expected)})["scores"]
    for kind, write in WRITERS.items():
        run(bundle, write(tmp_path / f"in{kind}", readings, who=keys), output=tmp_path / "out.csv", key="who")
        assert [row["who"] for row in read_rows(tmp_path / "out.csv")] == ["k0", "k1", "k2"] * 9
        assert column(tmp_path / "out.csv", "score_low").tobytes() == np.ascontiguousarray(scores[:, 0]).tobytes()


def test_windows_that_are_given_whole_are_scored_as_they_are(tmp_path: Path) -> None:
    """An array [n, length, channels] is n windows already."""
    draft = builders.classification(length=3)
    bundle = draft.save(tmp_path / "w.onnx")
    windows = np.random.default_rng(3).normal(size=(7, 3, 2)).astype(np.float32)
    np.save(tmp_path / "in.npy", windows)
    run(bundle, tmp_path / "in.npy", output=tmp_path / "out.npz")
    expected = draft.run({"window": windows})["scores"]
    assert column(tmp_path / "out.npz", "score_high").tobytes() == np.ascontiguousarray(expected[:, 1]).tobytes()


def test_each_file_is_a_recording_of_its_own(tmp_path: Path, readings: Floats) -> None:
    """No window runs from one file into the next, unless `--one-recording` says that they follow one another."""
    bundle = builders.classification(length=4).save(tmp_path / "w.onnx")
    files = [write_csv(tmp_path / f"{n}.csv", readings[n * 6 : n * 6 + 6]) for n in range(2)]
    assert run(bundle, *files, output=tmp_path / "out.csv").windows == 2
    assert run(bundle, *files, output=tmp_path / "out.csv", one_recording=True).windows == 3


def test_a_gap_in_the_time_column_begins_a_new_window(tmp_path: Path, readings: Floats) -> None:
    """With `--time` and `--max-gap`, no window runs over a pause."""
    bundle = builders.classification(length=4).save(tmp_path / "w.onnx")
    moments = [float(row) for row in range(30)] + [1000.0 + row for row in range(30)]
    for kind, write in WRITERS.items():
        source = write(tmp_path / f"in{kind}", readings, at=moments)
        outcome = run(bundle, source, output=tmp_path / "out.csv", time="at", max_gap=5.0)
        assert (outcome.windows, outcome.gaps) == (14, 1)


def test_a_model_with_memory_runs_through_a_recording(tmp_path: Path, readings: Floats) -> None:
    """The state of a recurrent model is handed from window to window, and starts at zero in each file."""
    draft = builders.stateful(channels=CHANNELS)
    bundle = draft.save(tmp_path / "s.onnx")
    memory, expected = np.zeros((1, 3), np.float32), []
    for window in readings.reshape(30, 2, 2):
        answer = draft.run({"window": window[None], "memory": memory})
        memory = answer["memory_out"]
        expected.append(answer["scores"][0, 0])
    files = [write_csv(tmp_path / f"{n}.csv", readings) for n in range(2)]
    run(bundle, *files, output=tmp_path / "out.csv")
    assert column(tmp_path / "out.csv", "score_awake").tobytes() == np.array(expected * 2, np.float32).tobytes()


def test_kept_columns_stand_beside_the_predictions(tmp_path: Path, bundle: Path, readings: Floats) -> None:
    """`--keep` writes columns of the input in front of the predictions; from Parquet they keep their types."""
    numbers, names = list(range(60)), [f"r{row}" for row in range(60)]
    for kind, write in WRITERS.items():
        source = write(tmp_path / f"in{kind}", readings, number=numbers, name=names)
        run(bundle, source, output=tmp_path / "out.parquet", keep=("name", "number"))
        rows = read_rows(tmp_path / "out.parquet")
        assert list(rows[0])[:3] == ["name", "number", "label"]
        assert [row["name"] for row in rows] == names
        assert [int(row["number"]) for row in rows] == numbers
        assert type(rows[0]["number"]) is (str if kind == ".csv" else int)


def test_a_kept_column_may_not_hide_a_prediction(tmp_path: Path, bundle: Path, readings: Floats) -> None:
    """A kept column called like one of the predictions is refused."""
    source = write_csv(tmp_path / "in.csv", readings, label=["x"] * 60)
    with pytest.raises(CommandError, match="--keep label: a column of the predictions has this name"):
        run(bundle, source, output=tmp_path / "out.csv", keep=("label",))


def test_bad_rows_are_counted_and_listed_with_their_place(tmp_path: Path, bundle: Path) -> None:
    """What is not used is counted by reason, and listed with file, line, reason and text."""
    source = tmp_path / "in.csv"
    source.write_text("temperature,humidity\n1,2\nx,2\n\n1,2,3\n1e9,2\n,2\n1,nan\n3,4\n")
    outcome = run(bundle, source, output=tmp_path / "out.csv")
    assert (outcome.readings, outcome.windows) == (7, 2)
    rejected = read_rows(tmp_path / "out.csv.rejected.csv")
    assert [(int(row["row"]), row["reason"], row["text"]) for row in rejected] == [
        (3, "wrong_type", "x,2"),
        (5, "malformed", "1,2,3"),
        (6, "out_of_range", "1e9,2"),
        (7, "missing_channel", ",2"),
        (8, "not_finite", "1,nan"),
    ]
    assert {row["file"] for row in rejected} == {str(source)}
    source.write_text("temperature,humidity\n1,2\n")
    run(bundle, source, output=tmp_path / "out.csv")
    assert not (tmp_path / "out.csv.rejected.csv").exists()


def test_the_line_of_a_bad_row_is_right_in_every_piece(
    tmp_path: Path, bundle: Path, readings: Floats, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large file is read in pieces; lines are counted from its beginning all the same, and no row is lost."""
    source = write_csv(tmp_path / "in.csv", readings)
    lines = source.read_text().splitlines()
    lines[41] = "bad,row"
    source.write_text("\r\n".join(lines) + "\r\n")
    run(bundle, source, output=tmp_path / "whole.csv")
    monkeypatch.setattr("edge_runtime.batch.parts.PIECE_BYTES", 97)
    outcome = run(bundle, source, output=tmp_path / "out.csv")
    assert outcome.windows == 59
    assert [row["row"] for row in read_rows(tmp_path / "out.csv.rejected.csv")] == ["42"]
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_an_interrupted_run_goes_on_where_it_stopped(
    tmp_path: Path, bundle: Path, readings: Floats, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts that are complete are not done again; the output is the same as without the interruption."""
    files = [write_csv(tmp_path / f"{n}.csv", readings[n * 10 : n * 10 + 10]) for n in range(6)]
    output = tmp_path / "out.csv"
    output.write_text("the old one\n")
    done = []

    def interrupted(*arguments: Any, **more: Any) -> Any:
        done.append(arguments)
        if len(done) == 4:
            raise InterruptedPartError("interrupted")
        return score_part(*arguments, **more)

    monkeypatch.setattr("edge_runtime.batch.local_engine.score_part", interrupted)
    with pytest.raises(InterruptedPartError):
        run(bundle, *files, output=output)
    assert output.read_text() == "the old one\n"
    outcome = run(bundle, *files, output=output)
    assert (outcome.resumed_parts, len(done)) == (3, 7)
    assert not (tmp_path / "out.csv.parts").exists()
    run(bundle, *files, output=tmp_path / "whole.csv")
    assert output.read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_a_run_is_not_resumed_when_a_file_has_changed(
    tmp_path: Path, bundle: Path, readings: Floats, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts of a former run count only while bundle, files and options are the same."""
    from edge_runtime.batch import run as run_module  # noqa: PLC0415

    files = [write_csv(tmp_path / f"{n}.csv", readings[:10]) for n in range(2)]
    output = tmp_path / "out.csv"
    monkeypatch.setattr(run_module, "remove_parts", lambda _: None)
    run(bundle, *files, output=output)
    assert run(bundle, *files, output=output).resumed_parts == 2
    assert run(bundle, *files, output=output, keep=("humidity",)).resumed_parts == 0
    write_csv(files[1], readings[:11])
    os.utime(files[1], ns=(1, 1))
    outcome = run(bundle, *files, output=output, keep=("humidity",))
    assert (outcome.resumed_parts, outcome.windows) == (0, 21)


def test_processes_give_the_same_file(tmp_path: Path, bundle: Path, readings: Floats) -> None:
    """The number of workers changes nothing."""
    files = [write_parquet(tmp_path / f"{n}.parquet", readings[n * 20 : n * 20 + 20]) for n in range(3)]
    run(bundle, *files, output=tmp_path / "one.csv")
    predict(PredictOptions(bundle, [str(tmp_path / "*.parquet")], tmp_path / "two.csv", workers=2))
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()


def test_threads_give_the_same_file(tmp_path: Path, readings: Floats) -> None:
    """The number of threads changes nothing either, also for windows that run over one another."""
    bundle = builders.classification(channels=CHANNELS, length=8, stride=2).save(tmp_path / "w.onnx")
    source = write_csv(tmp_path / "in.csv", readings)
    run(bundle, source, output=tmp_path / "one.csv", threads=1)
    run(bundle, source, output=tmp_path / "four.csv", threads=4)
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "four.csv").read_bytes()


@pytest.mark.parametrize(
    ("files", "options", "expected"),
    [
        (1, {}, (4, 4)),
        (2, {}, (4, 2)),
        (3, {}, (4, 1)),
        (9, {}, (4, 1)),
        (1, {"workers": 1}, (1, 1)),
        (2, {"workers": 4}, (4, 1)),
        (2, {"workers": 1, "threads": 3}, (1, 3)),
    ],
)
def test_cores_without_a_part_take_windows_of_the_others(
    tmp_path: Path,
    bundle: Path,
    readings: Floats,
    monkeypatch: pytest.MonkeyPatch,
    files: int,
    options: dict[str, Any],
    expected: tuple[int, int],
) -> None:
    """Four cores: a process each while there are parts for them, else threads; what the user chose is what is done."""
    seen = []

    def parts(job: Any, parts: Any, workers: int, show: Any) -> Any:
        seen.append((workers, job.threads))
        return local_engine.run_parts(job, parts, 1, show)

    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.setattr("edge_runtime.batch.run.run_parts", parts)
    sources = [write_csv(tmp_path / f"{n}.csv", readings[:10]) for n in range(files)]
    predict(PredictOptions(bundle, [str(file) for file in sources], tmp_path / "out.csv", **options))
    assert seen == [expected]


def test_models_side_by_side_share_out_the_windows(bundle: Path) -> None:
    """Each takes its share, and the answer is that of one model, bit for bit and in order; a few go to one alone."""
    opened, asked = open_bundle(bundle), []

    class Heard(Model):
        def run(self, windows: Floats, carries: Any = None) -> Scores:
            asked.append(len(windows))
            return super().run(windows, carries)

    model = SideBySide(lambda: Heard(opened), 3)
    windows = np.random.default_rng(3).normal(size=(100, 1, 2)).astype(np.float32)
    found, expected = model.run(windows), Model(opened).run(windows)
    assert sorted(asked) == [33, 33, 34]
    assert found.scores is not None
    assert expected.scores is not None
    assert found.scores.tobytes() == expected.scores.tobytes()
    assert model.run(windows[:5]).scores is not None
    assert asked[3:] == [5]


def test_a_model_that_fails_beside_others_fails_the_call(bundle: Path) -> None:
    """Half of an answer is never taken for the whole; afterwards the models answer again."""
    opened = open_bundle(bundle)

    class Failing(Model):
        def run(self, windows: Floats, carries: Any = None) -> Scores:
            if windows[0, 0, 0] == 7.0:
                raise ModelError("this one")
            return super().run(windows, carries)

    model = SideBySide(lambda: Failing(opened), 2)
    windows = np.zeros((40, 1, 2), np.float32)
    windows[20] = 7.0
    with pytest.raises(ModelError, match="this one"):
        model.run(windows)
    assert model.run(windows[:20]).label is not None


def test_a_model_with_memory_is_run_by_one_thread(tmp_path: Path, readings: Floats) -> None:
    """Each of its windows needs the one before."""
    bundle = builders.stateful(channels=CHANNELS).save(tmp_path / "memory.onnx")
    source = write_csv(tmp_path / "in.csv", readings)
    run(bundle, source, output=tmp_path / "one.csv", threads=1)
    run(bundle, source, output=tmp_path / "four.csv", threads=4)
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "four.csv").read_bytes()


def test_a_mistake_in_a_worker_is_one_line(tmp_path: Path, bundle: Path, readings: Floats) -> None:
    """What goes wrong in a worker reaches the user as it would without workers."""
    files = [write_csv(tmp_path / f"{n}.csv", readings, power=["x"] * 60) for n in range(2)]
    regression = builders.regression(channels=CHANNELS).save(tmp_path / "r.onnx")
    with pytest.raises(CommandError, match="--label: expected numbers, found 'x'"):
        predict(PredictOptions(regression, list(map(str, files)), None, truth=("power",), workers=2))


def test_evaluation_counts_confusions(tmp_path: Path, bundle: Path, readings: Floats) -> None:
    """With a column of truth, predictions are counted against it; a window without truth is not judged."""
    labels = builders.classification().run({"window": readings[:, None, :]})["label"]
    truth = [("low", "high")[index] for index in labels]
    truth[0] = {"low": "high", "high": "low"}[truth[0]]
    truth[1] = ""
    outcome = run(bundle, write_csv(tmp_path / "in.csv", readings, truth=truth), output=None, truth=("truth",))
    assert outcome.judgement is not None
    assert (outcome.judgement.judged, outcome.judgement.without_truth) == (59, 1)
    wrong = outcome.judgement.confusion[truth[0]]
    assert sum(wrong.values()) - wrong[truth[0]] == 1


def test_evaluation_of_a_regression_gives_its_errors(tmp_path: Path) -> None:
    """A regression is judged by mean absolute and squared error and by the share of variance explained."""
    from edge_runtime.batch.evaluate import describe  # noqa: PLC0415

    draft = builders.regression(channels=CHANNELS)
    bundle = draft.save(tmp_path / "r.onnx")
    values = np.random.default_rng(1).normal(size=(40, 2)).astype(np.float32)
    truth = draft.run({"window": values[:, None, :]})["value"][:, 0].astype(np.float64) + 0.5
    outcome = run(bundle, write_csv(tmp_path / "in.csv", values, power=truth.tolist()), output=None, truth=("power",))
    assert outcome.judgement is not None
    lines = describe(outcome.judgement, outcome.manifest)
    assert lines[0] == "evaluation over 40 windows"
    assert lines[1].startswith("power: MAE 0.5, RMSE 0.5, R2 ")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.csv", b"", "expected a header row"),
        ("columns.csv", b"temperature,x\n1,2\n", "found none for humidity; its columns are temperature, x"),
        ("junk.parquet", b"PAR1junk", "expected a Parquet file, found none"),
        ("junk.npy", b"\x93NUMPYjunk", "expected a NumPy array, found none"),
        ("junk.npz", b"PK\x03\x04", "expected an .npz archive, found none"),
        ("what.xyz", b"1,2\n", "found .xyz: say it with --format"),
    ],
)
def test_a_file_of_the_wrong_kind_is_named(tmp_path: Path, bundle: Path, name: str, content: bytes, words: str) -> None:
    """Every mistake in a file is one line that names it, and nothing is written."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(EdgeError) as caught:
        run(bundle, path, output=tmp_path / "out.csv")
    assert words in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert not (tmp_path / "out.csv").exists()


def test_pickled_arrays_are_never_loaded(tmp_path: Path, bundle: Path) -> None:
    """An array of Python objects would run code when it is loaded, and is refused."""
    np.save(tmp_path / "in.npy", np.array([[object(), 1]], object), allow_pickle=True)
    with pytest.raises(CommandError, match="which are never loaded"):
        run(bundle, tmp_path / "in.npy", output=tmp_path / "out.csv")


def test_all_mistakes_in_all_files_are_named_at_once(tmp_path: Path, bundle: Path, readings: Floats) -> None:
    """A run over many files names every one that cannot be used, before it reads any."""
    write_csv(tmp_path / "a.csv", readings)
    (tmp_path / "b.csv").write_text("x\n1\n")
    (tmp_path / "c.csv").write_text("")
    with pytest.raises(CommandError) as caught:
        run(bundle, tmp_path, output=tmp_path / "out.csv")
    assert [line.split(":")[0][-5:] for line in str(caught.value).splitlines()] == ["b.csv", "c.csv"]


def test_kept_columns_must_have_one_type_in_all_files(tmp_path: Path, bundle: Path, readings: Floats) -> None:
    """Parquet files whose kept columns differ in type are refused, naming both."""
    write_parquet(tmp_path / "a.parquet", readings, n=[1] * 60)
    write_parquet(tmp_path / "b.parquet", readings, n=["1"] * 60)
    with pytest.raises(CommandError, match=r"b\.parquet: expected the kept columns of .*n: int64.*found n: string"):
        run(bundle, tmp_path / "*.parquet", output=tmp_path / "out.csv", keep=("n",))


@pytest.mark.parametrize("name", ["out", "out.xlsx", "absent/out.csv"])
def test_an_output_that_cannot_be_written_is_refused_before_any_work(
    tmp_path: Path, bundle: Path, readings: Floats, name: str
) -> None:
    """A wrong suffix or a missing folder is named before a file is read."""
    with pytest.raises(CommandError):
        run(bundle, write_csv(tmp_path / "in.csv", readings), output=tmp_path / name)


def test_the_output_is_never_one_of_the_inputs(tmp_path: Path, bundle: Path, readings: Floats) -> None:
    """A recording is not written over."""
    source = write_csv(tmp_path / "in.csv", readings)
    before = source.read_bytes()
    with pytest.raises(CommandError, match="it is one of the files to be read"):
        run(bundle, source, output=source)
    assert source.read_bytes() == before
