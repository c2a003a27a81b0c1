"""A prediction as a MessagePack map: the members of the JSON payload, with the same names and values, in fewer bytes.

Numbers are float64 of the JSON payload's text, so that they read back to the same float32.
"""

import msgspec

from edge_runtime.bundle.manifest import Manifest
from edge_runtime.delivery.json_payload import JsonPayload
from edge_runtime.delivery.payloads import Convention
from edge_runtime.readings import Prediction

_FIXMAP, _FIXMAP_END = 0x80, 0x8F  # the first byte of a map of up to 15 members, as every prediction is
_DELAYED = msgspec.msgpack.encode("delayed") + msgspec.msgpack.encode(True)


class MsgpackPayload:
    """Encodes the predictions of one model; the arguments are those of `JsonPayload`."""

    def __init__(
        self, *, device: str, model: str, source: str, start: int, manifest: Manifest, threshold: float | None
    ) -> None:
        self._json = JsonPayload(
            device=device, model=model, source=source, start=start, manifest=manifest, threshold=threshold
        )

    def encode(self, prediction: Prediction, *, synchronised: bool = True) -> bytes:
        """The payload. `synchronised` False adds the mark that the device's clock was not yet set."""
        return msgspec.msgpack.encode(msgspec.json.decode(self._json.encode(prediction, synchronised=synchronised)))


def mark_delayed(payload: bytes) -> bytes | None:
    """The map with the mark added; None if the bytes are not such a map."""
    if not payload or not _FIXMAP < payload[0] < _FIXMAP_END:
        return None
    return bytes((payload[0] + 1,)) + payload[1:] + _DELAYED


CONVENTION = Convention(MsgpackPayload, mark_delayed)
