"""Placeholders in topic templates, and which topics a filter catches (MQTT 3.1.1 section 4.7, MQTT 5 4.8.2). Pure."""

from collections.abc import Iterable, Iterator
from itertools import zip_longest

from edge_runtime.config.convert import quote

SHARE = "$share/"

# What a broker refuses in a topic that is published to, beside wildcards (MQTT 5 section 1.5.4): mosquitto closes the
# connection on control characters, surrogates and non-characters. A class of a regular expression, without brackets.
UNFIT_CHARACTERS = "\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef" + "".join(
    chr(plane << 16 | last) for plane in range(17) for last in (0xFFFE, 0xFFFF)
)


def placeholders(template: str) -> list[str]:
    """The names in braces, in order: `sensors/{key}/climate` holds `key`.

    Raises:
        ValueError: a brace has no partner.
    """
    names = []
    rest = template
    while "{" in rest or "}" in rest:
        before, opening, rest = rest.partition("{")
        name, closing, rest = rest.partition("}")
        if "}" in before or not opening or not closing or "{" in name:
            raise ValueError(template)
        names.append(name)
    return names


def matches(topic_filter: str, topic: str) -> bool:
    """Whether a subscription to `topic_filter` receives what is published to `topic`."""
    wanted, found = topic_filter.split("/"), topic.split("/")
    if topic.startswith("$") and wanted[0] in {"+", "#"}:
        return False
    for index, level in enumerate(wanted):
        if level == "#":
            return True
        if index >= len(found) or level not in {"+", found[index]}:
            return False
    return len(wanted) == len(found)


def split_share(topic_filter: str) -> tuple[str, str]:
    """The part `$share/GROUP/` of a shared subscription, empty for a plain one, and the filter itself."""
    if not topic_filter.startswith(SHARE):
        return "", topic_filter
    group, _, rest = topic_filter[len(SHARE) :].partition("/")
    return f"{SHARE}{group}/", rest


def covers(wide: str, narrow: str) -> bool:
    """Whether a plain filter catches every topic that another one catches."""
    wides, narrows = wide.split("/"), narrow.split("/")
    if narrow.startswith("$") and wides[0] in {"+", "#"}:
        return False
    for index, level in enumerate(wides):
        if level == "#":
            return True
        if index >= len(narrows) or narrows[index] == "#" or level not in {"+", narrows[index]}:
            return False
    return len(wides) == len(narrows)


def overlap(first: str, second: str) -> bool:
    """Whether there is a topic that both plain filters catch."""
    ones, others = first.split("/"), second.split("/")
    if any(each.startswith("$") and levels[0] in {"+", "#"} for each, levels in ((first, others), (second, ones))):
        return False
    for one, other in zip(ones, others, strict=False):
        if "#" in {one, other}:
            return True
        if "+" not in {one, other} and one != other:
            return False
    longer, common_levels = max(ones, others, key=len), min(len(ones), len(others))
    return longer[common_levels:] in ([], ["#"])  # a closing # catches the level above it too


def common(first: str, second: str) -> str:
    """A plain filter that covers both."""
    levels: list[str] = []
    for one, other in zip_longest(first.split("/"), second.split("/"), fillvalue="#"):
        if "#" in {one, other}:
            return "/".join([*levels, "#"])
        levels.append(one if one == other else "+")
    return "/".join(levels)


def fewest(subscriptions: Iterable[tuple[str, int]]) -> dict[str, int]:
    """The filters of which none covers another, each with the highest QoS of those that it stands for.

    A broker may send a message once for each filter that catches it (MQTT 3.1.1 section 3.3.5), so none may stand for
    what another one brings.
    """
    wanted: dict[str, int] = {}
    for topic_filter, qos in subscriptions:
        wanted[topic_filter] = max(qos, wanted.get(topic_filter, 0))
    kept: dict[str, int] = {}
    for topic_filter, qos in wanted.items():
        wide = next((each for each in wanted if each != topic_filter and stands_for(each, topic_filter)), None)
        if wide is None:
            kept[topic_filter] = max(qos, kept.get(topic_filter, 0))
    return {
        each: max(own, *(qos for topic_filter, qos in wanted.items() if stands_for(each, topic_filter)), 0)
        for each, own in kept.items()
    }


def stands_for(wide: str, narrow: str) -> bool:
    """Whether a subscription to `wide` brings everything that one to `narrow` would bring; a share is always apart."""
    return not wide.startswith(SHARE) and not narrow.startswith(SHARE) and covers(wide, narrow)


def bad_topic(topic: str, known: tuple[str, ...], *, filters: bool) -> Iterator[str]:
    """What is wrong with a topic; with `filters` it is subscribed to, else published to."""
    shown = quote(topic[:100])
    share, plain = split_share(topic) if filters else ("", topic)
    levels = plain.split("/")
    if share and (not plain or share == f"{SHARE}/" or any(sign in share for sign in "+#{}")):
        yield f"expected a shared topic as $share/GROUP/TOPIC, found {shown}"
        return
    try:
        names = placeholders(topic)
    except ValueError:
        yield f"expected each {{ with its }}, found {shown}"
        return
    for name in names:
        if name not in known:
            listed = " ".join(f"{{{each}}}" for each in known)
            yield f"expected no other placeholder than {listed}, found {quote('{' + name + '}')} in {shown}"
    for name in (each for each in known if each in names and (filters or each == "key")):
        if names.count(name) > 1:
            yield f"expected {{{name}}} at most once, found {shown}"
        if filters and f"{{{name}}}" not in levels:
            yield f"expected {{{name}}} as a whole level, such as sensors/{{{name}}}/climate, found {shown}"
    if not filters and ("+" in topic or "#" in topic):
        yield f"expected a topic without + and #, because one publishes to one topic, found {shown}"
    if filters and any("+" in level and level != "+" for level in levels):
        yield f"expected + as a whole level, found {shown}"
    if filters and any("#" in level and (level != "#" or i + 1 < len(levels)) for i, level in enumerate(levels)):
        yield f"expected # as the whole last level, found {shown}"
