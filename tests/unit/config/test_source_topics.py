"""Which key a topic belongs to."""

import pytest

from edge_runtime.mqtt.topics import TopicKeys, TopicPattern


@pytest.mark.parametrize(
    ("pattern", "topic", "expected"),
    [
        ("sensors/{key}/climate", "sensors/hall-3/climate", (True, "hall-3")),
        ("sensors/{key}/climate", "sensors//climate", (True, "")),
        ("sensors/{key}/climate", "sensors/a/b/climate", (False, None)),
        ("sensors/{key}/climate", "sensors/hall-3/power", (False, None)),
        ("{key}", "a", (True, "a")),
        ("{key}", "$SYS", (False, None)),
        ("+/{key}", "$SYS/uptime", (False, None)),
        ("$SYS/{key}", "$SYS/uptime", (True, "uptime")),
        ("plain/topic", "plain/topic", (True, None)),
        ("plain/topic", "plain/topic/more", (False, None)),
        ("+/{key}/#", "site/a/x/y", (True, "a")),
        ("+/{key}/#", "site/a", (True, "a")),
        ("+/{key}/#", "site", (False, None)),
        ("#", "anything/at/all", (True, None)),
        ("#", "$SYS/uptime", (False, None)),
        ("a/+/c", "a/b/c", (True, None)),
    ],
)
def test_a_topic_has_the_key_of_its_level(pattern: str, topic: str, expected: tuple[bool, str | None]) -> None:
    """`{key}` is one whole level; `+` and `#` match as in MQTT, and neither matches a leading `$`."""
    assert TopicPattern(pattern).match(topic) == expected


def test_the_filter_has_a_plus_for_the_key() -> None:
    """What is subscribed to is a plain MQTT filter."""
    assert TopicKeys(("sensors/{key}/climate", "other/#")).filters == ["sensors/+/climate", "other/#"]


def test_the_first_pattern_that_fits_gives_the_key_every_time() -> None:
    """Answers are remembered, and stay the same."""
    keys = TopicKeys(("a/{key}/x", "a/b/{key}"))
    for _ in range(3):
        assert keys.match(b"a/b/x") == (True, "b")
        assert keys.match(b"a/b/y") == (True, "y")
        assert keys.match(b"z") == (False, None)


def test_what_is_remembered_is_bounded() -> None:
    """A stranger who invents topics does not fill the memory."""
    keys = TopicKeys(("a/{key}",))
    for number in range(20_010):
        assert keys.match(b"a/%d" % number) == (True, str(number))
    assert len(keys._known) <= 20_000
