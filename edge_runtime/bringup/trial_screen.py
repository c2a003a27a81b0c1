"""A trial on a terminal, with the extra `rich`: one table that changes, and the last lines beneath it."""

from collections import deque
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from edge_runtime.bringup.trial import Event, SourceTrial
from edge_runtime.bringup.trial_report import as_line

_LAST_LINES = 12
_REDRAWN_A_SECOND = 5
_COLOURS = {"rejected": "yellow", "prediction": "green", "skipped": "yellow", "state": "cyan"}


class Screen:
    """Shows the events of a trial until its context is left.

    Args:
        sources: those of the trial, whose figures the table shows.
        console: the terminal.
    """

    def __init__(self, sources: list[SourceTrial], console: Console | None = None) -> None:
        self._sources = sources
        self._last: deque[Text] = deque(maxlen=_LAST_LINES)
        self._verdicts: dict[tuple[str, str], str] = {}
        self._live = Live(
            get_renderable=self._draw,
            console=console or Console(),
            refresh_per_second=_REDRAWN_A_SECOND,
            transient=False,
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, event: Event) -> None:
        """Take one event; the screen is updated a few times a second."""
        line = as_line(event)
        self._last.append(Text(line, style=_COLOURS.get(event["event"], ""), no_wrap=True, overflow="ellipsis"))
        if event["event"] == "prediction":
            self._verdicts[event["source"], event["model"]] = line.split(": ", 1)[1]

    def _draw(self) -> Group:
        table = Table("source", "state", "frames", "readings", "rejected", "model", "window", "predictions", "last")
        for each in self._sources:
            own = (each.name, each.state, str(each.frames), str(each.readings), str(sum(each.rejected.values())))
            for place, model in enumerate(each.models):
                name = model.pipeline.config.name
                key, until = min(
                    model.pipeline.windows.open(), key=lambda found: found[1], default=(None, model.length)
                )
                filled = f"{model.length - min(until, model.length)} of {model.length}{f' ({key})' if key else ''}"
                mine = (name, filled, str(model.predictions), self._verdicts.get((each.name, name), ""))
                table.add_row(*(own if place == 0 else ("",) * len(own)), *mine)
        return Group(table, *self._last)
