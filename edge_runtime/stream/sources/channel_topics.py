"""MQTT topics with `{channel}`: one value per message, joined to readings of all channels.

Each message is decoded by the source's format as a value of its topic's channel; `joining.py` makes the readings. A
topic of a channel that no model uses is ignored, like a member that no model uses.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from edge_runtime.errors import ConfigError
from edge_runtime.mqtt.messages import Message
from edge_runtime.mqtt.topics import TopicPattern
from edge_runtime.readings import Batch
from edge_runtime.stream.codecs import Decoded, Decoder
from edge_runtime.stream.joining import ALL, ANY, Joiner
from edge_runtime.system.counters import Counters

_CACHED_TOPICS = 20_000


class TopicDecoders:
    """A decoder for each channel.

    Args:
        channels: of the source.
        make: makes the decoder of one channel.

    Attributes:
        names: the channels of the frames to decode next, from their topics; set by the source.
    """

    def __init__(self, channels: tuple[str, ...], make: Callable[[tuple[str, ...]], Decoder]) -> None:
        self._width = len(channels)
        self._columns = {name: column for column, name in enumerate(channels)}
        self._decoders = {name: make((name,)) for name in channels}
        self.names: Sequence[str | None] = ()

    def decode(self, frames: Sequence[bytes], counters: Counters) -> Decoded:
        """A row for each value, in which the other channels are NaN."""
        whole = Decoded(np.empty((0, self._width), np.float32), [], [], [], [])
        parts = []
        for index, (frame, name) in enumerate(zip(frames, self.names, strict=True)):
            decoder = self._decoders.get(name or "")
            if decoder is None:
                continue  # a channel that no model uses
            own = Counters()
            decoded = decoder.decode([frame], own)
            for reason, note in own.notes.items():
                counters.reject(reason, note.why, frame=index, count=own.rejected[reason])
            values = np.full((len(decoded), self._width), np.nan, np.float32)
            values[:, self._columns[name or ""]] = decoded.values[:, 0]
            parts.append(values)
            whole.rows += [index] * len(decoded)
            whole.keys += decoded.keys
            whole.times += decoded.times
            # The same number or time in another channel identifies another reading.
            whole.identities += [None if each is None else f"{name}:{each}" for each in decoded.identities]
        if parts:
            whole.values = np.concatenate(parts)
        return whole


def topic_decoders(
    source: str,
    when: str,
    channels: tuple[str, ...],
    shape: tuple[int, ...] | None,
    *,
    make: Callable[[tuple[str, ...]], Decoder],
) -> TopicDecoders:
    """The decoders of a source with `{channel}` in its topics.

    Raises:
        ConfigError: it cannot join the channels of its models.
    """
    place = f'source "{source}"'
    if shape is not None:
        raise ConfigError(f"{place}.topics: expected no {{channel}} for a model of whole frames: take it out")
    if when not in {ANY, ALL, *channels}:
        raise ConfigError(f'{place}.when: expected "any", "all" or a channel ({", ".join(channels)}), found "{when}"')
    return TopicDecoders(channels, make)


class JoiningKeys(Protocol):
    """The keys of a source that joins."""

    @property
    def topics(self) -> tuple[str, ...]:
        """The topics, each with `{channel}`."""

    @property
    def when(self) -> str:
        """The condition for making a reading."""

    @property
    def max_age(self) -> float | None:
        """The maximum age of a value."""


class ChannelTopics:
    """Joins the values of one source.

    Args:
        keys: of its table.
        channels: of a reading.
        sink: takes the readings.
        stale: called when a value is too old.
    """

    def __init__(
        self,
        keys: JoiningKeys,
        channels: tuple[str, ...],
        sink: Callable[[Batch], None],
        stale: Callable[[str | None, str], None],
    ) -> None:
        self.take = Joiner(channels, keys.when, keys.max_age, sink, stale=stale).take
        self._channel_of = _ChannelOfTopic(keys.topics)

    def announce(self, messages: list[Message], decoder: Decoder) -> None:
        """Set the channels of the messages that the decoder will decode next."""
        assert isinstance(decoder, TopicDecoders)
        decoder.names = [self._channel_of(message.topic) for message in messages]


class _ChannelOfTopic:
    """Finds the level `{channel}` of a topic; caches a bounded number of results."""

    def __init__(self, patterns: tuple[str, ...]) -> None:
        self._patterns = [TopicPattern(pattern) for pattern in patterns]
        self._known: dict[bytes, str | None] = {}

    def __call__(self, topic: bytes) -> str | None:
        """The channel; None if the topic is not one of the source."""
        if topic not in self._known:
            if len(self._known) >= _CACHED_TOPICS:
                self._known.clear()
            name = topic.decode(errors="replace")
            level = next((each.channel_level for each in self._patterns if each.match(name)[0]), None)
            self._known[topic] = None if level is None else name.split("/")[level]
        return self._known[topic]
