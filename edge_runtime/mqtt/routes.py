"""Messages of one connection -> the handlers that subscribed to their topics, and no others. Pure.

Guarantee: a handler gets the messages that match its filters, in order. The cost does not grow with the number of
handlers, since the result for a topic is cached. Memory: the last topics, at most `MOST_TOPICS`. A topic that is no
UTF-8 goes to every handler.
"""

from collections.abc import Iterable

from edge_runtime.config.topics import FilterIndex, split_share
from edge_runtime.mqtt.messages import Handler, Message

MOST_TOPICS = 20_000


class Routes:
    """The handlers of each topic.

    Attributes:
        known: the cached handlers by topic; a caller may look here first.
    """

    def __init__(self) -> None:
        self._index = FilterIndex[int]()
        self._handlers: list[Handler] = []
        self._every: tuple[Handler, ...] = ()
        self._ways: dict[tuple[Handler, ...], tuple[Handler, ...]] = {}  # equal results are one object
        self.known: dict[bytes, tuple[Handler, ...]] = {}

    def set(self, subscriptions: Iterable[tuple[list[str], Handler]]) -> None:
        """Replace all filters and handlers by these."""
        self._index, self._handlers = FilterIndex(), []
        for filters, handler in subscriptions:
            for topic_filter in filters:
                self._index.add(split_share(topic_filter)[1], len(self._handlers))
            self._handlers.append(handler)
        self._every = tuple(dict.fromkeys(self._handlers))
        self._ways.clear()
        self.known.clear()

    def of(self, topic: bytes) -> tuple[Handler, ...]:
        """The handlers of a topic, in the order of their subscriptions."""
        found = self.known.get(topic)
        if found is None:
            if len(self.known) >= MOST_TOPICS:
                self.known.clear()
            found = self.known[topic] = self._look_up(topic)
        return found

    def split(self, messages: list[Message]) -> list[tuple[Handler, list[Message]]]:
        """Each handler of some of these messages, with those."""
        first = self.of(messages[0].topic)
        if all(self.of(message.topic) is first for message in messages):
            return [(handler, messages) for handler in first]
        wanted: dict[Handler, list[Message]] = {}
        for message in messages:
            for handler in self.of(message.topic):
                wanted.setdefault(handler, []).append(message)
        return list(wanted.items())

    def _look_up(self, topic: bytes) -> tuple[Handler, ...]:
        try:
            places = sorted(set(self._index.catching(topic.decode())))
        except UnicodeDecodeError:
            return self._every
        found = tuple(dict.fromkeys(self._handlers[place] for place in places))
        return self._ways.setdefault(found, found)
