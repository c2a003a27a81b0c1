"""A prediction as flat values: a topic for each, below that of the prediction, and the bare value as its payload.

`edge/press-07/vibration/-/score` carries `0.973`, `.../scores/worn` as well, `.../label` the text `worn`, `.../alarm`
`true` or `false`; `.../time` and `.../id` identify the reading. Numbers are those of the JSON payload. Characters not
allowed in a topic level are written as `%` and two hex digits. Weak point: the values of one prediction are separate
messages, and a late one has no mark but its time.
"""

from collections.abc import Iterator
from typing import Any

import msgspec

from edge_runtime.bundle.manifest import Manifest
from edge_runtime.delivery.json_payload import JsonPayload
from edge_runtime.delivery.payloads import FlatConvention
from edge_runtime.readings import Prediction

_MEMBERS = (
    "id",
    "time",
    "label",
    "labels",
    "score",
    "scores",
    "values",
    "present",
    "anomaly",
    "alarm",
    "set",
    "interval",
)
_RESERVED = frozenset("%/+#\x00")


class ValuesPayload:
    """Encodes the predictions of one model; the arguments are those of `JsonPayload`."""

    def __init__(
        self, *, device: str, model: str, source: str, start: int, manifest: Manifest, threshold: float | None
    ) -> None:
        self._json = JsonPayload(
            device=device, model=model, source=source, start=start, manifest=manifest, threshold=threshold
        )

    def encode_parts(self, prediction: Prediction, *, synchronised: bool = True) -> Iterator[tuple[str, bytes]]:
        """The levels below the prediction's topic, and the payload of each."""
        for member, value in members_of(self._json, prediction, synchronised=synchronised):
            if isinstance(value, dict):
                for name, number in value.items():
                    yield f"{member}/{topic_level(name)}", _bare(number)
            else:
                yield member, _bare(value)


def members_of(payload: JsonPayload, prediction: Prediction, *, synchronised: bool = True) -> Iterator[tuple[str, Any]]:
    """A prediction as single values and tables of numbers; for detections their number, as `count`."""
    document = msgspec.json.decode(payload.encode(prediction, synchronised=synchronised))
    yield from ((member, document[member]) for member in _MEMBERS if member in document)
    if "detections" in document:
        yield "count", len(document["detections"])


def topic_level(name: str) -> str:
    """A name as one level of a topic; no two names become the same."""
    return "".join(f"%{ord(each):02X}" if each in _RESERVED or ord(each) < 0x20 else each for each in name) or "%"


def _bare(value: Any) -> bytes:
    return value.encode() if isinstance(value, str) else msgspec.json.encode(value)


CONVENTION = FlatConvention(ValuesPayload)
