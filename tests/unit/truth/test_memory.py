"""What is remembered of predictions until their truth is known; the ring of last numbers against a plain queue."""

import random
from array import array
from collections import deque
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from edge_runtime.bundle.model import Scores
from edge_runtime.readings import Prediction
from edge_runtime.truth.memory import FORGOTTEN_SHARE, Forgotten, Memory, Noted, Ring, tail_of, word_of


@pytest.mark.parametrize("most", [1, 3, 8])
def test_a_ring_holds_the_last_numbers(most: int) -> None:
    """Numbers up to and beyond the length, for several lengths."""
    chance = random.Random(most)
    ring, plain = Ring(array("d"), most), deque[float](maxlen=most)
    for _ in range(5 * most):
        number = chance.random()
        ring.add(number)
        plain.append(number)
        assert sorted(ring.numbers) == sorted(plain)
        assert len(ring) == len(plain)


def test_the_oldest_forgotten_ids_leave() -> None:
    """Three ids in room for two; another id was never there."""
    forgotten = Forgotten(2)
    for tail in ("k/1", "k/2", "k/3"):
        forgotten.add(tail)
    assert [tail in forgotten for tail in ("k/1", "k/2", "k/3", "k/4")] == [False, True, True, False]
    assert len(forgotten) == 2


def _take(
    memory: Memory, prediction: Prediction | None, *, own: str | None = None, scores: Scores | None = None
) -> None:
    """One answer of a model; a withheld one is named by its own identity."""
    decider = SimpleNamespace(
        identify_withheld=lambda identity, start: (
            None if identity is None else Prediction("w", 1.0, start, identity, label="low")
        )
    )
    call = SimpleNamespace(identities=["other", own], loaded=SimpleNamespace(decider=decider))
    memory.take(cast("Any", call), 1, scores or Scores(), prediction)


def _labelled(identity: str | None, *, key: str | None = "k", seq: int = 1) -> Prediction:
    return Prediction(key, 5.0, seq, identity, label="high")


def test_predictions_are_drained_once_in_their_order() -> None:
    """The last `most` of them, with key, time, number, identity and answer."""
    memory = Memory(2, 9)
    for seq in (1, 2, 3):
        _take(memory, _labelled(None, seq=seq))
    assert memory.drain() == [Noted("k", 5.0, 2, None, "high"), Noted("k", 5.0, 3, None, "high")]
    assert memory.drain() == memory.drain_withheld() == []


def test_a_withheld_prediction_displaces_no_published_one() -> None:
    """It is remembered by itself, if it can be named."""
    memory = Memory(1, 9)
    _take(memory, _labelled("a"), own="a")
    _take(memory, None, own="b")
    _take(memory, None, own=None)
    assert memory.drain() == [Noted("k", 5.0, 1, "a", "high")]
    assert memory.drain_withheld() == [Noted("w", 1.0, 9, "b", "low")]


@pytest.mark.parametrize(
    ("given", "answer"),
    [
        ({"label": "high"}, "high"),
        ({"anomaly": False}, False),
        ({"anomaly": True, "score": 3.0}, True),
        ({"values": np.array([1.5, 2.0], np.float32)}, [1.5, 2.0]),
        ({"tensors": {"labels": np.array([0, 1, 1])}}, [False, True, True]),
    ],
)
def test_the_answer_of_every_task_is_remembered(given: dict[str, Any], answer: Any) -> None:
    """Without arrays."""
    memory = Memory(1, 9)
    _take(memory, Prediction("k", 5.0, 1, None, **given))
    (found,) = memory.drain()
    assert found.answer == answer
    assert type(found.answer) is type(answer)


def test_an_answer_that_has_no_truth_is_not_remembered() -> None:
    """Neither a label nor values."""
    memory = Memory(1, 9)
    _take(memory, Prediction("k", 5.0, 1, None, score=3.0))
    assert memory.drain() == []


def test_the_id_of_a_forgotten_prediction_is_known_to_be_late() -> None:
    """By its key and identity; one with a number shows its age by itself, and is not kept."""
    memory = Memory(2, 9)
    _take(memory, _labelled("a", key=None), own="a")
    _take(memory, _labelled("b"), own="b")
    assert len(memory.forgotten) == 0
    _take(memory, _labelled("c"), own="c")
    assert "-/a" in memory.forgotten
    assert "k/b" not in memory.forgotten
    _take(memory, _labelled(None, seq=7), own=None)
    assert len(memory.forgotten) == 1
    _take(memory, _labelled("d"), own="d")
    _take(memory, _labelled("e"), own="e")
    assert [tail in memory.forgotten for tail in ("k/b", "k/c", "k/None", "k/9/7")] == [False, True, False, False]
    for number in range(100):
        _take(memory, _labelled(f"n{number}"), own=f"n{number}")
    assert len(memory.forgotten) == FORGOTTEN_SHARE * 2 == 16


def test_an_oldest_one_that_was_taken_meanwhile_is_not_forgotten() -> None:
    """A thread may drain the queue between two looks at it."""
    memory = Memory(1, 9)
    memory._forget_oldest(memory.noted)
    assert len(memory.forgotten) == 0

    class _Emptied(deque[Any]):
        def __bool__(self) -> bool:
            return True

    memory.noted = _Emptied()
    assert memory.drain() == []


def test_the_scores_of_labels_are_kept_where_they_are_asked_for() -> None:
    """Of the label that the model gave, whether it is published or not."""
    scores = Scores(label=np.array([0, 1]), scores=np.array([[0.9, 0.1], [0.25, 0.75]], np.float32))
    memory = Memory(1, 9)
    _take(memory, _labelled("a"), scores=scores)
    assert memory.scores is None
    memory.scores = Ring(array("d"), 2)
    _take(memory, _labelled("a"), scores=scores)
    _take(memory, None, scores=scores)
    _take(memory, _labelled("a"), scores=Scores(value=np.zeros((2, 1), np.float32)))
    _take(memory, _labelled("a"), scores=Scores(label=np.array([0, 1])))
    assert memory.scores.numbers.tolist() == [0.75, 0.75]


def test_an_id_is_key_and_identity_or_key_start_and_number() -> None:
    """A stream without a key is a dash."""
    assert tail_of(Noted("k", 0.0, 7, "a", "x"), 9) == "k/a"
    assert tail_of(Noted(None, 0.0, 7, None, "x"), 9) == "-/9/7"
    assert [word_of(answer) for answer in (True, False, "low")] == ["anomaly", "normal", "low"]
