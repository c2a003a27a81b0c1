"""Missing values from end to end: declared for a channel, proven against the source, and taken by every way in."""

import json
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from converter.cli import main
from converter.commands.inspect import manifest_of
from converter.session import run, session_of
from converter.spec import ChannelSpec, Spec
from edge_runtime.bundle.manifest import Channel
from edge_runtime.cli import main as runtime
from edge_runtime.errors import CommandError
from edge_runtime.http.oip_v2 import _json_values
from edge_runtime.http.responses import HttpError
from edge_runtime.stream.contract import Contract
from tests.contract.converter.conftest import Convert

ALLOWED = 'missing = "allowed"\n'
SPEC = f'[[channel]]\nname = "a"\n{ALLOWED}[[channel]]\nname = "b"\n[[channel]]\nname = "c"\n{ALLOWED}'
NAN = float("nan")


def rows(n: int = 600) -> tuple[Any, Any]:
    """Readings of which the first and the last channel are missing now and then; being missing tells something."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 3)).astype(np.float32).astype(np.float64)
    y = (x[:, 0] + x[:, 1] > 0).astype(int)
    x[rng.random(n) < 0.2, 0] = np.nan
    x[rng.random(n) < 0.1, 2] = np.nan
    return x, np.where(np.isnan(x[:, 2]), 1, y)


def boosters() -> dict[str, Any]:
    """Those that are installed."""
    found: dict[str, Any] = {}
    try:
        import lightgbm  # noqa: PLC0415
        import xgboost  # noqa: PLC0415

        found["LightGBM"] = lightgbm.LGBMClassifier(n_estimators=10, verbose=-1, n_jobs=1)
        found["XGBoost"] = xgboost.XGBClassifier(n_estimators=10, n_jobs=1)
    except ImportError:
        pass
    return found


MODELS: dict[str, Any] = {
    "imputer": make_pipeline(SimpleImputer(), StandardScaler(), LogisticRegression()),
    "histogram boosting": HistGradientBoostingClassifier(max_iter=15),
    "scaled histogram boosting": make_pipeline(StandardScaler(), HistGradientBoostingClassifier(max_iter=15)),
    "random forest": RandomForestClassifier(10, random_state=0),
    **boosters(),
}


def build(model: Any, folder: Path, x: Any, y: Any = None, *, spec: str = SPEC) -> int:
    """The exit code of `build`."""
    joblib.dump(model, folder / "m.joblib")
    np.savez(folder / "d.npz", x=x, **({} if y is None else {"y": y}))
    (folder / "s.toml").write_text(spec)
    words = ["--spec", str(folder / "s.toml"), "--data", str(folder / "d.npz"), "--quantize", "none"]
    return main(["build", str(folder / "m.joblib"), "--trust", *words, "-o", str(folder / "o.onnx")])


@pytest.mark.parametrize("name", MODELS)
def test_a_missing_value_goes_where_the_source_sends_it(name: str, tmp_path: Path) -> None:
    """An imputer fills it, a tree sends it to the side that training chose: scores to 1e-5, every pattern of gaps."""
    x, y = rows()
    model = MODELS[name].fit(x, y)
    assert build(model, tmp_path, x, y) == 0
    gaps = np.repeat(x[~np.isnan(x).any(axis=1)][:40], 4, axis=0)
    gaps[1::4, 0] = np.nan
    gaps[2::4, 2] = np.nan
    gaps[3::4, [0, 2]] = np.nan
    for asked in (x, gaps):
        found = run(session_of((tmp_path / "o.onnx").read_bytes()), asked.astype(np.float32)[:, None, :])
        assert found.scores is not None
        np.testing.assert_allclose(found.scores, model.predict_proba(asked), atol=1e-5)
    assert [channel.missing for channel in manifest_of(tmp_path / "o.onnx").input.channels] == [
        "allowed", "refused", "allowed"
    ]  # fmt: skip


def test_a_source_that_refuses_missing_values_refuses_the_declaration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where no row of the data has a gap."""
    x, y = rows()
    whole = ~np.isnan(x).any(axis=1)
    model = LogisticRegression().fit(x[whole], y[whole])
    assert build(model, tmp_path, x[whole], y[whole]) == 1
    assert "the model refuses channel 'a' missing: " in capsys.readouterr().err


def test_without_the_declaration_a_gap_in_the_data_is_refused_with_the_key_that_allows_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The contract stays strict where nothing is reported, and in the channels that are not declared."""
    x, y = rows()
    model = MODELS["imputer"].fit(x, y)
    assert build(model, tmp_path, x, y, spec=SPEC.replace(ALLOWED, "")) == 1
    assert 'say missing = "allowed" in its [[channel]]' in capsys.readouterr().err
    x[5, 1] = np.nan
    assert build(model, tmp_path, x, y) == 1
    assert "the first in row 5 in channel 'b'" in capsys.readouterr().err


def channels() -> tuple[Channel, ...]:
    """One that may be missing, within a range, and one that may not."""
    return (Channel(name="a", range=(0.0, 10.0), missing="allowed"), Channel(name="b"))


@pytest.mark.parametrize("repeated", [1, 20])
def test_the_contract_lets_through_what_may_be_missing_and_nothing_else(repeated: int) -> None:
    """Few readings and many are judged alike; a range still holds, and infinity is no gap."""
    inf = float("inf")
    one = [[5, 1], [NAN, 1], [5, NAN], [NAN, NAN], [11, 1], [inf, 1], [NAN, inf]]
    contract = Contract(channels())
    keys: list[str | None] = [None for _ in range(len(one) * repeated)]
    good = contract.check(np.array(one * repeated, np.float32), keys)
    assert good is not None
    assert good.tolist() == [True, True, False, False, False, False, False] * repeated
    assert contract.rejected == {
        "missing_channel": 2 * repeated, "out_of_range": repeated, "not_finite": 2 * repeated
    }  # fmt: skip
    assert contract.explain("missing_channel", np.array([NAN, NAN], np.float32)) == "no `b`"
    gaps = np.array([[NAN, 1.0]], np.float32)
    only = Contract(channels()).check(gaps, [None])
    assert only is None or only.all()


def test_http_takes_null_for_what_may_be_missing(tmp_path: Path) -> None:
    """In the JSON of the inference protocol null is a gap where the model allows one, and an error elsewhere."""
    del tmp_path
    found = _json_values("window", b"[[1.5, null], [null, 2]]", lambda: None, gaps=True)
    np.testing.assert_array_equal(found, [[1.5, NAN], [NAN, 2.0]])
    with pytest.raises(HttpError, match="expected rows of numbers"):
        _json_values("window", b"[[1.5, null]]", lambda: None, gaps=False)


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_batch_takes_gaps_as_the_model_does(form: str, tmp_path: Path) -> None:
    """An empty cell and a null are the same gap; a gap in a strict channel is counted and left out."""
    x, y = rows()
    model = MODELS["histogram boosting"].fit(x, y)
    assert build(model, tmp_path, x, y) == 0
    asked = x[:60].copy()
    asked[7, 1] = np.nan
    lines = []
    for row in asked:
        values = {name: None if np.isnan(value) else float(value) for name, value in zip("abc", row, strict=True)}
        lines.append(
            ",".join("" if value is None else repr(value) for value in values.values())
            if form == "csv"
            else json.dumps(values)
        )
    path, out = tmp_path / f"r.{form}", tmp_path / "out.jsonl"
    path.write_text("\n".join((["a,b,c"] if form == "csv" else []) + lines) + "\n")
    assert runtime(["predict", str(tmp_path / "o.onnx"), str(path), "-o", str(out)]) == 0
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(answers) == 59
    expected = model.predict_proba(np.delete(asked, 7, axis=0))[:, 1]
    np.testing.assert_allclose([answer["score_1"] for answer in answers], expected, atol=1e-5)


def test_the_declaration_is_one_of_two_words(tmp_path: Path) -> None:
    """Anything else is a mistake of the specification."""
    from converter.spec import load_spec  # noqa: PLC0415

    (tmp_path / "s.toml").write_text('[[channel]]\nname = "a"\nmissing = "yes"\n')
    with pytest.raises(CommandError, match=r"missing: expected 'refused' or 'allowed', found 'yes'"):
        load_spec(tmp_path / "s.toml")


@pytest.mark.parametrize(
    "name", ["random forest", "histogram boosting", *(("XGBoost",) if "XGBoost" in MODELS else ())]
)
def test_the_side_of_missing_values_is_written_only_where_a_window_may_have_some(name: str, convert: Convert) -> None:
    """A refused NaN needs no list in the file, nor splits that only a NaN could tell apart; answers stay the same."""
    x, y = rows()
    whole = np.nan_to_num(x)
    spec = Spec(channel=tuple(ChannelSpec(name=each, missing="allowed") for each in "abc"))
    model = MODELS[name].fit(x, y)
    strict, lenient = convert(model, whole, name="m.joblib"), convert(model, x, spec, name="m.joblib")
    listed = [b"nodes_missing_value_tracks_true" in done.base.model for done in (strict, lenient)]
    assert listed == [False, True]
    assert len(strict.base.model) < len(lenient.base.model)
    for done in (strict, lenient):
        assert done.found.label.tolist() == done.expected.label.tolist()
        np.testing.assert_allclose(done.found.scores, done.expected.scores, atol=2e-6)


def test_a_missing_value_that_arises_inside_keeps_its_side(convert: Convert) -> None:
    """XGBoost's number for a missing value becomes NaN in the graph, though the window has none."""
    xgboost = pytest.importorskip("xgboost")
    x, y = rows()
    given = np.where(np.isnan(x), -999.0, x)
    model = xgboost.XGBClassifier(n_estimators=10, n_jobs=1, missing=-999.0).fit(given, y)
    done = convert(model, given, name="m.joblib")
    np.testing.assert_allclose(done.found.scores, model.predict_proba(given), atol=2e-6)
    assert np.isnan(x).any()
