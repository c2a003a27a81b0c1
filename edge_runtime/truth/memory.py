"""The last predictions of one model, remembered until their truth is known, and the scores of its last labels.

Guarantee: noting a prediction is one append of a tuple without arrays. Any thread may drain the queue. A ring eight
times as long keeps the hashes of forgotten ids, so that truth for them counts as late. Withheld predictions (`publish`,
`min_interval`) have a queue of their own and never displace published ones.
"""

from array import array
from collections import deque
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from edge_runtime.bundle.model import Scores
from edge_runtime.readings import Prediction

if TYPE_CHECKING:
    from edge_runtime.stream.worker import ModelCall

FORGOTTEN_SHARE = 8  # hashes of forgotten ids for each remembered prediction

Answer = str | bool | list[float] | list[bool]  # a label, an anomaly or none, values, or whether each label is present
_Number = TypeVar("_Number", int, float)
_NotedTuple = tuple[str | None, float, int, str | None, Answer]  # as `Noted`


class Noted(NamedTuple):
    """A remembered prediction: the parts of its id, its key and time, and its answer."""

    key: str | None
    time: float
    seq: int
    identity: str | None
    answer: Answer


class Ring(Generic[_Number]):
    """The last numbers of a series, in no order.

    Args:
        numbers: an empty array of the wanted type.
        most: its largest length; a further number then replaces the oldest.
    """

    def __init__(self, numbers: "array[_Number]", most: int) -> None:
        self.numbers: array[_Number] = numbers
        self._most = most
        self._place = 0

    def __len__(self) -> int:
        return len(self.numbers)

    def add(self, number: _Number) -> None:
        """Add a number, in place of the oldest if the ring is full."""
        if len(self.numbers) < self._most:
            self.numbers.append(number)
        else:
            self.numbers[self._place] = number
            self._place = (self._place + 1) % self._most


class Forgotten:
    """Hashes of the last forgotten ids, each of the part behind the model. They hold for this process only.

    Args:
        most: the number of hashes.
    """

    def __init__(self, most: int) -> None:
        self._hashes = Ring(array("q"), most)

    def __len__(self) -> int:
        return len(self._hashes)

    def add(self, tail: str) -> None:
        """Add an id, in place of the oldest."""
        self._hashes.add(hash(tail))

    def __contains__(self, tail: str) -> bool:
        return hash(tail) in self._hashes.numbers


class Memory:
    """Takes the predictions of one pipeline (`AnswerTap`).

    Args:
        most: the number of published predictions to remember, and of withheld ones.
        start: the number of this start.

    Attributes:
        noted: the last published predictions that no joiner has taken yet, the oldest first.
        withheld: the same for withheld predictions.
        forgotten: ids that are no longer remembered.
        scores: the scores of the last labels, before any smoothing; None if the bundle has no calibrated confidence.
    """

    def __init__(self, most: int, start: int) -> None:
        self._most = most
        self._start = start
        self.noted: deque[_NotedTuple] = deque(maxlen=most)
        self.withheld: deque[_NotedTuple] = deque(maxlen=most)
        self.forgotten = Forgotten(FORGOTTEN_SHARE * most)
        self.scores: Ring[float] | None = None

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
        """Keep the hash of the oldest id if it has an identity; an id with a number shows its age by itself."""
        try:
            key, _, _, identity, _ = noted[0]
        except IndexError:  # taken meanwhile
            return
        if identity is not None:
            self.forgotten.add(f"{'-' if key is None else key}/{identity}")

    def drain(self) -> list[Noted]:
        """The predictions published since the last call, the oldest first."""
        return _drained(self.noted)

    def drain_withheld(self) -> list[Noted]:
        """The predictions withheld since the last call, the oldest first."""
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
    """The part of an id behind the model: `KEY/IDENTITY`, or `KEY/START/SEQ`."""
    key = "-" if noted.key is None else noted.key
    return f"{key}/{noted.identity}" if noted.identity is not None else f"{key}/{start}/{noted.seq}"


def word_of(answer: Answer) -> str:
    """The label, or `anomaly` or `normal`."""
    if isinstance(answer, bool):
        return "anomaly" if answer else "normal"
    return str(answer)
