"""The command sink with real children: what they get, how often, and what is left of them."""

import sys
from pathlib import Path

import pytest

from tests.unit.sinks.conftest import Begin, Bench


def program(code: str) -> list[str]:
    """A program of Python lines."""
    return [sys.executable, "-c", "import os, subprocess, sys, time\n" + code]


def is_alive(pid: int) -> bool:
    """There is such a process, and it is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def pids(path: Path, count: int, bench: Bench) -> list[int]:
    """The numbers that children wrote into a file."""
    bench.until(lambda: path.exists() and len(path.read_text().split()) >= count)
    return [int(each) for each in path.read_text().split()]


def test_each_prediction_is_a_run_with_its_json_on_standard_input(tmp_path: Path, begin: Begin) -> None:
    """In order, one at a time, without a shell and with little of our environment."""
    out = tmp_path / "out"
    words = "sys.stdin.read() + sys.argv[1] + str('PYTEST_CURRENT_TEST' in os.environ) + '\\n'"
    code = f"open({str(out)!r}, 'a').write({words})"
    bench = begin("command", argv=[*program(code), "$(id) ; *"], min_interval=0)
    bench.offer(b"one", b"two")
    bench.until(lambda: bench.counters.counts["runs"] == 2)
    assert out.read_text() == "one$(id) ; *False\ntwo$(id) ; *False\n"


def test_more_than_one_in_the_interval_waits_and_beyond_the_bound_the_oldest_go(begin: Begin) -> None:
    """Alarms last; the first one runs at once."""
    bench = begin("command", argv=program(""), min_interval=3600)
    bench.offer(b"first", alarm=True)
    bench.offer(b"alarm", alarm=True)
    bench.offer(*(b"%d" % number for number in range(40)))
    bench.until(lambda: bench.counters.counts["runs"] == 1)
    assert bench.sink.is_safe, "the next one was started within the interval"
    assert bench.counters.dropped == {"rate_limited": 9}
    bench.end()
    assert bench.counters.dropped == {"rate_limited": 9, "stopped": 32}


@pytest.mark.parametrize(
    ("argv", "reason", "words"),
    [
        (
            ["/nowhere/siren"],
            "not_started",
            "/nowhere/siren: cannot be started (No such file or directory): look at argv",
        ),
        (
            program("sys.exit('the relay\\x1b[31m is stuck')"),
            "failed",
            "ended with exit code 1: the relay [31m is stuck",
        ),
        (program("os.kill(os.getpid(), 9)"), "failed", "ended with signal 9"),
        (program("sys.stderr.write('x' * 10**6 + '\\n'); sys.exit(3)"), "failed", "ended with exit code 3: xxx"),
    ],
    ids=["missing", "exit code", "signal", "flood"],
)
def test_a_run_that_fails_is_one_sentence_and_the_next_one_is_tried(
    begin: Begin, argv: list[str], reason: str, words: str
) -> None:
    """Counted each time, logged once."""
    bench = begin("command", argv=argv, min_interval=0)
    bench.offer(b"one", b"two")
    bench.until(lambda: bench.counters.errors[reason] == 2)
    assert words in bench.sink.state
    assert len(bench.sink.state) < 700
    assert bench.changes == 1


def test_a_program_that_hangs_is_ended_with_its_children(tmp_path: Path, begin: Begin) -> None:
    """It also does not read what it is given."""
    out = tmp_path / "pids"
    # A shell has begun long before its time is over, also on a busy machine.
    code = f"trap '' TERM; sleep 1000 & echo $$ $! >{out}; while :; do sleep 1000; done"
    bench = begin("command", argv=["/bin/sh", "-c", code], timeout=2.0)
    bench.offer(b"x" * 900_000)
    bench.until(lambda: bench.counters.errors["timed_out"])
    assert "ended after 2 s (timeout): it hangs" in bench.sink.state
    found = pids(out, 2, bench)
    bench.until(lambda: not any(map(is_alive, found)))  # the kernel needs a moment for it


def test_a_stop_ends_what_runs_with_its_children(tmp_path: Path, begin: Begin) -> None:
    """At once, and what waits is counted."""
    out = tmp_path / "pids"
    code = (
        f"child = subprocess.Popen(['sleep', '1000'])\n"
        f"print(os.getpid(), child.pid, file=open({str(out)!r}, 'w'), flush=True)\n"
        "time.sleep(1000)"
    )
    bench = begin("command", argv=program(code), timeout=1000)
    bench.offer(b"one", b"two")
    found = pids(out, 2, bench)
    bench.end()
    bench.until(lambda: not any(map(is_alive, found)))
    assert bench.counters.dropped == {"stopped": 2}
    assert not bench.counters.errors


def test_after_a_stop_nothing_is_started(begin: Begin) -> None:
    """What comes while the daemon ends is not run, however long the last run was ago."""
    bench = begin("command", argv=program(""), min_interval=0)
    bench.offer(b"first")
    bench.until(lambda: bench.counters.counts["runs"] == 1)
    bench.sink.drain()
    bench.offer(b"second")
    assert bench.sink.is_safe
    bench.end()
    assert bench.counters.counts["runs"] == 1
    assert bench.counters.dropped == {"stopped": 1}


def test_a_large_prediction_reaches_a_program_that_reads_slowly(tmp_path: Path, begin: Begin) -> None:
    """More than a pipe holds."""
    out = tmp_path / "out"
    code = f"time.sleep(0.2)\ndata = sys.stdin.buffer.read()\nopen({str(out)!r}, 'w').write(str(len(data)))"
    bench = begin("command", argv=program(code))
    bench.offer(b"x" * 900_000)
    bench.until(lambda: bench.counters.counts["runs"] == 1)
    assert out.read_text() == "900000"


def test_a_program_that_closes_its_input_is_no_fault(begin: Begin) -> None:
    """A siren needs no JSON."""
    bench = begin("command", argv=program("os.close(0); time.sleep(0.2)"))
    bench.offer(b"x" * 900_000)
    bench.until(lambda: bench.counters.counts["runs"] == 1)
    assert not bench.counters.errors
