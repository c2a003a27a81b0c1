"""Several levels of a topic that form one key."""

from typing import Any

import pytest

from edge_runtime.mqtt.topics import TopicKeys, as_filter
from edge_runtime.stream.origin import is_fit_key
from edge_runtime.stream.sources.key_levels import mistakes


def test_levels_form_the_key_in_the_order_of_the_template() -> None:
    """Whatever their order in the topic is; other topics are not of this source."""
    keys = TopicKeys(("$share/g/{site}/line/{machine}/#", "x/{machine}/{site}"), is_fit_key, "{machine}@{site}")
    assert keys.filters == ["$share/g/+/line/+/#", "x/+/+"]
    assert keys.match(b"north/line/m1/climate") == (True, "m1@north")
    assert keys.match(b"x/m2/south") == (True, "m2@south")
    assert keys.match(b"north/other/m1") == (False, None)


def test_different_levels_never_share_a_key() -> None:
    """`a-b` with `c` and `a` with `b-c`: the first one has it; an empty level is no key either."""
    keys = TopicKeys(("{site}/{machine}", "more/{site}/{machine}"), is_fit_key, "{site}-{machine}")
    assert keys.match(b"a-b/c") == (True, "a-b-c")
    assert keys.match(b"more/a-b/c") == (True, "a-b-c")
    assert keys.match(b"a/b-c") == (True, "")
    assert keys.match(b"/c") == (True, "")


def test_a_level_that_is_fit_for_no_key_gives_none() -> None:
    """It is of this source and has no key; a topic that is no text is of no source."""
    keys = TopicKeys(("{site}/{machine}", "plain/x/y", "one/two/{machine}"), is_fit_key, "{machine}")
    assert keys.match(b"a/b\x01") == (True, "")
    assert keys.match("a/b\ufffe".encode()) == (True, "")
    assert keys.match(b"plain/x/y") == (True, None)
    assert keys.match(b"one/two/m") == (True, "m")
    assert keys.match(b"a/\xff") == (False, None)


def test_a_placeholder_is_a_whole_level_in_braces() -> None:
    """What only begins or ends with a brace is a level as any other."""
    assert as_filter("a/{key}/b/{x/y}/{/}/+/#") == "a/+/b/{x/y}/{/}/+/#"


def test_the_owners_of_keys_that_are_remembered_are_bounded() -> None:
    """A stranger who invents levels does not fill the memory; a topic of one level needs none."""
    keys = TopicKeys(("{site}/{machine}",), is_fit_key, "{site}-{machine}")
    most = 0
    for number in range(20_003):
        assert keys.match(b"a/%d" % number) == (True, f"a-{number}")
        most = max(most, len(keys._owners))
    assert most == 20_000
    single = TopicKeys(("{key}",), is_fit_key)
    assert single.match(b"a") == (True, "a")
    assert not single._owners


@pytest.mark.parametrize(
    ("topics", "key", "expected"),
    [
        (["{site}/{machine}"], "{site}-{machine}", []),
        (["s/{key}"], None, []),
        (["{site}/v"], "{site}-{machine}", ["expected {machine}, of which `key` is made, found '{site}/v'"]),
        (["{site}/{site}"], "{site}", ["expected {site} at most once, found '{site}/{site}'"]),
        (
            ["x{site}/v"],
            "{site}",
            ["expected {site} as a whole level, such as sensors/{site}/climate, found 'x{site}/v'"],
        ),
        (
            ["{site}/{key}"],
            "{site}",
            ["expected no other placeholder than {site} {channel}, found '{key}' in '{site}/{key}'"],
        ),
        (["{site}/v"], None, ["expected no other placeholder than {key} {channel}, found '{site}' in '{site}/v'"]),
        (["s/{key}"], "machine", ["expected the key in the topic or in a field, found 's/{key}' and key = 'machine'"]),
        (["{site}/v"], "{site", ["expected each { with its }, found '{site'"]),
        (["{site}/v"], "{}", ["expected names in braces, such as {site}-{machine}, found '{}'"]),
        (["{site}/v"], "{site.x}", ["expected names in braces, such as {site}-{machine}, found '{site.x}'"]),
    ],
)
def test_a_key_and_topics_that_do_not_fit_are_refused(topics: list[str], key: Any, expected: list[str]) -> None:
    """With what was expected and found."""
    assert [text.replace('"', "'") for _, text in mistakes(tuple(topics), key)] == expected
