"""Placeholders in topic templates, and which topics a filter catches (MQTT 3.1.1 section 4.7, MQTT 5 4.8.2). Pure."""

from collections.abc import Iterable
from itertools import zip_longest

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
