"""The key of a reading out of the levels of its topic: which placeholders `key` names, and which topics fit it. Pure.

`sensors/{key}/climate` needs no `key`; with `key = "{site}-{machine}"` both levels of `{site}/line/{machine}` form it.
"""

from collections.abc import Iterator

from edge_runtime.config.convert import quote
from edge_runtime.config.rules import Finding, first_repeated
from edge_runtime.config.topics import bad_topic, placeholders

CHANNEL = "channel"  # the level of a topic that is the name of a channel, and no part of the key
KEY = "{key}"  # of topics, where `key` names no levels


def is_of_levels(key: str | None) -> bool:
    """Whether `key` is made of levels of the topic, and not the name of a field."""
    return key is not None and ("{" in key or "}" in key)


def template_of(key: str | None) -> str:
    """What makes the key of the levels of a topic."""
    return key if key is not None and is_of_levels(key) else KEY


def mistakes(topics: tuple[str, ...], key: str | None) -> Iterator[Finding]:
    """What is wrong with topics, and with the key that they are to give."""
    try:
        known = tuple(dict.fromkeys(placeholders(template_of(key))))
    except ValueError:
        yield "key", f"expected each {{ with its }}, found {quote(str(key))}"
        return
    if not all(name.isidentifier() for name in known):
        yield "key", f"expected names in braces, such as {{site}}-{{machine}}, found {quote(str(key))}"
        return
    for topic in topics:
        found = list(bad_topic(topic, tuple(dict.fromkeys((*known, CHANNEL))), filters=True))
        yield from (("topics", trouble) for trouble in found)
        missing = [f"{{{name}}}" for name in known if f"{{{name}}}" not in topic]
        if is_of_levels(key) and missing and not found:
            yield "topics", f"expected {' and '.join(missing)}, of which `key` is made, found {quote(topic)}"
    twice = first_repeated(topics)
    if twice is not None:
        yield "topics", f"expected every topic once, found {quote(twice)} twice"
    keyed = [topic for topic in topics if KEY in topic]
    if keyed and key is not None and not is_of_levels(key):
        yield "key", f"expected the key in the topic or in a field, found {quote(keyed[0])} and key = {quote(key)}"
