"""Which key a topic belongs to."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.config.topics import FilterIndex, common, covers, fewest, matches, overlap, stands_for
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
    most = 0
    for number in range(20_010):
        assert keys.match(b"a/%d" % number) == (True, str(number))
        most = max(most, len(keys._known))
    assert len(keys._known) <= most == 20_000


_LEVELS = st.lists(st.sampled_from(["a", "b", "", "$S", "+"]), min_size=1, max_size=3)
_FILTERS = st.builds(lambda levels, rest: "/".join([*levels, *rest]), _LEVELS, st.sampled_from([[], ["#"]])) | st.just(
    "#"
)
_TOPICS = ["/".join(levels) for size in (1, 2, 3, 4) for levels in itertools.product(["a", "b", "", "$S"], repeat=size)]


@given(first=_FILTERS, second=_FILTERS)
def test_what_two_filters_have_in_common_is_what_both_catch(first: str, second: str) -> None:
    """Overlap, cover and the common filter, against every topic of up to four levels."""
    one, other = ({topic for topic in _TOPICS if matches(each, topic)} for each in (first, second))
    assert overlap(first, second) == bool(one & other)
    if covers(first, second):
        assert one >= other
    elif one >= other:
        assert len(first.split("/")) > 3 or "$S" in second or not other  # more levels would tell them apart
    joined = common(first, second)
    if "$S" not in first + second:
        assert {topic for topic in _TOPICS if matches(joined, topic)} >= one | other


@given(filters=st.lists(_FILTERS, max_size=8), wanted=_FILTERS)
def test_an_index_of_filters_finds_what_a_look_at_each_would(filters: list[str], wanted: str) -> None:
    """Those that catch a topic, those that cover a filter, and, beside others, those that overlap with it."""
    index = FilterIndex[int]()
    for place, each in enumerate(filters):
        index.add(each, place)
    places = list(enumerate(filters))
    assert sorted(index.covering(wanted)) == [place for place, each in places if covers(each, wanted)]
    assert set(index.overlapping(wanted)) >= {place for place, each in places if overlap(each, wanted)}
    for topic in (*_TOPICS[:100], "a/#", "+"):  # no broker sends the last two; they are read as they stand
        assert sorted(index.catching(topic)) == [place for place, each in places if matches(each, topic)]


@given(given_filters=st.lists(st.tuples(_FILTERS | _FILTERS.map("$share/g/{}".format), st.integers(0, 1)), max_size=8))
def test_the_fewest_filters_are_those_that_a_look_at_each_pair_leaves(given_filters: list[tuple[str, int]]) -> None:
    """A filter stays where no other one stands for it, with the highest QoS of what it stands for."""
    highest = {each: max(qos for name, qos in given_filters if name == each) for each, _ in given_filters}
    stay = [each for each in highest if not any(other != each and stands_for(other, each) for other in highest)]
    assert fewest(given_filters) == {
        each: max(qos for name, qos in highest.items() if name == each or stands_for(each, name)) for each in stay
    }


def test_filters_that_another_one_covers_are_not_subscribed_to() -> None:
    """With the highest QoS of what they stand for; shared subscriptions stay by themselves."""
    given = [("z/+/climate", 1), ("z/#", 0), ("z/#", 0), ("$share/g/z/+", 1), ("other", 0)]
    assert fewest(given) == {"z/#": 1, "$share/g/z/+": 1, "other": 0}


@pytest.mark.parametrize(
    ("pattern", "topic", "expected"),
    [
        ("$share/g/sensors/{key}", "sensors/a", (True, "a")),
        ("$share/g/sensors/{key}", "$share/g/sensors/a", (False, None)),
        ("$share/g/{key}/x", "g/x", (True, "g")),
    ],
)
def test_a_shared_topic_has_the_key_of_its_level(pattern: str, topic: str, expected: tuple[bool, str | None]) -> None:
    """The group is no part of what messages are published to."""
    assert TopicPattern(pattern).match(topic) == expected
    assert TopicPattern(pattern).filter == pattern.replace("{key}", "+")
