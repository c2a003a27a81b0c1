"""Reports of rejected readings: the first of each reason is a warning, the last one is shown in health.

Each stage counts its own refusals; the source of the reading reports here the origin, the expected and the found value,
and the remedy. Guarantee: a reason is logged at its first occurrence, and then at most once a minute with the number of
readings since. Weak point: of many readings refused at once for one reason, only the last one is shown.
"""

import time
from collections.abc import Callable, Sequence

from edge_runtime.config.convert import nearest
from edge_runtime.stream.codecs.object_codec import any_document
from edge_runtime.system.counters import Counters
from edge_runtime.system.log import fields, get_logger

REPEAT_S = 60.0
MOST_SAMPLE = 200  # characters
_MOST_NAMES = 5
_REMEDIES = {
    "bad_key": "look at `key` and at the sender",
    "bad_time": "look at `time`, `time_unit` and the clock of the sender",
    "malformed": "look at `format`, `fields` and `delimiter`, and at the sender",
    "missing_channel": "rename it at the sender, send all channels together, or set `repair`",
    "noise": "look at baudrate, parity and cable",
    "not_finite": "look at the sensor: it says so when it has no measurement",
    "out_of_range": "look at the sensor, its unit and the range in the bundle, or set `repair`",
    "stale": "look at the sender of that channel, or raise max_age",
    "too_long": "look at the sender, or raise max_frame_bytes",
    "unknown_category": "look at the sender, or convert the model again with the text among its `categories`",
    "wrong_unit": "name another `unit` in [source.channels], or look at the sender",
    "wrong_type": "send numbers without quotation marks, and text for channels of categories",
}
_log = get_logger("source")


class Rejections:
    """Reports the readings of one source that the source or one of its models refused.

    Args:
        source: its name.
        counters: its own; `notes` is read and emptied, `last_rejected` written.
        clock: monotonic seconds.
        wall: Unix seconds.
    """

    def __init__(
        self,
        source: str,
        counters: Counters,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._source = source
        self._counters = counters
        self._clock = clock
        self._wall = wall
        self._logged: dict[str, float] = {}
        self._unlogged: dict[str, int] = {}
        self._known: dict[str, int] = {}

    def report(self, frames: Sequence[bytes], where: Callable[[int], str]) -> None:
        """Report the frames refused since the last call, before they became readings.

        Args:
            frames: the frames that were decoded together.
            where: the topic or the port of a frame.
        """
        notes, self._counters.notes = self._counters.notes, {}
        for reason, note in notes.items():
            total = self._counters.rejected[reason]
            count, self._known[reason] = total - self._known.get(reason, 0), total
            frame = frames[note.frame] if 0 <= note.frame < len(frames) else note.sample
            self.refuse(reason, note.why, where=where(note.frame), frame=frame, count=count)

    def refuse(self, reason: str, why: str, *, where: str, frame: bytes | str, count: int = 1) -> None:
        """Report readings refused for one reason, and show one of them.

        Args:
            reason: the counted word.
            why: the expected and the found value.
            where: the topic, port or line of the shown one.
            frame: as it came.
            count: how many readings were refused for this reason.
        """
        if reason == "missing_channel" and isinstance(frame, bytes):
            why = _with_members(why, frame)
        why = why or reason.replace("_", " ")
        sample = shortened(frame)
        self._counters.last_rejected[reason] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._wall())),
            "where": where,
            "why": why,
            "sample": sample,
        }
        unlogged = self._unlogged[reason] = self._unlogged.get(reason, 0) + count
        now = self._clock()
        if now - self._logged.get(reason, -REPEAT_S) < REPEAT_S:
            return
        self._logged[reason], self._unlogged[reason] = now, 0
        remedy = _REMEDIES.get(reason, "")
        text = f'source "{self._source}": {where}: {why}' + (f": {remedy}" if remedy and ": set " not in why else "")
        _log.warning(text, extra=fields(source=self._source, rejected=reason, count=unlogged, sample=sample))


def shortened(frame: bytes | str) -> str:
    """The beginning of a frame as text that can be printed."""
    text = frame if isinstance(frame, str) else frame[: 4 * MOST_SAMPLE + 4].decode("utf-8", "backslashreplace")
    shown = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)
    return shown if len(shown) <= MOST_SAMPLE else shown[: MOST_SAMPLE - 1] + "…"


def _with_members(why: str, frame: bytes) -> str:
    """The members of a frame that lacks a channel: those with the most similar names, else the first few."""
    names = _members(frame)
    if not names or ", found " in why:
        return why
    wanted = [part.strip("`") for part in why.removeprefix("no ").split(", ")]
    near = [found for name in wanted if (found := nearest(name, names)) is not None and found not in wanted]
    shown = list(dict.fromkeys(near)) or names[:_MOST_NAMES]
    more = ", …" if not near and len(names) > _MOST_NAMES else ""
    return f"{why}, found {', '.join(f'`{shortened(name)[:60]}`' for name in shown)}{more}"


def _members(frame: bytes) -> list[str]:
    document = any_document(frame)
    item = document[0] if type(document) is list and document else document
    return [str(name) for name in item] if type(item) is dict else []
