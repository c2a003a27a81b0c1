"""The last predictions of one model, remembered until their truth is known, and the scores of its last labels.

Guarantee: noting a prediction is one append of a tuple that holds no array. The queue is drained in any thread. Hashes
of forgotten ids are kept, in a ring eight times as long, so that truth for them is known to be late. Predictions that
were withheld (`publish`, `min_interval`) have a queue of their own, so that they push out none that was published.
"""

from array import array
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from edge_runtime.bundle.model import Scores
from edge_runtime.readings import Prediction

if TYPE_CHECKING:
    from edge_runtime.stream.worker import ModelCall

FORGOTTEN_SHARE = 8  # hashes of forgotten ids, for each prediction that is remembered

Answer = str | bool | list[float] | list[bool]  # a label, an anomaly or none, values, or whether each label is there


_NotedTuple = tuple[str | None, float, int, str | None, Answer]  # as `Noted`


class Noted(NamedTuple):
    """What is remembered of a prediction: what its id is made of, its key and time, and what it said."""

    key: str | None
    time: float
    seq: int
    identity: str | None
    answer: Answer


class Forgotten:
    """Hashes of the last ids that were forgotten, by what stands in them behind the model.

    Args:
        most: how many.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._ring = array("q")
        self._place = 0

    def __len__(self) -> int:
        return len(self._ring)

    def add(self, tail: str) -> None:
        """One more; the oldest goes."""
        if len(self._ring) < self._most:
            self._ring.append(hash(tail))  # of this process: nothing of it is kept
        else:
            self._ring[self._place] = hash(tail)
            self._place = (self._place + 1) % self._most

    def __contains__(self, tail: str) -> bool:
        return hash(tail) in self._ring


class LastScores:
    """The scores of the last labels.

    Args:
        most: how many.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._ring = array("d")
        self._place = 0

    def __len__(self) -> int:
        return len(self._ring)

    def add(self, score: float) -> None:
        """One more; the oldest goes."""
        if len(self._ring) < self._most:
            self._ring.append(score)
        else:
            self._ring[self._place] = score
            self._place = (self._place + 1) % self._most

    @property
    def values(self) -> list[float]:
        """In no order."""
        return self._ring.tolist()


class Memory:
    """Takes the predictions of one pipeline (`AnswerTap`).

    Args:
        most: how many are remembered, and of those that were withheld as many again.
        start: the number of this start.

    Attributes:
        noted: the last predictions that no joiner has taken yet, the oldest first.
        withheld: the same of those that were withheld.
        forgotten: the ids that are not remembered any more.
        scores: of the last labels, before any smoothing; None where the bundle does not say what they promise.
    """

    def __init__(self, most: int, start: int) -> None:
        self._most = most
        self._start = start
        self.noted: deque[_NotedTuple] = deque(maxlen=most)
        self.withheld: deque[_NotedTuple] = deque(maxlen=most)
        self.forgotten = Forgotten(FORGOTTEN_SHARE * most)
        self.scores: LastScores | None = None

    def take(self, call: "ModelCall", row: int, scores: Scores, prediction: Prediction | None) -> None:
        """Remember a prediction, and the score of every label."""
        if self.scores is not None and scores.label is not None and scores.scores is not None:
            self.scores.add(float(scores.scores[row, scores.label[row]]))
        own = call.identities[row]
        if prediction is not None:
            self._note(prediction, own, self.noted)
        elif (withheld := call.loaded.decider.identify_withheld(own, self._start)) is not None:
            self._note(withheld, own, self.withheld)

    def _note(self, prediction: Prediction, own: str | None, noted: deque[_NotedTuple]) -> None:
        answer: Answer | None = prediction.label
        if answer is None:
            answer = prediction.anomaly
        if answer is None:
            if prediction.values is not None:
                answer = prediction.values.tolist()
            elif prediction.tensors is not None:
                answer = (prediction.tensors["labels"] != 0).tolist()
            else:
                return
        if own is not None and len(noted) == self._most:
            self._forget_oldest(noted)
        # No `Noted`: it costs twice.
        noted.append((prediction.key, prediction.time, prediction.seq, prediction.identity, answer))

    def _forget_oldest(self, noted: deque[_NotedTuple]) -> None:
        """An id with a number tells by itself that it is old; one with an identity does not."""
        try:
            key, _, _, identity, _ = noted[0]
        except IndexError:  # taken meanwhile
            return
        if identity is not None:
            self.forgotten.add(f"{'-' if key is None else key}/{identity}")

    def drain(self) -> list[Noted]:
        """What was published since the last call, the oldest first."""
        return _drained(self.noted)

    def drain_withheld(self) -> list[Noted]:
        """What was withheld since the last call, the oldest first."""
        return _drained(self.withheld)


def _drained(noted: deque[_NotedTuple]) -> list[Noted]:
    found = []
    while noted:
        try:
            found.append(Noted(*noted.popleft()))
        except IndexError:  # the loop's thread has replaced the last one meanwhile
            break
    return found


def tail_of(noted: Noted, start: int) -> str:
    """What stands in an id behind the model: `KEY/IDENTITY`, or `KEY/START/SEQ`."""
    key = "-" if noted.key is None else noted.key
    return f"{key}/{noted.identity}" if noted.identity is not None else f"{key}/{start}/{noted.seq}"


def word_of(answer: Answer) -> str:
    """A label, or the word for an anomaly or none."""
    if isinstance(answer, bool):
        return "anomaly" if answer else "normal"
    return str(answer)
