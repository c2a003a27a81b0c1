"""Log lines, as people, the journal and programs read them."""

import io
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_runtime.system.log import Form, fields, get_logger, setup


@pytest.fixture(autouse=True)
def _leave_logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger("edge_runtime")
    before = (list(root.handlers), root.level, root.propagate)
    yield
    root.handlers, root.propagate = before[0], before[2]
    root.setLevel(before[1])


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def begin(form: Form = "text", level: str = "info") -> tuple[io.StringIO, Clock]:
    """A log that writes into memory, and the clock that it goes by."""
    stream, clock = io.StringIO(), Clock()
    setup(level, form, stream, {}, clock=clock)
    return stream, clock


def test_a_line_for_people_has_time_level_part_text_and_fields() -> None:
    """The human form ends in fields, quoted only where needed."""
    stream, _ = begin()
    get_logger("serial").warning(
        "port %s lost", "/dev/ttyUSB0", extra=fields(source="imu", why="no such device", s=1.5)
    )
    assert stream.getvalue()[12:] == ' WARNING serial: port /dev/ttyUSB0 lost  source=imu why="no such device" s=1.5\n'


def test_the_journal_gets_priorities_and_no_time() -> None:
    """Under systemd a line begins with its priority in angle brackets, and the journal keeps the time."""
    stream, _ = begin("journal", "debug")
    log = get_logger("edge_runtime.serial")
    log.debug("a")
    log.info("b")
    log.warning("c")
    log.error("d", extra=fields(source="imu"))
    log.critical("e")
    lines = ["<7>serial: a", "<6>serial: b", "<4>serial: c", "<3>serial: d  source=imu", "<2>serial: e"]
    assert stream.getvalue().splitlines() == lines


def test_every_line_of_a_traceback_has_a_priority() -> None:
    """A fault of ours keeps its traceback together in the journal."""
    stream, _ = begin("journal")
    try:
        _ = 1 / 0
    except ZeroDivisionError:
        get_logger("x").exception("fault")
    lines = stream.getvalue().splitlines()
    assert len(lines) > 3
    assert all(line.startswith("<3>") for line in lines)


def test_json_is_one_strict_object_a_line() -> None:
    """The JSON form reads back, fields at the top level, and never holds NaN."""
    stream, _ = begin("json")
    get_logger("x").info("two\nlines", extra=fields(rate=float("nan"), path=Path("/a"), n=3))
    (line,) = stream.getvalue().splitlines()
    entry = json.loads(line, parse_constant=pytest.fail)
    assert entry.pop("time").endswith("Z")
    assert entry == {"level": "info", "part": "x", "message": "two\nlines", "rate": None, "path": "/a", "n": 3}


def test_a_message_cannot_forge_a_second_line() -> None:
    """A line break in what a device sent stays inside its line."""
    stream, _ = begin()
    get_logger("x").info("topic %s", "a\n<0>kernel: fire", extra=fields(key="b\nc"))
    assert stream.getvalue().count("\n") == 1


def test_a_repeating_warning_is_written_once_a_minute_with_its_count() -> None:
    """A broken cable gives one line a minute, and the next line says how many were held back."""
    stream, clock = begin()
    log = get_logger("serial")
    for second in range(120):
        clock.now = float(second)
        log.warning("port lost", extra=fields(source="imu", attempt=second))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[1].endswith("source=imu attempt=60 repeated=59")


def test_warnings_about_different_sources_are_different() -> None:
    """A second source that fails is not taken for a repetition of the first."""
    stream, _ = begin()
    for source in ("imu", "climate"):
        get_logger("serial").warning("port lost", extra=fields(source=source))
    assert len(stream.getvalue().splitlines()) == 2


def test_the_level_holds_back_what_is_less_serious() -> None:
    """`log_level` is the least serious level that is written."""
    stream, _ = begin(level="warning")
    get_logger("x").info("a")
    get_logger("x").error("b")
    assert len(stream.getvalue().splitlines()) == 1


def test_setup_again_replaces_the_first() -> None:
    """A reload may change the form and level, and no line is written twice."""
    first, _ = begin()
    second, _ = begin("json")
    get_logger("x").info("a")
    assert first.getvalue() == ""
    assert len(second.getvalue().splitlines()) == 1


def test_the_journal_is_known_by_its_device_and_inode(tmp_path: Path) -> None:
    """JOURNAL_STREAM counts only when it names the very stream that is written to; a redirected stderr is text."""
    with (tmp_path / "out").open("w+") as stream:
        found = os.fstat(stream.fileno())
        setup("info", "auto", stream, {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"})
        get_logger("x").info("a")
        setup("info", "auto", stream, {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino + 1}"})
        get_logger("x").info("b")
        stream.seek(0)
        lines = stream.read().splitlines()
    assert lines[0] == "<6>x: a"
    assert lines[1].endswith("INFO    x: b")


def test_the_environment_chooses_the_form() -> None:
    """EDGE_LOG_FORMAT goes before the configuration; a word that it does not know is passed over."""
    stream = io.StringIO()
    setup("info", "text", stream, {"EDGE_LOG_FORMAT": "json"})
    get_logger("x").info("a")
    setup("info", "journal", stream, {"EDGE_LOG_FORMAT": "xml"})
    get_logger("x").info("b")
    assert stream.getvalue().startswith("{")
    assert stream.getvalue().splitlines()[1].endswith("x: b")


def test_a_closed_stderr_loses_lines_and_nothing_else() -> None:
    """A log stream that is gone never stops the daemon."""
    stream, _ = begin()
    stream.close()
    get_logger("x").error("a")
