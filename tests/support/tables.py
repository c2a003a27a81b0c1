"""Tables of a device file, made of keys as a file holds them, without a file."""

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from edge_runtime.config.convert import ConfigConversion

TableT = TypeVar("TableT", bound=msgspec.Struct)


def table(kind: type[TableT], **keys: Any) -> TableT:
    """A table of one kind; every key must be right in itself."""
    conversion = ConfigConversion("/")
    found = conversion.table(kind, {name: _as_parsed(value) for name, value in keys.items()}, "", frozenset())
    assert not conversion.mistakes, conversion.mistakes
    value = found.value
    assert isinstance(value, kind)
    return value


def _as_parsed(value: Any) -> Any:
    if isinstance(value, msgspec.Struct):
        return msgspec.to_builtins(value)
    if isinstance(value, Mapping):
        return {name: _as_parsed(each) for name, each in value.items()}
    return [_as_parsed(each) for each in value] if isinstance(value, list | tuple) else value
