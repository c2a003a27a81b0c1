"""The truth of one model: predictions without truth, counts, and the handling of each truth that arrives.

Guarantee: every truth is joined, waits, or is refused with a reason in a sentence of bounded length. Truth may arrive
before its prediction, for example from a machine that publishes it with the reading: it waits for `WAIT_S`, then counts
as unknown. Truth by key and time that is later than every prediction of its key, but within `tolerance` of the last,
waits for `NEAR_WAIT_S`: the prediction that it means may be the next one. Weak points: beyond `MOST_EARLY` waiting
truths, a further one does not wait; a prediction that takes longer than these times is not waited for.
"""

from array import array
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import msgspec
import numpy as np

from edge_runtime.bundle.manifest import Manifest
from edge_runtime.bundle.model import Model
from edge_runtime.bundle.uncertainty import chance_right
from edge_runtime.config.tables import TruthTable
from edge_runtime.stream.origin import TimeReader, zone_of
from edge_runtime.truth.memory import Memory, Ring

if TYPE_CHECKING:
    from edge_runtime.truth.figures import TruthFigures
    from edge_runtime.truth.joiner import Remembered, TruthJoiner, Unmatched
    from edge_runtime.truth.messages import TruthMessage

LEAST_ESTIMATED = 30  # windows: an estimate from fewer would be too noisy
WAIT_S = 10.0
NEAR_WAIT_S = 2.0
MOST_EARLY = 1000  # truths of one model that wait for their prediction
MOST_WAITING_CHARACTERS = 512  # of the id or key of such a truth; no prediction has longer ones


class TruthOutcome(msgspec.Struct, frozen=True):
    """The result of handling a truth.

    Attributes:
        result: `joined`, `waiting`, a reason of `joiner.py` or `messages.py`, or `unknown_model`.
        why: one sentence if it was not joined.
        id: the id of its prediction.
        right: whether the prediction was right; None for values, and if it was not joined.
    """

    result: str
    why: str = ""
    id: str | None = None
    right: bool | None = None


class SavedFigures(msgspec.Struct):
    """The saved state of a model: the figures of its bundle, and the predictions without truth."""

    digest: str
    figures: dict[str, Any]
    remembered: list[Any] = []


class Taken(NamedTuple):
    """The result of handling a truth, and the prediction that it was joined to."""

    outcome: TruthOutcome
    found: "Remembered | None" = None


class _Early(NamedTuple):
    """A truth that waits for its prediction."""

    truth: "TruthMessage"
    until: float


class ModelTruth:
    """The truth of one model. Its joiner is made with the first truth.

    Args:
        table: `[truth]`.
        start: the number of this start.
        model: the loaded bundle.
        prefix: the prefix of its predictions' ids, `DEVICE/MODEL/`.
    """

    def __init__(self, table: TruthTable, start: int, model: Model, prefix: str) -> None:
        self.memory = Memory(table.remember, start)
        self._table = table
        self._start = start
        self._prefix = prefix
        self._times = TimeReader(unit=table.time_unit, zone=zone_of(table.time_zone))
        self._joiner: TruthJoiner | None = None
        self._figures: TruthFigures | None = None
        self._early: deque[_Early] = deque()
        self._use(model)

    def _use(self, model: Model) -> None:
        self.manifest: Manifest = model.manifest
        self.digest = model.bundle.digest
        sure = model.manifest.uncertainty
        self._confidence = None if sure is None else sure.confidence
        self.memory.scores = None if self._confidence is None else Ring(array("d"), self._table.remember)
        self.published_estimate: float | None = None  # the estimate that was published last
        self._targets = tuple(target.name for target in model.manifest.output.targets)

    @property
    def figures(self) -> "TruthFigures":
        """The counts; made on first use."""
        if self._figures is None:
            from edge_runtime.truth.figures import TruthFigures  # noqa: PLC0415 - with the first truth

            self._figures = TruthFigures()
        return self._figures

    @property
    def is_silent(self) -> bool:
        """There are neither counts nor an estimate."""
        return (self._figures is None or self._figures.is_empty) and self.estimate() is None

    @property
    def is_waited_for(self) -> bool:
        """Some truth waits for its prediction."""
        return bool(self._early)

    def estimate(self) -> float | None:
        """The accuracy over the last windows, as expected from their scores; None with too few windows."""
        scores = self.memory.scores
        if scores is None or self._confidence is None or len(scores) < LEAST_ESTIMATED:
            return None
        mean = float(chance_right(self._confidence, np.array(scores.numbers)).mean())
        return float(f"{mean:.4g}")

    @property
    def joiner(self) -> "TruthJoiner":
        """The joiner, with all predictions up to now."""
        if self._joiner is None:
            from edge_runtime.truth.joiner import TruthJoiner  # noqa: PLC0415 - with the first truth

            self._joiner = TruthJoiner(self._table.remember, self._table.tolerance, self._start, self.memory.forgotten)
        self._joiner.add(self.memory.drain())
        self._joiner.add(self.memory.drain_withheld(), withheld=True)
        return self._joiner

    def exchange(self, model: Model) -> None:
        """Use another bundle: the figures start empty, and truth for predictions of the last bundle is late."""
        if model.bundle.digest == self.digest:
            return
        if self._joiner is not None or self.memory.noted or self.memory.withheld:
            self.joiner.forget_all()
        self._use(model)
        self._figures = None

    # --- received truth ---------------------------------------------------------------------------------------------

    def take(self, body: bytes, now: float) -> Taken:
        """Join one truth."""
        from edge_runtime.truth.messages import TruthError, read_truth  # noqa: PLC0415 - with the first truth

        try:
            truth = read_truth(body, self.manifest, self._times)
        except TruthError as error:
            self.figures.note_refused(error.reason)
            return Taken(TruthOutcome(error.reason, str(error)))
        found = self._find(truth)
        if self._may_wait(truth) and self._is_early(truth, found):
            self._early.append(_Early(truth, now + (WAIT_S if found == "unknown" else NEAR_WAIT_S)))
            return Taken(TruthOutcome("waiting"))
        return self._join(truth, found)

    def take_early(self, now: float) -> list[Taken]:
        """Join the truths that arrived before their predictions, and end the wait of those that waited long enough."""
        early, self._early = self._early, deque()
        done = []
        for truth, until in early:
            found = self._find(truth)
            if now < until and self._is_early(truth, found):
                self._early.append(_Early(truth, until))
            else:
                done.append(self._join(truth, found))
        return done

    def _find(self, truth: "TruthMessage") -> "Remembered | Unmatched":
        if truth.id is None:
            return self.joiner.by_time(truth.key, truth.time)
        if truth.id.startswith(self._prefix):
            return self.joiner.by_id(truth.id.removeprefix(self._prefix))
        return "unknown"

    def _may_wait(self, truth: "TruthMessage") -> bool:
        named = truth.id or truth.key or ""
        return len(self._early) < MOST_EARLY and len(named) <= len(self._prefix) + MOST_WAITING_CHARACTERS

    def _is_early(self, truth: "TruthMessage", found: "Remembered | Unmatched") -> bool:
        """Whether the prediction that this truth means may still be made."""
        if truth.id is None:
            return self.joiner.is_early(truth.key, truth.time)
        is_ours = truth.id.startswith(self._prefix)
        return found == "unknown" and is_ours and self.joiner.may_follow(truth.id.removeprefix(self._prefix))

    def _join(self, truth: "TruthMessage", found: "Remembered | Unmatched") -> Taken:
        if isinstance(found, str):
            self.figures.note_unmatched(found)
            why = _WHY[found].format(meant=self._meant(truth), most=self._table.remember, hint=self._hint(truth))
            return Taken(TruthOutcome(found, why))
        first = found.truth
        again = self.joiner.settle(found, truth.answer)
        if again is not None:
            self.figures.note_unmatched(again)
            words = self._in_words(first), self._in_words(truth.answer)
            why = _WHY[again].format(meant=self._meant(truth), first=words[0], second=words[1])
            return Taken(TruthOutcome(again, why))
        self.figures.withheld += found.withheld
        if self.manifest.task == "multilabel":
            labels = self.manifest.output.labels
            predicted, right = cast("list[bool]", found.answer), cast("list[bool]", truth.answer)
            is_right: bool | None = self.figures.judge_labels(predicted, right, labels)
        else:
            is_right = self.figures.judge(found.answer, truth.answer, self._targets)
        return Taken(TruthOutcome("joined", id=self._prefix + found.tail, right=is_right), found)

    def _meant(self, truth: "TruthMessage") -> str:
        from edge_runtime.truth.messages import shown  # noqa: PLC0415 - with the first truth

        return f"key {shown(truth.key)} at {truth.time:.6f}" if truth.id is None else shown(truth.id)

    def _hint(self, truth: "TruthMessage") -> str:
        """The likely mistake in a truth without a prediction."""
        from edge_runtime.truth.messages import shown  # noqa: PLC0415 - with the first truth

        if truth.id is not None:
            if truth.id.startswith(self._prefix):
                return ""
            return f"; ids of this model begin with {shown(self._prefix)}"
        distance = self.joiner.distance(truth.key, truth.time)
        if distance is None:
            return "; no prediction of this key is remembered"
        return f"; the nearest is {abs(distance):.1f} s {'later' if distance > 0 else 'earlier'}: compare the clocks"

    def _in_words(self, answer: Any) -> str:
        from edge_runtime.truth.messages import shown  # noqa: PLC0415 - with the first truth

        if self.manifest.task == "multilabel" and isinstance(answer, list):
            return shown([label for label, there in zip(self.manifest.output.labels, answer, strict=True) if there])
        return shown(answer)

    # --- document and saved state -----------------------------------------------------------------------------------

    def document(self) -> dict[str, Any]:
        """The document, without the names of device and model."""
        from edge_runtime.truth.joiner import UNMATCHED  # noqa: PLC0415

        figures = self.figures
        unmatched = {reason: figures.unmatched.get(reason, 0) for reason in UNMATCHED}
        return {
            "version": self.manifest.version,
            **figures.document(),
            "withheld": figures.withheld,
            "estimated": self.estimate(),
            "estimated_over": 0 if self.memory.scores is None else len(self.memory.scores),
            "unmatched": unmatched,
            "refused": figures.refused,
        }

    def save(self, *, whole: bool) -> SavedFigures | None:
        """The state to save; with `whole` also the predictions without truth."""
        if self._joiner is None and self._figures is None:
            return None
        remembered = [msgspec.to_builtins(each) for each in self.joiner.remembered] if whole else []
        return SavedFigures(self.digest, msgspec.to_builtins(self.figures), remembered)

    def restore(self, saved: SavedFigures) -> None:
        """Continue from the saved state if the bundle is the same."""
        from edge_runtime.truth.figures import TruthFigures  # noqa: PLC0415
        from edge_runtime.truth.joiner import Remembered  # noqa: PLC0415

        if saved.digest != self.digest:
            return
        self._figures = msgspec.convert(saved.figures, TruthFigures)
        for each in saved.remembered:
            self.joiner.restore(msgspec.convert(each, Remembered))


_WHY: Mapping[str, str] = {
    "unknown": "no prediction is remembered for {meant}: send the id of a prediction, or the key and time of one{hint}",
    "late": "the prediction for {meant} is forgotten: send truth sooner, or raise [truth] remember, now {most}",
    "twice": "the truth for {meant} is known already: {first}",
    "conflict": "the truth for {meant} is known already as {first}, and now {second}: the first one stands",
}
