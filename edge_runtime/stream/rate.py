"""Compares the rate of each key's stream with the rate of the model's window: reports, resamples or refuses. Pure.

A window of 100 readings covers ten seconds only at 10 Hz: fed at 20 Hz, a model gives wrong answers with high scores.
Four estimates of the interval between readings are compared with the one that the bundle names, and a stream is `off`
only where all of them differ by more than a tenth: the median interval, which lost readings do not move; the mean over
the time, which jitter and bursts do not move; the mean without pauses; and, where less than a third seems to be lost,
the mean over the number of readings without loss. Readings that arrive together are one burst; the interval of each is
its share of the time since the previous burst. Readings that arrive at once after a pause are a backlog.

`resample` brings a stream that is off to the model's rate (`resample.py`) and leaves the others unchanged, bit by bit.
The first readings of a key are held until its rate is known, at most as many as one verdict needs.

Guarantee: a wrong rate is known after as many readings as a window has, 8 at least and 32 at most, and a rate that
changes after half as many more; in bursts, after 8 of them. Memory: about 700 bytes a key. Weak points: a stream that
is too fast by a fifth and loses a fifth looks right; readings without a time are treated as evenly spaced.
"""

import math
from array import array
from collections.abc import Callable
from enum import IntEnum
from typing import Literal

import msgspec
import numpy as np

from edge_runtime.bundle.manifest import Manifest
from edge_runtime.config.tables import ModelTable
from edge_runtime.readings import Batch, Floats, Receipt
from edge_runtime.stream.resample import Resampler
from edge_runtime.system.log import fields, get_logger

TOLERANCE = 1.1  # a window may be longer or shorter by a tenth
_BACK = 1.05  # a stream that was off counts as right within this (hysteresis)
FEWEST, MOST = 8, 32  # readings for one verdict, and bursts of them
_MOST_LOST = 0.3  # of the readings; beyond it a slow stream and a lossy one look the same
_MOST_HELD = 4  # times the readings for one verdict: then a stream of unknown rate passes unchanged
_BURSTS = 3  # times the readings for one verdict, while there are fewer than `FEWEST` bursts
_TOGETHER = 0.2  # of the nominal period: closer readings belong to one burst
_PAUSE = 4.0  # intervals; a longer one counts as a pause
_FLOOD = 4.0  # times the nominal rate, or faster: a backlog, if a pause before it explains one
_FEW_KEYS = 16  # with so few, the median is computed each time
_MOST_OWED = 10_000.0  # readings that a pause explains, at most

_log = get_logger("model")

OnRate = Literal["warn", "resample", "reject"]
State = Literal["ok", "off", "unknown"]


class KeyRate:
    """The rate of one key.

    Args:
        nominal: seconds from one reading to the next, by the bundle.
        enough: readings for one verdict.

    Attributes:
        interval: the last measurement in seconds; None before the first verdict.
        state: the last verdict.
    """

    __slots__ = ("_counts", "_enough", "_last", "_nominal", "_owed", "_pending", "_spans", "interval", "state")

    def __init__(self, nominal: float, enough: int) -> None:
        self._nominal = nominal
        self._enough = enough
        self._spans = array("d")
        self._counts = array("d")
        self._pending = 0
        self._owed = 0.0
        self._last = math.nan
        self.interval: float | None = None
        self.state: State = "unknown"

    def measured(self, moment: float) -> bool:
        """Note a reading by its own time. True when there is a new verdict."""
        span = moment - self._last
        if span < 0.0:  # time went back: no measurement
            self._last, self._pending = moment, 0
            return False
        return self._add(1, moment, span, 0.0)

    def arrived(self, count: int, moment: float) -> bool:
        """Note readings that came together, by a monotonic clock. True when there is a new verdict."""
        span = moment - self._last
        if span > _PAUSE * self._nominal:
            self._owed = min(_MOST_OWED, self._owed + span / self._nominal)
        elif self._owed > 0.0:
            if span < self._nominal * count / _FLOOD:  # readings delayed by a pause arrive at once
                self._owed -= count
                self._last = moment
                return False
            self._owed = 0.0
        return self._add(count, moment, span, _TOGETHER * self._nominal)

    def _add(self, count: int, moment: float, span: float, together: float) -> bool:
        if not span > together:  # the first one, or one burst
            self._pending += count
            if self._last != self._last:
                self._last, self._pending = moment, 0
            return False
        count += self._pending
        self._pending = 0
        self._last = moment
        self._spans.append(span)
        self._counts.append(count)
        total = sum(self._counts)
        if total < self._enough or (len(self._spans) < FEWEST - 1 and total < _BURSTS * self._enough):
            return False
        self._judge()
        half = len(self._spans) // 2
        del self._spans[:half], self._counts[:half]
        return True

    def _judge(self) -> None:
        spans, counts = np.array(self._spans), np.array(self._counts)
        intervals = spans / counts
        order = np.argsort(intervals)
        at = int(np.searchsorted(np.cumsum(counts[order]), counts.sum() / 2.0))
        median = float(intervals[order[at]])
        calm = intervals <= _PAUSE * median
        estimates = [median, spans.sum() / counts.sum(), spans[calm].sum() / counts[calm].sum()]
        sent = np.maximum(counts, np.rint(spans / self._nominal))
        if np.count_nonzero(sent > counts) < _MOST_LOST * len(counts):
            estimates.append(spans.sum() / sent.sum())
        nearest = min(estimates, key=lambda interval: abs(math.log(interval / self._nominal)))
        tolerance = _BACK if self.state == "off" else TOLERANCE
        is_off = abs(math.log(nearest / self._nominal)) > math.log(tolerance)
        self.state = "off" if is_off else "ok"
        self.interval = median if is_off else float(nearest)


class Paced(msgspec.Struct, eq=False):
    """Readings at the model's rate; every list has one item a reading.

    Attributes:
        values: `[n, channels]` float32.
        keys: the stream of each.
        times: seconds; the times of the outputs if a stream was resampled.
        rows: for each, the index of the reading that triggered it.
        is_own: for each, whether it is that reading unchanged, and so has its identity.
    """

    values: Floats
    keys: list[str | None]
    times: list[float]
    rows: list[int]
    is_own: list[bool]

    def origins(
        self, batch: Batch, rows: list[int] | None, done: list[int]
    ) -> tuple[list[str | None], list[float], list[str | None], list[Receipt | None]]:
        """Key, time, identity and receipt of the windows that some of these readings complete.

        Args:
            batch: the original readings.
            rows: those of the batch that were paced; None for all.
            done: the completing ones, by their index here.
        """
        brought = [self.rows[place] if rows is None else rows[self.rows[place]] for place in done]
        times = [self.times[place] for place in done] if batch.own_times else [batch.times[row] for row in brought]
        own = [self.is_own[place] for place in done]
        identities = [batch.identities[row] if mine else None for row, mine in zip(brought, own, strict=True)]
        return [self.keys[place] for place in done], times, identities, [batch.receipts[row] for row in brought]


class _Side(IntEnum):
    """Where the interval of a key lies."""

    UNKNOWN, FAST, RIGHT, SLOW = range(4)


class _Stream:
    """The state of one key."""

    __slots__ = ("clock", "held", "rate", "resampler", "side", "taken")

    def __init__(self, rate: KeyRate) -> None:
        self.rate = rate
        self.held: list[tuple[float, Floats]] | None = []  # NaN for a time that it did not bring; None once decided
        self.resampler: Resampler | None = None
        self.taken = 0
        self.clock = 0.0  # of readings without a time of their own
        self.side = _Side.UNKNOWN  # where its last interval lies


class Pace:
    """The rates of all keys of one model, and the handling of streams that are off.

    Args:
        rate_hz: by the bundle.
        length: readings in a window.
        on_rate: the handling of a stream that is off.
        restart: restarts the window of a key.
        notice: called when the verdict on the model changes.
        holds: whether `resample` holds the first readings of a key until its rate is known.
        max_keys: up to twice as many keys are kept; the windows forget silent ones before that.
    """

    def __init__(
        self,
        rate_hz: float,
        length: int,
        on_rate: OnRate,
        *,
        restart: Callable[[str | None], object],
        notice: Callable[["Pace"], object],
        holds: bool = True,
        max_keys: int = 10_000,
    ) -> None:
        self._holds = holds
        self._nominal = 1.0 / rate_hz
        self._rate_hz = rate_hz
        self._length = length
        self._enough = max(FEWEST, min(MOST, length)) - 1  # so many intervals are between as many readings
        self._on_rate = on_rate
        self._restart = restart
        self._notice = notice
        self._max_keys = max_keys
        self._streams: dict[str | None, _Stream] = {}
        self._sides = [0] * len(_Side)  # keys by side
        self.state: State = "unknown"
        self.rejected = 0

    @property
    def rate_hz(self) -> float | None:
        """The median of the measured rates over the keys; None before the first measurement."""
        known = [stream.rate.interval for stream in self._streams.values() if stream.rate.interval is not None]
        return None if not known else float(1.0 / np.median(known))

    def report(self, batch: Batch, rows: list[int] | None) -> int:
        """The number of readings refused for their rate since the last call; one of them is reported to the source."""
        count, self.rejected = self.rejected, 0
        if count and batch.refuse is not None:
            batch.refuse(0 if rows is None else rows[0], "wrong_rate", self.explain(), count)
        return count

    def explain(self) -> str:
        """Both rates, and the effect on a window."""
        return rates_in_words(self._rate_hz, self.rate_hz or self._rate_hz, self._length)

    def take_over(self, other: "Pace") -> None:
        """Take over the state of another watch, which is not used any more, for windows of the same rate and length."""
        self.state = other.state
        if self._on_rate == other._on_rate:  # noqa: SLF001 - of our own kind
            self._streams, self._sides = other._streams, other._sides  # noqa: SLF001

    def forget(self, keys: list[str | None]) -> None:
        """Drop forgotten keys."""
        for key in keys:
            self._forget(key)

    def _forget(self, key: str | None) -> None:
        gone = self._streams.pop(key, None)
        if gone is not None:
            self._sides[gone.side] -= 1

    def measure(self, keys: list[str | None], times: list[float] | None, arrived: float) -> None:
        """Note the readings of one wake-up.

        Args:
            keys: the stream of each.
            times: their own, in seconds; None where they brought none.
            arrived: monotonic seconds: when they were read.
        """
        changed = False
        while len(self._streams) > 2 * self._max_keys:  # before the batch, so that all of its keys are present after it
            self._forget(next(iter(self._streams)))
        if times is None:
            for key, count in ({keys[0]: 1} if len(keys) == 1 else _counted(keys)).items():
                stream = self._stream(key)
                if stream.rate.arrived(count, arrived):
                    self._note(stream)
                    changed = True
        else:
            for key, moment in zip(keys, times, strict=True):
                stream = self._stream(key)
                if stream.rate.measured(moment):
                    self._note(stream)
                    changed = True
        if changed:
            self._conclude()

    def take(self, values: Floats, keys: list[str | None], times: list[float] | None, arrived: float) -> Paced | None:
        """Measure readings, and bring them to the model's rate. None if they pass unchanged."""
        self.measure(keys, times, arrived)
        if self._on_rate == "warn":
            return None
        groups: dict[str | None, list[int]] = {}
        for row, key in enumerate(keys):
            groups.setdefault(key, []).append(row)
        if all(self._is_plain(self._streams[key]) for key in groups):
            return None
        paced = Paced(np.empty((0, *values.shape[1:]), np.float32), [], [], [], [])
        parts = [paced.values]
        for key, rows in groups.items():
            moments = None if times is None else [times[row] for row in rows]
            parts.append(self._pass_on(paced, key, rows, values[rows], times=moments, arrived=arrived))
        paced.values = np.concatenate(parts)
        if len(groups) > 1:
            _in_order(paced)
        return paced

    def _is_plain(self, stream: _Stream) -> bool:
        """Its readings pass unchanged, and none are held."""
        return stream.held is None and stream.resampler is None and stream.rate.state != "off"

    def _pass_on(
        self,
        paced: Paced,
        key: str | None,
        rows: list[int],
        values: Floats,
        *,
        times: list[float] | None,
        arrived: float,
    ) -> Floats:
        stream = self._streams[key]
        if self._on_rate == "reject":
            stream.held = None
            if stream.rate.state == "off":
                self._restart(key)
                self.rejected += len(rows)
                return values[:0]
            return _append(paced, key, rows, values, times=times or [arrived] * len(rows), own=[True] * len(rows))
        moments, own = times, [True] * len(rows)
        if stream.held is not None:
            stream.taken += len(rows)
            stream.held += zip([math.nan] * len(rows) if times is None else times, values.copy(), strict=True)
            if stream.rate.state == "unknown" and stream.taken <= _MOST_HELD * self._enough:
                return values[:0]
            held, stream.held = stream.held, None
            moments = None if any(math.isnan(moment) for moment, _ in held) else [moment for moment, _ in held]
            values = np.stack([value for _, value in held])
            own = [False] * (len(held) - len(rows)) + own
            rows = [rows[0]] * (len(held) - len(rows)) + rows
        if moments is None:  # only now: what was held has the rate that is known by now
            moments = self._even_moments(stream, len(rows))
        is_off = stream.rate.state == "off"
        if is_off != (stream.resampler is not None):
            self._restart(key)
            stream.resampler = Resampler(self._rate_hz) if is_off else None
        if stream.resampler is None:
            return _append(paced, key, rows, values, times=moments, own=own)
        assert stream.rate.interval is not None
        out_times, outputs, brought = stream.resampler.push(np.array(moments), values, stream.rate.interval)
        rows = [rows[index] for index in brought.tolist()]
        return _append(paced, key, rows, outputs, times=out_times.tolist(), own=[False] * len(rows))

    def _even_moments(self, stream: _Stream, count: int) -> list[float]:
        """The times of readings without own ones: an even clock of the measured rate."""
        step = stream.rate.interval or self._nominal
        moments = [stream.clock + step * (index + 1) for index in range(count)]
        stream.clock = moments[-1]
        return moments

    def _stream(self, key: str | None) -> _Stream:
        stream = self._streams.get(key)
        if stream is None:
            stream = self._streams[key] = _Stream(KeyRate(self._nominal, self._enough))
            self._sides[_Side.UNKNOWN] += 1
            if not self._holds:
                stream.held = None
        return stream

    def _note(self, stream: _Stream) -> None:
        """Record a key's new verdict."""
        assert stream.rate.interval is not None
        rate_hz = 1.0 / stream.rate.interval
        side = _Side.RIGHT
        if is_off(rate_hz, self._rate_hz):
            side = _Side.FAST if rate_hz > self._rate_hz else _Side.SLOW
        self._sides[stream.side] -= 1
        self._sides[side] += 1
        stream.side = side

    def _conclude(self) -> None:
        """Judge the model by the median of its keys."""
        state = self._verdict()
        if state != self.state:
            self.state = state
            self._notice(self)

    def _verdict(self) -> State:
        """The verdict on `rate_hz`, from the counts of keys by side: they show the side of the median without a scan.

        If exactly half of many keys are off, the verdict stays.
        """
        _, fast, right, slow = self._sides
        known, off = fast + right + slow, max(fast, slow)
        if known > _FEW_KEYS and (2 * off != known or self.state != "unknown"):
            if 2 * off == known:
                return self.state
            return "off" if 2 * off > known else "ok"
        rate_hz = self.rate_hz
        assert rate_hz is not None
        return "off" if is_off(rate_hz, self._rate_hz) else "ok"


def _in_order(paced: Paced) -> None:
    """Sort the readings of several keys by their arrival."""
    order = np.argsort(np.array(paced.rows, np.int64), kind="stable")
    places = order.tolist()
    paced.values = paced.values[order]
    paced.keys = [paced.keys[place] for place in places]
    paced.times = [paced.times[place] for place in places]
    paced.rows = [paced.rows[place] for place in places]
    paced.is_own = [paced.is_own[place] for place in places]


def _append(
    paced: Paced, key: str | None, rows: list[int], values: Floats, *, times: list[float], own: list[bool]
) -> Floats:
    paced.keys += [key] * len(rows)
    paced.times += times
    paced.rows += rows
    paced.is_own += own
    return values


def _counted(keys: list[str | None]) -> dict[str | None, int]:
    counts: dict[str | None, int] = {}
    for key in keys:
        counts[key] = counts.get(key, 0) + 1
    return counts


def is_off(found: float, wanted: float) -> bool:
    """Whether two rates differ by more than a tenth."""
    return abs(math.log(found / wanted)) > math.log(TOLERANCE)


def rates_in_words(wanted: float, found: float, length: int) -> str:
    """Both rates in Hz, and their effect on a window of `length` readings."""
    return (
        f"expected readings at {wanted:g} Hz (rate_hz of the bundle), found {found:.3g} Hz: a window of {length} "
        f"readings is {length / found:.3g} s instead of {length / wanted:.3g} s"
    )


def make_pace(manifest: Manifest, config: ModelTable, *, restart: Callable[[str | None], object]) -> Pace | None:
    """The watch over the rate of the streams of a model; None where its windows have no rate."""
    window = manifest.input.window
    if window.rate_hz is None or manifest.input.shape is not None or (window.length == 1 and not manifest.state):
        return None

    def notice(pace: Pace) -> None:
        about = fields(model=config.name)
        if pace.state == "ok":
            _log.info("readings come at the rate of the bundle", extra=about)
            return
        ways: dict[OnRate, str] = {
            "warn": 'set the rate of the sensor, or on_rate = "resample"',
            "resample": "they are resampled",
            "reject": "they are refused: set the rate of the sensor",
        }
        text = f"{pace.explain()}: {ways[config.on_rate]}"
        _log.warning(text, extra=about)

    return Pace(window.rate_hz, window.length, config.on_rate, restart=restart, notice=notice, max_keys=config.max_keys)
