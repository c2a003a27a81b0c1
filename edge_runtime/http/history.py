"""The history for the status page: the latest verdict of each key, the last hour by minutes, and alarms.

The loop's thread writes it for every prediction that becomes a message, also while no page is open; the server's thread
reads it for a page. They share no lock: parts of what is read may be one prediction older than others. Memory is
bounded: `MOST_KEYS` keys with `MOST_NUMBERS` numbers each (at most 0.7 MB), and `MOST_ALARMS` alarms; further ones are
counted. The history ends with the daemon. Minutes are those of the monotonic clock, so that a step of the wall clock
shifts none.
"""

import time
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from typing import Any

import numpy as np

from edge_runtime.readings import Prediction

MINUTES = 60
MOST_KEYS = 24
MOST_NUMBERS = 12  # of one key: labels, targets
MOST_ALARMS = 200

_Key = tuple[str, str | None]


class KeyHistory:
    """The last hour of one model and key.

    Args:
        names: of its numbers, in the order of the prediction.
        minute: the current one.
    """

    def __init__(self, names: tuple[str, ...], minute: int) -> None:
        self.names = names
        self.minute = minute
        self.counts = [0] * MINUTES
        self.alarms = [0] * MINUTES
        self._sums = np.zeros((MINUTES, len(names)))
        self._lows = np.full((MINUTES, len(names)), np.inf)
        self._highs = np.full((MINUTES, len(names)), -np.inf)
        self._last = np.zeros(len(names))
        self._latest: tuple[float, str | None, bool | None, bool] = (0.0, None, None, False)

    def add(self, prediction: Prediction, minute: int) -> None:
        """Take one prediction."""
        if minute != self.minute:
            self.turn(minute)
        slot = minute % MINUTES
        self.counts[slot] += 1
        self.alarms[slot] += prediction.alarm
        self._latest = (prediction.time, prediction.label, prediction.anomaly, prediction.alarm)
        row = prediction.scores if prediction.scores is not None else prediction.values
        if row is None and prediction.tensors is not None and "labels" in prediction.tensors:
            row = prediction.tensors["scores"]  # of a multi-label model
        if row is None:
            if not self.names or prediction.score is None:
                return
            numbers = np.array([prediction.score])
        else:
            numbers = row[: len(self.names)]
        self._last[:] = numbers
        self._sums[slot] += numbers
        np.minimum(self._lows[slot], numbers, out=self._lows[slot])
        np.maximum(self._highs[slot], numbers, out=self._highs[slot])

    def turn(self, minute: int) -> None:
        """Clear the minutes that are reused."""
        for passed in range(max(self.minute + 1, minute - MINUTES + 1), minute + 1):
            slot = passed % MINUTES
            self.counts[slot] = self.alarms[slot] = 0
            self._sums[slot] = 0.0
            self._lows[slot], self._highs[slot] = np.inf, -np.inf
        self.minute = minute

    def document(self, now: int) -> dict[str, Any]:
        """The hour that ends with the minute `now`, oldest first; null for a minute without predictions."""
        minutes = range(now - MINUTES + 1, now + 1)
        slots = [m % MINUTES if self.minute - MINUTES < m <= self.minute else None for m in minutes]
        counts = [0 if slot is None else self.counts[slot] for slot in slots]
        filled = [slot if count else None for slot, count in zip(slots, counts, strict=True)]
        moment, label, anomaly, alarm = self._latest
        return {
            "time": _iso(moment),
            "label": label,
            "anomaly": anomaly,
            "alarm": alarm,
            "counts": counts,
            "alarms": [0 if slot is None else self.alarms[slot] for slot in slots],
            "numbers": {
                name: {
                    "last": _short(self._last[place]),
                    "mean": [
                        None if slot is None else _short(self._sums[slot, place] / max(self.counts[slot], 1))
                        for slot in filled
                    ],
                    "low": [None if slot is None else _short(self._lows[slot, place]) for slot in filled],
                    "high": [None if slot is None else _short(self._highs[slot, place]) for slot in filled],
                }
                for place, name in enumerate(self.names)
            },
        }


class History:
    """The history of every model and key of a daemon.

    Args:
        minute: returns the current minute of a clock that never steps.
    """

    def __init__(self, minute: Callable[[], int] = lambda: int(time.monotonic() // 60)) -> None:
        self._minute = minute
        self._keys: dict[_Key, KeyHistory] = {}
        self._alarms: dict[_Key, tuple[float, str]] = {}
        self._full_since = -1
        self._beyond: set[_Key] = set()

    # The loop's thread.

    def add(self, model: str, names: tuple[str, ...], prediction: Prediction) -> None:
        """Take one prediction of a model whose numbers have these names, the first `MOST_NUMBERS` of them."""
        key = model, prediction.key
        minute = self._minute()
        found = self._keys.get(key)
        if found is None or found.names != names:
            found = self._begin(key, names, minute)
        if found is not None:
            found.add(prediction, minute)
        if prediction.alarm:
            if key not in self._alarms:
                self._raise(key, prediction)
        elif self._alarms:
            self._alarms.pop(key, None)

    def keep(self, models: Collection[str]) -> None:
        """Forget every model but these."""
        for kept in (self._keys, self._alarms):
            for key in [each for each in kept if each[0] not in models]:
                del kept[key]
        self._beyond = {each for each in self._beyond if each[0] in models}

    def _begin(self, key: _Key, names: tuple[str, ...], minute: int) -> KeyHistory | None:
        """A history for a key; None if there are too many, and none of them has been silent for an hour."""
        if key not in self._keys and len(self._keys) >= MOST_KEYS:
            silent = None
            if self._full_since != minute:  # looked for once a minute, not for every prediction
                self._full_since = minute
                silent = next((each for each, kept in self._keys.items() if kept.minute <= minute - MINUTES), None)
            if silent is None:
                if len(self._beyond) < 10_000:
                    self._beyond.add(key)
                return None
            del self._keys[silent]
        self._beyond.discard(key)
        made = self._keys[key] = KeyHistory(names, minute)
        return made

    def _raise(self, key: _Key, prediction: Prediction) -> None:
        if len(self._alarms) < MOST_ALARMS:
            what = prediction.label or ("anomaly" if prediction.anomaly else "alarm")
            self._alarms[key] = prediction.time, what

    # The server's thread.

    def document(self) -> dict[str, Any]:
        """The document for a page: `keys`, `alarms`, and the number of further ones."""
        now = self._minute()
        alarms = [
            {"model": model, "key": key, "what": what, "since": _iso(since)}
            for (model, key), (since, what) in tuple(self._alarms.items())
        ]
        return {
            "minutes": MINUTES,
            "keys": [
                {"model": model, "key": key, **kept.document(now)} for (model, key), kept in tuple(self._keys.items())
            ],
            "more_keys": len(self._beyond),
            "alarms": alarms,
            "alarms_are_all": len(alarms) < MOST_ALARMS,
        }


def _short(value: float) -> float | None:
    """Four digits, which is more than a line of the page shows; null for what was not yet written."""
    return float(f"{value:.4g}") if np.isfinite(value) else None


def _iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
