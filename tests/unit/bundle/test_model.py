"""Windows into scores: the same bits however they come, and states that follow one another."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from edge_runtime.bundle import model as model_module
from edge_runtime.bundle.model import (
    Model,
    ModelError,
    ModelOptions,
    PackedStates,
    Scores,
    _bound_call,
    _layout_of,
    _named_call,
)
from edge_runtime.bundle.open import open_bundle
from edge_runtime.errors import BundleError
from edge_runtime.readings import Carry
from tests.support import builders


def _windows(count: int, *shape: int) -> Any:
    return np.random.default_rng(7).normal(size=(count, *shape)).astype(np.float32)


def _load(draft: builders.Draft, folder: Path, **options: Any) -> Model:
    return Model(open_bundle(draft.save(folder / "model.onnx")), ModelOptions(**options))


@pytest.mark.parametrize("max_batch", [1, 3, 7, 256])
def test_the_size_of_a_batch_does_not_show(max_batch: int, tmp_path: Path) -> None:
    """However the windows are cut into calls, the scores are the same bits, in the order of the windows."""
    draft = builders.classification(length=4)
    windows = _windows(20, 4, 2)
    found = _load(draft, tmp_path, max_batch=max_batch).run(windows)
    single = [_load(draft, tmp_path).run(window[None]) for window in windows]
    assert found.scores is not None
    assert found.label is not None
    assert found.scores.tobytes() == b"".join(one.scores.tobytes() for one in single if one.scores is not None)
    assert found.label.tolist() == [int(one.label[0]) for one in single if one.label is not None]


@pytest.mark.parametrize("flag", ["batch_invariant", "batch_free"])
def test_a_model_that_minds_its_neighbours_runs_alone(flag: str, tmp_path: Path) -> None:
    """A manifest that says so is believed: one window a call."""
    draft = builders.regression()
    draft.manifest[flag] = False
    model = _load(draft, tmp_path)
    sizes: list[int] = []
    call = model._call
    model._call = lambda windows, states: (sizes.append(len(windows)), call(windows, states))[1]  # type: ignore[func-returns-value,method-assign]
    found = model.run(_windows(5, 1, 2))
    assert sizes == [1] * 5
    assert found.value is not None
    assert found.value.shape == (5, 1)


@pytest.mark.parametrize(
    "draft", [builders.classification(length=4), builders.regression(), builders.anomaly(), builders.stateful()]
)
def test_a_lent_answer_is_the_same_bits_until_the_next_one(draft: builders.Draft, tmp_path: Path) -> None:
    """The short way of a single window gives what the long way gives, whatever the task, and so do several windows."""
    model = _load(draft, tmp_path)
    windows = _windows(6, *model.manifest.input.tensor_shape)
    carry, other = Carry(), Carry()
    for part in (windows[:1], windows[1:2], windows[2:5], windows[5:6]):
        lent, owned = model.run_borrowed(part, [carry] * len(part)), model.run(part, [other] * len(part))
        for name in ("label", "scores", "value", "score"):
            one, two = getattr(lent, name), getattr(owned, name)
            assert (one is None) == (two is None)
            assert one is None or (one.dtype, one.shape, one.tobytes()) == (two.dtype, two.shape, two.tobytes())
        for one, two in zip(carry.parts or [], other.parts or [], strict=True):
            assert (one.shape, one.tobytes()) == (two.shape, two.tobytes())


def test_a_recurrent_model_goes_the_short_way_and_keeps_its_state_when_a_call_fails(tmp_path: Path) -> None:
    """States are bound too; a call that fails leaves the stream where it was, and a new stream begins at zero."""
    model = _load(builders.stateful(), tmp_path)
    windows = _windows(3, *model.manifest.input.tensor_shape)
    assert model._single is not None
    carry = Carry()
    model.run_borrowed(windows[:1], [carry])
    before = [part.copy() for part in carry.parts or []]
    assert any(part.any() for part in before)

    def fail() -> None:
        raise RuntimeError("no memory")

    call, model._single._call = model._single._call, fail
    with pytest.raises(ModelError, match="no memory"):
        model.run_borrowed(windows[1:2], [carry])
    model._single._call = call
    assert [part.tobytes() for part in carry.parts or []] == [part.tobytes() for part in before]
    fresh, alone = model.run_borrowed(windows[2:], [Carry()]).arrays(), model.run(windows[2:]).arrays()
    assert all(fresh[name].tobytes() == part.tobytes() for name, part in alone.items())


def test_the_states_of_a_stream_are_views_of_one_block(tmp_path: Path) -> None:
    """Each begins at 64 bytes; there are as many as the model has, and a list of arrays from elsewhere is taken too."""
    layout = _layout_of([(2, 3), (), (17,), (1, 1, 4)])
    assert [(place.start, place.stop) for place in layout] == [(0, 6), (16, 17), (32, 49), (64, 68)]
    states = PackedStates(np.arange(68, dtype=np.float32), layout)
    assert [part.shape for part in states] == [(2, 3), (), (17,), (1, 1, 4)]
    assert [part.ravel().tolist() for part in states] == [
        [float(number) for number in range(place.start, place.stop)] for place in layout
    ]
    states[2][...] = 0.0
    assert not states.block[32:49].any()
    with pytest.raises(IndexError):
        states[4]
    model = _load(builders.stateful(), tmp_path)
    packed, plain, windows = Carry(), Carry(), _windows(4, 2, 2)
    for row in range(4):
        lent = model.run_borrowed(windows[row : row + 1], [packed]).arrays()
        one = {name: part.tobytes() for name, part in lent.items()}
        plain.parts = None if plain.parts is None else [part.copy() for part in plain.parts]
        lent = model.run_borrowed(windows[row : row + 1], [plain]).arrays()
        assert one == {name: part.tobytes() for name, part in lent.items()}


def test_a_bound_call_goes_past_the_wrapper_where_it_knows_the_inside(tmp_path: Path) -> None:
    """This onnxruntime is called directly; one that looks different inside is called as it asks to be."""
    path = builders.regression().save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    call: Any = _bound_call(session, session.io_binding())
    assert call.func == session._sess.run_with_iobinding

    class Other:
        """A session without an inside."""

        def run_with_iobinding(self, binding: str) -> str:
            return f"ran over {binding}"

    assert _bound_call(Other(), "the buffers")() == "ran over the buffers"


def test_a_call_with_names_goes_past_the_wrapper_where_it_knows_the_inside(tmp_path: Path) -> None:
    """The same bits as the wrapper's, and its error for an input that is not there; another release is called whole."""
    path = builders.regression().save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    call, windows = _named_call(session), _windows(5, *open_bundle(path).manifest.input.tensor_shape)
    names = [output.name for output in session.get_outputs()]
    for found, wanted in zip(call(names, {"window": windows}), session.run(names, {"window": windows}), strict=True):
        assert (found.dtype, found.shape, found.tobytes()) == (wanted.dtype, wanted.shape, wanted.tobytes())
    with pytest.raises(InvalidArgument, match="strange"):
        call(names, {"strange": windows})

    class Other:
        """A session without an inside."""

        def run(self, names: list[str], feeds: dict[str, Any]) -> list[Any]:
            return [names, feeds]

    assert _named_call(Other())(["value"], {}) == [["value"], {}]


def test_a_lent_answer_to_a_window_of_the_wrong_shape_is_an_error(tmp_path: Path) -> None:
    """Nothing is stretched to fit."""
    with pytest.raises(ModelError):
        _load(builders.regression(), tmp_path).run_borrowed(_windows(1, 1, 1))


def test_a_stream_of_a_recurrent_model_is_the_run_of_its_recording(tmp_path: Path) -> None:
    """Interleaved with others and cut into batches anyhow, a stream's scores are those of it alone, one by one."""
    model = _load(builders.stateful(), tmp_path, max_batch=3)
    windows = _windows(24, 2, 2)
    owners = [0, 1, 0, 0, 2, 1, 1, 0, 2, 2, 0, 1] * 2
    carries = [Carry(), Carry(), Carry()]
    found = []
    for start, stop in ((0, 1), (1, 9), (9, 10), (10, 24)):
        scores = model.run(windows[start:stop], [carries[owner] for owner in owners[start:stop]]).scores
        assert scores is not None
        found += list(scores)
    for owner in range(3):
        alone = Carry()
        for index in (i for i, each in enumerate(owners) if each == owner):
            scores = model.run(windows[index : index + 1], [alone]).scores
            assert scores is not None
            assert np.array_equal(scores[0], found[index])


def test_a_call_that_fails_leaves_every_state_as_it_was(tmp_path: Path) -> None:
    """Windows that are tried again one by one must not step their stream twice."""
    model = _load(builders.stateful(), tmp_path)
    carry = Carry()
    windows = _windows(3, 2, 2)
    model.run(windows[:1], [carry])
    assert carry.parts is not None
    before = carry.parts[0].copy()
    call, calls = model._call, []

    def fail_at_second(windows: Any, states: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise ModelError("poison")
        return call(windows, states)

    model._call = fail_at_second  # type: ignore[method-assign]
    with pytest.raises(ModelError, match="poison"):
        model.run(windows, [carry] * 3)
    assert np.array_equal(carry.parts[0], before)


def test_a_file_that_changed_after_it_was_checked_is_refused(tmp_path: Path) -> None:
    """What was judged is what is run."""
    path = builders.regression().save(tmp_path / "model.onnx")
    bundle = open_bundle(path)
    builders.regression(seed=9).save(path)
    with pytest.raises(BundleError, match="expected the file that was checked, found another: install it again"):
        Model(bundle)


def test_a_window_of_the_wrong_shape_is_an_error_of_the_model(tmp_path: Path) -> None:
    """Onnxruntime's own exception is turned into ours, in one line."""
    with pytest.raises(ModelError) as error:
        _load(builders.regression(), tmp_path).run(_windows(1, 1, 5))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_are_named(bad: float) -> None:
    """One bad number condemns its row alone, in small batches and in large ones."""
    for count in (3, 300):
        table = np.zeros((count, 2), np.float32)
        assert Scores(value=table).finite_rows() is None
        table[1, 1] = bad
        rows = Scores(value=table).finite_rows()
        assert rows is not None
        assert np.flatnonzero(~rows).tolist() == [1]
        single = Scores(score=table[:, 1]).finite_rows()
        assert single is not None
        assert np.flatnonzero(~single).tolist() == [1]


def test_whatever_goes_wrong_inside_a_model_is_its_own_error(tmp_path: Path) -> None:
    """Also where not onnxruntime but the arithmetic around it fails: callers know one kind of failure."""
    model = _load(builders.stateful(), tmp_path)
    carry = Carry()
    carry.parts = [np.zeros(99, np.float32)]
    with pytest.raises(ModelError, match="drowsy: ValueError"):
        model.run(_windows(1, 2, 2), [carry])


def test_the_bytes_of_a_bundle_do_not_stay_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the session is made the file's bytes are released: a large model would take its size twice."""
    bundle = open_bundle(builders.classification().save(tmp_path / "model.onnx"))
    data = bundle.path.read_bytes()
    monkeypatch.setattr(model_module, "read_unchanged", lambda _: data)
    before = sys.getrefcount(data)
    model = Model(bundle)
    assert sys.getrefcount(data) == before
    assert len(model.run(_windows(2, *bundle.manifest.input.tensor_shape)).scores) == 2  # type: ignore[arg-type]
