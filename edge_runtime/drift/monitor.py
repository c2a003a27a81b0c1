"""A model's input and answers against the reference of its bundle: each stream by itself, in one document. Pure.

Guarantee: bounded memory; the first `MOST_STREAMS` keys are watched, and further ones are counted as `unwatched`. Weak
point: the state survives a clean stop, but no crash; after a crash the states start at `ok`.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from edge_runtime.bundle.manifest import ChannelReference, Manifest
from edge_runtime.bundle.model import Scores
from edge_runtime.drift.baseline import Baseline
from edge_runtime.drift.block_sums import BlockSums
from edge_runtime.drift.column import MEMORY, STATES, State
from edge_runtime.drift.columns import Figures, SavedColumns, WatchedColumns
from edge_runtime.drift.pacing import Pacing, SavedPacing
from edge_runtime.drift.words import cause_of, why, why_clock, why_rate
from edge_runtime.readings import Floats

MOST_STREAMS = 256
MOST_SHOWN = 32  # streams in a document that are not ok, and causes
LOOKS = 16  # arrivals of readings; the wall clock is read at one of so many
PLAIN_BLOCK = 128  # readings, if a bundle has no size of a block


class SavedWatch(NamedTuple):
    """The state of one key that a clean stop saves."""

    key: str | None
    input: SavedColumns | None
    scores: SavedColumns | None
    pacing: SavedPacing


class WatchedStream:
    """The watched parts of one key."""

    __slots__ = ("calls", "input", "looks", "pacing", "scores", "state")

    def __init__(self, columns: WatchedColumns | None, scores: WatchedColumns | None, pacing: Pacing) -> None:
        self.input = columns
        self.scores = scores
        self.pacing = pacing
        self.calls = 0  # with times that were measured
        self.looks = 0  # single readings until times are measured again
        self.state = 0


class Monitor:
    """The drift monitor of one model.

    Args:
        manifest: of its bundle.
        is_recorded: its readings are replayed, so that their times and arrivals are not judged.
        wall: seconds since the epoch; None while the clock is not set.

    Attributes:
        streams: the watched streams, by key.
        on_change: called with key and state when the state of a stream changes.
        blocks: the number of judged blocks.
    """

    def __init__(
        self,
        manifest: Manifest,
        *,
        is_recorded: bool = False,
        wall: Callable[[], float | None] = time.time,
    ) -> None:
        about, channels = manifest.drift, manifest.input.channels
        self.version = manifest.version
        by_name = {each.name: each for each in manifest.reference}
        references = [by_name.get(each.name) for each in channels]
        block = PLAIN_BLOCK if about is None else about.block
        self.names = manifest.channel_names
        memory, score_memory = (MEMORY, MEMORY) if about is None else (about.memory, about.score_memory)
        rate_hz = manifest.input.window.rate_hz or (None if about is None else about.rate_hz)
        self.base = (
            Baseline(references, channels, max(2, block), memory=memory, rate_hz=rate_hz) if references else None
        )
        self.score_names = tuple(each.name for each in manifest.score_reference)
        score_block = PLAIN_BLOCK if about is None else about.score_block
        scored: Sequence[ChannelReference | None] = manifest.score_reference
        score_hz = None if rate_hz is None else rate_hz / manifest.input.window.stride
        self.score_base = (
            Baseline(scored, None, max(2, score_block), memory=score_memory, rate_hz=score_hz) if scored else None
        )
        self._sums = [None if base is None else BlockSums(base) for base in (self.base, self.score_base)]
        self._interval = None if rate_hz is None else 1.0 / rate_hz
        self._is_recorded = is_recorded
        self._wall = wall
        self.streams: dict[str | None, WatchedStream] = {}
        self._saved: dict[str | None, SavedWatch] = {}
        self._unwatched: set[str | None] = set()
        self.on_change: list[Callable[[str | None, State], object]] = []
        self.blocks = 0
        self._forgotten = 0  # keys
        self._shown_at: tuple[int, ...] = ()
        self._shown: dict[str, Any] = {}  # the last document
        self.since = time.time()
        self._state = 0

    @property
    def is_calibrated(self) -> bool:
        """Whether the bundle has limits for drift."""
        return any(base is not None and base.is_calibrated for base in (self.base, self.score_base))

    @property
    def state(self) -> State:
        """The worst state of any stream."""
        return STATES[self._state]

    def state_of(self, key: str | None) -> State:
        """The state of one stream; `ok` before its first block."""
        stream = self.streams.get(key)
        return STATES[0 if stream is None else stream.state]

    # --- input ------------------------------------------------------------------------------------------------------

    def take(self, values: Floats, keys: list[str | None], times: list[float] | None, arrived: float) -> None:
        """Take the readings of one wake-up, before any is refused.

        Args:
            values: `[n, channels]`; a missing channel is NaN.
            keys: the stream of each reading.
            times: the readings' own times, in seconds; None if they have none.
            arrived: the time of arrival, by a monotonic clock.
        """
        count = len(keys)
        if count == 1:
            stream = self.streams.get(keys[0])
            if stream is not None and stream.input is not None:
                columns = stream.input
                if times is None or stream.looks:
                    room = columns.room
                    if room > columns.wanted:
                        columns.room = room - 1
                        return
                    if room > 1:
                        columns.hold(values.tobytes())
                        stream.looks -= times is not None
                        return
            self._take(keys[0], values, times, arrived)
        elif count and keys.count(keys[0]) == count:
            self._take(keys[0], values, times, arrived)
        else:
            for key, rows in _by_key(keys).items():
                self._take(key, values[rows], None if times is None else [times[row] for row in rows], arrived)

    def _take(self, key: str | None, values: Floats, times: list[float] | None, arrived: float) -> None:
        """Take the readings of one stream."""
        stream = self.streams.get(key) or self._new(key, len(values), arrived)
        if stream is None or stream.input is None:
            return
        columns, pacing, count = stream.input, stream.pacing, len(values)
        if count < columns.room:
            columns.take(values)
            if times is not None:
                stream.calls += 1
                is_look = not pacing.wants_times or stream.calls % LOOKS == 0
                pacing.measure(times, self._wall() if is_look and not self._is_recorded else None)
                stream.looks = 0 if pacing.wants_times else LOOKS
            return
        wall = None if times is None or self._is_recorded else self._wall()
        start = 0
        while start < count:
            before, stop = columns.blocks, columns.take(values, start)
            if times is not None:
                pacing.measure(times[start:stop], wall)
            if columns.blocks > before:
                pacing.judge(columns.baseline.span, count - stop, arrived)
                self._conclude(key, stream, columns.blocks - before)
            start = stop
        stream.looks = 0  # measure the times of the next block

    def take_scores(self, scores: Scores, keys: list[str | None]) -> None:
        """Take the answers to some windows."""
        base = self.score_base
        if base is None or not keys:
            return
        if len(keys) == 1:
            stream = self.streams.get(keys[0])
            if stream is not None and stream.scores is not None:
                columns = stream.scores
                room = columns.room
                if room > columns.wanted:
                    columns.room = room - 1
                    return
                if room > 1 and scores.scores is not None and scores.scores.shape[1] == len(columns.columns):
                    columns.hold(scores.scores.tobytes())
                    return
        found = scores.scores if scores.scores is not None else _numbers(scores)
        if found is None or found.shape[1] != len(base):
            return
        if keys.count(keys[0]) == len(keys):
            self._take_scores(keys[0], found)
            return
        for key, rows in _by_key(keys).items():
            self._take_scores(key, found[rows])

    def _take_scores(self, key: str | None, values: Floats) -> None:
        stream = self.streams.get(key) or self._new(key, 0, 0.0)
        if stream is None or stream.scores is None:
            return
        columns, start = stream.scores, 0
        while start < len(values):
            before, start = columns.blocks, columns.take(values, start)
            if columns.blocks > before:
                self._conclude(key, stream, columns.blocks - before)

    def forget(self, keys: list[str | None]) -> None:
        """Drop keys that are gone."""
        for key in keys:
            self._unwatched.discard(key)
            if self.streams.pop(key, None) is not None:
                self._forgotten += 1
                self._settle()

    def _new(self, key: str | None, count: int, arrived: float) -> WatchedStream | None:
        if len(self.streams) >= MOST_STREAMS:
            if len(self._unwatched) < MOST_STREAMS:
                self._unwatched.add(key)
            return None
        pacing = Pacing(self._interval, count, arrived, is_live=not self._is_recorded)
        columns, scores = (None if sums is None else WatchedColumns(sums) for sums in self._sums)
        stream = self.streams[key] = WatchedStream(columns, scores, pacing)
        saved = self._saved.pop(key, None)
        if saved is not None:
            stream = self._restored(key, stream, saved)
        return stream

    # --- over a restart ---------------------------------------------------------------------------------------------

    def save(self) -> list[SavedWatch]:
        """The state of each key for the next start, also of restored keys without a reading since."""
        found = []
        for key, stream in self.streams.items():
            columns, scores = (None if part is None else part.save() for part in (stream.input, stream.scores))
            found.append(SavedWatch(key, columns, scores, stream.pacing.save()))
        return [*found, *self._saved.values()][:MOST_STREAMS]

    def restore(self, saved: Sequence[SavedWatch]) -> None:
        """Continue from the saved state of each key, from its first reading on."""
        self._saved = {each.key: each for each in saved[:MOST_STREAMS]}

    def _restored(self, key: str | None, stream: WatchedStream, saved: SavedWatch) -> WatchedStream:
        try:
            for part, known in ((stream.input, saved.input), (stream.scores, saved.scores)):
                if part is not None and known is not None:
                    part.restore(known)
        except ValueError:  # a damaged file: this key starts without state
            columns, scores = (None if sums is None else WatchedColumns(sums) for sums in self._sums)
            stream = self.streams[key] = WatchedStream(columns, scores, stream.pacing)
        else:
            stream.pacing.restore(saved.pacing)
            self._follow(key, stream)
        return stream

    def _conclude(self, key: str | None, stream: WatchedStream, blocks: int) -> None:
        """Some blocks of a stream were judged."""
        self.blocks += blocks
        self._follow(key, stream)

    def _follow(self, key: str | None, stream: WatchedStream) -> None:
        """Set the state of a stream from its parts, and report a change."""
        parts = (each.state for each in (stream.input, stream.scores, stream.pacing) if each is not None)
        before, stream.state = stream.state, max(parts)
        if before == stream.state:
            return
        self._settle()
        for listener in self.on_change:
            listener(key, STATES[stream.state])

    def _settle(self) -> None:
        state = max((each.state for each in self.streams.values()), default=0)
        if state != self._state:
            self._state, self.since = state, time.time()

    # --- document ---------------------------------------------------------------------------------------------------

    def document(self) -> dict[str, Any]:
        """The document of `edge/{device}/drift/{model}`; each column is shown for the stream with the worst state.

        Health, page and metrics read it every second. It is built again only after a judged block or a change of keys.
        """
        stamp = self.blocks, len(self.streams), len(self._unwatched), self._forgotten, self._state
        if stamp != self._shown_at:
            self._shown_at, self._shown = stamp, self._make_document()
        return self._shown

    def _make_document(self) -> dict[str, Any]:
        streams = list(self.streams.items())
        channels = {
            name: self._column(streams, column, "input", self.base, names=self.names)
            for column, name in enumerate(self.names if self.base is not None else ())
        }
        outputs = {
            name: self._column(streams, column, "scores", self.score_base, names=self.score_names)
            for column, name in enumerate(self.score_names)
        }
        rate, clock = self._rate(streams), self._clock(streams)
        answers = sorted(outputs.items(), key=lambda pair: -(pair[1]["psi"] or 0.0))
        found = [*channels.items(), *((f"answer {name}", each) for name, each in answers)]
        found += [("rate", rate), ("clock", clock)]
        place, worst = max(found, key=lambda pair: STATES.index(pair[1]["state"]))
        head = "" if worst is rate or worst is clock else f"{place}: "
        causes = [{"at": place, "cause": each.pop("cause"), "state": each["state"]} for place, each in found]
        scores = _worst(outputs)
        return {
            "version": self.version,
            "state": self.state,
            "why": None if worst["why"] is None else f"{head}{worst['why']}",
            "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.since)),
            "blocks": self.blocks,
            "block": None if self.base is None else self.base.block,
            "calibrated": self.is_calibrated,
            "causes": sorted(
                (each for each in causes if each["cause"]), key=lambda each: STATES.index(each["state"]), reverse=True
            )[:MOST_SHOWN],
            "channels": channels,
            "scores": scores,
            "rate": rate,
            "clock": clock,
            "keys": _not_ok(streams),
            "watched": len(streams),
            "unwatched": len(self._unwatched),
        }

    def summary(self) -> dict[str, Any]:
        """Only state and reasons, for the health document."""
        document = self.document()
        return {name: document[name] for name in ("state", "why", "since", "causes")}

    def _column(
        self,
        streams: list[tuple[str | None, WatchedStream]],
        column: int,
        part: str,
        base: Baseline | None,
        *,
        names: tuple[str, ...],
    ) -> dict[str, Any]:
        assert base is not None
        found: list[tuple[str | None, WatchedColumns]] = [
            (key, columns)
            for key, stream in streams
            if (columns := getattr(stream, part)) is not None and columns.blocks
        ]
        if not found:
            return dict(_NOTHING)
        key, worst = max(found, key=lambda pair: pair[1].badness(column))
        figures = Figures(worst, column)
        document: dict[str, Any] = {
            "state": STATES[figures.state],
            "why": why(figures, base, names),
            "psi": _short(figures.psi),
            "offset_sd": _short(figures.offset_sd),
            "missing": _short(figures.missing),
            "out_of_range": _short(figures.outside),
            "stuck": figures.is_stuck,
            "cause": cause_of(figures),
        }
        return document if key is None else {**document, "key": key}

    def _rate(self, streams: list[tuple[str | None, WatchedStream]]) -> dict[str, Any]:
        known = [(key, each.pacing) for key, each in streams if each.pacing.found is not None]
        if not known or self._interval is None:
            expected = None if self._interval is None else _short(1.0 / self._interval)
            return {"state": "ok", "why": None, "hz": None, "expected_hz": expected, "cause": None}
        key, pacing = max(known, key=lambda pair: pair[1].rate.state)
        assert pacing.found is not None
        document: dict[str, Any] = {
            "state": STATES[pacing.rate.state],
            "why": why_rate(pacing.found, self._interval) if pacing.rate.state else None,
            "hz": _short(1.0 / pacing.found),
            "expected_hz": _short(1.0 / self._interval),
            "cause": None if not pacing.rate.state else "slow" if pacing.found > self._interval else "fast",
        }
        return document if key is None else {**document, "key": key}

    def _clock(self, streams: list[tuple[str | None, WatchedStream]]) -> dict[str, Any]:
        known = [(key, each.pacing) for key, each in streams if each.pacing.offset is not None]
        if not known:
            return {"state": "ok", "why": None, "offset_s": None, "cause": None}
        key, pacing = max(known, key=lambda pair: (pair[1].clock.state, abs(pair[1].offset or 0.0)))
        assert pacing.offset is not None
        document: dict[str, Any] = {
            "state": STATES[pacing.clock.state],
            "why": why_clock(pacing.offset) if pacing.clock.state else None,
            "offset_s": _short(pacing.offset),
            "cause": None if not pacing.clock.state else "behind" if pacing.offset > 0.0 else "ahead",
        }
        return document if key is None else {**document, "key": key}


_NOTHING = {
    "state": "ok", "why": None, "psi": None, "offset_sd": None, "missing": None, "out_of_range": None, "stuck": False,
    "cause": None,
}  # fmt: skip


def _worst(outputs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The answer with the worst state, and its name."""
    if not outputs:
        return {"state": "ok", "why": None, "output": None, "psi": None, "offset_sd": None}
    name, worst = max(outputs.items(), key=lambda pair: (STATES.index(pair[1]["state"]), pair[1]["psi"] or 0.0))
    shown = ("state", "why", "psi", "offset_sd", "key")
    return {"output": name, **{member: value for member, value in worst.items() if member in shown}}


def _not_ok(streams: list[tuple[str | None, WatchedStream]]) -> dict[str, State]:
    """The keys that are not ok, the worst first."""
    found = sorted(((each.state, key) for key, each in streams if key is not None and each.state), reverse=True)
    return {key: STATES[state] for state, key in found[:MOST_SHOWN]}


def _by_key(keys: list[str | None]) -> dict[str | None, list[int]]:
    groups: dict[str | None, list[int]] = {}
    for row, key in enumerate(keys):
        groups.setdefault(key, []).append(row)
    return groups


def _numbers(scores: Scores) -> Floats | None:
    """The answers as `[n, numbers]`; None for tensors."""
    if scores.is_named:
        return None
    found = scores.value if scores.value is not None else scores.score
    return None if found is None else found if found.ndim == 2 else found[:, np.newaxis]


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
