"""The events of a trial -> lines for people, objects for programs, and a final line of reasons for each source.

The final lines say why there is no prediction.
"""

import json
import time
from collections.abc import Callable

from edge_runtime.bringup.trial import Event, ModelTrial, SourceTrial
from edge_runtime.stream.rejections import shortened

_MOST_CHANNELS = 8
_LINES_A_SECOND = 20  # on a terminal: more lines cannot be read


def as_json(event: Event) -> str:
    """One object a line."""
    return json.dumps(event, ensure_ascii=False, separators=(",", ":"))


def as_line(event: Event) -> str:
    """One line: time, source, event and details."""
    clock = time.strftime("%H:%M:%S", time.localtime(event["time"])) + f".{int(event['time'] % 1 * 1000):03d}"
    kind = event["event"]
    return f"{clock} {event['source']:<12} {kind:<10} {_PARTICULARS[kind](event)}"


def _frame(event: Event) -> str:
    where = f"{shortened(event['where'])}: " if "where" in event else ""
    return f"{where}{event['frame']}"


def _reading(event: Event) -> str:
    key = "" if event["key"] is None else f"[{shortened(event['key'])}] "
    found = event["reading"]
    if isinstance(found, dict):
        shown = [f"{name} {value:.6g}" for name, value in list(found.items())[:_MOST_CHANNELS]]
        more = f", and {len(found) - _MOST_CHANNELS} more" if len(found) > _MOST_CHANNELS else ""
        found = ", ".join(shown) + more
    windows = "".join(
        f"   window of {name}: {filled} of {length}" for name, (filled, length) in event["windows"].items()
    )
    return f"{key}{found}{windows}"


def _rejected(event: Event) -> str:
    where = f"{shortened(event['where'])}: " if "where" in event else ""
    count = f" ({event['count']} times)" if "count" in event else ""
    sample = f"   found {event['frame']}" if event.get("frame") else ""
    return f"{event['rejected']}{count}: {where}{event['why']}{sample}"


def _prediction(event: Event) -> str:
    found = event["prediction"]
    key = "" if found["key"] is None else f"[{shortened(found['key'])}] "
    alarm = "   ALARM" if found.get("alarm") else ""
    return f"{key}{event['model']}: {_verdict(found)}{alarm}"


def _verdict(found: Event) -> str:
    if "label" in found:
        return f"{found['label']} ({found['score']:.3g})"
    if "values" in found:
        return ", ".join(f"{name} {value:.6g}" for name, value in found["values"].items())
    if "anomaly" in found:
        return f"{'anomaly' if found['anomaly'] else 'normal'} ({found['score']:.3g})"
    return json.dumps({name: value for name, value in found.items() if name not in _ADDRESS})


_ADDRESS = ("id", "seq", "device", "model", "version", "source", "key", "time")
_PARTICULARS: dict[str, Callable[[Event], str]] = {
    "frame": _frame,
    "reading": _reading,
    "rejected": _rejected,
    "skipped": lambda event: f"{event['skipped']}, {event['count']} times",
    "prediction": _prediction,
    "state": lambda event: str(event["state"]),
}


class Throttle:
    """Limits the lines a second on a terminal, and prints the number of omitted ones.

    Predictions and changed states are always printed.
    """

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._write = write
        self._clock = clock
        self._second = -1
        self._lines = 0
        self._left_out = 0

    def show(self, event: Event) -> None:
        """Write an event, or count it."""
        second = int(self._clock())
        if second != self._second:
            self._second, self._lines = second, 0
            if self._left_out:
                self._write(f"... {self._left_out} more lines in the second before: they come faster than can be read")
                self._left_out = 0
        if self._lines >= _LINES_A_SECOND and event["event"] not in {"prediction", "state"}:
            self._left_out += 1
            return
        self._lines += 1
        self._write(as_line(event))


def summary(sources: list[SourceTrial], seconds: float) -> list[str]:
    """The counts of each source and model, and the reason where there is no prediction."""
    lines = []
    for each in sources:
        refused = sum(each.rejected.values())
        lines.append(
            f"source {each.name}: {each.frames or each.readings + refused} frames, {each.readings} readings, "
            f"{refused} rejected"
        )
        lines += [f"  {reason} {count} times: {each.why[reason]}" for reason, count in each.rejected.most_common()]
        if not each.readings and not refused:
            lines.append(f"  nothing came: {each.state or 'not started'}")
        lines += [f"  {_about_model(each, model, seconds)}" for model in each.models]
    return lines


def _about_model(each: SourceTrial, model: ModelTrial, seconds: float) -> str:
    name = model.pipeline.config.name
    if model.predictions:
        return f"model {name}: {model.predictions} predictions"
    failed = sum(model.pipeline.counters.errors.values())
    if failed:
        return f"model {name}: no prediction: it failed on {failed} windows"
    if not each.readings:
        return f"model {name}: no prediction, since no good reading came"
    windows = model.pipeline.windows
    key, until = min(windows.open(), key=lambda found: found[1], default=(None, model.length))
    held = model.length - min(model.length, until)
    of = "" if key is None else f" of key {key}"
    rate = each.readings / max(seconds, 1e-9) / max(1, len(windows))
    gaps = f"; {windows.gaps} gaps began it anew (max_gap)" if windows.gaps else ""
    return (
        f"model {name}: no prediction yet: the fullest window{of} holds {held} of {model.length} readings; at "
        f"{rate:.3g} readings/s a key it takes {model.length / rate:.3g} s{gaps}"
    )
