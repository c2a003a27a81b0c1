"""What `build` proves before it writes a bundle: every score, beyond the data too, within the device's contract."""

from pathlib import Path
from typing import Any

import joblib
import numpy as np
import onnx
import pytest
from onnxruntime.transformers.float16 import convert_float_to_float16
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_iris, make_classification
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression, RidgeClassifier
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OrdinalEncoder, StandardScaler
from sklearn.svm import SVC

from converter import quantize
from converter.cli import main
from converter.commands.inspect import manifest_of
from converter.load.sklearn import SklearnModel
from converter.load.source import Answer
from converter.session import run, session_of


class Bench:
    """Builds models in a folder."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capsys = folder, capsys
        self.out, self.err = "", ""

    def build(self, model: Any, x: Any, y: Any = None, spec: str = "", *, quantize: str = "none") -> Path | None:
        """The bundle, or None where it was refused."""
        path = model
        if not isinstance(model, Path):
            path = self.folder / "m.joblib"
            joblib.dump(model, path)
        np.savez(self.folder / "d.npz", x=np.asarray(x, dtype=np.float32), **({} if y is None else {"y": y}))
        (self.folder / "s.toml").write_text(spec)
        bundle = self.folder / "m.onnx"
        bundle.unlink(missing_ok=True)
        arguments = ["build", path, "--trust", "--spec", self.folder / "s.toml", "--data", self.folder / "d.npz",
                     "--quantize", quantize, "-o", bundle]  # fmt: skip
        code = main(list(map(str, arguments)))
        printed = self._capsys.readouterr()
        self.out, self.err = printed.out, printed.err
        assert "Traceback" not in self.err
        assert bundle.exists() == (code == 0)
        return bundle if code == 0 else None


@pytest.fixture
def bench(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Bench:
    """Where models are built."""
    return Bench(tmp_path, capsys)


def answers(bundle: Path, x: Any) -> Answer:
    """What a bundle says to rows."""
    return run(session_of(bundle.read_bytes()), np.asarray(x, dtype=np.float32)[:, None, :])


def scores_of(bundle: Path, x: Any) -> Any:
    """Its scores."""
    scores = answers(bundle, x).scores
    assert scores is not None
    return scores


def spoilt(monkeypatch: pytest.MonkeyPatch, by: Any) -> None:
    """Let the source answer otherwise than its graph: what a wrong conversion comes to."""
    plain = SklearnModel.predict
    monkeypatch.setattr(SklearnModel, "predict", lambda self, windows: by(plain(self, windows), windows))


def test_a_probability_that_is_off_is_refused_though_every_label_is_right(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The class, the row and both numbers stand in the message."""
    x, y = load_iris(return_X_y=True)
    model = LogisticRegression(max_iter=1000).fit(x, y)

    def off(answer: Answer, windows: Any) -> Answer:
        assert answer.scores is not None
        wrong = np.where(windows[:, 0, :1] > 7.65, 5e-4, 0.0)
        return Answer(answer.label, np.abs(answer.scores + wrong * np.array([0.5, 0.5, -1.0])))

    spoilt(monkeypatch, off)
    assert bench.build(model, x, y) is None
    assert "does not answer as the source does: row " in bench.err
    assert "class '2': expected " in bench.err
    assert "(0 labels differ, scores by up to " in bench.err


def test_a_calibrated_classifier_keeps_its_probabilities_or_is_refused(bench: Bench) -> None:
    """Labels that are right hide no probabilities that are not (skl2onnx gets these wrong by a third)."""
    x, y = make_classification(
        2000, 6, n_informative=3, n_redundant=0, weights=[0.93], class_sep=0.5, flip_y=0.03, random_state=1
    )
    model = CalibratedClassifierCV(make_pipeline(StandardScaler(), LogisticRegression()), cv=3).fit(x, y)
    bundle = bench.build(model, x, y)
    if bundle is None:
        assert "class '" in bench.err
        assert "row " in bench.err
    else:
        np.testing.assert_allclose(scores_of(bundle, x), model.predict_proba(x.astype(np.float32)), atol=1e-4)


def test_a_category_that_an_encoder_never_saw_goes_where_the_source_sends_it(bench: Bench) -> None:
    """NaN that arises inside the pipeline takes the branch that training chose for missing values."""
    rng = np.random.default_rng(0)
    x = np.c_[rng.integers(0, 5, 600), rng.normal(size=(600, 2))]
    y = ((x[:, 0] > 2) ^ (x[:, 1] > 0)).astype(int)
    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=np.nan)
    columns = make_column_transformer((encoder, [0]), remainder="passthrough")
    model = make_pipeline(columns, HistGradientBoostingClassifier(max_iter=20)).fit(x, y)
    bundle = bench.build(model, x, y)
    assert bundle is not None
    for code in (9.0, -1.0, 2.5, 65535.0):
        strange = x[:200].copy()
        strange[:, 0] = code
        np.testing.assert_allclose(
            scores_of(bundle, strange), model.predict_proba(strange.astype(np.float32)), atol=2e-6
        )


def test_what_differs_beyond_the_data_is_refused_with_the_value_and_a_range_is_the_way_out(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The data is the same; the fault shows only at a sentinel that no row holds."""
    x, y = load_iris(return_X_y=True)
    model = LogisticRegression(max_iter=1000).fit(x, y)

    def off(answer: Answer, windows: Any) -> Answer:
        assert answer.scores is not None
        assert answer.label is not None
        strange = (windows[:, 0, 2] == -999.0)[:, None]
        return Answer(np.where(strange[:, 0], 1, answer.label), np.where(strange, [0.0, 1.0, 0.0], answer.scores))

    spoilt(monkeypatch, off)
    channels = [f'[[channel]]\nname = "{name}"\n' for name in "abcd"]
    assert bench.build(model, x, y, "".join(channels)) is None
    assert "beyond the data: with channel 'c' at -999 (sentinel) class '" in bench.err
    channels[2] += "range = [0, 10]\n"
    assert bench.build(model, x, y, "".join(channels)) is not None


def test_float16_weights_overflow_with_no_reading(bench: Bench) -> None:
    """65535 is what a bus sends for "not available": arithmetic stays float32, so that no form answers NaN to it."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(800, 4)) * [1, 30, 2, 5]
    y = x @ [3, 0.1, -2, 1]
    network = make_pipeline(
        StandardScaler(), MLPRegressor(hidden_layer_sizes=(32, 32), max_iter=30, random_state=0)
    ).fit(x, y)
    strange = np.array([[65535, 0, 0, 0], [0, 65535, 0, 0]], dtype=np.float32)
    for model in (LinearRegression().fit(x, y), network):
        bundle = bench.build(model, x, y, quantize="float16")
        assert bundle is not None
        found = answers(bundle, strange).value
        assert found is not None
        np.testing.assert_allclose(found[:, 0], model.predict(strange), rtol=5e-3)


def test_a_form_that_answers_nan_beyond_the_data_is_left_out(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The search asks every candidate about what a bus may send, and names the value."""

    def overflowing(model: onnx.ModelProto) -> onnx.ModelProto:
        half = convert_float_to_float16(onnx.load_model_from_string(model.SerializeToString()), keep_io_types=True)
        return quantize._clean(half, model)

    monkeypatch.setattr(quantize, "_float16", overflowing)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(800, 4)) * [1, 30, 2, 5]
    y = x @ [3, 0.1, -2, 1]
    model = LinearRegression().fit(x, y)
    assert bench.build(model, x, y, quantize="auto") is not None
    assert "left out: float16: its answer is NaN or infinite with " in bench.out
    assert bench.build(model, x, y, quantize="float16") is None
    assert "float16: no form could be made" in bench.err


def test_a_source_that_refuses_a_value_is_told(bench: Bench) -> None:
    """A bundle cannot raise as an encoder does; the message names the value, and what to do."""
    rng = np.random.default_rng(0)
    x = np.c_[rng.integers(0, 3, 300), rng.normal(size=300)]
    columns = make_column_transformer((OrdinalEncoder(), [0]), remainder="passthrough")
    model = make_pipeline(columns, LogisticRegression()).fit(x, (x[:, 1] > 0).astype(int))
    bench.build(model, x)
    assert "warning: the source refuses channel 'channel_0' at " in bench.out + bench.err
    assert "give the channel a `range` that leaves it out" in bench.out + bench.err


def test_votes_of_pairs_are_not_taken_for_scores_of_classes(bench: Bench) -> None:
    """`SVC(decision_function_shape="ovo")` gives a value a pair; labels stay, scores become those of classes."""
    x, y = load_iris(return_X_y=True)
    model = SVC(decision_function_shape="ovo").fit(x, y)
    bundle = bench.build(model, x, y)
    assert bundle is not None
    found = answers(bundle, x)
    assert found.scores is not None
    np.testing.assert_array_equal(found.label, model.predict(x.astype(np.float32)))
    assert (found.scores.argmax(axis=1) == found.label).mean() > 0.95


def decision_file(folder: Path, model: Any, x: Any) -> Path:
    """A classifier as skl2onnx writes it: its outputs are decision values."""
    from skl2onnx import to_onnx  # noqa: PLC0415

    path = folder / "decisions.onnx"
    onnx.save(to_onnx(model, x[:1].astype(np.float32), options={"zipmap": False}), path)
    return path


@pytest.mark.parametrize("kind", ["SVC", "ridge"])
def test_decision_values_of_a_file_become_probabilities_or_are_refused(kind: str, bench: Bench) -> None:
    """An operator's name does not make its outputs probabilities; what they are is looked at."""
    x, y = load_iris(return_X_y=True)
    n = 100 if kind == "SVC" else 150
    model = SVC().fit(x[:n], y[:n]) if kind == "SVC" else RidgeClassifier().fit(x, y)
    bundle = bench.build(decision_file(bench.folder, model, x), x[:n], y[:n])
    if bundle is None:
        assert "the source's scores are no probabilities of its classes" in bench.err
        assert "[model]" in bench.err
        return
    found = answers(bundle, x[:n])
    assert found.scores is not None
    assert found.scores.min() >= 0
    np.testing.assert_allclose(found.scores.sum(axis=1), 1.0, atol=1e-5)


def test_rows_that_a_device_would_reject_are_named_and_left_out_of_the_metric(bench: Bench) -> None:
    """A range that keeps out a whole class is reported, class by class."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 2))
    y = np.where(x[:, 0] > 0, "busy", "free")
    model = LogisticRegression().fit(x, y)
    spec = '[[channel]]\nname = "light"\nrange = [-10, 0.05]\n[[channel]]\nname = "heat"\n'
    bundle = bench.build(model, x, y, spec)
    assert bundle is not None
    gone = int((x[:, 0].astype(np.float32) > np.float32(0.05)).sum())
    assert f"warning: a device would reject {gone} of 400 rows" in bench.out
    assert f"{gone} with light out of -10 to 0.05, the first " in bench.out
    assert "most rows of some classes are among them: " in bench.out
    assert "of 'busy'" in bench.out
    assert manifest_of(bundle).quantization["rows"] == 400 - gone
    assert bench.build(model, x + 100, y, spec) is None
    assert "expected rows that a device lets through, found none" in bench.err


def test_two_exchanged_channels_are_noticed(bench: Bench) -> None:
    """The model answers, only worse: with the two the other way round it would answer better."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 3)) * [1.0, 5.0, 1.0] + [0.0, 20.0, 0.0]
    y = (x[:, 0] + (x[:, 1] - 20) / 10 > 0).astype(int)
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(x, y)
    assert bench.build(model, x[:, [1, 0, 2]], y) is not None
    assert "warning: with 'channel_0' and 'channel_1' exchanged the source does better" in bench.out
    assert "no better than always saying" in bench.out
    assert bench.build(model, x, y) is not None
    assert "exchanged the source" not in bench.out


def test_channels_in_another_order_than_the_columns_of_the_file_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The specification counts, and a warning says that the file differs."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 2))
    y = (x[:, 0] > 0).astype(int)
    joblib.dump(LogisticRegression().fit(x, y), tmp_path / "m.joblib")
    lines = ["u,v,y", *(f"{a},{b},{c}" for (a, b), c in zip(x, y, strict=True))]
    (tmp_path / "d.csv").write_text("\n".join(lines))
    (tmp_path / "s.toml").write_text('[[channel]]\nname = "v"\n[[channel]]\nname = "u"\n[data]\nlabel = "y"\n')
    arguments = ["--spec", tmp_path / "s.toml", "--data", tmp_path / "d.csv", "-o", tmp_path / "o.onnx"]
    main(list(map(str, ["build", tmp_path / "m.joblib", "--trust", "--quantize", "none", *arguments])))
    assert "the channels stand in the order v, u, the columns of the data in the order u, v" in capsys.readouterr().out


def test_rows_of_a_single_file_may_be_those_of_the_training(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    """It is reported, with what to do; two files are taken for held-out rows."""
    x, y = load_iris(return_X_y=True)
    model = LogisticRegression(max_iter=1000).fit(x, y)
    words = "these rows may be those the model was trained on"
    assert bench.build(model, x, y) is not None
    assert words in bench.out
    assert "--calibration and --evaluation" in bench.out
    two = ["--calibration", bench.folder / "d.npz", "--evaluation", bench.folder / "d.npz"]
    arguments = [
        "build",
        bench.folder / "m.joblib",
        "--trust",
        "--quantize",
        "none",
        *two,
        "-o",
        bench.folder / "m.onnx",
    ]
    assert main(list(map(str, arguments))) == 0
    assert words not in capsys.readouterr().out


def test_truth_may_speak_of_labels_or_of_the_model_s_classes(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    """`build`, `compare` and the manifest know both; names of neither kind are refused, and so is a mixture."""
    x, y = load_iris(return_X_y=True)
    model = LogisticRegression(max_iter=1000).fit(x, y)
    spec = 'labels = ["setosa", "versicolor", "virginica"]\n'
    named = np.array(["setosa", "versicolor", "virginica"])[y]
    metrics = []
    for truth in (y, named, y.astype(float), y.astype(str)):
        bundle = bench.build(model, x, truth, spec)
        assert bundle is not None
        output = manifest_of(bundle).output
        assert output.labels == ("setosa", "versicolor", "virginica")
        assert output.classes == ("0", "1", "2")
        metrics.append(manifest_of(bundle).quantization["source_metric"])
        assert main(["compare", str(bundle), str(bundle), "--data", str(bench.folder / "d.npz")]) == 0
        assert f"{metrics[0]:.4f}" in capsys.readouterr().out
    assert len(set(metrics)) == 1
    mixed = np.where(np.arange(150) % 2 == 0, named, y.astype(str))
    assert bench.build(model, x, mixed, spec) is None
    assert "found some of both" in bench.err
    assert bench.build(model, x, np.array(["a", "b"] * 75), spec) is None
    assert "expected setosa, versicolor, virginica (or the model's classes 0, 1, 2), found 'a', 'b'" in bench.err
    bundle = bench.build(model, x, y, 'labels = ["1", "2", "3"]\n')  # 0 is among the rows, so they speak of classes
    assert bundle is not None
    assert manifest_of(bundle).quantization["source_metric"] == metrics[0]
    assert bench.build(model, x[y > 0], y[y > 0], 'labels = ["1", "2", "3"]\n') is None
    assert "meaning another one" in bench.err


@pytest.mark.parametrize("names", [("true", "false"), ("null", "walk"), ("01", "02"), ("1.0", "2"), ("NA", "")])
def test_labels_of_a_csv_file_keep_their_text(
    names: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`01` is no number and `null` no gap; only an empty cell is a gap, and is refused."""
    x = np.random.default_rng(0).normal(size=(100, 2))
    y = np.where(x[:, 0] > 0, *names)
    joblib.dump(LogisticRegression().fit(x, y), tmp_path / "m.joblib")
    lines = ["u,v,y", *(f"{a},{b},{c}" for (a, b), c in zip(x, y, strict=True))]
    (tmp_path / "d.csv").write_text("\n".join(lines))
    (tmp_path / "s.toml").write_text('[data]\nlabel = "y"\n')
    arguments = ["--spec", tmp_path / "s.toml", "--data", tmp_path / "d.csv", "-o", tmp_path / "o.onnx"]
    code = main(list(map(str, ["build", tmp_path / "m.joblib", "--trust", "--quantize", "none", *arguments])))
    printed = capsys.readouterr()
    if "" in names:
        assert code == 1
        assert "column 'y': expected a value in every row, found " in printed.err
        return
    assert code == 0, printed.err
    manifest = manifest_of(tmp_path / "o.onnx")
    assert manifest.output.labels == tuple(sorted(names))
    assert manifest.quantization["source_metric"] > 0.9
