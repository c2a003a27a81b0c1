"""Golden rows: as few bytes as the proof needs, in the type of the input."""

import base64

import numpy as np
import pytest

from converter.load.source import Answer
from converter.package import golden_rows, self_test
from edge_runtime.bundle.golden import golden_windows
from tests.support import builders


def answers(labels: list[int], margins: list[float]) -> Answer:
    """Labels, each with a lead over the other class."""
    label = np.array(labels)
    scores = np.zeros((len(label), int(label.max()) + 1), np.float32)
    scores[np.arange(len(label)), label] = margins
    return Answer(label=label, scores=scores)


def test_each_label_has_a_row_that_is_no_tie() -> None:
    """Of the rows of a label, the one whose lead is in the middle."""
    answer = answers([0, 0, 0, 1, 1, 1, 2], [0.0, 0.5, 1.0, 1.0, 0.6, 0.01, 0.4])
    assert golden_rows(answer, np.zeros((7, 1, 1), np.float32), 100).tolist() == [1, 4, 6]


@pytest.mark.parametrize(("room", "count"), [(100, 8), (5, 5), (1, 1), (0, 1)])
def test_rows_are_as_many_as_there_is_room_for(room: int, count: int) -> None:
    """Eight at most, and one however large it is."""
    labels = list(range(12)) * 2
    assert len(golden_rows(answers(labels, [0.5] * 24), np.zeros((24, 1, 1), np.float32), room)) == count


@pytest.mark.parametrize(("kind", "bytes_each"), [("int8", 1), ("float32", 4)])
def test_inputs_stand_in_their_own_type(kind: str, bytes_each: int) -> None:
    """A frame of int8 takes a quarter of the bytes, and comes back as the same numbers."""
    draft = builders.classification(length=2)
    windows = np.random.default_rng(0).integers(-128, 128, (20, 2, 2)).astype(np.float32)
    outputs = draft.run({"window": windows})
    answer = Answer(label=outputs["label"], scores=outputs["scores"])
    model = draft.model.SerializeToString()
    test = self_test(model, windows, answer, {}, invariant=True, rough=False, kind=kind)
    assert test.input.dtype == kind
    assert len(base64.b64decode(test.input.data)) == 3 * 4 * bytes_each
    assert golden_windows(test).dtype == np.float32
    assert {row.tobytes() for row in golden_windows(test)} <= {row.tobytes() for row in windows}


def test_numbers_that_the_type_cannot_hold_stay_as_they_are() -> None:
    """Readings in between whole numbers are kept in float32."""
    draft = builders.classification()
    windows = np.random.default_rng(0).normal(size=(20, 1, 2)).astype(np.float32)
    outputs = draft.run({"window": windows})
    answer = Answer(label=outputs["label"], scores=outputs["scores"])
    test = self_test(draft.model.SerializeToString(), windows, answer, {}, invariant=True, rough=False, kind="int8")
    assert test.input.dtype == "float32"
