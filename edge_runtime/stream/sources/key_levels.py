"""Makes the key of a reading from levels of its topic: the placeholders of `key`, and the topics that fit it. Pure.

`sensors/{key}/climate` needs no `key`; with `key = "{site}-{machine}"` both levels of `{site}/line/{machine}` form it.
"""

from collections.abc import Iterator

from edge_runtime.config.convert import quote
from edge_runtime.config.rules import Finding, first_repeated
from edge_runtime.config.topics import bad_topic, placeholders

CHANNEL = "channel"  # the level of a topic that names a channel and is not part of the key
KEY = "{key}"  # of topics, if `key` names no levels


def is_of_levels(key: str | None) -> bool:
    """Whether `key` consists of levels of the topic, instead of being the name of a field."""
    return key is not None and ("{" in key or "}" in key)


def template_of(key: str | None) -> str:
    """The template that makes the key from the levels of a topic."""
    return key if key is not None and is_of_levels(key) else KEY


def mistakes(topics: tuple[str, ...], key: str | None) -> Iterator[Finding]:
    """The mistakes of topics and of the key made from them."""
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
