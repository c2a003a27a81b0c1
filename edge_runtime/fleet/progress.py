"""Progress on stderr: bars on a terminal where `rich` is installed, else a line for each step."""

import importlib
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from edge_runtime.fleet.rollout import Outcome, Watcher

MOST_LINES = 20  # devices that are shown one by one
_NAME, _BAR, _STEP = 20, 14, 28  # columns; with a percentage, the time and spaces they are 79


class Silent:
    """Shows nothing."""

    def begin(self, device: str) -> None:
        """Nothing."""

    def step(self, device: str, text: str) -> None:
        """Nothing."""

    def bytes(self, device: str, done: int, total: int) -> None:
        """Nothing."""

    def end(self, outcome: Outcome) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""


class Lines(Silent):
    """A line for each step, and for every quarter of a transfer: for logs."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._quarters: dict[str, int] = {}

    def step(self, device: str, text: str) -> None:
        """A line."""
        self.say(f"{device}: {text}")

    def bytes(self, device: str, done: int, total: int) -> None:
        """A line for each quarter."""
        quarter = 4 * done // max(total, 1)
        with self._lock:
            before = self._quarters.get(device)
            self._quarters[device] = quarter
        if before is None and 0 < done < total:
            self.say(f"{device}: going on after {done} of {total} bytes")
        elif before is not None and quarter > before and done < total:
            self.say(f"{device}: {done} of {total} bytes")

    def end(self, outcome: Outcome) -> None:
        """A line."""
        self.say(f"{outcome.device}: {outcome.result}" + (f": {outcome.text}" if outcome.text else ""))

    def say(self, text: str) -> None:
        """A line."""
        with self._lock:
            print(text, file=self._stream, flush=True)


class Totals(Silent):
    """For many devices: a line of totals after each tenth, and each problem at once."""

    def __init__(self, stream: IO[str], total: int) -> None:
        self._stream = stream
        self._total = total
        self._counts: dict[str, int] = {}
        self._shown = 0
        self._lock = threading.Lock()
        self._is_terminal = stream.isatty()

    def end(self, outcome: Outcome) -> None:
        """Count it; name it where it did not succeed."""
        with self._lock:
            self._counts[outcome.result] = self._counts.get(outcome.result, 0) + 1
            if not outcome.succeeded:
                self._print(f"{outcome.device}: {outcome.result}: {outcome.text}")
            done = sum(self._counts.values())
            if self._is_terminal:
                self._stream.write(f"\r{self._line(done)}\x1b[K")
                self._stream.flush()
            elif 10 * done // self._total > self._shown:
                self._shown = 10 * done // self._total
                self._print(self._line(done))

    def say(self, text: str) -> None:
        """A line."""
        with self._lock:
            self._print(text)

    def close(self) -> None:
        """Leave the line of totals."""
        if self._is_terminal:
            self._stream.write("\n")

    def _line(self, done: int) -> str:
        return f"{done} of {self._total}: " + ", ".join(f"{count} {word}" for word, count in self._counts.items())

    def _print(self, text: str) -> None:
        start = "\r\x1b[K" if self._is_terminal else ""
        print(start + text, file=self._stream, flush=True)


class Bars(Silent):
    """A bar for every device at work, one line at 80 columns: long names and steps are cut, not wrapped."""

    def __init__(self, progress: Any) -> None:
        self._progress = progress
        self._tasks: dict[str, Any] = {}

    def begin(self, device: str) -> None:
        """A bar of unknown length."""
        self._tasks[device] = self._progress.add_task(device, total=None, step="connecting")

    def step(self, device: str, text: str) -> None:
        """The words beside the bar."""
        self._progress.update(self._tasks[device], step=text)

    def bytes(self, device: str, done: int, total: int) -> None:
        """The bar's length."""
        self._progress.update(self._tasks[device], completed=done, total=total)

    def end(self, outcome: Outcome) -> None:
        """The bar stays, with the result beside it."""
        task = self._tasks[outcome.device]
        if outcome.result != "failed":
            self._progress.update(task, completed=1, total=1)
        self._progress.update(task, step=outcome.result)
        self._progress.stop_task(task)

    def say(self, text: str) -> None:
        """A line above the bars."""
        self._progress.console.print(text, markup=False, highlight=False)


@contextmanager
def shown(*, quiet: bool, total: int = 1, stream: IO[str] | None = None) -> Iterator[Watcher]:
    """The watcher for this terminal and this number of devices."""
    out = sys.stderr if stream is None else stream
    if quiet:
        yield Silent()
        return
    if total > MOST_LINES:
        totals = Totals(out, total)
        try:
            yield totals
        finally:
            totals.close()
        return
    bars = _bars(out) if out.isatty() else None
    if bars is None:
        yield Lines(out)
        return
    with bars:
        yield Bars(bars)


def _bars(stream: IO[str]) -> Any | None:
    try:
        rich = {name: importlib.import_module(f"rich.{name}") for name in ("console", "progress", "table")}
    except ImportError:
        return None
    progress, column = rich["progress"], rich["table"].Column
    return progress.Progress(
        progress.TextColumn("{task.description}", markup=False, table_column=column(no_wrap=True, max_width=_NAME)),
        progress.BarColumn(bar_width=_BAR),
        progress.TaskProgressColumn(),
        progress.TextColumn("{task.fields[step]}", markup=False, table_column=column(no_wrap=True, max_width=_STEP)),
        progress.TimeElapsedColumn(),
        console=rich["console"].Console(file=stream),
    )
