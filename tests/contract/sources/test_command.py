"""A program as a source, with a real child: its frames, its end, its stderr, and what is left of it after a stop."""

import logging
import os
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from edge_runtime.errors import ConfigError
from edge_runtime.stream.byte_framing import FixedFramer, LengthFramer
from edge_runtime.stream.framing import cobs_encode
from edge_runtime.stream.sources.command import CommandSource, CommandSourceTable
from edge_runtime.system.counters import Counters
from tests.support.payload_cases import load_source
from tests.support.source_bench import SourceBench

Bench = SourceBench[CommandSource]
Begin = Callable[..., Bench]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    """Start a program of Python lines: `begin(code, keys, channels)`."""
    begun: list[Bench] = []

    def start(code: str, keys: str = "", channels: tuple[str, ...] = ("x",), argv: str | None = None) -> Bench:
        (tmp_path / "program.py").write_text("import os, subprocess, sys, time\nout = sys.stdout.buffer\n" + code)
        words = argv or f'["{sys.executable}", "-u", "{tmp_path / "program.py"}"]'
        table = load_source(f'type = "command"\nargv = {words}\nrestart_max = 0.05\n{keys}', tmp_path)
        assert isinstance(table, CommandSourceTable)
        begun.append(SourceBench(CommandSource, table, channels))
        begun[-1].source.start()
        return begun[-1]

    yield start
    for bench in begun:
        bench.close()


def test_lines_are_readings_from_the_first_one_on(begin: Begin) -> None:
    """A pipe begins at a line, so that nothing is dropped."""
    bench = begin("""print('{"x":1}'); print('{"x":2}'); time.sleep(60)""")
    bench.until(lambda: len(bench.values) == 2)
    assert bench.values == [[1], [2]]
    assert bench.source.is_open


def test_a_frame_of_bytes_holds_many_readings(begin: Begin) -> None:
    """Stereo samples of 16 bits, in frames of 4,000 bytes: each sample once and in order."""
    keys = 'format = "raw"\nfields = ["left", "right"]\nlayout = ["int16", "int16"]\nframe_bytes = 4000'
    code = "import struct\nfor n in range(0, 20000, 1000):\n"
    code += "    out.write(b''.join(struct.pack('<hh', i, -i) for i in range(n, n + 1000)))\ntime.sleep(60)"
    bench = begin(code, keys, ("right", "left"))
    bench.until(lambda: len(bench.values) == 20000)
    assert np.array_equal(np.array(bench.values), np.array([(-i, i) for i in range(20000)]))
    assert not bench.counters.rejected


def test_frames_with_their_length_and_in_cobs(begin: Begin) -> None:
    """Both framings give the numbers that were packed."""
    raw = 'format = "raw"\nfields = ["x"]\nlayout = ["int32"]\n'
    frames = [struct.pack("<i", number) for number in (0, 7, -1)]
    lengths = b"".join(len(frame).to_bytes(2, "big") + frame for frame in frames)
    bench = begin(f"out.write({lengths!r}); out.flush(); time.sleep(60)", raw + 'framing = "length"\nlength_bytes = 2')
    bench.until(lambda: len(bench.values) == 3)
    assert bench.values == [[0], [7], [-1]]
    stuffed = b"".join(cobs_encode(frame) + b"\0" for frame in frames)
    bench = begin(f"out.write({stuffed!r}); out.flush(); time.sleep(60)", raw + 'framing = "cobs"')
    bench.until(lambda: len(bench.values) == 3)
    assert bench.values == [[0], [7], [-1]]


def test_a_program_that_ends_is_started_again(begin: Begin, caplog: pytest.LogCaptureFixture) -> None:
    """Its end is counted with its exit code, its stderr is in the log, and its next readings come."""
    caplog.set_level(logging.INFO)
    bench = begin("""print('{"x":1}'); print("no device", file=sys.stderr); sys.exit(3)""")
    bench.until(lambda: len(bench.values) >= 3)
    assert bench.counters.errors["ended"] >= 2
    assert "ended with exit code 3: started again" in caplog.text
    assert "stderr: no device" in caplog.text


def test_a_program_that_is_missing_is_tried_again(begin: Begin, tmp_path: Path) -> None:
    """One sentence says what to look at; once it is there it is started."""
    program = tmp_path / "later.sh"
    bench = begin("", argv=f'["{program}"]')
    assert bench.source.state == f"{program}: cannot be started (No such file or directory): look at argv"
    assert not bench.source.is_open
    program.with_suffix(".new").write_text("#!/bin/sh\necho '{\"x\":5}'\nexec sleep 60\n")
    program.with_suffix(".new").chmod(0o700)
    program.with_suffix(".new").rename(program)
    bench.until(lambda: bench.values)
    assert bench.values == [[5]]


def test_a_stop_ends_the_program_with_its_children(begin: Begin) -> None:
    """Even those that ignore SIGTERM are gone when `stop` returns."""
    child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"
    code = f"child = subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.PIPE)\n"
    code += 'child.stdout.readline()\nprint(\'{"x":%d,"y":%d}\' % (child.pid, os.getpid())); time.sleep(600)'
    bench = begin(code, channels=("x", "y"))
    bench.until(lambda: bench.values)
    pids = [int(value) for value in bench.values[0]]
    bench.source.stop()
    assert bench.source.state.endswith("stopped")
    for pid in pids:
        bench.until(lambda pid=pid: not _runs(pid))  # type: ignore[misc]


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_flood_waits_in_the_pipe_while_the_way_is_full(begin: Begin) -> None:
    """Nothing is read while downstream is full, nothing is held meanwhile, and no line is lost."""
    code = "for n in range(200000): print('{\"x\":%d}' % n)\ntime.sleep(60)"
    bench = begin(code)
    bench.until(lambda: bench.values)
    bench.is_paused = True
    bench.loop.run_once(0.05)
    count = len(bench.values)
    for _ in range(5):
        bench.loop.run_once(0.02)
    assert len(bench.values) == count
    bench.is_paused = False
    bench.until(lambda: len(bench.values) == 200000)
    assert bench.values == [[number] for number in range(200000)]


def test_a_length_that_cannot_be_starts_the_program_anew(begin: Begin) -> None:
    """Behind a wrong length there are no frames any more: it is counted, and the stream begins again."""
    raw = 'format = "raw"\nfields = ["x"]\nlayout = ["uint8"]\nframing = "length"\nmax_frame_bytes = 1000\n'
    code = "out.write(bytes([0, 0, 0, 1, 7, 255, 255, 255, 255, 1])); out.flush(); time.sleep(600)"
    bench = begin(code, raw)
    bench.until(lambda: bench.counters.rejected["too_long"] >= 2)
    assert bench.values[:2] == [[7], [7]]


def test_a_program_sees_nothing_of_our_environment(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither credentials nor the socket of systemd."""
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "/run/credentials")
    monkeypatch.setenv("NOTIFY_SOCKET", "@x")
    code = "seen = set(os.environ) - {'PATH', 'HOME', 'LANG', 'LC_ALL', 'TZ', 'LC_CTYPE'}\n"
    bench = begin(code + "print('{\"x\":%d}' % len(seen)); time.sleep(60)")
    bench.until(lambda: bench.values)
    assert bench.values == [[0]]


@pytest.mark.parametrize(
    ("keys", "mistake"),
    [
        ("argv = []", "argv: expected a program and its arguments, found an array of 0"),
        ('argv = ["a"]\nframing = "fixed"', 'frame_bytes: expected the size of a frame, because framing = "fixed"'),
        ('argv = ["a"]\nframe_bytes = 4', 'frame_bytes: expected it only with framing = "fixed", found "lines"'),
        (
            'argv = ["a"]\nframing = "lines"\nformat = "msgpack"',
            'framing: expected "fixed", "length" or "cobs", found "lines"',
        ),
    ],
)
def test_mistakes_are_named(keys: str, mistake: str, tmp_path: Path) -> None:
    """`check` says what is wrong with the keys of a command."""
    with pytest.raises(ConfigError, match="source") as caught:
        load_source(f'type = "command"\n{keys}\n', tmp_path)
    assert mistake in str(caught.value)


def test_frames_come_out_however_the_bytes_are_split() -> None:
    """Against the plain list: fixed sizes and lengths, in chunks of one to nine bytes."""
    frames = [os.urandom(5) for _ in range(40)]
    lengths = b"".join(len(frame).to_bytes(1, "big") + frame for frame in frames)
    for step in range(1, 10):
        fixed, length = FixedFramer(5), LengthFramer(1, 16, Counters())
        data = b"".join(frames)
        assert [f for at in range(0, 200, step) for f in fixed.feed(data[at : at + step])] == frames
        assert [f for at in range(0, 240, step) for f in length.feed(lengths[at : at + step])] == frames
