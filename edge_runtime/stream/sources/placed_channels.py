"""Channels whose places a table names one by one: checks them, and finds the conversion to the unit of the bundle.

Guarantee: a channel without a place, a channel of categories and a unit of another quantity are refused before
anything is read.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

from edge_runtime.config.convert import nearest
from edge_runtime.errors import ConfigError
from edge_runtime.stream.codecs import Categories, Units


class PlacedChannel(Protocol):
    """The keys of a channel's table that concern its number."""

    @property
    def scale(self) -> float:
        """The factor of the number."""

    @property
    def offset(self) -> float:
        """The number that is added after `scale` is applied."""

    @property
    def unit(self) -> str | None:
        """The unit of the result."""


def check_places(
    channels: tuple[str, ...],
    shape: tuple[int, ...] | None,
    placed: Mapping[str, PlacedChannel],
    *,
    place: str,
    categories: Categories,
    units: Units,
    remedy: Callable[[str], str],
) -> None:
    """Check that each channel of the models has a place, in a unit that can be converted to that of the bundle.

    Args:
        channels: of the models.
        shape: of a model of whole frames.
        placed: the channels that the device file names.
        place: the key that holds them, for messages.
        categories: the channels that hold text.
        units: of the bundle.
        remedy: what to add for a channel.

    Raises:
        ConfigError: lists every mistake.
    """
    if shape is not None:
        raise ConfigError(f"{place}: expected a model of channels, found one of whole frames")
    mistakes = []
    for name in channels:
        if name not in placed:
            near = nearest(name, [each for each in placed if each not in channels])
            hint = f"did you mean it by {near}?" if near else remedy(name)
            mistakes.append(f"{place}: expected every channel of the model, found no {name}: {hint}")
        elif name in categories:
            mistakes.append(f"{place}.{name}: expected a channel of numbers, found one of categories")
        else:
            try:
                to_bundle(placed[name], units.get(name, ""), f"{place}.{name}")
            except ConfigError as error:
                mistakes.extend(error.mistakes)
    if mistakes:
        raise ConfigError(mistakes)


def to_bundle(channel: PlacedChannel, wanted: str, place: str) -> tuple[float, float]:
    """Factor and offset from the number that is read to the unit of the bundle.

    Raises:
        ConfigError: the units are of different quantities.
    """
    factor, offset = channel.scale, channel.offset
    if channel.unit is not None and wanted:
        from edge_runtime.stream.codecs.units import conversion  # noqa: PLC0415 - only where a unit is named

        found = conversion(channel.unit, wanted)
        if found is None:
            raise ConfigError(f'{place}.unit: expected "{wanted}", the unit of the bundle, found "{channel.unit}"')
        factor, offset = factor * found.factor, offset * found.factor + found.offset
    return factor, offset
