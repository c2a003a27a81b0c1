"""The same work on many devices, a few at a time, canaries first, with the result of each.

This module is independent of the work. A failure is the fault of the bundle or of a device, and counts: after more than
`max_failures` no further device is begun. An offline or busy device does not count: as a canary it is replaced by the
next one, and it is tried again at the end. A device that hangs gives its place to the next after `STRAGGLER_S`, so it
does not hold up healthy ones.

After an interruption (Ctrl-C) no device is begun, work that can be stopped without harm stops, and the rest is waited
for; a second one ends at once. In either case each device has an outcome.
"""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import msgspec

from edge_runtime.errors import EXIT_AWAY, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, EdgeError, TransientError
from edge_runtime.fleet.errors import BusyError, RefusedError
from edge_runtime.fleet.inventory import FleetDevice, RolloutTable

Result = Literal["done", "unchanged", "failed", "away", "busy", "refused", "not tried"]
RESULTS: tuple[Result, ...] = ("done", "unchanged", "failed", "refused", "away", "busy", "not tried")
PASSING: frozenset[Result] = frozenset({"away", "busy"})

STRAGGLER_S = 30.0
DEFAULT_SOAK_S = 30.0
SOAK_LOOK_S = 5.0
RETRY_PAUSES_S = (5.0, 20.0)  # pauses before offline or busy devices are tried again
_POLL_S = 0.2


class Outcome(msgspec.Struct, frozen=True):
    """The result of one device.

    Attributes:
        device: its name.
        result: `unchanged` if there was nothing to do; `refused` if device or broker do not allow it.
        text: why, in one line.
        seconds: how long it took.
        details: further facts for programs.
    """

    device: str
    result: Result
    text: str = ""
    seconds: float = 0.0
    details: dict[str, object] = {}

    @property
    def succeeded(self) -> bool:
        """Whether the device is in the desired state."""
        return self.result in {"done", "unchanged"}


class Watcher(Protocol):
    """Shows the progress. Called from several threads."""

    def begin(self, device: str) -> None:
        """The work on a device begins."""

    def step(self, device: str, text: str) -> None:
        """A device has come to a new step."""

    def bytes(self, device: str, done: int, total: int) -> None:
        """The progress of a transfer."""

    def end(self, outcome: Outcome) -> None:
        """The work on a device is over."""

    def say(self, text: str) -> None:
        """Something about the whole."""


class Confirmation(Protocol):
    """Checks a device after it has run the new bundle for a while; returns the fault, or None."""

    def __call__(self, target: FleetDevice, /) -> str | None:
        """May raise an EdgeError, which is a failure too."""


Work = Callable[[FleetDevice, Watcher], Outcome]


class InterruptedWorkError(EdgeError):
    """The work on a device was stopped at a point where that does no harm."""


class FailureLimit(msgspec.Struct, frozen=True):
    """The limit of failures: `count`, or `percent` of all devices, if set."""

    count: int = 0
    percent: float | None = None

    def allows(self, failed: int, total: int) -> bool:
        """Whether this number of failures is within the limit."""
        return failed <= (self.count if self.percent is None else total * self.percent / 100)


NO_LIMIT = FailureLimit(percent=100.0)


class RolloutResult(msgspec.Struct, frozen=True):
    """The results of all devices, in the given order."""

    outcomes: list[Outcome]
    interrupted: bool = False

    @property
    def exit_code(self) -> int:
        """0 all done or unchanged, 1 some failed or were refused, 3 some away or busy only, 130 interrupted."""
        return EXIT_INTERRUPTED if self.interrupted else exit_code(self.outcomes)


def exit_code(outcomes: Sequence[Outcome]) -> int:
    """As `RolloutResult.exit_code`, for a run that was not interrupted."""
    results = {each.result for each in outcomes}
    if results <= {"done", "unchanged"}:
        return EXIT_OK
    return EXIT_AWAY if results <= {"done", "unchanged", *PASSING} else EXIT_FAILED


def waves(targets: Sequence[FleetDevice], rollout: RolloutTable) -> list[list[FleetDevice]]:
    """The devices in the order in which they are changed: canaries, then the rest in waves."""
    canaries = rollout.canaries if len(targets) > rollout.canaries else 0
    rest = list(targets[canaries:])
    size = rollout.wave or max(len(rest), 1)
    found = [list(targets[:canaries])] if canaries else []
    return found + [rest[start : start + size] for start in range(0, len(rest), size)]


class Runner:
    """Does one piece of work on many devices.

    Args:
        targets: the devices, in order.
        work: done on each.
        rollout: concurrency, canaries, waves, soak.
        watcher: shows the progress.
        confirm: checks a device again after the soak.
        limits: of failures.
        retry: the pauses before further tries of offline or busy devices.
        pause: waits; a parameter for tests.
    """

    def __init__(
        self,
        targets: Sequence[FleetDevice],
        work: Work,
        rollout: RolloutTable,
        watcher: Watcher,
        *,
        confirm: Confirmation | None = None,
        limits: FailureLimit = FailureLimit(),  # noqa: B008 - a frozen value
        retry: Sequence[float] = (),
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._targets = list(targets)
        self._work = work
        self._rollout = rollout
        self._watcher = watcher
        self._confirm = confirm
        self._limits = limits
        self._retry = retry
        self._pause = pause
        self._outcomes: dict[str, Outcome] = {}
        self._running: dict[str, float] = {}
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._cause = "an earlier wave failed"

    def run(self) -> RolloutResult:
        """Run all; an interruption is part of the result and never raised."""
        interrupted = False
        try:
            self._run()
        except KeyboardInterrupt:
            interrupted = True
            self._cause = "interrupted"
            self._stopped.set()
            self._finish_what_runs()
        return RolloutResult([self._outcome_of(each) for each in self._targets], interrupted)

    def _run(self) -> None:
        waiting = list(self._targets)
        planned = waves(waiting, self._rollout)
        has_canaries = len(planned) > 1 and self._rollout.canaries > 0
        if has_canaries:
            waiting = self._run_canaries(waiting)
            planned = waves(waiting, msgspec.structs.replace(self._rollout, canaries=0))
        first = 2 if has_canaries else 1
        total = len(planned) + first - 1
        for number, wave in enumerate(planned, first):
            if self._is_over():
                return
            if total > 1:
                self._watcher.say(f"wave {number} of {total}: {_folded(wave)}")
            self._run_wave(wave)
            self._soak(wave, number, is_last=number == total)
            failed = [each.name for each in wave if self._result(each) == "failed"]
            if failed and number < total and self._is_over():
                self._watcher.say(f"stopping after wave {number}: {', '.join(failed)} failed")
        self._wait_for(self._targets, stragglers=False)
        self._run_retries()

    def _run_canaries(self, waiting: list[FleetDevice]) -> list[FleetDevice]:
        """Change canaries until enough have succeeded; return the rest. An offline one is replaced by the next."""
        wanted, proven = self._rollout.canaries, 0
        while waiting and proven < wanted and not self._is_over():
            wave, waiting = waiting[: wanted - proven], waiting[wanted - proven :]
            self._watcher.say(f"wave 1, canaries: {_folded(wave)}")
            self._run_wave(wave)
            self._soak(wave, 1, is_last=not waiting)
            proven += sum(1 for each in wave if self._has_succeeded(each))
            failed = [each.name for each in wave if self._result(each) == "failed"]
            if failed and self._is_over():
                self._watcher.say(f"stopping after wave 1: {', '.join(failed)} failed")
        return waiting

    def _run_retries(self) -> None:
        for seconds in self._retry:
            again = [each for each in self._targets if self._result(each) in PASSING]
            if not again or self._is_over():
                return
            self._watcher.say(f"trying again in {seconds:g} s: {_folded(again)}")
            self._pause(seconds)
            self._run_wave(again)
            self._wait_for(again, stragglers=False)

    def _run_wave(self, wave: Sequence[FleetDevice]) -> None:
        """Begin each device when a place is free, and wait for all except those that hang.

        A wave is finished although one of it fails, unless a threshold was asked for and is passed.
        """
        for target in wave:
            while self._busy_places() >= self._rollout.limit:
                self._wait_a_moment()
            if self._stopped.is_set() or (self._limits != FailureLimit() and self._is_over()):
                break
            with self._lock:
                self._running[target.name] = time.monotonic()
            threading.Thread(target=self._do, args=(target,), name=f"device {target.name}", daemon=True).start()
        self._wait_for(wave, stragglers=True)

    def _wait_for(self, wave: Sequence[FleetDevice], *, stragglers: bool) -> None:
        while True:
            with self._lock:
                since = [self._running[each.name] for each in wave if each.name in self._running]
            if stragglers and len(self._targets) > len(wave):
                since = [each for each in since if time.monotonic() - each < STRAGGLER_S]
            if not since:
                return
            self._wait_a_moment()

    def _wait_a_moment(self) -> None:
        with self._lock:
            running = list(self._running)
        if running:
            time.sleep(_POLL_S if len(running) > 1 else _POLL_S / 4)

    def _busy_places(self) -> int:
        now = time.monotonic()
        with self._lock:
            return sum(1 for since in self._running.values() if now - since < STRAGGLER_S)

    def _do(self, target: FleetDevice) -> None:
        self._watcher.begin(target.name)
        begun = time.monotonic()
        outcome = outcome_of(target, lambda: self._work(target, _Interruptible(self._watcher, self._stopped)))
        outcome = msgspec.structs.replace(outcome, seconds=round(time.monotonic() - begun, 3))
        with self._lock:
            self._outcomes[target.name] = outcome
            self._running.pop(target.name, None)
        self._watcher.end(outcome)

    def _soak(self, wave: Sequence[FleetDevice], number: int, *, is_last: bool) -> None:
        """Let a wave run the new bundle, then check it again; by default every wave except the last."""
        soak = self._rollout.soak
        if soak is None:
            soak = 0.0 if is_last else DEFAULT_SOAK_S
        watched = [each for each in wave if self._result(each) == "done"]
        if self._confirm is None or soak <= 0 or not watched:
            return
        self._watcher.say(f"watching wave {number} for {soak:g} s")
        self._pause(soak)
        confirm = self._confirm
        results = _in_threads(watched, lambda target: _confirmed(target, confirm), self._rollout.limit)
        with self._lock:
            self._outcomes |= {outcome.device: outcome for outcome in results if outcome is not None}

    def _is_over(self) -> bool:
        """Whether no device may be begun: interrupted, or too many failures."""
        if self._stopped.is_set():
            return True
        with self._lock:
            failed = sum(1 for each in self._outcomes.values() if each.result == "failed")
        return not self._limits.allows(failed, len(self._targets))

    def _finish_what_runs(self) -> None:
        with self._lock:
            running = list(self._running)
        if not running:
            return
        self._watcher.say(
            f"interrupted: nothing more is begun; {', '.join(running)} cannot be stopped now and are waited for "
            "(Ctrl-C again leaves at once)"
        )
        try:
            self._wait_for(self._targets, stragglers=False)
        except KeyboardInterrupt:
            self._watcher.say("left at once: what still runs goes on by itself")

    def _outcome_of(self, target: FleetDevice) -> Outcome:
        with self._lock:
            if target.name in self._running:
                text = "interrupted in the middle: what it does is not known; ask with `edge-runtime devices`"
                return Outcome(target.name, "busy", text)
            return self._outcomes.get(target.name, Outcome(target.name, "not tried", self._cause))

    def _result(self, target: FleetDevice) -> Result | None:
        with self._lock:
            found = self._outcomes.get(target.name)
        return None if found is None else found.result

    def _has_succeeded(self, target: FleetDevice) -> bool:
        return self._result(target) in {"done", "unchanged"}


class _Interruptible:
    """A watcher that stops the work between two steps, or between two parts of a transfer."""

    def __init__(self, inner: Watcher, stopped: threading.Event) -> None:
        self._inner = inner
        self._stopped = stopped
        self.begin, self.end, self.say = inner.begin, inner.end, inner.say

    def step(self, device: str, text: str) -> None:
        """A new step, unless the work is to stop."""
        self._stop_here()
        self._inner.step(device, text)

    def bytes(self, device: str, done: int, total: int) -> None:
        """Progress, unless the work is to stop. After a complete transfer the device installs, which is not stopped."""
        if done < total:
            self._stop_here()
        self._inner.bytes(device, done, total)

    def _stop_here(self) -> None:
        if self._stopped.is_set():
            raise InterruptedWorkError("interrupted before anything changed; what was sent stays for the next try")


def roll_out(
    targets: Sequence[FleetDevice],
    work: Work,
    rollout: RolloutTable,
    watcher: Watcher,
    *,
    confirm: Confirmation | None = None,
    keep_going: bool = False,
    pause: Callable[[float], None] = time.sleep,
) -> list[Outcome]:
    """As `Runner`, without retries: the outcomes in the order given."""
    limits = NO_LIMIT if keep_going else FailureLimit()
    return Runner(targets, work, rollout, watcher, confirm=confirm, limits=limits, pause=pause).run().outcomes


# Results by exception type; any other exception is a failure.
_KINDS: tuple[tuple[type[EdgeError], Result], ...] = (
    (BusyError, "busy"),
    (TransientError, "away"),
    (RefusedError, "refused"),
    (InterruptedWorkError, "not tried"),
)


def outcome_of(target: FleetDevice, work: Callable[[], Outcome]) -> Outcome:
    """The outcome of the work on a device, for any exception."""
    try:
        return work()
    except EdgeError as error:
        result: Result = next((word for kind, word in _KINDS if isinstance(error, kind)), "failed")
        return Outcome(target.name, result, " ".join(str(error).split()))


def _confirmed(target: FleetDevice, confirm: Confirmation) -> Outcome | None:
    try:
        wrong = confirm(target)
    except TransientError as error:
        return Outcome(target.name, "away", f"installed, but not seen again: {' '.join(str(error).split())}")
    except EdgeError as error:
        wrong = " ".join(str(error).split())
    return Outcome(target.name, "failed", wrong) if wrong else None


def _in_threads(
    targets: Sequence[FleetDevice], ask: Callable[[FleetDevice], Outcome | None], limit: int
) -> list[Outcome | None]:
    """The answers of all, at most `limit` at once."""
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - only here

    with ThreadPoolExecutor(max_workers=min(limit, len(targets))) as pool:
        return list(pool.map(ask, targets))


def _folded(targets: Sequence[FleetDevice], most: int = 8) -> str:
    """Names, the first few of many."""
    names = [each.name for each in targets]
    return ", ".join(names) if len(names) <= most else f"{', '.join(names[:most])} and {len(names) - most} more"
