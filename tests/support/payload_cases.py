"""The folders of `tests/golden/payloads`: what a device sends, what its device file says of it, and what becomes of it.

`source.toml` holds the keys of `[[source]]`, `messages.toml` the messages or the bytes of a port, `expected.toml` the
readings or the reason, or the sentence of `check`.
"""

import math
import tomllib
from pathlib import Path
from typing import Any, cast

import msgspec

from edge_runtime.config.load import load_config
from edge_runtime.mqtt.connection import Connection
from edge_runtime.mqtt.messages import Message
from edge_runtime.readings import Batch, Receipt
from edge_runtime.stream.codecs import Decoded
from edge_runtime.stream.framing import make_framer
from edge_runtime.stream.sources.kind import FramedSourceTable
from edge_runtime.stream.sources.mqtt import MqttSource, MqttSourceTable
from edge_runtime.stream.sources.serial import SerialSourceTable
from edge_runtime.system.counters import Counters

FOLDER = Path(__file__).resolve().parents[1] / "golden" / "payloads"
DEVICE = """[device]
id = "golden"
[upstream]
url = "mqtt://localhost"
[[model]]
name = "m"
bundle = "m.onnx"
source = "s"
[[source]]
name = "s"
"""


class Found(msgspec.Struct):
    """What became of the messages of a case.

    Attributes:
        readings: the channels that are there, a reading after another.
        keys: of the readings.
        times: of the readings; None where one brought none.
        identities: of the readings.
        rejected: how many, by reason.
        why: the last sentence of each reason.
    """

    readings: list[dict[str, float]] = msgspec.field(default_factory=list)
    keys: list[str | None] = msgspec.field(default_factory=list)
    times: list[float | None] = msgspec.field(default_factory=list)
    identities: list[str | None] = msgspec.field(default_factory=list)
    rejected: dict[str, int] = msgspec.field(default_factory=dict)
    why: dict[str, str] = msgspec.field(default_factory=dict)


class _Line:
    """In the place of a connection: hands over what a case brings."""

    ready = True
    state = "connected"
    handler: Any = None

    def subscribe(self, filters: list[str], qos: int, handler: Any, *, most_bytes: int) -> None:
        """As a connection does."""
        del filters, qos, most_bytes
        self.handler = handler


def load_source(source: str, folder: Path) -> FramedSourceTable:
    """The table of a source, by the way that every device file goes.

    Raises:
        ConfigError: as `check` would.
    """
    (folder / "m.onnx").write_bytes(b"")
    path = folder / "device.toml"
    path.write_text(DEVICE + source, encoding="utf-8")
    table = load_config(path).source[0]
    assert isinstance(table, FramedSourceTable)
    return table


def take(
    table: FramedSourceTable,
    messages: list[dict[str, str]],
    channels: tuple[str, ...],
    units: dict[str, str] | None = None,
) -> Found:
    """What a source of this table makes of messages.

    Raises:
        ConfigError: the table does not fit the channels.
    """
    table.check_channels_of(channels, None, units=units or {})
    counters, found = Counters(), Found()
    if isinstance(table, MqttSourceTable):
        _take_messages(table, messages, channels, units or {}, counters=counters, found=found)
    else:
        assert isinstance(table, SerialSourceTable)
        _take_bytes(table, messages, channels, units or {}, counters=counters, found=found)
    found.rejected = dict(counters.rejected)
    found.why |= {reason: str(last["why"]) for reason, last in counters.last_rejected.items()}
    return found


def _take_messages(
    table: MqttSourceTable,
    messages: list[dict[str, str]],
    channels: tuple[str, ...],
    units: dict[str, str],
    *,
    counters: Counters,
    found: Found,
) -> None:
    def sink(batch: Batch) -> None:
        own = batch.times if batch.own_times else [None] * len(batch)
        _note(found, Decoded(batch.values, [], batch.keys, list(own), batch.identities), channels)

    line = _Line()
    MqttSource(table, channels, None, connection=cast("Connection", line), sink=sink, counters=counters, units=units)
    for message in messages:
        payload = bytes.fromhex(message["hex"]) if "hex" in message else message["payload"].encode()
        line.handler([Message(message["topic"].encode(), payload, Receipt(lambda: None))])


def _take_bytes(
    table: SerialSourceTable,
    messages: list[dict[str, str]],
    channels: tuple[str, ...],
    units: dict[str, str],
    *,
    counters: Counters,
    found: Found,
) -> None:
    framer = make_framer("lines", table.max_frame_bytes, counters, line_end=table.line_end)
    frames = framer.feed(b"\n" + "".join(message["payload"] for message in messages).encode())
    decoded = table.decoder(channels, None, units=units).decode(frames, counters)
    found.why |= {reason: note.why for reason, note in counters.notes.items()}
    _note(found, decoded, channels)


def _note(found: Found, decoded: Decoded, channels: tuple[str, ...]) -> None:
    for row in decoded.values.tolist():
        found.readings.append({name: value for name, value in zip(channels, row, strict=True) if not math.isnan(value)})
    found.keys += decoded.keys
    found.times += decoded.times
    found.identities += decoded.identities


def parts_of(case: Path) -> tuple[str, list[dict[str, str]], dict[str, Any]]:
    """The source, the messages and what is expected of one folder."""
    messages = tomllib.loads((case / "messages.toml").read_text(encoding="utf-8"))["message"]
    expected = tomllib.loads((case / "expected.toml").read_text(encoding="utf-8"))
    return (case / "source.toml").read_text(encoding="utf-8"), messages, expected
