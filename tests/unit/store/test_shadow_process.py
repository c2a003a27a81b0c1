"""Both ends of a shadow's process, each without the other: packets, deadlines, ends, and the states of streams."""

import io
import json
import os
import resource
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from edge_runtime.bundle.model import Model
from edge_runtime.bundle.open import open_bundle
from edge_runtime.bundle.selftest import MAPPED_BY_RUNTIME
from edge_runtime.readings import Carry
from edge_runtime.store import shadow_process as module
from edge_runtime.store.shadow_process import ANSWER_S, LOAD_S, MODEL_BYTES, ShadowError, ShadowProcess, write_packet
from tests.support import builders

MIB = 1024 * 1024


def _packet(header: dict[str, Any], body: bytes = b"") -> bytes:
    """As it is documented: two sizes of 4 bytes each, the most significant first, a header as JSON, a body."""
    text = json.dumps(header).encode()
    return struct.pack(">II", len(text), len(body)) + text + body


class Child:
    """Stands in for the started process: the test writes what it answers, and reads what it was sent."""

    def __init__(self) -> None:
        self.pid = 4711
        (answers, self._out), (self._in, questions) = os.pipe(), os.pipe()
        self.stdout, self.stdin = os.fdopen(answers, "rb", buffering=0), os.fdopen(questions, "wb")
        self.commands: list[list[str]] = []
        self.status: int | None = 0
        self.killed = self.waited = 0

    def answer(self, data: bytes) -> None:
        """The bytes that the parent reads next."""
        os.write(self._out, data)

    def end(self) -> None:
        """No more bytes come."""
        os.close(self._out)
        self._out = -1

    def sent(self) -> bytes:
        """What the parent has sent."""
        os.set_blocking(self._in, False)
        return os.read(self._in, 1 << 16)

    def stop_reading(self) -> None:
        """The parent's next bytes go nowhere."""
        os.close(self._in)
        self._in = -1

    def kill(self) -> None:
        """As `Popen.kill`."""
        self.killed += 1

    def wait(self, timeout: float | None = None) -> int:
        """As `Popen.wait`; a status of None never comes."""
        self.waited += 1
        assert timeout in {None, 5.0}
        if self.status is None:
            raise subprocess.TimeoutExpired("x", timeout or 0.0)
        return self.status

    def close(self) -> None:
        """Every descriptor that is open."""
        for number in (self._in, self._out):
            if number >= 0:
                os.close(number)
        for pipe in (self.stdin, self.stdout):
            try:
                pipe.close()
            except OSError:
                assert self._in == -1  # what is still in its buffer goes nowhere


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> Iterator[Child]:
    """In the place of a program."""
    made = Child()

    def start(command: list[str], *, stdin: int, stdout: int) -> Child:
        assert (stdin, stdout) == (subprocess.PIPE, subprocess.PIPE)
        made.commands.append(command)
        return made

    monkeypatch.setattr(module, "start_child", start)
    yield made
    made.close()


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A file of 1000 bytes."""
    path = tmp_path / "b.onnx"
    path.write_bytes(b"x" * 1000)
    return path


@pytest.fixture
def process(child: Child, bundle: Path) -> ShadowProcess:
    """One that has loaded its model."""
    child.answer(_packet({}))
    return ShadowProcess(bundle, "d1", threads=3)


# -- the parent's end ----------------------------------------------------------------------------------------------


def test_the_program_is_given_file_digest_threads_and_memory(
    process: ShadowProcess, child: Child, bundle: Path
) -> None:
    """It may map what the runtime maps, half a gigabyte, and eight times its file."""
    assert MODEL_BYTES == 512 * MIB
    mapped = MAPPED_BY_RUNTIME + 512 * MIB + 8000
    assert child.commands == [
        [sys.executable, "-P", "-s", "-m", "edge_runtime.store.shadow_process", str(bundle), "d1", "3", str(mapped)]
    ]
    assert process.pid == 4711
    assert child.killed == 0


def test_one_thread_unless_it_is_told(child: Child, bundle: Path) -> None:
    """As a model of the daemon."""
    child.answer(_packet({}))
    ShadowProcess(bundle, "d1")
    assert child.commands[0][-2] == "1"


def test_a_question_is_one_packet_and_an_answer_too(process: ShadowProcess, child: Child) -> None:
    """Also where it comes in pieces; another question follows on the same pipes."""
    answer = _packet({"took": 0.5, "arrays": {}}, b"body")
    child.answer(answer)
    assert process.ask([2, 3], b"windows", ["a", None], ["b"]) == ({"took": 0.5, "arrays": {}}, b"body")
    assert child.sent() == _packet({"shape": [2, 3], "keys": ["a", None], "anew": ["b"]}, b"windows")
    child.answer(_packet({"error": "no"}))
    assert process.ask((1,), b"w", []) == ({"error": "no"}, b"")
    assert child.sent() == _packet({"shape": [1], "keys": [], "anew": []}, b"w")


@pytest.mark.parametrize("piece", [1, 3, 5])
def test_an_answer_in_small_pieces_is_one(
    process: ShadowProcess, child: Child, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    """A pipe gives what it has; of what follows, no byte is taken too early."""
    read = os.read
    monkeypatch.setattr(module, "os", SimpleNamespace(read=lambda handle, count: read(handle, min(count, piece))))
    child.answer(_packet({"x": 1}, b"body"))
    assert process.ask([1], b"", []) == ({"x": 1}, b"body")


def test_an_answer_without_a_body_is_read_without_a_wait(process: ShadowProcess, child: Child) -> None:
    """No byte is asked for that does not come."""
    child.answer(_packet({"x": 1}))
    assert process.ask([1], b"", []) == ({"x": 1}, b"")


def test_a_huge_answer_is_refused(process: ShadowProcess, child: Child) -> None:
    """64 MiB of header and body together; the sizes come out of a process that runs an untrusted model."""
    for sizes in ((0, 64 * MIB + 1), (64 * MIB + 1, 0), (32 * MIB, 32 * MIB + 1), (2**32 - 1, 2**32 - 1)):
        child.answer(struct.pack(">II", *sizes))
        with pytest.raises(ShadowError, match="answers more than was asked for"):
            process.ask([1], b"", [])


def test_an_answer_of_the_largest_size_is_waited_for(
    process: ShadowProcess, child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is allowed; here it does not come."""
    monkeypatch.setattr(module, "ANSWER_S", 0.01)
    child.answer(struct.pack(">II", 2, 64 * MIB - 2) + b"{}")
    with pytest.raises(ShadowError, match="hangs: no answer came in time"):
        process.ask([1], b"", [])


class Clock:
    """A clock that goes on with every look at it, and a `select` that notes how long it may wait."""

    def __init__(self, step: float, *, is_readable: bool) -> None:
        self.now, self.step, self.is_readable = 0.0, step, is_readable
        self.waits: list[float] = []

    def monotonic(self) -> float:
        """As `time.monotonic`."""
        self.now += self.step
        return self.now

    def select(self, readers: list[int], _writers: list[int], _others: list[int], left: float) -> tuple[list[int]]:
        """As `select.select`."""
        self.waits.append(round(left, 6))
        return (readers if self.is_readable else [],)


def test_an_answer_is_waited_for_twenty_seconds_and_a_model_two_minutes(
    child: Child, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In all, and not for each piece: the time of the pieces before is gone."""
    assert (LOAD_S, ANSWER_S) == (120.0, 20.0)
    clock = Clock(1.0, is_readable=True)
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(module, "select", clock)
    child.answer(_packet({}))
    process = ShadowProcess(bundle, "d1")
    assert clock.waits == [119.0, 118.0]
    clock.waits.clear()
    child.answer(_packet({"x": 1}, b"body"))
    process.ask([1], b"", [])
    assert clock.waits == [19.0, 18.0, 17.0]


def test_one_that_sends_bytes_too_slowly_hangs(
    process: ShadowProcess, child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the very end of its time too."""
    clock = Clock(10.0, is_readable=True)
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(module, "select", clock)
    child.answer(_packet({"x": 1}, b"body"))
    with pytest.raises(ShadowError, match="hangs: no answer came in time"):
        process.ask([1], b"", [])
    assert clock.waits == [10.0]


def test_the_last_half_second_is_waited_for(
    process: ShadowProcess, child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer counts as long as any time is left."""
    clock = Clock(6.5, is_readable=True)
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(module, "select", clock)
    child.answer(_packet({"x": 1}, b"body"))
    assert process.ask([1], b"", []) == ({"x": 1}, b"body")
    assert clock.waits == [13.5, 7.0, 0.5]


def test_a_model_that_does_not_load_in_time_is_ended(
    child: Child, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No process stays behind."""
    clock = Clock(1.0, is_readable=False)
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(module, "select", clock)
    with pytest.raises(ShadowError, match="hangs: no answer came in time"):
        ShadowProcess(bundle, "d1")
    assert (child.killed, child.waited) == (1, 1)
    assert child.stdin.closed
    assert child.stdout.closed


def test_a_model_that_cannot_be_loaded_is_ended_with_its_reason(child: Child, bundle: Path) -> None:
    """The process says why, and is not left."""
    child.answer(_packet({"error": "no such operator"}))
    with pytest.raises(ShadowError, match=r"^cannot be loaded: no such operator$"):
        ShadowProcess(bundle, "d1")
    assert (child.killed, child.stdin.closed) == (1, True)


def test_a_program_that_cannot_be_started_is_told(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No process, no memory."""

    def start(*_: object, **__: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(module, "start_child", start)
    with pytest.raises(ShadowError, match=r"^cannot be started: Cannot allocate memory$"):
        ShadowProcess(bundle, "d1")


ENDS = [
    (-signal.SIGALRM, "hangs: no answer came in time"),
    (-signal.SIGKILL, "was killed, most likely for want of memory"),
    (-signal.SIGSEGV, "crashed onnxruntime (SIGSEGV)"),
    (-signal.SIGHUP, "crashed onnxruntime (SIGHUP)"),
    (0, "ended with exit code 0"),
    (1, "ended with exit code 1"),
    (None, "hangs: it does not listen any more"),
]


@pytest.mark.parametrize(("status", "words"), ENDS)
def test_an_end_without_an_answer_is_explained(
    process: ShadowProcess, child: Child, status: int | None, words: str
) -> None:
    """By the signal or the exit code; a process that closed its pipe and lives hangs."""
    child.status = status
    child.end()
    with pytest.raises(ShadowError) as caught:
        process.ask([1], b"", [])
    assert str(caught.value) == words


def test_a_question_to_one_that_is_gone_is_explained_too(process: ShadowProcess, child: Child) -> None:
    """The pipe is broken; the end says why."""
    child.status = -signal.SIGSEGV
    child.stop_reading()
    with pytest.raises(ShadowError, match="SIGSEGV"):
        process.ask([1], b"w" * 100_000, [])


def test_a_kill_leaves_the_pipes_to_the_thread_that_waits(process: ShadowProcess, child: Child) -> None:
    """Any thread may kill; only `end` closes and waits, also where the pipe is broken."""
    process.kill()
    assert (child.killed, child.waited, child.stdin.closed) == (1, 0, False)
    child.stdin.write(b"rest")
    child.stop_reading()
    process.end()
    assert (child.killed, child.waited, child.stdout.closed) == (2, 1, True)


# -- the child's end -----------------------------------------------------------------------------------------------


class Timers:
    """The alarms that were set, in order; `signal` for the module."""

    ITIMER_REAL = signal.ITIMER_REAL

    def __init__(self) -> None:
        self.set: list[float] = []

    def setitimer(self, which: int, seconds: float) -> None:
        """As `signal.setitimer`."""
        assert which == signal.ITIMER_REAL
        self.set.append(seconds)


def _serve(
    monkeypatch: pytest.MonkeyPatch, words: list[str] | None, given: bytes
) -> tuple[int, list[tuple[dict[str, Any], bytes]], list[float], list[int]]:
    """Run the child with this input: its exit code, its answers, its alarms, and the bounds of its memory."""
    timers, bounds, out = Timers(), cast("list[int]", []), io.BytesIO()
    monkeypatch.setattr(module, "signal", timers)
    monkeypatch.setattr(module, "_step_back", bounds.append)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(given)))
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=out))
    code = module.main(words)
    data, answers = out.getvalue(), []
    while data:
        header, body = struct.unpack(">II", data[:8])
        answers.append((json.loads(data[8 : 8 + header]), data[8 + header : 8 + header + body]))
        data = data[8 + header + body :]
    return code, answers, timers.set, bounds


def _words_of(draft: builders.Draft, folder: Path) -> list[str]:
    path = draft.save(folder / "shadow.onnx")
    return [str(path), open_bundle(path).digest, "2", "123456"]


def test_the_child_answers_until_its_input_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit what the model says; an alarm ends it when an answer takes too long, and none while it waits."""
    windows = np.random.default_rng(3).normal(size=(5, 1, 2)).astype(np.float32)
    question = _packet({"shape": [5, 1, 2], "keys": [], "anew": []}, windows.tobytes())
    words = _words_of(builders.classification(), tmp_path)
    code, answers, alarms, bounds = _serve(monkeypatch, words, question * 2 + b"\0\0\0")
    expected = Model(open_bundle(tmp_path / "shadow.onnx")).run(windows)
    assert expected.label is not None
    assert expected.scores is not None
    assert (code, bounds) == (0, [123_456])
    assert answers[0] == ({}, b"")
    assert len(answers) == 3
    for header, body in answers[1:]:
        assert header["arrays"] == {"label": ["int64", [5]], "scores": ["float32", [5, 2]]}
        assert (header["named"], body) == (False, expected.label.tobytes() + expected.scores.tobytes())
        assert 0 < header["took"] < 60
    assert alarms == [120.0, 0, 21.0, 0, 21.0, 0]


def test_the_child_reads_the_words_of_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first is the program's name, as everywhere."""
    monkeypatch.setattr(sys, "argv", ["shadow_process.py", *_words_of(builders.classification(), tmp_path)])
    code, answers, _, bounds = _serve(monkeypatch, None, b"")
    assert (code, answers, bounds) == (0, [({}, b"")], [123_456])


def test_the_child_says_why_it_cannot_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another file than was checked; the exit code tells it too, and no question is read."""
    words = _words_of(builders.classification(), tmp_path)
    words[1] = "0" * 64
    code, answers, _, _ = _serve(monkeypatch, words, b"")
    assert code == 1
    assert len(answers) == 1
    assert "expected the file that was checked" in answers[0][0]["error"]


def test_the_child_checks_the_golden_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that answers otherwise here than where it was made is not compared with anything."""
    draft = builders.classification()
    draft.manifest["selftest"] = builders.classification(seed=99).manifest["selftest"]
    code, answers, _, _ = _serve(monkeypatch, _words_of(draft, tmp_path), b"")
    assert code == 1
    assert "error" in answers[0][0]


def test_a_window_that_fails_is_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child goes on."""
    bad = _packet({"shape": [1, 3, 1], "keys": [], "anew": []}, np.zeros(3, np.float32).tobytes())
    good = _packet({"shape": [1, 1, 2], "keys": [], "anew": []}, np.zeros(2, np.float32).tobytes())
    code, answers, _, _ = _serve(monkeypatch, _words_of(builders.classification(), tmp_path), bad + good)
    assert code == 0
    assert set(answers[1][0]) == {"error"}
    assert "arrays" in answers[2][0]


def test_the_child_keeps_the_state_of_each_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams do not mix; one that is named anew begins with the zero state, and an unknown one is no error."""
    one = np.ones((1, 1, 2), np.float32)
    course: list[tuple[list[str | None], list[str]]] = [
        (["a"], []), (["b"], []), (["a"], []), (["a"], ["a", "never seen"]), (["b"], []),
    ]  # fmt: skip
    questions = b"".join(_packet({"shape": [1, 1, 2], "keys": k, "anew": a}, one.tobytes()) for k, a in course)
    words = _words_of(builders.stateful(length=1), tmp_path)
    _, answers, _, _ = _serve(monkeypatch, words, questions)
    model = Model(open_bundle(tmp_path / "shadow.onnx"))
    carries: dict[str | None, Carry] = {}
    for (keys, anew), (_, body) in zip(course, answers[1:], strict=True):
        if anew:
            carries.pop("a")
        expected = model.run(one, [carries.setdefault(keys[0], Carry())])
        assert expected.scores is not None
        assert body[8:] == expected.scores.tobytes()


def test_the_child_keeps_so_many_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1024; the one that was used longest ago goes first."""
    path = builders.stateful(length=1).save(tmp_path / "shadow.onnx")
    server = module._Server(path, open_bundle(path).digest, 1)
    assert module._MOST_STREAMS == 1024
    monkeypatch.setattr(module, "_MOST_STREAMS", 3)
    for keys in (["a"], ["b"], ["c"], ["a"], ["d"]):
        server._streams({"anew": [], "keys": keys})
    assert list(server._carries) == ["c", "a", "d"]
    server._streams({"anew": ["a"], "keys": ["e", "f", "g", "h"]})
    assert list(server._carries) == ["f", "g", "h"]


def test_named_tensors_are_said_to_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the other end reads them as such."""
    draft = builders.tensors()
    windows = np.ones((2, 2, 3), np.float32)
    question = _packet({"shape": [2, 2, 3], "keys": [], "anew": []}, windows.tobytes())
    _, answers, _, _ = _serve(monkeypatch, _words_of(draft, tmp_path), question)
    header, body = answers[1]
    assert header["named"] is True
    assert header["arrays"] == {"heat": ["float32", [2, 2, 3]], "peak": ["int64", [2, 3]]}
    assert len(body) == 2 * 6 * 4 + 2 * 3 * 8


def test_the_reason_of_an_error_is_one_short_line() -> None:
    """300 characters; an error without a text by its kind."""
    assert module._words(ValueError("a\n  b\tc")) == "a b c"
    assert module._words(ValueError("x" * 400)) == "x" * 300
    assert module._words(KeyError()) == "KeyError"


def test_the_child_may_write_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the limits of every child: memory and priority."""
    called: list[tuple[Any, ...]] = []
    monkeypatch.setattr(module, "step_back", lambda mapped: called.append(("step_back", mapped)))
    monkeypatch.setattr(resource, "setrlimit", lambda what, limits: called.append((what, limits)))
    module._step_back(1234)
    assert called == [("step_back", 1234), (resource.RLIMIT_FSIZE, (0, 0))]


def test_a_packet_is_flushed() -> None:
    """Else the other end waits for it for ever."""
    raw = io.BytesIO()
    pipe = io.BufferedWriter(cast("Any", raw), 1 << 16)
    write_packet(pipe, {"a": 1}, b"body")
    assert raw.getvalue() == _packet({"a": 1}, b"body")
