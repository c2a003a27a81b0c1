"""A window on demand whose times show another rate is judged as in the stream."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_runtime.bundle.model import Model
from edge_runtime.bundle.open import open_bundle
from edge_runtime.config.tables import ModelTable
from edge_runtime.http.app import App
from edge_runtime.http.live_view import Board
from edge_runtime.http.served_model import Served
from tests.support import builders
from tests.support.asking import Answered, ask

LENGTH = 20


def asked(folder: Path, on_rate: Any, rate_hz: float, count: int, *, timed: bool = True) -> Answered:
    """The answer to one window of a model of 20 readings at 10 Hz."""
    draft = builders.classification(name="motion", length=LENGTH)
    draft.manifest["input"]["window"]["rate_hz"] = 10.0
    bundle = open_bundle(draft.save(folder / "motion.onnx"))
    config = ModelTable(name="motion", bundle="motion.onnx", source="http", on_rate=on_rate)
    served = Served("motion", Model(bundle), device="d", start=1, config=config)
    values = np.sin(np.arange(count) / rate_hz)
    rows = [{"temperature": float(value), "humidity": 50.0} for value in values]
    if timed:
        rows = [{**row, "time": 1.7e9 + number / rate_hz} for number, row in enumerate(rows)]
    return ask(App([served], Board()), "POST", "/predict/motion", rows)


@pytest.mark.parametrize("on_rate", ["warn", "resample", "reject"])
def test_the_right_rate_and_no_times_are_answered_without_a_word(tmp_path: Path, on_rate: str) -> None:
    """Whatever `on_rate` says, and with the same answer."""
    answers = [asked(tmp_path, on_rate, 10.0, LENGTH), asked(tmp_path, on_rate, 20.0, LENGTH, timed=False)]
    assert [answer.status for answer in answers] == [200, 200]
    assert not any("Warning" in answer.headers for answer in answers)


def test_another_rate_is_said_with_both_rates(tmp_path: Path) -> None:
    """`warn` answers, and the header holds the sentence."""
    answer = asked(tmp_path, "warn", 20.0, LENGTH)
    assert answer.status == 200
    assert "expected readings at 10 Hz (rate_hz of the bundle), found 20 Hz" in answer.headers["Warning"]


def test_another_rate_is_refused_where_that_is_wanted(tmp_path: Path) -> None:
    """`reject` is 422 with the reason."""
    answer = asked(tmp_path, "reject", 20.0, LENGTH)
    assert answer.status == 422
    assert answer.document["reasons"] == {"wrong_rate": LENGTH}


def test_a_faster_window_is_resampled(tmp_path: Path) -> None:
    """Two seconds at 50 Hz are a window of 20 readings at 10 Hz; half a second is none."""
    answer = asked(tmp_path, "resample", 50.0, 5 * LENGTH)
    assert answer.status == 200
    assert answer.headers["Warning"].endswith('resampled"')
    short = asked(tmp_path, "resample", 50.0, LENGTH)
    assert short.status == 422
    assert "expected a window of 20 readings, found 4" in short.document["error"]
