"""The choices that can be extended, by the word that a device file uses: one line here, one file for the rest.

A file that is named here holds everything about its choice: the table with its keys, the rules between them, what it
is made with, and its facts. It is imported when a device file uses the word, so that the others cost nothing.
`CONTRIBUTING.md` has a recipe for each kind. Guarantee: a word that does not stand here is never taken for another.
"""

import importlib
from collections.abc import Iterator
from typing import Any


class Registry:
    """Words, and the class behind each, as `module:Class`.

    Args:
        places: by word.
    """

    def __init__(self, places: dict[str, str]) -> None:
        self.places = places

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __contains__(self, word: object) -> bool:
        return word in self.places

    def load(self, word: str) -> Any:
        """The class behind a word.

        Raises:
            KeyError: the word stands not here.
        """
        module, _, name = self.places[word].partition(":")
        return getattr(importlib.import_module(module), name)


# `type` of a `[[source]]`
SOURCES = Registry(
    {
        "serial": "edge_runtime.stream.sources.serial:SerialSourceTable",
        "mqtt": "edge_runtime.stream.sources.mqtt:MqttSourceTable",
        "command": "edge_runtime.stream.sources.command:CommandSourceTable",
        "join": "edge_runtime.stream.sources.join:JoinSourceTable",
        "modbus": "edge_runtime.stream.sources.modbus:ModbusSourceTable",
        "sysfs": "edge_runtime.stream.sources.sysfs:SysfsSourceTable",
        "replay": "edge_runtime.stream.sources.replay:ReplaySourceTable",
    }
)

# `format` of a source whose readings come in frames
CODECS = Registry(
    {
        "json": "edge_runtime.stream.codecs.json_codec:JsonTable",
        "csv": "edge_runtime.stream.codecs.csv_codec:CsvTable",
        "msgpack": "edge_runtime.stream.codecs.msgpack_codec:MsgpackTable",
        "raw": "edge_runtime.stream.codecs.raw_codec:RawTable",
        "pairs": "edge_runtime.stream.codecs.pairs_codec:PairsTable",
        "value": "edge_runtime.stream.codecs.value_codec:ValueTable",
    }
)

# `type` of a `[[sink]]`
SINKS = Registry(
    {
        "file": "edge_runtime.sinks.file_sink:FileSinkTable",
        "http": "edge_runtime.sinks.http_sink:HttpSinkTable",
        "command": "edge_runtime.sinks.command_sink:CommandSinkTable",
    }
)
