"""Selects windows among the answers of one model, and passes them on with the reasons.

Beside the rules of the device file (`policy.py`), a window is captured on request, after an alarm about the input, and
when its label arrives while it is still in memory: the last windows stay there, at most `RECENT_BYTES`.
"""

from collections import deque
from collections.abc import Callable

import msgspec
import numpy as np

from edge_runtime.bundle.model import Scores
from edge_runtime.capture.entries import BundleFacts, Captured, CapturedChannel
from edge_runtime.capture.policy import CapturePolicy
from edge_runtime.capture.requests import LASTS_S, MOST_KEYS, WantedWindows
from edge_runtime.capture.ring import CaptureItem
from edge_runtime.config.tables import CaptureTable
from edge_runtime.delivery.payloads import prediction_id
from edge_runtime.readings import Prediction
from edge_runtime.stream.worker import LoadedBundle, ModelCall

ALARM_WINDOWS = 16  # after an alarm about the input, of each key that it concerns
ALARM_S = 3600.0
RECENT_BYTES = 1_048_576
MOST_NUMBERS = 1024  # of an output that is stored with the window; larger ones can be computed again
ENTRY_BYTES = 512  # of an entry without its window, about

REQUEST, ALARM, TRUTH = "request", "alarm", "truth"


class TapContext(msgspec.Struct, frozen=True, eq=False):
    """The facts and functions of the device that a tap uses.

    Attributes:
        table: `[capture]` of the device file.
        device: the device's id.
        start: the number of this start.
        chance: returns a random number from 0 (included) to 1 (excluded).
        now: returns the loop's time.
        is_clock_set: returns whether the wall clock is set.
    """

    table: CaptureTable
    device: str
    start: int
    chance: Callable[[], float]
    now: Callable[[], float]
    is_clock_set: Callable[[], bool]


class CaptureTap:
    """The tap of one model.

    Args:
        model: the model's name in the device file.
        context: of its device.
        keep: takes an item to write, and its approximate size in bytes.
    """

    def __init__(self, model: str, context: TapContext, keep: Callable[[CaptureItem, int], object]) -> None:
        self._model = model
        self._context = context
        self._keep = keep
        self._loaded: LoadedBundle | None = None
        self._wanted: WantedWindows | None = None
        self._alarmed: dict[str | None, WantedWindows] = {}
        self._alarm: WantedWindows | None = None  # of every key
        self._recent: deque[CaptureItem] | None = None
        self._recent_bytes = 0

    # --- calls of the daemon ----------------------------------------------------------------------------------------

    @property
    def requested(self) -> dict[str, int] | None:
        """The current request, and the number of its windows so far; None without one."""
        if self._wanted is None or self._wanted.is_over(self._context.now()):
            return None
        return {"windows": self._wanted.windows, "taken": self._wanted.taken}

    def follow_request(self, windows: int) -> None:
        """Capture the next windows of each key; 0 ends the request."""
        self._wanted = WantedWindows(windows, self._context.now() + LASTS_S) if windows else None

    def follow_alarm(self, key: str | None, *, every_key: bool) -> None:
        """Capture the next windows of one key, or of every key."""
        wanted = WantedWindows(ALARM_WINDOWS, self._context.now() + ALARM_S)
        if every_key:
            self._alarm = wanted
        elif key in self._alarmed or len(self._alarmed) < MOST_KEYS:
            self._alarmed[key] = wanted

    @property
    def value_names(self) -> tuple[str, ...]:
        """The names of a truth's numbers."""
        return () if self._loaded is None else self._facts.value_names

    def remember_recent(self, *, wanted: bool) -> None:
        """Keep the last windows in memory if labels may arrive for them, else none."""
        if wanted != (self._recent is not None):
            self._recent, self._recent_bytes = (deque() if wanted else None), 0

    def keep_recent(self, identity: str) -> None:
        """A label arrived for a prediction: capture its window if it is still in memory and not captured yet."""
        for item in self._recent or ():
            if isinstance(item.entry, Captured) and item.entry.id == identity:
                if not item.entry.reasons:
                    self._keep(item._replace(entry=msgspec.structs.replace(item.entry, reasons=(TRUTH,))), _size(item))
                return

    # --- each answer ------------------------------------------------------------------------------------------------

    def take(self, call: ModelCall, row: int, scores: Scores, prediction: Prediction | None) -> None:
        """Decide on one answer."""
        if call.loaded is not self._loaded:
            self._install(call.loaded)
        reasons = self._policy.reasons(scores, row)
        if self._wanted is not None or self._alarm is not None or self._alarmed:
            reasons = (*reasons, *self._asked(call.keys[row]))
        if reasons or self._recent is not None:
            item = CaptureItem(self._captured(call, row, scores, prediction, reasons=reasons), self._facts)
            if reasons:
                self._keep(item, _size(item))
            if self._recent is not None:
                self._remember(item)

    def _install(self, loaded: LoadedBundle) -> None:
        """Switch to another bundle."""
        self._loaded = loaded
        manifest, context = loaded.model.manifest, self._context
        self._policy = CapturePolicy(context.table, manifest, loaded.decider.threshold, context.chance)
        left = [place for place, name in enumerate(manifest.channel_names) if name not in context.table.exclude]
        shape = manifest.input.tensor_shape
        self._columns = None if len(left) == len(manifest.channel_names) else left
        if self._columns is not None:
            shape = (shape[0], len(left))
        channels = tuple(CapturedChannel(each.name, each.unit) for each in manifest.input.channels)
        self._facts = BundleFacts(
            device=context.device,
            model=self._model,
            name=manifest.name,
            version=manifest.version,
            digest=loaded.model.bundle.digest,
            task=manifest.task,
            channels=tuple(channels[place] for place in left),
            shape=shape,
            labels=manifest.output.labels,
            targets=tuple(target.name for target in manifest.output.targets),
            rate_hz=manifest.input.window.rate_hz,
            excluded=tuple(name for name in manifest.channel_names if name in context.table.exclude),
        )

    def _asked(self, key: str | None) -> tuple[str, ...]:
        """The reasons to capture a window of this key: `REQUEST` and `ALARM`, as they apply."""
        now, found = self._context.now(), []
        if self._wanted is not None and self._wanted.take(key, now):
            found.append(REQUEST)
        of_key = self._alarmed.get(key)
        if of_key is not None and not of_key.take(key, now):
            del self._alarmed[key]
            of_key = None
        every = self._alarm is not None and self._alarm.take(key, now)
        if of_key is not None or every:
            found.append(ALARM)
        return tuple(found)

    def _captured(
        self, call: ModelCall, row: int, scores: Scores, prediction: Prediction | None, *, reasons: tuple[str, ...]
    ) -> Captured:
        key, context = call.keys[row], self._context
        identified = prediction or call.loaded.decider.identify_withheld(call.identities[row], context.start)
        assert identified is not None, "what is not published was withheld"
        window = call.windows[row] if self._columns is None else call.windows[row][:, self._columns]
        return Captured(
            bundle=0,
            id=prediction_id(context.device, self._model, context.start, identified),
            published=prediction is not None,
            key=key,
            time=call.times[row],
            label=self._policy.label(scores, row),
            answer={
                name: numbers.tolist()
                for name, part in scores.arrays().items()
                if (numbers := np.ravel(part[row])).size <= MOST_NUMBERS
            },
            reasons=reasons,
            values=np.ascontiguousarray(window, "<f4").tobytes(),
            clock_set=context.is_clock_set(),
        )

    def _remember(self, item: CaptureItem) -> None:
        assert self._recent is not None
        self._recent.append(item)
        self._recent_bytes += _size(item)
        while self._recent_bytes > RECENT_BYTES:
            self._recent_bytes -= _size(self._recent.popleft())


def _size(item: CaptureItem) -> int:
    return ENTRY_BYTES + (len(item.entry.values) if isinstance(item.entry, Captured) else 0)
