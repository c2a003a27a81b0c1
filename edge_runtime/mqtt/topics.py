"""Topics with `{key}`: the filter to subscribe, and the key of a message. Pure."""

from collections.abc import Callable

from edge_runtime.config.topics import FilterIndex, matches, split_share

_CACHED_TOPICS = 20_000


def as_filter(pattern: str) -> str:
    """The topic filter of a topic with placeholders."""
    return "/".join("+" if _is_placeholder(level) else level for level in pattern.split("/"))


def _is_placeholder(level: str) -> bool:
    return level.startswith("{") and level.endswith("}")


class TopicPattern:
    """A topic of a source, such as `sensors/{key}/climate`.

    It may contain `+` and a final `#` as any MQTT filter. A placeholder is one whole level. It may begin with
    `$share/GROUP/`: then its messages are shared with the other members of the group.

    Args:
        pattern: the topic.
        template: makes the key from the levels in braces.
    """

    def __init__(self, pattern: str, template: str = "{key}") -> None:
        self.pattern = pattern
        self._template = template
        share, rest = split_share(pattern)
        levels = rest.split("/")
        self._places = {level[1:-1]: place for place, level in enumerate(levels) if _is_placeholder(level)}
        self.channel_level = self._places.pop("channel", None)  # not part of the key
        self.plain = as_filter(rest)  # the filter without the share
        self.filter = share + self.plain

    def match(self, topic: str) -> tuple[bool, str | None]:
        """Whether `topic` matches, and its key (None if the pattern has none, empty if a level is empty)."""
        if not matches(self.plain, topic):
            return False, None
        parts = self.parts(topic)
        if not parts:
            return True, None
        return True, self._template.format(**parts) if all(parts.values()) else ""

    def parts(self, topic: str) -> dict[str, str]:
        """The levels in the positions of placeholders."""
        levels = topic.split("/")
        return {name: levels[place] for name, place in self._places.items()}


class TopicKeys:
    """The keys of the topics of one source; caches a bounded number of results.

    Args:
        patterns: the topics.
        is_fit: whether a key may be used; an unfit one results in the empty key, which is never valid.
        template: makes the key from the levels in braces. Different levels that give one key (`a-b` and `c`, `a` and
            `b-c`) would share a window, so that only the first of them gets the key; the others are unfit.
    """

    def __init__(
        self, patterns: tuple[str, ...], is_fit: Callable[[str], bool] = bool, template: str = "{key}"
    ) -> None:
        self.patterns = [TopicPattern(pattern, template) for pattern in patterns]
        self._places = FilterIndex[int]()
        for place, pattern in enumerate(self.patterns):
            self._places.add(pattern.plain, place)
        self._owners: dict[str, dict[str, str]] = {}
        self._is_fit = is_fit
        self._known: dict[bytes, tuple[bool, str | None]] = {}

    @property
    def filters(self) -> list[str]:
        """The topic filters to subscribe to."""
        return [pattern.filter for pattern in self.patterns]

    def match(self, topic: bytes) -> tuple[bool, str | None]:
        """As `TopicPattern.match`, for the first pattern that fits. What is no UTF-8 fits none."""
        found = self._known.get(topic)
        if found is None:
            if len(self._known) >= _CACHED_TOPICS:
                self._known.clear()
            found = self._known[topic] = self._match_first(topic)
        return found

    def _match_first(self, topic: bytes) -> tuple[bool, str | None]:
        try:
            name = topic.decode()
        except UnicodeDecodeError:
            return False, None
        places = self._places.catching(name)
        if not places:
            return False, None
        pattern = self.patterns[min(places)]
        _, key = pattern.match(name)
        is_fit = key is None or (self._is_fit(key) and self._owns(key, pattern.parts(name)))
        return True, key if is_fit else ""

    def _owns(self, key: str, parts: dict[str, str]) -> bool:
        if len(parts) == 1:
            return True
        if len(self._owners) >= _CACHED_TOPICS:
            self._owners.clear()
        return self._owners.setdefault(key, parts) == parts
