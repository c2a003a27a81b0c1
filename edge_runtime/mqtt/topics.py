"""Topics with `{key}`: what to subscribe to, and which key a message belongs to. Pure."""

from collections.abc import Callable

from edge_runtime.config.topics import matches, split_share

_CACHED_TOPICS = 20_000


class TopicPattern:
    """A topic of a source, such as `sensors/{key}/climate`.

    `+` and a closing `#` may stand in it as in any MQTT filter. `{key}` is one whole level. It may begin with
    `$share/GROUP/`: then its messages are shared with the other members of the group.
    """

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        share, rest = split_share(pattern)
        self._levels = rest.split("/")
        self._key_level = self._levels.index("{key}") if "{key}" in self._levels else None
        self._plain = "/".join("+" if level == "{key}" else level for level in self._levels)
        self.filter = share + self._plain

    def match(self, topic: str) -> tuple[bool, str | None]:
        """Whether `topic` belongs here, and its key (None where the pattern has none)."""
        if not matches(self._plain, topic):
            return False, None
        return True, None if self._key_level is None else topic.split("/")[self._key_level]


class TopicKeys:
    """The keys of the topics of one source; remembers a bounded number of answers.

    Args:
        patterns: the topics.
        is_fit: whether a key may be used; an unfit one is found as the empty key, which none is.
    """

    def __init__(self, patterns: tuple[str, ...], is_fit: Callable[[str], bool] = bool) -> None:
        self.patterns = [TopicPattern(pattern) for pattern in patterns]
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
        every = (pattern.match(name) for pattern in self.patterns)
        found, key = next((match for match in every if match[0]), (False, None))
        return found, key if key is None or self._is_fit(key) else ""
