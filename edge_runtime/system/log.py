"""Log lines to stderr: for people on a terminal, with priorities for the journal, or as JSON.

`get_logger(name)` gives a standard logger; fields go into `extra={"fields": {...}}` or, shorter, through `fields(...)`.
A warning that repeats is written once a minute with the number of times it came, so a broken cable does not fill the
disk. Logging never raises: without stderr, lines are lost.
"""

import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import IO, Any, Literal

Form = Literal["auto", "text", "journal", "json"]

REPEAT_SECONDS = 60.0
_MOST_MESSAGES = 1000  # messages remembered for rate limiting; more than any daemon has
_TELLING = ("source", "model", "key")
_ROOT = "edge_runtime"
# syslog(3): what `<N>` in front of a line means to the journal.
_PRIORITIES = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6, logging.DEBUG: 7}


def get_logger(name: str) -> logging.Logger:
    """The logger of a part, such as `get_logger("serial")`; `__name__` does as well."""
    return logging.getLogger(name if name == _ROOT or name.startswith(f"{_ROOT}.") else f"{_ROOT}.{name}")


def fields(**values: Any) -> dict[str, Any]:
    """Fields for one line: `log.warning("port lost", extra=fields(source="imu", port=port))`."""
    return {"fields": values}


def setup(
    level: str = "info",
    form: Form = "auto",
    stream: IO[str] | None = None,
    environ: Mapping[str, str] = os.environ,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Sends log lines of at least `level` to `stream` (stderr by default). May be called again, for a reload.

    The environment variable EDGE_LOG_FORMAT (text, journal, json) overrides `form`.
    """
    out = sys.stderr if stream is None else stream
    wanted = environ.get("EDGE_LOG_FORMAT", form)
    formatter = _FORMATTERS.get(wanted, _FORMATTERS[_automatic(out, environ)])()
    handler = _Lines(out)
    handler.setFormatter(formatter)
    handler.addFilter(RepeatFilter(clock))
    root = logging.getLogger(_ROOT)
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    root.propagate = False


def _automatic(stream: IO[str], environ: Mapping[str, str]) -> str:
    return "journal" if _is_journal(stream, environ.get("JOURNAL_STREAM", "")) else "text"


def _is_journal(stream: IO[str], journal: str) -> bool:
    """Whether the stream is the one that systemd named (device:inode), and not a redirected stderr."""
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError, AttributeError):
        return False
    return journal == f"{found.st_dev}:{found.st_ino}"


class _Lines(logging.StreamHandler[IO[str]]):
    """Writes lines. One that cannot be written is lost; a traceback would go to the same broken stream."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  the name is logging's
        if not isinstance(sys.exc_info()[1], OSError) and not self.stream.closed:
            super().handleError(record)  # a line that cannot be formatted is a fault of this program, and is raised


class RepeatFilter(logging.Filter):
    """Passes a message at most once in `REPEAT_SECONDS`; the next one has the number of suppressed ones.

    Messages are compared by logger, level, text and the fields `source`, `model` and `key`; values that vary between
    repetitions therefore belong into other fields. Messages below `warning` always pass.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        self._clock = clock
        self._last: dict[tuple[object, ...], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a line is written."""
        if record.levelno < logging.WARNING:
            return True
        now = self._clock()
        about = _fields(record)
        message = (record.name, record.levelno, record.getMessage(), *(str(about.get(each)) for each in _TELLING))
        written, held_back = self._last.get(message, (-math.inf, 0))
        if now - written < REPEAT_SECONDS:
            self._last[message] = (written, held_back + 1)
            return False
        if len(self._last) >= _MOST_MESSAGES:
            self._last.clear()
        self._last[message] = (now, 0)
        if held_back:
            record.__dict__["fields"] = {**_fields(record), "repeated": held_back}
        return True


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    found = record.__dict__.get("fields")
    return dict(found) if isinstance(found, Mapping) else {}


def _part(record: logging.LogRecord) -> str:
    return record.name.removeprefix(f"{_ROOT}.")


def _one_line(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r") if not text.isprintable() else text


class TextFormatter(logging.Formatter):
    """`11:19:04.123 WARNING serial: port lost  source=imu port=/dev/ttyUSB0`, for people."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and the traceback of a fault of ours below it."""
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        head = f"{clock}.{int(record.msecs):03d} {record.levelname:<7} {_part(record)}: "
        return head + _body(record, self)


class JournalFormatter(logging.Formatter):
    """`<4>serial: port lost source=imu`: the journal knows the time already, and takes the priority off."""

    def format(self, record: logging.LogRecord) -> str:
        """One line a line of the message, each with the priority."""
        priority = f"<{_PRIORITIES.get(record.levelno, 6)}>"
        return "\n".join(priority + line for line in f"{_part(record)}: {_body(record, self)}".split("\n"))


class JsonFormatter(logging.Formatter):
    """One JSON object a line, for programs."""

    def format(self, record: logging.LogRecord) -> str:
        """The object: time (UTC), level, part, message and the fields."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        entry = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "part": _part(record),
            "message": record.getMessage(),
            **{key: _plain(value) for key, value in _fields(record).items()},
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def _body(record: logging.LogRecord, formatter: logging.Formatter) -> str:
    line = _one_line(record.getMessage())
    tail = " ".join(f"{key}={_word(value)}" for key, value in _fields(record).items())
    text = f"{line}  {tail}" if tail else line
    return f"{text}\n{formatter.formatException(record.exc_info)}" if record.exc_info else text


def _word(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    plain = text.isprintable() and not any(each in text for each in ' "=') and text != ""
    return text if plain else json.dumps(text, ensure_ascii=False)


def _plain(value: Any) -> Any:
    # JSON has no NaN, and a line with one is refused by strict readers.
    return None if isinstance(value, float) and not math.isfinite(value) else value


_FORMATTERS: dict[str, type[logging.Formatter]] = {
    "text": TextFormatter,
    "journal": JournalFormatter,
    "json": JsonFormatter,
}
