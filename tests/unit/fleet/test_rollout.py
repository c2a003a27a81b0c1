"""Waves over many devices, without any device."""

import io
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Self

import msgspec
import pytest

from edge_runtime.errors import CommandError, TransientError
from edge_runtime.fleet.inventory import RolloutTable, Target
from edge_runtime.fleet.progress import Lines, Silent, shown
from edge_runtime.fleet.rollout import MOST_FAILURES, Outcome, Watcher, failures, roll_out, waves
from edge_runtime.fleet.table import duration, render


def targets(*names: str) -> list[Target]:
    """Devices that nobody talks to."""
    return [
        Target(
            name=name, address=name, service=name, account="a", runtime="r", store="s", allowed_signers="k",
            connect_timeout=1.0, stall_timeout=1.0, group=None, kind=None, config=None, port=None, ssh_config=None,
        )
        for name in names
    ]  # fmt: skip


def names(groups: list[list[Target]]) -> list[list[str]]:
    """The devices of each wave."""
    return [[each.name for each in wave] for wave in groups]


@pytest.mark.parametrize(
    ("rollout", "expected"),
    [
        (RolloutTable(), [["a"], ["b", "c", "d", "e"]]),
        (RolloutTable(canaries=2, wave=2), [["a", "b"], ["c", "d"], ["e"]]),
        (RolloutTable(canaries=0), [["a", "b", "c", "d", "e"]]),
        (RolloutTable(canaries=5), [["a", "b", "c", "d", "e"]]),
        (RolloutTable(canaries=9, wave=4), [["a", "b", "c", "d"], ["e"]]),
    ],
)
def test_canaries_go_first_and_the_rest_in_waves(rollout: RolloutTable, expected: list[list[str]]) -> None:
    """The canaries are a wave of their own when anybody is left to follow them."""
    assert names(waves(targets(*"abcde"), rollout)) == expected


def work(failing: str = "", seen: list[str] | None = None) -> Callable[[Target, Watcher], Outcome]:
    """Work that fails on some devices."""

    def one(target: Target, _: Watcher) -> Outcome:
        if seen is not None:
            seen.append(target.name)
        if target.name in failing:
            raise TransientError("it does\nnot answer") if target.name == "b" else CommandError("it refuses")
        return Outcome(target.name, "done")

    return one


def test_a_failing_canary_keeps_the_others_from_harm() -> None:
    """When the canary fails nobody else is touched, and each of the others is named as not tried."""
    seen: list[str] = []
    outcomes = roll_out(targets(*"abc"), work("a", seen), RolloutTable(), Silent())
    assert seen == ["a"]
    assert [(each.device, each.result, each.text) for each in outcomes] == [
        ("a", "failed", "it refuses"),
        ("b", "not tried", "an earlier wave failed"),
        ("c", "not tried", "an earlier wave failed"),
    ]
    assert failures(outcomes) == 1


def test_a_wave_is_finished_even_when_one_of_it_fails() -> None:
    """Within a wave every device is tried; the next wave is not begun; errors are one line each."""
    outcomes = roll_out(targets(*"abcde"), work("bc"), RolloutTable(wave=3), Silent())
    assert [each.result for each in outcomes] == ["done", "failed", "failed", "done", "not tried"]
    assert outcomes[1].text == "it does not answer"
    assert failures(outcomes) == 2


def test_keep_going_tries_everybody() -> None:
    """On request a failure stops nothing."""
    outcomes = roll_out(targets(*"abc"), work("a"), RolloutTable(), Silent(), keep_going=True)
    assert [each.result for each in outcomes] == ["failed", "done", "done"]


def test_a_wave_is_looked_at_again_before_the_next_begins() -> None:
    """After the soak a device that went back by itself counts as failed, and stops the rollout."""
    pauses: list[float] = []
    outcomes = roll_out(
        targets(*"ab"), work(), RolloutTable(soak=30), Silent(),
        confirm=lambda target: "rejected: NaN" if target.name == "a" else None, pause=pauses.append,
    )  # fmt: skip
    assert pauses == [30]
    assert [(each.result, each.text) for each in outcomes] == [
        ("failed", "rejected: NaN"),
        ("not tried", "an earlier wave failed"),
    ]


def test_no_more_devices_than_the_limit_are_at_work_at_once() -> None:
    """The limit bounds how many devices are talked to at the same time."""
    running, most, lock = 0, 0, threading.Lock()
    together = threading.Barrier(2)

    def one(target: Target, _: Watcher) -> Outcome:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        together.wait(10)  # two must be at work for any to go on
        with lock:
            running -= 1
        return Outcome(target.name, "done")

    roll_out(targets(*"abcdef"), one, RolloutTable(limit=2, canaries=0), Silent())
    assert most == 2


def test_the_exit_code_tells_how_many_failed() -> None:
    """It is their number, up to one that cannot be mistaken for another meaning."""
    assert failures([]) == 0
    assert failures([Outcome("a", "failed"), Outcome("b", "not tried"), Outcome("c", "failed")]) == 2
    assert failures([Outcome("a", "failed")] * 500) == MOST_FAILURES == 77


def test_progress_is_a_line_a_step_where_nobody_watches() -> None:
    """In a log there is a line for each step and each quarter of a transfer, and none for every packet."""
    stream = io.StringIO()
    lines = Lines(stream)
    lines.step("a", "sending")
    for done in range(101):
        lines.bytes("a", done, 100)
    lines.bytes("b", 40, 100)
    lines.end(Outcome("a", "failed", "why"))
    assert stream.getvalue().splitlines() == [
        "a: sending", "a: 25 of 100 bytes", "a: 50 of 100 bytes", "a: 75 of 100 bytes",
        "b: going on after 40 of 100 bytes", "a: failed: why",
    ]  # fmt: skip


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_without_the_library_for_bars_a_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra `fleet` is a comfort and not a need."""
    monkeypatch.setitem(__import__("sys").modules, "rich", None)
    monkeypatch.setitem(__import__("sys").modules, "rich.console", None)
    stream = Terminal()
    with shown(quiet=False, stream=stream) as watcher:
        watcher.say("hello")
    assert stream.getvalue() == "hello\n"


def test_bars_show_every_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the library a terminal gets a bar a device, which ends full when all went well."""
    calls: list[tuple[str, Any]] = []

    class Progress:
        def __init__(self, *columns: Any, console: Any) -> None:
            self.console = SimpleNamespace(print=lambda text, **_: calls.append(("print", text)))

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            """Nothing to do."""

        def add_task(self, name: str, **_: Any) -> str:
            return name

        def update(self, task: str, **change: Any) -> None:
            calls.append((task, change))

        def stop_task(self, task: str) -> None:
            calls.append((task, "stop"))

    column = lambda *_: None  # noqa: E731
    rich = SimpleNamespace(
        Progress=Progress, TextColumn=column, BarColumn=column, TaskProgressColumn=column, TimeElapsedColumn=column
    )
    monkeypatch.setitem(__import__("sys").modules, "rich.progress", rich)
    monkeypatch.setitem(__import__("sys").modules, "rich.console", SimpleNamespace(Console=lambda file: file))
    with shown(quiet=False, stream=Terminal()) as watcher:
        watcher.begin("a")
        watcher.step("a", "sending")
        watcher.bytes("a", 1, 2)
        watcher.end(Outcome("a", "done"))
        watcher.say("over")
    assert calls == [
        ("a", {"step": "sending"}), ("a", {"completed": 1, "total": 2}), ("a", {"completed": 1, "total": 1}),
        ("a", {"step": "done"}), ("a", "stop"), ("print", "over"),
    ]  # fmt: skip


def test_a_table_is_as_wide_as_what_it_holds() -> None:
    """Columns line up, nothing trails, and what a device says cannot move the cursor."""
    assert render(("A", "B"), [("long name", "x"), ("\x1b[2J", "")]) == "A          B\nlong name  x\n?[2J"


@pytest.mark.parametrize(("seconds", "words"), [(5.9, "5 s"), (61, "1 min"), (3_661, "1 h 1 min"), (90_061, "1 d 1 h")])
def test_durations_are_told_as_people_do(seconds: float, words: str) -> None:
    """Two units at most."""
    assert duration(seconds) == words


def test_an_outcome_is_json_for_programs() -> None:
    """What `--json` prints of a device."""
    assert msgspec.to_builtins(Outcome("a", "failed", "why", 1.5)) == {
        "device": "a", "result": "failed", "text": "why", "seconds": 1.5, "details": {},
    }  # fmt: skip
