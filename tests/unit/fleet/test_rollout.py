"""Waves over many devices, without any device."""

import _thread
import io
import re
import signal
import threading
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, Self

import msgspec
import pytest

from edge_runtime.errors import CommandError, TransientError
from edge_runtime.fleet.errors import AwayError, BusyError, RefusedError
from edge_runtime.fleet.inventory import FleetDevice, RolloutTable
from edge_runtime.fleet.progress import Lines, Silent, shown
from edge_runtime.fleet.rollout import (
    RETRY_PAUSES_S,
    FailureLimit,
    Outcome,
    Result,
    Runner,
    Watcher,
    exit_code,
    roll_out,
    waves,
)
from edge_runtime.fleet.table import duration, folded, render, size_in_words
from tests.support.waiting import patient


def targets(*names: str) -> list[FleetDevice]:
    """Devices that are never contacted."""
    return [
        FleetDevice(
            name=name, address=name, service=name, account="a", runtime="r", store="s", allowed_signers="k",
            connect_timeout=1.0, stall_timeout=1.0, group=None, kind=None, config=None, port=None, ssh_config=None,
        )
        for name in names
    ]  # fmt: skip


def names(groups: list[list[FleetDevice]]) -> list[list[str]]:
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


def work(failing: str = "", seen: list[str] | None = None) -> Callable[[FleetDevice, Watcher], Outcome]:
    """Work that fails on some devices."""

    def one(target: FleetDevice, _: Watcher) -> Outcome:
        if seen is not None:
            seen.append(target.name)
        if target.name in failing:
            raise TransientError("it does\nnot answer") if target.name == "b" else CommandError("it refuses")
        return Outcome(target.name, "done")

    return one


def test_a_failing_canary_keeps_the_others_from_harm() -> None:
    """When the canary fails no other device is touched, and each of the others is named as not tried."""
    seen: list[str] = []
    outcomes = roll_out(targets(*"abc"), work("a", seen), RolloutTable(), Silent())
    assert seen == ["a"]
    assert [(each.device, each.result, each.text) for each in outcomes] == [
        ("a", "failed", "it refuses"),
        ("b", "not tried", "an earlier wave failed"),
        ("c", "not tried", "an earlier wave failed"),
    ]
    assert exit_code(outcomes) == 1


def test_a_wave_is_finished_even_when_one_of_it_fails() -> None:
    """Within a wave every device is tried; the next wave is not begun; errors are one line each."""
    outcomes = roll_out(targets(*"abcde"), work("bc"), RolloutTable(wave=3), Silent())
    assert [each.result for each in outcomes] == ["done", "away", "failed", "done", "not tried"]
    assert outcomes[1].text == "it does not answer"
    assert exit_code(outcomes) == 1


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

    def one(target: FleetDevice, _: Watcher) -> Outcome:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        together.wait(patient(10))  # two must be at work for any to go on
        with lock:
            running -= 1
        return Outcome(target.name, "done")

    roll_out(targets(*"abcdef"), one, RolloutTable(limit=2, canaries=0), Silent())
    assert most == 2


@pytest.mark.parametrize(
    ("results", "code"),
    [
        ([], 0),
        (["done", "unchanged"], 0),
        (["failed", "not tried", "done"], 1),
        (["failed"] * 500, 1),
        (["refused", "done"], 1),
        (["failed", "away"], 1),
        (["away", "done"], 3),
        (["busy", "away", "unchanged"], 3),
    ],
)
def test_the_exit_code_says_what_kind_of_results_there_are(results: list[Result], code: int) -> None:
    """0 all done or unchanged, 1 some failed or were refused, 3 some are away or busy only."""
    assert exit_code([Outcome(f"d{number}", result) for number, result in enumerate(results)]) == code


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

    column = lambda *_, **__: None  # noqa: E731
    rich = SimpleNamespace(
        Progress=Progress, TextColumn=column, BarColumn=column, TaskProgressColumn=column, TimeElapsedColumn=column
    )
    monkeypatch.setitem(__import__("sys").modules, "rich.progress", rich)
    monkeypatch.setitem(__import__("sys").modules, "rich.console", SimpleNamespace(Console=lambda file: file))
    monkeypatch.setitem(__import__("sys").modules, "rich.table", SimpleNamespace(Column=column))
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


@pytest.mark.parametrize("columns", [80, 120])
def test_a_bar_is_one_line_however_long_its_words_are(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long name, a long step and the time are on the line of their device, cut off where they must be."""
    pytest.importorskip("rich")
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    names = ["press-07", "gateway-of-the-northern-hall-17"]
    with shown(quiet=False, stream=stream) as watcher:
        for name in names:
            watcher.begin(name)
            watcher.step(name, "going back from vibration-of-the-large-press 10.11.12 ([probation], since 12:00)")
            watcher.bytes(name, 1_234_567, 12_345_678)
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue()).rstrip("\n").splitlines()[-2:]
    assert [line[:8] for line in last] == ["press-07", "gateway-"]
    assert all("going back from" in line and "10%" in line and line.rstrip()[-2:].isdigit() for line in last), last
    assert max(map(len, last)) <= columns


def test_sizes_are_short() -> None:
    """Three digits and a unit."""
    sizes = [999, 1_000, 183_204, 12_345_678, 2_345_000_000]
    assert [size_in_words(each) for each in sizes] == ["999 bytes", "1 kB", "183 kB", "12.3 MB", "2,345 MB"]


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


def results(outcomes: list[Outcome]) -> dict[str, str]:
    """The result of each device."""
    return {each.device: each.result for each in outcomes}


def kinds(word: Mapping[str, Exception]) -> Callable[[FleetDevice, Watcher], Outcome]:
    """Work that ends as arranged for some devices."""

    def one(target: FleetDevice, _: Watcher) -> Outcome:
        if target.name in word:
            raise word[target.name]
        return Outcome(target.name, "done")

    return one


def test_a_device_that_is_away_or_busy_stops_nothing_and_is_no_canary() -> None:
    """The next device stands in as the canary, every healthy device is done, and passing kinds are tried again."""
    tries: list[str] = []
    pauses: list[float] = []

    def one(target: FleetDevice, _: Watcher) -> Outcome:
        tries.append(target.name)
        if target.name == "a":
            raise AwayError("it does not answer")
        if target.name == "d" and tries.count("d") == 1:
            raise BusyError("another install is under way")
        return Outcome(target.name, "done")

    result = Runner(
        targets(*"abcdef"), one, RolloutTable(wave=2, limit=1), Silent(), retry=(5.0, 9.0), pause=pauses.append
    ).run()
    assert results(result.outcomes) == {"a": "away", **dict.fromkeys("bcdef", "done")}
    assert tries[:3] == ["a", "b", "c"]
    assert (tries.count("a"), tries.count("d")) == (3, 2)
    assert pauses == [5.0, 9.0]
    assert result.exit_code == 3


def test_failures_up_to_the_threshold_are_borne() -> None:
    """`--max-failures 2` goes on after two and begins nothing after the third; a share counts of all devices."""
    failing = {name: CommandError("it refuses") for name in "abc"}
    table = RolloutTable(canaries=0, wave=1, limit=1)
    stopped = Runner(targets(*"abcdef"), kinds(failing), table, Silent(), limits=FailureLimit(count=2)).run()
    assert results(stopped.outcomes) == {**dict.fromkeys("abc", "failed"), **dict.fromkeys("def", "not tried")}
    borne = Runner(targets(*"abcdef"), kinds(failing), table, Silent(), limits=FailureLimit(percent=50.0)).run()
    assert results(borne.outcomes) == {**dict.fromkeys("abc", "failed"), **dict.fromkeys("def", "done")}
    one_wave = RolloutTable(canaries=0, limit=1)
    stopped = Runner(targets(*"abcdef"), kinds(failing), one_wave, Silent(), limits=FailureLimit(count=1)).run()
    assert results(stopped.outcomes)["c"] == "not tried", "the threshold stops a bad bundle within its wave"


def test_refusals_do_not_count_against_the_wave() -> None:
    """A device that may not be touched says nothing about the bundle; the exit code says that something is left."""
    work_ = kinds({"a": RefusedError("made for another class")})
    result = Runner(targets(*"abc"), work_, RolloutTable(), Silent()).run()
    assert results(result.outcomes) == {"a": "refused", "b": "done", "c": "done"}
    assert result.exit_code == 1


def test_a_device_that_hangs_does_not_hold_up_the_next_wave(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wave is no barrier for the healthy: the next begins while one device of the first still hangs."""
    monkeypatch.setattr("edge_runtime.fleet.rollout.STRAGGLER_S", 0.3)
    last = threading.Event()

    def one(target: FleetDevice, _: Watcher) -> Outcome:
        if target.name == "a":
            assert last.wait(patient(20))  # it hangs until the very last device is done
        if target.name == "f":
            last.set()
        return Outcome(target.name, "done")

    table = RolloutTable(canaries=0, wave=2, limit=1)
    assert set(results(Runner(targets(*"abcdef"), one, table, Silent()).run().outcomes).values()) == {"done"}


def test_an_interruption_leaves_a_result_for_every_device() -> None:
    """Ctrl-C begins nothing more, stops a transfer between two parts, lets an install end, and exits with 130."""
    in_transfer, in_install = threading.Event(), threading.Event()
    go_on = threading.Event()
    collected: list[str] = []

    class Loud(Silent):
        def say(self, text: str) -> None:
            collected.append(text)
            if text.startswith("interrupted"):
                go_on.set()

    def one(target: FleetDevice, watcher: Watcher) -> Outcome:
        if target.name == "a":
            in_transfer.set()
            assert go_on.wait(patient(20))
            watcher.bytes("a", 10, 100)
        if target.name == "b":
            in_install.set()
            assert go_on.wait(patient(20))
        return Outcome(target.name, "done")

    def interrupt() -> None:
        assert in_transfer.wait(patient(20))
        assert in_install.wait(patient(20))
        _thread.interrupt_main()

    # A shell that runs the tests in the background has them ignore SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=interrupt, daemon=True).start()
    try:
        result = Runner(targets(*"abcd"), one, RolloutTable(canaries=0, limit=2), Loud()).run()
    finally:
        signal.signal(signal.SIGINT, before)
    assert results(result.outcomes) == {"a": "not tried", "b": "done", "c": "not tried", "d": "not tried"}
    assert result.exit_code == 130
    assert "a, b cannot be stopped now" in collected[-1]


def test_many_names_are_folded() -> None:
    """Runs of numbers are ranges, and of a long list the first names and a count are shown."""
    assert folded([f"press-{number:02}" for number in (1, 2, 3, 5, 6)]) == "press-01..03, press-05, press-06"
    assert folded(["a9", "a10", "b"]) == "a9, a10, b"
    assert folded([f"x{number}y" for number in range(20)]).endswith(" and 8 more")


def test_devices_that_are_away_are_tried_again_after_5_and_20_seconds() -> None:
    """By the pauses of the command; what answers in the end is done."""
    pauses: list[float] = []
    tries: list[str] = []

    def one(target: FleetDevice, _: Watcher) -> Outcome:
        tries.append(target.name)
        return Outcome(target.name, "away" if tries.count(target.name) < 3 else "done")

    table = RolloutTable(canaries=0)
    runner = Runner(targets("a"), one, table, Silent(), retry=RETRY_PAUSES_S, pause=pauses.append)
    assert results(runner.run().outcomes) == {"a": "done"}
    assert pauses == [5.0, 20.0]
    assert tries == ["a", "a", "a"]
