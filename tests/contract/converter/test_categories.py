"""Channels of text from end to end: a declared list, the index in the window, unknown as the source treats it."""

import json
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier, VotingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler, TargetEncoder

from converter.cli import main
from converter.commands.inspect import manifest_of
from converter.session import run, session_of
from edge_runtime.bundle.manifest import Channel
from edge_runtime.bundle.model import Model, ModelOptions
from edge_runtime.bundle.open import open_bundle
from edge_runtime.cli import main as runtime
from edge_runtime.config.load import RepairTable
from edge_runtime.http.predict_api import predict
from edge_runtime.http.responses import HttpError
from edge_runtime.http.served_model import Served
from edge_runtime.stream.codecs import make_decoder
from edge_runtime.stream.contract import Contract
from edge_runtime.system.counters import Counters

pd = pytest.importorskip("pandas")
COLOURS = ["red", "green", "blue", "black"]
MODES = ["on", "off"]
SPEC = f"""
[[channel]]
name = "heat"
[[channel]]
name = "colour"
categories = {json.dumps(COLOURS)}
[[channel]]
name = "mode"
categories = {json.dumps(MODES)}
[data]
label = "y"
"""
NAN = float("nan")


def table(n: int = 400) -> Any:
    """Readings with two channels of text, and what they mean."""
    rng = np.random.default_rng(0)
    heat = (20 + 3 * rng.normal(size=n)).astype(np.float32).astype(np.float64)
    colour, mode = rng.choice(COLOURS, n, p=[0.5, 0.3, 0.15, 0.05]), rng.choice(MODES, n)
    y = np.where((heat > 20) ^ (colour == "red") ^ (mode == "off"), "busy", "idle")
    return pd.DataFrame({"heat": heat, "colour": colour, "mode": mode, "y": y})


def encoded(encoder: Any, last: Any) -> Any:
    """A pipeline as people build one."""
    texts = make_pipeline(SimpleImputer(strategy="most_frequent"), encoder)
    columns = make_column_transformer((StandardScaler(), ["heat"]), (texts, ["colour", "mode"]), sparse_threshold=0)
    return make_pipeline(columns, last)


def boosted(**options: Any) -> Any:
    """Splits by category."""
    return HistGradientBoostingClassifier(max_iter=15, categorical_features=["colour", "mode"], **options)


IGNORING = OneHotEncoder(handle_unknown="ignore")
KNOWING = {
    "one-hot": encoded(IGNORING, LogisticRegression()),
    "rare together": encoded(
        OneHotEncoder(min_frequency=80, handle_unknown="infrequent_if_exist"), LogisticRegression()
    ),
    "at most": encoded(
        OrdinalEncoder(max_categories=3, handle_unknown="use_encoded_value", unknown_value=-1),
        RandomForestClassifier(10, random_state=0),
    ),
    "ordinal, unknown missing": encoded(
        OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=np.nan),
        HistGradientBoostingClassifier(max_iter=15),
    ),
    "target": encoded(TargetEncoder(), HistGradientBoostingClassifier(max_iter=15)),
    "histogram boosting": boosted(),
    "calibrated": CalibratedClassifierCV(boosted(), cv=2),
    "voted": VotingClassifier(
        [("a", encoded(IGNORING, LogisticRegression())), ("b", encoded(IGNORING, RandomForestClassifier(5)))],
        voting="soft",
    ),
}
REFUSING = {
    "one-hot": encoded(OneHotEncoder(), LogisticRegression()),
    "dropping": encoded(OneHotEncoder(drop="first"), LogisticRegression()),
    "ordinal": encoded(OrdinalEncoder(), RandomForestClassifier(10, random_state=0)),
}


def build(model: Any, folder: Path, rows: Any, spec: str = SPEC) -> int:
    """The exit code of `build`."""
    joblib.dump(model, folder / "m.joblib")
    rows.to_csv(folder / "d.csv", index=False)
    (folder / "s.toml").write_text(spec)
    words = ["--spec", str(folder / "s.toml"), "--data", str(folder / "d.csv"), "--quantize", "none"]
    return main(["build", str(folder / "m.joblib"), "--trust", *words, "-o", str(folder / "o.onnx")])


def windows(rows: Any) -> Any:
    """The indexes by hand."""
    columns = [rows.heat.to_numpy(np.float32)]
    for name, known in (("colour", COLOURS), ("mode", MODES)):
        columns.append(np.array([known.index(text) if text in known else -1 for text in rows[name]], np.float32))
    return np.stack(columns, axis=1)[:, None, :]


def every_kind(rows: Any) -> Any:
    """Each category and an unknown one in both channels, beside the recorded heats."""
    some = rows.head(60).copy()
    some["colour"] = [[*COLOURS, "pink"][place % 5] for place in range(60)]
    some["mode"] = [[*MODES, "standby"][place % 3] for place in range(60)]
    return some


@pytest.mark.parametrize("name", KNOWING)
def test_an_unknown_text_is_treated_as_the_source_treats_it(name: str, tmp_path: Path) -> None:
    """The oracle is the pipeline's own `predict_proba` on tables of text, unknown texts included."""
    rows = table()
    model = KNOWING[name].fit(rows[["heat", "colour", "mode"]], rows.y)
    assert build(model, tmp_path, rows) == 0
    asked = every_kind(rows)
    found = run(session_of((tmp_path / "o.onnx").read_bytes()), windows(asked))
    assert found.scores is not None
    texts = asked[["heat", "colour", "mode"]]
    np.testing.assert_allclose(found.scores, model.predict_proba(texts), atol=1e-5)
    channels = manifest_of(tmp_path / "o.onnx").input.channels
    assert [channel.categories for channel in channels] == [(), tuple(COLOURS), tuple(MODES)]
    assert [channel.unknown for channel in channels] == ["refused", "allowed", "allowed"]


@pytest.mark.parametrize("name", REFUSING)
def test_a_source_that_refuses_unknown_texts_has_devices_refuse_them(name: str, tmp_path: Path) -> None:
    """scikit-learn raises; a device rejects the reading, and the bundle's answers to known ones are the source's."""
    rows = table()
    model = REFUSING[name].fit(rows[["heat", "colour", "mode"]], rows.y)
    assert build(model, tmp_path, rows) == 0
    with pytest.raises(ValueError, match="unknown categories"):
        model.predict(every_kind(rows)[["heat", "colour", "mode"]])
    manifest = manifest_of(tmp_path / "o.onnx")
    assert [channel.unknown for channel in manifest.input.channels] == ["refused", "refused", "refused"]
    found = run(session_of((tmp_path / "o.onnx").read_bytes()), windows(rows))
    assert found.scores is not None
    np.testing.assert_allclose(found.scores, model.predict_proba(rows[["heat", "colour", "mode"]]), atol=1e-5)


def test_stream_http_and_batch_give_the_answers_of_the_source(tmp_path: Path) -> None:
    """The same texts, sent as JSON, by HTTP, and in CSV, JSON Lines and Parquet: one answer."""
    rows = table()
    names = ["heat", "colour", "mode"]
    model = KNOWING["one-hot"].fit(rows[names], rows.y)
    assert build(model, tmp_path, rows) == 0
    asked = every_kind(rows)
    expected = model.predict_proba(asked[names]).astype(np.float64)
    documents = [json.dumps(row).encode() for row in asked[names].to_dict("records")]
    loaded = Model(open_bundle(tmp_path / "o.onnx"), ModelOptions())
    decoder = make_decoder("json", names, categories=loaded.manifest.categories)
    counters = Counters()
    decoded = decoder.decode(documents, counters)
    assert not counters.rejected
    assert Contract(loaded.manifest.input.channels).check(decoded.values, [None] * 60) is None
    np.testing.assert_array_equal(decoded.values, windows(asked)[:, 0])
    np.testing.assert_array_equal(decoder.decode(documents[:1], counters).values, windows(asked)[:1, 0])
    scores = loaded.run(decoded.values[:, None, :].copy()).scores
    assert scores is not None
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    served = Served("m", loaded, device="d", start=1)
    work = predict(served, documents[4])
    answer = json.loads(work.finish(loaded.run(work.windows)).body)
    assert answer["scores"]["busy"] == pytest.approx(expected[4, 0], abs=1e-5)
    asked.to_parquet(tmp_path / "p.parquet")
    asked.to_csv(tmp_path / "c.csv", index=False)
    (tmp_path / "j.jsonl").write_bytes(b"\n".join(documents))
    for file in ("p.parquet", "c.csv", "j.jsonl"):
        out = tmp_path / f"{file}.out.csv"
        assert runtime(["predict", str(tmp_path / "o.onnx"), str(tmp_path / file), "-o", str(out)]) == 0
        np.testing.assert_allclose(pd.read_csv(out)["score_busy"], expected[:, 0], atol=1e-5)


def test_http_refuses_an_unknown_text_with_the_list_of_those_that_are_known(tmp_path: Path) -> None:
    """422 and the reason, as the stream counts it."""
    rows = table()
    model = REFUSING["one-hot"].fit(rows[["heat", "colour", "mode"]], rows.y)
    assert build(model, tmp_path, rows) == 0
    served = Served("m", Model(open_bundle(tmp_path / "o.onnx"), ModelOptions()), device="d", start=1)
    with pytest.raises(HttpError) as refused:
        predict(served, b'{"heat": 1, "colour": "pink", "mode": "on"}')
    assert "colour: expected one of red, green, blue, black" in str(refused.value)
    assert refused.value.more["reasons"] == {"unknown_category": 1}


def channels(unknown: Any = "refused") -> tuple[Channel, ...]:
    """A number, and a text that may be missing."""
    return (
        Channel(name="a", range=(0.0, 9.0)),
        Channel(name="c", categories=("x", "y"), missing="allowed", unknown=unknown),
    )


@pytest.mark.parametrize("repeated", [1, 20])
def test_the_contract_knows_categories_from_numbers(repeated: int) -> None:
    """An index that is none, an unknown text, and a number between two categories have a reason of their own."""
    rows = np.array([[1, 0], [1, 1], [1, NAN], [1, -1], [1, 2], [1, 0.5], [10, 1]] * repeated, np.float32)
    contract = Contract(channels())
    good = contract.check(rows, [None] * len(rows))
    assert good is not None
    assert good.tolist() == [True, True, True, False, False, False, False] * repeated
    assert contract.rejected == {"unknown_category": 3 * repeated, "out_of_range": repeated}
    assert contract.explain("unknown_category", rows[3]) == "`c`: expected one of x, y, found another"
    good = Contract(channels("allowed")).check(rows, [None] * len(rows))
    assert good is not None
    assert good.tolist() == [True, True, True, True, False, False, False] * repeated


def test_clipping_makes_no_category_of_another() -> None:
    """`out_of_range = "clip"` is for quantities."""
    rows = np.array([[10, -1], [10, 1]], np.float32)
    contract = Contract(channels(), RepairTable(out_of_range="clip"))
    good = contract.check(rows, [None, None])
    assert good is not None
    assert good.tolist() == [False, True]
    assert rows.tolist() == [[9, -1], [9, 1]]


def test_a_sender_may_write_categories_as_text_whole_numbers_and_booleans() -> None:
    """They are looked up as JSON writes them; decimals, arrays, and numbers in quotes elsewhere are faults."""
    known = {"c": ("1", "2", "true")}
    decoder = make_decoder("json", ["a", "c"], categories=known)
    counters = Counters()
    sent = ['"2"', "1", "true", "false", '" 2"', "null"]
    found = decoder.decode([f'{{"a": 1, "c": {text}}}'.encode() for text in sent], counters)
    np.testing.assert_array_equal(found.values[:, 1], np.array([1, 0, 2, -1, -1, NAN], np.float32))
    assert not counters.rejected
    decoder.decode([b'{"a": 1, "c": 1.5}', b'{"a": 1, "c": ["1"]}', b'{"a": "1", "c": "1"}'], counters)
    assert counters.rejected == {"wrong_type": 3}
    rows = make_decoder("csv", ["a", "c"], fields=["a", "c"], categories=known)
    found = rows.decode([b"1,2", b"1,true", b"1,", b'1," x"'], counters)
    np.testing.assert_array_equal(found.values[:, 1], np.array([1, 2, NAN, -1], np.float32))


def test_a_category_that_the_model_was_trained_on_and_nobody_declares_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It counts as unknown on the device, and the output says so; one that training never saw too."""
    rows = table()
    model = KNOWING["one-hot"].fit(rows[["heat", "colour", "mode"]], rows.y)
    assert build(model, tmp_path, rows, SPEC.replace('"black"', '"white"')) == 0
    output = capsys.readouterr().out
    assert "channel 'colour': the model also knows 'black'" in output
    assert "channel 'colour': the model was not trained on 'white'" in output


def test_text_that_no_encoder_takes_is_refused_with_what_would_help(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence with channel and step."""
    rows = table()
    both = make_column_transformer((OneHotEncoder(), ["colour", "mode"]), (OneHotEncoder(), ["colour"]))
    text = make_pipeline(both, LogisticRegression()).fit(rows[["heat", "colour", "mode"]], rows.y)
    assert build(text, tmp_path, rows) == 0
    assert build(text, tmp_path, rows, SPEC.replace('categories = ["on", "off"]', "")) == 1
    error = capsys.readouterr().err
    assert "mode" in error
    assert "Traceback" not in error
