"""A model in a process of its own: the same bits as in ours, and an end in words for everything that can happen."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from edge_runtime.bundle.model import Model
from edge_runtime.bundle.open import open_bundle
from edge_runtime.readings import Carry, Floats
from edge_runtime.store import shadow_process
from edge_runtime.store.shadow_process import ShadowError, ShadowProcess
from tests.support import bad_models, builders
from tests.support.waiting import patient


def process(draft: builders.Draft, folder: Path) -> ShadowProcess:
    """Of a draft."""
    bundle = open_bundle(draft.save(folder / "shadow.onnx"))
    return ShadowProcess(bundle.path, bundle.digest)


@pytest.fixture
def windows() -> Floats:
    """Five windows of one reading, all good."""
    return np.random.default_rng(3).normal(size=(5, 1, 2)).astype(np.float32)


def test_the_answers_are_those_of_the_model(tmp_path: Path, windows: Floats) -> None:
    """Bit for bit what the daemon itself would have got."""
    draft = builders.classification()
    asked = process(draft, tmp_path)
    header, body = asked.ask(windows.shape, windows.tobytes(), [])
    asked.end()
    expected = Model(open_bundle(tmp_path / "shadow.onnx")).run(windows)
    assert expected.label is not None
    assert expected.scores is not None
    assert header["arrays"] == {"label": ["int64", [5]], "scores": ["float32", [5, 2]]}
    assert body == expected.label.tobytes() + expected.scores.tobytes()
    assert header["took"] > 0


def test_a_recurrent_model_keeps_the_state_of_each_stream(tmp_path: Path) -> None:
    """Streams do not mix, and one that has a hole begins with the zero state."""
    draft = builders.stateful(length=1)
    asked = process(draft, tmp_path)
    model = Model(open_bundle(tmp_path / "shadow.onnx"))
    one = np.ones((1, 1, 2), np.float32)
    a, b = Carry(), Carry()
    for key, carry in (("a", a), ("a", a), ("b", b), ("a", a)):
        _, body = asked.ask(one.shape, one.tobytes(), [key])
        expected = model.run(one, [carry])
        assert expected.scores is not None
        assert body[8:] == expected.scores.tobytes()
    _, body = asked.ask(one.shape, one.tobytes(), ["a"], ["a"])
    asked.end()
    fresh = model.run(one, [Carry()])
    assert fresh.scores is not None
    assert body[8:] == fresh.scores.tobytes()


def test_a_window_that_it_cannot_take_is_an_answer(tmp_path: Path, windows: Floats) -> None:
    """The process lives on, and takes the next."""
    asked = process(builders.classification(), tmp_path)
    header, _ = asked.ask((5, 2, 1), windows.tobytes(), [])
    assert "error" in header
    assert "arrays" in asked.ask(windows.shape, windows.tobytes(), [])[0]
    asked.end()


def test_one_that_hangs_is_given_up(tmp_path: Path, windows: Floats, monkeypatch: pytest.MonkeyPatch) -> None:
    """No answer in time is the end."""
    asked = process(bad_models.hanging("1.1.0"), tmp_path)
    monkeypatch.setattr(shadow_process, "ANSWER_S", 0.5)
    windows[:] = bad_models.BAD
    with pytest.raises(ShadowError, match="hangs: no answer came in time"):
        asked.ask(windows.shape, windows.tobytes(), [])
    asked.end()


def test_one_that_crashes_is_named(tmp_path: Path, windows: Floats) -> None:
    """The signal says what happened."""
    asked = process(builders.classification(), tmp_path)
    os.kill(asked.pid, signal.SIGSEGV)
    asked._child.wait(patient(20))
    with pytest.raises(ShadowError, match=r"crashed onnxruntime \(SIGSEGV\)"):
        asked.ask(windows.shape, windows.tobytes(), [])
    asked.end()


def test_one_that_wants_too_much_memory_only_fails(tmp_path: Path, windows: Floats) -> None:
    """The limit is its own: what it cannot have is an error of that window."""
    asked = process(bad_models.greedy("1.1.0", 10_000_000_000), tmp_path)
    windows[:] = bad_models.BAD
    assert "error" in asked.ask(windows.shape, windows.tobytes(), [])[0]
    asked.end()


def test_another_file_than_was_checked_is_not_loaded(tmp_path: Path) -> None:
    """The digest is asked for again in the process."""
    path = builders.classification().save(tmp_path / "shadow.onnx")
    with pytest.raises(ShadowError, match=r"cannot be loaded: .*expected the file that was checked"):
        ShadowProcess(path, "0" * 64)


def test_it_ends_when_its_asker_is_gone(tmp_path: Path) -> None:
    """The end of its input is the end of it."""
    asked = process(builders.classification(), tmp_path)
    assert asked._child.stdin is not None
    asked._child.stdin.close()
    assert asked._child.wait(patient(20)) == 0
    asked.end()
