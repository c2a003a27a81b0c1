"""Many devices, a few at a time, canaries first: one piece of work done on each, and what became of it.

Nothing here knows what the work is. A wave in which one device fails is the last; devices that were not
tried are named.
"""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, Protocol

import msgspec

from edge_runtime.errors import EdgeError
from edge_runtime.fleet.inventory import RolloutTable, Target

Result = Literal["done", "unchanged", "failed", "not tried"]

# The largest number of failures that the exit code tells; 78 and above mean something else.
MOST_FAILURES = 77


class Outcome(msgspec.Struct, frozen=True):
    """What became of one device.

    Attributes:
        device: its name.
        result: `unchanged` when there was nothing to do.
        text: why, in one line.
        seconds: how long it took.
        details: what else a program may want to know.
    """

    device: str
    result: Result
    text: str = ""
    seconds: float = 0.0
    details: dict[str, object] = {}


class Watcher(Protocol):
    """Whoever shows how it goes. Called from several threads."""

    def begin(self, device: str) -> None:
        """The work on a device begins."""

    def step(self, device: str, text: str) -> None:
        """A device has come to a new step."""

    def bytes(self, device: str, done: int, total: int) -> None:
        """So much of a transfer is done."""

    def end(self, outcome: Outcome) -> None:
        """The work on a device is over."""

    def say(self, text: str) -> None:
        """Something about the whole."""


Work = Callable[[Target, Watcher], Outcome]


def waves(targets: Sequence[Target], rollout: RolloutTable) -> list[list[Target]]:
    """The devices in the order in which they are changed: canaries, then the rest in waves."""
    canaries = rollout.canaries if len(targets) > rollout.canaries else 0
    rest = list(targets[canaries:])
    size = rollout.wave or max(len(rest), 1)
    found = [list(targets[:canaries])] if canaries else []
    return found + [rest[start : start + size] for start in range(0, len(rest), size)]


def roll_out(
    targets: Sequence[Target],
    work: Work,
    rollout: RolloutTable,
    watcher: Watcher,
    *,
    confirm: Callable[[Target], str | None] | None = None,
    keep_going: bool = False,
    pause: Callable[[float], None] = time.sleep,
) -> list[Outcome]:
    """Does the work on every device, wave by wave, and returns what became of each, in the order given.

    After a wave, and `rollout.soak` seconds, `confirm` looks at its devices again; it returns what is wrong, or None.
    """
    outcomes: dict[str, Outcome] = {}
    planned = waves(targets, rollout)
    for number, wave in enumerate(planned, 1):
        if len(planned) > 1:
            watcher.say(f"wave {number} of {len(planned)}: {', '.join(each.name for each in wave)}")
        outcomes |= _do_wave(wave, work, rollout.limit, watcher)
        if confirm is not None and rollout.soak > 0:
            watcher.say(f"watching wave {number} for {rollout.soak:g} s")
            pause(rollout.soak)
            outcomes |= _confirm_wave(
                [each for each in wave if _succeeded(outcomes[each.name])], confirm, rollout.limit
            )
        failed = [each.name for each in wave if outcomes[each.name].result == "failed"]
        if failed and not keep_going and number < len(planned):
            watcher.say(f"stopping after wave {number}: {', '.join(failed)} failed")
            break
    return [outcomes.get(each.name, Outcome(each.name, "not tried", "an earlier wave failed")) for each in targets]


def failures(outcomes: Sequence[Outcome]) -> int:
    """The exit code: how many devices failed (the table says which)."""
    return min(sum(each.result == "failed" for each in outcomes), MOST_FAILURES)


def _succeeded(outcome: Outcome) -> bool:
    return outcome.result in {"done", "unchanged"}


def _do_wave(wave: Sequence[Target], work: Work, limit: int, watcher: Watcher) -> dict[str, Outcome]:
    stopped = threading.Event()

    def one(target: Target) -> Outcome:
        if stopped.is_set():
            return Outcome(target.name, "not tried", "interrupted")
        watcher.begin(target.name)
        begun = time.monotonic()
        try:
            outcome = work(target, watcher)
        except EdgeError as error:
            outcome = Outcome(target.name, "failed", " ".join(str(error).split()))
        outcome = msgspec.structs.replace(outcome, seconds=round(time.monotonic() - begun, 3))
        watcher.end(outcome)
        return outcome

    with ThreadPoolExecutor(max_workers=min(limit, max(len(wave), 1)), thread_name_prefix="device") as pool:
        try:
            return {outcome.device: outcome for outcome in pool.map(one, wave)}
        except KeyboardInterrupt:
            stopped.set()  # what has begun is finished, so that no device is left in the middle
            raise


def _confirm_wave(wave: Sequence[Target], confirm: Callable[[Target], str | None], limit: int) -> dict[str, Outcome]:
    def one(target: Target) -> Outcome | None:
        try:
            wrong = confirm(target)
        except EdgeError as error:
            wrong = " ".join(str(error).split())
        return Outcome(target.name, "failed", wrong) if wrong else None

    with ThreadPoolExecutor(max_workers=min(limit, max(len(wave), 1))) as pool:
        return {outcome.device: outcome for outcome in pool.map(one, wave) if outcome is not None}
